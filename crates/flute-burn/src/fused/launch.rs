//! From Burn's tensors to launches; what a kernel refuses goes to the default body.

use super::{
    Attend, FusedOps, NextPrimitive, Norm, RotatedPrimitive, SlotPrimitive, SumPrimitive, attended,
    halved, next, ordinary, query_shape,
};
use crate::{checkpoint::Activation, device::kernel_dtype};
use burn::tensor::{DType, Shape};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use flute_cube::{
    AttendBuffers, CACHE_BLOCK, Dtype, Gate, NextBuffers, NormBuffers, Residual, Rotate,
    RotateBuffers,
};

impl FusedOps for CubeBackend {
    fn flute_norm(x: CubeTensor, gain: CubeTensor, form: Norm) -> CubeTensor {
        match normed(x.clone(), None, gain.clone(), form) {
            Some((normed, _)) => normed,
            None => ordinary::norm::<Self>(x, gain, form),
        }
    }

    fn flute_add_norm(
        stream: CubeTensor,
        branch: CubeTensor,
        gain: CubeTensor,
        form: Norm,
    ) -> SumPrimitive<Self> {
        match normed(stream.clone(), Some(branch.clone()), gain.clone(), form) {
            Some((normed, Some(sum))) => SumPrimitive { sum, normed },
            _ => ordinary::add_norm::<Self>(stream, branch, gain, form),
        }
    }

    fn flute_gate(x: CubeTensor, activation: Activation) -> CubeTensor {
        let Ok(dtype) = kernel_dtype(x.dtype) else {
            return ordinary::gate::<Self>(x, activation);
        };
        let x = into_contiguous(x);
        let y = empty(&x, halved(x.meta.shape()), x.dtype);
        let (len, elements) = (last(&y), y.meta.shape().num_elements());
        let rows = elements.checked_div(len).unwrap_or(0);
        let problem = Gate { rows, len: len.max(1), activation: activation.into(), dtype };
        match served("a gate", flute_cube::gate(&x.client, &problem, &x.handle, &y.handle)) {
            true => y,
            false => ordinary::gate::<Self>(x, activation),
        }
    }

    fn flute_rotate_append(
        qkv: CubeTensor,
        cos: CubeTensor,
        sin: CubeTensor,
        slot: SlotPrimitive<Self>,
    ) -> RotatedPrimitive<Self> {
        let Ok(dtype) = kernel_dtype(qkv.dtype) else {
            return ordinary::rotate_append::<Self>(qkv, cos, sin, slot);
        };
        let SlotPrimitive { keys, values, start, table } = slot;
        let [qkv, cos, sin, start, table] = [qkv, cos, sin, start, table].map(into_contiguous);
        let [keys, values] = [keys, values].map(own);
        let query = empty(&qkv, query_shape(qkv.meta.shape(), keys.meta.shape()), qkv.dtype);
        let [batch, query_heads, tokens, dim] = query.meta.shape().dims();
        let [blocks, key_heads, _, _] = keys.meta.shape().dims();
        let capacity = last(&table) * CACHE_BLOCK;
        let problem =
            Rotate { batch, tokens, query_heads, key_heads, dim, capacity, blocks, dtype };
        let buffers = RotateBuffers {
            qkv: qkv.handle.clone(),
            cos: cos.handle.clone(),
            sin: sin.handle.clone(),
            start: start.handle.clone(),
            table: table.handle.clone(),
            query: query.handle.clone(),
            keys: keys.handle.clone(),
            values: values.handle.clone(),
        };
        let what = "a rotary embedding";
        match served(what, flute_cube::rotate(&qkv.client, &problem, &buffers)) {
            true => RotatedPrimitive { query, keys, values },
            false => {
                let slot = SlotPrimitive { keys, values, start, table };
                ordinary::rotate_append::<Self>(qkv, cos, sin, slot)
            }
        }
    }

    fn flute_attend(query: CubeTensor, slot: SlotPrimitive<Self>, form: Attend) -> CubeTensor {
        let Ok(dtype) = kernel_dtype(query.dtype) else {
            return ordinary::attend::<Self>(query, slot, form);
        };
        let SlotPrimitive { keys, values, start, table } = slot;
        let [query, keys, values] = [query, keys, values].map(into_contiguous);
        let [start, table] = [start, table].map(into_contiguous);
        let y = empty(&query, attended(query.meta.shape()), query.dtype);
        let problem = asked(query.meta.shape(), [&keys, &table], form, dtype);
        let buffers = AttendBuffers {
            query: query.handle.clone(),
            keys: keys.handle.clone(),
            values: values.handle.clone(),
            start: start.handle.clone(),
            table: table.handle.clone(),
            y: y.handle.clone(),
        };
        match served("attention", flute_cube::attend(&query.client, &problem, &buffers)) {
            true => y,
            false => {
                let slot = SlotPrimitive { keys, values, start, table };
                ordinary::attend::<Self>(query, slot, form)
            }
        }
    }

    fn flute_attend_next(
        qkv: CubeTensor,
        cos: CubeTensor,
        sin: CubeTensor,
        slot: SlotPrimitive<Self>,
        form: Attend,
    ) -> NextPrimitive<Self> {
        let Ok(dtype) = kernel_dtype(qkv.dtype) else {
            return next::apart::<Self>(qkv, [cos, sin], slot, form);
        };
        let SlotPrimitive { keys, values, start, table } = slot;
        let [qkv, cos, sin, start, table] = [qkv, cos, sin, start, table].map(into_contiguous);
        let [keys, values] = [keys, values].map(own);
        let query = query_shape(qkv.meta.shape(), keys.meta.shape());
        let y = empty(&qkv, attended(&query), qkv.dtype);
        let problem = asked(&query, [&keys, &table], form, dtype);
        let buffers = NextBuffers {
            qkv: qkv.handle.clone(),
            cos: cos.handle.clone(),
            sin: sin.handle.clone(),
            start: start.handle.clone(),
            table: table.handle.clone(),
            keys: keys.handle.clone(),
            values: values.handle.clone(),
            y: y.handle.clone(),
        };
        match served("a next token", flute_cube::attend_next(&qkv.client, &problem, &buffers)) {
            true => NextPrimitive { y, keys, values },
            false => {
                // Their buffers hold them too.
                drop(buffers);
                let slot = SlotPrimitive { keys, values, start, table };
                next::apart::<Self>(qkv, [cos, sin], slot, form)
            }
        }
    }
}

/// Attention of queries of shape `query` over a cache.
fn asked(
    query: &Shape,
    [keys, table]: [&CubeTensor; 2],
    Attend { scale, cap, window }: Attend,
    dtype: Dtype,
) -> flute_cube::Attend {
    let [batch, query_heads, tokens, dim] = query.dims();
    let [blocks, key_heads, _, _] = keys.meta.shape().dims();
    let capacity = last(table) * CACHE_BLOCK;
    flute_cube::Attend {
        batch,
        tokens,
        query_heads,
        key_heads,
        dim,
        capacity,
        blocks,
        scale,
        cap,
        window,
        dtype,
    }
}

/// The norm, and the sum if there is a branch; none where no kernel serves them.
fn normed(
    x: CubeTensor,
    branch: Option<CubeTensor>,
    gain: CubeTensor,
    form: Norm,
) -> Option<(CubeTensor, Option<CubeTensor>)> {
    let (dtype, out) = (kernel_dtype(x.dtype).ok()?, kernel_dtype(form.dtype).ok()?);
    let (x, gain) = (into_contiguous(x), into_contiguous(gain));
    let shape = x.meta.shape().clone();
    let (len, elements) = (last(&x), shape.num_elements());
    let y = empty(&x, shape.clone(), form.dtype);
    let sum = branch.is_some().then(|| empty(&x, shape, x.dtype));
    let residual = match (branch, &sum) {
        (Some(branch), Some(sum)) => Some(Residual {
            dtype: kernel_dtype(branch.dtype).ok()?,
            branch: into_contiguous(branch).handle,
            sum: sum.handle.clone(),
        }),
        _ => None,
    };
    let problem = flute_cube::Norm {
        rows: elements.checked_div(len).unwrap_or(0),
        len: len.max(1),
        epsilon: form.epsilon,
        offset: form.offset,
        dtype,
        out,
    };
    let (x, gain, result) = (x.handle, gain.handle, y.handle.clone());
    let buffers = NormBuffers { x, gain, y: result, residual };
    served("a norm", flute_cube::norm(&y.client, &problem, &buffers)).then_some((y, sum))
}

/// Whether the kernel ran; it did not if the device has none for the shape.
fn served(what: &str, outcome: flute_cube::Result<()>) -> bool {
    match outcome {
        Ok(()) => true,
        Err(error) if error.is_unsupported() => false,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// A tensor for a kernel to write, beside `like`.
fn empty(like: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    // A buffer of no bytes is not an allocation everywhere; an empty result still gets one element.
    let handle = like.client.empty(shape.num_elements().max(1) * dtype.size());
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), shape, handle, dtype)
}

/// `tensor` itself if nobody else holds it, else a copy.
fn own(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(if tensor.can_mut() { tensor } else { tensor.copy() })
}

fn last(tensor: &CubeTensor) -> usize {
    let shape = tensor.meta.shape();
    shape[shape.num_dims() - 1]
}
