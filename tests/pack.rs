//! The two orders of codes and the tables they name, each against a definition written anew.

#[path = "pack/stack.rs"]
mod stack;

use flute_cube::{
    Bits, Error, Format, Group, PackedWeight, Quantized, QuantizedParts, Table, pack,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const SEED: u64 = 0xf107e;

fn random_weight(rng: &mut StdRng, bits: Bits, group: Group, pairs: bool) -> Quantized {
    let (n, k) = (rng.random_range(1..70), rng.random_range(1..700));
    let mut values =
        |len: usize| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let table = if pairs {
        Table::pairs(bits, values(2 * bits.pairs()).as_chunks().0)
    } else {
        Table::custom(bits, &values(bits.codes()))
    };
    let table = table.expect("finite values");
    let format = Format { bits, group };
    let scales = values(n * group.count(k));
    let codes = (0..n * k.div_ceil(table.dim()))
        .map(|_| rng.random_range(0..table.entries()) as u8)
        .collect();
    Quantized::new(QuantizedParts { n, k, format, codes, scales, table }).expect("a valid weight")
}

#[test]
fn kernel_order_gives_back_every_code_and_scale_of_any_shape() {
    let mut rng = StdRng::seed_from_u64(SEED);
    println!("seed {SEED:#x}");
    let groups = Group::SIZES.map(|size| Group::new(size).expect("served"));
    for bits in Bits::ALL {
        for group in groups.into_iter().chain([Group::Whole]) {
            for pairs in [false, true] {
                for _ in 0..6 {
                    let weight = random_weight(&mut rng, bits, group, pairs);
                    let (n, k, name) = (weight.n(), weight.k(), weight.format());
                    let packed = PackedWeight::pack(&weight);
                    assert_eq!(packed.words.len(), PackedWeight::words_len(n, k, name));
                    assert_eq!(packed.scales.len(), PackedWeight::scales_len(n, k, name));
                    let (indices, scales) = packed.unpack();
                    let per_row = k.div_ceil(2);
                    let expected: Vec<u8> = (0..n * per_row)
                        .map(|i| weight.pair_index(i / per_row, i % per_row))
                        .collect();
                    assert!(indices == expected, "codes of {n}x{k} {name}, pairs: {pairs}");
                    assert!(scales == weight.scales(), "scales of {n}x{k} {name}, pairs: {pairs}");
                    assert!(
                        packed.dequantize() == weight.dequantize(),
                        "weights of {n}x{k} {name}, pairs: {pairs}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_lies_beyond_the_matrix_is_zero_in_kernel_order() {
    for bits in Bits::ALL {
        let format = Format { bits, group: Group::Size(32) };
        let top = (bits.codes() - 1) as u8;
        let (n, k) = (17, 129);
        let scales = vec![1.0; n * format.group.count(k)];
        let parts = QuantizedParts {
            n,
            k,
            format,
            codes: vec![top; n * k],
            scales,
            table: Table::int(bits),
        };
        let packed = PackedWeight::pack(&Quantized::new(parts).expect("valid"));
        let ones: u32 = packed.words.iter().map(|word| word.count_ones()).sum();
        assert_eq!(ones as usize, n * k * usize::from(bits.get()));
        assert_eq!(packed.scales.iter().filter(|scale| **scale != 0.0).count(), n * 5);
    }
}

#[test]
fn canonical_order_gives_back_every_code_of_any_shape() {
    let mut rng = StdRng::seed_from_u64(SEED);
    println!("seed {SEED:#x}");
    for bits in [2, 3, 4, 6, 8] {
        for _ in 0..40 {
            let (rows, per_row) = (rng.random_range(1..20), rng.random_range(1..300));
            let codes: Vec<u8> =
                (0..rows * per_row).map(|_| rng.random_range(0..1u32 << bits) as u8).collect();
            let bytes = pack::to_canonical(&codes, per_row, bits);
            assert_eq!(bytes.len(), rows * pack::canonical_row_bytes(per_row, bits));
            assert_eq!(
                pack::from_canonical(&bytes, rows, per_row, bits),
                Ok(codes),
                "{rows}x{per_row}, {bits} bits"
            );
        }
    }
}

#[test]
fn canonical_bytes_are_these() {
    // Two rows of five codes each. Written by hand: code i of a row takes the bits from i·b on, the least
    // significant first, and every row starts at a byte.
    let codes = [1, 2, 3, 0, 1, 3, 3, 3, 3, 2];
    // 2 bits: 00 11 10 01 | 01, then 11 11 11 11 | 10
    assert_eq!(pack::to_canonical(&codes, 5, 2), [0b0011_1001, 0b01, 0b1111_1111, 0b10]);
    let codes = [1, 2, 3, 4, 5, 7, 0, 7, 0, 6];
    // 3 bits: 101 100 011 010 001 = 0x58d1, then 110 000 111 000 111 = 0x61c7
    assert_eq!(pack::to_canonical(&codes, 5, 3), [0xd1, 0x58, 0xc7, 0x61]);
    let codes = [1, 2, 3, 14, 5, 15, 0, 8, 7, 6];
    // 4 bits: a low nibble first
    assert_eq!(pack::to_canonical(&codes, 5, 4), [0x21, 0xe3, 0x05, 0x0f, 0x78, 0x06]);
    // Pairs of 3 bits a weight, 6 bits a code: 000001 | 111111 | 100000, then 010101 | 000000 | 000001
    let codes = [0b000001, 0b111111, 0b100000, 0b010101, 0, 1];
    assert_eq!(pack::to_canonical(&codes, 3, 6), [0xc1, 0x0f, 0x02, 0x15, 0x10, 0x00]);
    assert_eq!(pack::canonical_row_bytes(0, 4), 0);
}

#[test]
fn kernel_words_are_these() {
    // One row: pair 0 is slot 0 of lane 0, and pairs follow lanes 0–3, then slot 2, then the next fragment.
    let words = |bits: Bits, code: &dyn Fn(usize) -> u8| {
        let format = Format { bits, group: Group::Whole };
        let codes = (0..128).map(code).collect();
        let parts = QuantizedParts {
            n: 1,
            k: 128,
            format,
            codes,
            scales: vec![1.0],
            table: Table::int(bits),
        };
        PackedWeight::pack(&Quantized::new(parts).expect("valid")).words
    };
    // 4 bits: the pair (1, 2) at k 0 is 0x21 in byte 0 of lane 0's word 0; (3, 4) at k 8 is 0x43 in its byte 2;
    // (5, 6) at k 16 in byte 0 of its word 1; (7, 8) at k 70 = 64 + 6 in byte 0 of lane 3's word 4.
    let four = words(Bits::Four, &|k| match k {
        0 | 1 => 1 + k as u8,
        8 | 9 => k as u8 - 5,
        16 | 17 => k as u8 - 11,
        70 | 71 => k as u8 - 63,
        _ => 0,
    });
    let held: Vec<(usize, u32)> =
        four.into_iter().enumerate().filter(|(_, word)| *word != 0).collect();
    assert_eq!(held, [(0, 0x0043_0021), (1, 0x65), (128 + 3 * 4, 0x87)]);
    // 3 bits: (1, 2) = 0o21 at k 0 fills the low six bits of byte 0; at k 48, fragment 3, the same pair 0b010_001
    // is spread over the top two bits of byte 0 of words 0, 1 and 2: 01, 00, 01.
    let three =
        words(Bits::Three, &|k| if matches!(k, 0 | 1 | 48 | 49) { 1 + k as u8 % 2 } else { 0 });
    let held: Vec<(usize, u32)> =
        three.into_iter().enumerate().filter(|(_, word)| *word != 0).collect();
    assert_eq!(held, [(0, 0b01_010_001), (2, 0b01_000_000)]);
    // 2 bits: (1, 2) = 0b1001 at k 0 in nibble 0, (3, 0) at k 8, slot 2, in nibble 2, (2, 2) at k 16, the second fragment
    // of the word, in nibble 4.
    let two = words(Bits::Two, &|k| match k {
        0 => 1,
        1 | 16 | 17 => 2,
        8 => 3,
        _ => 0,
    });
    let held: Vec<(usize, u32)> =
        two.into_iter().enumerate().filter(|(_, word)| *word != 0).collect();
    assert_eq!(held, [(0, 0b1010_0000_0011_0000_1001)]);
}

#[test]
fn scales_of_two_rows_of_a_lane_lie_side_by_side() {
    let format = Format::new(4, 32).expect("served");
    let (n, k) = (18, 64);
    let scales: Vec<f32> = (0..n * 2).map(|i| (1 + i) as f32).collect();
    let parts = QuantizedParts {
        n,
        k,
        format,
        codes: vec![0; n * k],
        scales,
        table: Table::nf(Bits::Four),
    };
    let packed = PackedWeight::pack(&Quantized::new(parts).expect("valid"));
    // Row r of group g holds 1 + 2r + g. Tile 0, group 0: rows 0 and 8, 1 and 9, …; then group 1; two
    // groups that fill the block; then tile 1.
    assert_eq!(packed.scales[..4], [1.0, 17.0, 3.0, 19.0]);
    assert_eq!(packed.scales[16..20], [2.0, 18.0, 4.0, 20.0]);
    assert_eq!(packed.scales[64..68], [33.0, 0.0, 35.0, 0.0]);
}

/// The standard normal distribution function, by the series of the error function: exact to 1e-15 for |x| < 3.
fn normal_cdf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for i in 1..200 {
        term *= -x * x / (2.0 * f64::from(i));
        sum += term / f64::from(2 * i + 1);
    }
    0.5 + sum / (2.0 * std::f64::consts::PI).sqrt()
}

fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-4.0, 4.0);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if normal_cdf(middle) < p { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

fn linspace(from: f64, to: f64, count: usize) -> impl Iterator<Item = f64> {
    (0..count).map(move |i| from + (to - from) * i as f64 / (count - 1) as f64)
}

/// δ of the Normal Float definition, the mean of half a step of either half of a 16-value table.
const DELTA: f64 = (1.0 / 32.0 + 1.0 / 30.0) / 2.0;

#[test]
fn normal_float_tables_follow_their_formula() {
    for bits in Bits::ALL {
        let half = bits.codes() / 2;
        // Quantiles of the lower half with zero, of the upper half with zero, zero once; scaled to ±1.
        let lower = linspace(DELTA, 0.5, half).map(normal_quantile);
        let upper = linspace(0.5, 1.0 - DELTA, half + 1).map(normal_quantile).skip(1);
        let top = normal_quantile(1.0 - DELTA);
        check(&format!("nf{bits}"), Table::nf(bits).values(), lower.chain(upper).map(|v| v / top));
        let symmetric =
            linspace(DELTA, 1.0 - DELTA, bits.codes()).map(|p| normal_quantile(p) / top);
        check(&format!("symmetric nf{bits}"), Table::nf_symmetric(bits).values(), symmetric);
    }
}

fn check(name: &str, values: &[f32], expected: impl Iterator<Item = f64>) {
    let expected: Vec<f64> = expected.collect();
    assert_eq!(values.len(), expected.len(), "{name}");
    for (found, right) in values.iter().zip(expected) {
        // The literals of bitsandbytes were computed in single precision.
        assert!((f64::from(*found) - right).abs() < 3e-7, "{name}: {found} should be {right}");
    }
}

#[test]
fn integer_and_float_tables_are_these() {
    assert_eq!(Table::int(Bits::Two).values(), [-1.0, -0.5, 0.0, 0.5]);
    assert_eq!(Table::int(Bits::Three).values(), [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75]);
    assert_eq!(Table::int(Bits::Four).values()[15], 0.875);
    assert_eq!(Table::fp(Bits::Two).values(), [-1.0, 0.0, 0.0, 1.0]);
    assert_eq!(Table::fp(Bits::Three).values(), [-1.0, -0.5, -0.25, 0.0, 0.0, 0.25, 0.5, 1.0]);
    let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0].map(|v: f32| v / 6.0);
    assert_eq!(Table::fp(Bits::Four).values()[8..], e2m1);
}

#[test]
fn the_nearest_code_is_the_nearest_value_and_a_tie_takes_the_lower() {
    let mut rng = StdRng::seed_from_u64(SEED);
    let unsorted = Table::custom(Bits::Two, &[0.5, -1.0, 1.0, -0.25]).expect("finite");
    assert_eq!(
        [-2.0, -0.625, -0.6, 0.125, 0.13, 0.75, 9.0].map(|w| unsorted.nearest(w)),
        [1, 1, 3, 3, 0, 0, 2]
    );
    for bits in Bits::ALL {
        for table in [Table::int(bits), Table::nf(bits), Table::nf_symmetric(bits), Table::fp(bits)]
        {
            for _ in 0..1000 {
                let w: f32 = rng.random_range(-1.2..1.2);
                let distance = |value: f32| (value - w).abs();
                let least =
                    table.values().iter().copied().map(distance).fold(f32::INFINITY, f32::min);
                let found = table.values()[usize::from(table.nearest(w))];
                // Midpoints are rounded, so next to one either neighbour is right.
                assert!(
                    distance(found) <= least + f32::EPSILON,
                    "{}: {w} took {found}",
                    table.kind()
                );
            }
        }
    }
}

#[test]
fn canonical_rows_pack_to_what_their_codes_do() {
    let mut rng = StdRng::seed_from_u64(SEED ^ 1);
    for bits in Bits::ALL {
        for pairs in [false, true] {
            for _ in 0..12 {
                let weight = random_weight(&mut rng, bits, Group::Size(64), pairs);
                let (n, k, format) = (weight.n(), weight.k(), weight.format());
                let (scales, table) = (weight.scales(), weight.table());
                let width = k.div_ceil(table.dim());
                let codes =
                    pack::to_canonical(weight.codes(), width, bits.get() * table.dim() as u8);
                let canonical = pack::Canonical { n, k, format, codes: &codes, scales, table };
                let packed = PackedWeight::from_canonical(&canonical).expect("sound");
                assert!(packed == PackedWeight::pack(&weight), "{n}x{k} {format}, pairs: {pairs}");
            }
        }
    }
}

#[test]
fn canonical_rows_are_refused_as_their_codes_are() {
    let format = Format::new(3, 32).expect("served");
    let table = Table::int(Bits::Three);
    // Three codes of 3 bits: nine bits, and seven of padding.
    let sound = [0b1101_0001, 0b0000_0001, 0, 0];
    let refused = |codes: &[u8], scales: &[f32], table: &Table, n| {
        let canonical = pack::Canonical { n, k: 3, format, codes, scales, table };
        PackedWeight::from_canonical(&canonical).map(|packed| packed.n)
    };
    assert_eq!(refused(&sound, &[1.0, 2.0], &table, 2), Ok(2));
    let error = |result: Result<usize, Error>| result.expect_err("it is broken");
    let dirty = error(refused(&[0, 0, 0, 0b10], &[1.0, 2.0], &table, 2));
    assert_eq!(dirty, Error::DirtyPadding { row: 1 });
    assert!(matches!(
        error(refused(&sound[1..], &[1.0, 2.0], &table, 2)),
        Error::WrongLength { found: 3, expected: 4, .. }
    ));
    assert!(matches!(
        error(refused(&sound, &[1.0], &table, 2)),
        Error::WrongLength { found: 1, expected: 2, .. }
    ));
    assert!(matches!(
        error(refused(&sound, &[1.0, f32::INFINITY], &table, 2)),
        Error::NotFinite { index: 1, .. }
    ));
    let four = Table::int(Bits::Four);
    assert!(matches!(error(refused(&sound, &[1.0, 2.0], &four, 2)), Error::BitsMismatch { .. }));
    assert!(matches!(
        error(refused(&[], &[], &table, 0)),
        Error::OutOfRange { what: "n", found: 0, .. }
    ));
}
