//! Attention of one query a sequence over its cache, split over positions.
//!
//! A cube takes the query heads that share a head of keys, and [`CHUNK`] positions: scores, their greatest and the sum
//! of their exponentials, and the values weighted by them (`partial`). A second kernel folds the chunks of a head
//! (`fold`). Chunks begin at multiples of their length and are folded in an order that their number alone decides, so
//! that a sequence gives the same bits in any batch, any cache and any blocks of it.

mod fold;
mod partial;

use super::{
    blocks::{CACHE_BLOCK, entries},
    width::width,
};
use crate::{Attend, AttendBuffers, Dtype, Limits};
use cubecl::{prelude::*, server::Handle};

/// Positions of a cube: a block of the cache. Longer chunks leave processors idle: 1024 positions and 8 heads are 128
/// cubes.
const CHUNK: usize = CACHE_BLOCK;
/// Units that share the score of a position.
const PARTS: usize = 4;
const UNITS: usize = CHUNK * PARTS;
/// Heads whose values are weighted at once: more would spill.
const HEADS: usize = 8;
/// Pieces that the greatest score and the sum of a chunk are made of.
const PIECES: usize = 8;
/// Below any score, and finite: shaders may not know infinity.
const MASKED: f32 = -1e30;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    width: usize,
    /// Vectors of a head.
    vectors: usize,
    /// Query heads that share a head of keys.
    group: usize,
    /// Heads whose teams are folded at once.
    together: usize,
    capped: bool,
    windowed: bool,
    dtype: Dtype,
}

impl Form {
    fn new(client: &Client, problem: &Attend, buffers: &AttendBuffers, limits: &Limits) -> Self {
        let AttendBuffers { query, keys, values, y, .. } = buffers;
        let Attend { query_heads, key_heads, dim, cap, window, dtype, .. } = *problem;
        let all = [query, keys, values, y].map(|buffer| (buffer, dtype.size()));
        let width = width(client, dim / PARTS, &all);
        let group = query_heads / key_heads;
        let fits = |heads: &usize| bytes(problem, *heads) <= limits.shared_bytes.min(48 << 10);
        let together = [8, 4, 2].into_iter().find(|heads| *heads <= group && fits(heads));
        Self {
            width,
            vectors: dim / width,
            group,
            together: together.unwrap_or(1),
            capped: cap.is_some(),
            windowed: window.is_some(),
            dtype,
        }
    }

    /// Positions that a team weights.
    fn turns(self) -> usize {
        CHUNK.div_ceil(self.teams())
    }

    /// Teams of units that weight values, each of a unit for every vector.
    fn teams(self) -> usize {
        UNITS / self.vectors
    }
}

/// Query heads that may share a head of keys, and features of a head: what a cube has registers for.
pub(crate) const MAX_GROUP: usize = 16;
/// See [`MAX_GROUP`].
pub(crate) const MAX_DIM: usize = 256;

/// Units and bytes of shared memory that a cube takes.
pub(crate) fn needed(problem: &Attend) -> (usize, usize) {
    (UNITS, bytes(problem, 1))
}

/// Bytes of shared memory if the teams of `together` heads are folded at once; vectors are at most 8 wide.
fn bytes(problem: &Attend, together: usize) -> usize {
    let group = problem.query_heads / problem.key_heads;
    let scores = group * (PARTS + 1) * CHUNK + 2 * group * PIECES;
    4 * (group * problem.dim + scores + together * 8 * UNITS)
}

/// What is not compiled in.
#[derive(CubeLaunch, CubeType)]
struct Shape {
    capacity: usize,
    /// Of the cache.
    blocks: usize,
    /// Of the table, for each sequence.
    entries: usize,
    /// Chunks of a head for which there are cubes.
    splits: usize,
    /// Positions that a token sees, itself among them; read only if there is a window.
    window: usize,
    scale: f32,
    /// Scores are capped at it, softly; read only if they are.
    cap: f32,
}

/// The positions that a sequence sees: from `first` to before `end`.
#[derive(CubeType)]
struct Seen {
    first: usize,
    end: usize,
}

#[cube]
fn seen(start: i32, shape: &Shape, #[comptime] windowed: bool) -> Seen {
    // A negative start sees nothing.
    let end = min(u32::cast_from(max(start + 1, 0)) as usize, shape.capacity);
    let first = if comptime!(windowed) { end - min(end, shape.window) } else { 0usize.runtime() };
    Seen { first, end }
}

/// Attends with what `buffers` hold, which were measured for `problem`. Returns the buffer between the two kernels, too.
pub(crate) fn launch(
    client: &Client,
    problem: &Attend,
    buffers: &AttendBuffers,
    limits: &Limits,
) -> (Form, Handle) {
    let Attend {
        batch, query_heads, key_heads, capacity, blocks, scale, cap, window, dtype, ..
    } = *problem;
    let AttendBuffers { query, keys, values, start, table, y } = buffers;
    let form = Form::new(client, problem, buffers, limits);
    let chunks = entries(capacity);
    // A window that begins in the middle of a chunk reaches into one more.
    let splits = window.map_or(chunks, |window| chunks.min((window + CHUNK - 2) / CHUNK + 1));
    let heads = batch * query_heads;
    let (sums, stats) = (
        client.empty(4 * heads * splits * form.vectors * form.width),
        client.empty(8 * heads * splits),
    );
    let shape = || {
        let (window, cap) = (window.unwrap_or(0), cap.unwrap_or(1.0));
        ShapeLaunch::new(capacity, blocks, chunks, splits, window, scale as f32, cap as f32)
    };
    let arg = |handle: &Handle, len| {
        // SAFETY: every buffer was measured against the shape of the problem, or was just made for it.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    };
    let cache = blocks * key_heads * CHUNK * form.vectors;
    // SAFETY: positions stay below the capacity, blocks below those of the cache, chunks below the splits, and heads below
    // those of the grid.
    unsafe {
        partial::partial::launch_unchecked(
            client,
            CubeCount::Static(splits as u32, key_heads as u32, batch as u32),
            CubeDim::new_1d(UNITS as u32),
            form.width,
            arg(query, heads * form.vectors),
            arg(keys, cache),
            arg(values, cache),
            arg(start, batch),
            arg(table, batch * chunks),
            arg(&sums, heads * splits * form.vectors),
            arg(&stats, heads * splits * 2),
            shape(),
            form,
            dtype.elem(),
        );
        fold::fold::launch_unchecked(
            client,
            CubeCount::Static(query_heads as u32, batch as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            form.width,
            arg(&sums, heads * splits * form.vectors),
            arg(&stats, heads * splits * 2),
            arg(start, batch),
            arg(y, heads * form.vectors),
            shape(),
            form,
            dtype.elem(),
        );
    }
    (form, sums)
}
