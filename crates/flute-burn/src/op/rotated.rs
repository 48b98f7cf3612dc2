//! The product of a rotated x: `y[.., n] = H(x[.., k]) · Wᵀ (+ bias)` in one operation, so that a device may rotate x inside
//! the product where that is faster than a kernel before it ([`flute_cube::rotating`]). Elsewhere, and where gradients
//! are tracked, it is the one operation after the other.

use super::{
    FluteOps, FluteTensors, WeightPrimitive, WeightShape, in_its_type, output_shape, primitive,
};
use crate::hadamard::{HadamardOps, hadamard};
use burn::backend::{
    Backend, Dispatch, DispatchTensor, Flex,
    autodiff::{Autodiff, checkpoint::strategy::CheckpointStrategy},
    backend_extension,
    tensor::FloatTensor,
};
use burn::tensor::Tensor;

/// The operation as Burn's backends offer it. To support one more backend, write `impl RotatedOps for It {}` and take
/// the default body, or replace it.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"), Autodiff)]
pub trait RotatedOps: FluteOps + HadamardOps {
    /// [`FluteOps::flute_qgemm`] of `x` whose blocks of `block` elements are rotated.
    #[fusion(dtype = x, shape = output_shape(x, shape))]
    fn flute_qgemm_rotated(
        x: FloatTensor<Self>,
        #[extension_type] weight: WeightPrimitive<Self>,
        shape: WeightShape,
        block: usize,
    ) -> FloatTensor<Self> {
        Self::flute_qgemm(Self::flute_hadamard(x, block), weight, shape)
    }
}

impl RotatedOps for Flex {}

impl<B, C> RotatedOps for Autodiff<B, C>
where
    B: Backend + FluteOps + HadamardOps,
    C: CheckpointStrategy,
    Self: FluteOps + HadamardOps,
{
}

#[cfg(feature = "cube")]
impl RotatedOps for burn_cubecl::CubeBackend {
    fn flute_qgemm_rotated(
        x: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        shape: WeightShape,
        block: usize,
    ) -> FloatTensor<Self> {
        super::launch::qgemm(x, weight, shape, Some(block))
    }
}

/// [`qgemm`](super::qgemm()) of `x` whose blocks of `block` elements along the last axis are rotated
/// ([`hadamard()`](crate::hadamard::hadamard)); it is rotated before it is cast to the type of the table, where that is
/// another.
///
/// # Panics
/// As [`qgemm`](super::qgemm()) and [`hadamard()`](crate::hadamard::hadamard).
pub fn qgemm_rotated<const D: usize>(
    x: Tensor<D>,
    weight: FluteTensors,
    block: usize,
) -> Tensor<D> {
    let same = x.dtype() == weight.pairs.dtype() && weight.shape.k.is_multiple_of(block.max(1));
    if !same || block < 2 || x.dims().contains(&0) {
        return super::qgemm(hadamard(x, block), weight);
    }
    in_its_type(x, weight, |x, weight| dispatch(x, weight, block))
}

/// Not generic over the rank, as that of the plain product.
fn dispatch(x: DispatchTensor, weight: FluteTensors, block: usize) -> DispatchTensor {
    let shape = weight.shape;
    Dispatch::flute_qgemm_rotated(x, primitive(weight), shape, block)
}
