//! Sequences that come and go while their neighbours are decoded.
//!
//! What a step launches depends on the rows of the cache, not on who has them: tokens, positions and the table of blocks
//! are written where they stand, so a recorded step outlives every sequence that it was recorded for. A prompt is read
//! between two steps, into blocks that no other row has.

use super::{Decoding, Way, whole};
use crate::device;
use crate::error::{Error, Result};
use crate::model::{Likeliest, Pool};

/// A sequence that has joined a batch.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Its row, in all that steps say.
    pub row: usize,
    /// What follows its prompt. The likeliest token is what the next step computes.
    pub next: Likeliest,
}

impl Decoding<'_> {
    /// Reads `prompt` into the first row that has no sequence. The sequence may have `capacity` tokens, those of its prompt
    /// among them, and takes the blocks for all of them; [`Decoding::release`] puts them back. The others stay where they
    /// are, and get the same tokens as without it.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`]; [`Error::TokenOutOfRange`]; [`Error::PromptTooLong`] for a prompt beyond `capacity`, or a
    /// capacity beyond that of the cache; [`Error::BatchFull`] if no row is free; [`Error::PoolFull`] if fewer blocks are
    /// free than are needed; all before anything is computed. [`Error::NotFinite`] as [`Likeliest::ids`], and
    /// [`Error::DeviceFailed`]: the row is free again then. [`Error::NotRecorded`] as [`Decoding::likeliest`].
    ///
    /// # Panics
    /// As [`Model::forward`](crate::model::Model::forward).
    pub fn admit(&mut self, prompt: &[u32], capacity: usize) -> Result<Admitted> {
        self.model.admit_prompt(prompt, capacity)?;
        let limit = self.cache.capacity();
        if capacity > limit {
            return Err(Error::PromptTooLong { found: capacity, limit });
        }
        if let Way::Lost(reason) = &self.way {
            let device = device::name(self.model.device());
            return Err(Error::NotRecorded { device, reason: reason.clone() });
        }
        let row = self.cache.seat(capacity)?;
        self.settle();
        let next = self.read_into(row, prompt);
        if next.is_err() {
            self.cache.free(row);
        }
        self.cache.tell();
        self.doubt();
        next.map(|next| Admitted { row, next })
    }

    /// Ends the sequence in row `row`: its blocks are free for another one, and steps go on without it. What they say of
    /// the row means nothing until somebody takes it.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the row has no sequence.
    pub fn release(&mut self, row: usize) -> Result<()> {
        if !self.cache.free(row) {
            let (name, found) = ("the row of a sequence that ends", row.to_string());
            let needed = format!("one of {} rows that has a sequence", self.cache.batch());
            return Err(Error::InvalidOption { name, found, needed });
        }
        self.settle();
        self.cache.tell();
        self.doubt();
        Ok(())
    }

    /// The blocks of its cache.
    pub fn pool(&self) -> &Pool {
        self.cache.pool()
    }

    /// Reads `prompt` into row `row`, and lets the next step compute the likeliest token behind it.
    fn read_into(&mut self, row: usize, prompt: &[u32]) -> Result<Likeliest> {
        let next = self.model.read_row(prompt, &mut self.cache, row)?;
        let mut tokens = whole(&self.tokens)?;
        for (token, id) in tokens[row..].iter_mut().zip(next.ids()?) {
            *token = id as i32;
        }
        self.place(tokens);
        Ok(next)
    }

    /// Lets the next replay be checked as the first was: whoever wrote between two of them must have written in place.
    fn doubt(&mut self) {
        if let Way::Replay(recording) = &mut self.way {
            recording.checked = false;
        }
    }
}
