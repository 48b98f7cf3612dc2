//! A step ahead: launched while the host still waits for the one before it.
//!
//! Between two steps a device waits for the host to read a token and to launch the next step, though nothing in that
//! step depends on it. So where steps are replayed, the next one is launched before the token of this one is waited
//! for. The host counts such a step when it is asked for. Whoever does anything else in between takes it back: tokens
//! and positions are put where they were, and what it wrote into the cache stands behind them, unseen.

use super::{Decoding, Recording, Way};
use crate::error::Result;
use crate::lend::Reading;
use crate::model::Model;
use burn::backend::StreamId;

/// A step that was launched and not asked for yet.
#[derive(Debug)]
pub(super) struct Ahead<'m> {
    /// Its choice.
    chosen: Reading<'m>,
    /// The tokens that it computes.
    tokens: Vec<i32>,
}

impl Decoding<'_> {
    /// From now on [`Decoding::likeliest`] launches the step after the one it returns, where steps are replayed and every
    /// sequence has room for it. For callers that mostly ask for one step after another: what else they do takes that step
    /// back, which costs as much as it.
    pub fn run_ahead(mut self) -> Self {
        self.runs_ahead = true;
        self
    }

    /// What the next step chooses, `[batch, 2]`, with the one behind it launched; none where no step runs ahead.
    pub(super) fn likeliest_ahead(&mut self) -> Result<Option<Vec<f32>>> {
        let dims = self.tokens.dims();
        self.cache.admit(dims)?;
        let Way::Replay(recording) = &mut self.way else { return Ok(None) };
        if !(self.runs_ahead && recording.checked && recording.stream == StreamId::current()) {
            return Ok(None);
        }
        let launched = match recording.ahead.take() {
            Some(ahead) => Some(ahead.chosen),
            None => recording.launch(self.model)?,
        };
        let Some(chosen) = launched else { return Ok(None) };
        self.cache.count(1);
        let next = match self.cache.admit(dims) {
            Ok(()) => recording.launch(self.model)?,
            Err(_) => None,
        };
        let chosen: Vec<f32> = bytemuck::pod_collect_to_vec(&chosen.wait()?);
        let tokens = chosen.chunks_exact(2).map(|pair| pair[1] as i32).collect();
        recording.ahead = next.map(|chosen| Ahead { chosen, tokens });
        Ok(Some(chosen))
    }

    /// Takes a step ahead back, and gives a recording up that was made on another stream than the caller's, once what
    /// it replays has ended.
    pub(super) fn settle(&mut self) {
        let Way::Replay(recording) = &mut self.way else { return };
        let ahead = recording.ahead.take();
        let tokens = ahead.map(|Ahead { chosen, tokens }| {
            drop(chosen);
            tokens
        });
        if recording.stream != StreamId::current() {
            self.way = Way::Plain(0);
        }
        if let Some(tokens) = tokens {
            self.cache.rewind(self.cache.lens());
            self.place(tokens);
        }
    }
}

impl<'m> Recording<'m> {
    /// Replays the step, and asks for its choice; none, and nothing is launched, where no buffer is lent.
    fn launch(&self, model: &'m Model) -> Result<Option<Reading<'m>>> {
        if !self.lent.is_there() {
            return Ok(None);
        }
        self.replay(model)?;
        Ok(model.lender.read(&self.lent))
    }
}
