//! Sixteen positions: their copies, their scores, and their weighted values.

use super::{Form, ROWS, Shape, walk::Walk};
use crate::kernel::{
    blocks::row_of,
    prompt::ptx::load_transposed,
    ptx::{F4, U4, copy_stream, load_matrices, mma},
};
use cubecl::prelude::*;

/// Asks for the keys, or the values, of the 16 positions from `begin` on, which lie in `block`. What the sequence does not
/// see becomes 0: the cache may hold anything there, and what it holds must not meet a weight of 0.
#[cube]
pub(super) fn bring(
    cache: &[U4],
    begin: usize,
    block: usize,
    target: u32,
    walk: &Walk,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let row_vectors = comptime!(form.dim / 8);
    let there = block < shape.blocks;
    // Of a tile that lies in no block nothing is read, but addresses are those of memory.
    let block = min(block, shape.blocks - 1usize);
    let from = row_of(block, CUBE_COUNT_Y as usize, CUBE_POS_Y as usize, begin) * row_vectors;
    #[unroll]
    for round in 0..comptime!(ROWS * form.dim / 8 / 32) {
        let vector = comptime!(32 * round) + lane;
        let row = vector / row_vectors;
        let position = begin + row;
        let seen = there && position >= walk.seen.first && position < walk.copied;
        // Rows are a vector longer there.
        let to = target + ((vector + row) * 16) as u32;
        copy_stream(cache, from + vector, to, 0u32, seen, 16u32);
    }
}

/// The products of keys and queries: in element j those of positions g and g + 8 of the tile, two each, with heads
/// 8j + 2t and the next.
#[cube]
pub(super) fn score(queries: &Array<u32>, keys: u32, #[comptime] form: Form) -> Array<F4> {
    let (columns, steps) = comptime!((form.columns(), form.dim / 16));
    // Two chains, since one waits for itself.
    let mut chains = Array::<F4>::new(comptime!(2 * columns));
    #[unroll]
    for i in 0..comptime!(2 * columns) {
        chains[i] = F4::new(0.0f32);
    }
    #[unroll]
    for step in 0..steps {
        let k = load_matrices(keys, comptime!(32 * step as u32));
        let (k0, k1) = (k.extract(0usize), k.extract(1usize));
        let (k2, k3) = (k.extract(2usize), k.extract(3usize));
        #[unroll]
        for j in 0..columns {
            let (q, at) = comptime!((2 * (j * steps + step), step % 2 * columns + j));
            let (q0, q1) = (queries[q], queries[comptime!(q + 1)]);
            chains[at] = mma(k0, k1, k2, k3, q0, q1, chains[at], comptime!(form.ty()));
        }
    }
    let mut scores = Array::<F4>::new(columns);
    #[unroll]
    for j in 0..columns {
        scores[j] = chains[j] + chains[comptime!(columns + j)];
    }
    scores
}

/// Adds the values of a tile, weighted: in element `j · dim / 16 + i` those of features 16i + g and 16i + g + 8, two each,
/// with heads 8j + 2t and the next.
#[cube]
pub(super) fn gather(
    weights: &Array<u32>,
    sums: &mut Array<F4>,
    values: u32,
    #[comptime] form: Form,
) {
    let tiles = comptime!(form.dim / 16);
    #[unroll]
    for i in 0..tiles {
        let v = load_transposed(values, comptime!(32 * i as u32));
        let (v0, v1) = (v.extract(0usize), v.extract(1usize));
        let (v2, v3) = (v.extract(2usize), v.extract(3usize));
        #[unroll]
        for j in 0..comptime!(form.columns()) {
            let at = comptime!(j * tiles + i);
            let (w0, w1) = (weights[comptime!(2 * j)], weights[comptime!(2 * j + 1)]);
            sums[at] = mma(v0, v1, v2, v3, w0, w1, sums[at], comptime!(form.ty()));
        }
    }
}
