//! From Burn's tensors to a launch.

use super::{BiasPrimitive, WeightPrimitive, WeightShape, gated_shape, output_shape};
use crate::{checkpoint::Activation, fused::FusedOps};
use burn::{backend::ops::FloatTensorOps, tensor::Shape};
use burn_cubecl::{
    CubeBackend,
    kernel::{
        into_contiguous,
        matmul::{MatmulStrategy, matmul},
    },
    tensor::CubeTensor,
};
use flute_cube::{Operands, Plan, Problem, pack, tune};

/// Rows of x from which on the weight is decoded once and multiplied by Burn's dense product, unless the streaming
/// kernel or cooperative matrices multiply or `flute_cube` has the vendor's dense product.
/// The other kernels decode it anew for every tile of at most 64 rows: at 256 rows that took 458 µs for 28672 × 4096
/// on an H200, where decoding (300 MB of traffic) and cuBLAS's dense product (94 µs) would take less than 200, a
/// computed border. The streaming kernel takes 97 µs there and 359 at 1024 rows (670 TFLOP/s), where a whole
/// model's prompt went through decoding and the untuned product at 48 TFLOP/s. Cooperative matrices take 101 µs for 512
/// rows of 4096 × 4096 through Vulkan there, where the untuned product took 1,479 (in WGSL, which has no such matrices).
const DENSE_FROM: usize = 129;

/// The product, or with an activation its gate.
pub(super) fn qgemm(
    x: CubeTensor,
    weight: WeightPrimitive<CubeBackend>,
    shape: WeightShape,
    gate: Option<Activation>,
) -> CubeTensor {
    let WeightShape { n, k, format } = shape;
    let x = into_contiguous(x);
    let m = x.meta.shape().num_elements() / k;
    let out = match gate {
        Some(_) => gated_shape(x.meta.shape(), &shape),
        None => output_shape(x.meta.shape(), &shape),
    };
    let (client, device, dtype) = (x.client.clone(), x.device.clone(), x.dtype);
    let bias = match weight.bias {
        BiasPrimitive::None => None,
        BiasPrimitive::Some(bias) => Some(into_contiguous(bias)),
    };
    let refused = |error| panic!("qgemm of [{m}, {k}] by [{n}, {k}] {format}: {error}");
    let problem = match crate::device::kernel_dtype(dtype) {
        Ok(dtype) => {
            let gate = gate.map(Into::into);
            Problem { m, n, k, format, dtype, bias: bias.is_some(), gate }
        }
        Err(error) => refused(error),
    };
    let plan = tune::plan(&client, &problem);
    let served = m < DENSE_FROM
        || matches!(plan, Ok(Plan::Stream(_) | Plan::Cooperative(_) | Plan::Dense(_)));
    // A buffer of no bytes is not an allocation everywhere; an empty result still gets one element.
    let len = if served { out.num_elements().max(1) } else { m * n };
    let y = client.empty(len * dtype.size());
    let operands = Operands {
        x: x.handle,
        words: into_contiguous(weight.words).handle,
        scales: into_contiguous(weight.scales).handle,
        pairs: into_contiguous(weight.pairs).handle,
        bias: bias.as_ref().map(|bias| bias.handle.clone()),
        y: y.clone(),
    };
    let tensor = |shape: Shape, handle| {
        CubeTensor::new_contiguous(client.clone(), device.clone(), shape, handle, dtype)
    };
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
    let Some(activation) = gate else { return CubeBackend::float_reshape(y, out) };
    let turns = Shape::new([m * n / pack::BLOCK_ROWS, pack::BLOCK_ROWS]);
    let y = CubeBackend::flute_gate(CubeBackend::float_reshape(y, turns), activation);
    CubeBackend::float_reshape(y, out)
}
