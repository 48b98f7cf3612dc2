//! Rows looked up on the device against rows decoded on the host: exact, and nothing around them touched.

use crate::{
    case::{BITS, GROUPS, TABLES, Weight},
    device::{Guarded, runtimes},
};
use cubecl::server::Handle;
use flute_cube::{Error, Format, Operands, PackedWeight, Problem, RowOperands, reference, rows};

/// (n, k): ragged rows, a k that is no multiple of a block, an odd one, and whole blocks.
const SHAPES: [(usize, usize); 3] = [(33, 130), (5, 77), (48, 384)];

fn operands(weight: Operands, ids: Handle) -> RowOperands {
    let Operands { words, scales, pairs, .. } = weight;
    RowOperands { words, scales, pairs, ids }
}

#[test]
fn a_row_looked_up_is_that_of_the_decoded_weight() {
    for runtime in runtimes() {
        let client = &runtime.client;
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
                        // The first and the last row, one twice, and a number that no row has.
                        let ids = [0, n - 1, 3, 3, n / 2, n + 7];
                        let numbers: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
                        let numbers = client.create_from_slice(bytemuck::cast_slice(&numbers));
                        let problem =
                            Problem { m: ids.len(), n, k, format, dtype, bias: false, gate: None };
                        let uploaded = Operands::upload(client, &packed, &[], None, dtype);
                        let found = Guarded::poisoned(client, ids.len() * k * dtype.size());
                        rows(client, &problem, &operands(uploaded, numbers), &found.inner())
                            .expect("launched");
                        let outer = client.read_one(found.outer()).expect("read");
                        let content = found.content(&outer).expect("guards are whole");
                        let ids = ids.map(|id| id.min(n - 1));
                        let dense = stored.dequantize();
                        let expected: Vec<f32> =
                            ids.iter().flat_map(|id| &dense[id * k..][..k]).copied().collect();
                        let name = runtime.name;
                        assert!(
                            content == dtype.encode(&expected),
                            "{name}: {format} {table} {n}x{k} {dtype}"
                        );
                        assert!(packed.rows(&ids) == expected, "{format} {table} {n}x{k}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_lookup_with_short_buffers_is_refused_with_both_numbers() {
    for runtime in runtimes() {
        let client = &runtime.client;
        let format = Format::new(4, 64).expect("a format");
        let weight = Weight { format, table: TABLES[0], n: 16, k: 64, exact: false };
        let dtype = runtime.limits.dtypes[0];
        let problem = Problem { m: 3, n: 16, k: 64, format, dtype, bias: false, gate: None };
        let packed = PackedWeight::pack(&weight.quantized());
        let uploaded = || Operands::upload(client, &packed, &[], None, dtype);
        let (ids, y) = (client.empty(12), client.empty(3 * 64 * dtype.size()));
        let refused = |ids, y: Handle| rows(client, &problem, &operands(uploaded(), ids), &y);
        let what = "the buffer of row numbers (bytes)";
        let short = refused(client.empty(8), y.clone());
        assert_eq!(short, Err(Error::WrongLength { what, found: 8, expected: 12 }));
        let (what, expected) = ("the buffer of rows (bytes)", 3 * 64 * dtype.size());
        let short = refused(ids.clone(), client.empty(16));
        assert_eq!(short, Err(Error::WrongLength { what, found: 16, expected }));
        assert_eq!(refused(ids, y), Ok(()));
    }
}
