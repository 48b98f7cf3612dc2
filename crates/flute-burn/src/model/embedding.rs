//! The embedding, dense or in codes; a model without a head of its own has it for its head, too.
//!
//! In codes one copy serves both: rows are decoded when they are looked up, and logits are a product with the codes.

use crate::dense;
use crate::linear::FluteLinear;
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, module::embedding};

/// `[vocab, hidden]`.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has one")]
pub(super) enum Embedding {
    /// In the model's type.
    Dense(Param<Tensor<2>>),
    /// In codes.
    Flute(FluteLinear),
}

impl Embedding {
    /// The rows of `tokens` `[batch, tokens]`: `[batch, tokens, hidden]`.
    pub(super) fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        match self {
            Self::Dense(weight) => embedding(weight.val(), tokens),
            Self::Flute(weight) => weight.rows(tokens),
        }
    }

    /// Hidden states `[.., hidden]` times its rows: `[.., vocab]`.
    pub(super) fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Dense(weight) => {
                let weight = weight.val();
                match dense::serves(&hidden, &weight) {
                    true => dense::dense(hidden, weight),
                    false => hidden.matmul(weight.transpose().unsqueeze()),
                }
            }
            Self::Flute(weight) => weight.forward(hidden),
        }
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => {
                let weight = weight.val();
                weight.shape().num_elements() * weight.dtype().size()
            }
            Self::Flute(weight) => weight.bytes(),
        }
    }
}
