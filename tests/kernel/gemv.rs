//! Few rows times a dense weight on the device, against f64.

use crate::device::{Guarded, runtimes};
use flute_cube::{Dtype, Error, Gemv, gemv};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// (n, k): one row of one element, ragged and odd ones, whole vectors that no plane fills, several rounds of planes, and
/// what tensor cores take: with ragged tiles, and with steps that no round of reads ahead fills.
const SHAPES: [(usize, usize); 8] =
    [(1, 1), (5, 77), (33, 130), (70, 264), (130, 1024), (9, 4104), (16_390, 160), (16_500, 512)];

/// Elements behind a row of the weight that belong to none: none, whole vectors, and some.
const PADDED: [usize; 3] = [0, 24, 3];

#[test]
fn products_are_those_of_f64_and_a_row_has_the_same_bits_in_every_company_of_its_way() {
    for runtime in runtimes() {
        let client = &runtime.client;
        for &dtype in &runtime.limits.dtypes {
            for (case, (n, k)) in SHAPES.into_iter().enumerate() {
                let stride = k + PADDED[case % PADDED.len()];
                let mut rng = StdRng::seed_from_u64((n * k) as u64);
                let mut drawn = |len: usize| -> Vec<f32> {
                    (0..len).map(|_| dtype.round(rng.random_range(-1.0f32..1.0))).collect()
                };
                let (all, weight) = (drawn(Gemv::MAX_ROWS * k), drawn(n * k));
                let mut padded = vec![f32::NAN; (n - 1) * stride + k];
                for (row, values) in weight.chunks(k).enumerate() {
                    padded[row * stride..][..k].copy_from_slice(values);
                }
                let on_device = Guarded::new(client, &dtype.encode(&padded));
                let mut alone = vec![];
                for m in [1, 2, 3, 5, 8, 9, 16, 37, 64] {
                    let x = Guarded::new(client, &dtype.encode(&all[..m * k]));
                    let y = Guarded::poisoned(client, m * n * dtype.size());
                    let problem = Gemv { m, n, k, stride, dtype };
                    if m > 8 && problem.validate(&runtime.limits).is_err() {
                        let tiled = runtime.limits.mma && dtype != Dtype::F32 && n > 16_384;
                        assert!(!tiled, "{}: {problem:?} is refused", runtime.name);
                        continue;
                    }
                    gemv(client, &problem, [&x.inner(), &on_device.inner(), &y.inner()])
                        .expect("launched");
                    let outer = client.read_one(y.outer()).expect("read");
                    let found = dtype.decode(y.content(&outer).expect("guards are whole"));
                    let what = format!("{}: {problem:?}", runtime.name);
                    // Three rows may go another way than one or two.
                    if m == 1 || m == 3 {
                        alone = found[..n].to_vec();
                    }
                    assert!(found[..n] == alone, "{what}: the first row has other bits");
                    for (at, found) in found.iter().enumerate() {
                        let (token, row) = (at / n, at % n);
                        let pairs = all[token * k..][..k].iter().zip(&weight[row * k..][..k]);
                        let products = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b));
                        let (mut exact, mut size) = (0.0, 0.0);
                        products.for_each(|p| (exact, size) = (exact + p, size + p.abs()));
                        let rounding = match dtype {
                            Dtype::F32 => 2f64.powi(-24),
                            Dtype::F16 => 2f64.powi(-11),
                            Dtype::BF16 => 2f64.powi(-8),
                        };
                        // A lane adds k products at most, and lanes add eight times. The sums of tensor cores are
                        // truncated, which is two roundings.
                        let sums = size * (k + 8) as f64 * 2f64.powi(-23);
                        let bound = sums + 1.01 * rounding * (exact.abs() + sums) + 6e-8;
                        let error = (f64::from(*found) - exact).abs();
                        assert!(error <= bound, "{what}: y[{token}, {row}] = {found}, not {exact}");
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_many_rows_or_short_buffers_are_refused() {
    for runtime in runtimes() {
        let client = &runtime.client;
        let (x, weight, y) = (client.empty(64), client.empty(96), client.empty(24));
        let ask = |m, n, k| {
            gemv(client, &Gemv { m, n, k, stride: k, dtype: Dtype::F32 }, [&x, &weight, &y])
        };
        assert_eq!(ask(2, 3, 8), Ok(()));
        assert_eq!(ask(0, 3, 8), Ok(()));
        let (what, device) = ("rows of x", runtime.limits.name.clone());
        assert_eq!(
            ask(9, 3, 8),
            Err(Error::UnsupportedShape { what, needed: 9, offered: 8, device })
        );
        let what = "the buffer of the weight (bytes)";
        assert_eq!(ask(2, 4, 8), Err(Error::WrongLength { what, found: 96, expected: 128 }));
        let what = "the buffer of x (bytes)";
        assert_eq!(ask(3, 3, 8), Err(Error::WrongLength { what, found: 64, expected: 96 }));
        assert!(matches!(ask(1, 0, 8), Err(Error::OutOfRange { .. })));
        assert!(matches!(ask(1, 3, 0), Err(Error::OutOfRange { .. })));
        assert!(matches!(ask(1, 1 << 20, 1 << 20), Err(Error::OutOfRange { .. })));
    }
}
