//! The streaming kernel: Hopper's `wgmma` with the decoded weights as its A operand, and everything else through rings
//! of tensor copies. CUDA of compute capability 9.0 alone, f16 and bf16, for up to 128 rows of x at a time.
//!
//! With few rows of x nothing may interrupt the reading of words, and a warpgroup that loads them into its registers, a
//! block or two ahead, does: 16 planes hold 16 kB of them on their way, where memory wants twice as much. So words,
//! scales and x come by tensor copies that one unit asks for, a ring of stages ahead. Four planes with 16 rows of W each
//! are a warpgroup, whose fragments are those of `mma.m16n8k16`; a plane takes its words from the stage, looks their
//! pairs up, and the matrix unit takes x from the stage itself.
//!
//! A cube serves `tiles` row tiles of 16, as many as give every multiprocessor the same, and its warpgroups share them
//! or divide k, so that all planes have something to do whatever the shape. What decides is shared memory, 128 bytes a
//! cycle: of 16 rows by 128 of k (1,024 bytes of words at 4 bits) 8 cycles write words and 8 read them, 32 look pairs
//! up, and the matrix unit reads x for `tokens / 2`.
//!
//! The order of every sum is fixed by the plan: blocks of k ascending in a warpgroup, then warpgroups, then cubes.

mod chain;
mod product;
mod ring;
mod sums;
mod weight;

use super::padded::vectors_of_x;
use crate::{
    Activation, Dtype, Format, Group, Operands, PackedWeight, Problem, StreamPlan, launch, pack,
    plan::{stream, table_bytes},
};
use chain::Chains;
use cubecl::{prelude::*, server::Handle};
use half::{bf16, f16};
use product::{stream_gemm, stream_gemm_cluster};

/// What is known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    plan: StreamPlan,
    bits: u8,
    /// Weights a scale; 0 for the whole row.
    group: u32,
    bf16: bool,
    bias: bool,
    /// Of [`Problem::gate`].
    gate: Option<Activation>,
    /// Whether y is written in words of two columns.
    y_pairs: bool,
    /// See [`StreamPlan::ends`].
    ends: bool,
    /// Whether some blocks of rows are for fewer warpgroups than a cube has: see [`StreamPlan::cut`].
    narrows: bool,
}

impl Shape {
    fn ty(self) -> &'static str {
        if self.bf16 { "bf16" } else { "f16" }
    }
    fn sizes(self) -> stream::Sizes {
        stream::Sizes { plan: self.plan, bits: self.bits, groups: self.groups() }
    }
    fn table_bytes(self) -> usize {
        table_bytes(self.bits)
    }
    /// Of a block in a stage: tokens, then words.
    fn block_bytes(self) -> usize {
        self.sizes().block()
    }
    fn stage_bytes(self) -> usize {
        self.plan.blocks as usize * self.block_bytes()
    }
    fn words_at(self) -> usize {
        self.sizes().tokens()
    }
    fn stages(self) -> usize {
        (self.plan.warpgroups_k * self.plan.stages) as usize
    }
    /// Where the scales of all stages begin, in the order of the stages.
    fn scales_at(self) -> usize {
        self.stages() * self.stage_bytes()
    }
    fn block_scales(self) -> usize {
        self.sizes().scales_apart()
    }
    /// Bytes of words and scales of a stage.
    fn weight_bytes(self) -> usize {
        let sizes = self.sizes();
        self.plan.blocks as usize * (sizes.words() + sizes.scales())
    }
    fn table_at(self) -> usize {
        let rings = self.sizes().rings();
        if self.ends { rings.max(self.plan.sums_bytes()) } else { rings }
    }
    fn sums_at(self) -> usize {
        if self.ends { 0 } else { self.table_at() + self.table_bytes() }
    }
    fn barriers_at(self) -> usize {
        let sums = if self.ends { 0 } else { self.plan.sums_bytes() };
        self.table_at() + self.table_bytes() + sums
    }
    /// All but the *full* barriers.
    fn shared_bytes(self) -> usize {
        (self.barriers_at() + 8 * self.stages()).next_multiple_of(16)
    }
    /// Words of a lane.
    fn words(self) -> usize {
        2 * self.bits as usize
    }
    fn block_words(self) -> usize {
        32 * self.words()
    }
    /// Groups of a block, or 1 where groups are longer.
    fn groups(self) -> usize {
        if self.group == 0 { 1 } else { pack::BLOCK_K.div_ceil(self.group as usize) }
    }
    /// Groups of half a block, or 1 where groups are longer.
    fn half_groups(self) -> usize {
        self.groups().div_ceil(2)
    }
    /// The chains of half a block: one a group, or a single one where weights are scaled.
    fn chains(self, half: usize) -> Chains {
        let groups = if self.plan.scales_weights() { 1 } else { self.half_groups() };
        Chains {
            groups,
            steps: 4 / groups,
            tokens: self.plan.tokens as usize,
            panel: 128 * self.plan.tokens as usize,
            first: 4 * half,
            bf16: self.bf16,
        }
    }
}

/// Computes `y`.
pub(crate) fn launch(client: &Client, problem: &Problem, plan: &StreamPlan, operands: &Operands) {
    match problem.dtype {
        Dtype::BF16 => launch_in::<bf16>(client, problem, plan, operands),
        _ => launch_in::<f16>(client, problem, plan, operands),
    }
}

fn launch_in<F: Float + CubeElement>(
    client: &Client,
    problem: &Problem,
    plan: &StreamPlan,
    operands: &Operands,
) {
    let Problem { m, n, k, format: Format { bits, group }, .. } = *problem;
    let x = vectors_of_x::<F>(client, problem, &operands.x);
    let processors = launch::limits(client).processors;
    let cut = plan.cut(problem, processors);
    let shape = Shape {
        plan: *plan,
        narrows: cut.narrow > 0,
        ends: plan.ends(problem, processors),
        bits: bits.get(),
        group: match group {
            Group::Size(size) => size,
            Group::Whole => 0,
        },
        bf16: problem.dtype == Dtype::BF16,
        bias: problem.bias,
        gate: problem.gate,
        y_pairs: problem.columns().is_multiple_of(2)
            && operands.y.offset_start.unwrap_or(0).is_multiple_of(4),
    };
    let cubes = plan.cubes(problem, processors) as u32;
    let count = CubeCount::Static(cubes, plan.split, 1);
    let dim = CubeDim::new_1d(plan.units() as u32);
    let (tiles, k_blocks) = (n.div_ceil(pack::BLOCK_ROWS), k.div_ceil(pack::BLOCK_K));
    let scales = PackedWeight::scales_len(n, k, problem.format) / 2 / tiles;
    let map = |handle: &Handle, [rows, row]: [usize; 2], part: [usize; 2], swizzle| {
        // SAFETY: the operands were measured against the problem; x, or its copy, has rows of whole vectors.
        let tensor = unsafe {
            TensorArg::from_raw_parts(handle.clone(), [row, 1].into(), [rows, row].into())
        };
        let part = TiledArgs { tile_size: part.into() };
        TensorMapArg::new(part, tensor, u32::elem_type_native()).with_swizzle(swizzle)
    };
    // Words of two elements.
    let x = map(
        &x,
        [m, k.next_multiple_of(8) / 2],
        [m.min(plan.tokens as usize), ring::PANEL],
        TensorMapSwizzle::B128,
    );
    let part = [plan.tiles as usize, shape.block_words()];
    let words = map(&operands.words, [tiles, k_blocks * part[1]], part, TensorMapSwizzle::None);
    let part = [plan.tiles as usize, 8 * shape.groups()];
    let scales = map(&operands.scales, [tiles, scales], part, TensorMapSwizzle::None);
    // Registers of the weights, the products, the scales and the sums of half a block.
    let sums = plan.tokens as usize / 2;
    let sizes = [16, shape.chains(0).groups * sums, 2 * shape.half_groups(), sums];
    let bias = operands.bias.clone().unwrap_or_else(|| operands.pairs.clone());
    // SAFETY: the operands were measured against the problem, the kernel reads x, words and scales by maps of their
    // shapes, and writes y below its m rows and its columns.
    unsafe {
        let pairs = BufferArg::from_raw_parts(operands.pairs.clone(), bits.pairs());
        let bias = BufferArg::from_raw_parts(bias, if problem.bias { n } else { 1 });
        let y = BufferArg::from_raw_parts(operands.y.clone(), m * problem.columns());
        let (m, n, k) = (m as u32, n as u32, k as u32);
        let (wide, narrow) = (cut.wide as u32, cut.narrow as u32);
        let [a, p, s, d] = sizes;
        if plan.split > 1 {
            stream_gemm_cluster::launch_unchecked::<F>(
                client, count, dim, a, p, s, d, x, words, scales, pairs, bias, y, m, n, k, wide,
                narrow, shape,
            );
        } else {
            stream_gemm::launch_unchecked::<F>(
                client, count, dim, a, p, s, d, x, words, scales, pairs, bias, y, m, n, k, wide,
                narrow, shape,
            );
        }
    }
}
