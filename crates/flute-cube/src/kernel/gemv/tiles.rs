//! On tensor cores, up to 64 rows of x: a plane takes 32 rows of the weight, and reads each byte of it once.
//!
//! `mma.m16n8k16` wants of a lane four neighbours of k two by two, eight apart. Which columns of k those are is nobody's
//! business as long as both operands agree: a lane takes eight that lie in 16 bytes, which are two instructions' worth,
//! and so does the lane that holds the same columns of x. Nothing is staged or shuffled.

use crate::{
    Dtype,
    kernel::ptx::{F4, U4, load_stream_x4, mma},
};
use cubecl::{ir::ElemType, prelude::*};

/// Planes of a cube. They share nothing but the first cache, where x is.
pub(super) const PLANES: usize = 4;
/// Rows of the weight that a plane takes: two tiles.
pub(super) const ROWS: usize = 32;
/// Columns that a plane's lanes take at once.
pub(super) const STEP: usize = 32;
/// Steps whose weights are asked for at once: 256 bytes a lane.
const AHEAD: usize = 4;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// Tiles of eight rows of x: those beyond m are computed and not written.
    pub(super) blocks: usize,
    pub(super) dtype: Dtype,
}

impl Form {
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
    let lane = UNIT_POS_X as usize;
    let (g, t) = (lane / 4, lane % 4);
    let steps = shape.eighths / 4;
    let mut first = (CUBE_POS_X as usize * PLANES + UNIT_POS_Y as usize) * ROWS;
    while first < shape.rows {
        let mut sums = Array::<F4>::new(comptime!(2 * form.blocks));
        #[unroll]
        for i in 0..comptime!(2 * form.blocks) {
            sums[i] = F4::new(0.0f32);
        }
        let mut step = 0usize.runtime();
        while step + AHEAD <= steps {
            add(x, weight, &mut sums, &shape, Place { first, step }, AHEAD, form);
            step += AHEAD;
        }
        while step < steps {
            add(x, weight, &mut sums, &shape, Place { first, step }, 1usize, form);
            step += 1;
        }
        #[unroll]
        for block in 0..comptime!(form.blocks) {
            #[unroll]
            for i in 0..8usize {
                // A sum's elements are two neighbouring tokens of row g, and of row g + 8.
                let row = first + comptime!(i / 2 * 8) + g;
                let token = comptime!(8 * block + i % 2) + 2 * t;
                if token < shape.m && row < shape.rows {
                    let sum = sums[comptime!(i / 4 * form.blocks + block)];
                    y[token * shape.rows + row] = F::cast_from(sum.extract(comptime!(i % 4)));
                }
            }
        }
        first += CUBE_COUNT_X as usize * comptime!(PLANES * ROWS);
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
    let mut held = Array::<U4>::new(comptime!(4 * ahead));
    #[unroll]
    for i in 0..ahead {
        // Rows g, g + 8, g + 16 and g + 24: two of each tile.
        #[unroll]
        for part in 0..4usize {
            let row = min(place.first + comptime!(8 * part) + g, shape.rows - 1);
            let at = 4 * (row * shape.stride + column + comptime!(4 * i));
            held[comptime!(4 * i + part)] = load_stream_x4(weight, at);
        }
    }
    #[unroll]
    for i in 0..ahead {
        #[unroll]
        for block in 0..comptime!(form.blocks) {
            let token = min(comptime!(8 * block) + g, shape.m - 1);
            let values = x[token * shape.eighths + column + comptime!(4 * i)];
            #[unroll]
            for tile in 0..2usize {
                let upper = held[comptime!(4 * i + 2 * tile)];
                let lower = held[comptime!(4 * i + 2 * tile + 1)];
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
