//! Weights: a plane's words in a stage, how they become the A operand, and the scales that go with them.

use super::{Shape, ring::Stage};
use crate::kernel::{
    fragment::{fragment, table_vector},
    ptx::{U4, load_shared, load_shared_x2, load_shared_x4, scale_pair, shared_address},
};
use cubecl::prelude::*;

/// What a lane decodes next: its words of a block, and where weights are scaled the scales of rows g and g + 8 of each
/// group.
#[derive(CubeType)]
pub(super) struct Codes {
    words: Array<u32>,
    scales: Array<u32>,
}

#[cube]
pub(super) fn no_codes(#[comptime] shape: Shape) -> Codes {
    Codes {
        words: Array::<u32>::new(comptime!(shape.words())),
        scales: Array::<u32>::new(comptime!(shape.groups())),
    }
}

/// A lane's part of `block`, in row tile `own`.
#[cube]
pub(super) fn load_codes(
    codes: &mut Codes,
    block: &Stage,
    own: u32,
    lane: u32,
    #[comptime] shape: Shape,
) {
    let tile = block.block
        + comptime!(shape.words_at() as u32)
        + own * comptime!(4 * shape.block_words() as u32);
    load_words(&mut codes.words, tile, lane, shape);
    if comptime!(shape.plan.scales_weights()) {
        let scales = scale_tile(block, own, lane, shape);
        #[unroll]
        for group in 0..comptime!(shape.groups()) {
            codes.scales[group] = load_shared(scales, comptime!(group as u32 * 32));
        }
    }
}

/// Where the scales of rows g and g + 8 of `block` lie.
#[cube]
fn scale_tile(block: &Stage, own: u32, lane: u32, #[comptime] shape: Shape) -> u32 {
    block.scales + own * comptime!(32 * shape.groups() as u32) + lane / 4u32 * 4u32
}

#[cube]
fn load_words(words: &mut Array<u32>, tile: u32, lane: u32, #[comptime] shape: Shape) {
    let head = load_shared_x4(tile + lane * 16u32, 0u32);
    #[unroll]
    for w in 0..4usize {
        words[w] = head.extract(w);
    }
    if comptime!(shape.bits == 4) {
        let tail = load_shared_x4(tile + lane * 16u32, 512u32);
        #[unroll]
        for w in 0..4usize {
            words[4 + w] = tail.extract(w);
        }
    }
    if comptime!(shape.bits == 3) {
        let tail = load_shared_x2(tile + lane * 8u32, 512u32);
        words[4] = tail.extract(0usize);
        words[5] = tail.extract(1usize);
    }
}

/// The scales of rows g and g + 8 in the groups of half a block.
#[cube]
pub(super) fn load_scales<F: Float, S: Size>(
    block: &Stage,
    own: u32,
    lane: u32,
    #[comptime] half: usize,
    #[comptime] shape: Shape,
) -> Vector<f32, S> {
    let mut scales = Vector::<f32, S>::new(0.0f32);
    let tile = scale_tile(block, own, lane, shape);
    #[unroll]
    for group in 0..comptime!(shape.half_groups()) {
        let at = comptime!(half * shape.groups() / 2 + group);
        let word = load_shared(tile, comptime!(at as u32 * 32));
        let pair = Vector::<F, Const<2>>::reinterpret(word);
        scales.insert(comptime!(2 * group), f32::cast_from(pair.extract(0usize)));
        scales.insert(comptime!(2 * group + 1), f32::cast_from(pair.extract(1usize)));
    }
    scales
}

/// The A operand of half a block: four registers an instruction ([`crate::pack`] has the layout).
#[cube]
pub(super) fn decode<A: Size>(
    codes: &Codes,
    table: u32,
    #[comptime] half: usize,
    #[comptime] shape: Shape,
) -> Vector<u32, A> {
    let mut a = Vector::<u32, A>::new(0u32);
    #[unroll]
    for step in 0..4usize {
        let f = comptime!(4 * half + step);
        let pairs = fragment(&codes.words, table, 0usize, f, comptime!(shape.bits));
        #[unroll]
        for slot in 0..4usize {
            a.insert(comptime!(4 * step + slot), pairs[slot]);
        }
    }
    if comptime!(shape.plan.scales_weights()) {
        #[unroll]
        for i in 0..16usize {
            let f = comptime!(4 * half + i / 4);
            let scales = codes.scales[comptime!(f * shape.groups() / 8)];
            let (which, ty) = comptime!((i as u32 % 2, shape.ty()));
            a.insert(i, scale_pair(a.extract(i), scales, which, ty));
        }
    }
    a
}

/// The pair table at vector `first` of shared memory, a copy for every lane (two bits: a table of quads, a copy for
/// two). All loads come before the first store, so that there is one latency and not one a vector.
#[cube]
pub(super) fn fill_table(
    pairs: &[u32],
    shared: &mut Shared<[U4]>,
    #[comptime] first: usize,
    #[comptime] shape: Shape,
) {
    let vectors = comptime!(shape.table_bytes() / 16);
    let units = comptime!(shape.plan.workers());
    let fills = comptime!(vectors.div_ceil(units));
    let mut entries = Array::<U4>::new(fills);
    #[unroll]
    for i in 0..fills {
        let index = min(UNIT_POS as usize + i * units, comptime!(vectors - 1)) / 8;
        entries[i] = table_vector(pairs, index, comptime!(shape.bits));
    }
    #[unroll]
    for i in 0..fills {
        let at = UNIT_POS as usize + i * units;
        if at < vectors {
            shared[first + at] = entries[i];
        }
    }
}

/// The shared address of `shared`.
#[cube]
pub(super) fn address_of(shared: &Shared<[U4]>) -> u32 {
    // SAFETY: the address of shared memory that lives as long as the kernel.
    shared_address::<U4>(unsafe { shared.as_ptr_unchecked() })
}
