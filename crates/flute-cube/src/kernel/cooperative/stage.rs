//! What goes into shared memory: decoded weights and x, in rows of pairs that start in other banks.

use super::{Form, Shape};
use crate::kernel::portable::weight::{Words, pair_of};
use cubecl::prelude::*;

/// Decodes the columns of `part` of this plane's 16 rows of a block into stage `buffer`.
///
/// All lookups come before the first store, since a compiler that cannot tell the table from the stage would have each
/// wait for the one before.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn decode<F: Float>(
    weights: &mut Shared<[Vector<F, Const<2>>]>,
    table: &Shared<[Vector<F, Const<2>>]>,
    words: (Words, Words),
    factors: &Array<Vector<F, Const<2>>>,
    copy: u32,
    #[comptime] part: usize,
    #[comptime] buffer: usize,
    #[comptime] form: Form,
) {
    let (head, tail) = words;
    let (g, t) = (UNIT_POS_X as usize / 4, UNIT_POS_X as usize % 4);
    let first = comptime!(part * form.steps());
    let mut pairs = Array::<Vector<F, Const<2>>>::new(comptime!(4 * form.steps()));
    #[unroll]
    for i in 0..comptime!(4 * form.steps()) {
        pairs[i] = pair_of(
            table,
            head,
            tail,
            copy,
            comptime!(first + i / 4),
            i % 4,
            comptime!(form.weight),
        );
    }
    let row = UNIT_POS_Y as usize * 16 + g + comptime!(buffer * form.rows());
    let base = row * comptime!(form.stride()) + t;
    #[unroll]
    for i in 0..comptime!(4 * form.steps()) {
        let group = comptime!((first + i / 4) * 16 / form.weight.fold);
        let scale = factors[group].extract(comptime!(i % 2));
        let at = comptime!(i % 2 * 8 * form.stride() + i / 4 * 8 + i % 4 / 2 * 4);
        weights[base + at] = scaled(pairs[i], scale, form);
    }
}

/// `pair · scale`, rounded once.
#[cube]
fn scaled<F: Float>(
    pair: Vector<F, Const<2>>,
    scale: F,
    #[comptime] form: Form,
) -> Vector<F, Const<2>> {
    if comptime!(form.half) {
        pair * Vector::<F, Const<2>>::new(scale)
    } else {
        let wide = Vector::<f32, Const<2>>::cast_from(pair)
            * Vector::<f32, Const<2>>::new(f32::cast_from(scale));
        Vector::<F, Const<2>>::cast_from(wide)
    }
}

/// Asks for what this unit stages of the rows of x from `token` on, at the columns from `column` on. Rows beyond m are the
/// last one.
#[cube]
pub(super) fn fetch<F: Float, N: Size>(
    x: &[Vector<F, N>],
    values: &mut Array<Vector<F, N>>,
    token: usize,
    column: usize,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let vectors = shape.k / form.width;
    #[unroll]
    for i in 0..comptime!(form.own_pieces()) {
        let piece = UNIT_POS as usize + comptime!(i * form.units());
        let row = min(token + piece / comptime!(form.depth / form.piece()), shape.m - 1);
        let at = piece % comptime!(form.depth / form.piece());
        #[unroll]
        for load in 0..comptime!(form.loads()) {
            let vector = column / form.width + at * comptime!(form.loads()) + load;
            let slot = comptime!(i * form.loads() + load);
            if comptime!(form.weight.whole) {
                values[slot] = x[row * vectors + vector];
            } else {
                values[slot] = Vector::<F, N>::new(F::new(0.0));
                if vector < vectors {
                    values[slot] = x[row * vectors + vector];
                }
            }
        }
    }
}

/// What [`fetch`] brought into stage `buffer`.
// The same twice: one condition is known when the kernel is compiled and leaves no branch.
#[cube]
#[allow(clippy::if_same_then_else)]
pub(super) fn store<F: Float, N: Size>(
    rows: &mut Shared<[Vector<F, Const<2>>]>,
    values: &Array<Vector<F, N>>,
    #[comptime] buffer: usize,
    #[comptime] form: Form,
) {
    #[unroll]
    for i in 0..comptime!(form.own_pieces()) {
        let piece = UNIT_POS as usize + comptime!(i * form.units());
        if comptime!((i + 1) * form.units() <= form.pieces()) {
            put(rows, values, piece, i, buffer, form);
        } else if piece < comptime!(form.pieces()) {
            put(rows, values, piece, i, buffer, form);
        }
    }
}

/// The `i`th piece of this unit, which is `piece` of the stage.
#[cube]
fn put<F: Float, N: Size>(
    rows: &mut Shared<[Vector<F, Const<2>>]>,
    values: &Array<Vector<F, N>>,
    piece: usize,
    #[comptime] i: usize,
    #[comptime] buffer: usize,
    #[comptime] form: Form,
) {
    let row = piece / comptime!(form.depth / form.piece()) + comptime!(buffer * form.tokens);
    let at = piece % comptime!(form.depth / form.piece()) * comptime!(form.piece() / 2);
    let to = row * comptime!(form.stride()) + at;
    #[unroll]
    for pair in 0..comptime!(form.piece() / 2) {
        let mut both = Vector::<F, Const<2>>::new(F::new(0.0));
        #[unroll]
        for j in 0..2usize {
            let element = comptime!(2 * pair + j);
            let value = values[comptime!(i * form.loads() + element / form.width)];
            both.insert(j, value.extract(comptime!(element % form.width)));
        }
        rows[to + pair] = both;
    }
}
