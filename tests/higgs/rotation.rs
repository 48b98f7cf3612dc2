//! The rotation as an operation of Burn: on a device with kernels, fused, and differentiated.

use super::{naive, normal, relative};
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use flute_burn::{device, hadamard::hadamard};

/// The CPU, and the device with kernels that this machine has.
fn devices() -> Vec<Device> {
    let named = std::env::var("FLUTE_DEVICE").unwrap_or_else(|_| "wgpu:cpu".into());
    let found = device::parse(&named);
    if found.is_err() {
        println!("neither FLUTE_DEVICE nor a software Vulkan is here; no kernel was checked");
    }
    [Device::flex()].into_iter().chain(found).collect()
}

#[test]
fn every_device_rotates_any_layout_and_what_stands_around_it() -> Result<()> {
    let (block, values) = (64, normal(61, 3 * 128 * 5));
    // Rotated along an axis that does not lie contiguously, between two operations that fusion may join.
    let data = TensorData::new(values.clone(), [3, 128, 5]);
    let doubled: Vec<f32> = (0..3 * 5 * 128)
        .map(|at| 2.0 * values[at / 640 * 640 + at % 128 * 5 + at / 128 % 5])
        .collect();
    let expected: Vec<f64> = naive(&doubled, block).into_iter().map(|y| y + 1.0).collect();
    for device in devices() {
        let x = Tensor::<3>::from_data(data.clone(), (&device, DType::F32));
        let y = hadamard(x.swap_dims(1, 2) * 2.0, block) + 1.0;
        let error = relative(&y.try_into_vec_as::<f32>()?, &expected);
        println!("{}: relative error {error:.1e}", device::name(&device));
        ensure!(error <= 1e-6, "{}: {error}", device::name(&device));
    }
    Ok(())
}

#[test]
fn an_empty_tensor_and_a_block_of_one_stay_as_they_are() -> Result<()> {
    for device in devices() {
        let x = Tensor::<2>::random([3, 8], Distribution::Default, &device);
        let (same, none) = (hadamard(x.clone(), 1), hadamard(x.clone().slice([0..0, 0..8]), 8));
        ensure!(same.try_into_vec_as::<f32>()? == x.try_into_vec_as::<f32>()?);
        ensure!(none.dims() == [0, 8]);
    }
    Ok(())
}

#[test]
fn the_gradient_of_a_rotation_is_the_rotated_gradient() -> Result<()> {
    let (block, weights) = (32, normal(62, 4 * 96));
    let expected = naive(&weights, block);
    for device in devices() {
        let device = device.autodiff();
        let x = Tensor::<2>::random([4, 96], Distribution::Default, &device).require_grad();
        let data = TensorData::new(weights.clone(), [4, 96]);
        let weights = Tensor::<2>::from_data(data, (&device, DType::F32));
        let loss = (hadamard(x.clone(), block) * weights).sum();
        let Some(grad) = x.grad(&loss.backward()) else { anyhow::bail!("no gradient") };
        let error = relative(&grad.try_into_vec_as::<f32>()?, &expected);
        ensure!(error <= 1e-6, "{}: {error}", device::name(&device));
    }
    Ok(())
}
