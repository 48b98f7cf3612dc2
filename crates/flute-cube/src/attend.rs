//! Attention of the new tokens of each sequence over its keys and values, which lie in blocks of a cache.
//!
//! One token a sequence, as in decoding, is split over positions (flash-decoding): on the matrix unit and in one launch from
//! Hopper on (f16 and bf16, heads of a multiple of 16 features), elsewhere in two. Several, a prompt or a part of one, are
//! split over tokens, and their scores reach no memory (flash attention). Positions are read on the device, so that a
//! step can be captured once and replayed at every position; what is launched depends on the tokens and the capacity of
//! sequences alone. A token gets the same bits alone, in a batch, in a larger cache and in any blocks of it; and however a
//! prompt is cut, as long as no part is a single token.
//!
//! Scores and sums are f32, with one rounding at the end; on the matrix unit weights are rounded too. Refused are heads of
//! more than 256 features or of a number that 4 does not divide, more than 16 query heads a head of keys, and devices
//! whose cubes are too small.

use crate::{
    Dtype, Error, Limits, Result,
    kernel::{
        attend::{self as kernel, MAX_DIM, MAX_GROUP},
        blocks::{CACHE_BLOCK, entries},
        prompt,
    },
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};

/// What is asked: new token t of sequence b sees the positions up to `start[b] + t`, or as many of the last of them as
/// its window has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// Sequences; 0 asks for nothing and gets it.
    pub batch: usize,
    /// New tokens of each; likewise.
    pub tokens: usize,
    /// Heads of q: head h reads the head `h / (query_heads / key_heads)` of keys and values.
    pub query_heads: usize,
    /// Heads of k, and of v.
    pub key_heads: usize,
    /// Features of a head.
    pub dim: usize,
    /// Positions that each sequence may have.
    pub capacity: usize,
    /// Blocks of the cache, of [`CACHE_BLOCK`] positions each.
    pub blocks: usize,
    /// Factor of the products of q and k.
    pub scale: f64,
    /// Scores s become `cap · tanh(s / cap)`.
    pub cap: Option<f64>,
    /// Positions that a token sees, itself among them.
    pub window: Option<usize>,
    /// Of everything.
    pub dtype: Dtype,
}

/// The buffers of an attention, all on the client's device.
#[derive(Clone, Debug)]
pub struct AttendBuffers {
    /// `[batch, query_heads, tokens, dim]`.
    pub query: Handle,
    /// `[blocks, key_heads, 64, dim]`; what is not seen is not read.
    pub keys: Handle,
    /// As `keys`.
    pub values: Handle,
    /// `[batch]`, i32: the position of the first new token of each sequence. Keys and values of the new ones are in the
    /// cache.
    pub start: Handle,
    /// `[batch, capacity / 64]` (rounded up), i32: the blocks of each sequence, in the order of their positions. What is
    /// not below the number of blocks, −1 for one, names none: its positions are not seen.
    pub table: Handle,
    /// `[batch, tokens, query_heads, dim]`: every element is written. A sequence that sees nothing (a negative start,
    /// or no blocks) gets zeros.
    pub y: Handle,
}

impl Attend {
    /// Whether a device of `limits` serves this.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for sizes of zero, query heads that the key heads do not divide, or more elements than 32
    /// bits address; [`Error::UnsupportedDtype`], [`Error::UnsupportedShape`].
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let Self { batch, tokens, query_heads, key_heads, dim, capacity, blocks, .. } = *self;
        let (window, dtype) = (self.window, self.dtype);
        let max = u32::MAX as usize;
        for (what, found) in [
            ("the number of key heads", key_heads),
            ("the features of a head", dim),
            ("the capacity of a cache", capacity),
            ("the blocks of a cache", blocks),
            ("the window", window.unwrap_or(1)),
            (
                "the number of query heads that share a head of keys",
                match query_heads.checked_rem(key_heads) {
                    Some(0) => query_heads / key_heads,
                    _ => 0,
                },
            ),
        ] {
            if !(1..=max).contains(&found) {
                return Err(Error::OutOfRange { what, found, min: 1, max });
            }
        }
        let entries = entries(capacity);
        for (what, factors) in [
            ("the elements of a cache", [blocks, CACHE_BLOCK, key_heads, dim]),
            ("the elements of q", [batch, tokens, query_heads, dim]),
            // A vector of every head for each entry of the table, which has fewer.
            ("the elements of partial sums", [batch, entries, query_heads, dim]),
        ] {
            let found = factors.into_iter().fold(1, usize::saturating_mul);
            if found > max {
                return Err(Error::OutOfRange { what, found, min: 0, max });
            }
        }
        limits.require(dtype)?;
        let ((units, bytes), blocks) = match tokens {
            0 | 1 => (kernel::needed(self, false), 1),
            _ => (prompt::needed(self), tokens.div_ceil(prompt::MIN_TOKENS)),
        };
        let (heads, grid) = (query_heads / key_heads, batch.max(query_heads).max(blocks));
        for (what, needed, offered) in [
            ("query heads a head of keys", heads, MAX_GROUP),
            ("features of a head", if dim.is_multiple_of(4) { dim } else { usize::MAX }, MAX_DIM),
            ("units a cube", units, limits.cube_units),
            ("bytes of shared memory", bytes, limits.shared_bytes),
            ("cubes along an axis", grid, limits.cube_count.min(65535)),
        ] {
            if needed > offered {
                let device = limits.name.clone();
                return Err(Error::UnsupportedShape { what, needed, offered, device });
            }
        }
        Ok(())
    }
}

/// Attends.
///
/// # Errors
/// What [`Attend::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn attend(client: &Client, problem: &Attend, buffers: &AttendBuffers) -> Result<()> {
    let limits = limits(client);
    problem.validate(&limits)?;
    let Attend { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype, .. } =
        *problem;
    let AttendBuffers { query, keys, values, start, table, y } = buffers;
    let heads = batch * tokens * query_heads * dim * dtype.size();
    let cache = blocks * key_heads * CACHE_BLOCK * dim * dtype.size();
    measured(&[
        ("the buffer of queries (bytes)", query, heads),
        ("the cache of keys (bytes)", keys, cache),
        ("the cache of values (bytes)", values, cache),
        ("the buffer of positions (bytes)", start, 4 * batch),
        ("the table of blocks (bytes)", table, 4 * batch * entries(capacity)),
        ("the buffer of y (bytes)", y, heads),
    ])?;
    if batch * tokens == 0 {
        return Ok(());
    }
    if tokens > 1 {
        let form = prompt::launch(client, problem, buffers, &limits);
        return accepted(client, Kernel::Prompt(form), y);
    }
    if let Some(form) = kernel::cluster::launch(client, problem, buffers, &limits) {
        return accepted(client, Kernel::Attend(form), y);
    }
    let (form, sums) = kernel::launch(client, problem, buffers, &limits);
    accepted(client, Kernel::Partial(form), &sums)?;
    accepted(client, Kernel::Fold(form), y)
}
