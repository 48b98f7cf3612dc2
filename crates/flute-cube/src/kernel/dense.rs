//! What a dense product is added to: the bias, once for every row of y.

use crate::Problem;
use cubecl::{prelude::*, server::Handle};

/// Units of a cube.
const UNITS: u32 = 256;
/// Cubes of one launch.
const MAX_CUBES: usize = 2048;

/// Writes `bias[n]`, measured like `y[m, n]`, into every row of y.
pub(crate) fn spread(client: &Client, problem: &Problem, bias: &Handle, y: &Handle) {
    let Problem { m, n, dtype, .. } = *problem;
    let cubes = (m * n).div_ceil(UNITS as usize).min(MAX_CUBES) as u32;
    // SAFETY: the buffers were measured, and the kernel stays below both.
    unsafe {
        spread_rows::launch_unchecked(
            client,
            CubeCount::Static(cubes, 1, 1),
            CubeDim::new_1d(UNITS),
            BufferArg::from_raw_parts(bias.clone(), n),
            BufferArg::from_raw_parts(y.clone(), m * n),
            dtype.elem(),
        );
    }
}

#[cube(launch_unchecked)]
fn spread_rows<F: Float>(bias: &[F], y: &mut [F], #[define(F)] _dtype: cubecl::ir::ElemType) {
    let mut i = ABSOLUTE_POS;
    while i < y.len() {
        y[i] = bias[i % bias.len()];
        i += CUBE_COUNT * CUBE_DIM as usize;
    }
}
