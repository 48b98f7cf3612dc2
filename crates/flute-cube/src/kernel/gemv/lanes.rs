//! Without a matrix unit: a plane takes some rows of the weight and all of x.
//!
//! Lanes take neighbouring vectors, so that a plane reads whole lines of each of its rows, and asks for several of each
//! row before it uses the first: on an H200 some 40 kB must be on the way to every multiprocessor. x comes from the
//! first cache.

use crate::Dtype;
use cubecl::{ir::ElemType, prelude::*};

/// Rows of the weight that a plane takes.
pub(super) const ROWS: usize = 4;
/// Vectors of each of those rows that are asked for at once.
const AHEAD: usize = 4;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// Rows of x: those beyond m are computed and not written.
    pub(super) tokens: usize,
    pub(super) width: usize,
    /// Units that share a row.
    pub(super) lanes: usize,
    pub(super) dtype: Dtype,
}

/// What is not compiled in.
#[derive(CubeLaunch, CubeType)]
pub(super) struct Shape {
    m: usize,
    /// Of the weight.
    rows: usize,
    /// Vectors of a row of either.
    vectors: usize,
    /// Those from one row of the weight to the next.
    stride: usize,
}

#[cube(launch_unchecked)]
pub(super) fn lanes<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    y: &mut [F],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let lane = UNIT_POS as usize % form.lanes;
    let teams = CUBE_DIM as usize / form.lanes;
    let step = CUBE_COUNT_X as usize * teams * ROWS;
    let mut first = (CUBE_POS_X as usize * teams + UNIT_POS as usize / form.lanes) * ROWS;
    // The same for all lanes of a plane, which exchange sums below.
    while first < shape.rows {
        let mut sums = Array::<f32>::new(comptime!(ROWS * form.tokens));
        #[unroll]
        for i in 0..comptime!(ROWS * form.tokens) {
            sums[i] = 0.0f32;
        }
        let mut at = lane;
        while at + comptime!((AHEAD - 1) * form.lanes) < shape.vectors {
            add::<F, N>(x, weight, &mut sums, &shape, Place { first, at }, AHEAD, form);
            at += comptime!(AHEAD * form.lanes);
        }
        while at < shape.vectors {
            add::<F, N>(x, weight, &mut sums, &shape, Place { first, at }, 1usize, form);
            at += form.lanes;
        }
        #[unroll]
        for i in 0..comptime!(ROWS * form.tokens) {
            #[unroll]
            for bit in 0..comptime!(form.lanes.ilog2() as usize) {
                sums[i] = sums[i] + plane_shuffle_xor(sums[i], comptime!(1u32 << bit));
            }
        }
        if lane == 0 {
            #[unroll]
            for token in 0..comptime!(form.tokens) {
                #[unroll]
                for row in 0..ROWS {
                    if token < shape.m && first + row < shape.rows {
                        y[token * shape.rows + first + row] =
                            F::cast_from(sums[comptime!(row * form.tokens + token)]);
                    }
                }
            }
        }
        first += step;
    }
}

/// Where a lane stands.
#[derive(CubeType, Clone, Copy)]
struct Place {
    /// The first of the plane's rows.
    first: usize,
    /// The lane's next vector of each.
    at: usize,
}

/// Adds the products of `ahead` vectors of each row, asking for all of the weight's before using one. What lies beyond
/// the last row is the last row, and is not written.
#[cube]
fn add<F: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<F, N>],
    sums: &mut Array<f32>,
    shape: &Shape,
    place: Place,
    #[comptime] ahead: usize,
    #[comptime] form: Form,
) {
    let mut held = Array::<Vector<F, N>>::new(comptime!(ROWS * ahead));
    #[unroll]
    for row in 0..ROWS {
        let start = min(place.first + row, shape.rows - 1) * shape.stride + place.at;
        #[unroll]
        for i in 0..ahead {
            held[comptime!(row * ahead + i)] = weight[start + comptime!(i * form.lanes)];
        }
    }
    #[unroll]
    for i in 0..ahead {
        #[unroll]
        for token in 0..comptime!(form.tokens) {
            let start = min(token.runtime(), shape.m - 1) * shape.vectors + place.at;
            let values = x[start + comptime!(i * form.lanes)];
            #[unroll]
            for row in 0..ROWS {
                let weights = held[comptime!(row * ahead + i)];
                let mut sum = sums[comptime!(row * form.tokens + token)];
                #[unroll]
                for j in 0..comptime!(form.width) {
                    sum += f32::cast_from(weights.extract(j)) * f32::cast_from(values.extract(j));
                }
                sums[comptime!(row * form.tokens + token)] = sum;
            }
        }
    }
}
