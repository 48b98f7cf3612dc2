//! Scores to weights: what a token does not see, the greatest so far, and powers of two. As [`super::tensor`] holds them:
//! element j of a lane is tokens g and g + 8 of its plane against keys 8j + 2t and the next.

use super::{
    MASKED, Shape, Sight, end_of, first_of,
    ptx::{exchange, exp2},
    tensor::Form,
};
use crate::kernel::ptx::F4;
use cubecl::prelude::*;

/// What a lane knows of its tokens, g and g + 8 of its plane: greatest scores and sums of weights.
#[derive(CubeType)]
pub(super) struct Running {
    pub(super) top_low: f32,
    pub(super) top_high: f32,
    pub(super) total_low: f32,
    pub(super) total_high: f32,
}

/// Scores to [`MASKED`] where tokens `low` and `low` + 8 do not look; `column` is the position of the lane's first.
#[cube]
pub(super) fn mask(
    scores: &mut Array<F4>,
    low: usize,
    column: usize,
    sight: &Sight,
    shape: &Shape,
    #[comptime] form: Form,
) {
    #[unroll]
    for row in 0..2usize {
        let token = low + comptime!(8 * row);
        let (first, end) = (first_of(token, sight, shape, form.windowed), end_of(token, sight));
        #[unroll]
        for j in 0..comptime!(form.keys() / 8) {
            let mut score = scores[j];
            #[unroll]
            for e in 0..2usize {
                let position = column + comptime!(8 * j + e);
                let seen = position >= first && position < end;
                let at = comptime!(2 * row + e);
                score.insert(at, select(seen, score.extract(at), f32::new(MASKED)));
            }
            scores[j] = score;
        }
    }
}

/// Scores to weights, with everything before scaled down to the greatest score so far.
#[cube]
pub(super) fn weigh(
    scores: &mut Array<F4>,
    sums: &mut Array<F4>,
    running: &mut Running,
    #[comptime] form: Form,
) {
    let mut low = max(scores[0].extract(0usize), scores[0].extract(1usize));
    let mut high = max(scores[0].extract(2usize), scores[0].extract(3usize));
    #[unroll]
    for j in 1..comptime!(form.keys() / 8) {
        low = max(low, max(scores[j].extract(0usize), scores[j].extract(1usize)));
        high = max(high, max(scores[j].extract(2usize), scores[j].extract(3usize)));
    }
    low = max(low, exchange(low, 1u32));
    high = max(high, exchange(high, 1u32));
    low = max(running.top_low, max(low, exchange(low, 2u32)));
    high = max(running.top_high, max(high, exchange(high, 2u32)));
    // Against 0 where nothing was seen yet, so that weights of what is not seen are 0 there too.
    let base_low = select(low > f32::new(MASKED), low, 0.0f32);
    let base_high = select(high > f32::new(MASKED), high, 0.0f32);
    let kept_low = exp2(running.top_low - base_low);
    let kept_high = exp2(running.top_high - base_high);
    running.top_low = low;
    running.top_high = high;

    let mut total_low = 0.0f32;
    let mut total_high = 0.0f32;
    #[unroll]
    for j in 0..comptime!(form.keys() / 8) {
        let score = scores[j];
        let (a, b) =
            (exp2(score.extract(0usize) - base_low), exp2(score.extract(1usize) - base_low));
        let (c, d) =
            (exp2(score.extract(2usize) - base_high), exp2(score.extract(3usize) - base_high));
        total_low += a + b;
        total_high += c + d;
        let mut weight = F4::new(a);
        weight.insert(1usize, b);
        weight.insert(2usize, c);
        weight.insert(3usize, d);
        scores[j] = weight;
    }
    running.total_low = running.total_low * kept_low + total_low;
    running.total_high = running.total_high * kept_high + total_high;
    let mut kept = F4::new(kept_low);
    kept.insert(2usize, kept_high);
    kept.insert(3usize, kept_high);
    #[unroll]
    for i in 0..comptime!(form.sums()) {
        sums[i] *= kept;
    }
}
