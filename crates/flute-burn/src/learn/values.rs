//! What a layer has learned, back in the order of files.

use crate::device;
use crate::error::{Error, Result};
use crate::linear::FluteLinear;
use burn::tensor::Tensor;
use flute_cube::pack::{BLOCK_K, BLOCK_ROWS};

/// The trained part of a weight.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedWeight {
    /// `[n, groups]`, not yet rounded to the type they will be stored in.
    pub scales: Vec<f32>,
    /// The pair table `[2^(2·bits), 2]`.
    pub pairs: Vec<[f32; 2]>,
}

impl LearnedWeight {
    /// The table as it is stored: of values if a code names one weight, of pairs if it names two.
    pub fn table(&self, dim: usize) -> Vec<f32> {
        // The second code of these pairs is 0, and the first runs through all.
        let codes = self.pairs.len().isqrt();
        match dim {
            1 => self.pairs.iter().take(codes).map(|[even, _]| *even).collect(),
            _ => self.pairs.as_flattened().to_vec(),
        }
    }
}

/// Scales and table of `linear`, of which a [`Learner`](super::Learner) keeps the scales in f32.
///
/// # Errors
/// [`Error::DeviceFailed`] if they cannot be read.
pub fn learned_weight(linear: &FluteLinear) -> Result<LearnedWeight> {
    let shape = linear.shape();
    let groups = shape.format.group.count(shape.k);
    let padded = shape.format.group.count(shape.k.next_multiple_of(BLOCK_K));
    let rows = shape.n.next_multiple_of(BLOCK_ROWS);
    // Kernel order is [tile][group][row mod 8][row / 8] ([`flute_cube::pack`]).
    let scales = linear.scales.val().without_autodiff();
    let scales = scales.reshape([rows / BLOCK_ROWS, padded, BLOCK_ROWS / 2, 2]);
    let scales = scales.permute([0, 3, 2, 1]).reshape([rows, padded]);
    let scales = host(scales.slice([0..shape.n, 0..groups]))?;
    let pairs = host(linear.pairs.val().without_autodiff())?;
    Ok(LearnedWeight { scales, pairs: pairs.as_chunks().0.to_vec() })
}

pub(super) fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let device = tensor.device();
    tensor.try_into_vec_as::<f32>().map_err(|error| Error::DeviceFailed {
        device: device::name(&device),
        reason: format!("it could not read back what was learned: {error}"),
    })
}
