//! Prompts of different lengths, to be continued together.
//!
//! Each prompt is read by itself: what it becomes does not depend on its neighbours, no token is padded, and the linear
//! layers have rows enough. From then on the batch decodes as one, every sequence from where it stands.

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
        for prompt in prompts {
            self.admit_ids(prompt)?;
            let (found, limit) = (prompt.len(), capacity);
            match found {
                0 => return Err(Error::EmptyPrompt),
                _ if found > limit => return Err(Error::PromptTooLong { found, limit }),
                _ => {}
            }
        }
        let mut cache = self.new_cache(prompts.len(), capacity)?;
        let mut next = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.iter().enumerate() {
            let mut alone = self.new_cache(1, prompt.len())?;
            next.push(self.likeliest(self.tokens(prompt, 1)?, &mut alone)?.tokens);
            cache.adopt(index, alone);
        }
        Ok((cache, Tensor::cat(next, 0)))
    }
}
