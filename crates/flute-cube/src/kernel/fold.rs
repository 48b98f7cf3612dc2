//! The sums of cubes that divided k and left theirs in memory: added in the order of k, then the bias, then the gate.
//!
//! For every family whose cubes cannot reach each other's shared memory, on every runtime. Sums are f32; they are rounded
//! once, when y is written.

use super::gate::gated;
use crate::{Activation, Operands, Problem};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

const UNITS: usize = 256;
/// Cubes of one launch; those that run at once take the other sums too.
const MAX_CUBES: usize = 2048;

/// Writes `y` of `operands`, which were checked for `problem`, from the sums `[shares, m, n]` in `partials`.
pub(super) fn launch(
    client: &Client,
    problem: &Problem,
    operands: &Operands,
    partials: Handle,
    shares: usize,
) {
    let Problem { m, n, dtype, bias, gate, .. } = *problem;
    let hardware = &client.properties().hardware;
    let len = m * problem.columns();
    let units = UNITS.min(hardware.max_units_per_cube as usize);
    let cubes = len.div_ceil(units).min(MAX_CUBES).min(hardware.max_cube_count.0 as usize);
    // Never read without a bias, but a binding wants a buffer.
    let values = operands.bias.as_ref().unwrap_or(&operands.scales);
    // SAFETY: `partials` holds `shares · m · n` sums, and y and a bias were measured; the kernel stays below `len`, and with
    // a gate, which has two sums for each, below twice that.
    unsafe {
        fold::launch_unchecked(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            BufferArg::from_raw_parts(partials, shares * m * n),
            BufferArg::from_raw_parts(values.clone(), if bias { n } else { 1 }),
            BufferArg::from_raw_parts(operands.y.clone(), len),
            n,
            shares,
            bias,
            gate,
            dtype.elem(),
        );
    }
}

#[cube(launch_unchecked)]
fn fold<F: Float>(
    partials: &[f32],
    bias: &[F],
    y: &mut [F],
    n: usize,
    shares: usize,
    #[comptime] biased: bool,
    #[comptime] gate: Option<Activation>,
    #[define(F)] _dtype: ElemType,
) {
    let mut at = ABSOLUTE_POS;
    while at < y.len() {
        if comptime!(gate.is_some()) {
            // Rows of y are whole turns of eight, so that turns count through them.
            let first = at + at / 8 * 8;
            let len = 2 * y.len();
            let own = folded::<F>(partials, bias, first, len, n, shares, biased);
            let up = folded::<F>(partials, bias, first + 8, len, n, shares, biased);
            y[at] = F::cast_from(gated(own, up, gate));
        } else {
            y[at] = F::cast_from(folded::<F>(partials, bias, at, y.len(), n, shares, biased));
        }
        at += CUBE_COUNT * CUBE_DIM as usize;
    }
}

/// Sum `at` of `len`, over all shares, and its bias.
#[cube]
fn folded<F: Float>(
    partials: &[f32],
    bias: &[F],
    at: usize,
    len: usize,
    n: usize,
    shares: usize,
    #[comptime] biased: bool,
) -> f32 {
    let mut sum = partials[at];
    for share in 1..shares {
        sum += partials[share * len + at];
    }
    if comptime!(biased) {
        sum += f32::cast_from(bias[at % n]);
    }
    sum
}
