//! Sixteen positions: their copies, their scores, and their weighted values.

use super::{Form, ROWS, Shape, walk::Walk};
use crate::kernel::{
    blocks::row_of,
    prompt::ptx::load_transposed,
    ptx::{F4, U4, copy_stream_ahead, load_matrices, mma},
};
use cubecl::prelude::*;

/// Sixteen positions of a sequence, as a lane copies their keys or their values.
#[derive(CubeType)]
pub(super) struct Source {
    /// The lane's first vector in the cache.
    from: usize,
    /// The position of its first row, from the first that is seen on.
    row: usize,
    /// Positions that are copied, from there on.
    count: usize,
}

/// The 16 positions from `begin` on, which lie in `block`.
#[cube]
pub(super) fn source(
    begin: usize,
    block: usize,
    walk: &Walk,
    shape: &Shape,
    #[comptime] form: Form,
) -> Source {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let row_vectors = comptime!(form.dim / 8);
    // Of a tile that lies in no block nothing is read, but addresses are those of memory.
    let held = min(block, shape.blocks - 1usize);
    let row = row_of(held, CUBE_COUNT_Y as usize, CUBE_POS_Y as usize, begin);
    Source {
        from: row * row_vectors + lane,
        row: begin - walk.seen.first,
        count: select(block < shape.blocks, walk.copied - walk.seen.first, 0usize),
    }
}

/// Asks for the keys, or the values. What the sequence does not see becomes 0: the cache may hold anything there, and what
/// it holds must not meet a weight of 0.
#[cube]
pub(super) fn bring(cache: &[U4], source: &Source, target: u32, #[comptime] form: Form) {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let row_vectors = comptime!(form.dim / 8);
    #[unroll]
    for round in 0..comptime!(ROWS * form.dim / 8 / 32) {
        let ahead = comptime!(32 * 16 * round as u32);
        // Rows are a vector longer in shared memory. A row before the first that is seen wraps around.
        if comptime!(32 % row_vectors == 0) {
            let rows = comptime!(32 / row_vectors);
            let row = lane / row_vectors;
            let to = target + ((lane + row) * 16) as u32;
            let distance = comptime!((round * (32 + rows) * 16) as u32);
            let seen = source.row + row + comptime!(round * rows) < source.count;
            copy_stream_ahead(cache, source.from, ahead, to, distance, seen);
        } else {
            let vector = comptime!(32 * round) + lane;
            let row = vector / row_vectors;
            let to = target + ((vector + row) * 16) as u32;
            let seen = source.row + row < source.count;
            copy_stream_ahead(cache, source.from, ahead, to, 0u32, seen);
        }
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
