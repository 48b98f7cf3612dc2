//! The operation: `y[.., n] = x[.., k] · Wᵀ (+ bias)` with W stored as codes, for every backend of Burn.
//!
//! It enters Burn through its backend extension, so it works on plain, fused and CPU devices alike:
//!
//! | device | what runs |
//! |---|---|
//! | CUDA, wgpu (Vulkan, Metal, WebGPU), ROCm | [`flute_cube::qgemm`], or for many rows [`flute_cube::decode`] and a dense product; queued like any other operation |
//! | the same under Burn's fusion | one opaque node of the fused graph, executed lazily |
//! | CPU (Flex), or any backend that adopts [`FluteOps`] | the default body: weights back to f32, then Burn's matmul |
//!
//! On a device with autodiff it has a gradient for x, scales, table and bias (`backward`); codes are constants.
//!
//! An operation of Burn returns a tensor, never a `Result`, so nothing may be left to refuse here: the constructors of
//! [`FluteLinear`](crate::linear::FluteLinear) check shape, type and device. What still fails at the launch (a lost
//! device, a kernel that the driver does not compile) panics with the whole error, as Burn's own operations do.

mod backward;

use burn::backend::{
    Backend, Dispatch, DispatchTensor, ExtensionType, Flex, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, FloatDType, Int, Shape, Tensor, TensorData, read_sync};
use flute_cube::{Format, PackedWeight};
use std::sync::Once;

/// What the buffers of a weight cannot say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightShape {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Bits and group.
    pub format: Format,
}

/// A packed weight on a device: what [`qgemm`] multiplies by.
#[derive(Clone, Debug)]
pub struct FluteTensors {
    /// Pair indices in kernel order: the bits of u32 words, carried as I32, the one integer type that all of Burn's
    /// backends and record formats keep bit for bit.
    pub words: Tensor<1, Int>,
    /// Scales in kernel order.
    pub scales: Tensor<1>,
    /// The pair table `[2^(2·bits) · 2]`, of the type of `scales`. Flat, since the rows of a matrix may be padded on a
    /// device, and every call would copy it first.
    pub pairs: Tensor<1>,
    /// `[n]`, of the type of `scales`.
    pub bias: Option<Tensor<1>>,
    /// Shape and format.
    pub shape: WeightShape,
}

/// [`FluteTensors`] as a backend sees them.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct WeightPrimitive<B: Backend> {
    /// See [`FluteTensors::words`].
    pub words: IntTensor<B>,
    /// See [`FluteTensors::scales`].
    pub scales: FloatTensor<B>,
    /// See [`FluteTensors::pairs`].
    pub pairs: FloatTensor<B>,
    /// See [`FluteTensors::bias`].
    #[extension_type]
    pub bias: BiasPrimitive<B>,
}

/// A bias, or none.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub enum BiasPrimitive<B: Backend> {
    /// No bias.
    None,
    /// `[n]`.
    Some(FloatTensor<B>),
}

/// The operation as Burn's backends offer it. To support one more backend, write `impl FluteOps for It {}` and take
/// the default body, or replace it.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"), Autodiff)]
pub trait FluteOps: Backend {
    /// `x[.., k]` times the transposed weight, plus the bias: `[.., n]` in the type of `x`, which is that of the
    /// scales.
    #[fusion(dtype = x, shape = output_shape(x, shape))]
    fn flute_qgemm(
        x: FloatTensor<Self>,
        #[extension_type] weight: WeightPrimitive<Self>,
        shape: WeightShape,
    ) -> FloatTensor<Self> {
        dequantize_then_matmul::<Self>(x, weight, shape)
    }
}

impl FluteOps for Flex {}

#[cfg(feature = "cube")]
impl FluteOps for burn_cubecl::CubeBackend {
    fn flute_qgemm(
        x: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        shape: WeightShape,
    ) -> FloatTensor<Self> {
        launch::qgemm(x, weight, shape)
    }
}

/// `y[.., n] = x[.., k] · Wᵀ (+ bias)`, in the type of `x`.
///
/// The product is computed in the type that the table is stored in (sums in f32, one rounding at the end): where `x`
/// has another type it is cast to that one first, and the result back. Scales that are learned are f32 whatever that
/// type is, and cast to it here; their gradient is f32 again.
///
/// # Panics
/// If the last axis of `x` is not `weight.shape.k`, if the two live on different devices, or if the device fails.
pub fn qgemm<const D: usize>(x: Tensor<D>, weight: FluteTensors) -> Tensor<D> {
    let (found, k) = (x.dims()[D - 1], weight.shape.k);
    assert!(found == k, "the last axis of x has {found} elements and the weight needs k = {k}");
    let (outer, inner) = (x.dtype(), weight.pairs.dtype());
    let x = if outer == inner { x } else { x.cast(inner) };
    let weight = if weight.scales.dtype() == inner {
        weight
    } else {
        FluteTensors { scales: weight.scales.cast(inner), ..weight }
    };
    let y = Tensor::from_dispatch(dispatch(x.into_dispatch(), weight));
    if outer == inner { y } else { y.cast(outer) }
}

/// Not generic over the rank, so that Burn's whole backend tree is compiled once.
fn dispatch(x: DispatchTensor, weight: FluteTensors) -> DispatchTensor {
    let FluteTensors { words, scales, pairs, bias, shape } = weight;
    let bias = match bias {
        Some(bias) => BiasPrimitive::Some(bias.into_dispatch()),
        None => BiasPrimitive::None,
    };
    let (words, scales) = (words.into_dispatch(), scales.into_dispatch());
    let weight = WeightPrimitive { words, scales, pairs: pairs.into_dispatch(), bias };
    Dispatch::flute_qgemm(x, weight, shape)
}

fn output_shape(x: &Shape, weight: &WeightShape) -> Shape {
    let mut shape = x.clone();
    let last = shape.num_dims() - 1;
    shape[last] = weight.n;
    shape
}

/// The default body: correct on every backend, and slow, since each call decodes the whole weight on the host.
fn dequantize_then_matmul<B: Backend>(
    x: FloatTensor<B>,
    weight: WeightPrimitive<B>,
    shape: WeightShape,
) -> FloatTensor<B> {
    use burn::backend::TensorMetadata;
    static ONCE: Once = Once::new();
    let (device, dtype, out) = (x.device(), x.dtype(), output_shape(&x.shape(), &shape));
    ONCE.call_once(|| {
        tracing::warn!(
            backend = B::name(&device),
            "no kernel serves this device: quantized layers are decoded on the CPU at every call"
        );
    });
    let WeightShape { n, k, .. } = shape;
    let bias = weight.bias.clone();
    let dense = TensorData::new(decoded_on_host(weight, shape), [n, k]);

    let m = out.num_elements() / n;
    let x = B::float_cast(B::float_reshape(x, Shape::new([m, k])), FloatDType::F32);
    let w = B::float_from_data(dense, &device);
    let mut y = B::float_matmul(x, B::float_swap_dims(w, 0, 1));
    if let BiasPrimitive::Some(bias) = bias {
        let bias = B::float_cast(B::float_reshape(bias, Shape::new([1, n])), FloatDType::F32);
        y = B::float_add(y, bias);
    }
    B::float_reshape(B::float_cast(y, dtype.into()), out)
}

/// The weight `[n, k]` in f32, for backends without kernels.
pub(crate) fn decoded_on_host<B: Backend>(
    weight: WeightPrimitive<B>,
    shape: WeightShape,
) -> Vec<f32> {
    packed_on_host(weight, shape).dequantize()
}

/// The weight as the host packed it.
pub(crate) fn packed_on_host<B: Backend>(
    weight: WeightPrimitive<B>,
    shape: WeightShape,
) -> PackedWeight {
    let WeightShape { n, k, format } = shape;
    let words = words(read("words", B::int_into_data(weight.words)));
    let scales = floats(read("scales", B::float_into_data(weight.scales)));
    let pairs = floats(read("pairs", B::float_into_data(weight.pairs))).as_chunks().0.to_vec();
    PackedWeight { n, k, format, words, scales, pairs }
}

fn read<E: std::fmt::Display>(
    what: &str,
    data: impl Future<Output = Result<TensorData, E>>,
) -> TensorData {
    read_sync(data).unwrap_or_else(|error| panic!("reading {what} of a packed weight: {error}"))
}

fn words(data: TensorData) -> Vec<u32> {
    match data.dtype() {
        DType::I32 | DType::U32 => {
            data.as_bytes().as_chunks().0.iter().map(|b| u32::from_ne_bytes(*b)).collect()
        }
        // Only a record written by something else can hold these; values, not bits, are what it kept.
        _ => data.iter::<i64>().map(|word| word as u32).collect(),
    }
}

fn floats(data: TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}

/// From Burn's tensors to a launch.
#[cfg(feature = "cube")]
mod launch {
    use super::{BiasPrimitive, WeightPrimitive, WeightShape, output_shape};
    use burn::{backend::ops::FloatTensorOps, tensor::Shape};
    use burn_cubecl::{
        CubeBackend,
        kernel::{
            into_contiguous,
            matmul::{MatmulStrategy, matmul},
        },
        tensor::CubeTensor,
    };
    use flute_cube::{Operands, Plan, Problem, tune};

    /// Rows of x from which on the weight is decoded once and multiplied by Burn's dense product, unless the streaming
    /// kernel multiplies or `flute_cube` has the vendor's dense product.
    /// The other kernels decode it anew for every tile of at most 64 rows: at 256 rows that took 458 µs for 28672 × 4096
    /// on an H200, where decoding (300 MB of traffic) and cuBLAS's dense product (94 µs) would take less than 200, a
    /// computed border. The streaming kernel takes 97 µs there and 359 at 1024 rows (670 TFLOP/s), where a whole
    /// model's prompt went through decoding and the untuned product at 48 TFLOP/s.
    const DENSE_FROM: usize = 129;

    pub(super) fn qgemm(
        x: CubeTensor,
        weight: WeightPrimitive<CubeBackend>,
        shape: WeightShape,
    ) -> CubeTensor {
        let WeightShape { n, k, format } = shape;
        let x = into_contiguous(x);
        let out = output_shape(x.meta.shape(), &shape);
        let m = out.num_elements() / n;
        let (client, device, dtype) = (x.client.clone(), x.device.clone(), x.dtype);
        // A buffer of no bytes is not an allocation everywhere; an empty result still gets one element.
        let y = client.empty((m * n).max(1) * dtype.size());
        let bias = match weight.bias {
            BiasPrimitive::None => None,
            BiasPrimitive::Some(bias) => Some(into_contiguous(bias)),
        };
        let operands = Operands {
            x: x.handle,
            words: into_contiguous(weight.words).handle,
            scales: into_contiguous(weight.scales).handle,
            pairs: into_contiguous(weight.pairs).handle,
            bias: bias.as_ref().map(|bias| bias.handle.clone()),
            y: y.clone(),
        };
        let refused = |error| panic!("qgemm of [{m}, {k}] by [{n}, {k}] {format}: {error}");
        let problem = match crate::device::kernel_dtype(dtype) {
            Ok(dtype) => Problem { m, n, k, format, dtype, bias: bias.is_some() },
            Err(error) => refused(error),
        };
        let tensor = |shape: Shape, handle| {
            CubeTensor::new_contiguous(client.clone(), device.clone(), shape, handle, dtype)
        };
        let plan = tune::plan(&client, &problem);
        let served = m < DENSE_FROM || matches!(plan, Ok(Plan::Stream(_) | Plan::Dense(_)));
        if served {
            if let Err(error) = flute_cube::qgemm(&client, &problem, operands) {
                refused(error.into());
            }
            return tensor(out, y);
        }
        let x = tensor(Shape::new([m, k]), operands.x.clone());
        let dense = tensor(Shape::new([n, k]), client.empty(n * k * dtype.size()));
        if let Err(error) = flute_cube::decode(&client, &problem, operands, &dense.handle) {
            refused(error.into());
        }
        let transposed = CubeBackend::float_swap_dims(dense, 0, 1);
        // Not tuned: that would cost seconds at the first prompt of every length.
        let product =
            matmul(x, transposed, Some(tensor(Shape::new([m, n]), y)), MatmulStrategy::Cube, dtype);
        let mut y =
            product.unwrap_or_else(|e| panic!("dense product of [{m}, {k}] by [{n}, {k}]: {e:?}"));
        if let Some(bias) = bias {
            y = CubeBackend::float_add(y, CubeBackend::float_reshape(bias, Shape::new([1, n])));
        }
        CubeBackend::float_reshape(y, out)
    }
}
