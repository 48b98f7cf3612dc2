//! The decoder of all families served: blocks of attention and a gated MLP, each behind an RMS norm and beside a
//! residual. What tells families apart is in the configuration, but for Gemma-2's norms and the scale of its
//! embedding.

use super::attention::{Attention, soft_cap};
use super::cache::Cache;
use super::embedding::Embedding;
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::source::Source;
use super::step::Step;
use crate::checkpoint::{Architecture, ModelConfig};
use crate::error::Result;
use crate::linear::AnyLinear;
use burn::module::Module;
use burn::tensor::{DType, Int, Tensor};

/// The network: from token ids to hidden states, and from those to logits.
#[derive(Module, Debug)]
pub(super) struct Decoder {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// None where the embedding serves as the head.
    head: Option<AnyLinear>,
    #[module(skip)]
    form: Form,
}

/// What the weights do not say.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// Factor of the embedding.
    scale: Option<f64>,
    /// Logits are capped at it, softly.
    cap: Option<f64>,
    /// That of sliding layers.
    window: Option<usize>,
    /// Type of weights and activations.
    dtype: DType,
    /// Type of the sum that runs along the blocks: Gemma-2's, scaled by √hidden, leaves the range of f16.
    stream: DType,
}

#[derive(Module, Debug)]
struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    /// Of what the attention adds to the stream.
    attended_norm: Option<RmsNorm>,
    mlp_norm: RmsNorm,
    mlp: Mlp,
    /// Of what the MLP adds to the stream.
    mixed_norm: Option<RmsNorm>,
}

impl Decoder {
    /// Reads the weights one layer after another; `progress` hears the blocks done.
    pub(super) fn load(
        source: &dyn Source,
        config: &ModelConfig,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let (vocab, hidden, dtype) = (config.vocab_size, config.hidden_size, source.dtype());
        let gemma = config.architecture == Architecture::Gemma2;
        let embedding = source.embedding("model.embed_tokens", [vocab, hidden])?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            blocks.push(Block::load(source, config, index)?);
            progress(index + 1);
        }
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(source.linear("lm_head", [vocab, hidden], false)?),
        };
        let norm = source.norm("model.norm", hidden, config)?;
        let form = Form {
            scale: gemma.then(|| (hidden as f64).sqrt()),
            cap: config.final_logit_softcapping,
            window: config.sliding_window,
            dtype,
            stream: if gemma { DType::F32 } else { dtype },
        };
        Ok(Self { embedding, blocks, norm, head, form })
    }

    /// Reads block `index` from another source.
    pub(super) fn replace_block(
        &mut self,
        source: &dyn Source,
        config: &ModelConfig,
        index: usize,
    ) -> Result<()> {
        self.blocks[index] = Block::load(source, config, index)?;
        Ok(())
    }

    /// Hidden states `[batch, tokens, hidden]` of `tokens` `[batch, tokens]`, which `cache` remembers.
    pub(super) fn hidden(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Tensor<3> {
        let len = tokens.dims()[1];
        let hidden = self.states(tokens, cache);
        cache.advance(len);
        hidden
    }

    /// As [`Decoder::hidden`], the cache's position not yet moved.
    pub(super) fn states(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Tensor<3> {
        let Form { scale, window, dtype, stream, .. } = self.form;
        let step = Step::new(cache, window);
        let mut x = self.embedding.forward(tokens).cast(stream);
        if let Some(scale) = scale {
            x = x * scale;
        }
        // Each sum is normed by whoever reads it next, in one operation.
        let norm_of =
            |index: usize| self.blocks.get(index).map_or(&self.norm, |block| &block.attention_norm);
        let mut normed = norm_of(0).forward(x.clone(), dtype);
        let layers = std::mem::take(&mut cache.layers);
        for (index, (block, layer)) in self.blocks.iter().zip(layers).enumerate() {
            let (attended, layer) = block.attention.forward(normed, &step, layer);
            cache.layers.push(layer);
            [x, normed] = block.forward([x, attended], norm_of(index + 1), dtype);
        }
        normed
    }

    /// Logits `[.., vocab]` of hidden states, in f32 where they are capped and else in the model's type, which has the
    /// same order.
    pub(super) fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let logits = match &self.head {
            Some(head) => head.forward(hidden),
            None => self.embedding.logits(hidden),
        };
        match self.form.cap {
            Some(cap) => soft_cap(logits.cast(DType::F32), cap),
            None => logits,
        }
    }

    /// The head, where it is not the embedding.
    pub(super) fn head(&self) -> Option<&AnyLinear> {
        self.head.as_ref()
    }

    /// Bytes that computing logits reads.
    pub(super) fn head_bytes(&self) -> usize {
        self.head.as_ref().map_or_else(|| self.embedding.bytes(), AnyLinear::bytes)
    }

    /// Every linear layer, the head included, and how many of the checkpoint each of them is.
    pub(super) fn linears(&self) -> impl Iterator<Item = (&AnyLinear, usize)> {
        let linears = self.blocks.iter().flat_map(Block::linears);
        linears.chain(self.head.iter().map(|head| (head, 1)))
    }
}

impl Block {
    fn load(source: &dyn Source, config: &ModelConfig, index: usize) -> Result<Self> {
        let block = format!("model.layers.{index}");
        let norm = |part: &str| source.norm(&format!("{block}.{part}"), config.hidden_size, config);
        // One name, two places: LLaMA's norm before the MLP is Gemma-2's norm behind the attention.
        let (mlp_norm, attended_norm, mixed_norm) = match config.architecture {
            Architecture::Gemma2 => (
                norm("pre_feedforward_layernorm")?,
                Some(norm("post_attention_layernorm")?),
                Some(norm("post_feedforward_layernorm")?),
            ),
            _ => (norm("post_attention_layernorm")?, None, None),
        };
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            attention: Attention::load(source, config, &block, index)?,
            attended_norm,
            mlp_norm,
            mlp: Mlp::load(source, config, &block)?,
            mixed_norm,
        })
    }

    /// The stream `x`, of any type, behind this block, whose attention said `attended`; and its norm by `next`, in the
    /// `dtype` that layers compute in.
    fn forward(
        &self,
        [x, attended]: [Tensor<3>; 2],
        next: &RmsNorm,
        dtype: DType,
    ) -> [Tensor<3>; 2] {
        let stream = x.dtype();
        let branch = |y: Tensor<3>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(y, stream),
            None => y,
        };
        let [x, normed] = self.mlp_norm.add(x, branch(attended, &self.attended_norm), dtype);
        next.add(x, branch(self.mlp.forward(normed), &self.mixed_norm), dtype)
    }

    fn linears(&self) -> impl Iterator<Item = (&AnyLinear, usize)> {
        self.attention.linears().chain(self.mlp.linears())
    }
}
