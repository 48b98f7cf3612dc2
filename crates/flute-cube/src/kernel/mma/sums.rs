//! Sums: across planes, across splits, and into y.

use super::{
    Shape,
    ptx::{F4, load_cluster_x4, shared_address, sync_cluster},
};
use crate::kernel::gate::gated;
use cubecl::prelude::*;

/// Rows of W whose sums are stored: from row tile `tile` on, below row `end`; and the shape of y.
#[derive(CubeType)]
pub(super) struct Rows {
    pub(super) tile: usize,
    pub(super) end: usize,
    pub(super) m: usize,
    pub(super) n: usize,
}

/// Sums of all columns of a token, where it has several, in the columns that [`store`] takes.
#[cube]
pub(super) fn sum_columns(acc: F4, #[comptime] shape: Shape) -> F4 {
    let tokens = comptime!(shape.plan.tokens as usize);
    let mut sum = acc;
    if comptime!(tokens == 1) {
        sum.insert(0usize, acc.extract(0usize) + acc.extract(1usize));
        sum.insert(2usize, acc.extract(2usize) + acc.extract(3usize));
    }
    // Lanes of a row whose columns belong to one token, of which a lane has two.
    let nearest = comptime!((tokens / 2).max(1));
    let farthest = comptime!(tokens * shape.token_columns() / 4);
    #[unroll]
    for step in 0..2u32 {
        let distance = comptime!(1u32 << step);
        if comptime!(distance as usize >= nearest && distance as usize <= farthest) {
            // Of one token the second column has joined the first.
            #[unroll]
            for i in 0..comptime!(if tokens == 1 { 2usize } else { 4 }) {
                let at = comptime!(if tokens == 1 { 2 * i } else { i });
                let value = sum.extract(at);
                sum.insert(at, value + plane_shuffle_xor(value, distance));
            }
        }
    }
    sum
}

/// The sums of two row tiles, of which each has the first column alone: those of `second` in the second.
#[cube]
pub(super) fn pair(first: F4, second: F4) -> F4 {
    let mut both = first;
    both.insert(1usize, second.extract(0usize));
    both.insert(3usize, second.extract(2usize));
    both
}

/// What [`pair`] took as its second.
#[cube]
fn second(both: F4) -> F4 {
    let mut second = both;
    second.insert(0usize, both.extract(1usize));
    second.insert(2usize, both.extract(3usize));
    second
}

/// Waits for all who fold their sums together: the cube, or its cluster.
#[cube]
pub(super) fn meet(#[comptime] shape: Shape) {
    if comptime!(shape.plan.cluster) {
        sync_cluster();
    } else {
        sync_cube();
    }
}

/// Sums over planes, ascending, of `slots` blocks of rows one behind the other, and their place in y. In a cluster each
/// cube takes its share of them, and sums over the cubes in the order of k.
#[cube]
pub(super) fn fold_planes<F: Float, Y: Float>(
    sums: &Shared<[F4]>,
    y: &mut [Y],
    bias: &[F],
    slots: usize,
    rows: &Rows,
    token_first: usize,
    #[comptime] shape: Shape,
) {
    let items = comptime!(shape.planes_n() * shape.plane_sums());
    let cubes = comptime!(if shape.plan.cluster { shape.plan.split as usize } else { 1 });
    // SAFETY: the address of shared memory that lives as long as the kernel.
    let start = unsafe { sums.as_ptr_unchecked() };
    let own = CUBE_POS_Z as usize * comptime!(shape.plan.cluster as usize);
    let mut item = own * comptime!(shape.units()) + UNIT_POS as usize;
    while item < slots * items {
        let (slot, rest) = (item / items, item % items);
        let first = slot * comptime!(shape.planes_k()) * items + rest;
        let mut sum = F4::new(0.0f32);
        if comptime!(shape.plan.cluster) {
            let address = shared_address::<F4>(start) + (first * 16) as u32;
            #[unroll]
            for cube in 0..cubes {
                #[unroll]
                for p in 0..comptime!(shape.planes_k()) {
                    sum += load_cluster_x4(
                        address,
                        comptime!(cube as u32),
                        comptime!((p * items * 16) as u32),
                    );
                }
            }
        } else {
            sum += sums[first];
            #[unroll]
            for p in 1..comptime!(shape.planes_k()) {
                sum += sums[first + p * items];
            }
        }
        let (plane_n, rest) =
            (rest / comptime!(shape.plane_sums()), rest % comptime!(shape.plane_sums()));
        let (accumulator, live) =
            (rest / comptime!(shape.plan.live_lanes()), rest % comptime!(shape.plan.live_lanes()));
        let lane = live / comptime!(shape.live()) * 4 + live % comptime!(shape.live());
        let paired = comptime!(shape.plan.paired());
        let (i, j) = (
            accumulator / comptime!(shape.token_tiles()) * paired,
            accumulator % comptime!(shape.token_tiles()),
        );
        let tile =
            (slot * comptime!(shape.planes_n()) + plane_n) * comptime!(shape.row_tiles()) + i;
        store::<F, Y>(y, bias, sum, rows, tile, token_first + j * 8, lane, shape);
        if comptime!(paired == 2) {
            store::<F, Y>(y, bias, second(sum), rows, tile + 1, token_first, lane, shape);
        }
        item += comptime!(cubes * shape.units());
    }
}

/// One accumulator: rows g and g + 8 of tile `rows.tile + i`, columns 2t and 2t + 1 of the token tile. Of a gate those rows
/// are gate and up of one feature.
#[cube]
pub(super) fn store<F: Float, Y: Float>(
    y: &mut [Y],
    bias: &[F],
    sum: F4,
    rows: &Rows,
    i: usize,
    token_first: usize,
    lane: usize,
    #[comptime] shape: Shape,
) {
    // Shares of a split lie one behind the other; a cluster has but one result.
    let share = CUBE_POS_Z as usize * comptime!(!shape.plan.cluster as usize);
    let base = share * rows.m * rows.n;
    #[unroll]
    for part in 0..comptime!(if shape.gate.is_some() { 2usize } else { 4 }) {
        let row = (rows.tile + i) * 16 + lane / 4 + comptime!(part / 2 * 8);
        let token = token_first + lane % 4 * 2 + comptime!(part % 2);
        // Spare columns of a cube with fewer than 8 tokens repeat the first ones.
        let own =
            lane % 4 * 2 + comptime!(part % 2) < comptime!((shape.plan.tokens as usize).min(8));
        if own && row < rows.end && token < rows.m {
            let mut value = sum.extract(part);
            if comptime!(shape.bias) {
                value += f32::cast_from(bias[row]);
            }
            if comptime!(shape.gate.is_some()) {
                let mut up = sum.extract(comptime!(part + 2));
                if comptime!(shape.bias) {
                    up += f32::cast_from(bias[row + 8]);
                }
                let column = (rows.tile + i) * 8 + lane / 4;
                let result = gated(value, up, shape.gate);
                y[token * (rows.n / 2) + column] = Y::cast_from(result);
            } else {
                y[base + token * rows.n + row] = Y::cast_from(value);
            }
        }
    }
}
