//! Gates: element by element, a vector of a unit at a time; and the gate of one feature, for products that gate their sums.

use super::width::width;
use crate::{Activation, Dtype, Gate};
use cubecl::{ir::ElemType, prelude::*, server::Handle};
use std::f64::consts::LOG2_E;

const UNITS: usize = 256;
/// Cubes of one launch; those that run at once take the other vectors too.
const MAX_CUBES: usize = 8192;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    width: usize,
    activation: Activation,
    dtype: Dtype,
}

/// Gates the rows of `x` into `y`; both were measured for `problem`.
pub(crate) fn launch(client: &Client, problem: &Gate, x: &Handle, y: &Handle) -> Form {
    let Gate { rows, len, activation, dtype } = *problem;
    let hardware = &client.properties().hardware;
    let width = width(client, len, &[(x, dtype.size()), (y, dtype.size())]);
    let form = Form { width, activation, dtype };
    let vectors = rows * len / width;
    let units = UNITS.min(hardware.max_units_per_cube as usize);
    let cubes = vectors.div_ceil(units).min(MAX_CUBES).min(hardware.max_cube_count.0 as usize);
    // SAFETY: `x` holds twice and `y` once the vectors that are counted here.
    unsafe {
        gate::launch_unchecked(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            width,
            BufferArg::from_raw_parts(x.clone(), 2 * vectors),
            BufferArg::from_raw_parts(y.clone(), vectors),
            vectors,
            len / width,
            form,
            dtype.elem(),
        );
    }
    form
}

#[cube(launch_unchecked)]
fn gate<F: Float, N: Size>(
    x: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    vectors: usize,
    row_vectors: usize,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut at = ABSOLUTE_POS;
    while at < vectors {
        // Row r of y begins at r · len, that of x at 2 · r · len.
        let first = at + at / row_vectors * row_vectors;
        let gates = x[first];
        let ups = x[first + row_vectors];
        let mut out = gates;
        #[unroll]
        for i in 0..comptime!(form.width) {
            let value = f32::cast_from(gates.extract(i));
            let up = f32::cast_from(ups.extract(i));
            out.insert(i, F::cast_from(activate(value, form.activation) * up));
        }
        y[at] = out;
        at += CUBE_COUNT * CUBE_DIM as usize;
    }
}

/// Shaders may not know infinity, so what goes into `exp` or `tanh` stops where nothing changes any more.
#[cube]
fn activate(x: f32, #[comptime] activation: Activation) -> f32 {
    match comptime!(activation) {
        Activation::Silu => x / (1.0f32 + (-max(x, -80.0f32)).exp()),
        Activation::GeluTanh => {
            let inner = 0.797_884_6f32 * (x + 0.044_715f32 * x * x * x);
            0.5f32 * x * (1.0f32 + clamp(inner, -15.0f32, 15.0f32).tanh())
        }
    }
}

/// √(2/π), and what x³ counts beside x, in the argument of the tanh.
const ROOT: f64 = 0.797_884_560_802_865_4;
const CUBE: f64 = 0.044_715;

/// `f(gate) · up`, on CUDA. Both functions are `x · σ(z)`, since `(1 + tanh u) / 2` is σ(2u): one exponential and one
/// reciprocal, whose errors of about 2⁻²² nobody sees behind a rounding to 16 bits, where a library's take three times as
/// many instructions. A product for many rows of x has thousands of them to go through before its next tile.
#[cube]
pub(in crate::kernel) fn gated(
    gate: f32,
    up: f32,
    #[comptime] activation: Option<Activation>,
) -> f32 {
    let exponent = if comptime!(activation == Some(Activation::GeluTanh)) {
        (gate + gate * gate * gate * comptime!(CUBE as f32))
            * comptime!((-2.0 * LOG2_E * ROOT) as f32)
    } else {
        gate * comptime!(-LOG2_E as f32)
    };
    gate * logistic(exponent) * up
}

/// `1 / (1 + 2^exponent)`; the exponent stops where nothing changes any more and nothing overflows.
#[cube]
fn logistic(exponent: f32) -> f32 {
    let value: f32;
    gpu_asm!(
        "{{ .reg .f32 t; min.f32 t, {e}, 0f42FC0000; ex2.approx.ftz.f32 t, t; add.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 {v}, t; }}",
        v = out(_) value, e = in(_) f32::reinterpret(exponent), options(pure, nomem),
    );
    value
}
