//! One chunk of positions of the heads that share a head of keys.

use super::{CHUNK, Form, HEADS, MASKED, PARTS, PIECES, Seen, Shape, UNITS, seen};
use crate::kernel::blocks::{block_at, row_of};
use cubecl::{ir::ElemType, prelude::*};

/// Leaves the weighted values of each head in `sums` `[batch, query heads, splits, dim]`, and in `stats` `[.., 2]` the
/// greatest score of the chunk and the sum of the exponentials of what the others lie below it. Cubes whose chunk a
/// sequence does not see leave nothing.
#[cube(launch_unchecked)]
pub(super) fn partial<F: Float, N: Size>(
    query: &[Vector<F, N>],
    keys: &[Vector<F, N>],
    values: &[Vector<F, N>],
    start: &[i32],
    table: &[i32],
    sums: &mut [Vector<f32, N>],
    stats: &mut [f32],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let chunk = chunk(start[CUBE_POS_Z as usize], table, &shape, form);
    let vectors = comptime!(form.vectors);
    if is_missing(&chunk, &shape) {
        leave_nothing(sums, stats, &chunk, &shape, form);
    } else if is_seen(&chunk) {
        let mut rows = Shared::<[Vector<f32, N>]>::new_slice(comptime!(form.rows() * vectors));
        let mut at = UNIT_POS as usize;
        while at < comptime!(form.group * vectors) {
            let query = Vector::<f32, N>::cast_from(query[chunk.first_head * vectors + at]);
            rows[at] = query * Vector::<f32, N>::new(shape.scale);
            at += UNITS;
        }
        sync_cube();
        attend::<F, N>(keys, values, &rows, sums, stats, &chunk, &shape, form);
    }
}

/// What a cube works on.
#[derive(CubeType)]
pub(super) struct Chunk {
    /// Which of those of its head.
    pub(super) split: usize,
    /// Its first position.
    pub(super) begin: usize,
    /// That of the cache.
    pub(super) block: usize,
    /// The first vector of it and of the head of keys in the cache.
    pub(super) cache: usize,
    /// The first of the query heads, of those of all sequences.
    pub(super) first_head: usize,
    pub(super) seen: Seen,
    /// The place in the chunk of what the cube itself rotates, whose key and value stand behind the queries; beyond the
    /// last if it rotates none.
    pub(super) new: usize,
}

/// The chunk of this cube, in which nothing is new, for a sequence that stands at `start`.
#[cube]
pub(super) fn chunk(start: i32, table: &[i32], shape: &Shape, #[comptime] form: Form) -> Chunk {
    let (split, key_head, batch) = (CUBE_POS_X as usize, CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let key_heads = CUBE_COUNT_Y as usize;
    let seen = seen(start, shape.capacity, shape.window, form.windowed);
    let chunk = seen.first / CHUNK + split;
    let begin = chunk * CHUNK;
    // Looked up before anybody knows whether it is seen: without a window the load waits for no other.
    let block = block_at(table, batch * shape.entries + min(chunk, shape.entries - 1));
    let cache = row_of(block, key_heads, key_head, begin) * comptime!(form.vectors);
    let first_head = (batch * key_heads + key_head) * comptime!(form.group);
    Chunk { split, begin, block, cache, first_head, seen, new: CHUNK.runtime() }
}

#[cube]
pub(super) fn is_seen(chunk: &Chunk) -> bool {
    chunk.begin < chunk.seen.end
}

/// Whether it would be seen, and lies in no block.
#[cube]
pub(super) fn is_missing(chunk: &Chunk, shape: &Shape) -> bool {
    chunk.begin < chunk.seen.end && chunk.block >= shape.blocks
}

/// Where nothing is stored: the fold gets a chunk without weight.
#[cube]
pub(super) fn leave_nothing<N: Size>(
    sums: &mut [Vector<f32, N>],
    stats: &mut [f32],
    chunk: &Chunk,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let vectors = comptime!(form.vectors);
    let unit = UNIT_POS as usize;
    if unit < form.group {
        let place = 2 * ((chunk.first_head + unit) * shape.splits + chunk.split);
        stats[place] = f32::new(MASKED);
        stats[place + 1] = 0.0f32;
    }
    let mut at = unit;
    while at < comptime!(form.group * vectors) {
        let place = (chunk.first_head + at / vectors) * shape.splits + chunk.split;
        sums[place * vectors + at % vectors] = Vector::<f32, N>::new(0.0f32);
        at += UNITS;
    }
}

/// Attends over the chunk. `rows` are the heads' queries, times the scale.
#[cube]
pub(super) fn attend<F: Float, N: Size>(
    keys: &[Vector<F, N>],
    values: &[Vector<F, N>],
    rows: &Shared<[Vector<f32, N>]>,
    sums: &mut [Vector<f32, N>],
    stats: &mut [f32],
    chunk: &Chunk,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let group = comptime!(form.group);
    let vectors = comptime!(form.vectors);
    let unit = UNIT_POS as usize;
    let mut scores = Shared::<[f32]>::new_slice(comptime!(group * CHUNK));
    score::<F, N>(keys, rows, &mut scores, chunk, shape, form);
    let mut pieces = Shared::<[f32]>::new_slice(comptime!(group * PIECES));
    let mut tops = Shared::<[f32]>::new_slice(comptime!(group * PIECES));
    weigh(&mut scores, &mut tops, &mut pieces, form);
    if unit < group {
        let mut sum = pieces[unit * PIECES];
        let mut top = tops[unit * PIECES];
        #[unroll]
        for i in 1..PIECES {
            sum += pieces[unit * PIECES + i];
            top = max(top, tops[unit * PIECES + i]);
        }
        let place = 2 * ((chunk.first_head + unit) * shape.splits + chunk.split);
        stats[place] = top;
        stats[place + 1] = sum;
    }

    let pile = comptime!(form.teams() * vectors);
    let mut teams =
        Shared::<[Vector<f32, N>]>::new_slice(comptime!(form.together * form.teams() * vectors));
    #[unroll]
    for turn in 0..comptime!(group.div_ceil(HEADS)) {
        let mut weighted = Array::<Vector<f32, N>>::new(comptime!(heads(turn, form)));
        weight::<F, N>(values, rows, &scores, &mut weighted, chunk, turn, form);
        #[unroll]
        for round in 0..comptime!(heads(turn, form).div_ceil(form.together)) {
            let first = comptime!(round * form.together);
            let live = comptime!((heads(turn, form) - first).min(form.together));
            if unit < pile {
                #[unroll]
                for i in 0..live {
                    teams[i * pile + unit] = weighted[comptime!(first + i)];
                }
            }
            sync_cube();
            let mut at = unit;
            while at < comptime!(live * vectors) {
                let (i, lane) = (at / vectors, at % vectors);
                let mut sum = teams[i * pile + lane];
                #[unroll(form.teams() <= 16)]
                for team in 1..comptime!(form.teams()) {
                    sum += teams[i * pile + team * vectors + lane];
                }
                let head = chunk.first_head + comptime!(turn * HEADS + first) + i;
                sums[(head * shape.splits + chunk.split) * vectors + lane] = sum;
                at += UNITS;
            }
            sync_cube();
        }
    }
}

/// Heads of a turn.
fn heads(turn: usize, form: Form) -> usize {
    (form.group - turn * HEADS).min(HEADS)
}

/// `slot` if the sequence sees it, else the nearest one that it sees: a place that was written, so that loads need not
/// wait for a branch. What is read for such a slot has no weight.
#[cube]
fn visible(slot: usize, chunk: &Chunk) -> usize {
    min(max(chunk.begin + slot, chunk.seen.first), chunk.seen.end - 1) - chunk.begin
}

/// A vector of what the cache holds at `slot`, or of row `row` of `rows` if the cube itself has just rotated it. Both are
/// read, since loads wait for no branch, and one is dropped: the row of a cube that rotated none holds anything, and in
/// place of the new position, which this launch writes, the one beside it in its block is read.
#[cube]
fn held<F: Float, N: Size>(
    cache: &[Vector<F, N>],
    rows: &Shared<[Vector<f32, N>]>,
    slot: usize,
    at: usize,
    chunk: &Chunk,
    #[comptime] row: usize,
    #[comptime] form: Form,
) -> Vector<f32, N> {
    let vectors = comptime!(form.vectors);
    if comptime!(form.rotated.is_some()) {
        let new = slot == chunk.new;
        let from = chunk.cache + select(new, slot ^ 1, slot) * vectors + at;
        select(new, rows[row * vectors + at], Vector::<f32, N>::cast_from(cache[from]))
    } else {
        Vector::<f32, N>::cast_from(cache[chunk.cache + slot * vectors + at])
    }
}

/// The scores of the chunk, masked where the sequence does not look.
#[cube]
fn score<F: Float, N: Size>(
    keys: &[Vector<F, N>],
    rows: &Shared<[Vector<f32, N>]>,
    scores: &mut Shared<[f32]>,
    chunk: &Chunk,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let group = comptime!(form.group);
    let vectors = comptime!(form.vectors);
    let unit = UNIT_POS as usize;
    let (slot, part) = (unit / PARTS, unit % PARTS);
    let mut dots = Array::<f32>::new(group);
    #[unroll]
    for head in 0..group {
        dots[head] = 0.0f32;
    }
    let place = visible(slot, chunk);
    #[unroll]
    for i in 0..comptime!(vectors / PARTS) {
        let at = i * PARTS + part;
        let key = held::<F, N>(keys, rows, place, at, chunk, group, form);
        #[unroll]
        for head in 0..group {
            let query = rows[head * vectors + at];
            #[unroll]
            for j in 0..comptime!(form.width) {
                dots[head] += query.extract(j) * key.extract(j);
            }
        }
    }
    let mut parts = Shared::<[f32]>::new_slice(comptime!(group * PARTS * CHUNK));
    #[unroll]
    for head in 0..group {
        parts[(head * PARTS + part) * CHUNK + slot] = dots[head];
    }
    sync_cube();
    let mut at = unit;
    while at < comptime!(group * CHUNK) {
        let (head, slot) = (at / CHUNK, at % CHUNK);
        let mut sum = parts[head * comptime!(PARTS * CHUNK) + slot];
        #[unroll]
        for part in 1..PARTS {
            sum += parts[(head * PARTS + part) * CHUNK + slot];
        }
        if comptime!(form.capped) {
            // A shader's tanh may overflow where this one has long been 1.
            sum = shape.cap * clamp(sum / shape.cap, -15.0f32, 15.0f32).tanh();
        }
        let position = chunk.begin + slot;
        let visible = position >= chunk.seen.first && position < chunk.seen.end;
        scores[at] = select(visible, sum, f32::new(MASKED));
        at += UNITS;
    }
    sync_cube();
}

/// Scores to weights: the exponentials of what they lie below their head's greatest. Leaves the greatest and the sum of
/// each piece of a head.
#[cube]
fn weigh(
    scores: &mut Shared<[f32]>,
    tops: &mut Shared<[f32]>,
    pieces: &mut Shared<[f32]>,
    #[comptime] form: Form,
) {
    let group = comptime!(form.group);
    let length = comptime!(CHUNK / PIECES);
    let unit = UNIT_POS as usize;
    if unit < comptime!(group * PIECES) {
        let mut top = scores[unit * length];
        #[unroll]
        for i in 1..length {
            top = max(top, scores[unit * length + i]);
        }
        tops[unit] = top;
    }
    sync_cube();
    let mut at = unit;
    while at < comptime!(group * CHUNK) {
        let head = at / CHUNK;
        let mut top = tops[head * PIECES];
        #[unroll]
        for i in 1..PIECES {
            top = max(top, tops[head * PIECES + i]);
        }
        // A chunk holds a position that is seen, so that its greatest score is one.
        scores[at] = (scores[at] - top).exp();
        at += UNITS;
    }
    sync_cube();
    if unit < comptime!(group * PIECES) {
        let mut sum = scores[unit * length];
        #[unroll]
        for i in 1..length {
            sum += scores[unit * length + i];
        }
        pieces[unit] = sum;
    }
    sync_cube();
}

/// What a unit's team adds to a vector of each head of the turn.
#[cube]
fn weight<F: Float, N: Size>(
    values: &[Vector<F, N>],
    rows: &Shared<[Vector<f32, N>]>,
    scores: &Shared<[f32]>,
    weighted: &mut Array<Vector<f32, N>>,
    chunk: &Chunk,
    #[comptime] turn: usize,
    #[comptime] form: Form,
) {
    let vectors = comptime!(form.vectors);
    let unit = UNIT_POS as usize;
    let (team, lane) = (unit / vectors, unit % vectors);
    #[unroll]
    for i in 0..comptime!(heads(turn, form)) {
        weighted[i] = Vector::<f32, N>::new(0.0f32);
    }
    if team < comptime!(form.teams()) {
        #[unroll(form.turns() <= 8)]
        for turn_of_team in 0..comptime!(form.turns()) {
            // Teams whose number does not divide the chunk end beyond it.
            let slot = min(team + turn_of_team * comptime!(form.teams()), CHUNK - 1);
            let within = team + turn_of_team * comptime!(form.teams()) < CHUNK;
            let place = visible(slot, chunk);
            let row = comptime!(form.group + 1);
            let value = held::<F, N>(values, rows, place, lane, chunk, row, form);
            #[unroll]
            for i in 0..comptime!(heads(turn, form)) {
                let score = scores[comptime!((turn * HEADS + i) * CHUNK) + slot];
                let factor = select(within, score, 0.0f32);
                weighted[i] += value * Vector::<f32, N>::new(factor);
            }
        }
    }
}
