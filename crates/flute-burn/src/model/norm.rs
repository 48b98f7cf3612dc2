//! RMS normalization, in f32 whatever the model's type: a mean of squares overflows f16.

use crate::fused::{self, Norm};
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
        fused::norm(x, self.gain.val(), self.form(dtype))
    }

    /// `stream + branch`, in the type of `stream`, and that sum normalized, in `dtype`.
    pub(super) fn add<const D: usize>(
        &self,
        stream: Tensor<D>,
        branch: Tensor<D>,
        dtype: DType,
    ) -> [Tensor<D>; 2] {
        fused::add_norm(stream, branch, self.gain.val(), self.form(dtype))
    }

    fn form(&self, dtype: DType) -> Norm {
        Norm { epsilon: self.epsilon, offset: 0.0, dtype }
    }
}
