//! What the planes of a cluster have, into y: first that of the same plane of every cube, cube after cube, then the planes.

use super::{
    CUBES, Form, MASKED, PLANES,
    walk::address_of,
    weights::{Running, base_of},
};
use crate::kernel::{
    prompt::ptx::{exchange, exp2, pack_transposed, reciprocal},
    ptx::{F4, U4, leave_cluster, load_cluster_x4, sync_cluster},
};
use cubecl::prelude::*;

/// Every cube takes the tiles of 16 features by eight heads that are a multiple of the cubes behind its own number.
#[cube]
pub(super) fn fold(
    sums: &Array<F4>,
    running: &Running,
    shared: &mut Shared<[U4]>,
    y: &mut [u32],
    #[comptime] form: Form,
) {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let plane = UNIT_POS_Y as usize;
    let (tiles, stats_at) = comptime!((form.dim / 16, form.stats_at()));
    // The plane's own tiles are used up.
    let own = plane * comptime!(form.ring());
    #[unroll]
    for i in 0..comptime!(form.sums()) {
        shared[own + comptime!(32 * i) + lane] = U4::reinterpret(sums[i]);
    }
    #[unroll]
    for j in 0..comptime!(form.columns()) {
        let mut stats = F4::new(0.0f32);
        #[unroll]
        for e in 0..2usize {
            let mut total = running.totals[comptime!(2 * j + e)];
            total += exchange(total, 4u32);
            total += exchange(total, 8u32);
            total += exchange(total, 16u32);
            stats.insert(e, running.tops[comptime!(2 * j + e)]);
            stats.insert(comptime!(e + 2), total);
        }
        if lane < 4 {
            shared[own + comptime!(stats_at + 4 * j) + lane] = U4::reinterpret(stats);
        }
    }
    sync_cluster();
    let base = address_of(&*shared);
    let meeting = comptime!(form.meeting_at());
    let mut tile = CUBE_POS_X as usize;
    while tile < comptime!(form.sums()) {
        let column = tile / tiles;
        let all = gathered(base, own, tile, column, form);
        shared[meeting + 2 * (32 * plane + lane)] = U4::reinterpret(all.sum);
        shared[meeting + 2 * (32 * plane + lane) + 1] = U4::reinterpret(all.stats);
        sync_cube();
        if plane == 0 {
            let mut parts = Array::<F4>::new(PLANES);
            let mut stats = Array::<F4>::new(PLANES);
            #[unroll]
            for p in 0..PLANES {
                parts[p] = F4::reinterpret(shared[meeting + 2 * (comptime!(32 * p) + lane)]);
                stats[p] = F4::reinterpret(shared[meeting + 2 * (comptime!(32 * p) + lane) + 1]);
            }
            let all = joined(&parts, &stats, PLANES);
            // A sequence that sees nothing gets nothing.
            let (even, odd) = (all.stats.extract(2usize), all.stats.extract(3usize));
            let even = select(even > 0.0f32, reciprocal(even), 0.0f32);
            let odd = select(odd > 0.0f32, reciprocal(odd), 0.0f32);
            let (a, b) = (all.sum.extract(0usize) * even, all.sum.extract(1usize) * odd);
            let (c, d) = (all.sum.extract(2usize) * even, all.sum.extract(3usize) * odd);
            // Rows of features become rows of heads, as they lie in y.
            let first = pack_transposed(a, b, comptime!(form.ty()));
            let second = pack_transposed(c, d, comptime!(form.ty()));
            let head = column * 8 + lane / 4;
            if head < comptime!(form.group) {
                let groups = CUBE_POS_Z as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
                let row = (groups * comptime!(form.group) + head) * comptime!(form.dim / 2);
                let to = row + tile % tiles * 8 + lane % 4;
                y[to] = first;
                y[to + 4] = second;
            }
        }
        if comptime!(form.sums() > CUBES) {
            sync_cube();
        }
        tile += CUBES;
    }
    // Others may still read what this cube has; what it has read went through a barrier.
    leave_cluster();
}

/// Weighted values of two heads, and of both the greatest score and then the sum of weights.
#[derive(CubeType)]
struct Part {
    sum: F4,
    stats: F4,
}

/// What this plane and its likes in all cubes have of a tile.
#[cube]
fn gathered(base: u32, own: usize, tile: usize, column: usize, #[comptime] form: Form) -> Part {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let sums_at = base + ((own + 32 * tile + lane) * 16) as u32;
    let stats_at = base + ((own + comptime!(form.stats_at()) + 4 * column + lane % 4) * 16) as u32;
    let mut parts = Array::<F4>::new(CUBES);
    let mut stats = Array::<F4>::new(CUBES);
    #[unroll]
    for cube in 0..CUBES {
        stats[cube] = load_cluster_x4(stats_at, comptime!(cube as u32), 0u32);
        parts[cube] = load_cluster_x4(sums_at, comptime!(cube as u32), 0u32);
    }
    joined(&parts, &stats, CUBES)
}

/// The first of the parts, then the next, and so on, all against the greatest score of them all.
#[cube]
fn joined(parts: &Array<F4>, stats: &Array<F4>, #[comptime] count: usize) -> Part {
    let mut tops = Array::<f32>::new(2usize);
    #[unroll]
    for e in 0..2usize {
        tops[e] = f32::new(MASKED);
        #[unroll]
        for i in 0..count {
            tops[e] = max(tops[e], stats[i].extract(e));
        }
    }
    let (even, odd) = (base_of(tops[0]), base_of(tops[1]));
    let mut sum = F4::new(0.0f32);
    let mut totals = Array::<f32>::new(2usize);
    totals[0] = 0.0f32;
    totals[1] = 0.0f32;
    #[unroll]
    for i in 0..count {
        let a = exp2(stats[i].extract(0usize) - even);
        let b = exp2(stats[i].extract(1usize) - odd);
        let mut factor = F4::new(a);
        factor.insert(1usize, b);
        factor.insert(3usize, b);
        sum += parts[i] * factor;
        totals[0] += stats[i].extract(2usize) * a;
        totals[1] += stats[i].extract(3usize) * b;
    }
    let mut all = F4::new(tops[0]);
    all.insert(1usize, tops[1]);
    all.insert(2usize, totals[0]);
    all.insert(3usize, totals[1]);
    Part { sum, stats: all }
}
