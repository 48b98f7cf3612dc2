//! Tokens to text as they arrive.
//!
//! A character may take several tokens, and a token's text may depend on the one before it (a leading space). So a
//! window of tokens is decoded again with each new one, and what is new is given out once it ends in a whole
//! character. What is given out, joined, is what decoding all tokens at once gives.

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// A character has at most four bytes and a token at least one. When this many tokens made no whole character, they
/// are not going to.
const PATIENCE: usize = 8;

/// Turns tokens into text one by one; see [`Tokenizer::stream`].
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens whose text was given out and that the next one's text depends on, then those that wait.
    window: Vec<u32>,
    /// How many of them wait.
    waiting: usize,
    /// Bytes of the window's text that were given out.
    given: usize,
}

impl<'a> Detokenizer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, window: vec![], waiting: 0, given: 0 }
    }

    /// Takes a token; returns the text that it completes, if any.
    ///
    /// # Errors
    /// [`crate::error::Error::Tokenizer`].
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        self.window.push(token);
        self.waiting += 1;
        let text = self.tokenizer.decode(&self.window, true)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && self.waiting < PATIENCE {
            return Ok(None);
        }
        let new = text.get(self.given..).unwrap_or_default().to_owned();
        let context = self.window.len() - self.waiting;
        self.window.drain(..context);
        self.waiting = 0;
        self.given = self.tokenizer.decode(&self.window, true)?.len();
        Ok(Some(new).filter(|new| !new.is_empty()))
    }

    /// Ends the stream; returns what waited, with U+FFFD for a character that was never completed.
    ///
    /// # Errors
    /// [`crate::error::Error::Tokenizer`].
    pub fn finish(self) -> Result<Option<String>> {
        let text = self.tokenizer.decode(&self.window, true)?;
        let rest = text.get(self.given..).unwrap_or_default();
        Ok(Some(rest.to_owned()).filter(|rest| !rest.is_empty()))
    }
}
