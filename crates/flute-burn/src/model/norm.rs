//! RMS normalization, in f32 whatever the model's type: a mean of squares overflows f16.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

/// `x / √(mean(x²) + ε) · gain` over the last axis.
#[derive(Module, Debug)]
pub(super) struct RmsNorm {
    /// One per feature, in f32.
    gain: Param<Tensor<1>>,
    epsilon: f64,
}

impl RmsNorm {
    pub(super) fn new(gain: Param<Tensor<1>>, epsilon: f64) -> Self {
        Self { gain, epsilon }
    }

    /// `x` normalized, in `dtype`.
    pub(super) fn forward<const D: usize>(&self, x: Tensor<D>, dtype: DType) -> Tensor<D> {
        let x = x.cast(DType::F32);
        let mean = x.clone().square().mean_dim(D - 1);
        let y = x * mean.add_scalar(self.epsilon).sqrt().recip() * self.gain.val().unsqueeze();
        y.cast(dtype)
    }
}
