//! Dense f16 by Burn's own matmul, as a model would call it: what is timed holds the host's work too.

use super::Shape;
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Tensor, TensorData};
use flute_cube::measure::{self, Run};

/// Copies of one weight, each a transposed view of `[n, k]`.
pub(super) struct Matmul {
    device: Device,
    shape: Shape,
    copies: Vec<Tensor<2>>,
}

impl Matmul {
    /// Bytes of results that wait for the device at a time.
    const PENDING_BYTES: usize = 1 << 30;

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
        let most = (Self::PENDING_BYTES / (2 * m * n)).clamp(1, 1000);
        let timing = measure::sample(self.copies.len(), |times| {
            // Fusion is lazy: a result that nobody holds need not be computed.
            let mut results = vec![];
            for _ in 0..times {
                for weight in &self.copies {
                    if results.len() == most {
                        self.device.sync()?;
                        results.clear();
                    }
                    results.push(x.clone().matmul(weight.clone()));
                }
            }
            self.device.sync()
        })?;
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
