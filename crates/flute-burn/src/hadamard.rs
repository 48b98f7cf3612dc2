//! The Hadamard transform: an orthonormal rotation that spreads outliers over a whole block.
//!
//! A weight that was rotated before it was quantized (HIGGS, arXiv 2411.17525) meets activations rotated the same way:
//! `(x H) · (W H)ᵀ = x · Wᵀ`, since H Hᵀ = 1. H is Sylvester's matrix of ±1 divided by the square root of its size; it
//! is symmetric, so that the transform is its own inverse. Blocks are powers of two up to [`MAX_BLOCK`]; the constructors
//! refuse others.
//!
//! On tensors it is a chain of additions and subtractions, log₂(block) steps in f32, and not a product with H: on
//! tensor cores a product of f32 matrices rounds to 11 bits.

use crate::error::{Error, Result};
use burn::tensor::{DType, Tensor};

/// The largest block.
pub const MAX_BLOCK: usize = 1 << 15;

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

/// Rotates blocks of `block` elements along the last axis of `x`, in f32; the result has the type of `x`.
///
/// # Panics
/// If `block` is no power of two or does not divide the last axis.
pub fn hadamard<const D: usize>(x: Tensor<D>, block: usize) -> Tensor<D> {
    let (shape, dtype) = (x.dims(), x.dtype());
    let last = shape[D - 1];
    assert!(
        block.is_power_of_two() && last.is_multiple_of(block),
        "blocks of {block} do not rotate an axis of {last} elements"
    );
    let rows = shape.iter().product::<usize>() / block;
    if rows == 0 {
        return x;
    }
    let x = if dtype == DType::F32 { x } else { x.cast(DType::F32) };
    let (mut parts, mut half) = (rows, block / 2);
    let mut x = x.reshape([rows * block]);
    while half > 0 {
        let pairs = x.reshape([parts, 2, half]);
        let a = pairs.clone().slice([0..parts, 0..1, 0..half]);
        let b = pairs.slice([0..parts, 1..2, 0..half]);
        x = Tensor::cat(vec![a.clone() + b.clone(), a - b], 1).reshape([rows * block]);
        (parts, half) = (parts * 2, half / 2);
    }
    let x = (x / (block as f32).sqrt()).reshape(shape);
    if dtype == DType::F32 { x } else { x.cast(dtype) }
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

/// Rows of `k` values as rows of the next multiple of `block`, padded with zeros and rotated.
pub(crate) fn rotated_rows(values: &[f32], k: usize, block: usize) -> Vec<f32> {
    use rayon::prelude::*;
    let stored = k.next_multiple_of(block);
    let mut rotated = vec![0.0; values.len() / k * stored];
    rotated.par_chunks_mut(stored).zip(values.par_chunks(k)).for_each(|(rotated, row)| {
        rotated[..k].copy_from_slice(row);
        rotate(rotated, block);
    });
    rotated
}

/// The inverse of [`rotated_rows`]: rows of the rotated, padded weight back to rows of `k`.
pub(crate) fn restored_rows(mut rotated: Vec<f32>, k: usize, block: usize) -> Vec<f32> {
    use rayon::prelude::*;
    let stored = k.next_multiple_of(block);
    rotated.par_chunks_mut(stored).for_each(|row| rotate(row, block));
    if stored == k {
        return rotated;
    }
    rotated.chunks(stored).flat_map(|row| &row[..k]).copied().collect()
}
