//! Language models that hold dense or quantized linear layers alike.
//!
//! A [`Model`] is read from a directory in Hugging Face layout, layer by layer, onto one device, and computes logits;
//! the state of a sequence is a [`Cache`] and belongs to whoever generates. Weights and activations have one float
//! type, the model's; norms, rotations, softmax and logits are f32 always. Served: the families of
//! [`Architecture`](crate::checkpoint::Architecture), by one network. Refused: other architectures (by name, when the
//! configuration is read), tensors whose shapes contradict `config.json`, tokens outside the vocabulary, sequences
//! beyond the context.

mod attention;
mod batch;
mod cache;
mod decoder;
mod decoding;
mod disturbed;
mod embedding;
mod greedy;
mod load;
mod mlp;
mod module;
mod norm;
mod pool;
mod projections;
mod rope;
mod source;
mod step;
mod synthetic;

pub use cache::Cache;
pub use decoding::{Admitted, Decoding};
pub(crate) use disturbed::Disturbance;
pub use greedy::Likeliest;
pub use load::LoadOptions;
pub use pool::Pool;
pub use synthetic::SyntheticOptions;

use crate::checkpoint::{GenerationConfig, ModelConfig, Reader};
use crate::error::{Error, Result};
use crate::lend::Lender;
use crate::linear::AnyLinear;
use burn::backend::StreamId;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use cache::CacheShape;
use decoder::Decoder;
use load::Loader;
use source::Source;
use std::path::Path;
use synthetic::Synthetic;

/// A model on a device.
#[derive(Clone, Debug)]
pub struct Model {
    config: ModelConfig,
    generation: GenerationConfig,
    /// Boxed: a model is moved around as one pointer.
    network: Box<Decoder>,
    device: Device,
    dtype: DType,
    /// That on which its weights were made.
    home: StreamId,
    lender: Lender,
}

/// What the linear layers of a model hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightSummary {
    /// Linear layers of the checkpoint, the head included where it is one.
    pub linears: usize,
    /// Those of them that hold codes.
    pub quantized: usize,
    /// Weights in all of them.
    pub weights: usize,
    /// Bytes of them on the device, scales and tables included.
    pub bytes: usize,
}

/// What a step of decoding reads, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StepBytes {
    /// Linear layers but the head: codes, scales, tables, or dense weights.
    pub linears: usize,
    /// The head, be it a layer of its own or the embedding.
    pub head: usize,
    /// Keys and values.
    pub cache: usize,
}

impl StepBytes {
    /// All of them.
    pub fn total(&self) -> usize {
        self.linears + self.head + self.cache
    }
}

impl Model {
    /// Reads the model in `dir`.
    ///
    /// # Errors
    /// What [`Reader::open`] refuses; [`Error::Unsupported`] for types that the device does not compute in; [`Error::TensorAbsent`], [`Error::TensorShape`].
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self> {
        Self::load_with(dir, options, &mut |_, _| {})
    }

    /// Reads the model in `dir`; `progress` hears the blocks done and the number of blocks.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(
        dir: &Path,
        options: &LoadOptions,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let reader = Reader::open(dir)?;
        let (config, generation) = (reader.config().clone(), reader.generation().clone());
        let loader = Loader::new(&reader, options)?;
        let total = config.num_hidden_layers;
        let mut progress = |done| progress(done, total);
        let network = Box::new(Decoder::load(&loader, &config, &mut progress)?);
        let (device, dtype) = (options.device.clone(), loader.dtype());
        let (home, lender) = (StreamId::current(), Lender::of(&device));
        Ok(Self { config, generation, network, device, dtype, home, lender })
    }

    /// A model of `config` whose weights are noise, made on its device: for measuring. Its tokens mean nothing.
    ///
    /// # Errors
    /// [`Error::Unsupported`] and [`flute_cube::Error`] for types and formats that the device does not serve;
    /// [`Error::DeviceFailed`].
    pub fn synthetic(config: ModelConfig, options: &SyntheticOptions) -> Result<Self> {
        let source = Synthetic::new(options, config.tie_word_embeddings)?;
        let network = Box::new(Decoder::load(&source, &config, &mut |_| {})?);
        let (device, dtype) = (options.device.clone(), source.dtype());
        let generation = GenerationConfig::default();
        let (home, lender) = (StreamId::current(), Lender::of(&device));
        Ok(Self { config, generation, network, device, dtype, home, lender })
    }

    /// Ids to a tensor `[batch, ids / batch]` on the model's device.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`]; [`Error::InvalidOption`] if `batch` does not divide the number of ids.
    pub fn tokens(&self, ids: &[u32], batch: usize) -> Result<Tensor<2, Int>> {
        self.admit_ids(ids)?;
        if batch == 0 || !ids.len().is_multiple_of(batch) {
            let (found, needed) = (batch.to_string(), format!("a divisor of {} ids", ids.len()));
            return Err(Error::InvalidOption { name: "the batch", found, needed });
        }
        let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
        let shape = [batch, ids.len() / batch];
        Ok(Tensor::from_data(TensorData::new(ids, shape), &self.device))
    }

    /// Refuses ids outside the vocabulary.
    fn admit_ids(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.config.vocab_size;
        match ids.iter().copied().find(|id| *id as usize >= vocab) {
            Some(token) => Err(Error::TokenOutOfRange { token, vocab }),
            None => Ok(()),
        }
    }

    /// An empty cache for `batch` sequences of at most `capacity` tokens each.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if either is 0; [`Error::PromptTooLong`] if the context is shorter than `capacity`.
    pub fn new_cache(&self, batch: usize, capacity: usize) -> Result<Cache> {
        let shape = CacheShape { batch, capacity, blocks: None };
        Cache::new(&self.config, shape, self.dtype, &self.device)
    }

    /// A cache of `blocks` blocks, each with room for 64 tokens, for up to `batch` sequences of at most `capacity` tokens
    /// each. It has none yet: [`Decoding::admit`] lets them in.
    ///
    /// # Errors
    /// As [`Model::new_cache`], for any of the three.
    pub fn paged_cache(&self, batch: usize, capacity: usize, blocks: usize) -> Result<Cache> {
        let shape = CacheShape { batch, capacity, blocks: Some(blocks) };
        Cache::new(&self.config, shape, self.dtype, &self.device)
    }

    /// As [`Model::new_cache`], already `len` tokens long, which are noise: for measuring.
    ///
    /// # Errors
    /// As [`Model::new_cache`]; [`Error::PromptTooLong`] if `len` is beyond the capacity.
    pub fn noise_cache(&self, batch: usize, capacity: usize, len: usize) -> Result<Cache> {
        if len > capacity {
            return Err(Error::PromptTooLong { found: len, limit: capacity });
        }
        let mut cache = self.new_cache(batch, capacity)?;
        cache.fill(len);
        Ok(cache)
    }

    /// Logits `[batch, tokens, vocab]`, f32, of the `tokens` `[batch, tokens]` that follow what `cache` has seen.
    ///
    /// Ids must be below the vocabulary's size ([`Model::tokens`] checks them).
    ///
    /// # Errors
    /// [`Error::PromptTooLong`], [`Error::InvalidOption`] or [`Error::EmptyPrompt`] if the cache was not made for such
    /// a step; it is left as it was.
    ///
    /// # Panics
    /// If the device fails: operations of Burn have no other way to say so.
    pub fn forward(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Result<Tensor<3>> {
        Ok(self.logits(self.hidden(tokens, cache)?))
    }

    /// As [`Model::forward`], the logits `[batch, 1, vocab]` of the last token alone: the head is a large product, and
    /// generation needs no other.
    ///
    /// # Errors
    /// As [`Model::forward`].
    ///
    /// # Panics
    /// As [`Model::forward`].
    pub fn forward_last(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Result<Tensor<3>> {
        let hidden = self.hidden(tokens, cache)?;
        let last = hidden.dims()[1] - 1;
        Ok(self.logits(hidden.narrow(1, last, 1)))
    }

    /// Hidden states `[batch, tokens, hidden]` behind the last norm.
    pub(crate) fn hidden(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Result<Tensor<3>> {
        cache.admit(tokens.dims())?;
        Ok(self.network.hidden(tokens, cache))
    }

    /// Logits `[.., vocab]` of hidden states, f32.
    pub(crate) fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        self.network.logits(hidden).cast(DType::F32)
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How its author means it to be sampled.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The tokens that end a sequence: those of `generation_config.json`, or else of `config.json`.
    pub fn stop_ids(&self) -> &[u32] {
        match self.generation.eos_token_ids.as_slice() {
            [] => &self.config.eos_token_ids,
            ids => ids,
        }
    }

    /// Tokens that a sequence may have.
    pub fn context(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Tokens that exist.
    pub fn vocab(&self) -> usize {
        self.config.vocab_size
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type of its weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes that a step of one token for each of `batch` sequences of `context` tokens reads: every weight once, and
    /// the keys and values that are seen.
    pub fn step_bytes(&self, batch: usize, context: usize) -> StepBytes {
        let config = &self.config;
        let window = config.sliding_window.unwrap_or(context);
        let seen = |slides: &bool| if *slides { context.min(window) } else { context };
        let tokens: usize = config.sliding.iter().map(seen).sum();
        let token = 2 * config.num_key_value_heads * config.head_dim * self.dtype.size();
        let head = self.network.head_bytes();
        let weights = self.network.linears().map(|(linear, _)| linear.bytes()).sum::<usize>();
        let linears = weights - self.network.head().map_or(0, AnyLinear::bytes);
        StepBytes { linears, head, cache: batch * tokens * token }
    }

    /// Its linear layers in numbers.
    pub fn weights(&self) -> WeightSummary {
        let mut sum = WeightSummary::default();
        for (linear, count) in self.network.linears() {
            sum.linears += count;
            sum.quantized += count * usize::from(matches!(linear, AnyLinear::Flute(_)));
            sum.weights += linear.shape().iter().product::<usize>();
            sum.bytes += linear.bytes();
        }
        sum
    }
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.network.fmt(f)
    }
}
