//! Tokens: x in shared memory, in the order in which lanes take it.

use super::{Shape, ptx::U4};
use crate::pack;
use cubecl::prelude::*;

/// Rows `token_first..` and columns from block `k_block` on of x, in lane order; what does not exist is 0.
///
/// The 16 bytes of lane t for the steps `2p` and `2p + 1` are the pairs at `32p + 8q + 2t` for q = 0…3.
#[cube]
pub(super) fn stage<F: Float, W: Size>(
    x: &[Vector<F, W>],
    staged: &mut Shared<[U4]>,
    m: usize,
    k: usize,
    token_first: usize,
    k_block: usize,
    #[comptime] shape: Shape,
) {
    let eighths = comptime!(shape.plan.k_stage as usize / 8);
    let rounds = comptime!((shape.plan.tokens as usize * eighths).div_ceil(shape.units()));
    let batch = comptime!(rounds.min(4));
    for round in 0..comptime!(rounds.div_ceil(batch)) {
        let first = round * comptime!(batch * shape.units()) + UNIT_POS as usize;
        let mut vectors = Array::<U4>::new(batch);
        #[unroll]
        for b in 0..batch {
            let i = first + b * comptime!(shape.units());
            let (row, eighth) = (i / eighths, i % eighths);
            let token = token_first + row;
            let mut vector = U4::new(0u32);
            #[unroll]
            for q in 0..4usize {
                let column = k_block * pack::BLOCK_K + eighth / 4 * 32 + eighth % 4 * 2 + q * 8;
                if row < comptime!(shape.plan.tokens as usize) && token < m && column < k {
                    vector.insert(q, x_pair::<F, W>(x, token * k + column, column + 1 < k, shape));
                }
            }
            vectors[b] = vector;
        }
        #[unroll]
        for b in 0..batch {
            let i = first + b * comptime!(shape.units());
            if i < comptime!(shape.plan.tokens as usize * eighths) {
                staged[i / eighths * comptime!(shape.x_stride()) + i % eighths] = vectors[b];
            }
        }
    }
}

/// The elements `at` and, if there is one, `at + 1`.
#[cube]
fn x_pair<F: Float, W: Size>(
    x: &[Vector<F, W>],
    at: usize,
    both: bool,
    #[comptime] shape: Shape,
) -> u32 {
    let mut pair = Vector::<F, Const<2>>::new(F::new(0.0));
    if comptime!(shape.x_pairs) {
        let vector = x[at / 2];
        pair.insert(0usize, vector.extract(0usize));
        pair.insert(1usize, vector.extract(1usize));
    } else {
        pair.insert(0usize, x[at].extract(0usize));
        if both {
            pair.insert(1usize, x[at + 1].extract(0usize));
        }
    }
    u32::reinterpret(pair)
}
