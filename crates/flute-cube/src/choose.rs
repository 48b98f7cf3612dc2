//! The likeliest token of each row of logits, and what a step of decoding leaves for the next one: that token, and a
//! position further on.
//!
//! The token goes where the next step reads it and the position is moved where it stands, so that a captured step feeds
//! itself. Of equal logits the first is chosen; a NaN is chosen before anything else, so that nobody overlooks it.
//! Refused are vocabularies whose ids f32 does not hold, and types that the device does not have.

use crate::{
    Dtype, Error, Limits, Result,
    kernel::choose as kernel,
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choose {
    /// Sequences; 0 asks for nothing and gets it.
    pub rows: usize,
    /// Logits of each.
    pub vocab: usize,
    /// Added to each position.
    pub advance: usize,
    /// Of the logits.
    pub dtype: Dtype,
}

/// The buffers of a choice, all on the client's device.
#[derive(Clone, Debug)]
pub struct ChooseBuffers {
    /// `[rows, vocab]`.
    pub logits: Handle,
    /// `[rows]`, i32: every element is written.
    pub tokens: Handle,
    /// `[rows]`, i32: moved where it stands.
    pub position: Handle,
    /// `[rows, 2]`, f32: the logit and its token, every element is written.
    pub chosen: Handle,
}

impl Choose {
    /// Whether a device of `limits` serves this.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for no logits, for more than f32 counts or 32 bits address, and for more rows than a grid
    /// has; [`Error::UnsupportedDtype`].
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let Self { rows, vocab, advance, dtype } = *self;
        let rows_max = limits.cube_count.min(65535).min(u32::MAX as usize / vocab.max(1));
        for (what, found, min, max) in [
            ("the number of logits", vocab, 1, 1 << 24),
            ("the number of rows", rows, 0, rows_max),
            ("the positions to advance", advance, 0, i32::MAX as usize),
        ] {
            if !(min..=max).contains(&found) {
                return Err(Error::OutOfRange { what, found, min, max });
            }
        }
        limits.require(dtype)
    }
}

/// Chooses.
///
/// # Errors
/// What [`Choose::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn choose(client: &Client, problem: &Choose, buffers: &ChooseBuffers) -> Result<()> {
    problem.validate(&limits(client))?;
    let Choose { rows, vocab, dtype, .. } = *problem;
    measured(&[
        ("the buffer of logits (bytes)", &buffers.logits, rows * vocab * dtype.size()),
        ("the buffer of tokens (bytes)", &buffers.tokens, 4 * rows),
        ("the buffer of positions (bytes)", &buffers.position, 4 * rows),
        ("the buffer of choices (bytes)", &buffers.chosen, 8 * rows),
    ])?;
    if rows == 0 {
        return Ok(());
    }
    let (form, parts) = kernel::launch(client, problem, buffers);
    accepted(client, Kernel::Best(form), &parts)?;
    accepted(client, Kernel::Choose(form), &buffers.chosen)
}
