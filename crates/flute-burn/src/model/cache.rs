//! Keys and values of the tokens seen so far. A cache belongs to a sequence or a batch of them, not to the model: a new
//! sequence is a new cache, and nothing of another one can leak into it. Sequences of a batch may stand at different
//! places (`Model::read`).
//!
//! Everything is allocated when the cache is made, for the capacity it is made with; a token beyond that is refused
//! before anything is computed.

use super::rope::Rotations;
use super::step::Step;
use crate::checkpoint::ModelConfig;
use crate::choose;
use crate::error::{Error, Result};
use crate::fused::{self, Slot};
use burn::backend::StreamId;
use burn::tensor::{DType, Device, Distribution, Int, Tensor};

/// The state of a batch of sequences.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(super) layers: Vec<KeysValues>,
    pub(super) rotations: Rotations,
    /// `[batch]`: where the next token of each sequence goes, on the device.
    pub(super) position: Tensor<1, Int>,
    /// In the place of the position while that is being moved: taking a tensor away leaves another one.
    nowhere: Tensor<1, Int>,
    capacity: usize,
    /// Tokens seen by each sequence.
    lens: Vec<usize>,
    /// That on which it was made.
    pub(super) home: StreamId,
}

impl Cache {
    pub(super) fn new(
        config: &ModelConfig,
        [batch, capacity]: [usize; 2],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        for (name, found) in
            [("the batch of a cache", batch), ("the capacity of a cache", capacity)]
        {
            if found == 0 {
                let needed = "at least 1".into();
                return Err(Error::InvalidOption { name, found: "0".into(), needed });
            }
        }
        let limit = config.max_position_embeddings;
        if capacity > limit {
            return Err(Error::PromptTooLong { found: capacity, limit });
        }
        let shape = [batch, config.num_key_value_heads, capacity, config.head_dim];
        let zeros = || Tensor::zeros(shape, (device, dtype));
        let layer = |_| KeysValues { keys: zeros(), values: zeros() };
        Ok(Self {
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            rotations: Rotations::new(&config.rope, config.head_dim, capacity, device),
            position: Tensor::zeros([batch], (device, DType::I32)),
            nowhere: Tensor::zeros([1], (device, DType::I32)),
            capacity,
            lens: vec![0; batch],
            home: StreamId::current(),
        })
    }

    /// Tokens seen so far by the longest sequence.
    pub fn len(&self) -> usize {
        self.lens.iter().copied().max().unwrap_or(0)
    }

    /// Tokens seen so far by each sequence.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// Whether no token was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that each sequence may have.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.lens.len()
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
        let found = self.len() + tokens;
        if found > self.capacity {
            return Err(Error::PromptTooLong { found, limit: self.capacity });
        }
        Ok(())
    }

    /// Pretends to have seen `len` tokens, whose keys and values are noise: for measuring a step behind a long context.
    pub(super) fn fill(&mut self, len: usize) {
        for layer in &mut self.layers {
            for all in [&mut layer.keys, &mut layer.values] {
                *all = all.random_like(Distribution::Uniform(-1.0, 1.0));
            }
        }
        self.lens.fill(0);
        self.position = self.position.zeros_like();
        self.advance(len);
    }

    /// Counts `tokens` as seen, after every layer has.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.count(tokens);
        self.position = self.position.clone() + tokens as i32;
    }

    /// Counts `tokens` on the host alone: the device has moved, or is about to move, the position itself.
    pub(super) fn count(&mut self, tokens: usize) {
        self.lens.iter_mut().for_each(|len| *len += tokens);
    }

    /// Lets `to` have the position alone, so that it is moved where it stands.
    pub(super) fn with_position<T>(
        &mut self,
        to: impl FnOnce(Tensor<1, Int>) -> (Tensor<1, Int>, T),
    ) -> T {
        let (position, result) = to(std::mem::replace(&mut self.position, self.nowhere.clone()));
        self.position = position;
        result
    }

    /// Forgets all tokens of each sequence but the first `lens`, which the cache must have. Nothing is erased: what
    /// stands behind is not seen, and written over.
    pub(super) fn rewind(&mut self, lens: Vec<usize>) {
        let positions = lens.iter().map(|len| *len as i32).collect();
        self.lens = lens;
        self.with_position(|position| (choose::put(position, positions), ()));
    }

    /// Lets sequence `index` have seen what the only sequence of `alone` has, which must have room here.
    pub(super) fn adopt(&mut self, index: usize, alone: Self) {
        let len = alone.len();
        let layers = std::mem::take(&mut self.layers).into_iter().zip(alone.layers);
        self.layers = layers.map(|(layer, other)| layer.adopt(index, len, other)).collect();
        let mut lens = self.lens.clone();
        lens[index] = len;
        self.rewind(lens);
    }

    /// Whether nobody else holds what a step writes, so that it is written where it stands.
    pub(super) fn is_own(&self) -> bool {
        let own = |layer: &KeysValues| layer.keys.can_mut() && layer.values.can_mut();
        self.position.can_mut() && self.layers.iter().all(own)
    }
}

/// Keys and values of one layer: `[batch, kv heads, capacity, head_dim]` each, the first `len` of them filled.
#[derive(Clone, Debug)]
pub(super) struct KeysValues {
    keys: Tensor<4>,
    values: Tensor<4>,
}

impl KeysValues {
    /// Puts the keys and values of `qkv` (q | k | v side by side) behind those there are, and returns its queries; queries
    /// and keys are rotated. The buffers are written in place, since nothing else holds them between two steps.
    pub(super) fn append(self, qkv: Tensor<3>, step: &Step) -> (Tensor<4>, Self) {
        let slot = Slot { keys: self.keys, values: self.values, start: step.position.clone() };
        let rotated = fused::rotate_append(qkv, step.rotations.tables(), slot);
        (rotated.query, Self { keys: rotated.keys, values: rotated.values })
    }

    /// With the first `len` positions of `other`, which has one sequence, as those of sequence `index`. In place, as
    /// above.
    fn adopt(self, index: usize, len: usize, other: Self) -> Self {
        let put = |all: Tensor<4>, one: Tensor<4>| {
            let [_, heads, _, dim] = one.dims();
            let place = [index..index + 1, 0..heads, 0..len, 0..dim];
            all.slice_assign(place, one.narrow(2, 0, len))
        };
        Self { keys: put(self.keys, other.keys), values: put(self.values, other.values) }
    }

    /// All of them, and where the step begins.
    pub(super) fn slot(&self, step: &Step) -> Slot {
        let (keys, values) = (self.keys.clone(), self.values.clone());
        Slot { keys, values, start: step.position.clone() }
    }
}
