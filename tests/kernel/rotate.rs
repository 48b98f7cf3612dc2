//! Rotary embedding and the write into the cache, against f64.

use crate::blocks::Blocks;
use crate::device::{Guarded, Runtime, runtimes};
use flute_cube::{CACHE_BLOCK, Dtype, Error, Rotate, RotateBuffers, rotate};
use rand::{RngExt, SeedableRng, rngs::StdRng};

fn values(len: usize, dtype: Dtype, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| dtype.round(rng.random_range(-3.0..3.0))).collect()
}

/// Half an ulp of one.
fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::BF16 => 2f64.powi(-8),
    }
}

/// Cosines and sines of any angles: the kernel knows nothing of frequencies.
fn tables(capacity: usize, half: usize) -> [Vec<f32>; 2] {
    let angles = || (0..capacity * half).map(|i| i as f32 * 0.37);
    [angles().map(f32::cos).collect(), angles().map(f32::sin).collect()]
}

fn check(runtime: &Runtime, problem: &Rotate, start: &[i32]) {
    check_in(runtime, problem, start, &Blocks::scattered(problem.batch, problem.capacity));
}

fn check_in(runtime: &Runtime, problem: &Rotate, start: &[i32], blocks: &Blocks) {
    let problem = &Rotate { blocks: blocks.count, ..*problem };
    let Rotate { batch, tokens, query_heads, key_heads, dim, capacity, dtype, .. } = *problem;
    let client = &runtime.client;
    let (half, heads) = (dim / 2, query_heads + 2 * key_heads);
    let seed = (dim * heads + tokens) as u64;
    let qkv = values(batch * tokens * heads * dim, dtype, seed);
    let [cos, sin] = tables(capacity, half);
    // What the cache held before, to be found again around the new tokens.
    let old = values(blocks.count * key_heads * CACHE_BLOCK * dim, dtype, seed + 1);
    let upload = |values: &[f32], dtype: Dtype| Guarded::new(client, &dtype.encode(values));
    let (input, keys, stored) = (upload(&qkv, dtype), upload(&old, dtype), upload(&old, dtype));
    let query = Guarded::poisoned(client, batch * tokens * query_heads * dim * dtype.size());
    let buffers = RotateBuffers {
        qkv: input.inner(),
        cos: upload(&cos, Dtype::F32).inner(),
        sin: upload(&sin, Dtype::F32).inner(),
        start: Guarded::new(client, bytemuck::cast_slice(start)).inner(),
        table: Guarded::new(client, bytemuck::cast_slice(&blocks.table)).inner(),
        query: query.inner(),
        keys: keys.inner(),
        values: stored.inner(),
    };
    rotate(client, problem, &buffers).expect("launched");
    let read = |guarded: &Guarded| {
        let outer = client.read_one(guarded.outer()).expect("read");
        dtype.decode(guarded.content(&outer).expect("guards are whole"))
    };
    let (query, keys, stored) = (read(&query), read(&keys), read(&stored));

    let turned = |from: usize, position: usize, i: usize| {
        let (low, high) = (f64::from(qkv[from + i % half]), f64::from(qkv[from + half + i % half]));
        let at = position.min(capacity - 1) * half + i % half;
        let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
        if i < half { low * c - high * s } else { high * c + low * s }
    };
    let near = |found: f32, exact: f64, what: &str| {
        // Two products of values up to 3, each rounded, and their sum.
        let bound = 3.0 * 6.0 * unit(Dtype::F32) + 1.01 * unit(dtype) * exact.abs() + 6e-8;
        let error = (f64::from(found) - exact).abs();
        assert!(
            error <= bound,
            "{}: {problem:?} from {start:?}: {what} = {found:e}, expected {exact:e} ± {bound:.1e}",
            runtime.name
        );
    };
    let (mut old_keys, mut old_values) = (old.clone(), old);
    for b in 0..batch {
        for t in 0..tokens {
            // What stands nowhere reads the last rotation.
            let position = usize::try_from(start[b]).map_or(capacity, |start| start + t);
            for head in 0..heads {
                let from = ((b * tokens + t) * heads + head) * dim;
                let cache = |head: usize| {
                    let within = position < capacity;
                    within.then(|| blocks.row([b, key_heads, head], position)).flatten()
                };
                for i in 0..dim {
                    if head < query_heads {
                        let at = ((b * query_heads + head) * tokens + t) * dim + i;
                        near(query[at], turned(from, position, i), "a query");
                    } else if head < query_heads + key_heads {
                        let Some(row) = cache(head - query_heads) else { continue };
                        let at = row * dim + i;
                        near(keys[at], turned(from, position, i), "a key");
                        old_keys[at] = keys[at];
                    } else if let Some(row) = cache(head - query_heads - key_heads) {
                        old_values[row * dim + i] = qkv[from + i];
                    }
                }
            }
        }
    }
    assert!(keys == old_keys, "{}: {problem:?}: other keys were overwritten", runtime.name);
    assert!(stored == old_values, "{}: {problem:?}: values are not those of x", runtime.name);
}

#[test]
fn queries_and_keys_are_rotated_and_stored_where_each_sequence_stands() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            let shape = |query_heads, key_heads, dim| Rotate {
                batch: 3,
                tokens: 1,
                query_heads,
                key_heads,
                dim,
                capacity: 20,
                blocks: 1,
                dtype,
            };
            for (query_heads, key_heads, dim) in [(8, 2, 128), (3, 3, 64), (4, 1, 6), (1, 1, 2)] {
                let problem = shape(query_heads, key_heads, dim);
                check(runtime, &problem, &[0, 19, 7]);
                check(runtime, &Rotate { tokens: 5, ..problem }, &[0, 15, 7]);
            }
            // The last tokens of the second have no place in the cache, and the third none at all.
            check(runtime, &Rotate { tokens: 4, ..shape(4, 2, 32) }, &[3, 18, -1]);
            // Across the edges of blocks.
            let long = Rotate { tokens: 70, capacity: 200, ..shape(4, 2, 32) };
            check(runtime, &long, &[0, 60, 131]);
        }
    }
}

#[test]
fn what_has_no_block_is_rotated_and_not_stored() {
    for runtime in runtimes() {
        let (query_heads, key_heads, dim, capacity, blocks) = (4, 2, 16, 200, 1);
        let dtype = runtime.limits.dtypes[0];
        for tokens in [1, 9] {
            let batch = 3;
            let problem =
                Rotate { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype };
            let mut blocks = Blocks::scattered(3, capacity);
            // The first goes on into a block that it lacks; of the third's numbers none names a block.
            blocks.table[1] = -1;
            blocks.table[8..12].copy_from_slice(&[blocks.count as i32, i32::MAX, i32::MIN, -1]);
            check_in(runtime, &problem, &[60, 60, 62], &blocks);
            check_in(runtime, &problem, &[70, 64, i32::MIN], &blocks);
        }
    }
}

#[test]
fn rotations_of_heads_and_caches_that_cannot_be_are_refused() {
    for Runtime { client, .. } in runtimes() {
        let [x, y, z] = [64, 2048, 2048].map(|bytes| client.empty(bytes));
        let buffers = RotateBuffers {
            qkv: client.empty(128),
            cos: x.clone(),
            sin: x.clone(),
            start: x.clone(),
            table: x.clone(),
            query: client.empty(64),
            keys: y,
            values: z,
        };
        let (batch, tokens, query_heads, key_heads) = (1, 1, 2, 1);
        let (dim, capacity, blocks, dtype) = (8, 2, 1, Dtype::F32);
        let problem =
            Rotate { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype };
        let ask = |problem| rotate(client, &problem, &buffers);
        assert_eq!(ask(problem), Ok(()));
        assert_eq!(ask(Rotate { tokens: 0, ..problem }), Ok(()));
        let what = "the cache of keys (bytes)";
        assert_eq!(
            ask(Rotate { blocks: 2, ..problem }),
            Err(Error::WrongLength { what, found: 2048, expected: 4096 })
        );
        let what = "the buffer of cosines (bytes)";
        assert_eq!(
            ask(Rotate { capacity: 5, ..problem }),
            Err(Error::WrongLength { what, found: 64, expected: 80 })
        );
        for wrong in [
            Rotate { dim: 7, ..problem },
            Rotate { dim: 0, ..problem },
            Rotate { key_heads: 0, ..problem },
            Rotate { capacity: 0, ..problem },
            Rotate { blocks: 0, ..problem },
            Rotate { blocks: 1 << 40, ..problem },
            Rotate { tokens: usize::MAX, ..problem },
            Rotate { capacity: 1 << 40, ..problem },
        ] {
            assert!(matches!(ask(wrong), Err(Error::OutOfRange { .. })), "{wrong:?}");
        }
    }
}
