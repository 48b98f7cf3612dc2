//! What ends a step of decoding: the likeliest token, put where the next step reads it, and a position further on.
//!
//! Like [`op`](crate::op) it enters Burn as a backend extension: kernels on devices that run kernels, a default body on
//! the others; on devices with autodiff the results are constants. Tokens and positions are written in place if nobody
//! else holds them, as Burn's own operations do: a step whose tensors nobody else holds reads and writes the same
//! buffers every time, so it can be captured and replayed.

use burn::backend::{
    Backend, Dispatch, ExtensionType, Flex, TensorMetadata, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{DType, FloatDType, Int, IntDType, Shape, Tensor, TensorData};

/// What [`choose`] returns.
#[derive(Clone, Debug)]
pub struct Choice {
    /// `[rows, 2]`, f32: the logit, and the id, which f32 holds exactly.
    pub chosen: Tensor<2>,
    /// `[rows, 1]`, I32.
    pub tokens: Tensor<2, Int>,
    /// `[rows]`, I32.
    pub position: Tensor<1, Int>,
}

/// [`Choice`] as a backend sees it.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct ChoicePrimitive<B: Backend> {
    /// See [`Choice::chosen`].
    pub chosen: FloatTensor<B>,
    /// See [`Choice::tokens`].
    pub tokens: IntTensor<B>,
    /// See [`Choice::position`].
    pub position: IntTensor<B>,
}

/// The operations as Burn's backends offer them. To support one more backend, write `impl ChooseOps for It {}` and take
/// the default bodies, or replace them.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Fusion: cfg(feature = "fusion"))]
pub trait ChooseOps: Backend {
    /// See [`choose`].
    #[fusion(meta = |logits, tokens, position, _advance| ChoicePrimitiveMetadata {
        chosen: burn::backend::fusion::custom::TensorSpec::new(pairs(&logits.shape), DType::F32),
        tokens: tokens.clone(),
        position: position.clone(),
    })]
    fn flute_choose(
        logits: FloatTensor<Self>,
        tokens: IntTensor<Self>,
        position: IntTensor<Self>,
        advance: usize,
    ) -> ChoicePrimitive<Self> {
        let dtype = IntDType::from(tokens.dtype());
        let logits = Self::float_cast(logits, FloatDType::F32);
        let (values, ids) = Self::float_max_dim_with_indices(logits, 1, dtype);
        let floats = Self::int_into_float(ids.clone(), FloatDType::F32);
        let chosen = Self::float_cat(vec![values, floats], 1);
        let position = Self::int_add_scalar(position, (advance as i64).into());
        ChoicePrimitive { chosen, tokens: ids, position }
    }

    /// See [`put`].
    #[fusion(dtype = tensor, shape = tensor)]
    fn flute_put(tensor: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        let (device, shape) = (tensor.device(), tensor.shape());
        let data = TensorData::new(values, shape).convert_dtype(tensor.dtype());
        Self::int_from_data(data, &device)
    }
}

impl ChooseOps for Flex {}

#[cfg(feature = "cube")]
impl ChooseOps for burn_cubecl::CubeBackend {
    fn flute_choose(
        logits: FloatTensor<Self>,
        tokens: IntTensor<Self>,
        position: IntTensor<Self>,
        advance: usize,
    ) -> ChoicePrimitive<Self> {
        launch::choose(logits, [tokens, position], advance)
    }

    fn flute_put(tensor: IntTensor<Self>, values: Vec<i32>) -> IntTensor<Self> {
        launch::put(tensor, &values)
    }
}

/// The likeliest token of each row of `logits` `[rows, vocab]`, the lowest id among equals, written over `tokens`
/// `[rows, 1]`; and `position` `[rows]`, moved by `advance`. Both are I32 then, whatever they were.
///
/// # Panics
/// If shapes contradict each other, for logits in a type that no kernel has, for more of them than f32 counts, or if
/// the device fails.
pub fn choose(
    logits: Tensor<2>,
    tokens: Tensor<2, Int>,
    position: Tensor<1, Int>,
    advance: usize,
) -> Choice {
    let ([rows, _], found) = (logits.dims(), (tokens.dims(), position.dims()));
    let needed = ([rows, 1], [rows]);
    assert!(found == needed, "tokens and positions are {found:?} and must be {needed:?}");
    let logits = logits.without_autodiff().into_dispatch();
    let (tokens, position) = (i32s(tokens).into_dispatch(), i32s(position).into_dispatch());
    let ChoicePrimitive { chosen, tokens, position } =
        Dispatch::flute_choose(logits, tokens, position, advance);
    Choice {
        chosen: Tensor::from_dispatch(chosen),
        tokens: Tensor::from_dispatch(tokens),
        position: Tensor::from_dispatch(position),
    }
}

/// `tensor` with `values` in it, as many as it has elements.
///
/// # Panics
/// If there are more or fewer of them, or if the device fails.
pub fn put<const D: usize>(tensor: Tensor<D, Int>, values: Vec<i32>) -> Tensor<D, Int> {
    let (found, needed) = (values.len(), tensor.shape().num_elements());
    assert!(found == needed, "{found} values are not the {needed} of a tensor");
    Tensor::from_dispatch(Dispatch::flute_put(i32s(tensor).into_dispatch(), values))
}

fn i32s<const D: usize>(tensor: Tensor<D, Int>) -> Tensor<D, Int> {
    let tensor = tensor.without_autodiff();
    if tensor.dtype() == DType::I32 { tensor } else { tensor.cast(DType::I32) }
}

fn pairs(logits: &Shape) -> Shape {
    Shape::new([logits[0], 2])
}

/// From Burn's tensors to launches.
#[cfg(feature = "cube")]
mod launch {
    use super::{ChoicePrimitive, pairs};
    use burn::tensor::{Bytes, DType};
    use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
    use flute_cube::{Choose, ChooseBuffers};

    pub(super) fn choose(
        logits: CubeTensor,
        state: [CubeTensor; 2],
        advance: usize,
    ) -> ChoicePrimitive<CubeBackend> {
        let logits = into_contiguous(logits);
        let [tokens, position] = state.map(own);
        let [rows, vocab] = logits.meta.shape().dims();
        let (client, device) = (logits.client.clone(), logits.device.clone());
        // A buffer of no bytes is not an allocation everywhere; an empty result still gets one element.
        let chosen = client.empty(8 * rows.max(1));
        let buffers = ChooseBuffers {
            logits: logits.handle.clone(),
            tokens: tokens.handle.clone(),
            position: position.handle.clone(),
            chosen: chosen.clone(),
        };
        let done = crate::device::kernel_dtype(logits.dtype).and_then(|dtype| {
            let problem = Choose { rows, vocab, advance, dtype };
            Ok(flute_cube::choose(&client, &problem, &buffers)?)
        });
        if let Err(error) = done {
            panic!("the likeliest of {rows} times {vocab} logits: {error}");
        }
        let shape = pairs(logits.meta.shape());
        let chosen = CubeTensor::new_contiguous(client, device, shape, chosen, DType::F32);
        ChoicePrimitive { chosen, tokens, position }
    }

    pub(super) fn put(tensor: CubeTensor, values: &[i32]) -> CubeTensor {
        let tensor = own(tensor);
        let bytes = bytemuck::cast_slice(values).to_vec();
        tensor.client.write(&tensor.handle, Bytes::from_bytes_vec(bytes));
        tensor
    }

    /// `tensor` itself if nobody else holds it, else a copy.
    fn own(tensor: CubeTensor) -> CubeTensor {
        into_contiguous(if tensor.can_mut() { tensor } else { tensor.copy() })
    }
}
