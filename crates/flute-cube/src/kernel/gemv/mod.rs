//! A few rows of x against every row of a dense weight, by two ways: tensor cores, and lanes that add.

mod lanes;
mod tiles;

use super::width::width;
use crate::{Dtype, Gemv, Limits};
use cubecl::{prelude::*, server::Handle};

/// Units of a cube of lanes, at most.
const UNITS: usize = 256;
/// Rows of x that lanes add while the weight is read: 16 would take 0.4 ms of arithmetic for 128256 × 4096 on an H200,
/// which reads it in 0.24.
const MAX_LANES: usize = 8;
/// Rows of the weight from which on tiles fill a device.
const TILED_FROM: usize = 16384;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Lanes(lanes::Form),
    Tiles(tiles::Form),
}

/// Rows of x that `problem` may have on a device of `limits`.
pub(crate) fn most_rows(problem: &Gemv, limits: &Limits) -> usize {
    if is_tiled(problem, limits) { Gemv::MAX_ROWS } else { MAX_LANES }
}

fn is_tiled(problem: &Gemv, limits: &Limits) -> bool {
    let Gemv { n, k, stride, dtype, .. } = *problem;
    let whole = k.is_multiple_of(tiles::STEP) && stride.is_multiple_of(8);
    limits.mma && dtype != Dtype::F32 && whole && n >= TILED_FROM
}

/// Multiplies `x` and `weight` into `y`; all were measured for `problem`.
pub(crate) fn launch(
    client: &Client,
    problem: &Gemv,
    [x, weight, y]: [&Handle; 3],
    limits: &Limits,
) -> Form {
    let Gemv { m, n, k, stride, dtype } = *problem;
    // A power of two that divides this divides both.
    let rows = k | stride;
    let width = width(client, rows, &[(x, dtype.size()), (weight, dtype.size())]);
    let elements = (n - 1) * stride + k;
    if is_tiled(problem, limits) && width == 8 {
        let blocks = m.next_power_of_two().div_ceil(8);
        let form = tiles::Form { blocks, dtype, overlaps: limits.bulk };
        let cubes = n.div_ceil(form.rows());
        // SAFETY: rows of x stay below m and rows of the weight below n, each read below its k elements; y is written
        // below m · n.
        unsafe {
            tiles::tiles::launch_unchecked(
                client,
                CubeCount::Static(cubes as u32, 1, 1),
                CubeDim::new_2d(32, tiles::PLANES as u32),
                BufferArg::from_raw_parts(x.clone(), m * k / 8),
                BufferArg::from_raw_parts(weight.clone(), elements / 2),
                BufferArg::from_raw_parts(y.clone(), m * n),
                tiles::ShapeLaunch::new(m, n, k / 8, stride / 8),
                form,
                dtype.elem(),
            );
        }
        return Form::Tiles(form);
    }
    let form = lanes::Form {
        tokens: m.min(MAX_LANES).next_power_of_two(),
        width,
        lanes: limits.lanes,
        dtype,
    };
    let teams = UNITS.min(limits.cube_units).max(form.lanes) / form.lanes;
    let cubes = n.div_ceil(lanes::ROWS * teams).min(limits.cube_count);
    let vectors = k / width;
    // More rows come here only where buffers begin at addresses that tensor cores' loads do not take.
    for first in (0..m).step_by(MAX_LANES) {
        let m = MAX_LANES.min(m - first);
        let from = |handle: &Handle, row: usize| {
            handle.clone().offset_start((first * row * dtype.size()) as u64)
        };
        // SAFETY: as above, each row read below its `vectors`.
        unsafe {
            lanes::lanes::launch_unchecked(
                client,
                CubeCount::Static(cubes as u32, 1, 1),
                CubeDim::new_1d((teams * form.lanes) as u32),
                width,
                BufferArg::from_raw_parts(from(x, k), m * vectors),
                BufferArg::from_raw_parts(weight.clone(), elements / width),
                BufferArg::from_raw_parts(from(y, n), m * n),
                lanes::ShapeLaunch::new(m, n, vectors, stride / width),
                form,
                dtype.elem(),
            );
        }
    }
    Form::Lanes(form)
}
