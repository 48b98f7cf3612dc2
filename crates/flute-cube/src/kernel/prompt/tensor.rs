//! On the matrix unit: `mma.sync.m16n8k16`, CUDA of compute capability 8.0 on.
//!
//! A plane takes 16 tokens and holds their queries, the scores of a tile and the weighted values in registers, as
//! fragments: scores leave one product where the next takes its left operand, so they are rounded and never moved. Keys
//! and values of a tile lie in shared memory row by row, rows 16 bytes longer so that `ldmatrix` meets no bank twice;
//! the next tile is copied while one is worked on. Exponentials are powers of two: the factor of the scores holds log₂e.

use super::{
    CACHE_BLOCK, MASKED, Shape, end_of, first_of,
    ptx::{exchange, exp2, load_transposed, pack, reciprocal},
    sight,
    weights::{Running, mask, weigh},
};
use crate::{
    Attend, AttendBuffers, Dtype, Limits,
    kernel::blocks::{block_at, row_of},
    kernel::ptx::{F4, U4, await_copies, copy_async, load_matrices, mma, shared_address},
};
use cubecl::prelude::*;
use std::f64::consts::LOG2_E;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    planes: u32,
    dim: usize,
    capped: bool,
    pub(super) windowed: bool,
    bf16: bool,
}

impl Form {
    /// That of `problem`, if it can be served: on a matrix unit, with rows of keys that are whole numbers of its steps.
    pub(super) fn of(problem: &Attend, buffers: &AttendBuffers, limits: &Limits) -> Option<Self> {
        let Attend { batch, tokens, query_heads, dim, cap, window, dtype, .. } = *problem;
        let AttendBuffers { query, keys, values, y, .. } = buffers;
        // Eight planes read keys and values half as often as two cubes of four, which is how many run at once.
        let cubes = batch * query_heads * tokens.div_ceil(16 * 8);
        let aligned = [(query, 4), (keys, 16), (values, 16), (y, 4)]
            .iter()
            .all(|(buffer, bytes)| buffer.offset_start.unwrap_or(0).is_multiple_of(*bytes));
        let form = Self {
            planes: if cubes < 2 * limits.processors { 4 } else { 8 },
            dim,
            capped: cap.is_some(),
            windowed: window.is_some(),
            bf16: dtype == Dtype::BF16,
        };
        let served = limits.mma && dtype != Dtype::F32 && dim.is_multiple_of(16) && aligned;
        (served && 16 * form.vectors() <= limits.shared_bytes).then_some(form)
    }

    /// Planes of a cube.
    pub(super) fn planes(self) -> u32 {
        self.planes
    }

    /// Tokens of a cube.
    pub(super) fn tokens(self) -> usize {
        16 * self.planes as usize
    }

    /// Positions of a tile: what is left of the registers.
    pub(super) fn keys(self) -> usize {
        if self.dim > 128 { 32 } else { 64 }
    }

    /// Vectors of four weighted values that a lane holds.
    pub(super) fn sums(self) -> usize {
        self.dim / 8
    }

    /// A row of keys in shared memory, in vectors of 16 bytes: an odd number.
    fn stride(self) -> usize {
        self.dim / 8 + 1
    }

    /// Vectors of the keys of a tile, and of the values.
    fn side(self) -> usize {
        self.keys() * self.stride()
    }

    /// Vectors of 16 bytes of shared memory: two tiles.
    fn vectors(self) -> usize {
        4 * self.side()
    }

    fn ty(self) -> &'static str {
        if self.bf16 { "bf16" } else { "f16" }
    }
}

/// Factor of the products, and the cap, such that weights are powers of two. A capped score is `cap · tanh(x)` with
/// `tanh(x) = 1 − 2 / (e^2x + 1)`; its factor is that of 2x.
pub(in crate::kernel) fn scale(problem: &Attend) -> [f64; 2] {
    match problem.cap {
        Some(cap) => [2.0 * LOG2_E * problem.scale / cap, LOG2_E * cap],
        None => [LOG2_E * problem.scale, 1.0],
    }
}

/// Which positions of which sequence a cube reads, and of which head.
#[derive(CubeType)]
struct Source {
    /// Of the table, before those of the sequence.
    entries: usize,
    key_head: usize,
    key_heads: usize,
    first: usize,
    end: usize,
}

#[cube(launch_unchecked)]
pub(super) fn tensor(
    query: &[u32],
    keys: &[U4],
    values: &[U4],
    start: &[i32],
    table: &[i32],
    y: &mut [u32],
    shape: Shape,
    #[comptime] form: Form,
) {
    let tile_len = comptime!(form.keys());
    let (head, batch) = (CUBE_POS_X as usize, CUBE_POS_Z as usize);
    let heads = CUBE_COUNT_X as usize;
    let (lane, plane) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    // Blocks that see most come first: the last to begin should not be the longest.
    let block = from_last(CUBE_POS_Y, CUBE_COUNT_Y) * comptime!(form.tokens());
    let sight = sight(start[batch], &shape);
    let last = min(block + comptime!(form.tokens()), shape.tokens) - 1usize;
    let source = Source {
        entries: batch * shape.entries,
        key_head: head / shape.group,
        key_heads: heads / shape.group,
        first: first_of(block, &sight, &shape, form.windowed),
        end: end_of(last, &sight),
    };
    // The plane's tokens, and the lane's own two.
    let own = block + plane * 16usize;
    let (low, high) = (own + lane / 4, own + lane / 4 + 8usize);

    let shared = Shared::<[U4]>::new_aligned_slice(comptime!(form.vectors()), 128usize);
    // SAFETY: the address of shared memory that lives as long as the kernel.
    let stages = shared_address::<U4>(unsafe { shared.as_ptr_unchecked() });
    let mut at = source.first / tile_len;
    let tiles = source.end.div_ceil(tile_len);
    let mut block = block_of(table, &source, at, &shape, form);
    if at < tiles {
        let tile = Tile { at, block, stage: stage_of(at, stages, form) };
        bring(keys, values, &source, &tile, &shape, form);
    }

    let rows = (batch * heads + head) * shape.tokens;
    let row_low = (rows + min(low, last)) * comptime!(form.dim / 2) + lane % 4;
    let row_high = (rows + min(high, last)) * comptime!(form.dim / 2) + lane % 4;
    let mut queries = Array::<u32>::new(comptime!(form.dim / 4));
    #[unroll]
    for step in 0..comptime!(form.dim / 16) {
        queries[4 * step] = query[row_low + comptime!(8 * step)];
        queries[4 * step + 1] = query[row_high + comptime!(8 * step)];
        queries[4 * step + 2] = query[row_low + comptime!(8 * step + 4)];
        queries[4 * step + 3] = query[row_high + comptime!(8 * step + 4)];
    }
    let mut sums = Array::<F4>::new(comptime!(form.sums()));
    #[unroll]
    for i in 0..comptime!(form.sums()) {
        sums[i] = F4::new(0.0f32);
    }
    let mut running = Running {
        top_low: f32::new(MASKED),
        top_high: f32::new(MASKED),
        total_low: 0.0f32.runtime(),
        total_high: 0.0f32.runtime(),
    };
    // Keys are the right operand as they lie, values transposed: where a lane's row of matrices begins.
    let key_lane = ((lane % 8 + lane / 16 * 8) * comptime!(form.stride()) + lane / 8 % 2) * 16;
    let value_lane =
        comptime!(form.side() * 16) + (lane % 16 * comptime!(form.stride()) + lane / 16) * 16;
    let (first, end) = (first_of(own, &sight, &shape, form.windowed), end_of(own + 15, &sight));
    let (all_from, all_to) =
        (first_of(own + 15, &sight, &shape, form.windowed), end_of(own, &sight));
    while at < tiles {
        // Looked up while copies arrive.
        let next = block_of(table, &source, at + 1usize, &shape, form);
        await_copies();
        sync_cube();
        let stage = stage_of(at, stages, form);
        if at + 1 < tiles {
            let stage = stage_of(at + 1usize, stages, form);
            let tile = Tile { at: at + 1usize, block: next, stage };
            bring(keys, values, &source, &tile, &shape, form);
        }
        let begin = at * tile_len;
        // Some planes of the block see less than others, and nobody what lies in no block of the cache.
        if begin < end && begin + tile_len > first && block < shape.blocks {
            let mut scores = score(&queries, stage + key_lane as u32, &shape, form);
            if begin < all_from || begin + tile_len > all_to {
                mask(&mut scores, low, begin + lane % 4 * 2, &sight, &shape, form);
            }
            weigh(&mut scores, &mut sums, &mut running, form);
            gather(&scores, &mut sums, stage + value_lane as u32, form);
        }
        block = next;
        at += 1;
    }

    let total_low = running.total_low + exchange(running.total_low, 1u32);
    let total_low = total_low + exchange(total_low, 2u32);
    let total_high = running.total_high + exchange(running.total_high, 1u32);
    let total_high = total_high + exchange(total_high, 2u32);
    // A token that sees nothing gets nothing.
    let factor_low = select(total_low > 0.0f32, 1.0f32 / total_low, 0.0f32);
    let factor_high = select(total_high > 0.0f32, 1.0f32 / total_high, 0.0f32);
    let row_low = ((batch * shape.tokens + low) * heads + head) * comptime!(form.dim / 2);
    let row_high = row_low + 8 * heads * comptime!(form.dim / 2);
    #[unroll]
    for i in 0..comptime!(form.dim / 8) {
        let sum = sums[i];
        let column = comptime!(4 * i) + lane % 4;
        if low < shape.tokens {
            let (a, b) = (sum.extract(0usize) * factor_low, sum.extract(1usize) * factor_low);
            y[row_low + column] = pack(a, b, comptime!(form.ty()));
        }
        if high < shape.tokens {
            let (a, b) = (sum.extract(2usize) * factor_high, sum.extract(3usize) * factor_high);
            y[row_high + column] = pack(a, b, comptime!(form.ty()));
        }
    }
}

/// `place` of `count` as counted from the other end.
#[cube]
fn from_last(place: u32, count: u32) -> usize {
    (count - 1u32 - place) as usize
}

/// Where a tile lies: they take turns.
#[cube]
fn stage_of(tile: usize, stages: u32, #[comptime] form: Form) -> u32 {
    stages + tile as u32 % 2u32 * comptime!(form.side() as u32 * 32)
}

/// The cache's block in which tile `at` of the sequence lies.
#[cube]
fn block_of(
    table: &[i32],
    source: &Source,
    at: usize,
    shape: &Shape,
    #[comptime] form: Form,
) -> usize {
    // The tile behind the last may have no entry.
    let entry = min(at * comptime!(form.keys()) / CACHE_BLOCK, shape.entries - 1usize);
    block_at(table, source.entries + entry)
}

/// Positions that are copied together.
#[derive(CubeType)]
struct Tile {
    at: usize,
    /// The cache's block that has them.
    block: usize,
    /// Where they go.
    stage: u32,
}

/// Asks for the keys and values of a tile. Positions that nobody of the block sees become 0: the cache may hold anything
/// there, and what it holds must not meet a weight of 0.
#[cube]
fn bring(
    keys: &[U4],
    values: &[U4],
    source: &Source,
    tile: &Tile,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let tile_len = comptime!(form.keys());
    // Of a tile that lies in no block nothing is read, but addresses are those of memory.
    let block = min(tile.block, shape.blocks - 1usize);
    let begin = tile.at * tile_len;
    let first = row_of(block, source.key_heads, source.key_head, begin);
    let row_vectors = comptime!(form.dim / 8);
    let vectors = comptime!(form.keys() * row_vectors);
    let units = comptime!(2 * form.tokens());
    let unit = (UNIT_POS_Y * 32u32 + UNIT_POS_X) as usize;
    #[unroll]
    for round in 0..comptime!(vectors.div_ceil(units)) {
        let i = comptime!(round * units) + unit;
        let (row, vector) = (i / row_vectors, i % row_vectors);
        let position = begin + row;
        let seen = position >= source.first && position < source.end;
        let from = (first + row) * row_vectors + vector;
        let bytes = select(seen && tile.block < shape.blocks, 16u32, 0u32);
        let to = tile.stage + ((row * comptime!(form.stride()) + vector) * 16) as u32;
        if comptime!((round + 1) * units <= vectors) || i < vectors {
            copy_async(keys, from, to, bytes);
            copy_async(values, from, to + comptime!(form.side() as u32 * 16), bytes);
        }
    }
}

/// The scores of a tile: those of keys 8j + 2t and the next in element j, of token g and then of token g + 8.
#[cube]
fn score(queries: &Array<u32>, keys: u32, shape: &Shape, #[comptime] form: Form) -> Array<F4> {
    let tiles = comptime!(form.keys() / 8);
    let mut scores = Array::<F4>::new(tiles);
    #[unroll]
    for j in 0..tiles {
        scores[j] = F4::new(0.0f32);
    }
    #[unroll]
    for step in 0..comptime!(form.dim / 16) {
        let (q0, q1) = (queries[4 * step], queries[4 * step + 1]);
        let (q2, q3) = (queries[4 * step + 2], queries[4 * step + 3]);
        #[unroll]
        for pair in 0..comptime!(tiles / 2) {
            let distance = comptime!((pair * 16 * form.stride() + 2 * step) as u32 * 16);
            let k = load_matrices(keys, distance);
            #[unroll]
            for half in 0..2usize {
                let (k0, k1) = (k.extract(comptime!(2 * half)), k.extract(comptime!(2 * half + 1)));
                let at = comptime!(2 * pair + half);
                scores[at] = mma(q0, q1, q2, q3, k0, k1, scores[at], comptime!(form.ty()));
            }
        }
    }
    #[unroll]
    for j in 0..tiles {
        scores[j] *= F4::new(shape.scale);
        if comptime!(form.capped) {
            let mut capped = F4::new(0.0f32);
            #[unroll]
            for e in 0..4usize {
                // Far out the power is infinity or 0, and the hyperbolic tangent 1 or −1.
                let power = exp2(scores[j].extract(e));
                capped.insert(e, shape.cap - 2.0f32 * shape.cap * reciprocal(power + 1.0f32));
            }
            scores[j] = capped;
        }
    }
    scores
}

/// Adds the values of a tile, weighted.
#[cube]
fn gather(weights: &Array<F4>, sums: &mut Array<F4>, values: u32, #[comptime] form: Form) {
    let ty = comptime!(form.ty());
    #[unroll]
    for step in 0..comptime!(form.keys() / 16) {
        let (first, next) = (weights[2 * step], weights[2 * step + 1]);
        let w0 = pack(first.extract(0usize), first.extract(1usize), ty);
        let w1 = pack(first.extract(2usize), first.extract(3usize), ty);
        let w2 = pack(next.extract(0usize), next.extract(1usize), ty);
        let w3 = pack(next.extract(2usize), next.extract(3usize), ty);
        #[unroll]
        for pair in 0..comptime!(form.dim / 16) {
            let distance = comptime!((step * 16 * form.stride() + 2 * pair) as u32 * 16);
            let v = load_transposed(values, distance);
            #[unroll]
            for half in 0..2usize {
                let (v0, v1) = (v.extract(comptime!(2 * half)), v.extract(comptime!(2 * half + 1)));
                let at = comptime!(2 * pair + half);
                sums[at] = mma(w0, w1, w2, w3, v0, v1, sums[at], ty);
            }
        }
    }
}
