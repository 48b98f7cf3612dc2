//! Gradients of the operation, adapters beside frozen layers, and learned scales.
//!
//! `FLUTE_DEVICE` names the device whose kernels are checked beside the CPU (`cuda:0`, …); without it the software
//! rasterizer of Vulkan is used where the machine has one.

mod adapter;
mod directories;
mod gradients;
mod module;
mod nfl;

use anyhow::Result;
use burn::tensor::{Device, Tensor, TensorData};
use flute_burn::device;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// The CPU, and a device with kernels where there is one.
fn devices() -> Result<Vec<Device>> {
    let name = std::env::var("FLUTE_DEVICE").unwrap_or_else(|_| "wgpu:cpu".into());
    let required = std::env::var("FLUTE_REQUIRE").is_ok_and(|names| !names.is_empty());
    let mut devices = vec![Device::flex()];
    match device::parse(&name) {
        Ok(device) => devices.push(device),
        Err(error) if required => return Err(error.into()),
        Err(error) => println!("{error}: no kernel was checked"),
    }
    Ok(devices)
}

fn values(len: usize, seed: u64) -> Vec<f32> {
    println!("seed {seed}");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}
