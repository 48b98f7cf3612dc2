//! What a plane has of a stream, on its way to the cubes that fold it.
//!
//! It is pushed and counted: who folds waits for bytes, not for cubes, and a cube whose bytes have come reads its own shared
//! memory alone, so that none waits for another before it ends. The one barrier of the cluster says that its cubes have
//! begun; it passes while the first tiles are on their way.

use super::{Form, PARTS, PLANES, STREAMS, walk::Walk, weights::Running};
use crate::kernel::{
    prompt::ptx::exchange,
    ptx::{
        F4, U4, arrive_cluster, await_bytes, await_cluster, expect_bytes, init_counter,
        push_cluster_x4,
    },
};
use cubecl::prelude::*;

/// Makes the cube's counter, and lets the others know.
#[cube]
pub(super) fn open(base: u32, #[comptime] form: Form) {
    if comptime!(form.cubes > 1) {
        if UNIT_POS == 0 {
            init_counter(counter_of(base, form));
        }
        sync_plane();
        arrive_cluster();
    }
}

/// Says how much the cube gets, and waits until others may be sent something.
#[cube]
pub(super) fn expect(base: u32, walk: &Walk, #[comptime] form: Form) {
    if comptime!(form.cubes > 1) {
        if UNIT_POS == 0 {
            let rank = CUBE_POS_X as usize;
            let tiles = (comptime!(form.sums() + form.cubes - 1) - rank) / comptime!(form.cubes);
            let stats = select(tiles > 0, comptime!(form.stats()), 0usize);
            let each = tiles * comptime!(form.piece()) + stats;
            let bytes = live(walk) * each * comptime!(16 * PLANES);
            expect_bytes(counter_of(base, form), bytes as u32);
        }
        sync_plane();
        await_cluster();
    }
}

/// Waits until everything that the cube folds is there.
#[cube]
pub(super) fn arrived(base: u32, #[comptime] form: Form) {
    if comptime!(form.cubes > 1) {
        await_bytes(counter_of(base, form));
    } else {
        sync_cube();
    }
}

/// Streams that have chunks.
#[cube]
pub(super) fn live(walk: &Walk) -> usize {
    min(walk.chunks, STREAMS)
}

#[cube]
fn counter_of(base: u32, #[comptime] form: Form) -> u32 {
    base + comptime!(16 * form.barrier_at() as u32)
}

/// Sends what the plane has of stream `stream`: to each cube its tiles of sums, and what is known of scores to all that
/// have some.
#[cube]
pub(super) fn hand_in(
    sums: &Array<F4>,
    running: &Running,
    stream: usize,
    shared: &mut Shared<[U4]>,
    base: u32,
    #[comptime] form: Form,
) {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let pairs = comptime!(form.pairs());
    let (row, pair) = (lane / 4, lane % 4);
    let part = stream * PLANES + UNIT_POS_Y as usize;
    let own = comptime!(form.parts_at()) + part * comptime!(form.piece()) + row * pairs + pair;
    // Spare heads are nobody's.
    if pair < pairs {
        #[unroll]
        for i in 0..comptime!(form.sums()) {
            let (cube, slot) = comptime!((i % form.cubes, i / form.cubes));
            let to = own + comptime!(slot * PARTS * form.piece());
            leave(U4::reinterpret(sums[i]), to, comptime!(cube as u32), shared, base, form);
        }
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
        // All rows of lanes know them: each row sends them to a cube.
        if row < comptime!(form.cubes.min(form.sums())) && pair < pairs {
            let to = comptime!(form.stats_at() + j * pairs) + part * comptime!(form.stats()) + pair;
            leave(U4::reinterpret(stats), to, row as u32, shared, base, form);
        }
    }
}

/// Puts a vector where `to` is in the shared memory of cube `rank`.
#[cube]
fn leave(
    vector: U4,
    to: usize,
    rank: u32,
    shared: &mut Shared<[U4]>,
    base: u32,
    #[comptime] form: Form,
) {
    if comptime!(form.cubes > 1) {
        push_cluster_x4(vector, base + (to * 16) as u32, rank, counter_of(base, form));
    } else {
        shared[to] = vector;
    }
}
