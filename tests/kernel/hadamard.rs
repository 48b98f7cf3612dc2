//! The rotation on the device against its definition in f64.

use crate::device::{Guarded, Runtime, runtimes};
use flute_cube::{Dtype, Error, Hadamard, Limits, hadamard};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// The transform by its definition, in f64: butterflies of a chain of another order than the kernel's.
fn transform(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    let mut half = values.len() / 2;
    while half > 0 {
        for pair in values.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half /= 2;
    }
    let norm = (values.len() as f64).sqrt();
    values.iter().map(|value| value / norm).collect()
}

/// Values of both signs and of magnitudes that differ a thousandfold, as `dtype` holds them.
fn values(len: usize, dtype: Dtype, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let value = |_| {
        let magnitude = 10f32.powf(rng.random_range(-2.0..1.0));
        dtype.round(rng.random_range(-1.0f32..1.0) * magnitude)
    };
    (0..len).map(value).collect()
}

/// Rotates `x` on the device, into a buffer of NaN whose surroundings are watched.
fn rotated(runtime: &Runtime, problem: &Hadamard, x: &[f32]) -> Vec<f32> {
    let dtype = problem.dtype;
    let bytes = dtype.encode(x);
    let input = Guarded::new(&runtime.client, &bytes);
    let y = Guarded::poisoned(&runtime.client, bytes.len());
    hadamard(&runtime.client, problem, &input.inner(), &y.inner()).expect("launched");
    let read = |guarded: &Guarded| {
        let outer = runtime.client.read_one(guarded.outer()).expect("read");
        guarded.content(&outer).expect("guards are whole").to_vec()
    };
    assert_eq!(read(&input), bytes, "{problem:?} wrote into its input");
    dtype.decode(&read(&y))
}

/// Powers of two from 2 to the largest.
fn blocks() -> impl Iterator<Item = usize> {
    (1..=Hadamard::MAX_BLOCK.ilog2()).map(|bits| 1 << bits)
}

/// Half an ulp of one.
fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(f32::EPSILON) / 2.0,
        Dtype::F16 => 2f64.powi(-11),
        Dtype::BF16 => 2f64.powi(-8),
    }
}

#[test]
fn every_block_is_its_transform_within_the_roundings_of_its_additions() {
    for runtime in runtimes() {
        let mut checked = 0;
        for block in blocks() {
            for &dtype in &runtime.limits.dtypes {
                // One row, a ragged cube, and a few cubes.
                for rows in [1, 3, 4096 / block + 5] {
                    let seed = (block + rows) as u64;
                    let x = values(rows * block, dtype, seed);
                    let y = rotated(runtime, &Hadamard { rows, block, dtype }, &x);
                    for (row, (x, y)) in x.chunks(block).zip(y.chunks(block)).enumerate() {
                        let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                        // Each element is a sum of ±x through log2(block) additions, then scaled by a rounded factor.
                        let roundings = f64::from(block.ilog2()) + 2.0;
                        let size = x.iter().map(|v| v.abs()).sum::<f64>() / (block as f64).sqrt();
                        let sums = roundings * unit(Dtype::F32) * size;
                        for (at, (y, exact)) in y.iter().zip(transform(&x)).enumerate() {
                            let bound = 1.01 * (sums + unit(dtype) * exact.abs()) + 1e-7;
                            let error = (f64::from(*y) - exact).abs();
                            assert!(
                                error <= bound,
                                "{}: block {block}, {dtype}, seed {seed}, y[{row}, {at}] = {y:e}, expected {exact:e} \
                                 ± {bound:.1e}",
                                runtime.name
                            );
                        }
                    }
                    checked += 1;
                }
            }
        }
        println!("{}: {checked} rotations within their bounds", runtime.name);
    }
}

#[test]
fn a_unit_vector_becomes_a_row_of_signs_exactly() {
    for runtime in runtimes() {
        for block in blocks() {
            let norm = 1.0 / (block as f32).sqrt();
            let at: Vec<usize> = [0, 1, block / 2, block - 1, block / 3].to_vec();
            let mut x = vec![0.0; at.len() * block];
            at.iter().enumerate().for_each(|(row, at)| x[row * block + at] = 1.0);
            let problem = Hadamard { rows: at.len(), block, dtype: Dtype::F32 };
            let y = rotated(runtime, &problem, &x);
            for (row, at) in at.into_iter().enumerate() {
                let sign = |i: usize| 1.0 - 2.0 * ((at & i).count_ones() % 2) as f32;
                let expected: Vec<f32> = (0..block).map(|i| sign(i) * norm).collect();
                assert!(y[row * block..][..block] == expected, "{}: {block}, {at}", runtime.name);
            }
        }
    }
}

#[test]
fn rotating_twice_gives_the_input_back() {
    for runtime in runtimes() {
        for block in blocks() {
            let problem = Hadamard { rows: 7, block, dtype: Dtype::F32 };
            let x = values(7 * block, Dtype::F32, 77);
            let y = rotated(runtime, &problem, &rotated(runtime, &problem, &x));
            for (x, y) in x.chunks(block).zip(y.chunks(block)) {
                let length = x.iter().map(|v| v * v).sum::<f32>().sqrt();
                let apart = x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f32>().sqrt();
                assert!(apart <= 4e-6 * length, "{}: {block}: {apart:e} apart", runtime.name);
            }
        }
    }
}

#[test]
fn rotations_that_cannot_be_are_refused_before_they_are_launched() {
    for Runtime { client, limits, .. } in runtimes() {
        let buffer = client.empty(64);
        let ask = |rows, block, x, y| {
            hadamard(client, &Hadamard { rows, block, dtype: Dtype::F32 }, x, y)
        };
        for found in [0, 1, 3, 24, 65536] {
            let refused = ask(1, found, &buffer, &buffer);
            assert_eq!(refused, Err(Error::InvalidBlock { found, max: 32768 }));
        }
        let (short, long) = (client.empty(32), client.empty(128));
        let lacks = |what| Err(Error::WrongLength { what, found: 32, expected: 64 });
        assert_eq!(ask(2, 8, &short, &long), lacks("the buffer of x (bytes)"));
        assert_eq!(ask(2, 8, &long, &short), lacks("the buffer of y (bytes)"));
        assert_eq!(ask(0, 8, &short, &short), Ok(()));
        let (found, max) = (1 << 30, u32::MAX as usize / 8);
        let what = "the number of blocks";
        assert_eq!(
            ask(found, 8, &short, &short),
            Err(Error::OutOfRange { what, found, min: 0, max })
        );

        let problem = Hadamard { rows: 1, block: 32768, dtype: Dtype::F32 };
        assert_eq!(problem.validate(limits), Ok(()));
        let few = Limits { cube_units: 256, ..limits.clone() };
        let device = limits.name.clone();
        assert_eq!(
            problem.validate(&few),
            Err(Error::UnsupportedShape {
                what: "units a cube",
                needed: 512,
                offered: 256,
                device
            })
        );
        assert_eq!(Hadamard { block: 16384, ..problem }.validate(&few), Ok(()));
        let without = Limits { dtypes: vec![Dtype::F32], ..limits.clone() };
        let refused = Hadamard { dtype: Dtype::BF16, ..problem }.validate(&without);
        assert!(refused.is_err_and(|error| error.is_unsupported()));
    }
}
