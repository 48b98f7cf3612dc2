//! Models without a checkpoint, and the measurement of their speed.

use anyhow::{Result, ensure};
use burn::tensor::Device;
use flute_burn::bench::{BenchOptions, bench};
use flute_burn::checkpoint::shapes;
use flute_burn::model::{Model, SyntheticOptions};
use flute_cube::Format;

fn noise(shape: &str, format: Option<Format>, device: Device) -> Result<Model> {
    let options = SyntheticOptions { device, dtype: None, format, head: None };
    Ok(Model::synthetic(shapes::named(shape)?, &options)?)
}

#[test]
fn noise_of_every_format_gives_finite_logits() -> Result<()> {
    let kernels = super::kernel_device()?;
    let devices = [Some(Device::flex()), kernels];
    for device in devices.into_iter().flatten() {
        for format in [None, Some(Format::new(2, 64)?), Some(Format::new(3, 128)?)] {
            let model = noise("tiny", format, device.clone())?;
            let mut cache = model.noise_cache(2, 20, 12)?;
            let logits = model.forward(model.tokens(&[1, 2, 3, 4], 2)?, &mut cache)?;
            ensure!(logits.dims() == [2, 2, model.vocab()] && cache.len() == 14);
            let logits = logits.try_into_vec_as::<f32>()?;
            let (low, high) = logits.iter().fold((f32::MAX, f32::MIN), |(low, high), logit| {
                (low.min(*logit), high.max(*logit))
            });
            ensure!(low.is_finite() && high.is_finite() && high - low > 0.1, "{low} {high}");
        }
    }
    Ok(())
}

#[test]
fn a_step_reads_every_weight_once_and_the_keys_and_values_that_are_seen() -> Result<()> {
    let model = noise("tiny", Some(Format::new(4, 128)?), Device::flex())?;
    let bytes = model.step_bytes(3, 100);
    // f32 on a CPU: 4 bits a weight, a scale of 4 bytes for 128 of them, and a table of 256 pairs for each
    // of the four products of a block.
    let weights = 6 * 256 * (256 * 2 + 128 * 2 + 768 * 3);
    let tables = 6 * 4 * 256 * 2 * 4;
    assert_eq!(bytes.linears, weights / 2 + weights / 128 * 4 + tables);
    assert_eq!(bytes.head, 2048 * 256 * 4);
    assert_eq!(bytes.cache, 3 * 100 * 6 * 2 * 2 * 64 * 4);
    assert_eq!(bytes.total(), bytes.linears + bytes.head + bytes.cache);
    Ok(())
}

#[test]
fn a_bench_says_how_fast_a_step_is_and_what_bounds_it() -> Result<()> {
    let device = super::kernel_device()?.unwrap_or_else(Device::flex);
    let model = noise("tiny", Some(Format::new(4, 128)?), device.clone())?;
    let options = BenchOptions { batch: 2, context: 20, tokens: 3, prompt: 12, graph: true };
    let mut stages = vec![];
    let speed = bench(&model, &options, &mut |stage| stages.push(stage.to_owned()))?;
    assert_eq!(stages, ["prompt", "read rate", "decoding"]);
    ensure!(speed.step_seconds_least > 0.0 && speed.step_seconds_least <= speed.step_seconds);
    ensure!((speed.tokens_per_second * speed.step_seconds - 2.0).abs() < 1e-9);
    let kernels = flute_burn::device::client(&device).is_some();
    ensure!(speed.graph == kernels && speed.step_seconds_launched.is_some() == kernels);
    ensure!(speed.read_rate.is_some_and(|rate| rate > 1e6) == kernels);
    if let (Some(floor), Some(of)) = (speed.floor_seconds, speed.of_floor) {
        ensure!((of * speed.step_seconds - floor).abs() < 1e-9 && floor > 0.0);
    }
    let prompt = speed.prompt.unwrap();
    ensure!(prompt.prefill_seconds > 0.0 && prompt.first_token_seconds > 0.0);
    Ok(())
}

#[test]
fn a_bench_beyond_the_context_is_refused_before_anything_runs() -> Result<()> {
    let model = noise("tiny", None, Device::flex())?;
    for options in [
        BenchOptions { context: 1 << 17, ..BenchOptions::default() },
        BenchOptions { prompt: 1 << 17, ..BenchOptions::default() },
        BenchOptions { batch: 0, ..BenchOptions::default() },
        BenchOptions { tokens: 0, ..BenchOptions::default() },
    ] {
        let refused = bench(&model, &options, &mut |stage| panic!("{stage} ran"));
        ensure!(refused.is_err(), "{options:?}");
    }
    Ok(())
}
