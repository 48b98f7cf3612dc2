//! Causal self-attention with grouped queries: several query heads share one head of keys and values.
//!
//! Scores and their softmax are f32. Query heads of one group are laid side by side as more rows of one product, so
//! keys and values are never repeated in memory.

use super::cache::KeysValues;
use super::rope::Rotations;
use crate::checkpoint::ModelConfig;
use crate::linear::AnyLinear;
use burn::module::Module;
use burn::tensor::{Bool, DType, Device, Tensor, activation::softmax};

/// Below any score, and finite: shading languages have no literal for infinity.
const MASKED: f32 = -1e30;

/// The attention of one block.
#[derive(Module, Debug)]
pub(super) struct Attention {
    pub(super) query: AnyLinear,
    pub(super) key: AnyLinear,
    pub(super) value: AnyLinear,
    pub(super) output: AnyLinear,
    #[module(skip)]
    pub(super) heads: Heads,
}

/// How the features of q, k and v are cut into heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    query: usize,
    key_value: usize,
    dim: usize,
}

impl Heads {
    pub(super) fn of(config: &ModelConfig) -> Self {
        Self {
            query: config.num_attention_heads,
            key_value: config.num_key_value_heads,
            dim: config.head_dim,
        }
    }

    /// Features of q (and of the input of the output projection).
    pub(super) fn query_features(&self) -> usize {
        self.query * self.dim
    }

    /// Features of k, and of v.
    pub(super) fn key_features(&self) -> usize {
        self.key_value * self.dim
    }
}

/// What all layers of one step share.
pub(super) struct Step {
    /// Tokens seen before this step.
    pub(super) start: usize,
    /// Rotations of this step's positions.
    pub(super) rotations: Rotations,
    /// `[tokens, start + tokens]`, true where a token may not look; none if it may look everywhere.
    mask: Option<Tensor<2, Bool>>,
}

impl Step {
    pub(super) fn new(start: usize, tokens: usize, rotations: &Rotations, device: &Device) -> Self {
        // A single token sees everything before it and itself.
        let mask =
            (tokens > 1).then(|| Tensor::tril_mask([tokens, start + tokens], start as i64, device));
        Self { start, rotations: rotations.at(start, tokens), mask }
    }
}

impl Attention {
    /// `x` `[batch, tokens, hidden]` to the same shape.
    pub(super) fn forward(&self, x: Tensor<3>, step: &Step, cache: &mut KeysValues) -> Tensor<3> {
        let ([batch, tokens, _], Heads { query, key_value, dim }) = (x.dims(), self.heads);
        let split = |y: Tensor<3>, heads| y.reshape([batch, tokens, heads, dim]).swap_dims(1, 2);
        let q = step.rotations.apply(split(self.query.forward(x.clone()), query));
        let k = step.rotations.apply(split(self.key.forward(x.clone()), key_value));
        let v = split(self.value.forward(x), key_value);
        let [k, v] = cache.append(step.start, k, v);

        let (dtype, seen, group) = (q.dtype(), step.start + tokens, query / key_value);
        // Scaled before the product: in f16 the sum of `dim` unscaled products may overflow.
        let q = (q * (dim as f64).powf(-0.5)).reshape([batch, key_value, group * tokens, dim]);
        let scores = q.matmul(k.swap_dims(2, 3)).cast(DType::F32);
        let mut scores = scores.reshape([batch * key_value, group, tokens, seen]);
        if let Some(mask) = &step.mask {
            let mask =
                mask.clone().unsqueeze::<4>().expand([batch * key_value, group, tokens, seen]);
            scores = scores.mask_fill(mask, MASKED);
        }
        let weights = softmax(scores, 3).cast(dtype);
        let weights = weights.reshape([batch, key_value, group * tokens, seen]);
        let heads = weights.matmul(v).reshape([batch, query, tokens, dim]);
        self.output.forward(heads.swap_dims(1, 2).reshape([batch, tokens, query * dim]))
    }
}
