//! Token after token: one prefill of the prompt, then one step a token, as an iterator that computes when asked.
//!
//! Greedy tokens are chosen on the device and stay there for the next step; the host reads them alone. Where tokens are
//! drawn, it reads the logits.
//!
//! Everything is checked before the first computation: an empty prompt, a prompt that leaves no room in the context,
//! tokens outside the vocabulary and sampling options outside their ranges are refused by [`generate`] itself.

use crate::device;
use crate::error::{Error, Result};
use crate::model::{Cache, Model};
use crate::sample::{Sampler, Sampling};
use burn::tensor::{Int, Tensor};

/// Attention scores of one layer that a step of the prefill may hold: 256 MB of them. They are `chunk · length` a head,
/// so that an unbounded prefill of a long prompt would need more memory than the model.
const SCORES: usize = 1 << 26;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Tokens that end the sequence; [`Model::stop_ids`] if none are given.
    pub stop: Option<Vec<u32>>,
    /// Tokens of the prompt that are computed at once; [`prefill_chunk`] if it is not given.
    pub prefill: Option<usize>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 256, sampling: Sampling::default(), stop: None, prefill: None }
    }
}

/// Tokens of a prompt that `model` computes at once in a sequence of `length`: as many as keep attention's memory within
/// bounds, from 64 to 2048.
pub fn prefill_chunk(model: &Model, length: usize) -> usize {
    (SCORES / (model.config().num_attention_heads * length.max(1))).clamp(64, 2048)
}

/// A generated token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Its id.
    pub id: u32,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// This stop token was drawn; it is not yielded.
    Stop(u32),
    /// [`GenerateOptions::max_new_tokens`] were generated.
    Length,
    /// The context is full.
    Context,
}

/// A sequence being generated: an iterator over its new tokens. After an error it yields nothing more.
#[derive(Debug)]
pub struct Generation<'m> {
    model: &'m Model,
    cache: Cache,
    sampler: Sampler,
    stop: Vec<u32>,
    pending: Pending,
    /// Tokens of the prompt that are computed at once.
    chunk: usize,
    left: usize,
    finish: Option<Finish>,
    failed: bool,
}

/// Tokens not yet computed: the prompt at first, then the last token drawn.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a generation has one")]
enum Pending {
    Ids(Vec<u32>),
    /// One token, already on the device: `[1, 1]`.
    Chosen(Tensor<2, Int>),
}

impl Pending {
    fn len(&self) -> usize {
        match self {
            Self::Ids(ids) => ids.len(),
            Self::Chosen(_) => 1,
        }
    }
}

/// Continues `prompt`.
///
/// # Errors
/// [`Error::EmptyPrompt`]; [`Error::PromptTooLong`] if the context has no room for one new token;
/// [`Error::TokenOutOfRange`]; [`Error::InvalidOption`] for sampling options and for no tokens to generate.
pub fn generate<'m>(
    model: &'m Model,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Generation<'m>> {
    let (found, context, vocab) = (prompt.len(), model.context(), model.vocab());
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if found >= context {
        return Err(Error::PromptTooLong { found, limit: context - 1 });
    }
    if let Some(token) = prompt.iter().copied().find(|id| *id as usize >= vocab) {
        return Err(Error::TokenOutOfRange { token, vocab });
    }
    for (name, found) in [
        ("the number of new tokens", Some(options.max_new_tokens)),
        ("the number of tokens of a prompt that are computed at once", options.prefill),
    ] {
        if found == Some(0) {
            let needed = "1 or more".into();
            return Err(Error::InvalidOption { name, found: "0".into(), needed });
        }
    }
    let sampler = Sampler::new(&options.sampling)?;
    // The last token drawn is never computed, so it needs no place.
    let capacity = context.min(found.saturating_add(options.max_new_tokens - 1));
    Ok(Generation {
        model,
        cache: model.new_cache(1, capacity)?,
        sampler,
        stop: options.stop.clone().unwrap_or_else(|| model.stop_ids().to_vec()),
        pending: Pending::Ids(prompt.to_vec()),
        chunk: options.prefill.unwrap_or_else(|| prefill_chunk(model, capacity)),
        left: options.max_new_tokens,
        finish: None,
        failed: false,
    })
}

impl Generation<'_> {
    /// Why the sequence ended; none while it goes on, and none if it failed.
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Tokens computed so far: the prompt, and the new tokens but the last.
    pub fn computed(&self) -> usize {
        self.cache.len()
    }

    /// Computes what is pending and draws the next token, which is pending then.
    fn step(&mut self) -> Result<u32> {
        let (model, cache) = (self.model, &mut self.cache);
        let tokens = match std::mem::replace(&mut self.pending, Pending::Ids(vec![])) {
            Pending::Chosen(token) => token,
            Pending::Ids(ids) => {
                let last = ids.len().saturating_sub(1) / self.chunk * self.chunk;
                for chunk in ids[..last].chunks(self.chunk) {
                    model.hidden(model.tokens(chunk, 1)?, cache)?;
                }
                model.tokens(&ids[last..], 1)?
            }
        };
        if self.sampler.is_greedy() {
            let likeliest = model.likeliest(tokens, cache)?;
            let ids = likeliest.ids()?;
            self.pending = Pending::Chosen(likeliest.tokens);
            return ids.first().copied().ok_or(Error::EmptyPrompt);
        }
        let logits = model.forward_last(tokens, cache)?.try_into_vec_as::<f32>();
        let logits = logits.map_err(|error| Error::DeviceFailed {
            device: device::name(model.device()),
            reason: error.to_string(),
        })?;
        let id = self.sampler.sample(&logits)?;
        self.pending = Pending::Ids(vec![id]);
        Ok(id)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Result<Token>> {
        if self.finish.is_some() || self.failed {
            return None;
        }
        if self.left == 0 {
            self.finish = Some(Finish::Length);
            return None;
        }
        if self.cache.len() + self.pending.len() >= self.model.context() {
            self.finish = Some(Finish::Context);
            return None;
        }
        match self.step() {
            Ok(id) if self.stop.contains(&id) => {
                self.finish = Some(Finish::Stop(id));
                None
            }
            Ok(id) => {
                self.left -= 1;
                Some(Ok(Token { id }))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}
