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

/// The block of k, and the first of the tiles of 16 rows, that a plane loads next: one of each 64 rows.
#[derive(CubeType)]
pub(super) struct Place {
    pub(super) item: usize,
    pub(super) tile: usize,
    pub(super) kb: usize,
}

#[cube]
pub(super) fn place_of(item: usize, walk: &Walk, #[comptime] shape: Shape) -> Place {
    let rows = min(item, walk.items - 1) / walk.token_tiles;
    Place { item, tile: rows * comptime!(shape.plan.rows() / 16) + walk.own, kb: walk.k_first }
}

/// To the next block of k; after the last of an item, to the next item.
#[cube]
pub(super) fn next(place: &mut Place, walk: &Walk, #[comptime] shape: Shape) {
    place.kb += 1;
    if place.kb >= walk.k_end {
        place.item += CUBE_COUNT_X as usize;
        let rows = min(place.item, walk.items - 1) / walk.token_tiles;
        place.tile = rows * comptime!(shape.plan.rows() / 16) + walk.own;
        place.kb = walk.k_first;
    }
}

/// A lane's words of row tile `i`; what does not exist is replaced by what does.
#[cube]
pub(super) fn load_words(
    words: &[u32],
    into: &mut Array<u32>,
    place: &Place,
    walk: &Walk,
    #[comptime] i: usize,
    #[comptime] shape: Shape,
) {
    let tile = min(place.tile + comptime!(4 * i), walk.tiles - 1);
    let block =
        (tile * walk.k_blocks + min(place.kb, walk.k_blocks - 1)) * comptime!(32 * shape.words());
    let own = comptime!(i * shape.words());
    let head = load_stream_x4(words, block + walk.lane * 4);
    #[unroll]
    for w in 0..4usize {
        into[own + w] = head.extract(w);
    }
    if comptime!(shape.bits == 4) {
        let tail = load_stream_x4(words, block + 128 + walk.lane * 4);
        #[unroll]
        for w in 0..4usize {
            into[own + 4 + w] = tail.extract(w);
        }
    }
    if comptime!(shape.bits == 3) {
        let tail = load_stream_x2(words, block + 128 + walk.lane * 2);
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
    walk: &Walk,
    #[comptime] i: usize,
    #[comptime] shape: Shape,
) {
    let tile = min(place.tile + comptime!(4 * i), walk.tiles - 1);
    let kb = min(place.kb, walk.k_blocks - 1);
    let first = if comptime!(shape.group == 0) {
        tile
    } else if comptime!(shape.group as usize <= pack::BLOCK_K) {
        (tile * walk.k_blocks + kb) * comptime!(shape.groups())
    } else {
        let blocks = comptime!((shape.group as usize).div_ceil(pack::BLOCK_K));
        tile * walk.k_blocks.div_ceil(blocks) + kb / blocks
    };
    #[unroll]
    for group in 0..comptime!(shape.groups()) {
        into[comptime!(i * shape.groups() + group)] =
            load_pair::<F>(scales, (first + group) * 8 + walk.lane / 4);
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
