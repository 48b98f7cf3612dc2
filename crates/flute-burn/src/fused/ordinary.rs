//! The default bodies, in ordinary operations: correct on every backend, and differentiable.

use super::{
    Attend, FloatTensor, Norm, RotatedPrimitive, SlotPrimitive, SumPrimitive, attended, halved,
    query_shape,
};
use crate::checkpoint::Activation;
use burn::backend::{Backend, TensorMetadata, tensor::IntTensor};
use burn::tensor::{FloatDType, Shape, Slice, TensorData, read_sync};
use flute_cube::{CACHE_BLOCK, pack};
use std::ops::Range;

/// Below any score, and finite: shading languages have no literal for infinity.
const MASKED: f32 = -1e30;

fn wide<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_cast(x, FloatDType::F32)
}

pub(super) fn norm<B: Backend>(
    x: FloatTensor<B>,
    gain: FloatTensor<B>,
    form: Norm,
) -> FloatTensor<B> {
    let (x, last) = (wide::<B>(x.clone()), x.shape().num_dims() - 1);
    let mut row = vec![1; last];
    row.push(gain.shape()[0]);
    let gain = B::float_reshape(B::float_add_scalar(gain, form.offset.into()), Shape::from(row));
    let mean = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), last);
    let factor = B::float_recip(B::float_sqrt(B::float_add_scalar(mean, form.epsilon.into())));
    B::float_cast(B::float_mul(B::float_mul(x, factor), gain), form.dtype.into())
}

pub(super) fn add_norm<B: Backend>(
    stream: FloatTensor<B>,
    branch: FloatTensor<B>,
    gain: FloatTensor<B>,
    form: Norm,
) -> SumPrimitive<B> {
    let dtype = FloatDType::from(stream.dtype());
    let sum = B::float_add(wide::<B>(stream), wide::<B>(branch));
    SumPrimitive { sum: B::float_cast(sum.clone(), dtype), normed: norm::<B>(sum, gain, form) }
}

pub(super) fn gate<B: Backend>(x: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    let (dtype, shape) = (FloatDType::from(x.dtype()), halved(&x.shape()));
    let last = shape.num_dims() - 1;
    let len = shape[last];
    let x = wide::<B>(x);
    let side = |range: Range<usize>| {
        let mut slices: Vec<Slice> = shape.iter().map(|len| Slice::from(0..*len)).collect();
        slices[last] = range.into();
        B::float_slice(x.clone(), &slices)
    };
    let gate = side(0..len);
    let gate = match activation {
        Activation::Silu => B::float_mul(gate.clone(), B::sigmoid(gate)),
        Activation::GeluTanh => {
            let cube = B::float_mul(B::float_mul(gate.clone(), gate.clone()), gate.clone());
            let inner = B::float_add(gate.clone(), B::float_mul_scalar(cube, 0.044715.into()));
            let factor = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = B::float_tanh(B::float_mul_scalar(inner, factor.into()));
            let half = B::float_mul_scalar(B::float_add_scalar(tanh, 1.0.into()), 0.5.into());
            B::float_mul(gate, half)
        }
    };
    B::float_cast(B::float_mul(gate, side(len..2 * len)), dtype)
}

/// As [`gate`], of gate and up by turns along the last axis.
pub(crate) fn gate_by_turns<B: Backend>(
    x: FloatTensor<B>,
    activation: Activation,
) -> FloatTensor<B> {
    let shape = x.shape();
    if shape.num_elements() == 0 {
        // A backend may know no slice of nothing.
        return B::float_reshape(x, halved(&shape));
    }
    let turns = Shape::new([shape.num_elements() / pack::BLOCK_ROWS, pack::BLOCK_ROWS]);
    let y = gate::<B>(B::float_reshape(x, turns), activation);
    B::float_reshape(y, halved(&shape))
}

pub(super) fn rotate_append<B: Backend>(
    qkv: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    slot: SlotPrimitive<B>,
) -> RotatedPrimitive<B> {
    let SlotPrimitive { mut keys, mut values, start, table } = slot;
    let (device, dtype) = (qkv.device(), FloatDType::from(qkv.dtype()));
    let (cache, shape) = (keys.shape(), query_shape(&qkv.shape(), &keys.shape()));
    let [batch, heads, tokens, dim] = shape.dims();
    let [blocks, key_heads, _, _] = cache.dims();
    let (places, half) = (Places::read::<B>(start, table, blocks), dim / 2);
    let capacity = places.capacity();

    let all = B::float_reshape(qkv, Shape::new([batch, tokens, heads + 2 * key_heads, dim]));
    let all = B::float_swap_dims(all, 1, 2);
    let part = |range: Range<usize>| {
        B::float_slice(
            all.clone(),
            &[batch, 0, tokens, dim].map(|len| match len {
                0 => Slice::from(range.clone()),
                len => Slice::from(0..len),
            }),
        )
    };
    // What stands beyond the tables is not stored, and may have any rotation.
    let rows = places.start.iter().flat_map(|start| {
        (0..tokens as i64).map(move |token| (start + token).clamp(0, capacity as i64 - 1) as i32)
    });
    let rows = TensorData::new(rows.collect::<Vec<i32>>(), [batch * tokens]);
    let rows = B::int_from_data(rows, &device);
    let table = |table: FloatTensor<B>| {
        let rows = B::float_select(table, 0, rows.clone());
        B::float_reshape(rows, Shape::new([batch, 1, tokens, half]))
    };
    let (cos, sin) = (table(cos), table(sin));
    let turn = |x: FloatTensor<B>, heads: usize| {
        let x = wide::<B>(x);
        let side = |range: Range<usize>| {
            let slices = [0..batch, 0..heads, 0..tokens, range].map(Slice::from);
            B::float_slice(x.clone(), &slices)
        };
        let (a, b) = (side(0..half), side(half..dim));
        let first = B::float_sub(
            B::float_mul(a.clone(), cos.clone()),
            B::float_mul(b.clone(), sin.clone()),
        );
        let second = B::float_add(B::float_mul(b, cos.clone()), B::float_mul(a, sin.clone()));
        B::float_cast(B::float_cat(vec![first, second], 3), dtype)
    };
    let query = turn(part(0..heads), heads);
    let k = turn(part(heads..heads + key_heads), key_heads);
    let v = part(heads + key_heads..heads + 2 * key_heads);
    for (b, start) in places.start.iter().enumerate() {
        let Ok(start) = usize::try_from(*start) else { continue };
        let end = capacity.min(start.saturating_add(tokens));
        let mut position = start;
        while position < end {
            let (first, within) = (position, position % CACHE_BLOCK);
            position = end.min(first - within + CACHE_BLOCK);
            let Some(block) = places.block(b, first) else { continue };
            let to = within..within + (position - first);
            let at = [block..block + 1, 0..key_heads, to, 0..dim].map(Slice::from);
            let from = first - start..position - start;
            let from = [b..b + 1, 0..key_heads, from, 0..dim].map(Slice::from);
            keys = B::float_slice_assign(keys, &at, B::float_slice(k.clone(), &from));
            values = B::float_slice_assign(values, &at, B::float_slice(v.clone(), &from));
        }
    }
    RotatedPrimitive { query, keys, values }
}

pub(super) fn attend<B: Backend>(
    query: FloatTensor<B>,
    slot: SlotPrimitive<B>,
    form: Attend,
) -> FloatTensor<B> {
    let SlotPrimitive { keys, values, start, table } = slot;
    let dtype = FloatDType::from(query.dtype());
    let (device, shape) = (query.device(), attended(&query.shape()));
    let [_, heads, tokens, dim] = query.shape().dims();
    let [blocks, key_heads, _, _] = keys.shape().dims();
    let places = Places::read::<B>(start, table, blocks);
    let capacity = places.capacity();
    let rows = heads / key_heads * tokens;
    let sequence = |(b, start): (usize, i64)| {
        let sight = Sight { start, capacity, window: form.window };
        let all = sight.of(0).start..sight.of(tokens.saturating_sub(1)).end;
        let (held, positions) = places.seen(b, all.clone());
        let len = positions.iter().filter(|position| all.contains(position)).count();
        if len == 0 {
            return B::float_zeros(Shape::new([1, tokens, heads * dim]), &device, FloatDType::F32);
        }
        let before = positions.iter().take_while(|position| **position < all.start).count();
        let positions = &positions[before..before + len];
        let of = |cache: &FloatTensor<B>| {
            let held = TensorData::new(held.clone(), [held.len()]);
            let part = B::float_select(cache.clone(), 0, B::int_from_data(held.clone(), &device));
            let part = B::float_swap_dims(part, 0, 1);
            let shape = Shape::new([key_heads, held.num_elements() * CACHE_BLOCK, dim]);
            let slices = [0..key_heads, before..before + len, 0..dim].map(Slice::from);
            wide::<B>(B::float_slice(B::float_reshape(part, shape), &slices))
        };
        let slices = [b..b + 1, 0..heads, 0..tokens, 0..dim].map(Slice::from);
        let q = wide::<B>(B::float_slice(query.clone(), &slices));
        let q = B::float_mul_scalar(q, form.scale.into());
        // Query heads that share a head of keys are more rows of one product.
        let q = B::float_reshape(q, Shape::new([key_heads, rows, dim]));
        let mut scores = B::float_matmul(q, B::float_swap_dims(of(&keys), 1, 2));
        if let Some(cap) = form.cap {
            let tanh = B::float_tanh(B::float_div_scalar(scores, cap.into()));
            scores = B::float_mul_scalar(tanh, cap.into());
        }
        if tokens > 1 {
            let hidden = (0..tokens).flat_map(|token| {
                let seen = sight.of(token);
                positions.iter().map(move |at| if seen.contains(at) { 0.0 } else { MASKED })
            });
            let hidden = TensorData::new(hidden.collect::<Vec<f32>>(), [1, tokens, len]);
            let all = B::float_reshape(scores, Shape::new([heads, tokens, len]));
            let all = B::float_add(all, B::float_from_data(hidden, &device));
            scores = B::float_reshape(all, Shape::new([key_heads, rows, len]));
        }
        let weighted = B::float_matmul(B::softmax(scores, 2), of(&values));
        let weighted = B::float_reshape(weighted, Shape::new([1, heads, tokens, dim]));
        B::float_reshape(B::float_swap_dims(weighted, 1, 2), Shape::new([1, tokens, heads * dim]))
    };
    let starts = places.start.iter().copied();
    let sequences: Vec<_> = starts.enumerate().map(sequence).collect();
    let all = match sequences.is_empty() {
        true => B::float_zeros(shape, &device, FloatDType::F32),
        false => B::float_cat(sequences, 0),
    };
    B::float_cast(all, dtype)
}

/// Where a sequence stands, and how far it sees.
struct Sight {
    start: i64,
    capacity: usize,
    window: Option<usize>,
}

impl Sight {
    /// The positions that new token `token` sees; none where the sequence stands before the first.
    fn of(&self, token: usize) -> Range<usize> {
        let end = usize::try_from(self.start).map_or(0, |start| start + token + 1);
        let end = end.min(self.capacity);
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// Where sequences stand, and which blocks of a cache they have, as read back from the device.
struct Places {
    start: Vec<i64>,
    table: Vec<i64>,
    /// Blocks of the cache.
    blocks: usize,
}

impl Places {
    fn read<B: Backend>(start: IntTensor<B>, table: IntTensor<B>, blocks: usize) -> Self {
        let [start, table] = [start, table].map(|tensor| {
            let data = read_sync(B::int_into_data(tensor));
            data.unwrap_or_else(|error| panic!("reading where sequences stand: {error}"))
        });
        Self { start: start.iter().collect(), table: table.iter().collect(), blocks }
    }

    /// Entries of the table for each sequence.
    fn entries(&self) -> usize {
        self.table.len().checked_div(self.start.len()).unwrap_or(0)
    }

    /// Positions that each sequence may have.
    fn capacity(&self) -> usize {
        self.entries() * CACHE_BLOCK
    }

    /// The block that position `position` of sequence `b` lies in.
    fn block(&self, b: usize, position: usize) -> Option<usize> {
        let entry = self.table.get(b * self.entries() + position / CACHE_BLOCK)?;
        usize::try_from(*entry).ok().filter(|block| *block < self.blocks)
    }

    /// The blocks in which sequence `b` has any of `positions`, and all positions of those.
    fn seen(&self, b: usize, positions: Range<usize>) -> (Vec<i32>, Vec<usize>) {
        let entries = positions.start / CACHE_BLOCK..positions.end.div_ceil(CACHE_BLOCK);
        let held = entries.filter_map(|entry| {
            let first = entry * CACHE_BLOCK;
            Some((self.block(b, first)? as i32, first..first + CACHE_BLOCK))
        });
        let (blocks, positions): (Vec<i32>, Vec<Range<usize>>) = held.unzip();
        (blocks, positions.into_iter().flatten().collect())
    }
}
