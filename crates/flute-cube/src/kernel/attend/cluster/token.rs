//! Queries as the right operand of the matrix unit, and the new token: its rotation, its place in the cache, and its row of
//! the last tile, which nobody reads back from there.

use super::{
    CHUNK, Form, ROWS, Shape,
    walk::{Walk, block_of},
};
use crate::kernel::{
    blocks::row_of,
    ptx::{F2, U4, load_floats, load_word},
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
    cos: &[F2],
    sin: &[F2],
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

/// What the new row is made of: words of the token and their rotations, and the block that it goes to.
#[derive(CubeType)]
pub(super) struct Raw {
    low: Array<u32>,
    high: Array<u32>,
    cos: Array<F2>,
    sin: Array<F2>,
    block: usize,
}

/// Asks for it, in the plane that fills it: together with the rotations of queries, not a trip to memory later.
#[cube]
pub(super) fn asked(
    qkv: &[u32],
    cos: &[F2],
    sin: &[F2],
    table: &[i32],
    walk: &Walk,
    #[comptime] form: Form,
) -> Raw {
    let mut raw = Raw {
        low: Array::<u32>::new(4usize),
        high: Array::<u32>::new(4usize),
        cos: Array::<F2>::new(4usize),
        sin: Array::<F2>::new(4usize),
        block: 0usize.runtime(),
    };
    if walk.owns {
        let (is_value, vector) = own_vector(form);
        let (key_head, key_heads) = (CUBE_POS_Y as usize, CUBE_COUNT_Y as usize);
        let heads = CUBE_POS_Z as usize * key_heads * comptime!(form.group + 2);
        let head = heads + (comptime!(form.group) + is_value) * key_heads + key_head;
        let from = head * comptime!(form.dim / 2) + 4 * vector;
        let rotation = walk.position * comptime!(form.dim / 4) + 4 * vector;
        #[unroll]
        for i in 0..4usize {
            raw.low[i] = load_word::<u32>(qkv, from + i);
            raw.high[i] = load_word::<u32>(qkv, from + comptime!(form.dim / 4) + i);
            raw.cos[i] = load_floats(cos, rotation + i);
            raw.sin[i] = load_floats(sin, rotation + i);
        }
        raw.block = block_of(table, walk, walk.chunks - 1usize);
    }
    raw
}

/// Whether the lane holds the value, and which vector of its halves. Heads of few features have fewer than there are lanes.
#[cube]
fn own_vector(#[comptime] form: Form) -> (usize, usize) {
    let lane = (UNIT_POS_X & 31u32) as usize;
    (lane / 16, min(lane % 16, comptime!(form.dim / 16 - 1)))
}

/// The new key, rotated, and the new value, which the plane whose tile of the last chunk has their position also writes into
/// the cache.
#[cube]
pub(super) fn store<F: Float>(
    raw: &Raw,
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
        let (is_value, vector) = own_vector(form);
        #[unroll]
        for i in 0..4usize {
            let (low, high) = (raw.low[i], raw.high[i]);
            let (first, second) = turned::<F, Const<2>>(
                Vector::<F, Const<2>>::reinterpret(low),
                Vector::<F, Const<2>>::reinterpret(high),
                raw.cos[i],
                raw.sin[i],
            );
            new.low.insert(i, select(is_value == 1, low, u32::reinterpret(first)));
            new.high.insert(i, select(is_value == 1, high, u32::reinterpret(second)));
        }
        if raw.block < shape.blocks && lane % 16 < half {
            let row = row_of(raw.block, CUBE_COUNT_Y as usize, CUBE_POS_Y as usize, walk.position);
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
