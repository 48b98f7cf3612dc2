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
//! A second operation is the gate of such a product; its default body, and that of autodiff, is the product and ordinary
//! operations behind it.
//!
//! An operation of Burn returns a tensor, never a `Result`, so nothing may be left to refuse here: the constructors of
//! [`FluteLinear`](crate::linear::FluteLinear) check shape, type and device. What still fails at the launch (a lost
//! device, a kernel that the driver does not compile) panics with the whole error, as Burn's own operations do.

mod backward;
#[cfg(feature = "cube")]
mod launch;

use crate::{checkpoint::Activation, fused};
use burn::backend::{
    Backend, Dispatch, DispatchTensor, ExtensionType, Flex, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, FloatDType, Int, Shape, Tensor, TensorData, read_sync};
use flute_cube::{Format, PackedWeight, pack};
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

    /// The gate of that product, whose weight has rows of gate and up by turns: `[.., n/2]`.
    #[fusion(dtype = x, shape = gated_shape(x, shape))]
    fn flute_qgemm_gated(
        x: FloatTensor<Self>,
        #[extension_type] weight: WeightPrimitive<Self>,
        shape: WeightShape,
        activation: Activation,
    ) -> FloatTensor<Self> {
        fused::gate_by_turns::<Self>(Self::flute_qgemm(x, weight, shape), activation)
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
        launch::qgemm(x, weight, shape, None)
    }

    fn flute_qgemm_gated(
        x: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        shape: WeightShape,
        activation: Activation,
    ) -> FloatTensor<Self> {
        launch::qgemm(x, weight, shape, Some(activation))
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
    multiply(x, weight, None)
}

/// `f(g) · u` of a product whose rows g and u of W lie by turns, eight and eight ([`pack::Order::ByTurns`]): `[.., n/2]`.
/// Types are as those of [`qgemm`]; kernels that gate their sums round nothing between.
///
/// # Panics
/// As [`qgemm`], and if n is no multiple of 16.
pub fn qgemm_gated<const D: usize>(
    x: Tensor<D>,
    weight: FluteTensors,
    activation: Activation,
) -> Tensor<D> {
    let (n, needed) = (weight.shape.n, pack::BLOCK_ROWS);
    assert!(n.is_multiple_of(needed), "{n} rows are no turns of gate and up of {needed} rows");
    multiply(x, weight, Some(activation))
}

fn multiply<const D: usize>(
    x: Tensor<D>,
    weight: FluteTensors,
    gate: Option<Activation>,
) -> Tensor<D> {
    let (found, k) = (x.dims()[D - 1], weight.shape.k);
    assert!(found == k, "the last axis of x has {found} elements and the weight needs k = {k}");
    let (outer, inner) = (x.dtype(), weight.pairs.dtype());
    let x = if outer == inner { x } else { x.cast(inner) };
    let weight = if weight.scales.dtype() == inner {
        weight
    } else {
        FluteTensors { scales: weight.scales.cast(inner), ..weight }
    };
    let y = Tensor::from_dispatch(dispatch(x.into_dispatch(), weight, gate));
    if outer == inner { y } else { y.cast(outer) }
}

/// Not generic over the rank, so that Burn's whole backend tree is compiled once.
fn dispatch(x: DispatchTensor, weight: FluteTensors, gate: Option<Activation>) -> DispatchTensor {
    let FluteTensors { words, scales, pairs, bias, shape } = weight;
    let bias = match bias {
        Some(bias) => BiasPrimitive::Some(bias.into_dispatch()),
        None => BiasPrimitive::None,
    };
    let (words, scales) = (words.into_dispatch(), scales.into_dispatch());
    let weight = WeightPrimitive { words, scales, pairs: pairs.into_dispatch(), bias };
    match gate {
        Some(activation) => Dispatch::flute_qgemm_gated(x, weight, shape, activation),
        None => Dispatch::flute_qgemm(x, weight, shape),
    }
}

fn output_shape(x: &Shape, weight: &WeightShape) -> Shape {
    let mut shape = x.clone();
    let last = shape.num_dims() - 1;
    shape[last] = weight.n;
    shape
}

fn gated_shape(x: &Shape, weight: &WeightShape) -> Shape {
    output_shape(x, &WeightShape { n: weight.n / 2, ..*weight })
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
