//! Gradients of the operation, on Burn's autodiff devices.
//!
//! With `G = gradᵀ · x` `[n, k]`, what the gradient of a dense weight would be:
//!
//! | of | is |
//! |---|---|
//! | x | `grad · W` |
//! | a scale | the sum of `G · table[code]` over the weights that share it |
//! | an entry of the pair table | the sum of `G · scale` over the weights that name it |
//! | the bias | the sum of `grad` over the rows |
//!
//! Codes are constants: nothing trains them. Only what is tracked is computed, so a frozen layer under an adapter costs
//! one decoded weight and one product. The weight is decoded anew rather than kept: a layer's memory between the two
//! passes is that of its codes. `G` is in the type of the layer, the sums over it are in f32.

use super::{BiasPrimitive, FluteOps, WeightPrimitive, WeightShape};
use crate::dequantize::DequantizeOps;
use burn::backend::autodiff::{
    Autodiff, NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::{
    AutodiffBackend, Backend, TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{FloatDType, IndexingUpdateOp, IntDType, Shape, Slice, TensorData};
use flute_cube::pack::{BLOCK_K, BLOCK_ROWS};

impl<B, C> FluteOps for Autodiff<B, C>
where
    B: Backend + FluteOps + DequantizeOps,
    C: CheckpointStrategy,
{
    fn flute_qgemm(
        x: FloatTensor<Self>,
        weight: WeightPrimitive<Self>,
        shape: WeightShape,
    ) -> FloatTensor<Self> {
        let WeightPrimitive { words, scales, pairs, bias } = weight;
        let (bias, bias_value) = match bias {
            BiasPrimitive::Some(bias) => {
                let value = BiasPrimitive::Some(bias.primitive().clone());
                (bias, value)
            }
            // A leaf that nobody tracks stands for it.
            BiasPrimitive::None => {
                (Self::from_inner(scales.primitive().clone()), BiasPrimitive::None)
            }
        };
        let decodes = x.is_tracked() || scales.is_tracked() || pairs.is_tracked();
        let learns = scales.is_tracked() || pairs.is_tracked();
        let prepared = Gradient.prepare::<C>([x.node(), scales.node(), pairs.node(), bias.node()]);
        let weight = WeightPrimitive {
            words,
            scales: scales.into_primitive(),
            pairs: pairs.into_primitive(),
            bias: bias_value,
        };
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let saved = Saved {
                    x: learns.then(|| prep.checkpoint(&x)),
                    x_shape: x.shape(),
                    weight: decodes.then(|| unbiased(&weight)),
                    shape,
                };
                prep.finish(saved, B::flute_qgemm(x.into_primitive(), weight, shape))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::flute_qgemm(x.into_primitive(), weight, shape))
            }
        }
    }
}

#[derive(Debug)]
struct Gradient;

/// What the backward pass needs of the forward one.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    /// Where scales or table are tracked.
    x: Option<NodeId>,
    x_shape: Shape,
    /// Where more than the bias is tracked.
    weight: Option<WeightPrimitive<B>>,
    shape: WeightShape,
}

impl<B: Backend + DequantizeOps> Backward<B, 4> for Gradient {
    type State = Saved<B>;

    fn backward(
        self,
        ops: Ops<Self::State, 4>,
        grads: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let [x_node, scales_node, pairs_node, bias_node] = ops.parents;
        let Saved { x, x_shape, weight, shape } = ops.state;
        let WeightShape { n, k, .. } = shape;
        let grad = grads.consume::<B>(&ops.node);
        let m = x_shape.num_elements() / k;
        let grad = B::float_reshape(grad, Shape::new([m, n]));
        if let Some(node) = bias_node {
            let sum = B::float_sum_dim(grad.clone(), 0);
            grads.register::<B>(node.id, B::float_reshape(sum, Shape::new([n])));
        }
        let Some(weight) = weight else { return };
        if let Some(node) = x_node {
            let dense = B::flute_dequantize(weight.clone(), shape);
            let of_x = B::float_matmul(grad.clone(), dense);
            grads.register::<B>(node.id, B::float_reshape(of_x, x_shape));
        }
        let Some(x) = x else { return };
        let x = checkpointer.retrieve_node_output::<FloatTensor<B>>(x);
        let x = B::float_reshape(x, Shape::new([m, k]));
        let outer = widened::<B>(B::float_matmul(B::float_transpose(grad), x));
        if let Some(node) = scales_node {
            grads.register::<B>(node.id, of_scales::<B>(outer.clone(), &weight, shape));
        }
        if let Some(node) = pairs_node {
            grads.register::<B>(node.id, of_pairs::<B>(outer, weight, shape));
        }
    }
}

/// The gradient of the scales, in kernel order ([`flute_cube::pack`]): 0 where they belong to no row or column.
fn of_scales<B: Backend + DequantizeOps>(
    outer: FloatTensor<B>,
    weight: &WeightPrimitive<B>,
    shape: WeightShape,
) -> FloatTensor<B> {
    let WeightShape { n, k, format } = shape;
    let (len, dtype) = (weight.scales.shape(), weight.scales.dtype().into());
    let ones = B::float_ones(len.clone(), &weight.scales.device(), dtype);
    let table = B::flute_dequantize(WeightPrimitive { scales: ones, ..weight.clone() }, shape);
    let product = B::float_mul(outer, widened::<B>(table));
    let (group, groups) = (format.group.len(k), format.group.count(k.next_multiple_of(BLOCK_K)));
    let rows = n.next_multiple_of(BLOCK_ROWS);
    let product = padded::<B>(product, [n, k], [rows, groups * group]);
    let sums = B::float_sum_dim(B::float_reshape(product, Shape::new([rows, groups, group])), 2);
    // A tile's row r lies at (r mod 8, r / 8) behind its group.
    let tiled = B::float_reshape(sums, Shape::new([rows / BLOCK_ROWS, 2, BLOCK_ROWS / 2, groups]));
    let ordered = B::float_permute(tiled, &[0, 3, 2, 1]);
    B::float_cast(B::float_reshape(ordered, len), dtype)
}

/// The gradient of the pair table, every entry on its own.
fn of_pairs<B: Backend + DequantizeOps>(
    outer: FloatTensor<B>,
    weight: WeightPrimitive<B>,
    shape: WeightShape,
) -> FloatTensor<B> {
    let WeightShape { n, k, format } = shape;
    let (pairs, device) = (format.bits.pairs(), weight.pairs.device());
    let (len, dtype) = (weight.pairs.shape(), weight.pairs.dtype().into());
    let ones = B::float_ones(len.clone(), &device, dtype);
    let scales = B::flute_dequantize(WeightPrimitive { pairs: ones, ..weight.clone() }, shape);
    let half = k.div_ceil(2);
    let values = B::float_mul(outer, widened::<B>(scales));
    let values = padded::<B>(values, [n, k], [n, 2 * half]);

    // A table whose entries are their own numbers decodes to indices: at most 255, which every float type holds.
    let numbers: Vec<f32> = (0..2 * pairs).map(|at| (at / 2) as f32).collect();
    let numbers = B::float_from_data(TensorData::new(numbers, len.clone()), &device);
    let scales = B::float_ones(weight.scales.shape(), &device, dtype);
    let numbers = WeightPrimitive { pairs: B::float_cast(numbers, dtype), scales, ..weight };
    let indices = padded::<B>(B::flute_dequantize(numbers, shape), [n, k], [n, 2 * half]);

    let both = Shape::new([n, half, 2]);
    let (values, indices) =
        (B::float_reshape(values, both.clone()), B::float_reshape(indices, both));
    let side = |all: &FloatTensor<B>, side: usize| {
        let slices = [Slice::from(0..n), Slice::from(0..half), Slice::from(side..side + 1)];
        B::float_reshape(B::float_slice(all.clone(), &slices), Shape::new([n, half]))
    };
    let indices: IntTensor<B> = B::float_into_int(side(&indices, 0), IntDType::I32);
    // Row by row, so that a device has n sums to work at.
    let of_side = |at: usize| {
        let sums = B::float_zeros(Shape::new([n, pairs]), &device, FloatDType::F32);
        let add = IndexingUpdateOp::Add;
        let sums = B::float_scatter(1, sums, indices.clone(), side(&values, at), add);
        B::float_reshape(B::float_sum_dim(sums, 0), Shape::new([pairs, 1]))
    };
    let grad = B::float_cat(vec![of_side(0), of_side(1)], 1);
    B::float_cast(B::float_reshape(grad, len), dtype)
}

/// The weight alone.
fn unbiased<B: Backend>(weight: &WeightPrimitive<B>) -> WeightPrimitive<B> {
    WeightPrimitive { bias: BiasPrimitive::None, ..weight.clone() }
}

fn widened<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    B::float_cast(tensor, FloatDType::F32)
}

/// `matrix` of shape `from` with zeros on its right and below, up to shape `to`.
fn padded<B: Backend>(matrix: FloatTensor<B>, from: [usize; 2], to: [usize; 2]) -> FloatTensor<B> {
    if from == to {
        return matrix;
    }
    let zeros = B::float_zeros(Shape::new(to), &matrix.device(), matrix.dtype().into());
    B::float_slice_assign(zeros, &from.map(|end| Slice::from(0..end)), matrix)
}
