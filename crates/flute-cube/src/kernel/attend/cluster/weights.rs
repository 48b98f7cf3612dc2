//! Scores to weights: what a sequence does not see, the greatest so far, and powers of two. A lane holds positions g and
//! g + 8 of a tile, and heads 2t and 2t + 1 of every eight.

use super::{Form, MASKED, Shape};
use crate::kernel::{
    prompt::ptx::{any, exchange, exp2, reciprocal},
    ptx::{F4, pack_transposed},
};
use cubecl::prelude::*;

/// What a lane knows of its heads, two of every eight: the greatest scores of the plane, and the sums of its own weights.
#[derive(CubeType)]
pub(super) struct Running {
    pub(super) tops: Array<f32>,
    pub(super) totals: Array<f32>,
}

/// Of a stream of which nothing was seen.
#[cube]
pub(super) fn begin_anew(sums: &mut Array<F4>, running: &mut Running, #[comptime] form: Form) {
    #[unroll]
    for i in 0..comptime!(form.sums()) {
        sums[i] = F4::new(0.0f32);
    }
    #[unroll]
    for i in 0..comptime!(2 * form.columns()) {
        running.tops[i] = f32::new(MASKED);
        running.totals[i] = 0.0f32;
    }
}

/// The weights of a tile as the right operand of the next product, with everything before scaled down to the greatest score
/// so far. `position` is the lane's first; positions from `first` to before `end` are seen.
#[cube]
pub(super) fn weigh(
    scores: &mut Array<F4>,
    sums: &mut Array<F4>,
    running: &mut Running,
    position: usize,
    first: usize,
    end: usize,
    shape: &Shape,
    #[comptime] form: Form,
) -> Array<u32> {
    let low = position >= first && position < end;
    let high = position + 8 >= first && position + 8 < end;
    let mut higher = false.runtime();
    #[unroll]
    for j in 0..comptime!(form.columns()) {
        let mut score = scores[j] * F4::new(shape.scale);
        #[unroll]
        for e in 0..4usize {
            let mut own = score.extract(e);
            if comptime!(form.capped) {
                // Far out the power is infinity or 0, and the hyperbolic tangent 1 or −1.
                own = shape.cap - 2.0f32 * shape.cap * reciprocal(exp2(own) + 1.0f32);
            }
            let seen = if comptime!(e < 2) { low } else { high };
            score.insert(e, select(seen, own, f32::new(MASKED)));
        }
        scores[j] = score;
        #[unroll]
        for e in 0..2usize {
            let top = max(score.extract(e), score.extract(comptime!(e + 2)));
            higher = higher || top > running.tops[comptime!(2 * j + e)];
        }
    }
    // Mostly nothing is, and everything below would multiply by one.
    if any(higher) {
        #[unroll]
        for j in 0..comptime!(form.columns()) {
            rise(scores[j], sums, running, j, form);
        }
    }
    let mut weights = Array::<u32>::new(comptime!(2 * form.columns()));
    #[unroll]
    for j in 0..comptime!(form.columns()) {
        let score = scores[j];
        let even = base_of(running.tops[comptime!(2 * j)]);
        let odd = base_of(running.tops[comptime!(2 * j + 1)]);
        let a = exp2(score.extract(0usize) - even);
        let b = exp2(score.extract(1usize) - odd);
        let c = exp2(score.extract(2usize) - even);
        let d = exp2(score.extract(3usize) - odd);
        running.totals[comptime!(2 * j)] += a + c;
        running.totals[comptime!(2 * j + 1)] += b + d;
        // Rows of positions, as the product leaves them, become rows of heads, as the next one takes its columns.
        weights[comptime!(2 * j)] = pack_transposed(a, b, comptime!(form.ty()));
        weights[comptime!(2 * j + 1)] = pack_transposed(c, d, comptime!(form.ty()));
    }
    weights
}

/// What scores are taken against: 0 where nothing was seen yet, so that weights of what is not seen are 0 there too.
#[cube]
pub(super) fn base_of(top: f32) -> f32 {
    select(top > f32::new(MASKED), top, 0.0f32)
}

/// Raises the greatest scores of heads 8j and so on to those of a tile, and scales down what has been added.
#[cube]
fn rise(
    score: F4,
    sums: &mut Array<F4>,
    running: &mut Running,
    #[comptime] j: usize,
    #[comptime] form: Form,
) {
    let mut kept = F4::new(0.0f32);
    #[unroll]
    for e in 0..2usize {
        let at = comptime!(2 * j + e);
        let before = running.tops[at];
        let mut top = max(score.extract(e), score.extract(comptime!(e + 2)));
        top = max(top, exchange(top, 4u32));
        top = max(top, exchange(top, 8u32));
        top = max(before, max(top, exchange(top, 16u32)));
        let factor = exp2(before - base_of(top));
        running.tops[at] = top;
        running.totals[at] *= factor;
        kept.insert(e, factor);
        kept.insert(comptime!(e + 2), factor);
    }
    let tiles = comptime!(form.dim / 16);
    #[unroll]
    for i in 0..tiles {
        sums[comptime!(j * tiles + i)] *= kept;
    }
}
