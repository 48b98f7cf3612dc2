//! The gated MLP of a block.

use super::load::Loader;
use crate::checkpoint::{Activation, ModelConfig};
use crate::error::Result;
use crate::linear::AnyLinear;
use burn::module::Module;
use burn::tensor::{Tensor, activation};

/// `down(act(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub(super) struct Mlp {
    gate: AnyLinear,
    up: AnyLinear,
    down: AnyLinear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// That of the block whose tensors begin with `block`.
    pub(super) fn load(loader: &Loader<'_>, config: &ModelConfig, block: &str) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part: &str, shape| {
            loader.linear(&format!("{block}.mlp.{part}_proj"), shape, config.mlp_bias)
        };
        Ok(Self {
            gate: linear("gate", [inner, hidden])?,
            up: linear("up", [inner, hidden])?,
            down: linear("down", [hidden, inner])?,
            activation: config.activation,
        })
    }

    pub(super) fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.gate.forward(x.clone());
        let gate = match self.activation {
            Activation::Silu => activation::silu(gate),
            Activation::GeluTanh => activation::gelu_approximate(gate),
        };
        self.down.forward(gate * self.up.forward(x))
    }

    pub(super) fn linears(&self) -> [&AnyLinear; 3] {
        [&self.gate, &self.up, &self.down]
    }
}
