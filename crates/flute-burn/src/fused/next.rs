//! The next token of each sequence: rotated, appended and attended in one operation.

use super::{Attend, FusedOps, RotatedPrimitive, Slot, SlotPrimitive, check_rotation, primitive};
use burn::backend::{Backend, Dispatch, ExtensionType, tensor::FloatTensor};
use burn::tensor::Tensor;

/// What [`attend_next`] returns.
#[derive(Clone, Debug)]
pub struct Next {
    /// `[batch, 1, query_heads·dim]`.
    pub y: Tensor<3>,
    /// `[blocks, key_heads, 64, dim]`, with the new tokens.
    pub keys: Tensor<4>,
    /// As `keys`.
    pub values: Tensor<4>,
}

/// [`Next`] as a backend sees it.
#[derive(Clone, Debug, ExtensionType)]
#[extension_type(fusion: cfg(feature = "fusion"))]
pub struct NextPrimitive<B: Backend> {
    /// See [`Next::y`].
    pub y: FloatTensor<B>,
    /// See [`Next::keys`].
    pub keys: FloatTensor<B>,
    /// See [`Next::values`].
    pub values: FloatTensor<B>,
}

/// What [`super::rotate_append`] and [`super::attend`] do, for one token a sequence: through the kernels in fewer
/// launches, and the same bits.
///
/// # Panics
/// If there are more tokens, if shapes or types contradict each other, or if the device fails.
pub fn attend_next(qkv: Tensor<3>, rotations: [Tensor<2>; 2], slot: Slot, form: Attend) -> Next {
    let (query_heads, [_, tokens, _]) = (check_rotation(&qkv, &rotations, &slot), qkv.dims());
    let key_heads = slot.keys.dims()[1];
    assert!(tokens == 1, "{tokens} tokens of each sequence are not the next one");
    assert!(
        query_heads.is_multiple_of(key_heads),
        "{query_heads} heads of queries do not attend to {key_heads} heads"
    );
    let [cos, sin] = rotations.map(Tensor::into_dispatch);
    let (qkv, slot) = (qkv.into_dispatch(), primitive(slot));
    let NextPrimitive { y, keys, values } = Dispatch::flute_attend_next(qkv, cos, sin, slot, form);
    Next {
        y: Tensor::from_dispatch(y),
        keys: Tensor::from_dispatch(keys),
        values: Tensor::from_dispatch(values),
    }
}

/// By the operations that there are for each half.
pub(super) fn apart<B: FusedOps>(
    qkv: FloatTensor<B>,
    [cos, sin]: [FloatTensor<B>; 2],
    slot: SlotPrimitive<B>,
    form: Attend,
) -> NextPrimitive<B> {
    let (start, table) = (slot.start.clone(), slot.table.clone());
    let RotatedPrimitive { query, keys, values } = B::flute_rotate_append(qkv, cos, sin, slot);
    let slot = SlotPrimitive { keys: keys.clone(), values: values.clone(), start, table };
    NextPrimitive { y: B::flute_attend(query, slot, form), keys, values }
}
