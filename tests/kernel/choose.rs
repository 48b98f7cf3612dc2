//! The likeliest of logits on the device against the host, and what is written for the next step.

use crate::device::{Guarded, runtimes};
use flute_cube::{Choose, ChooseBuffers, Dtype, Error, choose};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Vocabularies: one token, a ragged one, an even one of several cubes, and those of LLaMA 3 and Qwen 2.
const VOCABULARIES: [usize; 5] = [1, 37, 3000, 128_256, 151_665];

/// Logits of rows that end in ties, in the largest of all, in the lowest, or in nothing but zeros of both signs.
fn rows(dtype: Dtype, vocab: usize) -> Vec<Vec<f32>> {
    let mut rng = StdRng::seed_from_u64(vocab as u64);
    let mut drawn = || (0..vocab).map(|_| dtype.round(rng.random_range(-9.0f32..9.0))).collect();
    let mut rows: Vec<Vec<f32>> = (0..4).map(|_| drawn()).collect();
    // One maximum three times; the first of them is meant.
    for at in [vocab / 3, vocab / 2, vocab - 1] {
        rows[1][at] = 11.0;
    }
    rows[2].iter_mut().for_each(|logit| *logit = dtype.round(-logit.abs() - 1.0));
    rows[3] = (0..vocab).map(|at| if at % 2 == 0 { -0.0 } else { 0.0 }).collect();
    rows
}

fn expected(row: &[f32]) -> usize {
    (0..row.len())
        .rev()
        .max_by(|a, b| row[*a].partial_cmp(&row[*b]).expect("numbers"))
        .expect("one")
}

#[test]
fn the_likeliest_is_that_of_the_host_and_of_equals_the_first() {
    for runtime in runtimes() {
        let client = &runtime.client;
        for &dtype in &runtime.limits.dtypes {
            for vocab in VOCABULARIES {
                let rows = rows(dtype, vocab);
                let logits = Guarded::new(client, &dtype.encode(&rows.concat()));
                let tokens = Guarded::poisoned(client, 16);
                let position = Guarded::new(client, bytemuck::cast_slice(&[0i32, 7, 40, -3]));
                let chosen = Guarded::poisoned(client, 32);
                let buffers = ChooseBuffers {
                    logits: logits.inner(),
                    tokens: tokens.inner(),
                    position: position.inner(),
                    chosen: chosen.inner(),
                };
                let problem = Choose { rows: 4, vocab, advance: 5, dtype };
                choose(client, &problem, &buffers).expect("launched");
                choose(client, &problem, &buffers).expect("launched");
                let read = |buffer: &Guarded| {
                    let outer = client.read_one(buffer.outer()).expect("read");
                    buffer.content(&outer).expect("guards are whole").to_vec()
                };
                let ids: Vec<i32> = rows.iter().map(|row| expected(row) as i32).collect();
                let what = format!("{}: {problem:?}", runtime.name);
                let found: Vec<i32> = bytemuck::pod_collect_to_vec(&read(&tokens));
                assert_eq!(found, ids, "{what}");
                let moved: Vec<i32> = bytemuck::pod_collect_to_vec(&read(&position));
                assert_eq!(moved, [10, 17, 50, 7], "{what}");
                let pairs: Vec<f32> = bytemuck::pod_collect_to_vec(&read(&chosen));
                for ((row, id), pair) in rows.iter().zip(ids).zip(pairs.chunks(2)) {
                    assert_eq!(pair, [row[id as usize], id as f32], "{what}");
                }
            }
        }
    }
}

#[test]
fn infinity_is_chosen_as_it_is_and_a_nan_before_everything() {
    for runtime in runtimes() {
        let (client, dtype) = (&runtime.client, Dtype::F32);
        let mut rows = vec![vec![1.0f32; 1000]; 4];
        rows[0][700] = f32::INFINITY;
        rows[1].fill(f32::NEG_INFINITY);
        rows[2][300] = f32::INFINITY;
        rows[2][900] = f32::NAN;
        rows[3][999] = -f32::NAN;
        let buffers = ChooseBuffers {
            logits: client.create_from_slice(&dtype.encode(&rows.concat())),
            tokens: client.empty(16),
            position: client.create_from_slice(&[0; 16]),
            chosen: client.empty(32),
        };
        choose(client, &Choose { rows: 4, vocab: 1000, advance: 1, dtype }, &buffers)
            .expect("launched");
        let tokens = client.read_one(buffers.tokens).expect("read");
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, i32>(&tokens), [700, 0, 900, 999]);
        let chosen = client.read_one(buffers.chosen).expect("read");
        let chosen: Vec<f32> = bytemuck::pod_collect_to_vec(&chosen);
        assert_eq!((chosen[0], chosen[2]), (f32::INFINITY, f32::NEG_INFINITY));
        assert!(chosen[4].is_nan() && chosen[6].is_nan(), "{chosen:?}");
    }
}

#[test]
fn choices_that_cannot_be_are_refused_before_they_are_launched() {
    for runtime in runtimes() {
        let client = &runtime.client;
        let buffers = ChooseBuffers {
            logits: client.empty(80),
            tokens: client.empty(8),
            position: client.empty(8),
            chosen: client.empty(16),
        };
        let ask = |rows, vocab, advance| {
            choose(client, &Choose { rows, vocab, advance, dtype: Dtype::F32 }, &buffers)
        };
        assert_eq!(ask(2, 10, 1), Ok(()));
        assert_eq!(ask(0, 10, 1), Ok(()));
        let what = "the buffer of logits (bytes)";
        assert_eq!(ask(2, 11, 1), Err(Error::WrongLength { what, found: 80, expected: 88 }));
        let what = "the buffer of tokens (bytes)";
        assert_eq!(ask(3, 6, 1), Err(Error::WrongLength { what, found: 8, expected: 12 }));
        let (what, max) = ("the number of logits", 1 << 24);
        assert_eq!(ask(1, 0, 1), Err(Error::OutOfRange { what, found: 0, min: 1, max }));
        let found = (1 << 24) + 1;
        assert_eq!(ask(1, found, 1), Err(Error::OutOfRange { what, found, min: 1, max }));
        assert!(matches!(ask(1 << 20, 1, 1), Err(Error::OutOfRange { .. })));
        assert!(matches!(ask(1, 10, 1 << 31), Err(Error::OutOfRange { .. })));
    }
}
