//! The gated MLP of a block.

use super::projections::{Projections, Stack};
use super::source::Source;
use crate::checkpoint::{Activation, ModelConfig};
use crate::error::Result;
use crate::linear::AnyLinear;
use burn::module::Module;
use burn::tensor::Tensor;
use flute_cube::pack::Order;

/// `down(act(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub(super) struct Mlp {
    /// Gate and up.
    inputs: Projections,
    down: AnyLinear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// That of the block whose tensors begin with `block`.
    pub(super) fn load(source: &dyn Source, config: &ModelConfig, block: &str) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let bias = config.mlp_bias;
        let inputs = Stack {
            parent: &format!("{block}.mlp"),
            parts: &[("gate_proj", inner), ("up_proj", inner)],
            in_features: hidden,
            bias,
            order: Order::ByTurns,
        };
        Ok(Self {
            inputs: source.projections(inputs)?,
            down: source.linear(&format!("{block}.mlp.down_proj"), [hidden, inner], bias)?,
            activation: config.activation,
        })
    }

    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.down.forward(self.inputs.gated(x, self.activation))
    }

    /// As that of attention.
    pub(super) fn linears(&self) -> impl Iterator<Item = (&AnyLinear, usize)> {
        self.inputs.linears().chain([(&self.down, 1)])
    }
}
