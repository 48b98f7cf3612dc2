//! Where the parameters of a network come from: files ([`super::load`]), or nowhere ([`super::synthetic`]).

use super::embedding::Embedding;
use super::norm::RmsNorm;
use super::projections::{Projections, Stack};
use crate::checkpoint::ModelConfig;
use crate::error::Result;
use crate::linear::AnyLinear;
use burn::module::Param;
use burn::tensor::{DType, Tensor};

/// Gives parameters of the shapes that a configuration says, one after another.
pub(super) trait Source {
    /// The type of weights and activations.
    fn dtype(&self) -> DType;

    /// The linear layer `name` of `[n, k]`; `bias` says whether it has one.
    fn linear(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<AnyLinear>;

    /// Linear layers of one input.
    fn projections(&self, stack: Stack<'_>) -> Result<Projections> {
        let layers = stack.layers().map(|(name, shape)| self.linear(&name, shape, stack.bias));
        Ok(Projections::apart(layers.collect::<Result<_>>()?))
    }

    /// The matrix `name`, in the model's type.
    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Param<Tensor<2>>>;

    /// The embedding `name` of `[vocab, hidden]`.
    fn embedding(&self, name: &str, shape: [usize; 2]) -> Result<Embedding> {
        Ok(Embedding::Dense(self.matrix(&format!("{name}.weight"), shape)?))
    }

    /// The norm `name` over `len` features, in f32: norms are computed in it.
    fn norm(&self, name: &str, len: usize, config: &ModelConfig) -> Result<RmsNorm>;
}
