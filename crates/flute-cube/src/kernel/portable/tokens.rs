//! x on its way into shared memory: asked for in the type that it has, kept as f32.

use super::{Form, Shape};
use cubecl::prelude::*;

/// Asks for the rows of x from `token` on, at the four columns that this unit stages of each of the blocks of its plane
/// from `round` on: the two pairs of lane `unit % 4` in fragment `unit / 4`. Rows beyond m are the last one.
#[cube]
pub(super) fn fetch<F: Float, N: Size>(
    x: &[Vector<F, N>],
    values: &mut Array<Vector<F, Const<2>>>,
    token: usize,
    round: usize,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let unit = UNIT_POS_X as usize;
    #[unroll]
    for i in 0..comptime!(form.tokens) {
        let row = min(token + i, shape.m - 1) * (shape.k / N::value());
        #[unroll]
        for r in 0..comptime!(form.rounds) {
            let mut block = (round + r) * form.planes + UNIT_POS_Y as usize;
            if comptime!(form.whole) {
                block = min(block, shape.k / 128 - 1);
            }
            let pair = block * 64 + unit / 4 * 8 + unit % 4;
            let at = comptime!(2 * (i * form.rounds + r));
            values[at] = load_x(x, row, pair, shape.k, form);
            values[at + 1] = load_x(x, row, pair + 4, shape.k, form);
        }
    }
}

/// What [`fetch`] brought, or zeros beyond k, where lanes of the same plane look for it:
/// `[rounds, planes, tokens, fragment, t]`.
#[cube]
pub(super) fn store<F: Float>(
    staging: &mut Shared<[Vector<f32, Const<4>>]>,
    values: &Array<Vector<F, Const<2>>>,
    round: usize,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let plane = UNIT_POS_Y as usize;
    #[unroll]
    for r in 0..comptime!(form.rounds) {
        let there = ((round + r) * form.planes + plane) * 128 < shape.k;
        #[unroll]
        for i in 0..comptime!(form.tokens) {
            let mut four = Vector::<f32, Const<4>>::new(0.0);
            #[unroll]
            for half in 0..2usize {
                let pair = values[comptime!(2 * (i * form.rounds + r) + half)];
                #[unroll]
                for j in 0..2usize {
                    let value = select(there, f32::cast_from(pair.extract(j)), 0.0);
                    four.insert(comptime!(2 * half + j), value);
                }
            }
            let row = (plane + r * form.planes) * form.tokens + i;
            staging[row * 32 + UNIT_POS_X as usize] = four;
        }
    }
}

/// The two values of x at `2·pair` of the row that starts at vector `row`, zero beyond k.
#[cube]
fn load_x<F: Float, N: Size>(
    x: &[Vector<F, N>],
    row: usize,
    pair: usize,
    k: usize,
    #[comptime] form: Form,
) -> Vector<F, Const<2>> {
    let mut values = Vector::<F, Const<2>>::new(F::new(0.0));
    if comptime!(form.whole) {
        let both = x[row + pair];
        values.insert(0usize, both.extract(0usize));
        values.insert(1usize, both.extract(1usize));
    } else {
        let col = 2 * pair;
        if col < k {
            values.insert(0usize, x[row + col].extract(0usize));
        }
        if col + 1 < k {
            values.insert(1usize, x[row + col + 1].extract(0usize));
        }
    }
    values
}
