//! The Hadamard transform of x where it lies in shared memory, before the product reads it.
//!
//! Every cube rotates all of its share of k, so what one kernel before the product would do once is done as often as
//! there are cubes: it pays while that takes less than a launch, which is for one token or two. A plane takes a whole
//! block, 8 elements a lane and up to 32 (more would not fit beside the words that are on their way): it adds and
//! subtracts what a lane holds and shuffles for the rest, in f32, and rounds once, as [`crate::hadamard()`] does.

use super::{Shape, ptx::U4};
use crate::MmaPlan;
use cubecl::prelude::*;

/// Elements of a vector of 16 bytes.
const WIDTH: usize = 8;

/// How a block lies in a plane: bits 0 to 2 of an element's place are those of a vector, the next ones those of the
/// lane, the others count the vectors of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    block: usize,
    vectors: usize,
    lane_bits: usize,
}

impl Form {
    fn new(plan: &MmaPlan) -> Self {
        let block = plan.rotated as usize;
        let lanes = (block / WIDTH).min(32);
        Self { block, vectors: block.div_ceil(32 * WIDTH), lane_bits: lanes.ilog2() as usize }
    }

    fn elements(self) -> usize {
        self.vectors * WIDTH
    }

    /// Columns that a plane takes at a time: a block, or several small ones.
    fn span(self) -> usize {
        32 * self.elements()
    }
}

/// Rotates the cube's tokens, all of them staged; what was written is seen after a barrier.
#[cube]
pub(super) fn rotate<F: Float>(staged: &mut Shared<[U4]>, #[comptime] shape: Shape) {
    let form = comptime!(Form::new(&shape.plan));
    let spans = comptime!((shape.plan.k_stage as usize).div_ceil(form.span()));
    let planes = comptime!((shape.plan.planes_n * shape.plan.planes_k) as usize);
    let turns = comptime!((shape.plan.tokens as usize * spans).div_ceil(planes));
    let lane = UNIT_POS_X as usize;
    for turn in 0..turns {
        let task = turn * planes + UNIT_POS_Y as usize;
        if task < comptime!(shape.plan.tokens as usize * spans) {
            let column = task % spans * comptime!(32 * form.vectors) + lane;
            let row = task / spans * comptime!(shape.x_stride());
            let mut values = Array::<f32>::new(comptime!(form.elements()));
            #[unroll]
            for v in 0..comptime!(form.vectors) {
                // Small blocks may leave a part of the last span without columns.
                let eighth =
                    min(column + v * 32, comptime!(shape.plan.k_stage as usize / WIDTH - 1));
                let vector = staged[row + eighth];
                #[unroll]
                for i in 0..4usize {
                    let pair = Vector::<F, Const<2>>::reinterpret(vector.extract(i));
                    values[comptime!(v * WIDTH + 2 * i)] = f32::cast_from(pair.extract(0usize));
                    values[comptime!(v * WIDTH + 2 * i + 1)] = f32::cast_from(pair.extract(1usize));
                }
            }
            butterflies(&mut values, form);
            let norm = f32::new(comptime!(1.0 / (form.block as f32).sqrt()));
            #[unroll]
            for v in 0..comptime!(form.vectors) {
                let mut vector = U4::new(0u32);
                #[unroll]
                for i in 0..4usize {
                    let mut pair = Vector::<F, Const<2>>::new(F::new(0.0));
                    pair.insert(0usize, F::cast_from(values[comptime!(v * WIDTH + 2 * i)] * norm));
                    pair.insert(
                        1usize,
                        F::cast_from(values[comptime!(v * WIDTH + 2 * i + 1)] * norm),
                    );
                    vector.insert(i, u32::reinterpret(pair));
                }
                if column + v * 32 < comptime!(shape.plan.k_stage as usize / WIDTH) {
                    staged[row + column + v * 32] = vector;
                }
            }
        }
    }
}

/// All additions and subtractions of the blocks that a plane holds.
#[cube]
fn butterflies(values: &mut Array<f32>, #[comptime] form: Form) {
    #[unroll]
    for bit in 0..comptime!(form.elements().ilog2() as usize) {
        let distance = comptime!(1usize << bit);
        #[unroll]
        for pair in 0..comptime!(form.elements() / 2) {
            let low = comptime!(pair / distance * 2 * distance + pair % distance);
            let (a, b) = (values[low], values[comptime!(low + distance)]);
            values[low] = a + b;
            values[comptime!(low + distance)] = a - b;
        }
    }
    #[unroll]
    for bit in 0..comptime!(form.lane_bits) {
        let sign = select(UNIT_POS_X >> comptime!(bit as u32) & 1u32 == 1u32, -1.0f32, 1.0f32);
        #[unroll]
        for i in 0..comptime!(form.elements()) {
            values[i] = sign * values[i] + plane_shuffle_xor(values[i], comptime!(1u32 << bit));
        }
    }
}
