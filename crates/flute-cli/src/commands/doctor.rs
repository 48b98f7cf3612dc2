//! `flute doctor`: the devices of this machine, what each can do, and what is missing.

use crate::args::DoctorArgs;
use crate::output;
use flute_burn::device::{self, DeviceInfo};
use flute_cube::{Dtype, Format, Limits, Plan, Problem};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    nvidia_driver: Option<String>,
    cuda_headers: Option<PathBuf>,
    /// What `--device auto` takes.
    auto: String,
    devices: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    name: String,
    description: String,
    runtime: String,
    opens: bool,
    dtypes: Vec<&'static str>,
    /// None on the CPU, which runs no kernel.
    gpu: Option<Gpu>,
}

#[derive(Serialize)]
struct Gpu {
    shared_memory_bytes: usize,
    units_per_cube: usize,
    tensor_cores: bool,
    kernels: &'static str,
    /// The plan of one token through a layer of 4096 × 4096, W4G128.
    plan: String,
}

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        nvidia_driver: nvidia_driver(),
        cuda_headers: device::cuda_headers(),
        auto: device::name(&device::parse("auto")?),
        devices: device::available().iter().map(entry).collect::<anyhow::Result<_>>()?,
    };
    match args.json.wanted {
        true => output::json(&report)?,
        false => print(&report)?,
    }
    Ok(())
}

fn entry(info: &DeviceInfo) -> anyhow::Result<Entry> {
    let client = info.device.as_ref().and_then(device::client);
    Ok(Entry {
        name: info.name.clone(),
        description: info.description.clone(),
        runtime: info.runtime.clone(),
        opens: info.device.is_some(),
        dtypes: info.dtypes.iter().map(|dtype| dtype.name()).collect(),
        gpu: client.map(|client| gpu(&Limits::of(&client))).transpose()?,
    })
}

fn gpu(limits: &Limits) -> flute_cube::Result<Gpu> {
    let dtype = if limits.dtypes.contains(&Dtype::F16) { Dtype::F16 } else { Dtype::F32 };
    let format = Format::new(4, 128)?;
    let problem = Problem { m: 1, n: 4096, k: 4096, format, dtype, bias: false };
    let plan = Plan::select(&problem, limits)?;
    Ok(Gpu {
        shared_memory_bytes: limits.shared_bytes,
        units_per_cube: limits.cube_units,
        tensor_cores: limits.mma,
        kernels: match plan {
            Plan::Portable(_) => "portable",
            Plan::Mma(_) => "tensor cores (CUDA mma)",
        },
        plan: plan.to_string(),
    })
}

/// The version of the kernel driver, where there is one (Linux).
fn nvidia_driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c == '.' || c.is_ascii_digit());
    text.split_whitespace().find(version).map(str::to_owned)
}

fn print(report: &Report) -> std::io::Result<()> {
    let absent = || "none found".to_owned();
    let headers = report.cuda_headers.as_ref().map(|path| path.display().to_string());
    output::line(format_args!("flute          {}", report.version))?;
    output::line(format_args!(
        "NVIDIA driver  {}",
        report.nvidia_driver.clone().unwrap_or_else(absent)
    ))?;
    output::line(format_args!("CUDA headers   {}", headers.clone().unwrap_or_else(absent)))?;
    if headers.is_none() && report.nvidia_driver.is_some() {
        output::line(
            "               kernels are compiled against them: install the CUDA toolkit, or its",
        )?;
        output::line(
            "               headers, and set CUDA_PATH to the directory that holds include/",
        )?;
    }
    output::line(format_args!("--device auto  {}", report.auto))?;
    for Entry { name, description, runtime, opens, dtypes, gpu } in &report.devices {
        output::line(format_args!("\n{name:<14} {description}"))?;
        if !opens {
            continue;
        }
        output::line(format_args!("  runtime      {runtime}, computes in {}", dtypes.join(", ")))?;
        let Some(gpu) = gpu else {
            output::line(
                "  kernels      none: quantized layers are decoded, then multiplied (slow)",
            )?;
            continue;
        };
        let (kilobytes, units) = (gpu.shared_memory_bytes >> 10, gpu.units_per_cube);
        output::line(format_args!(
            "  cube         {kilobytes} KB of shared memory, {units} units"
        ))?;
        let mma = if gpu.tensor_cores { "used" } else { "not used" };
        output::line(format_args!("  tensor cores {mma}"))?;
        output::line(format_args!("  kernels      {}; one token: {}", gpu.kernels, gpu.plan))?;
    }
    Ok(())
}
