//! Decoding on the device against decoding on the host: exact, and nothing around it touched.

use crate::{
    case::{BITS, GROUPS, TABLES, Weight},
    device::{Guarded, runtimes},
};
use flute_cube::{Error, Format, Operands, PackedWeight, Problem, decode, reference};

/// (n, k): ragged rows, a k that is no multiple of a block, an odd one, and whole blocks.
const SHAPES: [(usize, usize); 4] = [(33, 130), (5, 77), (48, 384), (1, 1)];

#[test]
fn a_weight_decoded_on_the_device_is_its_table_times_its_scales_rounded_once() {
    for runtime in runtimes() {
        let mut checked = 0;
        for (i, bits) in BITS.into_iter().enumerate() {
            for (j, group) in GROUPS.into_iter().enumerate() {
                for (l, (n, k)) in SHAPES.into_iter().enumerate() {
                    let table = TABLES[(i + j + l) % TABLES.len()];
                    let format = Format { bits, group };
                    for &dtype in &runtime.limits.dtypes {
                        let weight = Weight { format, table, n, k, exact: false };
                        let stored =
                            reference::rounded(&weight.quantized(), dtype).expect("finite");
                        let packed = PackedWeight::pack(&stored);
                        let problem =
                            Problem { m: 1, n, k, format, dtype, bias: false, gate: None };
                        let x = vec![0.0; k];
                        let operands = Operands::upload(&runtime.client, &packed, &x, None, dtype);
                        let dense = Guarded::poisoned(&runtime.client, n * k * dtype.size());
                        decode(&runtime.client, &problem, operands, &dense.inner())
                            .expect("launched");
                        let outer = runtime.client.read_one(dense.outer()).expect("read");
                        let found = dense.content(&outer).expect("guards are whole");
                        let expected = dtype.encode(&stored.dequantize());
                        assert!(
                            found == expected,
                            "{}: {format} {table} {n}x{k} {dtype}",
                            runtime.name
                        );
                        checked += 1;
                    }
                }
            }
        }
        println!("{}: {checked} weights decoded, all exact", runtime.name);
    }
}

#[test]
fn a_buffer_too_short_for_the_decoded_weight_is_refused_with_both_numbers() {
    for runtime in runtimes() {
        let format = Format::new(4, 64).expect("a format");
        let weight = Weight { format, table: TABLES[0], n: 16, k: 64, exact: false };
        let dtype = runtime.limits.dtypes[0];
        let problem = Problem { m: 1, n: 16, k: 64, format, dtype, bias: false, gate: None };
        let packed = PackedWeight::pack(&weight.quantized());
        let operands = Operands::upload(&runtime.client, &packed, &[0.0; 64], None, dtype);
        let short = runtime.client.empty(8);
        let (what, expected) = ("the buffer of the decoded weight (bytes)", 1024 * dtype.size());
        let refused = decode(&runtime.client, &problem, operands, &short);
        assert_eq!(refused, Err(Error::WrongLength { what, found: 8, expected }));
    }
}
