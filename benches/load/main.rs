//! How fast a checkpoint is loaded, and how much memory of the host that takes.
//!
//! `cargo bench --bench load -- --help` lists the options. A checkpoint of noise in a known shape is written to a
//! temporary directory by the writer that `flute quantize` uses, read once so that it lies in the page cache, and loaded
//! several times. What loading does on the host alone (files to kernel order) is measured beside it. Memory is what the
//! process had at most during a load, less what it had before: on a GPU buffers alone, on the CPU the model itself too.
//! Exit codes: 0, 1 if something failed, 2 for a command line that is none.

mod noise;
mod options;
mod process;
mod report;

use anyhow::{Context, Result, ensure};
use flute_burn::checkpoint::{Reader, shapes};
use flute_burn::device;
use flute_burn::model::{LoadOptions, Model};
use noise::Noise;
use options::{Options, USAGE};
use process::Watch;
use report::{Load, Report};
use std::{process::ExitCode, time::Instant};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error:#}\nhint: --help lists the options");
            return ExitCode::from(2);
        }
    };
    match measure(&options).and_then(|report| report.print(options.json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<Report> {
    let mut config = shapes::config_json(&options.shape)?;
    if let Some(layers) = options.layers {
        let all = config["num_hidden_layers"].as_u64().unwrap_or(0);
        ensure!(layers as u64 <= all, "--layers: {} has {all}", options.shape);
        config["num_hidden_layers"] = layers.into();
    }
    let noise = Noise::new(config, options.format)?;
    let root = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let root = root.context("no temporary directory")?;
    let dir = root.path().join("model");
    noise.write(&dir)?;
    let reader = Reader::open(&dir)?;
    let bytes = reader.tensors().map(|(_, info)| info.bytes).sum();
    let start = Instant::now();
    for name in reader.tensor_names() {
        reader.stream(name, |_| Ok(()))?;
    }
    let read_seconds = start.elapsed().as_secs_f64();
    let host_seconds = host(&reader)?;
    let device = device::parse(&options.device)?;
    let mut loads = vec![];
    for _ in 0..options.runs {
        let watch = Watch::start();
        let start = Instant::now();
        let model = Model::load(&dir, &LoadOptions::new(device.clone()))?;
        model.device().sync().context("the device failed while the model was loaded")?;
        let seconds = start.elapsed().as_secs_f64();
        loads.push(Load { seconds, used: watch.and_then(Watch::end) });
        drop(model);
        device.memory_cleanup();
        device.sync().context("the device failed while its memory was given back")?;
    }
    Ok(Report {
        shape: options.shape.clone(),
        layers: noise.layers(),
        format: options.format.to_string(),
        device: device::name(&device),
        threads: rayon::current_num_threads(),
        bytes,
        largest_layer_bytes: noise.largest_layer_bytes(),
        block_bytes: noise.block_bytes(),
        read_seconds,
        host_seconds,
        loads,
    })
}

/// Everything once from the files to the host, codes to kernel order: a load without a device.
fn host(reader: &Reader) -> Result<f64> {
    let start = Instant::now();
    for module in reader.quantized_modules() {
        std::hint::black_box(reader.packed(module)?);
    }
    for name in reader.tensor_names().filter(|name| name.ends_with(".weight")) {
        std::hint::black_box(reader.raw(name)?);
    }
    Ok(start.elapsed().as_secs_f64())
}
