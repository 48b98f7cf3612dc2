//! RMS norms on the device against f64.

use crate::device::{Guarded, Runtime, runtimes};
use flute_cube::{Dtype, Error, Limits, Norm, NormBuffers, Residual, norm};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Values of both signs, as `dtype` holds them.
fn values(len: usize, dtype: Dtype, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| dtype.round(rng.random_range(-4.0..4.0))).collect()
}

/// Half an ulp of one.
fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(f32::EPSILON) / 2.0,
        Dtype::F16 => 2f64.powi(-11),
        Dtype::BF16 => 2f64.powi(-8),
    }
}

struct Found {
    y: Vec<f32>,
    sum: Option<Vec<f32>>,
}

/// Runs the kernel into buffers of NaN whose surroundings are watched.
fn run(
    runtime: &Runtime,
    problem: &Norm,
    x: &[f32],
    gain: &[f32],
    branch: Option<(&[f32], Dtype)>,
) -> Found {
    let client = &runtime.client;
    let upload = |values: &[f32], dtype: Dtype| Guarded::new(client, &dtype.encode(values));
    let empty = |dtype: Dtype| Guarded::poisoned(client, x.len() * dtype.size());
    let (y, sum) = (empty(problem.out), empty(problem.dtype));
    let buffers = NormBuffers {
        x: upload(x, problem.dtype).inner(),
        gain: upload(gain, Dtype::F32).inner(),
        y: y.inner(),
        residual: branch.map(|(values, dtype)| Residual {
            branch: upload(values, dtype).inner(),
            dtype,
            sum: sum.inner(),
        }),
    };
    norm(client, problem, &buffers).expect("launched");
    let read = |guarded: &Guarded, dtype: Dtype| {
        let outer = client.read_one(guarded.outer()).expect("read");
        dtype.decode(guarded.content(&outer).expect("guards are whole"))
    };
    Found { y: read(&y, problem.out), sum: branch.map(|_| read(&sum, problem.dtype)) }
}

#[test]
fn norms_are_those_of_f64_in_every_mix_of_types_with_and_without_a_residual() {
    for runtime in runtimes() {
        let mut checked = 0;
        let dtypes = &runtime.limits.dtypes;
        // Odd lengths, one element, whole vectors, more of them than units, and several cubes.
        for (rows, len) in [(1, 1), (3, 7), (5, 64), (2, 1000), (9, 4096), (1, 6001)] {
            for (i, &dtype) in dtypes.iter().enumerate() {
                for &out in dtypes {
                    for added in [None, Some(dtypes[(i + 1) % dtypes.len()])] {
                        let (epsilon, offset) = (1e-5, f64::from(u8::from(len % 2 == 0)));
                        let problem = Norm { rows, len, epsilon, offset, dtype, out };
                        let seed = (rows * len) as u64;
                        let x = values(rows * len, dtype, seed);
                        let gain = values(len, Dtype::F32, seed + 1);
                        let branch =
                            added.map(|added| (values(rows * len, added, seed + 2), added));
                        let branch = branch.as_ref().map(|(v, dtype)| (v.as_slice(), *dtype));
                        let found = run(runtime, &problem, &x, &gain, branch);
                        let wide: Vec<f64> = x
                            .iter()
                            .enumerate()
                            .map(|(i, x)| f64::from(x + branch.map_or(0.0, |(b, _)| b[i])))
                            .collect();
                        if let Some(sum) = &found.sum {
                            let right: Vec<f32> =
                                wide.iter().map(|v| dtype.round(*v as f32)).collect();
                            assert!(*sum == right, "{}: sum of {problem:?}", runtime.name);
                        }
                        for (row, wide) in wide.chunks(len).enumerate() {
                            let mean = wide.iter().map(|v| v * v).sum::<f64>() / len as f64;
                            let factor = 1.0 / (mean + epsilon).sqrt();
                            for (at, v) in wide.iter().enumerate() {
                                let exact = v * factor * (f64::from(gain[at]) + offset);
                                let error = (f64::from(found.y[row * len + at]) - exact).abs();
                                // A unit sums up to 64 squares and the cube 10 of their sums; half of that
                                // passes the root. Shaders may be off by 3 ulp in the root and the quotient, and the
                                // gain and its offset may cancel.
                                let f32s = 48.0 * unit(Dtype::F32);
                                let size =
                                    (v * factor).abs() * (f64::from(gain[at]).abs() + offset);
                                let bound = f32s * size + 1.01 * unit(out) * exact.abs() + 6e-8;
                                assert!(
                                    error <= bound,
                                    "{}: {problem:?}, branch {added:?}: y[{row}, {at}] is off {exact:e} by {error:e}",
                                    runtime.name
                                );
                            }
                        }
                        checked += 1;
                    }
                }
            }
        }
        println!("{}: {checked} norms within their bounds", runtime.name);
    }
}

#[test]
fn norms_that_cannot_be_are_refused_before_they_are_launched() {
    for Runtime { client, limits, .. } in runtimes() {
        let buffer = client.empty(64);
        let buffers = NormBuffers {
            x: buffer.clone(),
            gain: buffer.clone(),
            y: client.empty(64),
            residual: None,
        };
        let (dtype, out) = (Dtype::F32, Dtype::F32);
        let problem = Norm { rows: 2, len: 8, epsilon: 1e-6, offset: 0.0, dtype, out };
        assert_eq!(norm(client, &problem, &buffers), Ok(()));
        let ask = |rows, len| norm(client, &Norm { rows, len, ..problem }, &buffers);
        let what = "the buffer of x (bytes)";
        assert_eq!(ask(3, 8), Err(Error::WrongLength { what, found: 64, expected: 96 }));
        assert_eq!(ask(0, 8), Ok(()));
        let (what, max) = ("the length of a row", u32::MAX as usize);
        assert_eq!(ask(1, 0), Err(Error::OutOfRange { what, found: 0, min: 1, max }));
        assert!(matches!(ask(1 << 40, 8), Err(Error::OutOfRange { .. })));
        let short = client.empty(32);
        let residual = Residual { branch: buffer.clone(), dtype, sum: short };
        let what = "the buffer of the sum (bytes)";
        assert_eq!(
            norm(client, &problem, &NormBuffers { residual: Some(residual), ..buffers.clone() }),
            Err(Error::WrongLength { what, found: 32, expected: 64 })
        );
        let small = Limits { cube_units: 64, ..limits.clone() };
        let device = limits.name.clone();
        assert_eq!(
            Norm { len: 5000, ..problem }.validate(&small),
            Err(Error::UnsupportedShape {
                what: "elements of a row",
                needed: 5000,
                offered: 4096,
                device
            })
        );
    }
}
