//! Attention of several tokens over a cache, against f64 and against itself.

use crate::attend::{Input, check, looked_at, run, shape};
use crate::device::runtimes;
use flute_cube::Attend;

#[test]
fn prompts_are_attended_as_f64_says_for_every_kind_of_head_and_wherever_they_begin() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for (query_heads, key_heads, dim) in [
                (4, 2, 32),
                (2, 1, 128),
                (3, 3, 64),
                (16, 1, 16),
                (2, 1, 80),
                (2, 1, 96),
                (1, 1, 256),
                (2, 1, 20),
                (5, 1, 4),
            ] {
                let heads = Attend { query_heads, key_heads, dim, ..shape(dtype) };
                // The first tokens, an edge of a tile, and more tokens than the cache has places.
                check(runtime, &Attend { tokens: 21, ..heads }, &[0, 50, 190]);
            }
            // Several blocks of tokens, whole and not.
            for tokens in [2, 96, 130] {
                let problem = Attend { batch: 1, tokens, query_heads: 2, ..shape(dtype) };
                check(runtime, &problem, &[0]);
                check(runtime, &problem, &[63]);
            }
        }
    }
}

#[test]
fn windows_and_caps_hold_for_prompts() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            let prompt = Attend { tokens: 37, query_heads: 2, ..shape(dtype) };
            for window in [1, 2, 64, 65, 100, 1000] {
                check(runtime, &Attend { window: Some(window), ..prompt }, &[0, 63, 150]);
            }
            let wide = Attend { dim: 256, key_heads: 1, ..prompt };
            check(runtime, &Attend { window: Some(33), ..wide }, &[0, 63, 150]);
            for problem in [prompt, wide] {
                let problem = Attend { cap: Some(3.0), scale: 1.0, ..problem };
                check(runtime, &problem, &[5, 163, 100]);
                check(runtime, &Attend { window: Some(70), ..problem }, &[5, 163, 100]);
            }
        }
    }
}

#[test]
fn tokens_of_a_prompt_get_the_same_bits_however_it_is_cut_and_in_any_batch_and_cache() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for window in [None, Some(45)] {
                let (heads, dim) = (4, 32);
                let all = Attend { tokens: 120, window, ..shape(dtype) };
                let start = [7, 70, 0];
                let input = Input::new(&all, &start);
                let together = run(runtime, &all, &input, &start);
                for (b, start) in start.into_iter().enumerate() {
                    let mut alone = vec![];
                    for part in [0..50, 50..52, 52..120] {
                        let begin = start + part.start as i32;
                        // In a cache of 240 positions, those of the parts to come not yet written.
                        let (batch, capacity, tokens) = (1, 240, part.len());
                        let problem = Attend { batch, capacity, tokens, ..all };
                        let seen = looked_at(&problem, begin);
                        let widen = |of: &[f32]| -> Vec<f32> {
                            let row = |at: usize| {
                                let (head, position) = (2 * b + at / 240, at % 240);
                                match seen.contains(&position) {
                                    true => of[(head * 200 + position) * dim..][..dim].to_vec(),
                                    false => vec![f32::NAN; dim],
                                }
                            };
                            (0..2 * 240).flat_map(row).collect()
                        };
                        let queries = (0..heads).flat_map(|head| {
                            let first = ((b * heads + head) * 120 + part.start) * dim;
                            &input.query[first..][..part.len() * dim]
                        });
                        let input = Input {
                            query: queries.copied().collect(),
                            keys: widen(&input.keys),
                            values: widen(&input.values),
                        };
                        alone.extend(run(runtime, &problem, &input, &[begin]));
                    }
                    let expected = &together[b * 120 * heads * dim..][..120 * heads * dim];
                    assert!(alone == expected, "{}: {dtype}, {window:?}, {b}", runtime.name);
                }
            }
        }
    }
}

#[test]
fn a_prompt_gets_the_same_bits_in_a_batch_that_fills_the_device() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            // Enough for the larger cubes of the tensor-core kernel, where there is one.
            let batch = if runtime.limits.mma { runtime.limits.processors.div_ceil(16) } else { 2 };
            let all = Attend { batch, tokens: 130, query_heads: 16, key_heads: 1, ..shape(dtype) };
            let start: Vec<i32> = (0..batch as i32).map(|b| 13 * b % 70).collect();
            let input = Input::new(&all, &start);
            let together = run(runtime, &all, &input, &start);
            let (queries, cache) = (130 * 16 * all.dim, 200 * all.dim);
            for b in [0, batch - 1] {
                let alone = Input {
                    query: input.query[b * queries..][..queries].to_vec(),
                    keys: input.keys[b * cache..][..cache].to_vec(),
                    values: input.values[b * cache..][..cache].to_vec(),
                };
                let found = run(runtime, &Attend { batch: 1, ..all }, &alone, &[start[b]]);
                let expected = &together[b * queries..][..queries];
                assert!(found == expected, "{}: {dtype}, {b}", runtime.name);
            }
        }
    }
}
