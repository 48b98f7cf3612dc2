//! On the matrix unit and in one launch: CUDA of compute capability 9.0 on, f16 and bf16, heads of a multiple of 16
//! features, buffers that begin where 16 bytes do (keys and values), two floats (rotations) or two halves. Everything else
//! takes the two kernels beside this one.
//!
//! The chunks that a sequence sees are [`STREAMS`] streams: stream s is chunks s, s + 8, s + 16, … A cluster of as many
//! cubes, or of 4, 2 or 1, takes the query heads that share a head of keys, and each cube its share of the streams, one
//! after the other. Each of its planes walks over 16 positions of every chunk, alone: it asks for their keys and values
//! some tiles ahead, into the next stream too, scores and weights them, and waits for nobody. Positions are the rows of
//! both products: `S = K·Qᵀ` leaves scores where, once turned 8 × 8 by 8 × 8, `Oᵀ = Vᵀ·Pᵀ` takes its weights, so that up
//! to eight heads cost what one does. At the end of a stream a plane sends what it has to the cubes that fold it, each a
//! share of the features, in a fixed order.
//!
//! Streams are as many for every sequence and folded as such, so its bits depend on it alone. How many cubes they are
//! dealt to, and how many tiles are asked for ahead, changes time and nothing else ([`form`] chooses both). A tile that is
//! not seen adds exact zeros, and a stream without chunks is nobody's.

mod fold;
mod form;
mod hand;
mod tile;
mod token;
mod walk;
mod weights;

pub(crate) use form::Form;

use super::{CACHE_BLOCK, CHUNK, MASKED, Seen, arg, seen};
use crate::{
    Attend, AttendBuffers, Limits, NextBuffers,
    kernel::{blocks::entries, prompt},
};
use cubecl::prelude::*;

/// Streams of chunks.
const STREAMS: usize = 8;
const PLANES: usize = 4;
/// What is folded: of each stream what each plane has.
const PARTS: usize = STREAMS * PLANES;
/// Positions of a tile, which a plane takes at once.
const ROWS: usize = CHUNK / PLANES;

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

    fn cubes(&self, form: Form) -> CubeCount {
        CubeCount::Static(form.cubes as u32, self.0.key_heads as u32, self.0.batch as u32)
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
            launch.cubes(form),
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

/// What a launch of the next token compiles, if this kernel serves `problem` with `buffers`.
pub(crate) fn form_next(problem: &Attend, buffers: &NextBuffers, limits: &Limits) -> Option<Form> {
    let NextBuffers { qkv, cos, sin, keys, values, y, .. } = buffers;
    let begins = [(qkv, 4), (cos, 8), (sin, 8), (keys, 16), (values, 16), (y, 4)];
    Form::of(problem, &begins, true, limits)
}

/// Rotates, stores and attends with what `buffers` hold, which were measured for `problem` and begin where `form` needs it.
pub(crate) fn launch_next(client: &Client, problem: &Attend, buffers: &NextBuffers, form: Form) {
    let NextBuffers { qkv, cos, sin, start, table, keys, values, y } = buffers;
    let Attend { batch, query_heads, key_heads, dim, capacity, dtype, .. } = *problem;
    let launch = Launch(problem);
    // SAFETY: as above; positions from the capacity on are not stored, and read the last row of the rotations.
    unsafe {
        walk::next::launch_unchecked(
            client,
            launch.cubes(form),
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
}
