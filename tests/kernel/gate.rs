//! Gates on the device against f64.

use crate::device::{Guarded, Runtime, runtimes};
use flute_cube::{Activation, Dtype, Error, Gate, gate};
use rand::{RngExt, SeedableRng, rngs::StdRng};

pub(crate) fn exact(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

#[test]
fn gates_are_those_of_f64_for_small_values_and_for_those_that_overflow_their_exponential() {
    for runtime in runtimes() {
        let client = &runtime.client;
        for &dtype in &runtime.limits.dtypes {
            for activation in [Activation::Silu, Activation::GeluTanh] {
                for (rows, len) in [(1, 1), (3, 5), (2, 6), (4, 300), (7, 1024)] {
                    let mut rng = StdRng::seed_from_u64((rows * len) as u64);
                    let mut x: Vec<f32> = (0..2 * rows * len)
                        .map(|_| dtype.round(rng.random_range(-6.0..6.0)))
                        .collect();
                    let edges = [0.0, -0.0, 200.0, -200.0, 11.0, -11.0, 1e4, -1e4];
                    x.iter_mut().zip(edges).for_each(|(x, edge)| *x = dtype.round(edge));
                    let input = Guarded::new(client, &dtype.encode(&x));
                    let y = Guarded::poisoned(client, rows * len * dtype.size());
                    let problem = Gate { rows, len, activation, dtype };
                    gate(client, &problem, &input.inner(), &y.inner()).expect("launched");
                    let outer = client.read_one(y.outer()).expect("read");
                    let found = dtype.decode(y.content(&outer).expect("guards are whole"));
                    for (at, found) in found.iter().enumerate() {
                        let (row, col) = (at / len, at % len);
                        let [value, up] = [0, len].map(|i| f64::from(x[row * 2 * len + i + col]));
                        let exact = exact(activation, value) * up;
                        let limit = f64::from(dtype.round(f32::MAX.min(65504.0)));
                        // A shader's tanh may be a few 1e-5 off in a sum with 1 (WGSL bounds it no tighter), and exp a
                        // few ulp more than the argument's size.
                        let f32s = 2e-5 * (value * up).abs() + 1e-6 * exact.abs();
                        let rounding = match dtype {
                            Dtype::F32 => 2f64.powi(-24),
                            Dtype::F16 => 2f64.powi(-11),
                            Dtype::BF16 => 2f64.powi(-8),
                        };
                        let bound = f32s + 1.01 * rounding * exact.abs() + 6e-8;
                        let error = (f64::from(*found) - exact).abs();
                        assert!(
                            error <= bound || (dtype == Dtype::F16 && exact.abs() > limit),
                            "{}: {problem:?}: y[{row}, {col}] = {found:e}, expected {exact:e} ± {bound:.1e}",
                            runtime.name
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn gates_that_cannot_be_are_refused_before_they_are_launched() {
    for Runtime { client, .. } in runtimes() {
        let (x, y) = (client.empty(64), client.empty(32));
        let ask = |rows, len| {
            let problem = Gate { rows, len, activation: Activation::Silu, dtype: Dtype::F32 };
            gate(client, &problem, &x, &y)
        };
        assert_eq!(ask(2, 4), Ok(()));
        assert_eq!(ask(0, 4), Ok(()));
        let what = "the buffer of x (bytes)";
        assert_eq!(ask(3, 4), Err(Error::WrongLength { what, found: 64, expected: 96 }));
        let (what, max) = ("the length of a row", u32::MAX as usize / 2);
        assert_eq!(ask(1, 0), Err(Error::OutOfRange { what, found: 0, min: 1, max }));
        assert!(matches!(ask(1 << 40, 4), Err(Error::OutOfRange { .. })));
    }
}
