//! On tensor cores, up to 64 rows of x: a cube takes 32 or 64 rows of the weight, and reads each byte of it once.
//!
//! `mma.m16n8k16` wants of a lane four neighbours of k two by two, eight apart. Which columns of k those are is nobody's
//! business as long as both operands agree: a lane takes eight that lie in 16 bytes, which are two instructions' worth,
//! and so does the lane that holds the same columns of x. Nothing is staged or shuffled. The planes of a cube take turns
//! along k, so that together they read a kilobyte of each row: with a plane a row's stretches of 256 bytes and 30 planes
//! a multiprocessor, 128256 × 4096 came at 2.9 TB/s on an H200 that reads 4.5.
//!
//! Every cube reads all of x, from the second cache where it is large: 64 rows of it are twice what 32 rows of the weight
//! are. So with many rows of x a cube takes twice the rows of the weight.

use crate::{
    Dtype,
    kernel::{
        overlap::{follow, lead},
        ptx::{F4, U4, load_stream_x4, mma},
    },
};
use cubecl::{ir::ElemType, prelude::*};

/// Planes of a cube.
pub(super) const PLANES: usize = 4;
/// Columns that a plane's lanes take at once.
pub(super) const STEP: usize = 32;
/// Steps of a plane's turn along k. They decide in which order a row is summed, so they are the same for any rows of x.
const TURN: usize = 4;
/// Rows of x, in eights, from which on a cube takes 64 rows of the weight.
const MANY: usize = 4;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// Tiles of eight rows of x: those beyond m are computed and not written.
    pub(super) blocks: usize,
    pub(super) dtype: Dtype,
    /// Of [`follow`].
    pub(super) overlaps: bool,
}

impl Form {
    /// Tiles of 16 rows of the weight that a cube takes.
    fn tiles(self) -> usize {
        if self.blocks >= MANY { 4 } else { 2 }
    }

    /// Rows of the weight that a cube takes.
    pub(super) fn rows(self) -> usize {
        16 * self.tiles()
    }

    /// Steps whose weights are asked for at once: 256 bytes a lane.
    fn ahead(self) -> usize {
        2 * TURN / self.tiles()
    }

    fn ty(self) -> &'static str {
        if self.dtype == Dtype::BF16 { "bf16" } else { "f16" }
    }
}

/// What is not compiled in.
#[derive(CubeLaunch, CubeType)]
pub(super) struct Shape {
    m: usize,
    /// Of the weight.
    rows: usize,
    /// Vectors of 16 bytes of a row of either.
    eighths: usize,
    /// Those from one row of the weight to the next.
    stride: usize,
}

#[cube(launch_unchecked)]
pub(super) fn tiles<F: Float>(
    x: &[U4],
    weight: &[u32],
    y: &mut [F],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let (lane, plane) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let (g, t) = (lane / 4, lane % 4);
    let steps = shape.eighths / 4;
    let first = CUBE_POS_X as usize * comptime!(form.rows());
    let own = comptime!(form.tiles() * form.blocks);
    let ahead = comptime!(form.ahead());
    let mut sums = Array::<F4>::new(own);
    #[unroll]
    for i in 0..own {
        sums[i] = F4::new(0.0f32);
    }
    lead(form.overlaps);
    follow(form.overlaps);
    let mut step = plane * TURN;
    while step < steps {
        #[unroll]
        for part in 0..comptime!(TURN / form.ahead()) {
            let step = step + comptime!(part * form.ahead());
            if step + ahead <= steps {
                add(x, weight, &mut sums, &shape, Place { first, step }, ahead, form);
            } else {
                for last in step..steps {
                    add(x, weight, &mut sums, &shape, Place { first, step: last }, 1usize, form);
                }
            }
        }
        step += PLANES * TURN;
    }
    // The first plane adds the others' sums, in their order.
    let mut shared = Shared::<[F4]>::new_slice(comptime!((PLANES - 1) * 32 * own));
    if plane > 0 {
        #[unroll]
        for i in 0..own {
            shared[((plane - 1) * own + i) * 32 + lane] = sums[i];
        }
    }
    sync_cube();
    if plane == 0 {
        #[unroll]
        for i in 0..own {
            #[unroll]
            for other in 0..comptime!(PLANES - 1) {
                sums[i] += shared[comptime!((other * own + i) * 32) + lane];
            }
        }
        #[unroll]
        for block in 0..comptime!(form.blocks) {
            #[unroll]
            for i in 0..comptime!(4 * form.tiles()) {
                // A sum's elements are two neighbouring tokens of row g, and of row g + 8.
                let row = first + comptime!(i / 2 * 8) + g;
                let token = comptime!(8 * block + i % 2) + 2 * t;
                if token < shape.m && row < shape.rows {
                    let sum = sums[comptime!(i / 4 * form.blocks + block)];
                    y[token * shape.rows + row] = F::cast_from(sum.extract(comptime!(i % 4)));
                }
            }
        }
    }
}

/// Where a plane stands.
#[derive(CubeType, Clone, Copy)]
struct Place {
    /// The first of its rows.
    first: usize,
    /// Its next columns.
    step: usize,
}

/// Adds the products of `ahead` steps, asking for all of the weight's before using one. What lies beyond the last row is
/// the last row, and is not written.
#[cube]
fn add(
    x: &[U4],
    weight: &[u32],
    sums: &mut Array<F4>,
    shape: &Shape,
    place: Place,
    #[comptime] ahead: usize,
    #[comptime] form: Form,
) {
    let lane = UNIT_POS_X as usize;
    let (g, t) = (lane / 4, lane % 4);
    let column = 4 * place.step + t;
    let parts = comptime!(2 * form.tiles());
    let mut held = Array::<U4>::new(comptime!(parts * ahead));
    #[unroll]
    for i in 0..ahead {
        // Rows g, g + 8, g + 16, …: two of each tile.
        #[unroll]
        for part in 0..parts {
            let row = min(place.first + comptime!(8 * part) + g, shape.rows - 1);
            let at = 4 * (row * shape.stride + column + comptime!(4 * i));
            held[comptime!(parts * i + part)] = load_stream_x4(weight, at);
        }
    }
    // No load may sink below this: compilers spread them among the products otherwise, six on the way at a time.
    sync_plane();
    #[unroll]
    for i in 0..ahead {
        #[unroll]
        for block in 0..comptime!(form.blocks) {
            let token = min(comptime!(8 * block) + g, shape.m - 1);
            let values = x[token * shape.eighths + column + comptime!(4 * i)];
            #[unroll]
            for tile in 0..comptime!(form.tiles()) {
                let upper = held[comptime!(parts * i + 2 * tile)];
                let lower = held[comptime!(parts * i + 2 * tile + 1)];
                let at = comptime!(tile * form.blocks + block);
                #[unroll]
                for half in 0..2usize {
                    let (p, q) = comptime!((2 * half, 2 * half + 1));
                    sums[at] = mma(
                        upper.extract(p),
                        lower.extract(p),
                        upper.extract(q),
                        lower.extract(q),
                        values.extract(p),
                        values.extract(q),
                        sums[at],
                        comptime!(form.ty()),
                    );
                }
            }
        }
    }
}
