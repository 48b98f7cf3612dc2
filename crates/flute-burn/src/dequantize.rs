//! Decoding: a packed weight back to a dense `[n, k]`, on the device that it lives on.
//!
//! For those who need the weight itself: modules whose source multiplies by a dense weight ([`mod@crate::module`]), and
//! products of many rows. Like [`op`](crate::op) it enters Burn as a backend extension. Autodiff does not follow it:
//! codes, scales and table are constants here, and so is the result.

use crate::op::{BiasPrimitive, FluteTensors, WeightPrimitive, WeightShape, decoded_on_host};
use burn::backend::{
    Backend, Dispatch, Flex, TensorMetadata, backend_extension, tensor::FloatTensor,
};
use burn::tensor::{FloatDType, Shape, Tensor, TensorData};

/// The operation as Burn's backends offer it. To support one more backend, write `impl DequantizeOps for It {}` and
/// take the default body, or replace it.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"))]
pub trait DequantizeOps: Backend {
    /// The weight `[n, k]` in the type of the scales, each element rounded once. The bias plays no part.
    #[fusion(dtype = weight.scales.dtype, shape = output_shape(shape))]
    fn flute_dequantize(
        #[extension_type] weight: WeightPrimitive<Self>,
        shape: WeightShape,
    ) -> FloatTensor<Self> {
        let (device, dtype) = (weight.scales.device(), FloatDType::from(weight.scales.dtype()));
        let out = output_shape(&shape);
        let dense = TensorData::new(decoded_on_host(weight, shape), out);
        Self::float_cast(Self::float_from_data(dense, &device), dtype)
    }
}

impl DequantizeOps for Flex {}

#[cfg(feature = "cube")]
impl DequantizeOps for burn_cubecl::CubeBackend {
    fn flute_dequantize(weight: WeightPrimitive<Self>, shape: WeightShape) -> FloatTensor<Self> {
        launch::dequantize(weight, shape)
    }
}

/// `weight` as a dense `[n, k]` in the type of its scales, without its bias. For autodiff it is a constant.
///
/// # Panics
/// If the device fails.
pub fn dequantize(weight: FluteTensors) -> Tensor<2> {
    let FluteTensors { words, scales, pairs, shape, .. } = weight;
    let weight = WeightPrimitive {
        words: words.without_autodiff().into_dispatch(),
        scales: scales.without_autodiff().into_dispatch(),
        pairs: pairs.without_autodiff().into_dispatch(),
        bias: BiasPrimitive::None,
    };
    Tensor::from_dispatch(Dispatch::flute_dequantize(weight, shape))
}

fn output_shape(weight: &WeightShape) -> Shape {
    Shape::new([weight.n, weight.k])
}

#[cfg(feature = "cube")]
mod launch {
    use super::{WeightPrimitive, WeightShape, output_shape};
    use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
    use flute_cube::{Operands, Problem};

    pub(super) fn dequantize(
        weight: WeightPrimitive<CubeBackend>,
        shape: WeightShape,
    ) -> CubeTensor {
        let WeightShape { n, k, format } = shape;
        let scales = into_contiguous(weight.scales);
        let (client, device, dtype) = (scales.client.clone(), scales.device.clone(), scales.dtype);
        let words = into_contiguous(weight.words).handle;
        let dense = client.empty(n * k * dtype.size());
        let operands = Operands {
            // Neither is looked at: there are no rows.
            x: words.clone(),
            y: words.clone(),
            words,
            scales: scales.handle,
            pairs: into_contiguous(weight.pairs).handle,
            bias: None,
        };
        let decoded = crate::device::kernel_dtype(dtype).and_then(|dtype| {
            let problem = Problem { m: 0, n, k, format, dtype, bias: false, gate: None };
            Ok(flute_cube::decode(&client, &problem, operands, &dense)?)
        });
        if let Err(error) = decoded {
            panic!("decoding a weight of [{n}, {k}] {format}: {error}");
        }
        CubeTensor::new_contiguous(client, device, output_shape(&shape), dense, dtype)
    }
}
