//! `flute doctor`: the devices of this machine, what each can do, and what is missing.

use crate::args::{DoctorArgs, ProductArgs};
use crate::output;
use crate::product::Product;
use flute_burn::device::{self, DeviceInfo};
use flute_cube::{Dtype, Format, Limits, Plan, Problem, tune};
use serde::Serialize;
use std::fmt;
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
    /// The plan of one token through a layer of 4096 × 4096, W4G128, without measuring.
    plan: String,
    /// Of the products that were asked for.
    products: Vec<Product>,
}

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        nvidia_driver: nvidia_driver(),
        cuda_headers: device::cuda_headers(),
        auto: device::name(&device::parse("auto")?),
        devices: device::available()
            .iter()
            .map(|info| entry(info, &args.products))
            .collect::<anyhow::Result<_>>()?,
    };
    let printed = if args.json.wanted { output::json(&report) } else { output::line(&report) };
    Ok(printed?)
}

fn entry(info: &DeviceInfo, products: &ProductArgs) -> anyhow::Result<Entry> {
    let client = info.device.as_ref().and_then(device::client);
    let gpu = client.map(|client| -> anyhow::Result<Gpu> {
        let limits = Limits::of(&client);
        let mut gpu = gpu(&limits)?;
        for problem in products.problems(&limits)? {
            let plan = tune::plan(&client, &problem)?;
            gpu.products.push(Product::new(&problem, &plan, tune::tuned(&client, &problem)));
        }
        Ok(gpu)
    });
    Ok(Entry {
        name: info.name.clone(),
        description: info.description.clone(),
        runtime: info.runtime.clone(),
        opens: info.device.is_some(),
        dtypes: info.dtypes.iter().map(|dtype| dtype.name()).collect(),
        gpu: gpu.transpose()?,
    })
}

fn gpu(limits: &Limits) -> flute_cube::Result<Gpu> {
    let dtype = if limits.dtypes.contains(&Dtype::F16) { Dtype::F16 } else { Dtype::F32 };
    let format = Format::new(4, 128)?;
    let problem = Problem { m: 1, n: 4096, k: 4096, format, dtype, bias: false, gate: None };
    let plan = Plan::select(&problem, limits)?;
    let many = Plan::select(&Problem { m: 64, ..problem }, limits)?;
    Ok(Gpu {
        shared_memory_bytes: limits.shared_bytes,
        units_per_cube: limits.cube_units,
        tensor_cores: !matches!(many, Plan::Portable(_)),
        kernels: match (plan, many) {
            (Plan::Mma(_) | Plan::Stream(_) | Plan::Dense(_), _) => "tensor cores",
            (_, Plan::Portable(_)) => "portable, no tensor cores",
            _ => "portable, for many tokens cooperative matrices (tensor cores)",
        },
        plan: plan.to_string(),
        products: vec![],
    })
}

/// The version of the kernel driver, where there is one (Linux).
fn nvidia_driver() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c == '.' || c.is_ascii_digit());
    text.split_whitespace().find(version).map(str::to_owned)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver = self.nvidia_driver.as_deref().unwrap_or("none found");
        writeln!(f, "flute          {}", self.version)?;
        writeln!(f, "NVIDIA driver  {driver}")?;
        match &self.cuda_headers {
            Some(path) => writeln!(f, "CUDA headers   {}", path.display())?,
            None => writeln!(f, "CUDA headers   none found{NEEDED}")?,
        }
        write!(f, "--device auto  {}", self.auto)?;
        self.devices.iter().try_for_each(|device| write!(f, "\n\n{device}"))
    }
}

/// Only CUDA needs them; `CubeCL` looks where [`device::cuda_headers`] does.
const NEEDED: &str = "; CUDA kernels are compiled against the toolkit's\n               \
     headers: install it, or set CUDA_PATH to a directory that holds include/";

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<14} {}", self.name, self.description)?;
        if !self.opens {
            return Ok(());
        }
        write!(f, "\n  runtime      {}, {}", self.runtime, self.dtypes.join(", "))?;
        let Some(gpu) = &self.gpu else {
            return write!(f, "\n  kernels      none: codes are decoded, then multiplied (slow)");
        };
        let (kilobytes, units) = (gpu.shared_memory_bytes >> 10, gpu.units_per_cube);
        write!(f, "\n  cube         {kilobytes} KB of shared memory, {units} units")?;
        write!(f, "\n  kernels      {}\n  one token    {}", gpu.kernels, gpu.plan)?;
        gpu.products.iter().try_for_each(|product| write!(f, "\n  {product}"))
    }
}
