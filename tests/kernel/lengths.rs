//! Attention of one token, and the next token, of sequences of any length: every edge of what planes, cubes and clusters
//! of them take, and every number of heads that share.

use crate::attend::{Input, check, run, run_in, shape};
use crate::blocks::Blocks;
use crate::device::runtimes;
use crate::next;
use flute_cube::{Attend, Dtype, Limits};

/// Positions that a sequence has: one, those around a tile, a chunk and a round of a cluster, and many.
const LENGTHS: [usize; 12] = [1, 15, 16, 17, 63, 64, 65, 512, 513, 1000, 4096, 4133];

/// Query heads, heads of keys and features: groups from 1 to 16, where the device has room for them.
fn heads(limits: &Limits, dtype: Dtype) -> impl Iterator<Item = Attend> {
    let all = [
        (2, 2, 64),
        (4, 2, 96),
        (4, 1, 128),
        (7, 1, 64),
        (8, 1, 96),
        (9, 1, 48),
        (16, 1, 64),
        (16, 1, 128),
        (2, 1, 256),
        (16, 1, 256),
    ];
    let problems = all.map(|(query_heads, key_heads, dim)| {
        let problem = Attend { query_heads, key_heads, dim, ..shape(dtype) };
        Attend { batch: 2, capacity: 700, ..problem }
    });
    problems.into_iter().filter(|problem| problem.validate_next(limits).is_ok())
}

fn position(length: usize) -> i32 {
    length as i32 - 1
}

#[test]
fn attention_is_that_of_f64_for_every_length() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for length in LENGTHS {
                let problem = Attend { query_heads: 2, key_heads: 1, dim: 64, ..shape(dtype) };
                let problem = Attend { batch: 1, capacity: length + 70, ..problem };
                check(runtime, &problem, &[position(length)]);
                next::check(runtime, &problem, &[position(length)]);
            }
        }
    }
}

#[test]
fn attention_is_that_of_f64_for_every_number_of_heads_that_share() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for problem in heads(&runtime.limits, dtype) {
                check(runtime, &problem, &[699, 77]);
                next::check(runtime, &problem, &[640, 1]);
            }
        }
    }
}

#[test]
fn windows_and_caps_hold_for_every_number_of_heads_that_share() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for problem in heads(&runtime.limits, dtype) {
                let windowed = Attend { window: Some(530), ..problem };
                check(runtime, &windowed, &[699, 600]);
                next::check(runtime, &windowed, &[699, 530]);
                let capped = Attend { cap: Some(3.0), scale: 1.0, window: Some(7), ..problem };
                check(runtime, &capped, &[650, 3]);
                next::check(runtime, &capped, &[64, 15]);
            }
        }
    }
}

#[test]
fn a_batch_of_all_lengths_gives_each_the_bits_that_it_gets_alone() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for window in [None, Some(300)] {
                let problem = Attend { query_heads: 4, key_heads: 1, dim: 64, ..shape(dtype) };
                let (batch, capacity) = (LENGTHS.len(), 4200);
                let problem = Attend { batch, capacity, window, ..problem };
                let start = LENGTHS.map(position);
                let input = Input::new(&problem, &start);
                let all = run(runtime, &problem, &input, &start);
                let (query, cache) = (4 * 64, capacity * 64);
                for (b, length) in LENGTHS.into_iter().enumerate() {
                    // In a cache that it fills.
                    let alone = Attend { batch: 1, capacity: length, ..problem };
                    let own = |of: &[f32]| of[b * cache..][..length * 64].to_vec();
                    let input = Input {
                        query: input.query[b * query..][..query].to_vec(),
                        keys: own(&input.keys),
                        values: own(&input.values),
                    };
                    let blocks = Blocks::counting(1, length);
                    let found = run_in(runtime, &alone, &input, &[position(length)], &blocks);
                    let expected = &all[b * query..][..query];
                    assert!(found == expected, "{}: {dtype:?}, {length}", runtime.name);
                }
            }
        }
    }
}

#[test]
fn a_batch_that_fills_the_device_gives_a_sequence_the_bits_that_it_gets_alone() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            // Planes ask for less ahead the more cubes there are, and the less the more features heads have; and of the
            // cubes that would share a sequence there are fewer the more sequences there are.
            for (batch, key_heads, dim, capacity) in [
                (24, 1, 64, 1100),
                (24, 1, 256, 1100),
                (30, 4, 64, 600),
                (60, 4, 64, 600),
                (140, 4, 64, 200),
            ] {
                let problem = Attend { query_heads: 2 * key_heads, key_heads, dim, ..shape(dtype) };
                let problem = Attend { batch, capacity, ..problem };
                let mut start = vec![-1; batch];
                (start[0], start[1], start[23]) = (capacity as i32 - 10, capacity as i32 / 2, 64);
                let input = Input::new(&problem, &start);
                let all = run(runtime, &problem, &input, &start);
                for b in [0, 1, 23] {
                    let own = |of: &[f32], len: usize| of[b * len..][..len].to_vec();
                    let (query, cache) = (2 * key_heads * dim, key_heads * capacity * dim);
                    let input = Input {
                        query: own(&input.query, query),
                        keys: own(&input.keys, cache),
                        values: own(&input.values, cache),
                    };
                    let alone = Attend { batch: 1, ..problem };
                    let found = run(runtime, &alone, &input, &start[b..=b]);
                    assert!(found == own(&all, query), "{}: {problem:?}, {b}", runtime.name);
                }
            }
        }
    }
}
