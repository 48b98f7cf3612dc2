//! Weights: where a plane's words and scales lie, and how words become the A operand.

use super::Shape;
use crate::{
    kernel::ptx::{load_pair, load_stream_x2, load_stream_x4, lookup, lookup_quad},
    pack,
};
use cubecl::prelude::*;

/// What all planes of a cube go through: items of rows and tokens, and blocks of k.
#[derive(CubeType)]
pub(super) struct Walk {
    pub(super) items: usize,
    pub(super) token_tiles: usize,
    /// The first tile of 16 rows of this plane in the first rows of all.
    pub(super) own: usize,
    pub(super) tiles: usize,
    pub(super) k_first: usize,
    pub(super) k_end: usize,
    pub(super) k_blocks: usize,
    pub(super) lane: usize,
}

/// The block of k that a plane loads next, and where its words and scales lie in each of its row tiles.
#[derive(CubeType)]
pub(super) struct Place {
    item: usize,
    kb: usize,
    /// This lane's first word of the block.
    words: Array<usize>,
    /// This lane's scales of the block's first group; where groups are longer than blocks, of the row's first group.
    scales: Array<usize>,
}

#[cube]
pub(super) fn place_of(item: usize, walk: &Walk, #[comptime] shape: Shape) -> Place {
    let words = Array::<usize>::new(comptime!(shape.row_tiles()));
    let scales = Array::<usize>::new(comptime!(shape.row_tiles()));
    let mut place = Place { item, kb: walk.k_first, words, scales };
    seek(&mut place, walk, shape);
    place
}

/// To the first block of k of the item; what does not exist is replaced by what does.
#[cube]
fn seek(place: &mut Place, walk: &Walk, #[comptime] shape: Shape) {
    let rows = min(place.item, walk.items - 1) / walk.token_tiles;
    let first = rows * comptime!(shape.plan.rows() / 16) + walk.own;
    place.kb = walk.k_first;
    let kb = min(place.kb, walk.k_blocks - 1);
    #[unroll]
    for i in 0..comptime!(shape.row_tiles()) {
        let tile = min(first + comptime!(4 * i), walk.tiles - 1);
        place.words[i] =
            (tile * walk.k_blocks + kb) * comptime!(32 * shape.words()) + walk.lane * 4;
        let group = if comptime!(shape.group == 0) {
            tile
        } else if comptime!(shape.long_groups()) {
            tile * walk.k_blocks.div_ceil(comptime!(shape.group as usize / pack::BLOCK_K))
        } else {
            (tile * walk.k_blocks + kb) * comptime!(shape.groups())
        };
        place.scales[i] = group * 8 + walk.lane / 4;
    }
}

/// To the next block of k; after the last of an item, to the next item.
#[cube]
pub(super) fn next(place: &mut Place, walk: &Walk, #[comptime] shape: Shape) {
    place.kb += 1;
    #[unroll]
    for i in 0..comptime!(shape.row_tiles()) {
        place.words[i] += comptime!(32 * shape.words());
        if comptime!(shape.group != 0 && !shape.long_groups()) {
            place.scales[i] += comptime!(8 * shape.groups());
        }
    }
    if place.kb >= walk.k_end {
        place.item += CUBE_COUNT_X as usize;
        seek(place, walk, shape);
    }
}

/// A lane's words of row tile `i`.
#[cube]
pub(super) fn load_words(
    words: &[u32],
    into: &mut Array<u32>,
    place: &Place,
    lane: usize,
    #[comptime] i: usize,
    #[comptime] shape: Shape,
) {
    let at = place.words[i];
    let own = comptime!(i * shape.words());
    let head = load_stream_x4(words, at);
    #[unroll]
    for w in 0..4usize {
        into[own + w] = head.extract(w);
    }
    if comptime!(shape.bits == 4) {
        let tail = load_stream_x4(words, at + 128);
        #[unroll]
        for w in 0..4usize {
            into[own + 4 + w] = tail.extract(w);
        }
    }
    if comptime!(shape.bits == 3) {
        // Two words a lane, where those before were four.
        let tail = load_stream_x2(words, at + 128 - lane * 2);
        into[own + 4] = tail.extract(0usize);
        into[own + 5] = tail.extract(1usize);
    }
}

/// The scales that go with [`load_words`]: those of rows g and g + 8, for each group of the block.
#[cube]
pub(super) fn load_scales<F: Float>(
    scales: &[Vector<F, Const<2>>],
    into: &mut Array<u32>,
    place: &Place,
    #[comptime] i: usize,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for group in 0..comptime!(shape.groups()) {
        let at = if comptime!(shape.long_groups()) {
            place.scales[i] + place.kb / comptime!(shape.group as usize / pack::BLOCK_K) * 8
        } else {
            place.scales[i] + comptime!(8 * group)
        };
        into[comptime!(i * shape.groups() + group)] = load_pair::<F>(scales, at);
    }
}

/// The A operand of the steps of a group of row tile i: four registers a step ([`crate::pack`] has the layout).
#[cube]
pub(super) fn decode<A: Size>(
    words: &Array<u32>,
    table: u32,
    #[comptime] unit: (usize, usize),
    #[comptime] shape: Shape,
) -> Vector<u32, A> {
    let (i, group) = comptime!(unit);
    let own = comptime!(i * shape.words());
    let mut a = Vector::<u32, A>::new(0u32);
    #[unroll]
    for step in 0..comptime!(shape.steps()) {
        let f = comptime!(group * shape.steps() + step);
        if comptime!(shape.bits == 2) {
            #[unroll]
            for row in 0..2usize {
                let quad = lookup_quad(
                    words[comptime!(own + f / 2)],
                    table,
                    comptime!((f % 2 * 2 + row) as u32),
                );
                a.insert(comptime!(4 * step + row), quad.extract(0usize));
                a.insert(comptime!(4 * step + row + 2), quad.extract(1usize));
            }
        } else {
            let mut indices = Array::<u32>::new(1usize);
            if comptime!(shape.bits == 4) {
                indices[0] = words[comptime!(own + f)];
            } else {
                let first = comptime!(own + f / 4 * 3);
                if comptime!(f % 4 < 3) {
                    indices[0] = words[comptime!(first + f % 4)] & 0x3f3f_3f3fu32;
                } else {
                    indices[0] = ((words[first] >> 6u32) & 0x0303_0303u32)
                        | ((words[first + 1] >> 4u32) & 0x0c0c_0c0cu32)
                        | ((words[first + 2] >> 2u32) & 0x3030_3030u32);
                }
            }
            #[unroll]
            for slot in 0..4usize {
                a.insert(
                    comptime!(4 * step + slot),
                    lookup(indices[0], table, comptime!(slot as u32)),
                );
            }
        }
    }
    a
}
