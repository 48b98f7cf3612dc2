//! Caches whose blocks lie anywhere, and what kernels make of tables that name none.

use crate::attend::{Input, check, run_in, shape};
use crate::device::runtimes;
use flute_cube::{Attend, CACHE_BLOCK};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};

/// Which blocks of a cache the sequences of a batch have.
#[derive(Clone)]
pub(crate) struct Blocks {
    /// `[batch, entries]`.
    pub(crate) table: Vec<i32>,
    /// Of the cache.
    pub(crate) count: usize,
    pub(crate) entries: usize,
    capacity: usize,
}

impl Blocks {
    /// One sequence behind the other.
    pub(crate) fn counting(batch: usize, capacity: usize) -> Self {
        let entries = capacity.div_ceil(CACHE_BLOCK);
        let count = batch * entries;
        Self { table: (0..count as i32).collect(), count, entries, capacity }
    }

    /// In no order, in a cache of more blocks than are needed.
    pub(crate) fn scattered(batch: usize, capacity: usize) -> Self {
        let Self { count: used, entries, .. } = Self::counting(batch, capacity);
        let count = used + 5;
        let mut table: Vec<i32> = (0..count as i32).collect();
        table.shuffle(&mut StdRng::seed_from_u64((batch * capacity) as u64));
        table.truncate(used);
        Self { table, count, entries, capacity }
    }

    /// The row of the cache `[count, heads, 64]` that holds `position` of a head of sequence `b`.
    pub(crate) fn row(&self, [b, heads, head]: [usize; 3], position: usize) -> Option<usize> {
        let entry = self.table[b * self.entries + position / CACHE_BLOCK];
        let block = usize::try_from(entry).ok().filter(|block| *block < self.count)?;
        Some((block * heads + head) * CACHE_BLOCK + position % CACHE_BLOCK)
    }

    /// The cache of `rows` `[batch, heads, capacity, dim]`, NaN wherever nobody has anything.
    pub(crate) fn lay(&self, rows: &[f32], [heads, dim]: [usize; 2]) -> Vec<f32> {
        let mut cache = vec![f32::NAN; self.count * heads * CACHE_BLOCK * dim];
        for (at, row) in rows.chunks(dim).enumerate() {
            let (of, position) = (at / self.capacity, at % self.capacity);
            if let Some(to) = self.row([of / heads, heads, of % heads], position) {
                cache[to * dim..][..dim].copy_from_slice(row);
            }
        }
        cache
    }
}

#[test]
fn attention_gives_the_same_bits_wherever_blocks_lie() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for (tokens, window) in [(1, None), (1, Some(90)), (37, None), (37, Some(90))] {
                for dim in [32, 128, 256] {
                    let (start, key_heads) = ([150, 7, 162], 2);
                    let problem = Attend { tokens, window, dim, key_heads, ..shape(dtype) };
                    let input = Input::new(&problem, &start);
                    let counting = Blocks::counting(3, problem.capacity);
                    let scattered = Blocks::scattered(3, problem.capacity);
                    assert_ne!(counting.table, scattered.table[..counting.table.len()]);
                    let run = |blocks| run_in(runtime, &problem, &input, &start, blocks);
                    let (expected, found) = (run(&counting), run(&scattered));
                    assert!(found == expected, "{}: {problem:?}", runtime.name);
                    assert!(found.iter().all(|y| y.is_finite()), "{}: {problem:?}", runtime.name);
                }
            }
        }
    }
}

#[test]
fn what_lies_in_no_block_is_not_seen() {
    for runtime in runtimes() {
        for &dtype in &runtime.limits.dtypes {
            for tokens in [1, 21] {
                let problem = Attend { tokens, ..shape(dtype) };
                let start = [170, 70, 20];
                let input = Input::new(&problem, &start);
                let mut blocks = Blocks::scattered(3, problem.capacity);
                let whole = run_in(runtime, &problem, &input, &start, &blocks);
                let len = whole.len() / 3;
                // The second has lost all it sees, and the third what it does not see. Numbers that name no block are all
                // alike.
                let (entries, count) = (blocks.entries, blocks.count as i32);
                blocks.table[entries] = -1;
                blocks.table[entries + 1] = count;
                blocks.table[2 * entries + 1..3 * entries].fill(i32::MIN);
                let found = run_in(runtime, &problem, &input, &start, &blocks);
                assert!(found[..len] == whole[..len], "{}: {problem:?}", runtime.name);
                assert!(found[len..2 * len].iter().all(|y| *y == 0.0), "{}", runtime.name);
                assert!(found[2 * len..] == whole[2 * len..], "{}: {problem:?}", runtime.name);

                // Without its first block the first sequence sees as if through a window that begins behind it.
                blocks.table[0] = -1;
                let holed = run_in(runtime, &problem, &input, &start, &blocks);
                let alone =
                    Attend { tokens: 1, window: Some(start[0] as usize + 1 - 64), ..problem };
                let first = Input {
                    query: input
                        .query
                        .chunks(problem.dim)
                        .step_by(tokens)
                        .flatten()
                        .copied()
                        .collect(),
                    ..input.clone()
                };
                let expected = run_in(runtime, &alone, &first, &start, &Blocks::scattered(3, 200));
                let row = problem.query_heads * problem.dim;
                for (found, expected) in holed[..row].iter().zip(&expected[..row]) {
                    let near = (found - expected).abs() <= 4e-3;
                    assert!(near, "{}: {problem:?}: {found} {expected}", runtime.name);
                }
            }
        }
    }
}

#[test]
fn a_cache_may_have_fewer_blocks_than_its_sequences_have_entries() {
    for runtime in runtimes() {
        let problem = Attend { batch: 3, capacity: 64 * 64, ..shape(runtime.limits.dtypes[0]) };
        let start = [10, -1, 100];
        let mut blocks = Blocks::counting(3, problem.capacity);
        blocks.table.fill(-1);
        blocks.count = 3;
        (blocks.table[0], blocks.table[128], blocks.table[129]) = (2, 0, 1);
        let input = Input::new(&problem, &start);
        let found = run_in(runtime, &problem, &input, &start, &blocks);
        let whole = run_in(runtime, &problem, &input, &start, &Blocks::counting(3, 4096));
        assert!(found == whole, "{}", runtime.name);
        check(runtime, &problem, &start);
    }
}
