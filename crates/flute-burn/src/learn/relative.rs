//! Adam whose steps are fractions of what they change.
//!
//! The scales of one model differ by orders of magnitude, and those of two models more; an absolute rate that suits one
//! layer leaves another where it was. A step here is `rate · |s| · m̂ / (√v̂ + ε)`: what Adam does to the logarithm of a
//! scale. (The paper trains a factor of every scale, which is the same to first order; the Python package trains the
//! scales themselves.) Signs and zeros stay.

use burn::optim::{Adam, AdamConfig, AdamState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};

/// Relative Adam: β₁ 0.9, β₂ 0.999, ε 10⁻¹², since the gradient of one scale may be tiny.
#[derive(Clone)]
pub struct Relative {
    adam: Adam,
}

impl Default for Relative {
    fn default() -> Self {
        Self { adam: adam() }
    }
}

/// The Adam under it, which tables take as it is: their values are fractions of 1, and one of them is 0.
pub(super) fn adam() -> Adam {
    AdamConfig::new().with_epsilon(1e-12).build()
}

impl Optimizer for Relative {
    type State<const D: usize> = AdamState<D>;

    fn step<const D: usize>(
        &self,
        rate: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let (change, state) = self.adam.step(rate, tensor.zeros_like(), grad, state);
        (tensor.clone() + tensor.abs() * change, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        Adam::to_device(state, device)
    }
}
