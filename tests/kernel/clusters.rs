//! One launch that attends to a token, spread over a device in every way that there is.

use crate::attend::shape;
use crate::blocks::Blocks;
use crate::device::{Runtime, runtimes};
use crate::next::{Way, before, step};
use flute_cube::{Attend, Cluster, Dtype, Error, Limits, NextBuffers, attend_next_with};

/// Whether a cube of `limits` has room for `cluster`: the most that a plane's tiles, its sums and what they meet with take.
fn fits(problem: &Attend, cluster: Cluster, limits: &Limits) -> bool {
    let Attend { query_heads, key_heads, dim, .. } = *problem;
    let columns = (query_heads / key_heads).div_ceil(8);
    let tiles = 4 * cluster.stages * 2 * 16 * (2 * dim + 16);
    let sums = (columns * dim / 16).div_ceil(cluster.cubes) * 32 * 512;
    tiles + sums + columns * 2048 + 4096 + 16 <= limits.shared_bytes
}

fn check(runtime: &Runtime, problem: &Attend, start: &[i32], stages: &[usize]) {
    let blocks = Blocks::scattered(problem.batch, problem.capacity);
    let before = before(problem, start, &blocks);
    let run = |way| step(runtime, problem, (&before, start, &blocks), way);
    let expected = run(Way::Joined);
    let all = [8, 4, 2, 1].into_iter().flat_map(|cubes| stages.iter().map(move |s| (cubes, *s)));
    let all = all.map(|(cubes, stages)| Cluster { cubes, stages });
    for cluster in all.filter(|cluster| fits(problem, *cluster, &runtime.limits)) {
        let found = run(Way::Spread(cluster));
        let what = format!("{}: {problem:?} at {start:?}, {cluster:?}", runtime.name);
        assert!(found.y == expected.y, "{what}: y");
        assert!(found == expected, "{what}: the cache");
    }
}

#[test]
fn a_sequence_gets_the_same_bits_from_any_number_of_cubes() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            let small = Attend { query_heads: 4, key_heads: 2, dim: 64, ..shape(dtype) };
            if Cluster::of(&small, &runtime.limits).is_none() {
                continue;
            }
            // Streams of no chunk, of one, of two and of three, and a last tile in each of a cube's planes.
            let problem = Attend { batch: 7, capacity: 1200, ..small };
            check(runtime, &problem, &[-1, 0, 63, 200, 530, 1024, 1199], &[1, 2, 3, 6]);
            check(runtime, &problem, &[1200, 15, 16, 447, 512, 575, 1100], &[1, 2, 3, 6]);
            let long = Attend { batch: 1, capacity: 4200, ..small };
            check(runtime, &long, &[4132], &[1, 2, 3, 6]);
            let start = [5, 299, 300, 363, 1199, 0, 64];
            check(runtime, &Attend { window: Some(300), cap: Some(3.0), ..problem }, &start, &[2]);
            for (query_heads, key_heads, dim) in
                [(32, 8, 128), (1, 1, 16), (9, 1, 48), (16, 1, 256)]
            {
                let problem = Attend { query_heads, key_heads, dim, ..shape(dtype) };
                let problem = Attend { batch: 3, capacity: 1100, ..problem };
                check(runtime, &problem, &[1090, 700, 64], &[1]);
            }
        }
    }
}

#[test]
fn more_sequences_are_served_by_fewer_cubes_each() {
    let limits = Limits {
        name: "a device of 132 multiprocessors".into(),
        runtime: "cuda".into(),
        processors: 132,
        shared_bytes: 227 << 10,
        cube_units: 1024,
        lanes: 32,
        cube_count: 65535,
        bindings: 64,
        dtypes: vec![Dtype::F16],
        mma: true,
        cooperative: vec![],
        bulk: true,
        wgmma: true,
        dense: false,
    };
    let problem = Attend { query_heads: 32, key_heads: 8, dim: 128, ..shape(Dtype::F16) };
    let cubes = |batch| {
        let problem = Attend { batch, capacity: 1088, ..problem };
        Cluster::of(&problem, &limits).map(|cluster| cluster.cubes)
    };
    assert_eq!([1, 4, 8, 16, 64].map(cubes), [8, 8, 4, 2, 2].map(Some));
    let elsewhere = Limits { bulk: false, ..limits.clone() };
    assert_eq!(Cluster::of(&problem, &elsewhere), None);
    assert_eq!(Cluster::of(&Attend { dim: 72, ..problem }, &limits), None);
}

#[test]
fn a_cluster_that_cannot_be_is_refused_before_it_is_launched() {
    for Runtime { client, limits, .. } in runtimes() {
        let dtype = *limits.dtypes.last().expect("a type");
        let problem = Attend { query_heads: 16, key_heads: 1, dim: 256, ..shape(dtype) };
        let problem = Attend { batch: 1, capacity: 64, blocks: 1, ..problem };
        let bytes = |heads: usize| client.empty(heads * 256 * dtype.size());
        let buffers = NextBuffers {
            qkv: bytes(18),
            cos: client.empty(64 * 128 * 4),
            sin: client.empty(64 * 128 * 4),
            start: client.empty(4),
            table: client.create_from_slice(bytemuck::cast_slice(&[-1])),
            keys: bytes(64),
            values: bytes(64),
            y: bytes(16),
        };
        let ask =
            |cubes, stages| attend_next_with(client, &problem, &buffers, Cluster { cubes, stages });
        if problem.validate_next(limits).is_err() {
            continue;
        }
        if Cluster::of(&problem, limits).is_none() {
            assert!(matches!(ask(8, 1), Err(Error::UnsupportedShape { offered: 0, .. })));
            continue;
        }
        for (cubes, stages) in [(0, 1), (3, 1), (16, 1), (8, 0), (8, 7)] {
            assert!(matches!(ask(cubes, stages), Err(Error::OutOfRange { .. })));
        }
        // All sums of 16 heads in one cube, beside six tiles a plane.
        assert!(matches!(ask(1, 6), Err(Error::UnsupportedShape { .. })));
        assert_eq!(ask(8, 1), Ok(()));
    }
}
