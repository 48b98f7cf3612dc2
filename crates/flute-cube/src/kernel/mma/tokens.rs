//! Tokens: x in shared memory, row by row as it lies in memory, and how it becomes the B operand.

use super::{
    Shape,
    ptx::{U2, U4, after_barrier, copy_async, load_matrices, load_two_matrices, shared_address},
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
    let rounds = comptime!(vectors.div_ceil(shape.units()));
    // Before Hopper x is staged between products, and the addresses of all rounds at once would cost them registers.
    let rounds = if comptime!(shape.overlaps) {
        rounds.runtime()
    } else {
        after_barrier(comptime!(rounds as u32).runtime()) as usize
    };
    for round in 0..rounds {
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

/// x as a lane gives it to the matrix unit.
#[derive(CubeType)]
pub(super) struct Tokens {
    /// Of the rows of a plane's first matrices the one that the lane names.
    pub(super) row: u32,
    /// All of the plane's part, where it holds that.
    held: Array<U4>,
    /// For each fragment of a block, where those have columns of their own: all ones if the lane has this one's.
    masks: Array<u32>,
}

/// Of what is staged from `start` on, what belongs to plane `plane_k` along k.
#[cube]
pub(super) fn hold(start: u32, plane_k: usize, lane: usize, #[comptime] shape: Shape) -> Tokens {
    let plan = comptime!(shape.plan);
    let tokens = comptime!(plan.tokens as usize);
    let row = lane % 8;
    let column = lane / 4;
    let at = if comptime!(shape.spreads()) {
        // Row r of the first matrix is the first half of fragment r, of the second its second half; for the last four fragments
        // the other way round, so that the eight rows of a matrix meet all banks.
        2 * row + (lane / 8 + row / 4) % 2
    } else {
        // With fewer than 8 tokens the spare columns repeat them, and nobody stores those.
        row % comptime!(tokens.min(8)) * comptime!(shape.x_stride()) + lane / 8
    };
    let row = start + ((plane_k * 16 + at) * 16) as u32;
    let mut masks = Array::<u32>::new(8usize);
    if comptime!(shape.spreads()) {
        #[unroll]
        for f in 0..8usize {
            masks[f] = select(column == f, u32::MAX.runtime(), 0u32.runtime());
        }
    }
    let pairs = comptime!((4 * plan.held) as usize);
    let mut held = Array::<U4>::new(comptime!((pairs * shape.token_tiles()).max(1)));
    #[unroll]
    for p in 0..pairs {
        let step = comptime!((p / 4 * shape.planes_k() * 256 + p % 4 * 64) as u32);
        #[unroll]
        for j in 0..comptime!(shape.token_tiles()) {
            let mut part =
                load_matrices(row, comptime!((j * 8 * shape.x_stride() * 16) as u32 + step));
            if comptime!(shape.columns() > 1) {
                let group = comptime!(p % 4 * shape.columns() / 4);
                if column / tokens != group {
                    part = U4::new(0u32);
                }
            }
            held[comptime!(p * shape.token_tiles() + j)] = part;
        }
    }
    Tokens { row, held, masks }
}

/// The fragments of a block at `row`, where each has a column of its own.
#[cube]
pub(super) fn spread(row: u32, #[comptime] shape: Shape) -> U2 {
    if comptime!(shape.spreads()) { load_two_matrices(row) } else { U2::new(0u32) }
}

/// The B operands of fragments `first` and `first + 1` of a block, for eight tokens each: of `block` if they are spread, of
/// what is held from pair `own` on, or of shared memory at `row`.
#[cube]
pub(super) fn operands(
    tokens: &Tokens,
    row: u32,
    block: U2,
    #[comptime] own: usize,
    #[comptime] first: usize,
    #[comptime] shape: Shape,
) -> Array<U4> {
    let tiles = comptime!(shape.token_tiles());
    let mut operands = Array::<U4>::new(tiles);
    #[unroll]
    for j in 0..tiles {
        operands[j] = if comptime!(shape.spreads()) {
            let mut both = U4::new(0u32);
            #[unroll]
            for i in 0..4usize {
                let f = comptime!(first + i / 2);
                let half = comptime!((i + f / 4) % 2);
                both.insert(i, block.extract(half) & tokens.masks[f]);
            }
            both
        } else if comptime!(shape.plan.held > 0) {
            tokens.held[comptime!(own + first / 2 * tiles + j)]
        } else {
            load_matrices(row, comptime!((j * 8 * shape.x_stride() * 16 + first * 32) as u32))
        };
    }
    operands
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
