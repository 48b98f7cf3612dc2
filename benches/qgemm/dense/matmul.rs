//! Dense f16 by Burn's own matmul, as a model would call it: what is timed holds the host's work too.

use super::Shape;
use crate::layer;
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Tensor, TensorData};
use flute_cube::measure::Run;

/// Copies of one weight, each a transposed view of `[n, k]`.
pub(super) struct Matmul {
    device: Device,
    shape: Shape,
    copies: Vec<Tensor<2>>,
}

impl Matmul {
    pub(super) fn new(device: &Device, shape: Shape) -> Result<Self> {
        ensure!(device.supports_dtype(DType::F16), "the device does not compute in f16");
        let weight = shape.weight();
        let copy = |_| Self::upload(weight.clone(), [shape.n, shape.k], device).transpose();
        let copies = (0..shape.copies).map(copy).collect();
        device.sync()?;
        Ok(Self { device: device.clone(), shape, copies })
    }

    /// Times and checks the product with `m` rows of activations.
    pub(super) fn time(&self, m: usize) -> Result<Run> {
        let Shape { n, k, .. } = self.shape;
        let x = Self::upload(self.shape.x(m), [m, k], &self.device);
        let product = |weight: &Tensor<2>| x.clone().matmul(weight.clone());
        let timing = layer::queued(&self.device, &self.copies, 2 * m * n, product)?;
        let y = x.matmul(self.copies[0].clone()).try_into_data()?;
        Ok(Run { timing, deviation: self.shape.samples(m).deviation(y.as_bytes()) })
    }

    fn upload(bytes: Vec<u8>, shape: [usize; 2], device: &Device) -> Tensor<2> {
        Tensor::from_data(
            TensorData::from_bytes_vec(bytes, shape, DType::F16),
            (device, DType::F16),
        )
    }
}
