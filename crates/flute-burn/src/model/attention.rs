//! Causal self-attention with grouped queries: several query heads share one head of keys and values.
//!
//! Scores and their softmax are f32. Query heads of one group are laid side by side as more rows of one product, so
//! keys and values are never repeated in memory. A sliding layer reads the keys of its window alone. Where a
//! configuration says so, the heads of q and k are normalized before they are rotated, and scores are capped softly
//! before they are masked.

use super::cache::KeysValues;
use super::load::Loader;
use super::norm::RmsNorm;
use super::step::Step;
use crate::checkpoint::{Architecture, ModelConfig};
use crate::error::Result;
use crate::linear::AnyLinear;
use burn::module::Module;
use burn::tensor::{DType, Tensor, activation::softmax};

/// Below any score, and finite: shading languages have no literal for infinity.
const MASKED: f32 = -1e30;

/// The attention of one block.
#[derive(Module, Debug)]
pub(super) struct Attention {
    query: AnyLinear,
    key: AnyLinear,
    value: AnyLinear,
    output: AnyLinear,
    /// Over the features of each head of q.
    query_norm: Option<RmsNorm>,
    /// Over the features of each head of k.
    key_norm: Option<RmsNorm>,
    #[module(skip)]
    form: Form,
}

/// How features are cut into heads, and scores become weights.
#[derive(Clone, Copy, Debug)]
struct Form {
    query_heads: usize,
    key_heads: usize,
    head_dim: usize,
    /// Factor of the queries.
    scale: f64,
    /// Scores are capped at it, softly.
    cap: Option<f64>,
    /// Whether a token sees no further back than the model's window.
    slides: bool,
}

impl Attention {
    /// That of block `index`, whose tensors begin with `block`.
    pub(super) fn load(
        loader: &Loader<'_>,
        config: &ModelConfig,
        block: &str,
        index: usize,
    ) -> Result<Self> {
        let form = Form {
            query_heads: config.num_attention_heads,
            key_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: config.query_pre_attn_scalar.powf(-0.5),
            cap: config.attn_logit_softcapping,
            slides: config.sliding[index],
        };
        let (hidden, dim, bias) = (config.hidden_size, form.head_dim, config.attention_bias);
        let (queries, keys) = (form.query_heads * dim, form.key_heads * dim);
        let linear = |part: &str, shape, bias| {
            loader.linear(&format!("{block}.self_attn.{part}_proj"), shape, bias)
        };
        let norm = |part: &str| match config.architecture {
            Architecture::Qwen3 => {
                loader.norm(&format!("{block}.self_attn.{part}_norm"), dim, config).map(Some)
            }
            _ => Ok(None),
        };
        Ok(Self {
            query: linear("q", [queries, hidden], bias)?,
            key: linear("k", [keys, hidden], bias)?,
            value: linear("v", [keys, hidden], bias)?,
            output: linear("o", [hidden, queries], config.attention_output_bias)?,
            query_norm: norm("q")?,
            key_norm: norm("k")?,
            form,
        })
    }

    /// `x` `[batch, tokens, hidden]` to the same shape.
    pub(super) fn forward(&self, x: Tensor<3>, step: &Step, cache: &mut KeysValues) -> Tensor<3> {
        let ([batch, tokens, _], dtype) = (x.dims(), x.dtype());
        let Form { query_heads, key_heads, head_dim: dim, scale, cap, slides } = self.form;
        let split = |y: Tensor<3>, heads, norm: Option<&RmsNorm>| {
            let y = y.reshape([batch, tokens, heads, dim]).swap_dims(1, 2);
            match norm {
                Some(norm) => norm.forward(y, dtype),
                None => y,
            }
        };
        let q = split(self.query.forward(x.clone()), query_heads, self.query_norm.as_ref());
        let k = split(self.key.forward(x.clone()), key_heads, self.key_norm.as_ref());
        let v = split(self.value.forward(x), key_heads, None);
        let (q, k) = (step.rotations.apply(q), step.rotations.apply(k));
        let view = step.view(slides);
        let [k, v] = cache.append([step.start, view.first], k, v);

        let (seen, group) = (k.dims()[2], query_heads / key_heads);
        // Scaled before the product: in f16 the sum of `dim` unscaled products may overflow.
        let q = (q * scale).reshape([batch, key_heads, group * tokens, dim]);
        let scores = q.matmul(k.swap_dims(2, 3)).cast(DType::F32);
        let mut scores = scores.reshape([batch * key_heads, group, tokens, seen]);
        if let Some(cap) = cap {
            scores = soft_cap(scores, cap);
        }
        if let Some(mask) = &view.mask {
            let mask = mask.clone().unsqueeze::<4>();
            let mask = mask.expand([batch * key_heads, group, tokens, seen]);
            scores = scores.mask_fill(mask, MASKED);
        }
        let weights = softmax(scores, 3).cast(dtype);
        let weights = weights.reshape([batch, key_heads, group * tokens, seen]);
        let heads = weights.matmul(v).reshape([batch, query_heads, tokens, dim]);
        self.output.forward(heads.swap_dims(1, 2).reshape([batch, tokens, query_heads * dim]))
    }

    pub(super) fn linears(&self) -> [&AnyLinear; 4] {
        [&self.query, &self.key, &self.value, &self.output]
    }
}

/// `cap · tanh(x / cap)`: nearly `x` where it is small, and never beyond `cap`.
pub(super) fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    x.div_scalar(cap).tanh().mul_scalar(cap)
}
