//! Rotary position embedding (arXiv 2104.09864) of queries and keys, and the new keys and values into the blocks of their
//! cache.
//!
//! Feature i of a head rotates with i + dim/2, as Hugging Face lays heads out. Positions are read on the device, so that
//! a step can be captured once and replayed at every position. f32 in between, one rounding. Refused are heads of an
//! odd number of features, caches that 32 bits do not address, and types that the device does not have.

use crate::{
    Dtype, Error, Limits, Result,
    kernel::{
        blocks::{CACHE_BLOCK, entries},
        rotate as kernel,
    },
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rotate {
    /// Sequences; 0 asks for nothing and gets it.
    pub batch: usize,
    /// New tokens of each; likewise.
    pub tokens: usize,
    /// Heads of q.
    pub query_heads: usize,
    /// Heads of k, and of v.
    pub key_heads: usize,
    /// Features of a head.
    pub dim: usize,
    /// Positions that each sequence may have.
    pub capacity: usize,
    /// Blocks of the cache, of [`CACHE_BLOCK`] positions each.
    pub blocks: usize,
    /// Of everything but the tables.
    pub dtype: Dtype,
}

/// The buffers of a rotation, all on the client's device.
#[derive(Clone, Debug)]
pub struct RotateBuffers {
    /// `[batch, tokens, query_heads + 2·key_heads, dim]`: q, k and v of a token side by side.
    pub qkv: Handle,
    /// `[capacity, dim / 2]`, f32.
    pub cos: Handle,
    /// `[capacity, dim / 2]`, f32.
    pub sin: Handle,
    /// `[batch]`, i32: the position of the first new token of each sequence.
    pub start: Handle,
    /// `[batch, capacity / 64]` (rounded up), i32: the blocks of each sequence, in the order of their positions. What is
    /// not below the number of blocks, −1 for one, names none.
    pub table: Handle,
    /// `[batch, query_heads, tokens, dim]`, the rotated q: every element is written.
    pub query: Handle,
    /// `[blocks, key_heads, 64, dim]`: of it the new tokens' positions are written. What lies beyond the capacity, or in
    /// no block, is not.
    pub keys: Handle,
    /// As `keys`.
    pub values: Handle,
}

impl Rotate {
    /// Whether a device of `limits` serves this.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for sizes of zero, an odd `dim`, or more elements than 32 bits address;
    /// [`Error::UnsupportedDtype`].
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let Self { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype } = *self;
        let max = u32::MAX as usize;
        for (what, found) in [
            ("the number of query heads", query_heads),
            ("the number of key heads", key_heads),
            ("half the features of a head", dim / 2 * usize::from(dim.is_multiple_of(2))),
            ("the capacity of a cache", capacity),
            ("the blocks of a cache", blocks),
        ] {
            if !(1..=max).contains(&found) {
                return Err(Error::OutOfRange { what, found, min: 1, max });
            }
        }
        let features =
            (query_heads.saturating_add(key_heads.saturating_mul(2))).saturating_mul(dim);
        for (what, found) in [
            ("the elements of q, k and v", [batch, tokens, features]),
            ("the elements of a cache", [blocks, CACHE_BLOCK, key_heads.saturating_mul(dim)]),
            ("the entries of a table of blocks", [batch, entries(capacity), 1]),
            ("the elements of rotations", [capacity, dim / 2, 1]),
        ] {
            let found = found.into_iter().fold(1, usize::saturating_mul);
            if found > max {
                return Err(Error::OutOfRange { what, found, min: 0, max });
            }
        }
        limits.require(dtype)
    }
}

/// Rotates q and k, and writes k and v into their caches.
///
/// # Errors
/// What [`Rotate::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn rotate(client: &Client, problem: &Rotate, buffers: &RotateBuffers) -> Result<()> {
    problem.validate(&limits(client))?;
    let Rotate { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype } = *problem;
    let RotateBuffers { qkv, cos, sin, start, table, query, keys, values } = buffers;
    let (token, rotations) = (batch * tokens * dim * dtype.size(), capacity * dim / 2 * 4);
    let cache = blocks * key_heads * CACHE_BLOCK * dim * dtype.size();
    measured(&[
        ("the buffer of q, k and v (bytes)", qkv, (query_heads + 2 * key_heads) * token),
        ("the buffer of cosines (bytes)", cos, rotations),
        ("the buffer of sines (bytes)", sin, rotations),
        ("the buffer of positions (bytes)", start, 4 * batch),
        ("the table of blocks (bytes)", table, 4 * batch * entries(capacity)),
        ("the buffer of queries (bytes)", query, query_heads * token),
        ("the cache of keys (bytes)", keys, cache),
        ("the cache of values (bytes)", values, cache),
    ])?;
    if batch * tokens == 0 {
        return Ok(());
    }
    let form = kernel::launch(client, problem, buffers);
    accepted(client, Kernel::Rotate(form), query)
}
