//! Rotary embedding and the write into the cache, against f64.

use crate::device::{Guarded, Runtime, runtimes};
use flute_cube::{Dtype, Error, Rotate, RotateBuffers, rotate};
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
    let Rotate { batch, tokens, query_heads, key_heads, dim, capacity, dtype } = *problem;
    let client = &runtime.client;
    let (half, heads) = (dim / 2, query_heads + 2 * key_heads);
    let seed = (dim * heads + tokens) as u64;
    let qkv = values(batch * tokens * heads * dim, dtype, seed);
    let [cos, sin] = tables(capacity, half);
    // What the cache held before, to be found again around the new tokens.
    let old = values(batch * key_heads * capacity * dim, dtype, seed + 1);
    let upload = |values: &[f32], dtype: Dtype| Guarded::new(client, &dtype.encode(values));
    let (input, keys, stored) = (upload(&qkv, dtype), upload(&old, dtype), upload(&old, dtype));
    let query = Guarded::poisoned(client, batch * tokens * query_heads * dim * dtype.size());
    let buffers = RotateBuffers {
        qkv: input.inner(),
        cos: upload(&cos, Dtype::F32).inner(),
        sin: upload(&sin, Dtype::F32).inner(),
        start: Guarded::new(client, bytemuck::cast_slice(start)).inner(),
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
                let cache = |head: usize| ((b * key_heads + head) * capacity + position) * dim;
                for i in 0..dim {
                    if head < query_heads {
                        let at = ((b * query_heads + head) * tokens + t) * dim + i;
                        near(query[at], turned(from, position, i), "a query");
                    } else if position >= capacity {
                        continue;
                    } else if head < query_heads + key_heads {
                        let at = cache(head - query_heads) + i;
                        near(keys[at], turned(from, position, i), "a key");
                        old_keys[at] = keys[at];
                    } else {
                        old_values[cache(head - query_heads - key_heads) + i] = qkv[from + i];
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
                dtype,
            };
            for (query_heads, key_heads, dim) in [(8, 2, 128), (3, 3, 64), (4, 1, 6), (1, 1, 2)] {
                let problem = shape(query_heads, key_heads, dim);
                check(runtime, &problem, &[0, 19, 7]);
                check(runtime, &Rotate { tokens: 5, ..problem }, &[0, 15, 7]);
            }
            // The last tokens of the second have no place in the cache, and the third none at all.
            check(runtime, &Rotate { tokens: 4, ..shape(4, 2, 32) }, &[3, 18, -1]);
        }
    }
}

#[test]
fn rotations_of_heads_and_caches_that_cannot_be_are_refused() {
    for Runtime { client, .. } in runtimes() {
        let [x, y, z] = [0; 3].map(|_| client.empty(64));
        let buffers = RotateBuffers {
            qkv: client.empty(128),
            cos: x.clone(),
            sin: x.clone(),
            start: x.clone(),
            query: client.empty(64),
            keys: y,
            values: z,
        };
        let (batch, tokens, query_heads, key_heads) = (1, 1, 2, 1);
        let (dim, capacity, dtype) = (8, 2, Dtype::F32);
        let problem = Rotate { batch, tokens, query_heads, key_heads, dim, capacity, dtype };
        let ask = |problem| rotate(client, &problem, &buffers);
        assert_eq!(ask(problem), Ok(()));
        assert_eq!(ask(Rotate { tokens: 0, ..problem }), Ok(()));
        let what = "the cache of keys (bytes)";
        assert_eq!(
            ask(Rotate { capacity: 3, ..problem }),
            Err(Error::WrongLength { what, found: 64, expected: 96 })
        );
        for wrong in [
            Rotate { dim: 7, ..problem },
            Rotate { dim: 0, ..problem },
            Rotate { key_heads: 0, ..problem },
            Rotate { capacity: 0, ..problem },
            Rotate { tokens: usize::MAX, ..problem },
            Rotate { capacity: 1 << 40, ..problem },
        ] {
            assert!(matches!(ask(wrong), Err(Error::OutOfRange { .. })), "{wrong:?}");
        }
    }
}
