//! Token after token: one prefill of the prompt, then one step a token, as an iterator that computes when asked.
//!
//! Steps go through [`Decoding`]: greedy tokens are chosen on the device and stay there for the next step, and the host
//! reads them alone. Where tokens are drawn, it reads the logits.
//!
//! Everything is checked before the first computation: an empty prompt, a prompt that leaves no room in the context,
//! tokens outside the vocabulary and sampling options outside their ranges are refused by [`generate`] itself.

use crate::error::{Error, Result};
use crate::model::{Cache, Decoding, Model};
use crate::sample::{Sampler, Sampling};

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
    /// Whether steps are recorded and replayed where the device can. The tokens are the same.
    pub graph: bool,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            sampling: Sampling::default(),
            stop: None,
            prefill: None,
            graph: true,
        }
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
    /// None before the prompt is read.
    decoding: Option<Decoding<'m>>,
    /// For the prompt; none once it is read.
    cache: Option<Cache>,
    capacity: usize,
    /// The prompt, and the new tokens.
    ids: Vec<u32>,
    sampler: Sampler,
    stop: Vec<u32>,
    /// Tokens of the prompt that are computed at once.
    chunk: usize,
    graph: bool,
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
        decoding: None,
        cache: Some(model.new_cache(1, capacity)?),
        capacity,
        ids: prompt.to_vec(),
        sampler,
        stop: options.stop.clone().unwrap_or_else(|| model.stop_ids().to_vec()),
        chunk: options.prefill.unwrap_or_else(|| prefill_chunk(model, capacity)),
        graph: options.graph,
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
        self.decoding.as_ref().map_or(0, Decoding::computed)
    }

    /// Whether steps are replayed from a recording.
    pub fn is_graph(&self) -> bool {
        self.decoding.as_ref().is_some_and(Decoding::is_graph)
    }

    /// Computes what is pending and draws the next token, which is pending then.
    fn step(&mut self) -> Result<u32> {
        let id = match self.next_of_decoding() {
            None => self.next_of_prompt()?,
            Some(Err(Error::NotRecorded { device, reason })) => {
                tracing::warn!(
                    "{device} did not record a step, all tokens are read again: {reason}"
                );
                (self.decoding, self.graph) = (None, false);
                self.next_of_prompt()?
            }
            Some(id) => id?,
        };
        self.ids.push(id);
        Ok(id)
    }

    /// None if the prompt is not read.
    fn next_of_decoding(&mut self) -> Option<Result<u32>> {
        let decoding = self.decoding.as_mut()?;
        if self.sampler.is_greedy() {
            return Some(decoding.likeliest().and_then(first));
        }
        let id = decoding.logits().and_then(|logits| self.sampler.sample(&logits));
        Some(id.and_then(|id| decoding.put(&[id]).map(|()| id)))
    }

    /// Computes all tokens that there are.
    fn next_of_prompt(&mut self) -> Result<u32> {
        let model = self.model;
        let mut cache = match self.cache.take() {
            Some(cache) => cache,
            None => model.new_cache(1, self.capacity)?,
        };
        let last = (self.ids.len() - 1) / self.chunk * self.chunk;
        for chunk in self.ids[..last].chunks(self.chunk) {
            model.hidden(model.tokens(chunk, 1)?, &mut cache)?;
        }
        let likeliest = model.likeliest(model.tokens(&self.ids[last..], 1)?, &mut cache)?;
        let (id, tokens) = if self.sampler.is_greedy() {
            (first(likeliest.ids()?)?, likeliest.tokens)
        } else {
            let id = self.sampler.sample(&likeliest.logits()?)?;
            (id, model.tokens(&[id], 1)?)
        };
        let decoding = Decoding::new(model, tokens, cache, self.graph)?;
        // Drawn tokens are put between two steps.
        let ahead = self.sampler.is_greedy();
        self.decoding = Some(if ahead { decoding.run_ahead() } else { decoding });
        Ok(id)
    }
}

/// The id of a batch of one.
fn first(ids: Vec<u32>) -> Result<u32> {
    ids.first().copied().ok_or(Error::EmptyPrompt)
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
        if self.ids.len() >= self.model.context() {
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
