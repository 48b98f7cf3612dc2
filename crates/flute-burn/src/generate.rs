//! Token after token: one prefill of the prompt, then one step a token, as an iterator that computes when asked.
//!
//! Everything is checked before the first computation: an empty prompt, a prompt that leaves no room in the context,
//! tokens outside the vocabulary and sampling options outside their ranges are refused by [`generate`] itself.

use crate::device;
use crate::error::{Error, Result};
use crate::model::{Cache, Model};
use crate::sample::{Sampler, Sampling};

/// Tokens of a prompt that are computed at once. Attention scores take `chunk · context` floats a head, so that an
/// unbounded prefill of a long prompt would need more memory than the model.
const PREFILL: usize = 512;

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Tokens that end the sequence; [`Model::stop_ids`] if none are given.
    pub stop: Option<Vec<u32>>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { max_new_tokens: 256, sampling: Sampling::default(), stop: None }
    }
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
    /// Tokens not yet computed: the prompt at first, then the last token drawn.
    pending: Vec<u32>,
    left: usize,
    finish: Option<Finish>,
    failed: bool,
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
    if options.max_new_tokens == 0 {
        let (name, needed) = ("the number of new tokens", "1 or more".into());
        return Err(Error::InvalidOption { name, found: "0".into(), needed });
    }
    let sampler = Sampler::new(&options.sampling)?;
    // The last token drawn is never computed, so it needs no place.
    let capacity = context.min(found.saturating_add(options.max_new_tokens - 1));
    Ok(Generation {
        model,
        cache: model.new_cache(1, capacity)?,
        sampler,
        stop: options.stop.clone().unwrap_or_else(|| model.stop_ids().to_vec()),
        pending: prompt.to_vec(),
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

    /// Computes what is pending and draws the next token.
    fn step(&mut self) -> Result<u32> {
        let (model, pending) = (self.model, std::mem::take(&mut self.pending));
        let mut chunks = pending.chunks(PREFILL).peekable();
        while let Some(chunk) = chunks.next() {
            let tokens = model.tokens(chunk, 1)?;
            if chunks.peek().is_some() {
                model.hidden(tokens, &mut self.cache)?;
                continue;
            }
            let logits = model.forward_last(tokens, &mut self.cache)?.try_into_vec_as::<f32>();
            let logits = logits.map_err(|error| Error::DeviceFailed {
                device: device::name(model.device()),
                reason: error.to_string(),
            })?;
            return self.sampler.sample(&logits);
        }
        Err(Error::EmptyPrompt)
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
                self.pending = vec![id];
                Some(Ok(Token { id }))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}
