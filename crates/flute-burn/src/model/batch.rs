//! Prompts of different lengths, to be continued together.
//!
//! Each prompt is read by itself, into the blocks of its own row: what it becomes does not depend on its neighbours, no
//! token is padded, and the linear layers have rows enough. From then on the batch decodes as one, every sequence from
//! where it stands.

use super::greedy::Likeliest;
use super::{Cache, Model};
use crate::error::{Error, Result};
use burn::tensor::{Int, Tensor};

impl Model {
    /// Reads `prompts` into a cache that has room for `capacity` tokens of each, and returns it with the likeliest next
    /// tokens `[prompts, 1]`: what [`super::Decoding::new`] goes on from.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::PromptTooLong`] and [`Error::TokenOutOfRange`] for a prompt that cannot be read,
    /// and as [`Model::new_cache`], all before anything is computed.
    ///
    /// # Panics
    /// As [`Model::forward`].
    pub fn read(&self, prompts: &[&[u32]], capacity: usize) -> Result<(Cache, Tensor<2, Int>)> {
        prompts.iter().try_for_each(|prompt| self.admit_prompt(prompt, capacity))?;
        let mut cache = self.new_cache(prompts.len(), capacity)?;
        let mut next = Vec::with_capacity(prompts.len());
        for (row, prompt) in prompts.iter().enumerate() {
            next.push(self.read_row(prompt, &mut cache, row)?.tokens);
        }
        cache.tell();
        Ok((cache, Tensor::cat(next, 0)))
    }

    /// Refuses a prompt that is not one, or leaves `capacity`.
    pub(super) fn admit_prompt(&self, prompt: &[u32], capacity: usize) -> Result<()> {
        self.admit_ids(prompt)?;
        match prompt.len() {
            0 => Err(Error::EmptyPrompt),
            found if found > capacity => Err(Error::PromptTooLong { found, limit: capacity }),
            _ => Ok(()),
        }
    }

    /// Reads `prompt` into row `row` of `cache`, whose sequence has seen nothing and has room for it. The device hears of
    /// it by [`Cache::tell`].
    pub(super) fn read_row(
        &self,
        prompt: &[u32],
        cache: &mut Cache,
        row: usize,
    ) -> Result<Likeliest> {
        let tokens = self.tokens(prompt, 1)?;
        let mut lent = cache.lend(row);
        let next = self.likeliest(tokens, &mut lent);
        cache.restore(row, lent);
        next
    }
}
