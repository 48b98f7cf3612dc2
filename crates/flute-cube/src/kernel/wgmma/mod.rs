//! The warpgroup kernel: Hopper's `wgmma` with the decoded weights as its A operand. CUDA of compute capability 9.0
//! alone, f16 and bf16, for many rows of x.
//!
//! Four planes with 16 rows of W each are a warpgroup; a plane's fragments are those of `mma.m16n8k16`, so words come
//! from memory into registers and through the pair table as in the other tensor-core kernel. A block of 128 of k is
//! decoded once for all tokens of the cube, which lie in shared memory as the matrix unit reads them: copied there
//! ahead of their use. While one warpgroup decodes, the matrix unit works for another.
//!
//! What could decide is shared memory, 128 bytes a cycle: for 64 rows by 16 of k the matrix unit works `tokens / 2`
//! cycles and reads for `tokens / 4` of them, 16 more go into lookups, and x is written for `tokens / 4` shared by the
//! row tiles: in balance at 64 tokens, hidden above. On an H200 a block of 128 of k takes about 600 cycles more than
//! the matrix unit does alone, whatever the tokens are, and neither the copies of x nor the lookups are what they go
//! into (`docs/perf-log.md`): so a cube serves as many tokens as its registers hold sums for.
//!
//! The order of every sum is fixed by the plan: blocks of k ascending, then splits.

mod chain;
mod product;
mod ring;
mod store;
mod weight;

use super::{mma::sums::fold_splits, padded::vectors_of_x};
use crate::{Dtype, Format, Group, Operands, PackedWeight, Problem, WgmmaPlan, launch, pack};
use chain::Chain;
use cubecl::{prelude::*, server::Handle};
use half::{bf16, f16};
use product::warpgroup_gemm;

/// What is known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    plan: WgmmaPlan,
    bits: u8,
    /// Weights a scale; 0 for the whole row.
    group: u32,
    bf16: bool,
    bias: bool,
    /// Whether y is written in words of two rows.
    y_pairs: bool,
}

impl Shape {
    fn ty(self) -> &'static str {
        if self.bf16 { "bf16" } else { "f16" }
    }
    /// As [`WgmmaPlan::shared_bytes`] counts them.
    fn table_bytes(self) -> usize {
        128 << if self.bits == 3 { 6 } else { 8 }
    }
    fn stages_bytes(self) -> usize {
        (self.plan.stages * self.plan.tokens) as usize * 2 * pack::BLOCK_K
    }
    /// Stages, table, and a barrier of eight bytes a stage.
    fn shared_vectors(self) -> usize {
        (self.stages_bytes() + self.table_bytes()) / 16 + self.plan.stages.div_ceil(2) as usize
    }
    fn words(self) -> usize {
        2 * self.bits as usize
    }
    /// Whether a group is longer than a block, though not the whole row.
    fn long_groups(self) -> bool {
        self.group as usize > pack::BLOCK_K
    }
    /// Groups of a block, or 1 where groups are longer.
    fn groups(self) -> usize {
        if self.group == 0 { 1 } else { pack::BLOCK_K.div_ceil(self.group as usize) }
    }
    /// Instructions of a group.
    fn steps(self) -> usize {
        8 / self.groups()
    }
    fn row_tiles(self) -> usize {
        self.plan.row_tiles as usize
    }
    fn chunks(self) -> usize {
        (self.plan.tokens / self.plan.chunk) as usize
    }
    /// Whether weights are decoded while the matrix unit works, where 32 registers more are left for them. With one
    /// decoding a block the compiler gives those of the next block the registers of this one, and lets nothing overlap
    /// the matrix unit any more.
    fn ahead(self) -> bool {
        let sums = self.row_tiles() * self.plan.tokens as usize / 2 + self.plan.chunk as usize / 2;
        sums <= 96 && self.row_tiles() * self.groups() > 1
    }
    /// The row tile and group that is decoded next to `unit` of a block.
    fn after(self, unit: usize) -> (usize, usize) {
        let unit = (unit + 1) % (self.row_tiles() * self.groups());
        (unit / self.groups(), unit % self.groups())
    }
    fn chain(self, group: usize) -> Chain {
        Chain {
            steps: self.steps(),
            tokens: self.plan.chunk as usize,
            panel: 128 * self.plan.tokens as usize,
            first: group * self.steps(),
            bf16: self.bf16,
        }
    }
}

/// Computes `y`; with a split, its shares first and then their sum.
pub(crate) fn launch(client: &Client, problem: &Problem, plan: &WgmmaPlan, operands: &Operands) {
    match problem.dtype {
        Dtype::BF16 => launch_in::<bf16>(client, problem, plan, operands),
        _ => launch_in::<f16>(client, problem, plan, operands),
    }
}

fn launch_in<F: Float + CubeElement>(
    client: &Client,
    problem: &Problem,
    plan: &WgmmaPlan,
    operands: &Operands,
) {
    let x = vectors_of_x::<F>(client, problem, &operands.x);
    if plan.split == 1 {
        return launch_product::<F, F>(client, problem, plan, operands, [&x, &operands.y]);
    }
    let len = problem.m * problem.n;
    let partials = client.empty(4 * plan.split as usize * len);
    launch_product::<F, f32>(client, problem, plan, operands, [&x, &partials]);
    let bias = operands.bias.clone().unwrap_or_else(|| operands.pairs.clone());
    let bias_len = if problem.bias { problem.n } else { 1 };
    // SAFETY: `partials` holds `split · m · n` sums and `y` and `bias` were measured; the kernel stays below `len`.
    unsafe {
        fold_splits::launch_unchecked::<F>(
            client,
            CubeCount::Static((len.div_ceil(256) as u32).min(1 << 20), 1, 1),
            CubeDim::new_1d(256),
            BufferArg::from_raw_parts(partials, plan.split as usize * len),
            BufferArg::from_raw_parts(bias, bias_len),
            BufferArg::from_raw_parts(operands.y.clone(), len),
            problem.n as u32,
            plan.split,
            problem.bias,
        );
    }
}

fn launch_product<F: Float + CubeElement, Y: Float + CubeElement>(
    client: &Client,
    problem: &Problem,
    plan: &WgmmaPlan,
    operands: &Operands,
    [x, y]: [&Handle; 2],
) {
    let Problem { m, n, k, format: Format { bits, group }, .. } = *problem;
    let shape = Shape {
        // How many cubes there are is the grid's business, not the kernel's.
        plan: WgmmaPlan { split: 1, ..*plan },
        bits: bits.get(),
        group: match group {
            Group::Size(size) => size,
            Group::Whole => 0,
        },
        bf16: problem.dtype == Dtype::BF16,
        bias: problem.bias && plan.split == 1,
        y_pairs: plan.split == 1
            && n.is_multiple_of(2)
            && y.offset_start.unwrap_or(0).is_multiple_of(4),
    };
    let items = n.div_ceil(plan.rows()) * m.div_ceil(plan.tokens as usize);
    let room = launch::limits(client).processors;
    let cubes = room.div_ceil(plan.split as usize).min(items) as u32;
    // Words of two elements.
    let row = k.next_multiple_of(8) / 2;
    let box_of_x = TiledArgs { tile_size: [plan.tokens as usize, ring::PANEL].into() };
    // SAFETY: x, or its copy, has rows of whole vectors.
    let x = unsafe { TensorArg::from_raw_parts(x.clone(), [row, 1].into(), [m, row].into()) };
    let x = TensorMapArg::new(box_of_x, x, u32::elem_type_native())
        .with_swizzle(TensorMapSwizzle::B128);
    let bias = operands.bias.clone().unwrap_or_else(|| operands.pairs.clone());
    // SAFETY: the operands were measured against the problem, and the kernel reads x by the map of [m, row], words and
    // scales below their tiles (a tile that does not exist is replaced by the last one), and writes y below (m, n).
    unsafe {
        warpgroup_gemm::launch_unchecked::<F, Y>(
            client,
            CubeCount::Static(cubes, plan.split, 1),
            CubeDim::new_1d(plan.units() as u32),
            4 * shape.steps(),
            plan.chunk as usize / 2,
            x,
            BufferArg::from_raw_parts(
                operands.words.clone(),
                PackedWeight::words_len(n, k, problem.format),
            ),
            BufferArg::from_raw_parts(
                operands.scales.clone(),
                PackedWeight::scales_len(n, k, problem.format) / 2,
            ),
            BufferArg::from_raw_parts(operands.pairs.clone(), bits.pairs()),
            BufferArg::from_raw_parts(bias, if problem.bias { n } else { 1 }),
            BufferArg::from_raw_parts(y.clone(), plan.split as usize * m * n),
            m as u32,
            n as u32,
            k as u32,
            shape,
        );
    }
}
