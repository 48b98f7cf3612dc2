//! Queries as the right operand of the matrix unit, and the new token: its rotation, its place in the cache, and its row of
//! the last tile, which nobody reads back from there.

use super::{
    CHUNK, Form, ROWS, Shape,
    walk::{Walk, block_of},
};
use crate::kernel::{
    blocks::row_of,
    ptx::{U4, load_word},
    rotate::turned,
};
use cubecl::prelude::*;

/// Of the new row the lane's vector of 16 bytes in the first half, and its partner in the second: the first 16 lanes hold
/// the key, the others the value.
#[derive(CubeType)]
pub(super) struct New {
    pub(super) low: U4,
    pub(super) high: U4,
}

/// The queries of the cube, of `tokens` with `heads` heads: in element `j · dim / 8 + e` features 8e + 2t and the next of
/// head 8j + g. Spare heads repeat the last one.
#[cube]
pub(super) fn loaded(tokens: &[u32], heads: usize, #[comptime] form: Form) -> Array<u32> {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let pieces = comptime!(form.dim / 8);
    let first = CUBE_POS_Z as usize * heads + CUBE_POS_Y as usize * comptime!(form.group);
    let mut queries = Array::<u32>::new(comptime!(form.columns() * pieces));
    #[unroll]
    for j in 0..comptime!(form.columns()) {
        let head = min(comptime!(8 * j) + lane / 4, comptime!(form.group - 1));
        let row = (first + head) * comptime!(form.dim / 2) + lane % 4;
        #[unroll]
        for e in 0..pieces {
            queries[comptime!(j * pieces + e)] = load_word::<u32>(tokens, row + comptime!(4 * e));
        }
    }
    queries
}

/// Rotates queries to `position`. A feature's partner is in the same lane, half of its pieces further.
#[cube]
pub(super) fn rotate<F: Float>(
    queries: &mut Array<u32>,
    cos: &[Vector<f32, Const<2>>],
    sin: &[Vector<f32, Const<2>>],
    position: usize,
    #[comptime] form: Form,
) {
    let half = comptime!(form.dim / 16);
    let row = position * comptime!(form.dim / 4) + (UNIT_POS_X & 3u32) as usize;
    #[unroll]
    for e in 0..half {
        let (c, s) = (cos[row + comptime!(4 * e)], sin[row + comptime!(4 * e)]);
        #[unroll]
        for j in 0..comptime!(form.columns()) {
            let low = comptime!(2 * j * half + e);
            let high = comptime!(low + half);
            let (first, second) = turned::<F, Const<2>>(
                Vector::<F, Const<2>>::reinterpret(queries[low]),
                Vector::<F, Const<2>>::reinterpret(queries[high]),
                c,
                s,
            );
            queries[low] = u32::reinterpret(first);
            queries[high] = u32::reinterpret(second);
        }
    }
}

/// The new key, rotated, and the new value, which the plane whose last tile has their position also writes into the cache.
#[cube]
pub(super) fn store<F: Float>(
    qkv: &[u32],
    cos: &[Vector<f32, Const<2>>],
    sin: &[Vector<f32, Const<2>>],
    table: &[i32],
    keys: &mut [U4],
    values: &mut [U4],
    walk: &Walk,
    shape: &Shape,
    #[comptime] form: Form,
) -> New {
    let mut new = New { low: U4::new(0u32), high: U4::new(0u32) };
    if walk.owns {
        let half = comptime!(form.dim / 16);
        let lane = (UNIT_POS_X & 31u32) as usize;
        // Heads of fewer features have fewer vectors than there are lanes.
        let (is_value, vector) = (lane / 16, min(lane % 16, comptime!(half - 1)));
        let (key_head, key_heads) = (CUBE_POS_Y as usize, CUBE_COUNT_Y as usize);
        let heads = CUBE_POS_Z as usize * key_heads * comptime!(form.group + 2);
        let head = heads + (comptime!(form.group) + is_value) * key_heads + key_head;
        let from = head * comptime!(form.dim / 2) + 4 * vector;
        let rotation = walk.position * comptime!(form.dim / 4) + 4 * vector;
        #[unroll]
        for i in 0..4usize {
            let (low, high) = (qkv[from + i], qkv[from + comptime!(form.dim / 4) + i]);
            let (first, second) = turned::<F, Const<2>>(
                Vector::<F, Const<2>>::reinterpret(low),
                Vector::<F, Const<2>>::reinterpret(high),
                cos[rotation + i],
                sin[rotation + i],
            );
            new.low.insert(i, select(is_value == 1, low, u32::reinterpret(first)));
            new.high.insert(i, select(is_value == 1, high, u32::reinterpret(second)));
        }
        let block = block_of(table, walk, walk.tiles - 1usize, shape);
        if block < shape.blocks && lane % 16 < half {
            let row = row_of(block, key_heads, key_head, walk.position);
            let to = row * comptime!(form.dim / 8) + vector;
            if is_value == 1 {
                values[to] = new.low;
                values[to + half] = new.high;
            } else {
                keys[to] = new.low;
                keys[to + half] = new.high;
            }
        }
    }
    new
}

/// Puts the new key, or the new value, into its row of the tile that begins at vector `stage`.
#[cube]
pub(super) fn put(
    shared: &mut Shared<[U4]>,
    new: &New,
    stage: usize,
    walk: &Walk,
    #[comptime] value: usize,
    #[comptime] form: Form,
) {
    let half = comptime!(form.dim / 16);
    let lane = (UNIT_POS_X & 31u32) as usize;
    // The zeros that other lanes have copied there have arrived.
    sync_plane();
    if lane / 16 == value && lane % 16 < half {
        let row = walk.position % CHUNK % ROWS * comptime!(form.stride());
        let to = stage + comptime!(value * form.side()) + row + lane % 16;
        shared[to] = new.low;
        shared[to + half] = new.high;
    }
}
