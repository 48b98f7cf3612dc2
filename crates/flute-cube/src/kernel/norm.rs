//! RMS norms, with or without a residual: a cube takes a row, reads it once and keeps it in registers.

use super::{
    overlap::{follow, lead},
    ptx::load_x4,
    sum::{Team, cube_sum},
    width::width,
};
use crate::{Dtype, Limits, Norm, NormBuffers};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

/// Elements of a row that a unit holds, at most: beyond, registers spill.
const MAX_HELD: usize = 64;
/// Units of a cube, at most: a row of 4096 is one load of each.
const MAX_UNITS: usize = 1024;
/// Cubes of one launch; those that run at once take the other rows too.
const MAX_CUBES: usize = 8192;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    /// Vectors of a row.
    vectors: usize,
    width: usize,
    team: Team,
    /// Of x, of what is added to it, and of the result.
    dtypes: [Dtype; 3],
    added: bool,
    /// Of [`follow`].
    overlaps: bool,
}

impl Form {
    /// The widest row that a cube of a device with `limits` holds.
    pub(crate) fn widest(limits: &Limits) -> usize {
        MAX_HELD * Team::new(MAX_UNITS, limits).units
    }

    fn new(client: &Client, problem: &Norm, buffers: &NormBuffers, limits: &Limits) -> Self {
        let Norm { len, dtype, out, .. } = *problem;
        let mut all =
            vec![(&buffers.x, dtype.size()), (&buffers.y, out.size()), (&buffers.gain, 4)];
        let mut added = dtype;
        if let Some(residual) = &buffers.residual {
            added = residual.dtype;
            all.push((&residual.branch, added.size()));
            all.push((&residual.sum, dtype.size()));
        }
        let width = width(client, len, &all);
        let vectors = len / width;
        let team = Team::new(vectors.next_power_of_two().min(MAX_UNITS), limits);
        let dtypes = [dtype, added, out];
        let (added, overlaps) = (buffers.residual.is_some(), limits.bulk);
        Self { vectors, width, team, dtypes, added, overlaps }
    }

    /// Vectors that a unit holds.
    fn held(self) -> usize {
        self.vectors.div_ceil(self.team.units)
    }

    /// Vectors of the gain that a unit asks for while the kernel before this one still runs: all of them, where there is
    /// room in registers.
    fn early(self) -> usize {
        if self.overlaps && self.width == 4 && self.held() <= 2 { self.held() } else { 0 }
    }
}

/// Norms the rows of `buffers`, which were measured for `problem`.
pub(crate) fn launch(
    client: &Client,
    problem: &Norm,
    buffers: &NormBuffers,
    limits: &Limits,
) -> Form {
    let Norm { rows, len, epsilon, offset, .. } = *problem;
    let form = Form::new(client, problem, buffers, limits);
    let cubes = CubeCount::Static(rows.min(MAX_CUBES).min(limits.cube_count) as u32, 1, 1);
    let dim = CubeDim::new_1d(form.team.units as u32);
    let vectors = rows * form.vectors;
    let arg = |handle: &Handle, len| {
        // SAFETY: every buffer was measured against the rows that the problem says.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    };
    let row = RowLaunch::new(rows, len as f32, epsilon as f32, offset as f32);
    let NormBuffers { x, gain, y, residual } = buffers;
    let dtypes = form.dtypes.map(Dtype::elem);
    // SAFETY: a unit reads and writes below `vectors` of each row, and the gain below those of one.
    unsafe {
        match residual {
            Some(residual) => add_norm::launch_unchecked(
                client,
                cubes,
                dim,
                form.width,
                arg(x, vectors),
                arg(&residual.branch, vectors),
                arg(gain, form.vectors),
                arg(&residual.sum, vectors),
                arg(y, vectors),
                row,
                form,
                dtypes,
            ),
            None => plain_norm::launch_unchecked(
                client,
                cubes,
                dim,
                form.width,
                arg(x, vectors),
                arg(gain, form.vectors),
                arg(y, vectors),
                row,
                form,
                [dtypes[0], dtypes[2]],
            ),
        }
    }
    form
}

/// What is not compiled in.
#[derive(CubeLaunch, CubeType)]
struct Row {
    rows: usize,
    /// Elements of a row.
    len: f32,
    epsilon: f32,
    offset: f32,
}

#[cube(launch_unchecked)]
fn plain_norm<S: Float, F: Float, N: Size>(
    x: &[Vector<S, N>],
    gain: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    shape: Row,
    #[comptime] form: Form,
    #[define(S, F)] _dtypes: [ElemType; 2],
) {
    let gains = begin::<N>(gain, form);
    let mut row = CUBE_POS_X as usize;
    while row < shape.rows {
        let mut values = Array::<Vector<f32, N>>::new(comptime!(form.held()));
        #[unroll]
        for i in 0..comptime!(form.held()) {
            let at = UNIT_POS as usize + comptime!(i * form.team.units);
            values[i] = Vector::<f32, N>::new(0.0f32);
            if at < form.vectors {
                values[i] = Vector::<f32, N>::cast_from(x[row * form.vectors + at]);
            }
        }
        finish::<F, N>(&mut values, gain, &gains, y, row, &shape, form);
        row += CUBE_COUNT_X as usize;
    }
}

#[cube(launch_unchecked)]
fn add_norm<S: Float, B: Float, F: Float, N: Size>(
    x: &[Vector<S, N>],
    branch: &[Vector<B, N>],
    gain: &[Vector<f32, N>],
    sum: &mut [Vector<S, N>],
    y: &mut [Vector<F, N>],
    shape: Row,
    #[comptime] form: Form,
    #[define(S, B, F)] _dtypes: [ElemType; 3],
) {
    let gains = begin::<N>(gain, form);
    let mut row = CUBE_POS_X as usize;
    while row < shape.rows {
        let mut values = Array::<Vector<f32, N>>::new(comptime!(form.held()));
        #[unroll]
        for i in 0..comptime!(form.held()) {
            let at = UNIT_POS as usize + comptime!(i * form.team.units);
            values[i] = Vector::<f32, N>::new(0.0f32);
            if at < form.vectors {
                let at = row * form.vectors + at;
                let added = Vector::<f32, N>::cast_from(branch[at]);
                values[i] = Vector::<f32, N>::cast_from(x[at]) + added;
                sum[at] = Vector::<S, N>::cast_from(values[i]);
            }
        }
        finish::<F, N>(&mut values, gain, &gains, y, row, &shape, form);
        row += CUBE_COUNT_X as usize;
    }
}

/// Lets the next kernel begin, and waits for the one before; what comes back is asked for in between.
#[cube]
fn begin<N: Size>(gain: &[Vector<f32, N>], #[comptime] form: Form) -> Array<Vector<f32, N>> {
    lead(form.overlaps);
    let mut gains = Array::<Vector<f32, N>>::new(comptime!(form.early().max(1)));
    #[unroll]
    for i in 0..comptime!(form.early()) {
        gains[i] = Vector::<f32, N>::reinterpret(load_x4(gain, vector(i, form)));
    }
    follow(form.overlaps);
    gains
}

/// The unit's vector `i` of a row, or the last one.
#[cube]
fn vector(#[comptime] i: usize, #[comptime] form: Form) -> usize {
    min(UNIT_POS as usize + comptime!(i * form.team.units), form.vectors - 1)
}

/// Writes what the cube holds of a row, divided by the root of its mean square, times the gain. The gain is multiplied by
/// before the cube sums, so that its way from memory is not behind that sum.
#[cube]
fn finish<F: Float, N: Size>(
    values: &mut Array<Vector<f32, N>>,
    gain: &[Vector<f32, N>],
    gains: &Array<Vector<f32, N>>,
    y: &mut [Vector<F, N>],
    row: usize,
    shape: &Row,
    #[comptime] form: Form,
) {
    let mut squares = 0.0f32;
    #[unroll]
    for i in 0..comptime!(form.held()) {
        #[unroll]
        for j in 0..comptime!(form.width) {
            squares += values[i].extract(j) * values[i].extract(j);
        }
        let factors = if comptime!(form.early() > 0) { gains[i] } else { gain[vector(i, form)] };
        values[i] *= factors + Vector::<f32, N>::new(shape.offset);
    }
    let mean = cube_sum(squares, form.team) / shape.len;
    let factor = 1.0f32 / (mean + shape.epsilon).sqrt();
    #[unroll]
    for i in 0..comptime!(form.held()) {
        let at = UNIT_POS as usize + comptime!(i * form.team.units);
        if at < form.vectors {
            let value = values[i] * Vector::<f32, N>::new(factor);
            y[row * form.vectors + at] = Vector::<F, N>::cast_from(value);
        }
    }
}
