//! What the planes have of all streams, into y: first that of the same plane of every stream, stream after stream, then the
//! planes.

use super::{
    Form, MASKED, PARTS, PLANES, STREAMS,
    hand::{arrived, live},
    walk::{Walk, address_of},
    weights::base_of,
};
use crate::kernel::{
    prompt::ptx::{exp2, reciprocal},
    ptx::{F4, U4, pack_transposed},
};
use cubecl::prelude::*;

/// Every cube takes the tiles of 16 features by eight heads that are a multiple of the cubes behind its own number.
#[cube]
pub(super) fn fold(shared: &mut Shared<[U4]>, y: &mut [u32], walk: &Walk, #[comptime] form: Form) {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let plane = UNIT_POS_Y as usize;
    let (rank, live) = (CUBE_POS_X as usize, live(walk));
    // Heads of few features have tiles for some cubes only.
    if rank < comptime!(form.sums()) {
        arrived(address_of(&*shared), form);
        if comptime!(form.meets()) {
            let meeting = comptime!(form.meeting_at());
            let mut tile = rank;
            while tile < comptime!(form.sums()) {
                let all = streams_of(&*shared, tile, plane, live, form);
                shared[meeting + 2 * (32 * plane + lane)] = U4::reinterpret(all.sum);
                shared[meeting + 2 * (32 * plane + lane) + 1] = U4::reinterpret(all.stats);
                sync_cube();
                if plane == 0 {
                    let mut parts = Array::<F4>::new(PLANES);
                    let mut stats = Array::<F4>::new(PLANES);
                    #[unroll]
                    for p in 0..PLANES {
                        let at = meeting + 2 * (comptime!(32 * p) + lane);
                        parts[p] = F4::reinterpret(shared[at]);
                        stats[p] = F4::reinterpret(shared[at + 1]);
                    }
                    let all = joined(&parts, &stats, PLANES);
                    write(&all, tile, y, form);
                }
                if comptime!(form.sums() > form.cubes) {
                    sync_cube();
                }
                tile += comptime!(form.cubes);
            }
        } else {
            let mut tile = rank + plane * comptime!(form.cubes);
            while tile < comptime!(form.sums()) {
                let mut parts = Array::<F4>::new(PLANES);
                let mut stats = Array::<F4>::new(PLANES);
                #[unroll]
                for p in 0..PLANES {
                    let all = streams_of(&*shared, tile, p.runtime(), live, form);
                    parts[p] = all.sum;
                    stats[p] = all.stats;
                }
                let all = joined(&parts, &stats, PLANES);
                write(&all, tile, y, form);
                tile += comptime!(form.cubes * PLANES);
            }
        }
    }
}

/// Weighted values of two heads, and of both the greatest score and then the sum of weights.
#[derive(CubeType)]
struct Part {
    sum: F4,
    stats: F4,
}

/// What plane `plane` has of a tile, of all streams.
#[cube]
fn streams_of(
    shared: &Shared<[U4]>,
    tile: usize,
    plane: usize,
    live: usize,
    #[comptime] form: Form,
) -> Part {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let (pairs, piece) = comptime!((form.pairs(), form.piece()));
    // Lanes of spare heads read what others do.
    let pair = min(lane % 4, comptime!(pairs - 1));
    let column = tile / comptime!(form.dim / 16);
    let slot = tile / comptime!(form.cubes);
    let sums_at = comptime!(form.parts_at()) + slot * comptime!(PARTS * piece) + plane * piece;
    let sums_at = sums_at + lane / 4 * pairs + pair;
    let stats_at = comptime!(form.stats_at()) + plane * comptime!(form.stats()) + column * pairs;
    let stats_at = stats_at + pair;
    let mut parts = Array::<F4>::new(STREAMS);
    let mut stats = Array::<F4>::new(STREAMS);
    #[unroll]
    for stream in 0..STREAMS {
        let mut sum = F4::new(0.0f32);
        let mut known = F4::new(0.0f32);
        known.insert(0usize, f32::new(MASKED));
        known.insert(1usize, f32::new(MASKED));
        // Of a stream without chunks nothing was sent.
        if stream < live {
            sum = F4::reinterpret(shared[sums_at + comptime!(stream * PLANES * piece)]);
            known = F4::reinterpret(shared[stats_at + comptime!(stream * PLANES * form.stats())]);
        }
        parts[stream] = sum;
        stats[stream] = known;
    }
    joined(&parts, &stats, STREAMS)
}

/// A tile of sums to its place in y, over the sums of their weights.
#[cube]
fn write(all: &Part, tile: usize, y: &mut [u32], #[comptime] form: Form) {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let tiles = comptime!(form.dim / 16);
    // A sequence that sees nothing gets nothing.
    let (even, odd) = (all.stats.extract(2usize), all.stats.extract(3usize));
    let even = select(even > 0.0f32, reciprocal(even), 0.0f32);
    let odd = select(odd > 0.0f32, reciprocal(odd), 0.0f32);
    let (a, b) = (all.sum.extract(0usize) * even, all.sum.extract(1usize) * odd);
    let (c, d) = (all.sum.extract(2usize) * even, all.sum.extract(3usize) * odd);
    // Rows of features become rows of heads, as they lie in y.
    let first = pack_transposed(a, b, comptime!(form.ty()));
    let second = pack_transposed(c, d, comptime!(form.ty()));
    let head = tile / tiles * 8 + lane / 4;
    if head < comptime!(form.group) {
        let groups = CUBE_POS_Z as usize * CUBE_COUNT_Y as usize + CUBE_POS_Y as usize;
        let row = (groups * comptime!(form.group) + head) * comptime!(form.dim / 2);
        let to = row + tile % tiles * 8 + lane % 4;
        y[to] = first;
        y[to + 4] = second;
    }
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
