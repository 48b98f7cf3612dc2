//! Attention of several new tokens a sequence over its cache, of which no score reaches memory (flash attention, arXiv
//! 2205.14135).
//!
//! A cube takes a block of tokens of one head of queries and walks once through the positions that they see, tile by
//! tile, with a greatest score, a sum and weighted values for each token that are scaled down where a greater score is
//! found. Tiles begin at multiples of their length, ascending, and what a token does not see adds exact zeros to it: it
//! gets the same bits in every block, every cut of a prompt, every batch and every cache. Their length divides a cache's
//! block, so that a tile lies in one.
//!
//! Two kernels: `tensor` for CUDA's matrix unit (f16 and bf16), `plain` for everything else.

mod plain;
pub(super) mod ptx;
mod tensor;
mod weights;

pub(super) use tensor::scale;

use super::{
    blocks::{CACHE_BLOCK, entries},
    width::width,
};
use crate::{Attend, AttendBuffers, Limits};
use cubecl::{prelude::*, server::Handle};

/// Below any score, and finite: shaders may not know infinity.
const MASKED: f32 = -1e30;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Tensor(tensor::Form),
    Plain(plain::Form),
}

/// What is not.
#[derive(CubeLaunch, CubeType)]
struct Shape {
    /// New tokens of a sequence.
    tokens: usize,
    /// Query heads that share a head of keys.
    group: usize,
    capacity: usize,
    /// Of the cache.
    blocks: usize,
    /// Of the table, for each sequence.
    entries: usize,
    /// Positions that a token sees, itself among them; read only if there is a window.
    window: usize,
    /// Factor of the products of q and k, in units that the kernel chooses, as the cap.
    scale: f32,
    /// Scores are capped at it, softly; read only if they are.
    cap: f32,
}

/// Where a sequence stands.
#[derive(CubeType)]
struct Sight {
    /// The position of its first new token.
    stand: usize,
    /// Positions that it may see at most: those of the cache, or none.
    limit: usize,
}

#[cube]
fn sight(start: i32, shape: &Shape) -> Sight {
    // Before the first position nothing is seen.
    let limit = select(start < 0, 0usize, shape.capacity);
    Sight { stand: u32::cast_from(max(start, 0)) as usize, limit }
}

/// The position behind the last that new token `token` sees.
#[cube]
fn end_of(token: usize, sight: &Sight) -> usize {
    min(sight.stand + token + 1usize, sight.limit)
}

/// The first position that it sees.
#[cube]
fn first_of(token: usize, sight: &Sight, shape: &Shape, #[comptime] windowed: bool) -> usize {
    if comptime!(windowed) {
        let end = end_of(token, sight);
        end - min(end, shape.window)
    } else {
        0usize.runtime()
    }
}

/// Tokens of a cube, of either kernel.
pub(crate) const MIN_TOKENS: usize = plain::TOKENS;

/// Units and bytes of shared memory that a cube takes; the matrix unit's kernel is chosen only where there is room.
pub(crate) fn needed(problem: &Attend) -> (usize, usize) {
    (plain::UNITS, plain::bytes(problem.dim))
}

/// Attends with what `buffers` hold, which were measured for `problem`.
pub(crate) fn launch(
    client: &Client,
    problem: &Attend,
    buffers: &AttendBuffers,
    limits: &Limits,
) -> Form {
    let Attend { batch, tokens, query_heads, key_heads, dim, capacity, blocks: held, .. } =
        *problem;
    let AttendBuffers { query, keys, values, start, table, y } = buffers;
    let form = match tensor::Form::of(problem, buffers, limits) {
        Some(form) => Form::Tensor(form),
        None => Form::Plain(plain::Form::new(client, problem, buffers)),
    };
    let (block, units, scale) = match form {
        Form::Tensor(form) => {
            (form.tokens(), CubeDim::new_2d(32, form.planes()), tensor::scale(problem))
        }
        Form::Plain(_) => {
            let cap = problem.cap.unwrap_or(1.0);
            (plain::TOKENS, CubeDim::new_1d(plain::UNITS as u32), [problem.scale, cap])
        }
    };
    let blocks = tokens.div_ceil(block);
    let count = CubeCount::Static(query_heads as u32, blocks as u32, batch as u32);
    let [scale, cap] = scale.map(|factor| factor as f32);
    let (group, window) = (query_heads / key_heads, problem.window.unwrap_or(0));
    let entries = entries(capacity);
    let shape = ShapeLaunch::new(tokens, group, capacity, held, entries, window, scale, cap);
    let (heads, cache) = (batch * query_heads * tokens * dim, held * key_heads * CACHE_BLOCK * dim);
    let arg = |handle: &Handle, len| {
        // SAFETY: every buffer was measured against the shape of the problem.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    };
    match form {
        // SAFETY: tokens that do not exist read the last one and are not stored; positions stay below the
        // capacity, and blocks below those of the cache.
        Form::Tensor(form) => unsafe {
            tensor::tensor::launch_unchecked(
                client,
                count,
                units,
                arg(query, heads / 2),
                arg(keys, cache / 8),
                arg(values, cache / 8),
                arg(start, batch),
                arg(table, batch * entries),
                arg(y, heads / 2),
                shape,
                form,
            );
        },
        // SAFETY: as above.
        Form::Plain(form) => unsafe {
            plain::plain::launch_unchecked(
                client,
                count,
                units,
                form.width,
                arg(query, heads / form.width),
                arg(keys, cache / form.width),
                arg(values, cache / form.width),
                arg(start, batch),
                arg(table, batch * entries),
                arg(y, heads / form.width),
                shape,
                form,
                problem.dtype.elem(),
            );
        },
    }
    form
}
