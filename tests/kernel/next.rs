//! The next token in one go, against its rotation and its attention one after the other.

use crate::attend::{HEADS, shape};
use crate::blocks::Blocks;
use crate::device::{Guarded, Runtime, runtimes};
use flute_cube::{
    Attend, AttendBuffers, CACHE_BLOCK, Cluster, Dtype, Error, Limits, NextBuffers, Rotate,
    RotateBuffers, attend, attend_next, attend_next_with, rotate,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

fn values(len: usize, dtype: Dtype, seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| dtype.round(rng.random_range(-2.0..2.0))).collect()
}

/// What a step reads and writes, as bytes: the cache's keys and values, and the result.
#[derive(Clone, PartialEq)]
pub(crate) struct State {
    keys: Vec<u8>,
    values: Vec<u8>,
    pub(crate) y: Vec<u8>,
}

/// Who takes a step.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// A rotation, and then attention.
    Apart,
    Joined,
    /// Such a cluster for each head of keys.
    Spread(Cluster),
}

/// A batch whose sequences have what lies before `start`; everything else is NaN.
pub(crate) fn before(problem: &Attend, start: &[i32], blocks: &Blocks) -> State {
    let Attend { batch, key_heads, dim, capacity, dtype, .. } = *problem;
    let cache = |seed| {
        let mut rows = values(batch * key_heads * capacity * dim, dtype, seed);
        for (row, values) in rows.chunks_mut(dim).enumerate() {
            if (row % capacity) as i64 >= i64::from(start[row / capacity / key_heads]) {
                values.fill(f32::NAN);
            }
        }
        dtype.encode(&blocks.lay(&rows, [key_heads, dim]))
    };
    State { keys: cache(1), values: cache(2), y: vec![] }
}

/// One token more for each sequence.
pub(crate) fn step(
    runtime: &Runtime,
    problem: &Attend,
    (state, start, blocks): (&State, &[i32], &Blocks),
    way: Way,
) -> State {
    step_of(runtime, problem, (state, start, blocks), way, 0)
}

/// The same with rotations that lie behind `shift` others.
fn step_of(
    runtime: &Runtime,
    problem: &Attend,
    (state, start, blocks): (&State, &[i32], &Blocks),
    way: Way,
    shift: usize,
) -> State {
    let client = &runtime.client;
    let problem = &Attend { blocks: blocks.count, ..*problem };
    let Attend { batch, tokens, query_heads, key_heads, dim, capacity, dtype, .. } = *problem;
    let new = |bytes: &[u8]| Guarded::new(client, bytes);
    let heads = query_heads + 2 * key_heads;
    let token = values(batch * heads * dim, dtype, start[0] as u32 as u64);
    let rotations = |of: fn(f32) -> f32| -> Vec<f32> {
        (0..capacity * dim / 2).map(|i| of(i as f32 * 0.37)).collect()
    };
    // Not a multiple of a vector before them, where the case says so.
    let [cos, sin] = [f32::cos, f32::sin].map(|of| {
        let table = [&vec![f32::NAN; shift], rotations(of).as_slice()].concat();
        let whole = new(bytemuck::cast_slice(&table)).inner();
        whole.offset_start(4 * shift as u64)
    });
    let (keys, stored) = (new(&state.keys), new(&state.values));
    let bytes = batch * query_heads * dim * dtype.size();
    let (query, y) = (Guarded::poisoned(client, bytes), Guarded::poisoned(client, bytes));
    let qkv = new(&dtype.encode(&token)).inner();
    let start = new(bytemuck::cast_slice(start)).inner();
    let table = new(bytemuck::cast_slice(&blocks.table)).inner();
    let [keys_in, values_in] = [keys.inner(), stored.inner()];
    if let Way::Apart = way {
        let blocks = blocks.count;
        let turn = Rotate { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype };
        let (keys, values) = (keys_in, values_in);
        let buffers = RotateBuffers {
            qkv,
            cos,
            sin,
            start: start.clone(),
            table: table.clone(),
            query: query.inner(),
            keys: keys.clone(),
            values: values.clone(),
        };
        rotate(client, &turn, &buffers).expect("launched");
        let (query, y) = (query.inner(), y.inner());
        let buffers = AttendBuffers { query, keys, values, start, table, y };
        attend(client, problem, &buffers).expect("launched");
    } else {
        let (keys, values, y) = (keys_in, values_in, y.inner());
        let buffers = NextBuffers { qkv, cos, sin, start, table, keys, values, y };
        match way {
            Way::Spread(cluster) => attend_next_with(client, problem, &buffers, cluster),
            _ => attend_next(client, problem, &buffers),
        }
        .expect("launched");
    }
    let read = |guarded: &Guarded| {
        let outer = client.read_one(guarded.outer()).expect("read");
        guarded.content(&outer).expect("guards are whole").to_vec()
    };
    State { keys: read(&keys), values: read(&stored), y: read(&y) }
}

fn check_in(runtime: &Runtime, problem: &Attend, start: &[i32], blocks: &Blocks) {
    let before = before(problem, start, blocks);
    let run = |way| step(runtime, problem, (&before, start, blocks), way);
    let (found, expected) = (run(Way::Joined), run(Way::Apart));
    let what = format!("{}: {problem:?} at {start:?}", runtime.name);
    assert!(found.keys == expected.keys, "{what}: keys");
    assert!(found.values == expected.values, "{what}: values");
    assert!(found.y == expected.y, "{what}: y");
    let decoded = problem.dtype.decode(&found.y);
    assert!(decoded.iter().all(|y| y.is_finite()), "{what}: {decoded:?}");
}

pub(crate) fn check(runtime: &Runtime, problem: &Attend, start: &[i32]) {
    check_in(runtime, problem, start, &Blocks::scattered(problem.batch, problem.capacity));
}

#[test]
fn the_next_token_leaves_the_bits_that_its_rotation_and_its_attention_leave_one_by_one() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for (query_heads, key_heads, dim) in HEADS {
                let problem = Attend { query_heads, key_heads, dim, ..shape(dtype) };
                // The first token, the edges of a chunk, and the last place of the cache.
                check(runtime, &problem, &[0, 63, 64]);
                check(runtime, &problem, &[199, 127, 1]);
                check(runtime, &problem, &[128, 62, 65]);
            }
            let long = Attend { batch: 1, capacity: 2500, dim: 128, ..shape(dtype) };
            check(runtime, &long, &[2345]);
        }
    }
}

#[test]
fn the_next_token_of_a_window_or_a_cap_leaves_the_same_bits_too() {
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
fn a_next_token_without_a_place_is_not_stored_and_its_sequence_sees_what_it_has() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for window in [None, Some(90)] {
                let problem = Attend { window, ..shape(dtype) };
                // Before the first position, and from the capacity on: by one, and by more than a block.
                check(runtime, &problem, &[-1, 200, 500]);
                check(runtime, &problem, &[i32::MIN, 255, 256]);
                let mut blocks = Blocks::scattered(3, problem.capacity);
                let (entries, count) = (blocks.entries, blocks.count as i32);
                // The first goes on into a block that it lacks, the second has none, the third lacks one before.
                blocks.table[1] = count;
                blocks.table[entries..2 * entries].fill(-1);
                blocks.table[2 * entries] = i32::MIN;
                check_in(runtime, &problem, &[64, 70, 140], &blocks);
                check_in(runtime, &problem, &[100, 0, 63], &blocks);
            }
        }
    }
}

#[test]
fn tokens_that_follow_each_other_find_what_the_ones_before_them_stored() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            let problem = shape(dtype);
            let blocks = Blocks::scattered(problem.batch, problem.capacity);
            let mut start = [59, 0, 125];
            let first = before(&problem, &start, &blocks);
            let (mut joined, mut apart) = (first.clone(), first);
            for _ in 0..8 {
                let run =
                    |state: &State, way| step(runtime, &problem, (state, &start, &blocks), way);
                (joined, apart) = (run(&joined, Way::Joined), run(&apart, Way::Apart));
                assert!(joined == apart, "{}: {dtype:?} at {start:?}", runtime.name);
                start = start.map(|position| position + 1);
            }
        }
    }
}

#[test]
fn rotations_may_begin_anywhere() {
    // Elsewhere buffers begin at multiples of more.
    for runtime in runtimes().iter().filter(|runtime| runtime.name == "cuda") {
        for &dtype in &runtime.limits.dtypes {
            let (problem, start) = (Attend { dim: 64, ..shape(dtype) }, [150, 7, 199]);
            let blocks = Blocks::scattered(problem.batch, problem.capacity);
            let before = before(&problem, &start, &blocks);
            let run =
                |shift| step_of(runtime, &problem, (&before, &start, &blocks), Way::Joined, shift);
            let (aligned, shifted) = (run(0), run(1));
            assert!(aligned.keys == shifted.keys && aligned.values == shifted.values);
            // Other kernels may serve them, which round elsewhere.
            let (aligned, shifted) = (dtype.decode(&aligned.y), dtype.decode(&shifted.y));
            for (a, b) in aligned.iter().zip(&shifted) {
                assert!((a - b).abs() <= 2e-2, "{}: {dtype:?}: {a} {b}", runtime.name);
            }
        }
    }
}

#[test]
fn a_next_token_that_cannot_be_is_refused_before_it_is_launched() {
    for Runtime { client, limits, .. } in runtimes() {
        let problem = Attend { batch: 1, capacity: 64, blocks: 1, ..shape(Dtype::F32) };
        let cache = 2 * CACHE_BLOCK * 32 * 4;
        let buffers = NextBuffers {
            qkv: client.empty(1024),
            cos: client.empty(4096),
            sin: client.empty(4096),
            start: client.empty(4),
            table: client.create_from_slice(bytemuck::cast_slice(&[-1])),
            keys: client.empty(cache),
            values: client.empty(cache),
            y: client.empty(512),
        };
        let ask = |problem| attend_next(client, &problem, &buffers);
        assert_eq!(ask(problem), Ok(()));
        assert_eq!(ask(Attend { batch: 0, ..problem }), Ok(()));
        assert_eq!(ask(Attend { tokens: 0, ..problem }), Ok(()));
        let what = "the number of new tokens";
        assert_eq!(
            ask(Attend { tokens: 2, ..problem }),
            Err(Error::OutOfRange { what, found: 2, min: 0, max: 1 })
        );
        let short = |what, found, expected| Err(Error::WrongLength { what, found, expected });
        let what = "the buffer of q, k and v (bytes)";
        assert_eq!(ask(Attend { batch: 2, ..problem }), short(what, 1024, 2048));
        let what = "the cache of keys (bytes)";
        assert_eq!(ask(Attend { blocks: 2, ..problem }), short(what, cache, 2 * cache));
        let what = "the buffer of cosines (bytes)";
        assert_eq!(ask(Attend { capacity: 65, ..problem }), short(what, 4096, 4160));
        for wrong in [
            Attend { key_heads: 3, ..problem },
            Attend { dim: 0, ..problem },
            Attend { capacity: 0, ..problem },
            Attend { blocks: 1 << 40, ..problem },
            Attend { window: Some(0), ..problem },
            // 32 bits address q, and not q, k and v.
            Attend { batch: 1 << 24, query_heads: 6, ..problem },
        ] {
            assert!(matches!(ask(wrong), Err(Error::OutOfRange { .. })), "{wrong:?}");
        }
        assert!(matches!(ask(Attend { dim: 30, ..problem }), Err(Error::UnsupportedShape { .. })));
        let device = limits.name.clone();
        let lacks = |what, needed, offered| {
            Err(Error::UnsupportedShape { what, needed, offered, device: device.clone() })
        };
        let few = Limits { bindings: 9, ..limits.clone() };
        assert_eq!(problem.validate_next(&few), lacks("buffers a kernel", 10, 9));
        assert_eq!(problem.validate(&few), Ok(()));
        // The new key and value are kept beside what attention keeps.
        let Err(Error::UnsupportedShape { needed, .. }) =
            problem.validate(&Limits { shared_bytes: 0, ..limits.clone() })
        else {
            panic!("no shared memory is enough")
        };
        let tight = Limits { shared_bytes: needed, ..limits.clone() };
        assert_eq!(problem.validate(&tight), Ok(()));
        let more = needed + 2 * 4 * problem.dim;
        assert_eq!(problem.validate_next(&tight), lacks("bytes of shared memory", more, needed));
    }
}
