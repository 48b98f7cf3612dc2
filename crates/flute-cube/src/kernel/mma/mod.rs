//! The tensor-core kernel: `mma.sync.m16n8k16` with the decoded weights as its A operand. CUDA, f16 and bf16.
//!
//! A cube holds a copy of the pair table for each lane in shared memory, so that the 32 lookups of a warp meet 32
//! banks. Words come from memory in fragment order, 16 bytes a lane: through a ring of stages in shared memory, or where
//! there is no room for one straight into registers, the next ones asked for as soon as the last ones are used up, so
//! that 32 planes a multiprocessor keep 32 kB and more in flight. A byte of a word is the index of a pair of weights: one `dp4a` makes it an address, one shared load brings
//! the pair, and four of them are what a lane gives the matrix unit. Weights are its 16 rows, so that one token costs
//! what eight do. Scales meet the f32 sums of a group, never the weights: products of two halves are exact in f32,
//! which makes bf16 as good as f16.
//!
//! Of eight columns of the matrix unit one token needs one. So where groups are small each of a block's gets columns of its
//! own: a plane keeps x of group j in columns j, with nothing in the others, and scales the sums of a block once. And a plane
//! that cannot keep its x has each fragment of a block of a lone token in a column of its own: they are two registers where
//! they were sixteen that repeat themselves, and a mask each.
//!
//! x lies in shared memory as it does in global memory, rows 16 bytes longer so that `ldmatrix` meets no bank twice. All
//! of the cube's share of k stays there when it fits, and then serves every row tile that the cube takes.
//!
//! Planes that split k leave their sums in shared memory, for several blocks of rows before anybody waits for anybody.
//! Cubes that split k fold theirs through each other's shared memory where they are a cluster, else through memory
//! and a second kernel. The order of every sum is fixed by the plan: blocks of a plane ascending, then planes, then
//! splits.

mod product;
mod ring;
mod sums;
mod tokens;
mod weight;

use super::{fold, ptx};
use crate::{
    Activation, Dtype, Format, Group, MmaPlan, Operands, PackedWeight, Problem, launch, pack,
    plan::table_bytes,
};
use cubecl::{prelude::*, server::Handle};
use half::{bf16, f16};
use product::{lut_gemm, lut_gemm_cluster};

/// What is known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) plan: MmaPlan,
    pub(super) bits: u8,
    /// Weights a scale; 0 for the whole row.
    pub(super) group: u32,
    pub(super) bf16: bool,
    pub(super) bias: bool,
    /// Of [`Problem::gate`].
    pub(super) gate: Option<Activation>,
    /// Whether rows of x are whole numbers of 16 bytes, which are then copied as they lie.
    pub(super) x_whole: bool,
    /// Of [`follow`](super::overlap::follow).
    pub(super) overlaps: bool,
    /// Vectors of shared memory that nobody uses: with less than half of a multiprocessor's, two cubes of a kernel that
    /// begins early would share one while another has none (4096 × 14336 in 2 bits: 13.3 µs for 9.1).
    pub(super) apart: usize,
}

impl Shape {
    pub(super) fn ty(self) -> &'static str {
        if self.bf16 { "bf16" } else { "f16" }
    }
    /// Vectors of 16 bytes of the table.
    pub(super) fn table(self) -> usize {
        table_bytes(self.bits) / 16
    }
    pub(super) fn words(self) -> usize {
        2 * self.bits as usize
    }
    /// Groups of a block, or 1 where groups are longer.
    pub(super) fn groups(self) -> usize {
        if self.group == 0 { 1 } else { pack::BLOCK_K.div_ceil(self.group as usize) }
    }
    /// Of [`MmaPlan::columns`].
    pub(super) fn columns(self) -> usize {
        self.plan.columns(self.groups())
    }
    /// Whether fragments of x have columns of the matrix unit of their own: one token, none of it held.
    pub(super) fn spreads(self) -> bool {
        self.plan.tokens == 1 && self.plan.held == 0
    }
    /// Columns of the matrix unit that a token has.
    pub(super) fn token_columns(self) -> usize {
        if self.spreads() { 8 } else { self.columns() }
    }
    /// Sums of a block of which each has scales of its own.
    pub(super) fn parts(self) -> usize {
        self.groups() / self.columns()
    }
    /// Words of scales of a row tile that a lane keeps: rows g and g + 8 in a group each.
    pub(super) fn scale_words(self) -> usize {
        self.plan.scale_words(self.groups())
    }
    pub(super) fn units(self) -> usize {
        self.plan.units()
    }
    pub(super) fn row_tiles(self) -> usize {
        self.plan.row_tiles as usize
    }
    pub(super) fn token_tiles(self) -> usize {
        self.plan.token_tiles()
    }
    pub(super) fn planes_n(self) -> usize {
        self.plan.planes_n as usize
    }
    pub(super) fn planes_k(self) -> usize {
        self.plan.planes_k as usize
    }
    /// A row of x in shared memory, in vectors of 16 bytes.
    pub(super) fn x_stride(self) -> usize {
        self.plan.k_stage as usize / 8 + 1
    }
    /// Lanes of a plane that hold sums of tokens that exist, for each g.
    pub(super) fn live(self) -> usize {
        self.plan.live_lanes() / 8
    }
    /// Sums that a plane leaves for one block of rows.
    pub(super) fn plane_sums(self) -> usize {
        self.plan.plane_sums()
    }
}

/// Computes `y`; with a split, its shares first and then their sum.
pub(crate) fn launch(client: &Client, problem: &Problem, plan: &MmaPlan, operands: &Operands) {
    match (problem.dtype, plan.split > 1 && !plan.cluster) {
        (Dtype::BF16, false) => {
            launch_product::<bf16, bf16>(client, problem, plan, operands, &operands.y)
        }
        (_, false) => launch_product::<f16, f16>(client, problem, plan, operands, &operands.y),
        (Dtype::BF16, true) => launch_split::<bf16>(client, problem, plan, operands),
        (_, true) => launch_split::<f16>(client, problem, plan, operands),
    }
}

fn launch_split<F: Float + CubeElement>(
    client: &Client,
    problem: &Problem,
    plan: &MmaPlan,
    operands: &Operands,
) {
    let partials = client.empty(4 * plan.split as usize * problem.m * problem.n);
    launch_product::<F, f32>(client, problem, plan, operands, &partials);
    fold::launch(client, problem, operands, partials, plan.split as usize);
}

fn launch_product<F: Float + CubeElement, Y: Float + CubeElement>(
    client: &Client,
    problem: &Problem,
    plan: &MmaPlan,
    operands: &Operands,
    y: &Handle,
) {
    let Problem { m, n, k, format: Format { bits, group }, .. } = *problem;
    let through_memory = plan.split > 1 && !plan.cluster;
    let limits = launch::limits(client);
    // With four bits registers leave no room for a second one.
    let alone = limits.bulk && plan.resident == 1 && bits.get() < 4;
    let half = if alone { limits.shared_bytes / 2 } else { 0 };
    let shape = Shape {
        // How many cubes there are is the grid's business, not the kernel's.
        plan: MmaPlan { resident: 0, split: if plan.cluster { plan.split } else { 1 }, ..*plan },
        bits: bits.get(),
        group: match group {
            Group::Size(size) => size,
            Group::Whole => 0,
        },
        bf16: problem.dtype == Dtype::BF16,
        bias: problem.bias && !through_memory,
        gate: problem.gate.filter(|_| !through_memory),
        x_whole: k.is_multiple_of(8) && operands.x.offset_start.unwrap_or(0).is_multiple_of(16),
        overlaps: limits.bulk,
        apart: half.saturating_sub(plan.shared_bytes(problem)).div_ceil(16),
    };
    let cubes = plan.cubes(problem, limits.processors) as u32;
    let x_width = if shape.x_whole { 8 } else { 1 };
    let y_len = if through_memory { plan.split as usize * m * n } else { m * problem.columns() };
    let bias = operands.bias.clone().unwrap_or_else(|| operands.pairs.clone());
    let count = CubeCount::Static(cubes, m.div_ceil(plan.tokens as usize) as u32, plan.split);
    let dim = CubeDim::new_2d(32, plan.planes_n * plan.planes_k);
    // SAFETY: the operands were measured against the problem, and the kernel reads x below (m, k), words and scales
    // below their tiles (a tile that does not exist is replaced by the last one), and writes y below (m, n).
    unsafe {
        let x = BufferArg::from_raw_parts(operands.x.clone(), m * k / x_width);
        let words = PackedWeight::words_len(n, k, problem.format);
        let words = BufferArg::from_raw_parts(operands.words.clone(), words);
        let scales = PackedWeight::scales_len(n, k, problem.format) / 2;
        let scales = BufferArg::from_raw_parts(operands.scales.clone(), scales);
        let pairs = BufferArg::from_raw_parts(operands.pairs.clone(), bits.pairs());
        let bias = BufferArg::from_raw_parts(bias, if problem.bias { n } else { 1 });
        let y = BufferArg::from_raw_parts(y.clone(), y_len);
        let (m, n, k) = (m as u32, n as u32, k as u32);
        if plan.cluster {
            lut_gemm_cluster::launch_unchecked::<F>(
                client, count, dim, x_width, x, words, scales, pairs, bias, y, m, n, k, shape,
            );
        } else {
            lut_gemm::launch_unchecked::<F, Y>(
                client, count, dim, x_width, x, words, scales, pairs, bias, y, m, n, k, shape,
            );
        }
    }
}
