//! On the matrix unit and in one launch: CUDA of compute capability 9.0 on, f16 and bf16, heads of a multiple of 16
//! features, buffers that begin where 16 bytes do (keys and values), two floats (rotations) or two halves. Everything else
//! takes the two kernels beside this one.
//!
//! A cluster of [`CUBES`] cubes takes the query heads that share a head of keys. Cube c walks over chunks c, c + 8, c + 16, …
//! of those that its sequence sees, and each of its planes over 16 positions of every chunk, alone: it asks for their keys
//! and values some tiles ahead, scores and weights them, and waits for nobody. Positions are the rows of both products:
//! `S = K·Qᵀ` leaves scores where, once turned 8 × 8 by 8 × 8, `Oᵀ = Vᵀ·Pᵀ` takes its weights, so that up to eight heads cost what
//! one does. At the end the planes of all cubes fold what they have, in a fixed order, through each other's shared memory.
//!
//! Cubes of a cluster are as many for every sequence, so its bits depend on it alone. How many tiles are asked for ahead does
//! not change them. A tile that is not seen adds exact zeros.

mod fold;
mod tile;
mod token;
mod walk;
mod weights;

use super::{CACHE_BLOCK, CHUNK, MASKED, Seen, arg, seen};
use crate::{
    Attend, AttendBuffers, Dtype, Limits, NextBuffers,
    kernel::{blocks::entries, prompt},
};
use cubecl::{prelude::*, server::Handle};

/// Cubes of a cluster: as many as every such device runs.
const CUBES: usize = 8;
const PLANES: usize = 4;
/// Positions of a tile, which a plane takes at once.
const ROWS: usize = CHUNK / PLANES;
/// Tiles that a plane may ask for ahead.
const STAGES: [usize; 4] = [1, 2, 3, 6];

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// Tiles of a plane that are on their way at once.
    stages: usize,
    dim: usize,
    /// Query heads that share a head of keys.
    group: usize,
    capped: bool,
    windowed: bool,
    /// Whether the kernel rotates and stores the new token.
    rotates: bool,
    bf16: bool,
}

impl Form {
    /// That of `problem`, if it can be served; `buffers` with the bytes that each must begin at a multiple of.
    fn of(
        problem: &Attend,
        buffers: &[(&Handle, u64)],
        rotates: bool,
        limits: &Limits,
    ) -> Option<Self> {
        let Attend { batch, query_heads, key_heads, dim, capacity, cap, window, dtype, .. } =
            *problem;
        let begins = |(buffer, bytes): &(&Handle, u64)| {
            buffer.offset_start.unwrap_or(0).is_multiple_of(*bytes)
        };
        let form = Self {
            stages: 1,
            dim,
            group: query_heads / key_heads,
            capped: cap.is_some(),
            windowed: window.is_some(),
            rotates,
            bf16: dtype == Dtype::BF16,
        };
        let served = limits.mma && limits.bulk && dtype != Dtype::F32 && dim.is_multiple_of(16);
        if !(served && form.bytes() <= limits.shared_bytes && buffers.iter().all(begins)) {
            return None;
        }
        // Clusters do not fill a device: with half as much again as there are cubes, all of them run at once.
        let cubes = CUBES * batch * key_heads;
        let resident =
            [1, 2].into_iter().find(|cubes_of| 3 * cubes <= 2 * cubes_of * limits.processors);
        // Of the memory of a multiprocessor each cube loses a kilobyte.
        let room = limits.shared_bytes / resident.unwrap_or(3) - 1024;
        let chunks = window.map_or(entries(capacity), |window| {
            entries(capacity).min((window + CHUNK - 2) / CHUNK + 1)
        });
        let deep = STAGES.into_iter().map(|stages| Self { stages, ..form });
        let mut fits = deep.filter(|form| form.stages == 1 || form.bytes() <= room);
        let enough = |form: &Self| form.stages >= chunks.div_ceil(CUBES);
        fits.clone().find(enough).or(fits.next_back())
    }

    /// A row of keys in shared memory, in vectors of 16 bytes: an odd number, so that `ldmatrix` meets no bank twice.
    fn stride(self) -> usize {
        self.dim / 8 + 1
    }

    /// Vectors of the keys of a tile, and of its values.
    fn side(self) -> usize {
        ROWS * self.stride()
    }

    /// Vectors of the tiles of a plane.
    fn ring(self) -> usize {
        2 * self.stages * self.side()
    }

    /// Tiles of eight heads.
    fn columns(self) -> usize {
        self.group.div_ceil(8)
    }

    /// Tiles of 16 features by eight heads: vectors of four weighted values that a lane holds.
    fn sums(self) -> usize {
        self.columns() * self.dim / 16
    }

    /// Where a plane leaves what it knows of its scores, in vectors behind its weighted values, which take the place of its
    /// first tile. A tile has 32 vectors more than values for 16 heads.
    fn stats_at(self) -> usize {
        32 * self.sums()
    }

    /// Where the planes of a cube meet.
    fn meeting_at(self) -> usize {
        PLANES * self.ring()
    }

    /// Vectors of 16 bytes of shared memory.
    fn vectors(self) -> usize {
        self.meeting_at() + 2 * 32 * PLANES
    }

    fn bytes(self) -> usize {
        16 * self.vectors()
    }

    fn ty(self) -> &'static str {
        if self.bf16 { "bf16" } else { "f16" }
    }
}

/// What is not compiled in.
#[derive(CubeLaunch, CubeType)]
struct Shape {
    capacity: usize,
    /// Of the cache.
    blocks: usize,
    /// Of the table, for each sequence.
    entries: usize,
    /// Positions that a token sees, itself among them; read only if there is a window.
    window: usize,
    /// Factor of the products of q and k such that weights are powers of two, and the cap in their units.
    scale: f32,
    cap: f32,
}

/// The arguments of a launch.
struct Launch<'a>(&'a Attend);

impl Launch<'_> {
    fn shape(&self) -> ShapeLaunch {
        let Attend { capacity, blocks, window, .. } = *self.0;
        let [scale, cap] = prompt::scale(self.0).map(|factor| factor as f32);
        ShapeLaunch::new(capacity, blocks, entries(capacity), window.unwrap_or(0), scale, cap)
    }

    fn cubes(&self) -> CubeCount {
        CubeCount::Static(CUBES as u32, self.0.key_heads as u32, self.0.batch as u32)
    }

    /// Vectors of 16 bytes.
    fn cache(&self) -> usize {
        self.0.blocks * self.0.key_heads * CACHE_BLOCK * self.0.dim / 8
    }

    /// Words of `heads` heads of each sequence.
    fn heads(&self, heads: usize) -> usize {
        self.0.batch * heads * self.0.dim / 2
    }

    fn entries(&self) -> usize {
        self.0.batch * entries(self.0.capacity)
    }
}

/// Attends with what `buffers` hold, which were measured for `problem`, if this kernel serves it.
pub(crate) fn launch(
    client: &Client,
    problem: &Attend,
    buffers: &AttendBuffers,
    limits: &Limits,
) -> Option<Form> {
    let AttendBuffers { query, keys, values, start, table, y } = buffers;
    let form = Form::of(problem, &[(query, 4), (keys, 16), (values, 16), (y, 4)], false, limits)?;
    let launch = Launch(problem);
    // SAFETY: positions that are read stay below the capacity, blocks below those of the cache, and heads below those of the
    // grid.
    unsafe {
        walk::attend::launch_unchecked(
            client,
            launch.cubes(),
            CubeDim::new_2d(32, PLANES as u32),
            arg(query, launch.heads(problem.query_heads)),
            arg(keys, launch.cache()),
            arg(values, launch.cache()),
            arg(start, problem.batch),
            arg(table, launch.entries()),
            arg(y, launch.heads(problem.query_heads)),
            launch.shape(),
            form,
        );
    }
    Some(form)
}

/// Rotates, stores and attends with what `buffers` hold, which were measured for `problem`, if this kernel serves it.
pub(crate) fn launch_next(
    client: &Client,
    problem: &Attend,
    buffers: &NextBuffers,
    limits: &Limits,
) -> Option<Form> {
    let NextBuffers { qkv, cos, sin, start, table, keys, values, y } = buffers;
    let begins = [(qkv, 4), (cos, 8), (sin, 8), (keys, 16), (values, 16), (y, 4)];
    let form = Form::of(problem, &begins, true, limits)?;
    let Attend { batch, query_heads, key_heads, dim, capacity, dtype, .. } = *problem;
    let launch = Launch(problem);
    // SAFETY: as above; positions from the capacity on are not stored, and read the last row of the rotations.
    unsafe {
        walk::next::launch_unchecked(
            client,
            launch.cubes(),
            CubeDim::new_2d(32, PLANES as u32),
            arg(qkv, launch.heads(query_heads + 2 * key_heads)),
            arg(cos, capacity * dim / 4),
            arg(sin, capacity * dim / 4),
            arg(start, batch),
            arg(table, launch.entries()),
            arg(keys, launch.cache()),
            arg(values, launch.cache()),
            arg(y, launch.heads(query_heads)),
            launch.shape(),
            form,
            dtype.elem(),
        );
    }
    Some(form)
}
