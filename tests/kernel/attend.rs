//! Attention over a cache, against f64.

use crate::blocks::Blocks;
use crate::device::{Guarded, Runtime, runtimes};
use flute_cube::{Attend, AttendBuffers, Dtype, Error, Limits, attend};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::ops::Range;

fn values(len: usize, dtype: Dtype, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| dtype.round(rng.random_range(-2.0..2.0))).collect()
}

/// Half an ulp of one.
fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::BF16 => 2f64.powi(-8),
    }
}

/// Positions that token `token` of a sequence sees.
fn seen(problem: &Attend, start: i32, token: usize) -> Range<usize> {
    let end = if start < 0 { 0 } else { (start as usize + token + 1).min(problem.capacity) };
    end.saturating_sub(problem.window.unwrap_or(end))..end
}

/// Positions that one of its tokens sees.
pub(crate) fn looked_at(problem: &Attend, start: i32) -> Range<usize> {
    seen(problem, start, 0).start..seen(problem, start, problem.tokens - 1).end
}

/// Queries of a batch, and keys and values `[batch, key_heads, capacity, dim]`; where a sequence does not look, those are
/// NaN.
#[derive(Clone)]
pub(crate) struct Input {
    pub(crate) query: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl Input {
    pub(crate) fn new(problem: &Attend, start: &[i32]) -> Self {
        let Attend { batch, tokens, query_heads, key_heads, dim, capacity, dtype, .. } = *problem;
        let seed = (dim * query_heads + capacity) as u64;
        let mut caches = [seed + 1, seed + 2]
            .map(|seed| values(batch * key_heads * capacity * dim, dtype, seed));
        for cache in &mut caches {
            for (row, row_values) in cache.chunks_mut(dim).enumerate() {
                let (b, position) = (row / capacity / key_heads, row % capacity);
                if !looked_at(problem, start[b]).contains(&position) {
                    row_values.fill(f32::NAN);
                }
            }
        }
        let [keys, values_] = caches;
        let query = values(batch * query_heads * tokens * dim, dtype, seed);
        Self { query, keys, values: values_ }
    }
}

/// Runs the kernels over a cache whose blocks lie in no order.
pub(crate) fn run(runtime: &Runtime, problem: &Attend, input: &Input, start: &[i32]) -> Vec<f32> {
    run_in(runtime, problem, input, start, &Blocks::scattered(problem.batch, problem.capacity))
}

/// Runs the kernels into a buffer of NaN whose surroundings are watched.
pub(crate) fn run_in(
    runtime: &Runtime,
    problem: &Attend,
    input: &Input,
    start: &[i32],
    blocks: &Blocks,
) -> Vec<f32> {
    let (client, dtype) = (&runtime.client, problem.dtype);
    let problem = &Attend { blocks: blocks.count, ..*problem };
    let lay = |rows: &[f32]| blocks.lay(rows, [problem.key_heads, problem.dim]);
    let upload = |values: &[f32]| Guarded::new(client, &dtype.encode(values)).inner();
    let y = Guarded::poisoned(client, input.query.len() * dtype.size());
    let buffers = AttendBuffers {
        query: upload(&input.query),
        keys: upload(&lay(&input.keys)),
        values: upload(&lay(&input.values)),
        start: Guarded::new(client, bytemuck::cast_slice(start)).inner(),
        table: Guarded::new(client, bytemuck::cast_slice(&blocks.table)).inner(),
        y: y.inner(),
    };
    attend(client, problem, &buffers).expect("launched");
    let outer = client.read_one(y.outer()).expect("read");
    dtype.decode(y.content(&outer).expect("guards are whole"))
}

pub(crate) fn check(runtime: &Runtime, problem: &Attend, start: &[i32]) {
    let Attend { tokens, query_heads, key_heads, dim, capacity, scale, cap, dtype, .. } = *problem;
    let input = Input::new(problem, start);
    let found = run(runtime, problem, &input, start);
    for (at, found) in found.chunks(dim).enumerate() {
        let (b, token) = (at / query_heads / tokens, at / query_heads % tokens);
        let (head, group) = (at % query_heads, query_heads / key_heads);
        let cache = (b * key_heads + head / group) * capacity;
        let row = |of: &[f32], position: usize| -> Vec<f64> {
            of[(cache + position) * dim..][..dim].iter().map(|v| f64::from(*v)).collect()
        };
        let row_of_query = ((b * query_heads + head) * tokens + token) * dim;
        let query = input.query[row_of_query..][..dim].iter().map(|v| f64::from(*v));
        let (mut scores, mut off) = (vec![], 0f64);
        let positions = seen(problem, start[b], token);
        for position in positions.clone() {
            let key = row(&input.keys, position);
            let products = || query.clone().zip(&key).map(|(q, k)| q * k * scale);
            let mut score: f64 = products().sum();
            // A score is a sum of dim products of rounded factors, in any order.
            let size = products().map(f64::abs).sum::<f64>();
            let mut error = (dim as f64 + 3.0) * unit(Dtype::F32) * size;
            if let Some(cap) = cap {
                score = cap * (score / cap).tanh();
                // A shader's tanh is good to 1e-5, absolutely.
                error += 1e-5 * cap;
            }
            scores.push(score);
            off = off.max(error);
        }
        let top = scores.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
        let low = scores.iter().fold(f64::INFINITY, |a, b| a.min(*b));
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        // An exponential errs by 3 + 2|x| ulp in a shader and is taken up to three times; sums have one addition a
        // position and one a chunk.
        let exps = 3.0 * (3.0 + 2.0 * (top - low).max(0.0)) * 2.0;
        let mut weight_error =
            2.0 * off + (exps + 2.0 * (positions.len() as f64 + 8.0)) * unit(Dtype::F32);
        // The matrix unit takes weights as halves, the greatest of them 1: of small ones a fixed amount is lost. No value
        // is greater than 2.
        let mut lost = 6e-8;
        let multiplied_there = runtime.limits.mma && (tokens > 1 || runtime.limits.bulk);
        if multiplied_there && dtype != Dtype::F32 {
            weight_error += unit(dtype);
            lost += 2.0 * 2f64.powi(-25) * positions.len() as f64 / total;
        }
        for (i, found) in found.iter().enumerate() {
            let (mut exact, mut size) = (0.0, 0.0);
            for (weight, position) in weights.iter().zip(positions.clone()) {
                let value = weight / total * f64::from(input.values[(cache + position) * dim + i]);
                exact += value;
                size += value.abs();
            }
            let bound = 2.0 * weight_error * size + 1.01 * unit(dtype) * exact.abs() + lost;
            let error = (f64::from(*found) - exact).abs();
            assert!(
                error <= bound,
                "{}: {problem:?} at {start:?}: y[{b}, {token}, {head}, {i}] = {found:e}, expected {exact:e} ± {bound:.1e}",
                runtime.name
            );
        }
    }
}

pub(crate) fn shape(dtype: Dtype) -> Attend {
    Attend {
        batch: 3,
        tokens: 1,
        query_heads: 4,
        key_heads: 2,
        dim: 32,
        capacity: 200,
        blocks: 4,
        scale: 0.18,
        cap: None,
        window: None,
        dtype,
    }
}

/// Heads of queries and of keys, and their features.
pub(crate) const HEADS: [(usize, usize, usize); 7] =
    [(4, 2, 32), (8, 1, 128), (3, 3, 64), (16, 1, 16), (2, 1, 80), (2, 2, 256), (5, 1, 4)];

#[test]
fn attention_is_that_of_f64_for_every_kind_of_head_and_wherever_sequences_stand() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for (query_heads, key_heads, dim) in HEADS {
                let problem = Attend { query_heads, key_heads, dim, ..shape(dtype) };
                // The first token, the edges of a chunk, and the last place of the cache.
                check(runtime, &problem, &[0, 63, 64]);
                check(runtime, &problem, &[199, 127, 1]);
            }
            // Many chunks: more than there are teams to fold them.
            let long = Attend { batch: 1, capacity: 2500, dim: 128, ..shape(dtype) };
            check(runtime, &long, &[2345]);
        }
    }
}

#[test]
fn windows_and_caps_change_scores_and_sight_as_they_say() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for window in [1, 2, 64, 65, 100, 1000] {
                let problem = Attend { window: Some(window), ..shape(dtype) };
                check(runtime, &problem, &[0, 63, 199]);
                check(runtime, &problem, &[64, 130, 127]);
            }
            let problem = Attend { cap: Some(3.0), scale: 1.0, ..shape(dtype) };
            check(runtime, &problem, &[5, 199, 100]);
            check(runtime, &Attend { window: Some(70), ..problem }, &[5, 199, 100]);
        }
    }
}

#[test]
fn a_sequence_gets_the_same_bits_alone_in_a_batch_and_in_a_larger_cache() {
    for runtime in runtimes() {
        for window in [None, Some(90)] {
            let dtype = runtime.limits.dtypes[0];
            let (start, together) = ([150, 7, 199], Attend { window, ..shape(dtype) });
            let input = Input::new(&together, &start);
            let all = run(runtime, &together, &input, &start);
            let (query, cache) = (together.query_heads * together.dim, 2 * 200 * together.dim);
            for (b, start) in start.into_iter().enumerate() {
                // Alone, in a cache of 333 positions.
                let alone = Attend { batch: 1, capacity: 333, ..together };
                let widen = |of: &[f32]| -> Vec<f32> {
                    let heads = of[b * cache..][..cache].chunks(200 * together.dim);
                    let spare = vec![f32::NAN; 133 * together.dim];
                    heads.flat_map(|head| [head, &spare].concat()).collect()
                };
                let input = Input {
                    query: input.query[b * query..][..query].to_vec(),
                    keys: widen(&input.keys),
                    values: widen(&input.values),
                };
                let found = run(runtime, &alone, &input, &[start]);
                assert!(found == all[b * query..][..query], "{}: {window:?}, {b}", runtime.name);
            }
        }
    }
}

#[test]
fn a_sequence_that_sees_nothing_gets_zeros() {
    for runtime in runtimes() {
        for tokens in [1, 20] {
            let problem = Attend { batch: 2, tokens, ..shape(runtime.limits.dtypes[0]) };
            let input = Input::new(&problem, &[-1, 3]);
            let found = run(runtime, &problem, &input, &[-1, 3]);
            let (blind, seeing) = found.split_at(128 * tokens);
            assert!(blind.iter().all(|y| *y == 0.0) && seeing.iter().any(|y| *y != 0.0));
        }
    }
}

#[test]
fn attention_that_cannot_be_is_refused_before_it_is_launched() {
    for Runtime { client, limits, .. } in runtimes() {
        let problem = Attend { batch: 1, ..shape(Dtype::F32) };
        let buffers = AttendBuffers {
            query: client.empty(512),
            keys: client.empty(65536),
            values: client.empty(65536),
            start: client.empty(4),
            table: client.empty(16),
            y: client.empty(512),
        };
        let ask = |problem| attend(client, &problem, &buffers);
        assert_eq!(ask(Attend { batch: 0, ..problem }), Ok(()));
        assert_eq!(ask(Attend { tokens: 0, ..problem }), Ok(()));
        let what = "the buffer of queries (bytes)";
        assert_eq!(
            ask(Attend { tokens: 3, ..problem }),
            Err(Error::WrongLength { what, found: 512, expected: 1536 })
        );
        let what = "the cache of keys (bytes)";
        assert_eq!(
            ask(Attend { blocks: 5, ..problem }),
            Err(Error::WrongLength { what, found: 65536, expected: 81920 })
        );
        let what = "the table of blocks (bytes)";
        assert_eq!(
            ask(Attend { capacity: 257, ..problem }),
            Err(Error::WrongLength { what, found: 16, expected: 20 })
        );
        for wrong in [
            Attend { key_heads: 3, ..problem },
            Attend { key_heads: 0, ..problem },
            Attend { dim: 0, ..problem },
            Attend { capacity: 0, ..problem },
            Attend { blocks: 0, ..problem },
            Attend { blocks: 1 << 40, ..problem },
            Attend { window: Some(0), ..problem },
            Attend { capacity: 1 << 40, ..problem },
            Attend { tokens: 1 << 40, ..problem },
        ] {
            assert!(matches!(ask(wrong), Err(Error::OutOfRange { .. })), "{wrong:?}");
        }
        let device = limits.name.clone();
        let lacks = |what, needed, offered| {
            Err(Error::UnsupportedShape { what, needed, offered, device: device.clone() })
        };
        let heads = Attend { query_heads: 34, ..problem };
        assert_eq!(ask(heads), lacks("query heads a head of keys", 17, 16));
        assert_eq!(ask(Attend { dim: 512, ..problem }), lacks("features of a head", 512, 256));
        let small = Limits { cube_units: 128, ..limits.clone() };
        assert_eq!(problem.validate(&small), lacks("units a cube", 256, 128));
        let prompt = Attend { tokens: 2, ..problem };
        assert_eq!(prompt.validate(&small), lacks("units a cube", 256, 128));
        assert!(matches!(ask(Attend { dim: 30, ..problem }), Err(Error::UnsupportedShape { .. })));
    }
}
