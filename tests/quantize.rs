//! Quantizers: which codes and scales a weight gets, and which weights get none.

use flute_burn::error::Error;
use flute_burn::quantize::{Method, quantize};
use flute_cube::{Bits, Group, Quantized, Table};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn absmax(table: Table, group: usize) -> Method {
    Method::Absmax { table, group: Group::new(group).unwrap() }
}

/// `count` numbers of the normal distribution (Box and Muller).
fn gaussian(seed: u64, count: usize) -> Vec<f32> {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut normal = || {
        let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        ((-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()) as f32
    };
    (0..count).map(|_| normal()).collect()
}

fn tables() -> impl Iterator<Item = Table> {
    Bits::ALL.into_iter().flat_map(|bits| {
        let values = &[0.5, -1.0, 0.25, 0.0, 1.0, -0.75, 0.1, -0.2][..bits.codes().min(8)];
        let shuffled: Vec<f32> =
            (0..bits.codes()).map(|i| values[i % 8] + (i / 8) as f32).collect();
        let custom = Table::custom(bits, &shuffled).unwrap();
        [Table::int(bits), Table::fp(bits), Table::nf(bits), Table::nf_symmetric(bits), custom]
    })
}

#[test]
fn a_tie_takes_the_lower_code() {
    // With scale 1, the midpoints of the integer table are exact: -15/16, -13/16, …
    let table = Table::int(Bits::Four);
    let mut weight = vec![-1.0];
    weight.extend_from_slice(table.midpoints());
    let quantized = quantize("w", &weight, 1, 16, &absmax(table, 32)).unwrap();
    assert_eq!(quantized.scales(), [1.0]);
    let below: Vec<u8> = (0..15).collect();
    assert_eq!(quantized.codes()[1..], below);
}

#[test]
fn just_above_a_tie_takes_the_upper_code() {
    for table in [Table::int(Bits::Three), Table::nf(Bits::Three), Table::nf(Bits::Four)] {
        let mut weight = vec![-1.0];
        weight.extend(table.midpoints().iter().map(|m| m.next_up()));
        let k = weight.len();
        let quantized = quantize("w", &weight, 1, k, &absmax(table, 32)).unwrap();
        let above: Vec<u8> = (1..k as u8).collect();
        assert_eq!(quantized.codes()[1..], above);
    }
}

#[test]
fn codes_are_chosen_with_the_unrounded_scale() {
    // 0.7 lies between two halves; what a file rounds it to must not move a code.
    let scale = 0.7f32;
    let table = Table::int(Bits::Four);
    let weight = [-scale, scale * 0.4375, scale * 0.5, 0.1, -0.3];
    let quantized = quantize("w", &weight, 1, 5, &absmax(table.clone(), 32)).unwrap();
    assert_eq!(quantized.scales(), [scale]);
    let expected: Vec<u8> = weight.iter().map(|w| table.nearest(w / scale)).collect();
    assert_eq!(quantized.codes(), expected);
}

#[test]
fn a_group_of_zeros_becomes_zeros() {
    for table in tables() {
        let (kind, bits) = (table.kind(), table.bits());
        let mut weight = vec![0.0; 96];
        weight[64] = 2.0;
        weight[33] = -0.0;
        let quantized = quantize("w", &weight, 1, 96, &absmax(table, 32)).unwrap();
        assert_eq!(quantized.scales(), [0.0, 0.0, 2.0], "{kind} {bits}");
        let values = quantized.dequantize();
        assert!(values[..64].iter().all(|v| *v == 0.0), "{kind} {bits}");
    }
}

#[test]
fn every_code_is_that_of_the_nearest_table_entry() {
    for (seed, table) in tables().enumerate() {
        let (n, k) = (9, 130);
        let weight = gaussian(seed as u64, n * k);
        for group in
            [Group::Size(32), Group::Size(64), Group::Size(128), Group::Size(256), Group::Whole]
        {
            let method = Method::Absmax { table: table.clone(), group };
            let quantized = quantize("w", &weight, n, k, &method).unwrap();
            let (len, groups) = (group.len(k), group.count(k));
            for (index, (w, code)) in weight.iter().zip(quantized.codes()).enumerate() {
                let (row, col) = (index / k, index % k);
                let scale = quantized.scales()[row * groups + col / len];
                assert_eq!(
                    *code,
                    table.nearest(w / scale),
                    "{} {group} [{row}, {col}]",
                    table.kind()
                );
            }
        }
    }
}

#[test]
fn scales_are_the_largest_magnitudes_and_the_last_group_may_be_short() {
    let (n, k) = (3, 100);
    let weight = gaussian(7, n * k);
    let quantized = quantize("w", &weight, n, k, &absmax(Table::nf(Bits::Four), 64)).unwrap();
    let expected: Vec<f32> = weight
        .chunks(k)
        .flat_map(|row| {
            row.chunks(64).map(|group| group.iter().fold(0.0f32, |s, w| s.max(w.abs())))
        })
        .collect();
    assert_eq!(quantized.scales(), expected);
    assert_eq!(quantized.scales().len(), n * 2);
}

#[test]
fn normal_float_loses_on_gaussian_weights_what_it_should() {
    // Relative squared error, groups of 32, 64, 128 and 256, measured by the method's authors' code.
    let expected = [
        (Bits::Four, [0.00762, 0.00845, 0.00912, 0.00975]),
        (Bits::Three, [0.0360, 0.0407, 0.0443, 0.0475]),
        (Bits::Two, [0.268, 0.317, 0.359, 0.396]),
    ];
    let (n, k) = (512, 4096);
    let weight = gaussian(20_240_715, n * k);
    let norm: f64 = weight.iter().map(|w| f64::from(*w).powi(2)).sum();
    for (bits, errors) in expected {
        for (group, expected) in Group::SIZES.into_iter().zip(errors) {
            let quantized = quantize("w", &weight, n, k, &absmax(Table::nf(bits), group)).unwrap();
            let error: f64 = squared_error(&weight, &quantized) / norm;
            println!("nf{bits} g{group}: {error:.5}, expected {expected}");
            assert!((error / expected - 1.0).abs() < 0.01, "nf{bits} g{group}: {error} {expected}");
        }
    }
}

fn squared_error(weight: &[f32], quantized: &Quantized) -> f64 {
    let values = quantized.dequantize();
    weight.iter().zip(values).map(|(w, v)| f64::from(w - v).powi(2)).sum()
}

#[test]
fn no_weight_moves_further_than_half_the_widest_gap() {
    for table in Bits::ALL.into_iter().flat_map(|b| [Table::int(b), Table::fp(b), Table::nf(b)]) {
        let values = table.values();
        let gap = values.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max);
        // Beyond the last entry: the integer table ends below 1.
        let reach = (gap / 2.0).max(1.0 - values[values.len() - 1]);
        let (n, k) = (16, 512);
        let weight = gaussian(11, n * k);
        let quantized = quantize("w", &weight, n, k, &absmax(table.clone(), 128)).unwrap();
        for (index, (w, v)) in weight.iter().zip(quantized.dequantize()).enumerate() {
            let scale = quantized.scales()[index / 128];
            let bound = scale * reach * (1.0 + 1e-5);
            assert!((w - v).abs() <= bound, "{} {}: {w} became {v}", table.kind(), table.bits());
        }
    }
}

#[test]
fn the_smallest_and_the_largest_floats_survive() {
    for magnitude in [f32::from_bits(1), f32::MIN_POSITIVE, f32::MAX] {
        let weight = [magnitude, -magnitude, 0.0, magnitude];
        let quantized = quantize("w", &weight, 1, 4, &absmax(Table::nf(Bits::Four), 32)).unwrap();
        assert_eq!(quantized.codes(), [15, 0, 7, 15]);
        assert_eq!(quantized.dequantize(), weight);
    }
}

#[test]
fn a_weight_that_is_not_finite_is_refused_with_its_name_and_place() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut weight = gaussian(3, 40 * 70);
        weight[17 * 70 + 65] = bad;
        weight[31 * 70 + 2] = f32::NAN;
        let error = quantize("model.x.weight", &weight, 40, 70, &absmax(Table::nf(Bits::Four), 64));
        let error = error.unwrap_err();
        assert!(matches!(&error, Error::NotFinite { row: 17, col: 65, .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.starts_with("model.x.weight[17, 65] is "), "{message}");
    }
}

#[test]
fn a_weight_of_another_length_than_its_shape_is_refused_with_both_numbers() {
    let method = absmax(Table::nf(Bits::Four), 64);
    for (n, k) in [(2, 5), (0, 4), (4, 0), (usize::MAX, 2)] {
        let error = quantize("w", &[0.0; 8], n, k, &method).unwrap_err();
        assert!(matches!(error, Error::WeightLength { found: 8, .. }), "{error:?}");
    }
    let message = quantize("w", &[0.0; 8], 2, 5, &method).unwrap_err().to_string();
    assert_eq!(message, "w has 8 weights; [2, 5] needs 10");
}

#[test]
fn a_codebook_of_pairs_is_refused_by_absmax() {
    let table = Table::pairs(Bits::Two, &[[0.0; 2]; 16]).unwrap();
    let error = quantize("w", &[0.0; 8], 2, 4, &absmax(table, 32)).unwrap_err();
    assert!(matches!(error, Error::TableDimension { dim: 2, .. }), "{error:?}");
}
