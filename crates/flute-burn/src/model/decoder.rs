//! The decoder of all families served: blocks of attention and a gated MLP, each behind an RMS norm and beside a
//! residual. What tells families apart is in the configuration, but for Gemma-2's norms and the scale of its
//! embedding.

use super::attention::{Attention, soft_cap};
use super::cache::{Cache, KeysValues};
use super::load::Loader;
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::step::Step;
use crate::checkpoint::{Architecture, ModelConfig};
use crate::error::Result;
use crate::linear::AnyLinear;
use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor, module::embedding};

/// The network: from token ids to hidden states, and from those to logits.
#[derive(Module, Debug)]
pub(super) struct Decoder {
    /// `[vocab, hidden]`.
    embedding: Param<Tensor<2>>,
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
        loader: &Loader<'_>,
        config: &ModelConfig,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let (vocab, hidden, dtype) = (config.vocab_size, config.hidden_size, loader.dtype());
        let gemma = config.architecture == Architecture::Gemma2;
        let embedding = loader.matrix("model.embed_tokens.weight", [vocab, hidden])?;
        let mut blocks = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            blocks.push(Block::load(loader, config, index)?);
            progress(index + 1);
        }
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(loader.linear("lm_head", [vocab, hidden], false)?),
        };
        let norm = loader.norm("model.norm", hidden, config)?;
        let form = Form {
            scale: gemma.then(|| (hidden as f64).sqrt()),
            cap: config.final_logit_softcapping,
            window: config.sliding_window,
            dtype,
            stream: if gemma { DType::F32 } else { dtype },
        };
        Ok(Self { embedding, blocks, norm, head, form })
    }

    /// Hidden states `[batch, tokens, hidden]` of `tokens` `[batch, tokens]`, which `cache` remembers.
    pub(super) fn hidden(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Tensor<3> {
        let ([_, len], device) = (tokens.dims(), tokens.device());
        let Form { scale, window, dtype, stream, .. } = self.form;
        let step = Step::new([cache.len(), len], window, &cache.rotations, &device);
        let mut x = embedding(self.embedding.val(), tokens).cast(stream);
        if let Some(scale) = scale {
            x = x * scale;
        }
        for (block, cache) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.forward(x, dtype, &step, cache);
        }
        cache.advance(len);
        self.norm.forward(x, dtype)
    }

    /// Logits `[.., vocab]` of hidden states, in f32.
    pub(super) fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let logits = match &self.head {
            Some(head) => head.forward(hidden),
            None => hidden.matmul(self.embedding.val().transpose().unsqueeze()),
        };
        let logits = logits.cast(DType::F32);
        match self.form.cap {
            Some(cap) => soft_cap(logits, cap),
            None => logits,
        }
    }

    /// Every linear layer, the head included.
    pub(super) fn linears(&self) -> impl Iterator<Item = &AnyLinear> {
        let linears = self.blocks.iter().flat_map(Block::linears);
        linears.chain(&self.head)
    }
}

impl Block {
    fn load(loader: &Loader<'_>, config: &ModelConfig, index: usize) -> Result<Self> {
        let block = format!("model.layers.{index}");
        let norm = |part: &str| loader.norm(&format!("{block}.{part}"), config.hidden_size, config);
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
            attention: Attention::load(loader, config, &block, index)?,
            attended_norm,
            mlp_norm,
            mlp: Mlp::load(loader, config, &block)?,
            mixed_norm,
        })
    }

    /// The stream `x`, of any type, behind this block; its layers compute in `dtype`.
    fn forward(
        &self,
        x: Tensor<3>,
        dtype: DType,
        step: &Step,
        cache: &mut KeysValues,
    ) -> Tensor<3> {
        let stream = x.dtype();
        let added = |y: Tensor<3>, norm: &Option<RmsNorm>| match norm {
            Some(norm) => norm.forward(y, stream),
            None => y.cast(stream),
        };
        let attended =
            self.attention.forward(self.attention_norm.forward(x.clone(), dtype), step, cache);
        let x = x + added(attended, &self.attended_norm);
        let mixed = self.mlp.forward(self.mlp_norm.forward(x.clone(), dtype));
        x + added(mixed, &self.mixed_norm)
    }
    fn linears(&self) -> impl Iterator<Item = &AnyLinear> {
        self.attention.linears().into_iter().chain(self.mlp.linears())
    }
}
