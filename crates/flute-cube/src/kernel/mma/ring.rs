//! The ring of stages through which words and scales come, ahead of their use.
//!
//! A stage holds a block of k in all row tiles of every plane. A plane copies asynchronously what it will use itself, so
//! nobody waits for another plane: each lane its own words, and as few lanes as can the scales of all, 16 bytes each, since a
//! copy costs shared memory what its lanes write, and those that pass through the first cache twice that. Memory stays busy
//! while a cube fills its table, folds its sums or waits at a barrier, which loads into registers, a step ahead at most, do
//! not reach.

use super::{
    Shape,
    ptx::{commit_copies, copy_stream, load_shared, load_shared_x2, load_shared_x4},
    weight::{Place, first_group, own_group, step_on},
};
use cubecl::prelude::*;

/// Where a unit's part of a stage lies.
#[derive(CubeType)]
pub(super) struct Ring {
    /// Shared addresses of the unit's first 16 and 8 bytes of words in stage 0, and of the scales that it brings.
    pub(super) heads: u32,
    pub(super) tails: u32,
    pub(super) scales: u32,
    /// And of the first that it uses.
    pub(super) factors: u32,
    /// Distances of the stage to be filled next, and of the one to be taken next.
    pub(super) fill: u32,
    pub(super) take: u32,
}

impl Shape {
    /// Bytes of a stage: vectors of 16 bytes, then for three bits those of 8, then scales.
    pub(super) fn stage_bytes(self) -> usize {
        self.plan.stage_bytes(self.bits, self.groups())
    }
    /// Vectors of 16 bytes of a row tile, for each unit.
    fn vectors(self) -> usize {
        self.words() / 4
    }
    fn tails_at(self) -> usize {
        16 * self.units() * self.row_tiles() * self.vectors()
    }
    fn scales_at(self) -> usize {
        4 * self.units() * self.row_tiles() * self.words()
    }
    /// Bytes of the scales of a block: two rows for each g, group after group.
    fn block_scales(self) -> usize {
        32 * self.groups()
    }
    /// And of those of a row tile of every plane.
    fn tile_scales(self) -> usize {
        self.units() / 32 * self.block_scales()
    }
}

/// The ring that begins at the shared address `start`, empty.
#[cube]
pub(super) fn ring(start: u32, #[comptime] shape: Shape) -> Ring {
    let (unit, lane) = (UNIT_POS, UNIT_POS_X);
    let scales = start
        + comptime!(shape.scales_at() as u32)
        + UNIT_POS_Y * comptime!(shape.block_scales() as u32);
    let group = own_group(lane as usize, 0usize, shape) as u32;
    Ring {
        heads: start + unit * 16u32,
        tails: start + comptime!(shape.tails_at() as u32) + unit * 8u32,
        scales: scales + lane * 16u32,
        factors: scales + group * 32u32 + lane / 4u32 * 4u32,
        fill: 0u32,
        take: 0u32,
    }
}

#[cube]
fn next(at: u32, #[comptime] shape: Shape) -> u32 {
    let next = at + comptime!(shape.stage_bytes() as u32);
    if next == comptime!(shape.plan.ring * shape.stage_bytes() as u32) { 0u32 } else { next }
}

/// Asks for the words and scales at `place`, as one group of copies, and steps on; what does not exist is 0, and costs
/// no memory.
#[cube]
pub(super) fn fill<F: Float>(
    ring: &mut Ring,
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    place: &mut Place,
    #[comptime] shape: Shape,
) {
    let units = comptime!(shape.units() as u32);
    let vectors = comptime!(shape.vectors() as u32);
    #[unroll]
    for i in 0..comptime!(shape.row_tiles()) {
        let exists = place.tile + i < place.end && place.kb < place.k_blocks;
        let tile = if exists { place.tile + i } else { 0usize };
        let kb = if exists { place.kb } else { 0usize };
        let block = (tile * place.k_blocks + kb) * comptime!(32 * shape.words());
        #[unroll]
        for v in 0..vectors {
            copy_stream(
                words,
                block + comptime!(v as usize * 128) + place.lane * 4,
                ring.heads + ring.fill,
                comptime!((i as u32 * vectors + v) * 16 * units),
                exists,
                16u32,
            );
        }
        if comptime!(shape.bits == 3) {
            copy_stream(
                words,
                block + 128 + place.lane * 2,
                ring.tails + ring.fill,
                comptime!(i as u32 * 8 * units),
                exists,
                8u32,
            );
        }
        let first = first_group(tile, kb, place.k_blocks, shape);
        if place.lane < comptime!(shape.block_scales() / 16) {
            copy_stream(
                scales,
                first * 8 + place.lane * 4,
                ring.scales + ring.fill,
                comptime!((i * shape.tile_scales()) as u32),
                exists,
                16u32,
            );
        }
    }
    commit_copies();
    ring.fill = next(ring.fill, shape);
    step_on(place, shape);
}

/// The words and scales of the oldest stage, which must have come.
#[cube]
pub(super) fn take(
    ring: &mut Ring,
    words: &mut Array<u32>,
    scales: &mut Array<u32>,
    #[comptime] shape: Shape,
) {
    let units = comptime!(shape.units() as u32);
    let vectors = comptime!(shape.vectors() as u32);
    #[unroll]
    for i in 0..comptime!(shape.row_tiles()) {
        let own = comptime!(i * shape.words());
        #[unroll]
        for v in 0..vectors {
            let head = load_shared_x4(
                ring.heads + ring.take,
                comptime!((i as u32 * vectors + v) * 16 * units),
            );
            #[unroll]
            for w in 0..4usize {
                words[comptime!(own + v as usize * 4 + w)] = head.extract(w);
            }
        }
        if comptime!(shape.bits == 3) {
            let tail = load_shared_x2(ring.tails + ring.take, comptime!(i as u32 * 8 * units));
            words[comptime!(own + 4)] = tail.extract(0usize);
            words[comptime!(own + 5)] = tail.extract(1usize);
        }
        #[unroll]
        for word in 0..comptime!(shape.scale_words()) {
            // Words of a lane are those of groups one behind the other.
            let at = comptime!((i * shape.tile_scales() + 32 * word) as u32);
            scales[comptime!(i * shape.scale_words() + word)] =
                load_shared(ring.factors + ring.take, at);
        }
    }
    ring.take = next(ring.take, shape);
}
