//! The Hadamard transform: an orthonormal rotation that spreads outliers over a whole block.
//!
//! A weight that was rotated before it was quantized (HIGGS, arXiv 2411.17525) meets activations rotated the same way:
//! `(x H) · (W H)ᵀ = x · Wᵀ`, since H Hᵀ = 1. H is Sylvester's matrix of ±1 divided by the square root of its size; it
//! is symmetric, so that the transform is its own inverse. Blocks are powers of two up to [`MAX_BLOCK`]; the constructors
//! refuse others. A *random* rotation gives the elements of every block [`signs`] first, the same in weights and
//! activations: then there is no weight, however regular, whose blocks it leaves with all of their length in one element.
//!
//! On CUDA and wgpu it is one kernel, [`flute_cube::hadamard()`]. Elsewhere, and where a device refuses that one, it is a
//! chain of additions and subtractions, log₂(block) steps in f32, and not a product with H: on tensor cores a product of
//! f32 matrices rounds to 11 bits. On devices with autodiff its gradient is the rotated gradient.

use crate::error::{Error, Result};
use burn::backend::autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{
    Backend, Dispatch, Flex, TensorMetadata, backend_extension, tensor::FloatTensor,
};
use burn::tensor::{FloatDType, Shape, Slice, Tensor};

/// The largest block.
pub const MAX_BLOCK: usize = flute_cube::Hadamard::MAX_BLOCK;

/// Checks that blocks of `size` can be rotated.
///
/// # Errors
/// [`Error::InvalidOption`] unless `size` is a power of two from 2 to [`MAX_BLOCK`].
pub fn check_block(size: usize) -> Result<()> {
    if size.is_power_of_two() && (2..=MAX_BLOCK).contains(&size) {
        return Ok(());
    }
    let needed = format!("a power of two from 2 to {MAX_BLOCK}");
    Err(Error::InvalidOption { name: "hadamard_size", found: size.to_string(), needed })
}

/// The operation as Burn's backends offer it. To support one more backend, write `impl HadamardOps for It {}` and take
/// the default body, or replace it.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"), Autodiff)]
pub trait HadamardOps: Backend {
    /// Blocks of `block` elements of `x`, which they divide along its last axis, rotated.
    #[fusion(dtype = x, shape = x)]
    fn flute_hadamard(x: FloatTensor<Self>, block: usize) -> FloatTensor<Self> {
        chain::<Self>(x, block)
    }
}

impl HadamardOps for Flex {}

#[cfg(feature = "cube")]
impl HadamardOps for burn_cubecl::CubeBackend {
    fn flute_hadamard(x: FloatTensor<Self>, block: usize) -> FloatTensor<Self> {
        launch(x, block)
    }
}

impl<B: Backend + HadamardOps, C: CheckpointStrategy> HadamardOps for Autodiff<B, C> {
    fn flute_hadamard(x: FloatTensor<Self>, block: usize) -> FloatTensor<Self> {
        match Gradient.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish(block, B::flute_hadamard(x.into_primitive(), block))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::flute_hadamard(x.into_primitive(), block))
            }
        }
    }
}

#[derive(Debug)]
struct Gradient;

impl<B: Backend + HadamardOps> Backward<B, 1> for Gradient {
    type State = usize;

    fn backward(self, ops: Ops<usize, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            // H is its own transpose.
            grads.register::<B>(node.id, B::flute_hadamard(grad, ops.state));
        }
    }
}

/// Rotates blocks of `block` elements along the last axis of `x`, in f32; the result has the type of `x`.
///
/// # Panics
/// If `block` is no power of two, does not divide the last axis or exceeds [`MAX_BLOCK`], or if the device fails.
pub fn hadamard<const D: usize>(x: Tensor<D>, block: usize) -> Tensor<D> {
    let shape = x.dims();
    let last = shape[D - 1];
    assert!(
        block.is_power_of_two() && block <= MAX_BLOCK && last.is_multiple_of(block),
        "blocks of {block} do not rotate an axis of {last} elements"
    );
    if block == 1 || shape.contains(&0) {
        return x;
    }
    Tensor::from_dispatch(Dispatch::flute_hadamard(x.into_dispatch(), block))
}

/// The default body.
fn chain<B: Backend>(x: FloatTensor<B>, block: usize) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), FloatDType::from(x.dtype()));
    let len = shape.num_elements();
    let (mut parts, mut half) = (len / block, block / 2);
    let mut x = B::float_cast(x, FloatDType::F32);
    while half > 0 {
        let pairs = B::float_reshape(x, Shape::new([parts, 2, half]));
        let side = |at: usize| {
            let slices = [Slice::from(0..parts), Slice::from(at..at + 1), Slice::from(0..half)];
            B::float_slice(pairs.clone(), &slices)
        };
        let (a, b) = (side(0), side(1));
        let sum = B::float_add(a.clone(), b.clone());
        x = B::float_cat(vec![sum, B::float_sub(a, b)], 1);
        (parts, half) = (parts * 2, half / 2);
    }
    let x = B::float_div_scalar(x, (block as f32).sqrt().into());
    B::float_cast(B::float_reshape(x, shape), dtype)
}

/// The kernel, or the chain where the device refuses it.
#[cfg(feature = "cube")]
fn launch(x: burn_cubecl::tensor::CubeTensor, block: usize) -> burn_cubecl::tensor::CubeTensor {
    use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
    let Ok(dtype) = crate::device::kernel_dtype(x.dtype) else {
        return chain::<CubeBackend>(x, block);
    };
    let x = into_contiguous(x);
    let (shape, len) = (x.meta.shape().clone(), x.meta.shape().num_elements());
    let y = x.client.empty(len * dtype.size());
    let problem = flute_cube::Hadamard { rows: len / block, block, dtype };
    match flute_cube::hadamard(&x.client, &problem, &x.handle, &y) {
        Ok(()) => CubeTensor::new_contiguous(x.client, x.device, shape, y, x.dtype),
        Err(error) if error.is_unsupported() => chain::<CubeBackend>(x, block),
        Err(error) => panic!("rotating {} blocks of {block}: {error}", problem.rows),
    }
}

/// Rotates blocks of `block` of `values` on the host.
///
/// # Panics
/// If `block` is no power of two or does not divide the length.
pub fn rotate(values: &mut [f32], block: usize) {
    assert!(
        block.is_power_of_two() && values.len().is_multiple_of(block),
        "blocks of {block} do not rotate {} values",
        values.len()
    );
    let norm = 1.0 / (block as f32).sqrt();
    for values in values.chunks_exact_mut(block) {
        let mut half = block / 2;
        while half > 0 {
            for pair in values.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half /= 2;
        }
        values.iter_mut().for_each(|value| *value *= norm);
    }
}

/// The signs of a random rotation, 1 or −1 for each place of a block: −1 where the highest bit of that output of
/// splitmix64, begun at `seed`, is set. Files hold the seed alone, so this is part of their format.
pub fn signs(seed: u32, block: usize) -> Vec<f32> {
    let mut state = u64::from(seed);
    let next = |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) >> 63 == 1 { -1.0 } else { 1.0 }
    };
    (0..block).map(next).collect()
}

/// The blocks of `row` times `signs`, if there are any.
fn sign(row: &mut [f32], signs: Option<&[f32]>) {
    if let Some(signs) = signs {
        for block in row.chunks_mut(signs.len()) {
            block.iter_mut().zip(signs).for_each(|(value, sign)| *value *= sign);
        }
    }
}

/// Rows of `k` values as rows of the next multiple of `block`, padded with zeros and rotated, with the signs of `seed`
/// if there is one.
pub(crate) fn rotated_rows(values: &[f32], k: usize, block: usize, seed: Option<u32>) -> Vec<f32> {
    use rayon::prelude::*;
    let (stored, signs) = (k.next_multiple_of(block), seed.map(|seed| signs(seed, block)));
    let mut rotated = vec![0.0; values.len() / k * stored];
    rotated.par_chunks_mut(stored).zip(values.par_chunks(k)).for_each(|(rotated, row)| {
        rotated[..k].copy_from_slice(row);
        sign(rotated, signs.as_deref());
        rotate(rotated, block);
    });
    rotated
}

/// The inverse of [`rotated_rows`]: rows of the rotated, padded weight back to rows of `k`.
pub(crate) fn restored_rows(
    mut rotated: Vec<f32>,
    k: usize,
    block: usize,
    seed: Option<u32>,
) -> Vec<f32> {
    use rayon::prelude::*;
    let (stored, signs) = (k.next_multiple_of(block), seed.map(|seed| signs(seed, block)));
    rotated.par_chunks_mut(stored).for_each(|row| {
        rotate(row, block);
        sign(row, signs.as_deref());
    });
    if stored == k {
        return rotated;
    }
    rotated.chunks(stored).flat_map(|row| &row[..k]).copied().collect()
}
