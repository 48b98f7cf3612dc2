//! The rotation that a layer of a rotated weight applies to its activations.

use crate::hadamard;
use burn::tensor::Tensor;

/// What a layer with a rotated weight does to its activations first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Elements that are rotated together ([`hadamard::hadamard`]).
    pub block: usize,
    /// Input features; the weight's k is the next multiple of the block, and activations are padded with zeros.
    pub in_features: usize,
}

impl Rotation {
    /// `x` padded and rotated as the weight is.
    ///
    /// # Panics
    /// If the last axis of `x` has another length than the layer takes.
    pub(super) fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let Self { block, in_features } = self;
        let found = x.dims()[D - 1];
        assert!(
            found == in_features,
            "the last axis of x has {found} elements and the layer takes {in_features}"
        );
        let missing = in_features.next_multiple_of(block) - in_features;
        let x = if missing == 0 {
            x
        } else {
            let mut shape = x.dims();
            shape[D - 1] = missing;
            let zeros = Tensor::zeros(shape, (&x.device(), x.dtype()));
            Tensor::cat(vec![x, zeros], D - 1)
        };
        hadamard::hadamard(x, block)
    }
}
