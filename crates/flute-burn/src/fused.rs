//! What a model does between its products, in one launch each: norms with their residual, the gate of an MLP, rotary
//! embedding with the write into the cache, and attention of the new tokens over it; the last two, for one token a
//! sequence, in one launch together, or in two.
//!
//! | device | what runs |
//! |---|---|
//! | CUDA, wgpu (Vulkan, Metal, WebGPU), ROCm | kernels of [`flute_cube`], also under Burn's fusion |
//! | the same, for shapes that a kernel refuses; CPU (Flex); any backend that adopts [`FusedOps`] | the default bodies: ordinary operations |
//! | autodiff | the default bodies, each operation with its own gradient |
//!
//! Sums are f32 everywhere, with one rounding of each result. Where sequences stand and which blocks they have
//! are tensors on the device: the kernels read them there and nothing waits for them, so that a whole step can be captured and replayed; the default bodies
//! read them back. Shapes that contradict each other panic, as Burn's own operations do.

#[cfg(feature = "cube")]
mod launch;
mod next;
mod ordinary;

pub use next::{Next, NextPrimitive, attend_next};
pub(crate) use ordinary::gate_by_turns;

use crate::checkpoint::Activation;
use burn::backend::{
    Backend, Dispatch, ExtensionType, Flex,
    autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
    backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, Int, Shape, Tensor};
use flute_cube::CACHE_BLOCK;
#[cfg(feature = "fusion")]
use next::NextPrimitiveMetadata;

/// How rows are normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added to the mean square.
    pub epsilon: f64,
    /// Added to the gain: 1 for Gemma's gains as files hold them, else 0.
    pub offset: f64,
    /// Of the normalized rows.
    pub dtype: DType,
}

/// How scores become weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// Factor of the products of queries and keys.
    pub scale: f64,
    /// Scores s become `cap · tanh(s / cap)`.
    pub cap: Option<f64>,
    /// Positions that a token sees, itself among them.
    pub window: Option<usize>,
}

/// A cache of keys and values, and which of them a batch of sequences has. A position of a sequence lies in one of its
/// blocks of [`CACHE_BLOCK`] positions, which may be any of the cache.
#[derive(Clone, Debug)]
pub struct Slot {
    /// `[blocks, key_heads, 64, dim]`.
    pub keys: Tensor<4>,
    /// As `keys`.
    pub values: Tensor<4>,
    /// `[batch]`, I32: the position of the first new token of each sequence. A negative one neither stores nor sees anything.
    pub start: Tensor<1, Int>,
    /// `[batch, entries]`, I32: the blocks of each sequence, in the order of their positions, no block in two places. −1 is
    /// none: its positions are not stored and not seen.
    pub table: Tensor<2, Int>,
}

/// What [`rotate_append`] returns.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// `[batch, query_heads, tokens, dim]`.
    pub query: Tensor<4>,
    /// `[blocks, key_heads, 64, dim]`, with the new tokens.
    pub keys: Tensor<4>,
    /// As `keys`.
    pub values: Tensor<4>,
}

/// [`Slot`] as a backend sees it.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct SlotPrimitive<B: Backend> {
    /// See [`Slot::keys`].
    pub keys: FloatTensor<B>,
    /// See [`Slot::values`].
    pub values: FloatTensor<B>,
    /// See [`Slot::start`].
    pub start: IntTensor<B>,
    /// See [`Slot::table`].
    pub table: IntTensor<B>,
}

/// [`Rotated`] as a backend sees it.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct RotatedPrimitive<B: Backend> {
    /// See [`Rotated::query`].
    pub query: FloatTensor<B>,
    /// See [`Rotated::keys`].
    pub keys: FloatTensor<B>,
    /// See [`Rotated::values`].
    pub values: FloatTensor<B>,
}

/// A row and its norm.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct SumPrimitive<B: Backend> {
    /// In the type of the stream.
    pub sum: FloatTensor<B>,
    /// In that of [`Norm::dtype`].
    pub normed: FloatTensor<B>,
}

/// The operations as Burn's backends offer them. To support one more backend, write `impl FusedOps for It {}` and take
/// the default bodies, or replace them.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"), Autodiff)]
pub trait FusedOps: Backend {
    /// See [`norm`].
    #[fusion(dtype = form.dtype, shape = x)]
    fn flute_norm(x: FloatTensor<Self>, gain: FloatTensor<Self>, form: Norm) -> FloatTensor<Self> {
        ordinary::norm::<Self>(x, gain, form)
    }

    /// See [`add_norm`].
    #[fusion(meta = |stream, _branch, _gain, form| SumPrimitiveMetadata {
        sum: stream.clone(),
        normed: burn::backend::fusion::custom::TensorSpec::new(stream.shape.clone(), form.dtype),
    })]
    fn flute_add_norm(
        stream: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        gain: FloatTensor<Self>,
        form: Norm,
    ) -> SumPrimitive<Self> {
        ordinary::add_norm::<Self>(stream, branch, gain, form)
    }

    /// See [`gate`].
    #[fusion(dtype = x, shape = halved(x))]
    fn flute_gate(x: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        ordinary::gate::<Self>(x, activation)
    }

    /// See [`rotate_append`].
    #[fusion(meta = |qkv, _cos, _sin, slot| RotatedPrimitiveMetadata {
        query: burn::backend::fusion::custom::TensorSpec::new(
            query_shape(&qkv.shape, &slot.keys.shape),
            qkv.dtype,
        ),
        keys: slot.keys.clone(),
        values: slot.values.clone(),
    })]
    fn flute_rotate_append(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        #[extension_type] slot: SlotPrimitive<Self>,
    ) -> RotatedPrimitive<Self> {
        ordinary::rotate_append::<Self>(qkv, cos, sin, slot)
    }

    /// See [`attend`].
    #[fusion(dtype = query, shape = attended(query))]
    fn flute_attend(
        query: FloatTensor<Self>,
        #[extension_type] slot: SlotPrimitive<Self>,
        form: Attend,
    ) -> FloatTensor<Self> {
        ordinary::attend::<Self>(query, slot, form)
    }

    /// See [`attend_next`].
    #[fusion(meta = |qkv, _cos, _sin, slot, _form| NextPrimitiveMetadata {
        y: burn::backend::fusion::custom::TensorSpec::new(
            attended(&query_shape(&qkv.shape, &slot.keys.shape)),
            qkv.dtype,
        ),
        keys: slot.keys.clone(),
        values: slot.values.clone(),
    })]
    fn flute_attend_next(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        #[extension_type] slot: SlotPrimitive<Self>,
        form: Attend,
    ) -> NextPrimitive<Self> {
        next::apart::<Self>(qkv, [cos, sin], slot, form)
    }
}

impl FusedOps for Flex {}

impl<B: Backend, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {}

/// `x / √(mean(x²) + ε) · (gain + offset)` over the last axis, in the type that `form` says; `gain` is f32.
///
/// # Panics
/// If the gain is not as long as the last axis of `x`, or if the device fails.
pub fn norm<const D: usize>(x: Tensor<D>, gain: Tensor<1>, form: Norm) -> Tensor<D> {
    check_gain(x.dims(), &gain);
    Tensor::from_dispatch(Dispatch::flute_norm(x.into_dispatch(), gain.into_dispatch(), form))
}

/// `stream + branch`, in the type of the stream, and its [`norm`], which is that of the sum before it is rounded. The
/// branch may have another type.
///
/// # Panics
/// If the two have different shapes, if the gain is not as long as their last axis, or if the device fails.
pub fn add_norm<const D: usize>(
    stream: Tensor<D>,
    branch: Tensor<D>,
    gain: Tensor<1>,
    form: Norm,
) -> [Tensor<D>; 2] {
    let (found, needed) = (branch.dims(), stream.dims());
    assert!(found == needed, "the branch is {found:?} and the stream {needed:?}");
    check_gain(needed, &gain);
    let [stream, branch] = [stream, branch].map(Tensor::into_dispatch);
    let SumPrimitive { sum, normed } =
        Dispatch::flute_add_norm(stream, branch, gain.into_dispatch(), form);
    [Tensor::from_dispatch(sum), Tensor::from_dispatch(normed)]
}

/// `f(x[.., ..ffn]) · x[.., ffn..]` of `x` `[.., 2·ffn]`, the gate and up parts of one product side by side.
///
/// # Panics
/// If the last axis is odd, or if the device fails.
pub fn gate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    let last = x.dims()[D - 1];
    assert!(last.is_multiple_of(2), "{last} elements are not a gate and as many to be gated");
    Tensor::from_dispatch(Dispatch::flute_gate(x.into_dispatch(), activation))
}

/// Rotates queries and keys by their positions, and appends keys and values to the cache.
///
/// `qkv` `[batch, tokens, (query_heads + 2·key_heads)·dim]` holds q, k and v of a token side by side, in the type of the
/// cache. `rotations` are cosines and sines, each f32 `[64·entries, dim / 2]`, a row for every position that a sequence has
/// an entry for; feature i rotates with i + dim/2, as Hugging Face lays heads out. The token t of a sequence that stands at
/// s goes to position s + t; positions that lie in no block are not stored. The caches are written in place if nobody else holds them, and copied first otherwise.
///
/// # Panics
/// If shapes or types contradict each other, or if the device fails.
pub fn rotate_append(qkv: Tensor<3>, rotations: [Tensor<2>; 2], slot: Slot) -> Rotated {
    check_rotation(&qkv, &rotations, &slot);
    let [cos, sin] = rotations.map(Tensor::into_dispatch);
    let (qkv, slot) = (qkv.into_dispatch(), primitive(slot));
    let RotatedPrimitive { query, keys, values } =
        Dispatch::flute_rotate_append(qkv, cos, sin, slot);
    Rotated {
        query: Tensor::from_dispatch(query),
        keys: Tensor::from_dispatch(keys),
        values: Tensor::from_dispatch(values),
    }
}

/// Attention of the new tokens of each sequence, whose keys and values are in the cache already.
///
/// `query` `[batch, query_heads, tokens, dim]` is in the type of the cache; the head h of it reads the head
/// `h / (query_heads / key_heads)` of keys and values. The token t of a sequence that stands at s sees the positions up to
/// s + t, as many as its window has. The result is `[batch, tokens, query_heads·dim]`, and through the kernels the same
/// bits for every batch and capacity, and in any blocks.
///
/// # Panics
/// If shapes or types contradict each other, or if the device fails.
pub fn attend(query: Tensor<4>, slot: Slot, form: Attend) -> Tensor<3> {
    let ([batch, query_heads, _, found], [_, key_heads, _, dim]) = (query.dims(), slot.keys.dims());
    check_slot(&slot, batch);
    assert!(
        found == dim && query_heads.is_multiple_of(key_heads),
        "queries of {query_heads} heads of {found} do not attend to {key_heads} heads of {dim}"
    );
    let (found, needed) = (query.dtype(), slot.keys.dtype());
    assert!(found == needed, "queries are {found:?} and the cache is {needed:?}");
    let slot = primitive(slot);
    Tensor::from_dispatch(Dispatch::flute_attend(query.into_dispatch(), slot, form))
}

fn check_gain<const D: usize>(dims: [usize; D], gain: &Tensor<1>) {
    let (found, needed, dtype) = (gain.dims()[0], dims[D - 1], gain.dtype());
    assert!(
        found == needed && dtype == DType::F32,
        "the gain has {found} elements of {dtype:?} and the norm needs {needed} of F32"
    );
}

/// Heads of q.
fn check_rotation(qkv: &Tensor<3>, rotations: &[Tensor<2>; 2], slot: &Slot) -> usize {
    let ([batch, _, features], [_, key_heads, _, dim]) = (qkv.dims(), slot.keys.dims());
    let capacity = check_slot(slot, batch);
    assert!(
        dim.is_multiple_of(2) && features.is_multiple_of(dim) && features / dim > 2 * key_heads,
        "q, k and v of {features} are not those of a cache with {key_heads} heads of {dim} for keys and values"
    );
    let (found, needed) = (qkv.dtype(), slot.keys.dtype());
    assert!(found == needed, "q, k and v are {found:?} and the cache is {needed:?}");
    for table in rotations {
        let (found, needed) = (table.dims(), [capacity, dim / 2]);
        assert!(found == needed, "a table of rotations is {found:?} and must be {needed:?}");
    }
    features / dim - 2 * key_heads
}

/// Positions that a sequence may have.
fn check_slot(slot: &Slot, batch: usize) -> usize {
    let (keys, values) = (slot.keys.dims(), slot.values.dims());
    assert!(keys == values, "keys are {keys:?} and values {values:?}");
    let found = slot.start.dims()[0];
    assert!(found == batch, "{found} positions do not say where {batch} sequences stand");
    assert!(
        keys[2] == CACHE_BLOCK,
        "a block has {} positions and must have {CACHE_BLOCK}",
        keys[2]
    );
    let [found, entries] = slot.table.dims();
    assert!(found == batch, "a table for {found} sequences does not say where {batch} are");
    entries * CACHE_BLOCK
}

fn primitive(slot: Slot) -> SlotPrimitive<Dispatch> {
    let Slot { keys, values, start, table } = slot;
    let start = if start.dtype() == DType::I32 { start } else { start.cast(DType::I32) };
    let table = if table.dtype() == DType::I32 { table } else { table.cast(DType::I32) };
    SlotPrimitive {
        keys: keys.into_dispatch(),
        values: values.into_dispatch(),
        start: start.into_dispatch(),
        table: table.into_dispatch(),
    }
}

fn halved(x: &Shape) -> Shape {
    let mut shape = x.clone();
    let last = shape.num_dims() - 1;
    shape[last] /= 2;
    shape
}

fn query_shape(qkv: &Shape, keys: &Shape) -> Shape {
    let (heads, dim) = (keys[1], keys[3]);
    Shape::new([qkv[0], qkv[2] / dim - 2 * heads, qkv[1], dim])
}

fn attended(query: &Shape) -> Shape {
    Shape::new([query[0], query[2], query[1] * query[3]])
}
