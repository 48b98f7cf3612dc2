//! The rotation that a layer of a rotated weight applies to its activations.

use super::FluteLinear;
use crate::hadamard;
use burn::module::Param;
use burn::tensor::Tensor;

/// What a layer with a rotated weight does to its activations first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Elements that are rotated together ([`hadamard::hadamard`]).
    pub block: usize,
    /// Input features; the weight's k is the next multiple of the block, and activations are padded with zeros.
    pub in_features: usize,
    /// Of the signs that elements take before they are rotated ([`hadamard::signs`]); none for a plain rotation.
    pub seed: Option<u32>,
}

impl Rotation {
    /// `x` padded, times `signs` (`[k]`, if the rotation is random), and rotated as the weight is.
    ///
    /// # Panics
    /// If the last axis of `x` has another length than the layer takes.
    fn apply<const D: usize>(self, x: Tensor<D>, signs: Option<Tensor<1>>) -> Tensor<D> {
        let Self { block, in_features, .. } = self;
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
        let x = match signs {
            Some(signs) => signed(x, signs),
            None => x,
        };
        hadamard::hadamard(x, block)
    }
}

impl FluteLinear {
    /// Activations as the weight wants them.
    ///
    /// # Panics
    /// As [`Rotation::apply`].
    pub(super) fn rotated<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self.rotation {
            Some(rotation) => rotation.apply(x, self.signs.as_ref().map(Param::val)),
            None => x,
        }
    }

    /// Rows of the weight as the layer stores it, `[rows, k]`, as they were before any rotation: `[rows, in_features]`.
    pub(crate) fn restored(&self, rows: Tensor<2>) -> Tensor<2> {
        let Some(Rotation { block, in_features, .. }) = self.rotation else { return rows };
        // The transform is its own inverse, and so are signs.
        let rows = hadamard::hadamard(rows, block);
        let rows = match &self.signs {
            Some(signs) => signed(rows, signs.val().without_autodiff()),
            None => rows,
        };
        rows.narrow(1, 0, in_features)
    }
}

/// The last axis of `x` times `signs`.
fn signed<const D: usize>(x: Tensor<D>, signs: Tensor<1>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[D - 1] = signs.dims()[0];
    let signs = signs.cast(x.dtype()).reshape(shape);
    x * signs
}
