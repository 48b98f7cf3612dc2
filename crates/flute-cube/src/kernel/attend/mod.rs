//! Attention of one query a sequence over its cache, split over positions.
//!
//! A cube takes the query heads that share a head of keys, and [`CHUNK`] positions: scores, their greatest and the sum
//! of their exponentials, and the values weighted by them (`partial`). A second kernel folds the chunks of a head
//! (`fold`). Chunks begin at multiples of their length and are folded in an order that their number alone decides, so
//! that a sequence gives the same bits in any batch, any cache and any blocks of it.
//!
//! While sequences are decoded, the first kernel also rotates q and k of their new tokens, and stores k and v (`next`).
//!
//! Where there are clusters and a matrix unit, one kernel takes the place of both (`cluster`).

pub(crate) mod cluster;
mod fold;
pub(crate) mod next;
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
    /// The width in which rotations are read, where the kernel is the one that rotates.
    rotated: Option<usize>,
    dtype: Dtype,
}

impl Form {
    /// For `typed` buffers, which hold vectors of heads, in launches that begin with a rotation by `rotations` or without
    /// one.
    fn new(
        client: &Client,
        problem: &Attend,
        typed: [&Handle; 4],
        rotations: Option<[&Handle; 2]>,
        limits: &Limits,
    ) -> Self {
        let Attend { query_heads, key_heads, dim, cap, window, dtype, .. } = *problem;
        let typed = typed.map(|buffer| (buffer, dtype.size()));
        // Sums have the order that this width gives them: rotations, whose elements may be wider, play no part in it.
        let vector = width(client, dim / PARTS, &typed);
        let rotated =
            rotations.map(|tables| width(client, vector, &tables.map(|table| (table, 4))));
        let group = query_heads / key_heads;
        let rows = rows(problem, rotated.is_some());
        let fits =
            |heads: &usize| bytes(problem, rows, *heads) <= limits.shared_bytes.min(48 << 10);
        let together = [8, 4, 2].into_iter().find(|heads| *heads <= group && fits(heads));
        Self {
            width: vector,
            vectors: dim / vector,
            group,
            together: together.unwrap_or(1),
            capped: cap.is_some(),
            windowed: window.is_some(),
            rotated,
            dtype,
        }
    }

    /// Rows of a head's features that a cube keeps: queries, and behind them the new key and the new value if it may have
    /// rotated those.
    fn rows(self) -> usize {
        self.group + 2 * usize::from(self.rotated.is_some())
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

/// Units and bytes of shared memory that a cube takes, one that rotates or another.
pub(crate) fn needed(problem: &Attend, rotated: bool) -> (usize, usize) {
    (UNITS, bytes(problem, rows(problem, rotated), 1))
}

/// See [`Form::rows`].
fn rows(problem: &Attend, rotated: bool) -> usize {
    problem.query_heads / problem.key_heads + 2 * usize::from(rotated)
}

/// Bytes of shared memory if `rows` of features are kept and the teams of `together` heads are folded at once; vectors are
/// at most 8 wide.
fn bytes(problem: &Attend, rows: usize, together: usize) -> usize {
    let group = problem.query_heads / problem.key_heads;
    let scores = group * (PARTS + 1) * CHUNK + 2 * group * PIECES;
    4 * (rows * problem.dim + scores + together * 8 * UNITS)
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
fn seen(start: i32, capacity: usize, window: usize, #[comptime] windowed: bool) -> Seen {
    // A negative start sees nothing.
    let end = min(u32::cast_from(max(start + 1, 0)) as usize, capacity);
    let first = if comptime!(windowed) { end - min(end, window) } else { 0usize.runtime() };
    Seen { first, end }
}

/// What both kernels of a launch are given.
struct Launch<'a> {
    client: &'a Client,
    problem: &'a Attend,
    form: Form,
    /// See [`Shape::splits`].
    splits: usize,
    /// Between the kernels: the weighted values of chunks.
    sums: Handle,
    /// Their greatest scores, and the sums of their weights.
    stats: Handle,
}

impl<'a> Launch<'a> {
    fn new(client: &'a Client, problem: &'a Attend, form: Form) -> Self {
        let Attend { batch, query_heads, capacity, window, .. } = *problem;
        let chunks = entries(capacity);
        // A window that begins in the middle of a chunk reaches into one more.
        let splits = window.map_or(chunks, |window| chunks.min((window + CHUNK - 2) / CHUNK + 1));
        let heads = batch * query_heads;
        let (sums, stats) = (
            client.empty(4 * heads * splits * form.vectors * form.width),
            client.empty(8 * heads * splits),
        );
        Self { client, problem, form, splits, sums, stats }
    }

    /// Of the first kernel.
    fn cubes(&self) -> CubeCount {
        let Attend { batch, key_heads, .. } = *self.problem;
        CubeCount::Static(self.splits as u32, key_heads as u32, batch as u32)
    }

    fn shape(&self) -> ShapeLaunch {
        let Attend { capacity, blocks, scale, cap, window, .. } = *self.problem;
        let (window, cap) = (window.unwrap_or(0), cap.unwrap_or(1.0));
        let (scale, cap) = (scale as f32, cap as f32);
        ShapeLaunch::new(capacity, blocks, entries(capacity), self.splits, window, scale, cap)
    }

    /// Vectors of the cache.
    fn cache(&self) -> usize {
        self.problem.blocks * self.problem.key_heads * CHUNK * self.form.vectors
    }

    /// Entries of the table.
    fn entries(&self) -> usize {
        self.problem.batch * entries(self.problem.capacity)
    }

    /// Vectors of all heads of q, and of the result.
    fn heads(&self) -> usize {
        self.problem.batch * self.problem.query_heads * self.form.vectors
    }

    fn sums(&self) -> BufferArg {
        arg(&self.sums, self.heads() * self.splits)
    }

    fn stats(&self) -> BufferArg {
        arg(&self.stats, self.problem.batch * self.problem.query_heads * self.splits * 2)
    }

    /// Launches the second kernel.
    fn fold(&self, start: &Handle, y: &Handle) {
        let Attend { batch, query_heads, dtype, .. } = *self.problem;
        // SAFETY: chunks stay below the splits, and heads below those of the grid.
        unsafe {
            fold::fold::launch_unchecked(
                self.client,
                CubeCount::Static(query_heads as u32, batch as u32, 1),
                CubeDim::new_1d(UNITS as u32),
                self.form.width,
                self.sums(),
                self.stats(),
                arg(start, batch),
                arg(y, self.heads()),
                self.shape(),
                // It is one kernel, whoever rotates.
                Form { rotated: None, ..self.form },
                dtype.elem(),
            );
        }
    }
}

fn arg(handle: &Handle, len: usize) -> BufferArg {
    // SAFETY: every buffer was measured against the shape of the problem, or was made for it.
    unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
}

/// Attends with what `buffers` hold, which were measured for `problem`. Returns the buffer between the two kernels, too.
pub(crate) fn launch(
    client: &Client,
    problem: &Attend,
    buffers: &AttendBuffers,
    limits: &Limits,
) -> (Form, Handle) {
    let AttendBuffers { query, keys, values, start, table, y } = buffers;
    let form = Form::new(client, problem, [query, keys, values, y], None, limits);
    let launch = Launch::new(client, problem, form);
    // SAFETY: positions stay below the capacity, blocks below those of the cache, chunks below the splits, and heads below
    // those of the grid.
    unsafe {
        partial::partial::launch_unchecked(
            client,
            launch.cubes(),
            CubeDim::new_1d(UNITS as u32),
            form.width,
            arg(query, launch.heads()),
            arg(keys, launch.cache()),
            arg(values, launch.cache()),
            arg(start, problem.batch),
            arg(table, launch.entries()),
            launch.sums(),
            launch.stats(),
            launch.shape(),
            form,
            problem.dtype.elem(),
        );
    }
    launch.fold(start, y);
    (form, launch.sums)
}
