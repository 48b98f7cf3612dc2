//! RMS normalization, in f32 whatever the model's type: a mean of squares overflows f16.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

/// `x / √(mean(x²) + ε) · weight` over the last axis.
#[derive(Module, Debug)]
pub(super) struct RmsNorm {
    /// `[hidden]`, in f32.
    weight: Param<Tensor<1>>,
    epsilon: f64,
}

impl RmsNorm {
    pub(super) fn new(weight: Param<Tensor<1>>, epsilon: f64) -> Self {
        Self { weight, epsilon }
    }

    /// `x` normalized, in its own type.
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let dtype = x.dtype();
        let x = x.cast(DType::F32);
        let mean = x.clone().square().mean_dim(D - 1);
        let y = x * mean.add_scalar(self.epsilon).sqrt().recip() * self.weight.val().unsqueeze();
        y.cast(dtype)
    }
}
