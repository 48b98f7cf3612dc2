//! Weights: where a plane's words and scales lie, and how they come to its lanes.

use super::{
    Shape,
    ptx::{F4, load_pair, load_stream_x2, load_stream_x4},
};
use crate::pack;
use cubecl::prelude::*;

/// The block of k, and the row tiles from `tile` to `end` at most, that a lane works on next.
#[derive(CubeType)]
pub(super) struct Place {
    pub(super) tile: usize,
    pub(super) end: usize,
    pub(super) kb: usize,
    pub(super) k_first: usize,
    /// Where the plane's share of k ends.
    pub(super) k_end: usize,
    pub(super) k_blocks: usize,
    pub(super) lane: usize,
}

/// The plane's next block of k, or after the last one the first of its next rows.
#[cube]
pub(super) fn step_on(place: &mut Place, #[comptime] shape: Shape) {
    place.kb += comptime!(shape.planes_k());
    if place.kb >= place.k_end {
        place.kb = place.k_first;
        place.tile += comptime!(shape.row_tiles() * shape.planes_n());
    }
}

/// A lane's words of one block of k in all row tiles of its plane, and the scales of rows g and g + 8 that go with them;
/// what does not exist is replaced by what does. Steps on.
#[cube]
pub(super) fn load<F: Float>(
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    into: &mut Array<u32>,
    scales_into: &mut Array<u32>,
    place: &mut Place,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for i in 0..comptime!(shape.row_tiles()) {
        let tile = min(place.tile + i, place.end - 1);
        let kb = min(place.kb, place.k_blocks - 1);
        let block = (tile * place.k_blocks + kb) * comptime!(32 * shape.words());
        let own = comptime!(i * shape.words());
        let head = load_stream_x4(words, block + place.lane * 4);
        #[unroll]
        for w in 0..4usize {
            into[own + w] = head.extract(w);
        }
        if comptime!(shape.bits == 4) {
            let tail = load_stream_x4(words, block + 128 + place.lane * 4);
            #[unroll]
            for w in 0..4usize {
                into[own + 4 + w] = tail.extract(w);
            }
        }
        if comptime!(shape.bits == 3) {
            let tail = load_stream_x2(words, block + 128 + place.lane * 2);
            into[own + 4] = tail.extract(0usize);
            into[own + 5] = tail.extract(1usize);
        }
        let first = first_group(tile, kb, place.k_blocks, shape);
        #[unroll]
        for word in 0..comptime!(shape.scale_words()) {
            let group = first + own_group(place.lane, word, shape);
            scales_into[comptime!(i * shape.scale_words() + word)] =
                load_pair::<F>(scales, group * 8 + place.lane / 4);
        }
    }
    step_on(place, shape);
}

/// Of a block, the group whose scales are word `word` of a lane's: that of column `2 · (lane % 4) + word` where groups have
/// columns, which come token by token and then group by group.
#[cube]
pub(super) fn own_group(lane: usize, #[comptime] word: usize, #[comptime] shape: Shape) -> usize {
    if comptime!(shape.columns() == 1) {
        word.runtime()
    } else {
        let column = lane % 4 * 2 + word;
        column / comptime!(shape.plan.tokens as usize) % comptime!(shape.columns())
    }
}

/// Where the scales of a block begin, in groups of 16 rows.
#[cube]
pub(super) fn first_group(
    tile: usize,
    kb: usize,
    k_blocks: usize,
    #[comptime] shape: Shape,
) -> usize {
    if comptime!(shape.group == 0) {
        tile
    } else if comptime!(shape.group as usize <= pack::BLOCK_K) {
        (tile * k_blocks + kb) * comptime!(shape.groups())
    } else {
        let blocks = comptime!((shape.group as usize).div_ceil(pack::BLOCK_K));
        tile * k_blocks.div_ceil(blocks) + kb / blocks
    }
}

/// The factors of a lane's sums, rows g (columns 2t and 2t + 1) and g + 8 (the same), by the scales from word `at` on.
#[cube]
pub(super) fn factors<F: Float>(
    scales: &Array<u32>,
    #[comptime] at: usize,
    #[comptime] shape: Shape,
) -> F4 {
    // One group for all columns, or the two columns of a lane have the same one, or one each.
    let next = comptime!(if shape.columns() > 1 && shape.scale_words() > 1 { at + 1 } else { at });
    let mut factors = F4::new(0.0f32);
    #[unroll]
    for column in 0..2usize {
        let pair = Vector::<F, Const<2>>::reinterpret(scales[comptime!([at, next][column])]);
        factors.insert(column, f32::cast_from(pair.extract(0usize)));
        factors.insert(comptime!(column + 2), f32::cast_from(pair.extract(1usize)));
    }
    factors
}
