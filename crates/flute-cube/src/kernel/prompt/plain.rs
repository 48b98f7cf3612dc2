//! In ordinary arithmetic: any device whose cubes have 256 units.
//!
//! A unit scores one token against one position of a tile, and owns every sixteenth vector of that token's weighted
//! values. Nothing but the queries, the scores and their weights lies in shared memory; keys and values come through the
//! cache, where the tokens of a cube meet.

use super::{CACHE_BLOCK, MASKED, Shape, end_of, first_of, sight, width};
use crate::{
    Attend, AttendBuffers,
    kernel::blocks::{block_at, row_of},
};
use cubecl::{ir::ElemType, prelude::Client, prelude::*};

/// Tokens of a cube, positions of a tile, and units that share a token.
pub(super) const TOKENS: usize = 16;
pub(super) const UNITS: usize = TOKENS * TOKENS;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(super) width: usize,
    /// Vectors of a head.
    vectors: usize,
    capped: bool,
    windowed: bool,
    dtype: crate::Dtype,
}

impl Form {
    pub(super) fn new(client: &Client, problem: &Attend, buffers: &AttendBuffers) -> Self {
        let Attend { dim, cap, window, dtype, .. } = *problem;
        let AttendBuffers { query, keys, values, y, .. } = buffers;
        let all = [query, keys, values, y].map(|buffer| (buffer, dtype.size()));
        let width = width(client, dim, &all);
        let (capped, windowed) = (cap.is_some(), window.is_some());
        Self { width, vectors: dim / width, capped, windowed, dtype }
    }

    /// Vectors of a token that a unit owns at most.
    fn own(self) -> usize {
        self.vectors.div_ceil(TOKENS)
    }
}

/// Bytes of shared memory.
pub(super) fn bytes(dim: usize) -> usize {
    4 * (TOKENS * dim + 2 * UNITS)
}

#[cube(launch_unchecked)]
pub(super) fn plain<F: Float, N: Size>(
    query: &[Vector<F, N>],
    keys: &[Vector<F, N>],
    values: &[Vector<F, N>],
    start: &[i32],
    table: &[i32],
    y: &mut [Vector<F, N>],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let vectors = comptime!(form.vectors);
    let (head, batch) = (CUBE_POS_X as usize, CUBE_POS_Z as usize);
    let heads = CUBE_COUNT_X as usize;
    let unit = UNIT_POS as usize;
    let (own, slot) = (unit / TOKENS, unit % TOKENS);
    let block = CUBE_POS_Y as usize * TOKENS;
    let last = min(block + TOKENS, shape.tokens) - 1usize;
    let sight = sight(start[batch], &shape);
    let (block_first, block_end) =
        (first_of(block, &sight, &shape, form.windowed), end_of(last, &sight));
    let token = min(block + own, last);
    let (first, end) = (first_of(token, &sight, &shape, form.windowed), end_of(token, &sight));
    let (key_heads, key_head) = (heads / shape.group, head / shape.group);

    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(TOKENS * form.vectors));
    let rows = (batch * heads + head) * shape.tokens;
    let mut at = unit;
    while at < comptime!(TOKENS * form.vectors) {
        let row = rows + min(block + at / vectors, last);
        let query = Vector::<f32, N>::cast_from(query[row * vectors + at % vectors]);
        queries[at] = query * Vector::<f32, N>::new(shape.scale);
        at += UNITS;
    }
    sync_cube();

    let mut scores = Shared::<[f32]>::new_slice(UNITS);
    let mut weights = Shared::<[f32]>::new_slice(UNITS);
    let mut sums = Array::<Vector<f32, N>>::new(comptime!(form.own()));
    #[unroll]
    for i in 0..comptime!(form.own()) {
        sums[i] = Vector::<f32, N>::new(0.0f32);
    }
    let mut top = f32::new(MASKED);
    let mut total = 0.0f32;
    let mut begin = block_first / TOKENS * TOKENS;
    while begin < block_end {
        let held = block_at(table, batch * shape.entries + begin / CACHE_BLOCK);
        // What lies in no block adds nothing.
        if held < shape.blocks {
            let tile = row_of(held, key_heads, key_head, begin);
            // Positions that nobody here sees may hold anything: one that somebody sees is read instead.
            let position = begin + slot;
            let seen_here = min(max(position, block_first), block_end - 1usize) - begin;
            let row = (tile + seen_here) * vectors;
            let mut score = 0.0f32;
            for i in 0..vectors {
                let (query, key) =
                    (queries[own * vectors + i], Vector::<f32, N>::cast_from(keys[row + i]));
                #[unroll]
                for j in 0..comptime!(form.width) {
                    score += query.extract(j) * key.extract(j);
                }
            }
            if comptime!(form.capped) {
                // A shader's tanh may overflow where this one has long been 1.
                score = shape.cap * clamp(score / shape.cap, -15.0f32, 15.0f32).tanh();
            }
            let seen = position >= first && position < end;
            let score = select(seen, score, f32::new(MASKED));
            scores[unit] = score;
            sync_cube();
            let mut higher = top;
            #[unroll]
            for j in 0..TOKENS {
                higher = max(higher, scores[own * TOKENS + j]);
            }
            // Against 0 where nothing was seen yet, so that weights of what is not seen are 0 there too.
            let base = select(higher > f32::new(MASKED), higher, 0.0f32);
            let kept = (top - base).exp();
            top = higher;
            weights[unit] = (score - base).exp();
            sync_cube();
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..comptime!(form.own()) {
                sums[i] *= Vector::<f32, N>::new(kept);
            }
            for j in 0..TOKENS {
                let weight = weights[own * TOKENS + j];
                sum += weight;
                let seen_here = min(max(begin + j, block_first), block_end - 1usize) - begin;
                let row = (tile + seen_here) * vectors;
                #[unroll]
                for i in 0..comptime!(form.own()) {
                    let at = min(comptime!(i * TOKENS) + slot, vectors - 1usize);
                    let value = Vector::<f32, N>::cast_from(values[row + at]);
                    sums[i] += value * Vector::<f32, N>::new(weight);
                }
            }
            total = total * kept + sum;
        }
        begin += TOKENS;
        // The next scores may come: the last weights are read after another barrier than they are written before.
    }
    // A token that sees nothing gets nothing.
    let factor = select(total > 0.0f32, 1.0f32 / total, 0.0f32);
    let to = ((batch * shape.tokens + token) * heads + head) * vectors;
    #[unroll]
    for i in 0..comptime!(form.own()) {
        let at = comptime!(i * TOKENS) + slot;
        if block + own < shape.tokens && at < vectors {
            let result = sums[i] * Vector::<f32, N>::new(factor);
            y[to + at] = Vector::<F, N>::cast_from(result);
        }
    }
}
