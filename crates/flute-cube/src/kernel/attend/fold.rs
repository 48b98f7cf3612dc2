//! The chunks of a head into its result.

use super::{CHUNK, Form, MASKED, Shape, UNITS, seen};
use cubecl::{ir::ElemType, prelude::*};

/// Every team of a cube folds each chunk that is a multiple of teams behind the last, and the first units fold teams.
#[cube(launch_unchecked)]
pub(super) fn fold<F: Float, N: Size>(
    sums: &[Vector<f32, N>],
    stats: &[f32],
    start: &[i32],
    y: &mut [Vector<F, N>],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let vectors = comptime!(form.vectors);
    let teams = comptime!(form.teams());
    let batch = CUBE_POS_Y as usize;
    let head = batch * CUBE_COUNT_X as usize + CUBE_POS_X as usize;
    let unit = UNIT_POS as usize;
    let (team, lane) = (unit / vectors, unit % vectors);
    let seen = seen(start[batch], shape.capacity, shape.window, form.windowed);
    let chunks = seen.end.div_ceil(CHUNK) - seen.first / CHUNK;

    let mut top = f32::new(MASKED);
    let mut total = 0.0f32;
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if team < teams {
        let mut chunk = team;
        while chunk < chunks {
            let place = head * shape.splits + chunk;
            let higher = max(top, stats[2 * place]);
            let kept = (top - higher).exp();
            let added = (stats[2 * place] - higher).exp();
            total = total * kept + stats[2 * place + 1] * added;
            sum = sum * Vector::<f32, N>::new(kept)
                + sums[place * vectors + lane] * Vector::<f32, N>::new(added);
            top = higher;
            chunk += teams;
        }
    }
    let mut all = Shared::<[Vector<f32, N>]>::new_slice(UNITS);
    let mut tops = Shared::<[f32]>::new_slice(UNITS);
    let mut totals = Shared::<[f32]>::new_slice(UNITS);
    all[unit] = sum;
    tops[unit] = top;
    totals[unit] = total;
    sync_cube();
    if unit < vectors {
        let mut top = tops[unit];
        #[unroll(form.teams() <= 16)]
        for team in 1..teams {
            top = max(top, tops[team * vectors + unit]);
        }
        let mut total = 0.0f32;
        let mut sum = Vector::<f32, N>::new(0.0f32);
        #[unroll(form.teams() <= 16)]
        for team in 0..teams {
            let at = team * vectors + unit;
            let factor = (tops[at] - top).exp();
            total += totals[at] * factor;
            sum += all[at] * Vector::<f32, N>::new(factor);
        }
        // A sequence that sees nothing gets nothing.
        let factor = select(total > 0.0f32, 1.0f32 / total, 0.0f32);
        let result = sum * Vector::<f32, N>::new(factor);
        y[head * vectors + unit] = Vector::<F, N>::cast_from(result);
    }
}
