//! Sums: across warpgroups, across cubes of a cluster, and into y.

use super::Shape;
use crate::kernel::{
    gate::gated,
    ptx::{F4, U4, load_cluster_x4, load_shared_f4, pack_transposed, sync_cluster, sync_some},
};
use cubecl::prelude::*;

/// Where a plane's sums belong.
#[derive(CubeType)]
pub(super) struct Rows {
    /// The plane's first row of W.
    pub(super) row: usize,
    /// The first token, and the first that is stored: those before it belong to the tile before.
    pub(super) token: usize,
    pub(super) own: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    /// Whether the plane has rows at all.
    pub(super) exist: bool,
}

/// Waits for all who fold their sums together: the cube's warpgroups, or everybody in the cluster. Its barrier counts those
/// who bring too ([`attend_folds`]), which it may, since they have brought everything: clusters go on to no further tile.
#[cube]
fn meet(#[comptime] shape: Shape) {
    if comptime!(shape.plan.split > 1) {
        sync_cluster();
    } else {
        sync_some(comptime!(shape.plan.workers() as u32));
    }
}

/// What a plane that brings does while others fold.
#[cube]
pub(super) fn attend_folds(#[comptime] shape: Shape) {
    if comptime!(shape.plan.split > 1) {
        sync_plane();
        sync_cluster();
        sync_cluster();
    }
}

/// Stores the sums of a plane; where warpgroups or cubes divide k, after adding theirs in the order of k: first those
/// of a cube, then cube after cube.
#[cube]
pub(super) fn fold<F: Float, D: Size>(
    sums: Vector<f32, D>,
    shared: &mut Shared<[U4]>,
    start: u32,
    y: &mut [F],
    bias: &[F],
    rows: &Rows,
    #[comptime] shape: Shape,
) {
    let plan = comptime!(shape.plan);
    let tiles = comptime!(plan.tokens as usize / 8);
    if comptime!(plan.shares() == 1) {
        #[unroll]
        for j in 0..tiles {
            store::<F>(y, bias, tile::<D>(sums, j), rows, comptime!(8 * j), shape);
        }
    } else {
        let first = comptime!(shape.sums_at() / 16);
        let own = UNIT_POS as usize;
        let units = comptime!(plan.workers());
        if comptime!(shape.ends) {
            // The sums take the place of stages that other warpgroups may still read.
            sync_some(comptime!(units as u32));
        }
        #[unroll]
        for j in 0..tiles {
            shared[first + comptime!(j * units) + own] = U4::reinterpret(tile::<D>(sums, j));
        }
        meet(shape);
        // The units that hold the same rows, one a warpgroup; each takes its share of the token tiles.
        let group = comptime!(plan.workers() / plan.warpgroups_k as usize);
        let share =
            CUBE_POS_Y as usize * comptime!(plan.warpgroups_k as usize) + UNIT_POS as usize / group;
        let from = start + ((first + UNIT_POS as usize % group) * 16) as u32;
        #[unroll]
        for j in 0..tiles {
            if share == comptime!(j % plan.shares()) {
                let mut sum = F4::new(0.0f32);
                #[unroll]
                for other in 0..comptime!(plan.shares()) {
                    let (cube, warpgroup) = comptime!((
                        other / plan.warpgroups_k as usize,
                        other % plan.warpgroups_k as usize
                    ));
                    let distance = comptime!(((j * units + warpgroup * group) * 16) as u32);
                    if comptime!(plan.split > 1) {
                        sum += load_cluster_x4(from, comptime!(cube as u32), distance);
                    } else {
                        sum += load_shared_f4(from, distance);
                    }
                }
                store::<F>(y, bias, sum, rows, comptime!(8 * j), shape);
            }
        }
        // Also before the end: others may still read this cube's sums.
        meet(shape);
    }
}

/// The sums of token tile `j`.
#[cube]
fn tile<D: Size>(sums: Vector<f32, D>, #[comptime] j: usize) -> F4 {
    let mut tile = F4::new(0.0f32);
    #[unroll]
    for i in 0..4usize {
        tile.insert(i, sums.extract(comptime!(4 * j + i)));
    }
    tile
}

/// Rows g and g + 8 with tokens 2t and 2t + 1 of the eight from `token` on: two times eight columns of y, or of a gate
/// eight of which the lane holds both.
#[cube]
fn store<F: Float>(
    y: &mut [F],
    bias: &[F],
    sum: F4,
    rows: &Rows,
    #[comptime] token: usize,
    #[comptime] shape: Shape,
) {
    if comptime!(shape.gate.is_some()) {
        let (own, up) =
            (addend::<F>(bias, rows, 0usize, shape), addend::<F>(bias, rows, 8usize, shape));
        let even = gated(sum.extract(0usize) + own, sum.extract(2usize) + up, shape.gate);
        let odd = gated(sum.extract(1usize) + own, sum.extract(3usize) + up, shape.gate);
        put::<F>(y, even, odd, rows, rows.row / 2, rows.n / 2, token, shape);
    } else {
        #[unroll]
        for half in 0..2usize {
            let add = addend::<F>(bias, rows, comptime!(8 * half), shape);
            let even = sum.extract(comptime!(2 * half)) + add;
            let odd = sum.extract(comptime!(2 * half + 1)) + add;
            let first = rows.row + comptime!(8 * half);
            put::<F>(y, even, odd, rows, first, rows.n, token, shape);
        }
    }
}

/// What is added to the sums of row g of the eight that begin `distance` behind the plane's first.
#[cube]
fn addend<F: Float>(
    bias: &[F],
    rows: &Rows,
    #[comptime] distance: usize,
    #[comptime] shape: Shape,
) -> f32 {
    let mut add = Array::<f32>::new(1usize);
    add[0] = 0.0f32;
    if comptime!(shape.bias) {
        let row = rows.row + (UNIT_POS % 32) as usize / 4 + distance;
        add[0] = f32::cast_from(bias[min(row, rows.n - 1)]);
    }
    add[0]
}

/// Column g of the eight from `first` on, of `columns` in all, of tokens 2t and 2t + 1. Where two columns make a word,
/// they are turned so that four lanes write 16 bytes of a token: the lane of column g and tokens 2t, 2t + 1 takes token g and
/// columns 2t, 2t + 1.
#[cube]
fn put<F: Float>(
    y: &mut [F],
    even: f32,
    odd: f32,
    rows: &Rows,
    first: usize,
    columns: usize,
    #[comptime] token: usize,
    #[comptime] shape: Shape,
) {
    let lane = (UNIT_POS % 32) as usize;
    let (g, t) = (lane / 4, lane % 4);
    let m = rows.m;
    if comptime!(shape.y_pairs) {
        let turned = pack_transposed(even, odd, comptime!(shape.ty()));
        let token = rows.token + token + g;
        let column = first + 2 * t;
        if rows.exist && token >= rows.own && token < m && column < columns {
            // SAFETY: below m and the columns, of which there is an even number.
            let to = unsafe { y[token * columns + column..].as_ptr_unchecked() };
            gpu_asm!("st.global.b32 [{p}], {v};", p = in(_) to, v = in(_) u32::reinterpret(turned));
        }
    } else {
        let token = rows.token + token + 2 * t;
        let column = first + g;
        if rows.exist && column < columns {
            if token >= rows.own && token < m {
                y[token * columns + column] = F::cast_from(even);
            }
            if token + 1 >= rows.own && token + 1 < m {
                y[(token + 1) * columns + column] = F::cast_from(odd);
            }
        }
    }
}
