//! Tokens: x in shared memory, row by row as it lies in memory, for `ldmatrix` to take as the B operand.

use super::{
    Shape,
    ptx::{U4, copy_async, shared_address},
};
use crate::pack;
use cubecl::prelude::*;

/// Which rows of which x a cube works on.
#[derive(CubeType)]
pub(super) struct Part {
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) token_first: usize,
}

/// Asks for the cube's tokens and the columns from block `k_block` on; what does not exist is 0. The content is there
/// after [`super::ptx::await_copies`] and a barrier.
#[cube]
pub(super) fn stage<F: Float, W: Size>(
    x: &[Vector<F, W>],
    staged: &mut Shared<[U4]>,
    part: &Part,
    k_block: usize,
    #[comptime] shape: Shape,
) {
    let eighths = comptime!(shape.plan.k_stage as usize / 8);
    let vectors = comptime!(shape.plan.tokens as usize * eighths);
    // SAFETY: the address of shared memory that lives as long as the kernel.
    let start = unsafe { staged.as_ptr_unchecked() };
    let target = shared_address::<U4>(start);
    for round in 0..comptime!(vectors.div_ceil(shape.units())) {
        let i = round * comptime!(shape.units()) + UNIT_POS as usize;
        let (row, eighth) = (i / eighths, i % eighths);
        let (token, column) = (part.token_first + row, k_block * pack::BLOCK_K + eighth * 8);
        let exists = token < part.m && column < part.k;
        let at = row * comptime!(shape.x_stride()) + eighth;
        if i < vectors {
            if comptime!(shape.x_whole) {
                let bytes = if exists { 16u32 } else { 0u32 };
                let source = if exists { (token * part.k + column) / 8 } else { 0usize };
                copy_async(x, source, target + (at * 16) as u32, bytes);
            } else {
                let mut vector = U4::new(0u32);
                if exists {
                    #[unroll]
                    for q in 0..4usize {
                        vector.insert(q, pair::<F, W>(x, part, token, column + q * 2));
                    }
                }
                staged[at] = vector;
            }
        }
    }
}

/// The elements `column` and `column + 1` of a token, single loads each: rows that are no whole number of 16 bytes.
#[cube]
fn pair<F: Float, W: Size>(x: &[Vector<F, W>], part: &Part, token: usize, column: usize) -> u32 {
    let mut pair = Vector::<F, Const<2>>::new(F::new(0.0));
    let at = token * part.k + column;
    if column < part.k {
        pair.insert(0usize, x[at].extract(0usize));
    }
    if column + 1 < part.k {
        pair.insert(1usize, x[at + 1].extract(0usize));
    }
    u32::reinterpret(pair)
}
