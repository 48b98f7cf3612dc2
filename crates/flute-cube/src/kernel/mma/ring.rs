//! The ring of stages through which words and scales come, ahead of their use.
//!
//! A stage holds a block of k in all row tiles of every plane, and of each plane a barrier. A plane copies asynchronously
//! what it will use itself, so nobody waits for another plane. On Hopper one lane asks for a row tile's words, and for its
//! scales, with a bulk copy each, for which the barrier waits. Before, each lane copies its own words, and as few lanes as can
//! the scales of all, 16 bytes each. Bulk copies spare shared memory what it takes lanes to write, two wavefronts of some fifty a
//! block, at as many instructions. Memory stays busy while a cube fills its table, folds its sums or waits at a barrier, which loads into
//! registers, a step ahead at most, do not reach.

use super::{
    Shape,
    ptx::{
        await_groups, await_phase, commit_copies, copy_bulk, copy_stream, elect, expect_bytes,
        init_barrier, load_shared, load_shared_x2, load_shared_x4, show_barriers,
    },
    weight::{Place, first_group, own_group, step_on},
};
use cubecl::prelude::*;

/// Where a unit's part of a stage lies.
#[derive(CubeType)]
pub(super) struct Ring {
    /// Shared addresses in stage 0: of the plane's words, of the unit's first 16 and 8 bytes of them, and of the scales that it
    /// brings.
    words: u32,
    heads: u32,
    tails: u32,
    scales: u32,
    /// And of the first that it uses.
    factors: u32,
    /// The barrier of the plane.
    full: u32,
    /// Distances of the stage to be filled next, and of the one to be taken next.
    fill: u32,
    take: u32,
    /// Of the barrier of the stage to be taken next when it has come.
    parity: u32,
}

impl Shape {
    /// Bytes of a stage: words plane by plane, scales, barriers.
    pub(super) fn stage_bytes(self) -> usize {
        self.plan.stage_bytes(self.bits, self.groups())
    }
    /// Bytes of the words of a block: 512 for vectors of 16, the same again, or half of it for vectors of 8.
    fn block_bytes(self) -> usize {
        128 * self.words()
    }
    /// Planes times row tiles.
    fn all_tiles(self) -> usize {
        self.units() / 32 * self.row_tiles()
    }
    fn scales_at(self) -> usize {
        self.all_tiles() * self.block_bytes()
    }
    /// Bytes of the scales of a block: two rows for each g, group after group.
    fn block_scales(self) -> usize {
        32 * self.groups()
    }
    fn barriers_at(self) -> usize {
        self.scales_at() + self.all_tiles() * self.block_scales()
    }
}

/// The ring that begins at the shared address `start`, empty: the work of whole planes.
#[cube]
pub(super) fn ring(start: u32, #[comptime] shape: Shape) -> Ring {
    let (lane, plane) = (UNIT_POS_X, UNIT_POS_Y);
    let tiles = comptime!(shape.row_tiles() as u32);
    let words = start + plane * comptime!(tiles * shape.block_bytes() as u32);
    let scales = start
        + comptime!(shape.scales_at() as u32)
        + plane * comptime!(tiles * shape.block_scales() as u32);
    let full = start + comptime!(shape.barriers_at() as u32) + plane * 8u32;
    if comptime!(shape.plan.bulk) {
        if elect() {
            #[unroll]
            for stage in 0..comptime!(shape.plan.ring as usize) {
                init_barrier(full, comptime!((stage * shape.stage_bytes()) as u32), 1u32);
            }
            show_barriers();
        }
        sync_plane();
    }
    let group = own_group(lane as usize, 0usize, shape) as u32;
    let brought = if comptime!(shape.plan.bulk) { 0u32.runtime() } else { lane * 16u32 };
    Ring {
        words,
        heads: words + lane * 16u32,
        tails: words + lane * 8u32,
        scales: scales + brought,
        factors: scales + group * 32u32 + lane / 4u32 * 4u32,
        full,
        fill: 0u32,
        take: 0u32,
        parity: 0u32,
    }
}

/// Waits for the oldest stage, and for all lanes to have taken the one before it.
#[cube]
pub(super) fn await_stage(ring: &Ring, #[comptime] shape: Shape) {
    if comptime!(shape.plan.bulk) {
        await_phase(ring.full + ring.take, ring.parity);
    } else {
        await_groups(comptime!(shape.plan.ring - 2));
    }
    // Lanes bring each other's words and scales, and none may where another still reads.
    sync_plane();
}

#[cube]
fn next(at: u32, #[comptime] shape: Shape) -> u32 {
    let next = at + comptime!(shape.stage_bytes() as u32);
    if next == comptime!(shape.plan.ring * shape.stage_bytes() as u32) { 0u32 } else { next }
}

/// Asks for the words and scales at `place` and steps on. What does not exist costs no memory, and what is computed of it
/// is never stored.
#[cube]
pub(super) fn fill<F: Float>(
    ring: &mut Ring,
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    place: &mut Place,
    #[comptime] shape: Shape,
) {
    if comptime!(shape.plan.bulk) {
        if elect() {
            fill_bulk::<F>(&*ring, words, scales, &*place, shape);
        }
    } else {
        fill_by_lanes::<F>(&*ring, words, scales, &*place, shape);
    }
    ring.fill = next(ring.fill, shape);
    step_on(place, shape);
}

/// One lane's work for its plane.
#[cube]
fn fill_bulk<F: Float>(
    ring: &Ring,
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    place: &Place,
    #[comptime] shape: Shape,
) {
    let full = ring.full + ring.fill;
    let tiles = comptime!(shape.row_tiles());
    let rest = place.end - min(place.tile, place.end);
    let exist = if place.kb < place.k_blocks { min(rest, tiles) } else { 0usize };
    let bytes = comptime!((shape.block_bytes() + shape.block_scales()) as u32);
    expect_bytes(full, exist as u32 * bytes);
    #[unroll]
    for i in 0..tiles {
        if i < exist {
            let tile = place.tile + i;
            let block = (tile * place.k_blocks + place.kb) * comptime!(32 * shape.words());
            let distance = comptime!((i * shape.block_bytes()) as u32);
            let bytes = comptime!(shape.block_bytes() as u32);
            copy_bulk(words, block, ring.words + ring.fill, distance, bytes, full);
            let first = first_group(tile, place.kb, place.k_blocks, shape) * 8;
            let distance = comptime!((i * shape.block_scales()) as u32);
            let bytes = comptime!(shape.block_scales() as u32);
            copy_bulk(scales, first, ring.scales + ring.fill, distance, bytes, full);
        }
    }
}

/// Each lane's work: one group of copies.
#[cube]
fn fill_by_lanes<F: Float>(
    ring: &Ring,
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    place: &Place,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for i in 0..comptime!(shape.row_tiles()) {
        let exists = place.tile + i < place.end && place.kb < place.k_blocks;
        let tile = if exists { place.tile + i } else { 0usize };
        let kb = if exists { place.kb } else { 0usize };
        let block = (tile * place.k_blocks + kb) * comptime!(32 * shape.words());
        let at = comptime!((i * shape.block_bytes()) as u32);
        #[unroll]
        for v in 0..comptime!(shape.words() / 4) {
            let (from, to) = (block + comptime!(v * 128) + place.lane * 4, ring.heads + ring.fill);
            copy_stream(words, from, to, comptime!(at + 512 * v as u32), exists, 16u32);
        }
        if comptime!(shape.bits == 3) {
            let (from, to) = (block + 128 + place.lane * 2, ring.tails + ring.fill);
            copy_stream(words, from, to, comptime!(at + 512), exists, 8u32);
        }
        if place.lane < comptime!(shape.block_scales() / 16) {
            let from = first_group(tile, kb, place.k_blocks, shape) * 8 + place.lane * 4;
            let distance = comptime!((i * shape.block_scales()) as u32);
            copy_stream(scales, from, ring.scales + ring.fill, distance, exists, 16u32);
        }
    }
    commit_copies();
}

/// The words and scales of the oldest stage, which must have come.
#[cube]
pub(super) fn take(
    ring: &mut Ring,
    words: &mut Array<u32>,
    scales: &mut Array<u32>,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for i in 0..comptime!(shape.row_tiles()) {
        let own = comptime!(i * shape.words());
        let at = comptime!((i * shape.block_bytes()) as u32);
        #[unroll]
        for v in 0..comptime!(shape.words() / 4) {
            let head = load_shared_x4(ring.heads + ring.take, comptime!(at + 512 * v as u32));
            #[unroll]
            for w in 0..4usize {
                words[comptime!(own + v * 4 + w)] = head.extract(w);
            }
        }
        if comptime!(shape.bits == 3) {
            let tail = load_shared_x2(ring.tails + ring.take, comptime!(at + 512));
            words[comptime!(own + 4)] = tail.extract(0usize);
            words[comptime!(own + 5)] = tail.extract(1usize);
        }
        #[unroll]
        for word in 0..comptime!(shape.scale_words()) {
            // Words of a lane are those of groups one behind the other.
            let at = comptime!((i * shape.block_scales() + 32 * word) as u32);
            scales[comptime!(i * shape.scale_words() + word)] =
                load_shared(ring.factors + ring.take, at);
        }
    }
    ring.take = next(ring.take, shape);
    if ring.take == 0u32 {
        ring.parity ^= 1u32;
    }
}
