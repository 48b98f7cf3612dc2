//! Sums: across planes, across splits, and into y.

use super::{Shape, ptx::F4, weight::first_tile};
use cubecl::prelude::*;

/// Sums over planes, ascending, of `slots` blocks of rows that lie a grid apart, and their place in y.
#[cube]
pub(super) fn fold_planes<F: Float, Y: Float>(
    sums: &Shared<[F4]>,
    y: &mut [Y],
    bias: &[F],
    slots: usize,
    row_block: usize,
    token_first: usize,
    m: usize,
    n: usize,
    #[comptime] shape: Shape,
) {
    let items = comptime!(shape.planes_n() * shape.plane_sums());
    let mut item = UNIT_POS as usize;
    while item < slots * items {
        let (slot, rest) = (item / items, item % items);
        let first =
            slot * comptime!(shape.planes_k() * shape.planes_n() * shape.plane_sums()) + rest;
        let mut sum = sums[first];
        #[unroll]
        for p in 1..comptime!(shape.planes_k()) {
            sum += sums[first + p * items];
        }
        let (plane_n, rest) =
            (rest / comptime!(shape.plane_sums()), rest % comptime!(shape.plane_sums()));
        let (accumulator, live) =
            (rest / comptime!(shape.plan.live_lanes()), rest % comptime!(shape.plan.live_lanes()));
        let lane = live / comptime!(shape.live()) * 4 + live % comptime!(shape.live());
        let (i, j) = (
            accumulator / comptime!(shape.token_tiles()),
            accumulator % comptime!(shape.token_tiles()),
        );
        let tile = first_tile(row_block + slot * CUBE_COUNT_X as usize, plane_n, shape) + i;
        store::<F, Y>(y, bias, sum, tile, token_first + j * 8, lane, m, n, shape);
        item += comptime!(shape.units());
    }
}

/// One accumulator: rows g and g + 8 of the tile, columns 2t and 2t + 1 of the token tile.
#[cube]
pub(super) fn store<F: Float, Y: Float>(
    y: &mut [Y],
    bias: &[F],
    sum: F4,
    tile: usize,
    token_first: usize,
    lane: usize,
    m: usize,
    n: usize,
    #[comptime] shape: Shape,
) {
    let base = CUBE_POS_Z as usize * m * n;
    #[unroll]
    for i in 0..4usize {
        let row = tile * 16 + lane / 4 + comptime!(i / 2 * 8);
        let token = token_first + lane % 4 * 2 + comptime!(i % 2);
        // Spare columns of a cube with fewer than 8 tokens repeat the first ones.
        let own = lane % 4 * 2 + comptime!(i % 2) < comptime!((shape.plan.tokens as usize).min(8));
        if own && row < n && token < m {
            let mut value = sum.extract(i);
            if comptime!(shape.bias) {
                value += f32::cast_from(bias[row]);
            }
            y[base + token * n + row] = Y::cast_from(value);
        }
    }
}

/// `y[i] = Σ_s partials[s][i] + bias`, s ascending.
#[cube(launch_unchecked)]
pub(super) fn fold_splits<F: Float>(
    partials: &[f32],
    bias: &[F],
    y: &mut [F],
    n: u32,
    #[comptime] split: u32,
    #[comptime] with_bias: bool,
) {
    let len = y.len();
    let mut i = ABSOLUTE_POS;
    while i < len {
        let mut sum = partials[i];
        #[unroll]
        for s in 1..comptime!(split as usize) {
            sum += partials[s * len + i];
        }
        if comptime!(with_bias) {
            sum += f32::cast_from(bias[i % n as usize]);
        }
        y[i] = F::cast_from(sum);
        i += CUBE_COUNT * CUBE_DIM as usize;
    }
}
