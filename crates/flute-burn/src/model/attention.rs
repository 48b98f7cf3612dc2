//! Causal self-attention with grouped queries: several query heads share one head of keys and values.
//!
//! What attends is [`fused::attend`] for a prompt, and [`fused::attend_next`] for one token. A sliding layer reads the keys of its window alone.
//! Where a configuration says so, the heads of q and k are normalized before they are rotated, and scores are capped
//! softly before they are masked.

use super::cache::KeysValues;
use super::norm::RmsNorm;
use super::projections::{Projections, Stack};
use super::source::Source;
use super::step::Step;
use crate::checkpoint::{Architecture, ModelConfig};
use crate::error::Result;
use crate::fused::{self, Attend};
use crate::linear::AnyLinear;
use burn::module::Module;
use burn::tensor::Tensor;
use flute_cube::pack::Order;

/// The attention of one block.
#[derive(Module, Debug)]
pub(super) struct Attention {
    /// Query, key and value.
    inputs: Projections,
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
        source: &dyn Source,
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
        let inputs = Stack {
            parent: &format!("{block}.self_attn"),
            parts: &[("q_proj", queries), ("k_proj", keys), ("v_proj", keys)],
            in_features: hidden,
            bias,
            order: Order::Stacked,
        };
        let (output, output_bias) =
            (format!("{block}.self_attn.o_proj"), config.attention_output_bias);
        let norm = |part: &str| match config.architecture {
            Architecture::Qwen3 => {
                source.norm(&format!("{block}.self_attn.{part}_norm"), dim, config).map(Some)
            }
            _ => Ok(None),
        };
        Ok(Self {
            inputs: source.projections(inputs)?,
            output: source.linear(&output, [hidden, queries], output_bias)?,
            query_norm: norm("q")?,
            key_norm: norm("k")?,
            form,
        })
    }

    /// `x` `[batch, tokens, hidden]` to the same shape, and the cache with the keys and values of its tokens.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        step: &Step,
        cache: KeysValues,
    ) -> (Tensor<3>, KeysValues) {
        let Form { scale, cap, slides, .. } = self.form;
        let form = Attend { scale, cap, window: step.window.filter(|_| slides) };
        let qkv = self.normed(self.inputs.forward(x));
        let (heads, cache) = match qkv.dims()[1] {
            1 => cache.next(qkv, step, form),
            _ => {
                let (query, cache) = cache.append(qkv, step);
                (fused::attend(query, cache.slot(step), form), cache)
            }
        };
        (self.output.forward(heads), cache)
    }

    /// q | k | v side by side, with the heads of q and k normalized where the model does that.
    fn normed(&self, qkv: Tensor<3>) -> Tensor<3> {
        let (Some(query_norm), Some(key_norm)) = (&self.query_norm, &self.key_norm) else {
            return qkv;
        };
        let ([batch, tokens, width], dtype) = (qkv.dims(), qkv.dtype());
        let Form { query_heads, key_heads, head_dim: dim, .. } = self.form;
        let heads = |first: usize, heads: usize, norm: &RmsNorm| {
            let x = qkv.clone().narrow(2, first * dim, heads * dim);
            let x = norm.forward(x.reshape([batch, tokens, heads, dim]), dtype);
            x.reshape([batch, tokens, heads * dim])
        };
        let before = query_heads + key_heads;
        let values = qkv.clone().narrow(2, before * dim, width - before * dim);
        let queries = heads(0, query_heads, query_norm);
        Tensor::cat(vec![queries, heads(query_heads, key_heads, key_norm), values], 2)
    }

    /// The layers, and how many of the checkpoint each of them is.
    pub(super) fn linears(&self) -> impl Iterator<Item = (&AnyLinear, usize)> {
        self.inputs.linears().chain([(&self.output, 1)])
    }
}

/// `cap · tanh(x / cap)`: nearly `x` where it is small, and never beyond `cap`.
pub(super) fn soft_cap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    x.div_scalar(cap).tanh().mul_scalar(cap)
}
