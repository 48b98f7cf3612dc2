//! Rows of a packed weight by their numbers: the lookup of an embedding that is stored in codes.
//!
//! Like [`op`](crate::op) it enters Burn as a backend extension: a kernel on devices that run kernels, a default body on
//! the others. For autodiff the rows are constants.

use crate::linear::FluteLinear;
use crate::op::{BiasPrimitive, FluteTensors, WeightPrimitive, WeightShape, packed_on_host};
use burn::backend::{
    Backend, Dispatch, Flex, TensorMetadata, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, FloatDType, Int, Shape, Tensor, TensorData, read_sync};

/// The operation as Burn's backends offer it. To support one more backend, write `impl RowOps for It {}` and take the
/// default body, or replace it.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"))]
pub trait RowOps: Backend {
    /// The rows `ids` (i32, `[m]`) of the weight: `[m, k]` in the type of the scales, each element rounded once. The bias
    /// plays no part.
    #[fusion(dtype = weight.scales.dtype, shape = output_shape(ids, shape))]
    fn flute_rows(
        ids: IntTensor<Self>,
        #[extension_type] weight: WeightPrimitive<Self>,
        shape: WeightShape,
    ) -> FloatTensor<Self> {
        let (device, dtype) = (weight.scales.device(), FloatDType::from(weight.scales.dtype()));
        let out = output_shape(&ids.shape(), &shape);
        let ids = read_sync(Self::int_into_data(ids))
            .unwrap_or_else(|error| panic!("reading the numbers of rows: {error}"));
        let ids: Vec<usize> = ids.iter::<i64>().map(|id| id as usize).collect();
        let rows = TensorData::new(packed_on_host(weight, shape).rows(&ids), out);
        Self::float_cast(Self::float_from_data(rows, &device), dtype)
    }
}

impl RowOps for Flex {}

#[cfg(feature = "cube")]
impl RowOps for burn_cubecl::CubeBackend {
    fn flute_rows(
        ids: IntTensor<Self>,
        weight: WeightPrimitive<Self>,
        shape: WeightShape,
    ) -> FloatTensor<Self> {
        launch::rows(ids, weight, shape)
    }
}

/// The rows `ids` `[m]` of `weight`, `[m, k]` in the type of its table, without its bias.
///
/// # Panics
/// If the device fails. Numbers beyond the last row give some row of it, or panic on the CPU.
pub fn rows(ids: Tensor<1, Int>, weight: FluteTensors) -> Tensor<2> {
    let FluteTensors { words, scales, pairs, shape, .. } = weight;
    let scales = scales.without_autodiff();
    let scales = if scales.dtype() == pairs.dtype() { scales } else { scales.cast(pairs.dtype()) };
    let weight = WeightPrimitive {
        words: words.without_autodiff().into_dispatch(),
        scales: scales.into_dispatch(),
        pairs: pairs.without_autodiff().into_dispatch(),
        bias: BiasPrimitive::None,
    };
    let ids = ids.without_autodiff().cast(DType::I32);
    Tensor::from_dispatch(Dispatch::flute_rows(ids.into_dispatch(), weight, shape))
}

impl FluteLinear {
    /// Rows of its weight as they were before any rotation: of `ids` `[batch, tokens]` the `[batch, tokens, in features]`.
    ///
    /// # Panics
    /// As [`rows`].
    pub fn rows(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let [batch, tokens] = ids.dims();
        let rows = rows(ids.reshape([batch * tokens]), self.tensors());
        self.restored(rows).reshape([batch, tokens, self.in_features()])
    }
}

fn output_shape(ids: &Shape, weight: &WeightShape) -> Shape {
    Shape::new([ids.num_elements(), weight.k])
}

#[cfg(feature = "cube")]
mod launch {
    use super::{WeightPrimitive, WeightShape, output_shape};
    use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
    use flute_cube::{Problem, RowOperands};

    pub(super) fn rows(
        ids: CubeTensor,
        weight: WeightPrimitive<CubeBackend>,
        shape: WeightShape,
    ) -> CubeTensor {
        let WeightShape { n, k, format } = shape;
        let (ids, scales) = (into_contiguous(ids), into_contiguous(weight.scales));
        let (client, device, dtype) = (scales.client.clone(), scales.device.clone(), scales.dtype);
        let out = output_shape(ids.meta.shape(), &shape);
        let m = out.num_elements() / k;
        let y = client.empty((m * k).max(1) * dtype.size());
        let operands = RowOperands {
            words: into_contiguous(weight.words).handle,
            scales: scales.handle,
            pairs: into_contiguous(weight.pairs).handle,
            ids: ids.handle,
        };
        let done = crate::device::kernel_dtype(dtype).and_then(|dtype| {
            let problem = Problem { m, n, k, format, dtype, bias: false, gate: None };
            Ok(flute_cube::rows(&client, &problem, &operands, &y)?)
        });
        if let Err(error) = done {
            panic!("{m} rows of a weight of [{n}, {k}] {format}: {error}");
        }
        CubeTensor::new_contiguous(client, device, out, y, dtype)
    }
}
