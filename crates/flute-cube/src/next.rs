//! The next token of each sequence: its rotation, its place in the cache and its attention over it, in one launch (see
//! [`fn@crate::attend`]) or two.
//!
//! What [`fn@crate::rotate`] and [`fn@crate::attend`] do for one token a sequence, and to the bit what they leave, but for
//! the rotated queries, which reach no memory. (Rotations that begin at no multiple of two floats are for the two launches
//! alone, which round elsewhere.) Beside what those two refuse, several tokens are, and devices whose kernels
//! get too few buffers.

use crate::{
    Attend, Error, Limits, Result, Rotate,
    kernel::{
        attend::{self, next as kernel},
        blocks::{CACHE_BLOCK, entries},
    },
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};

/// How one launch spreads attention of a token: what changes time, and no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Cubes that share the positions of a head of keys: 1, 2, 4 or 8.
    pub cubes: usize,
    /// Tiles of 16 positions that each plane has on their way at once: 1 to 6.
    pub stages: usize,
}

impl Cluster {
    /// What [`attend_next`] chooses on a device of `limits` where every buffer begins well, or nothing where two kernels
    /// serve.
    pub fn of(problem: &Attend, limits: &Limits) -> Option<Self> {
        attend::cluster::Form::chosen(problem, true, limits).map(|form| form.cluster())
    }
}

/// The buffers of a next token, all on the client's device.
///
/// A recorded launch may read `start`, `table`, `keys` and `values` while the launches of this crate right before it still
/// run: those must not write them. Of several steps in one recording, something else moves `start` in between.
#[derive(Clone, Debug)]
pub struct NextBuffers {
    /// `[batch, query_heads + 2·key_heads, dim]`: q, k and v of a token side by side.
    pub qkv: Handle,
    /// `[capacity, dim / 2]`, f32.
    pub cos: Handle,
    /// `[capacity, dim / 2]`, f32.
    pub sin: Handle,
    /// `[batch]`, i32: the position of the new token of each sequence.
    pub start: Handle,
    /// `[batch, capacity / 64]` (rounded up), i32: the blocks of each sequence, in the order of their positions, no block in
    /// two places. What is not below the number of blocks, −1 for one, names none: its positions are not stored and not
    /// seen.
    pub table: Handle,
    /// `[blocks, key_heads, 64, dim]`: of it the new tokens' positions are written. What lies beyond the capacity, or in no
    /// block, is not.
    pub keys: Handle,
    /// As `keys`.
    pub values: Handle,
    /// `[batch, query_heads, dim]`: every element is written. A sequence that sees nothing (a negative start, or no blocks)
    /// gets zeros.
    pub y: Handle,
}

impl Attend {
    /// Whether a device of `limits` serves this with a rotation.
    ///
    /// # Errors
    /// What [`Attend::validate`] and [`Rotate::validate`] refuse; [`Error::OutOfRange`] for more than one token;
    /// [`Error::UnsupportedShape`].
    pub fn validate_next(&self, limits: &Limits) -> Result<()> {
        let Self { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype, .. } =
            *self;
        if tokens > 1 {
            let what = "the number of new tokens";
            return Err(Error::OutOfRange { what, found: tokens, min: 0, max: 1 });
        }
        Rotate { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype }
            .validate(limits)?;
        self.validate(limits)?;
        for (what, needed, offered) in [
            ("bytes of shared memory", attend::needed(self, true).1, limits.shared_bytes),
            ("buffers a kernel", kernel::BINDINGS, limits.bindings),
        ] {
            if needed > offered {
                let device = limits.name.clone();
                return Err(Error::UnsupportedShape { what, needed, offered, device });
            }
        }
        Ok(())
    }
}

/// Rotates the new token of each sequence, writes its key and value into the cache, and attends.
///
/// # Errors
/// What [`Attend::validate_next`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn attend_next(client: &Client, problem: &Attend, buffers: &NextBuffers) -> Result<()> {
    launch(client, problem, buffers, None)
}

/// The same by such a cluster for each head of keys: the same bits in another time.
///
/// # Errors
/// Those of [`attend_next`]; [`Error::OutOfRange`] for another number of cubes than 1, 2, 4 and 8, or of tiles than 1 to 6;
/// [`Error::UnsupportedShape`] where a cube has too little shared memory for it, or two kernels serve.
pub fn attend_next_with(
    client: &Client,
    problem: &Attend,
    buffers: &NextBuffers,
    cluster: Cluster,
) -> Result<()> {
    launch(client, problem, buffers, Some(cluster))
}

fn launch(
    client: &Client,
    problem: &Attend,
    buffers: &NextBuffers,
    cluster: Option<Cluster>,
) -> Result<()> {
    let limits = limits(client);
    problem.validate_next(&limits)?;
    let Attend { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype, .. } =
        *problem;
    let NextBuffers { qkv, cos, sin, start, table, keys, values, y } = buffers;
    let (head, rotations) = (batch * tokens * dim * dtype.size(), capacity * dim / 2 * 4);
    let cache = blocks * key_heads * CACHE_BLOCK * dim * dtype.size();
    measured(&[
        ("the buffer of q, k and v (bytes)", qkv, (query_heads + 2 * key_heads) * head),
        ("the buffer of cosines (bytes)", cos, rotations),
        ("the buffer of sines (bytes)", sin, rotations),
        ("the buffer of positions (bytes)", start, 4 * batch),
        ("the table of blocks (bytes)", table, 4 * batch * entries(capacity)),
        ("the cache of keys (bytes)", keys, cache),
        ("the cache of values (bytes)", values, cache),
        ("the buffer of y (bytes)", y, query_heads * head),
    ])?;
    if batch * tokens == 0 {
        return Ok(());
    }
    if let Some(form) = attend::cluster::form_next(problem, buffers, &limits) {
        let form = cluster.map_or(Ok(form), |cluster| form.spread(cluster, &limits))?;
        attend::cluster::launch_next(client, problem, buffers, form);
        return accepted(client, Kernel::Attend(form), y);
    }
    if cluster.is_some() {
        let (what, device) = ("clusters that attend to a token", limits.name.clone());
        return Err(Error::UnsupportedShape { what, needed: 1, offered: 0, device });
    }
    let (form, sums) = kernel::launch(client, problem, buffers, &limits);
    accepted(client, Kernel::Partial(form), &sums)?;
    accepted(client, Kernel::Fold(form), y)
}
