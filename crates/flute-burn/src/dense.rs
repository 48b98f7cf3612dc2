//! Dense products of few rows, `x[.., k] · Wᵀ`: at the speed of reading the weight on devices that run kernels.
//!
//! The head of a model is often dense, and larger than any other layer: at one row Burn's product, which tiles for a
//! matrix unit, takes several times as long as reading it does. Where the kernel does not serve (too many
//! rows, a weight whose rows do not lie one behind the other, other types, the CPU) it is Burn's product.
//! It is no operation for autodiff: whoever learns multiplies with Burn's own.

use burn::backend::{Backend, Dispatch, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Shape, Tensor};
use flute_cube::Gemv;

/// The operation as Burn's backends offer it. To support one more backend, write `impl DenseOps for It {}` and take the
/// default body, or replace it.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"))]
pub trait DenseOps: Backend {
    /// `x` `[m, k]` times the transposed `weight` `[n, k]`: `[m, n]`. Both have one type.
    #[fusion(dtype = x, shape = product_shape(x, weight))]
    fn flute_dense(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(x, Self::float_swap_dims(weight, 0, 1))
    }
}

impl DenseOps for Flex {}

#[cfg(feature = "cube")]
impl DenseOps for burn_cubecl::CubeBackend {
    fn flute_dense(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        launch::dense(x, weight)
    }
}

/// Whether [`dense`] is the way to multiply `x` by `weight`.
pub(crate) fn serves<const D: usize>(x: &Tensor<D>, weight: &Tensor<2>) -> bool {
    let dims = x.dims();
    let rows: usize = dims[..D - 1].iter().product();
    rows <= Gemv::MAX_ROWS && x.dtype() == weight.dtype() && !x.device().is_autodiff()
}

/// `x[.., k]` times the transposed `weight` `[n, k]`: `[.., n]`, in the type of both.
///
/// # Panics
/// If the two have different types or last axes, or if the device fails.
pub fn dense<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let (mut dims, [n, k]) = (x.dims(), weight.dims());
    let (found, dtypes) = (dims[D - 1], [x.dtype(), weight.dtype()]);
    assert!(found == k, "the last axis of x has {found} elements and the weight needs k = {k}");
    assert!(dtypes[0] == dtypes[1], "x and the weight have different types: {dtypes:?}");
    let rows = dims[..D - 1].iter().product::<usize>();
    let x = x.reshape([rows, k]).without_autodiff().into_dispatch();
    let y = Dispatch::flute_dense(x, weight.without_autodiff().into_dispatch());
    dims[D - 1] = n;
    Tensor::<2>::from_dispatch(y).reshape(dims)
}

fn product_shape(x: &Shape, weight: &Shape) -> Shape {
    Shape::new([x[0], weight[0]])
}

/// From Burn's tensors to a launch.
#[cfg(feature = "cube")]
mod launch {
    use super::{Gemv, product_shape};
    use burn::backend::ops::FloatTensorOps;
    use burn_cubecl::{
        CubeBackend,
        kernel::{
            into_contiguous,
            matmul::{MatmulStrategy, matmul},
        },
        tensor::CubeTensor,
    };

    pub(super) fn dense(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        let x = into_contiguous(x);
        let shape = product_shape(x.meta.shape(), weight.meta.shape());
        let ([m, n], k, dtype) = (shape.dims(), weight.meta.shape()[1], x.dtype);
        let (client, device) = (x.client.clone(), x.device.clone());
        // A buffer of no bytes is not an allocation everywhere; an empty result still gets one element.
        let y = client.empty((m * n).max(1) * dtype.size());
        let y = CubeTensor::new_contiguous(client.clone(), device, shape, y, dtype);
        if let Ok(kernel) = crate::device::kernel_dtype(dtype)
            && let [stride, 1] = weight.meta.strides()[..]
        {
            let problem = Gemv { m, n, k, stride, dtype: kernel };
            match flute_cube::gemv(&client, &problem, [&x.handle, &weight.handle, &y.handle]) {
                Ok(()) => return y,
                Err(error) if error.is_unsupported() => {}
                Err(error) => panic!("[{m}, {k}] by a dense [{n}, {k}]: {error}"),
            }
        }
        let transposed = CubeBackend::float_swap_dims(weight, 0, 1);
        let product = matmul(x, transposed, Some(y), MatmulStrategy::default(), dtype);
        product.unwrap_or_else(|e| panic!("dense product of [{m}, {k}] by [{n}, {k}]: {e:?}"))
    }
}
