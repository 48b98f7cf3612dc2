//! LLaMA 1, 2, 3, 3.1 and 3.2: blocks of attention and a gated MLP, each behind an RMS norm and beside a residual.

use super::attention::{Attention, Heads, Step};
use super::cache::Cache;
use super::load::Loader;
use super::norm::RmsNorm;
use crate::checkpoint::{Activation, ModelConfig};
use crate::error::Result;
use crate::linear::AnyLinear;
use burn::module::{Module, Param};
use burn::tensor::{DType, Int, Tensor, activation, module::embedding};

/// The network: from token ids to hidden states, and from those to logits.
#[derive(Module, Debug)]
pub(super) struct Llama {
    /// `[vocab, hidden]`.
    embedding: Param<Tensor<2>>,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// None where the embedding serves as the head.
    head: Option<AnyLinear>,
}

#[derive(Module, Debug)]
struct Block {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Mlp {
    gate: AnyLinear,
    up: AnyLinear,
    down: AnyLinear,
    #[module(skip)]
    activation: Activation,
}

impl Llama {
    /// Reads the weights one layer after another; `progress` hears the blocks done.
    pub(super) fn load(
        loader: &Loader<'_>,
        config: &ModelConfig,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
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
        let norm = RmsNorm::new(loader.vector("model.norm.weight", hidden)?, config.rms_norm_eps);
        Ok(Self { embedding, blocks, norm, head })
    }

    /// Hidden states `[batch, tokens, hidden]` of `tokens` `[batch, tokens]`, which `cache` remembers.
    pub(super) fn hidden(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Tensor<3> {
        let ([_, len], device) = (tokens.dims(), tokens.device());
        let step = Step::new(cache.len(), len, &cache.rotations, &device);
        let mut x = embedding(self.embedding.val(), tokens);
        for (block, cache) in self.blocks.iter().zip(&mut cache.layers) {
            let attended =
                block.attention.forward(block.attention_norm.forward(x.clone()), &step, cache);
            x = x + attended;
            x = x.clone() + block.mlp.forward(block.mlp_norm.forward(x));
        }
        cache.advance(len);
        self.norm.forward(x)
    }

    /// Logits `[.., vocab]` of hidden states, in f32.
    pub(super) fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let logits = match &self.head {
            Some(head) => head.forward(hidden),
            None => hidden.matmul(self.embedding.val().transpose().unsqueeze()),
        };
        logits.cast(DType::F32)
    }

    /// Every linear layer, the head included.
    pub(super) fn linears(&self) -> impl Iterator<Item = &AnyLinear> {
        let blocks = self.blocks.iter().flat_map(|block| {
            let Attention { query, key, value, output, .. } = &block.attention;
            let Mlp { gate, up, down, .. } = &block.mlp;
            [query, key, value, output, gate, up, down]
        });
        blocks.chain(&self.head)
    }
}

impl Block {
    fn load(loader: &Loader<'_>, config: &ModelConfig, index: usize) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let heads = Heads::of(config);
        let (q, kv) = (heads.query_features(), heads.key_features());
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let norm = |part: &str| -> Result<RmsNorm> {
            Ok(RmsNorm::new(loader.vector(&name(part), hidden)?, config.rms_norm_eps))
        };
        let attention = |part: &str, shape| {
            loader.linear(&name(&format!("self_attn.{part}_proj")), shape, config.attention_bias)
        };
        let mlp = |part: &str, shape| {
            loader.linear(&name(&format!("mlp.{part}_proj")), shape, config.mlp_bias)
        };
        Ok(Self {
            attention_norm: norm("input_layernorm.weight")?,
            attention: Attention {
                query: attention("q", [q, hidden])?,
                key: attention("k", [kv, hidden])?,
                value: attention("v", [kv, hidden])?,
                output: attention("o", [hidden, q])?,
                heads,
            },
            mlp_norm: norm("post_attention_layernorm.weight")?,
            mlp: Mlp {
                gate: mlp("gate", [inner, hidden])?,
                up: mlp("up", [inner, hidden])?,
                down: mlp("down", [hidden, inner])?,
                activation: config.activation,
            },
        })
    }
}

impl Mlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let gate = self.gate.forward(x.clone());
        let gate = match self.activation {
            Activation::Silu => activation::silu(gate),
            Activation::GeluTanh => activation::gelu_approximate(gate),
        };
        self.down.forward(gate * self.up.forward(x))
    }
}
