//! Keys and values of the tokens seen so far. A cache belongs to a sequence or a batch of them, not to the model: a new
//! sequence is a new cache or a new row of one, and nothing of another one can leak into it. Sequences of a batch may
//! stand at different places (`Model::read`).
//!
//! Everything is allocated when the cache is made: blocks of [`CACHE_BLOCK`] positions, which lie anywhere, and a table
//! on the device that says which of them a row has, and in which order. A sequence has all its blocks from the beginning;
//! a token beyond its capacity is refused before anything is computed. A row without a sequence has no blocks and stands
//! before the first position, where nothing is stored and nothing is seen: steps go on around it.

use super::pool::Pool;
use super::rope::Rotations;
use super::step::Step;
use crate::checkpoint::ModelConfig;
use crate::choose;
use crate::error::{Error, Result};
use crate::fused::{self, Attend, Slot};
use burn::backend::StreamId;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use flute_cube::CACHE_BLOCK;

/// Where a row without a sequence stands; steps move it on, and it takes them 2³¹ to reach the first position.
const NOWHERE: i32 = i32::MIN;

/// The state of a batch of sequences.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(super) layers: Vec<KeysValues>,
    pub(super) rotations: Rotations,
    /// `[batch]`: where the next token of each sequence goes, on the device.
    pub(super) position: Tensor<1, Int>,
    /// `[batch, entries]`: the blocks of each sequence, on the device.
    pub(super) table: Tensor<2, Int>,
    /// In the place of the two while they are written: taking a tensor away leaves another one.
    spare: (Tensor<1, Int>, Tensor<2, Int>),
    rows: Vec<Option<Sequence>>,
    pool: Pool,
    capacity: usize,
    /// That on which it was made.
    pub(super) home: StreamId,
}

/// A sequence of a batch.
#[derive(Clone, Debug)]
struct Sequence {
    /// Tokens seen.
    len: usize,
    /// Tokens that it may have.
    capacity: usize,
    /// Of the cache, in the order of its positions.
    blocks: Vec<u32>,
}

/// How large a cache is.
#[derive(Clone, Copy, Debug)]
pub(super) struct CacheShape {
    /// Rows.
    pub(super) batch: usize,
    /// Tokens that a sequence may have at most.
    pub(super) capacity: usize,
    /// If none are given, every row has a sequence from the beginning, with blocks for all its tokens.
    pub(super) blocks: Option<usize>,
}

impl Cache {
    pub(super) fn new(
        config: &ModelConfig,
        shape: CacheShape,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let CacheShape { batch, capacity, blocks } = shape;
        for (name, found) in [
            ("the batch of a cache", batch),
            ("the capacity of a cache", capacity),
            ("the number of blocks of a cache", blocks.unwrap_or(1)),
        ] {
            if found == 0 {
                let needed = "at least 1".into();
                return Err(Error::InvalidOption { name, found: "0".into(), needed });
            }
        }
        let limit = config.max_position_embeddings;
        if capacity > limit {
            return Err(Error::PromptTooLong { found: capacity, limit });
        }
        let entries = Pool::needed(capacity);
        let mut pool = Pool::new(blocks.unwrap_or(batch * entries));
        let mut rows = vec![None; batch];
        if blocks.is_none() {
            for row in &mut rows {
                *row = Some(Sequence { len: 0, capacity, blocks: pool.take(capacity)? });
            }
        }
        let shape = [pool.blocks(), config.num_key_value_heads, CACHE_BLOCK, config.head_dim];
        let zeros = || Tensor::zeros(shape, (device, dtype));
        let layer = |_| KeysValues { keys: zeros(), values: zeros() };
        let positions = positions(&rows);
        Ok(Self {
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            // Kernels take a sequence to end with its last block.
            rotations: Rotations::new(&config.rope, config.head_dim, entries * CACHE_BLOCK, device),
            position: ints(positions, [batch], device),
            table: ints(table(&rows, entries), [batch, entries], device),
            spare: (ints(vec![0], [1], device), ints(vec![0], [1, 1], device)),
            rows,
            pool,
            capacity,
            home: StreamId::current(),
        })
    }

    /// Tokens seen so far by the longest sequence.
    pub fn len(&self) -> usize {
        self.sequences().map(|sequence| sequence.len).max().unwrap_or(0)
    }

    /// Tokens seen so far in each row; none where there is no sequence.
    pub fn lens(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.as_ref().map_or(0, |sequence| sequence.len)).collect()
    }

    /// Whether no token was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that a sequence may have at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Rows: sequences that there may be at once.
    pub fn batch(&self) -> usize {
        self.rows.len()
    }

    /// Its blocks.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Which rows have a sequence.
    pub(super) fn taken(&self) -> Vec<bool> {
        self.rows.iter().map(Option::is_some).collect()
    }

    /// Tokens seen so far by the shortest sequence.
    pub(super) fn shortest(&self) -> usize {
        self.sequences().map(|sequence| sequence.len).min().unwrap_or(0)
    }

    fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.rows.iter().flatten()
    }

    /// Refuses a step of `[batch, tokens]` that the cache was not made for.
    pub(super) fn admit(&self, [batch, tokens]: [usize; 2]) -> Result<()> {
        if batch != self.batch() {
            let (found, needed) = (batch.to_string(), format!("{} for this cache", self.batch()));
            return Err(Error::InvalidOption { name: "the batch of tokens", found, needed });
        }
        if tokens == 0 {
            return Err(Error::EmptyPrompt);
        }
        let over = |sequence: &&Sequence| sequence.len + tokens > sequence.capacity;
        match self.sequences().filter(over).max_by_key(|sequence| sequence.len) {
            Some(&Sequence { len, capacity: limit, .. }) => {
                Err(Error::PromptTooLong { found: len + tokens, limit })
            }
            None => Ok(()),
        }
    }

    /// Gives a sequence of at most `capacity` tokens, which the cache must admit, the first free row, and its blocks. The
    /// device hears of it by [`Cache::tell`].
    pub(super) fn seat(&mut self, capacity: usize) -> Result<usize> {
        let Some(row) = self.rows.iter().position(Option::is_none) else {
            return Err(Error::BatchFull { sequences: self.batch() });
        };
        let blocks = self.pool.take(capacity)?;
        self.rows[row] = Some(Sequence { len: 0, capacity, blocks });
        Ok(row)
    }

    /// Puts the blocks of the sequence in row `row` back, which is free then, and says whether there was one. The device
    /// hears of it by [`Cache::tell`].
    pub(super) fn free(&mut self, row: usize) -> bool {
        let sequence = self.rows.get_mut(row).and_then(Option::take);
        sequence.map(|sequence| self.pool.put(sequence.blocks)).is_some()
    }

    /// Row `row`, which must have a sequence, as a cache of its own over the same blocks, to be given back by
    /// [`Cache::restore`]: until then this one has no layers.
    pub(super) fn lend(&mut self, row: usize) -> Self {
        let rows = vec![self.rows[row].clone()];
        let (entries, device) = (self.table.dims()[1], self.table.device());
        Self {
            layers: std::mem::take(&mut self.layers),
            rotations: self.rotations.clone(),
            position: ints(positions(&rows), [1], &device),
            table: ints(table(&rows, entries), [1, entries], &device),
            spare: self.spare.clone(),
            rows,
            pool: self.pool.emptied(),
            capacity: self.capacity,
            home: self.home,
        }
    }

    /// Takes back what row `row` became. The device hears of it by [`Cache::tell`].
    pub(super) fn restore(&mut self, row: usize, lent: Self) {
        self.layers = lent.layers;
        self.rows[row] = lent.rows.into_iter().next().flatten();
    }

    /// Says on the device which blocks rows have, and where they stand. Both are written where they are.
    pub(super) fn tell(&mut self) {
        let rows = table(&self.rows, self.table.dims()[1]);
        let held = std::mem::replace(&mut self.table, self.spare.1.clone());
        self.table = choose::put(held, rows);
        let positions = self.positions();
        self.with_position(|position| (choose::put(position, positions), ()));
    }

    /// Where rows stand: before the first position if they have no sequence.
    pub(super) fn positions(&self) -> Vec<i32> {
        positions(&self.rows)
    }

    /// Pretends to have seen `len` tokens, whose keys and values are noise: for measuring a step behind a long context.
    pub(super) fn fill(&mut self, len: usize) {
        for layer in &mut self.layers {
            for all in [&mut layer.keys, &mut layer.values] {
                *all = all.random_like(Distribution::Uniform(-1.0, 1.0));
            }
        }
        self.rewind(vec![len; self.batch()]);
    }

    /// Counts `tokens` as seen, after every layer has.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.count(tokens);
        self.position = self.position.clone() + tokens as i32;
    }

    /// Counts `tokens` on the host alone: the device has moved, or is about to move, the position itself.
    pub(super) fn count(&mut self, tokens: usize) {
        self.rows.iter_mut().flatten().for_each(|sequence| sequence.len += tokens);
    }

    /// Lets `to` have the position alone, so that it is moved where it stands.
    pub(super) fn with_position<T>(
        &mut self,
        to: impl FnOnce(Tensor<1, Int>) -> (Tensor<1, Int>, T),
    ) -> T {
        let (position, result) = to(std::mem::replace(&mut self.position, self.spare.0.clone()));
        self.position = position;
        result
    }

    /// Forgets all tokens of each sequence but the first `lens`, one a row, which the cache must have. Nothing is erased:
    /// what stands behind is not seen, and written over.
    pub(super) fn rewind(&mut self, lens: Vec<usize>) {
        for (row, len) in self.rows.iter_mut().zip(lens) {
            row.iter_mut().for_each(|sequence| sequence.len = len);
        }
        let positions = self.positions();
        self.with_position(|position| (choose::put(position, positions), ()));
    }

    /// Whether nobody else holds what a step writes, so that it is written where it stands.
    pub(super) fn is_own(&self) -> bool {
        let own = |layer: &KeysValues| layer.keys.can_mut() && layer.values.can_mut();
        self.position.can_mut() && self.table.can_mut() && self.layers.iter().all(own)
    }
}

/// Keys and values of one layer: `[blocks, kv heads, 64, head_dim]` each.
#[derive(Clone, Debug)]
pub(super) struct KeysValues {
    keys: Tensor<4>,
    values: Tensor<4>,
}

impl KeysValues {
    /// Puts the keys and values of `qkv` (q | k | v side by side) behind those there are, and returns its queries; queries
    /// and keys are rotated. The buffers are written in place, since nothing else holds them between two steps.
    pub(super) fn append(self, qkv: Tensor<3>, step: &Step) -> (Tensor<4>, Self) {
        let slot = slot([self.keys, self.values], step);
        let rotated = fused::rotate_append(qkv, step.rotations.tables(), slot);
        (rotated.query, Self { keys: rotated.keys, values: rotated.values })
    }

    /// As [`KeysValues::append`] for one token a sequence, and what its queries attend to, as `form` says.
    pub(super) fn next(self, qkv: Tensor<3>, step: &Step, form: Attend) -> (Tensor<3>, Self) {
        let slot = slot([self.keys, self.values], step);
        let next = fused::attend_next(qkv, step.rotations.tables(), slot, form);
        (next.y, Self { keys: next.keys, values: next.values })
    }

    /// All of them, and where the step begins.
    pub(super) fn slot(&self, step: &Step) -> Slot {
        slot([self.keys.clone(), self.values.clone()], step)
    }
}

fn slot([keys, values]: [Tensor<4>; 2], step: &Step) -> Slot {
    Slot { keys, values, start: step.position.clone(), table: step.table.clone() }
}

fn positions(rows: &[Option<Sequence>]) -> Vec<i32> {
    let position = |sequence: &Sequence| sequence.len as i32;
    rows.iter().map(|row| row.as_ref().map_or(NOWHERE, position)).collect()
}

/// The blocks of `rows`, `entries` of each; −1 behind the last.
fn table(rows: &[Option<Sequence>], entries: usize) -> Vec<i32> {
    let blocks = |row: &Option<Sequence>| {
        let blocks = row.iter().flat_map(|sequence| &sequence.blocks).map(|block| *block as i32);
        blocks.chain(std::iter::repeat(-1)).take(entries).collect::<Vec<_>>()
    };
    rows.iter().flat_map(blocks).collect()
}

/// Rows one behind the other, which a device may put apart where it is given more than one axis: kernels would copy the
/// table anew in every layer.
fn ints<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let len = values.len();
    Tensor::<1, Int>::from_data(TensorData::new(values, [len]), (device, DType::I32)).reshape(shape)
}
