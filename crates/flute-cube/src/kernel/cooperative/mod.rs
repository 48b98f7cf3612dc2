//! The kernel on cooperative matrices: what a matrix unit is called where there is no inline PTX (Vulkan's
//! `VK_KHR_cooperative_matrix`; on CUDA `wmma`, for tests alone).
//!
//! It serves f16, and bf16 where the device multiplies it, and is for rows of x so many that plain arithmetic takes longer
//! than reading. Matrices of 16 × 16 × 16 with sums in f32, on planes of 32 units that do not vary: how their elements lie in
//! a plane is the driver's secret, so all of them come through shared memory. What offers other shapes or planes is refused,
//! and takes the portable kernel.
//!
//! A cube decodes 16 rows of W for each of its planes, a stage of columns at a time, once for all its tokens. A weight is
//! scaled when it is decoded, and so rounded once more than by kernels that scale sums: an identity input still gives
//! `round(table · scale)`, and the sums stay in the matrices from the first column to the last. Words, scales and x of the
//! next stage are asked for before this one is multiplied. Where n has too few rows for the device, cubes divide k, and a second
//! kernel adds their sums.
//!
//! Columns ascend in each sum, then shares: the order is a function of the plan and k alone. m, n and k are run-time values;
//! compiled in are the plan but for its split, the bits, the type, which columns share a scale, whether k is whole blocks, and
//! the width of loads of x.

mod product;
mod stage;

use super::{fold, portable, width::width};
use crate::{
    CooperativePlan, Dtype, Operands, PackedWeight, Problem,
    pack::{BLOCK_K, padded_groups},
};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    /// How the weight is read: as the portable kernel reads it.
    weight: portable::Form,
    /// Whether halves are multiplied as such; bf16 is not, for which there is no arithmetic in SPIR-V.
    half: bool,
    tokens: usize,
    across: usize,
    depth: usize,
    stages: usize,
    /// Elements that a load of x brings.
    width: usize,
}

impl Form {
    fn planes(self) -> usize {
        self.weight.planes
    }

    fn units(self) -> usize {
        32 * self.planes()
    }

    /// Stages of a block of 128 columns.
    fn parts(self) -> usize {
        BLOCK_K / self.depth
    }

    /// Matrices along k of a stage.
    fn steps(self) -> usize {
        self.depth / 16
    }

    /// A row of a stage, in pairs.
    fn stride(self) -> usize {
        (self.depth + CooperativePlan::PADDING) / 2
    }

    /// Rows of W of a stage.
    fn rows(self) -> usize {
        16 * self.planes()
    }

    /// Matrices of x that a plane multiplies by each of its `across` ones of W.
    fn columns(self) -> usize {
        self.tokens / 16 / self.across
    }

    /// Elements of a row of x that a unit stages side by side.
    fn piece(self) -> usize {
        self.width.max(2)
    }

    /// Pieces of a stage of x.
    fn pieces(self) -> usize {
        self.tokens * self.depth / self.piece()
    }

    /// Those of a unit.
    fn own_pieces(self) -> usize {
        self.pieces().div_ceil(self.units())
    }

    /// Loads of a piece.
    fn loads(self) -> usize {
        self.piece() / self.width
    }
}

/// What is not.
#[derive(CubeLaunch, CubeType)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    /// Scales of a row, whole blocks of them.
    groups: usize,
    /// Blocks of a row that a cube takes.
    share: usize,
    /// 1 if a bias is added here.
    biased: u32,
}

/// Launches `plan`, which must have been validated for `problem`, on `operands`, likewise.
pub(crate) fn launch(
    client: &Client,
    problem: &Problem,
    plan: &CooperativePlan,
    operands: &Operands,
) {
    let Problem { m, n, dtype, .. } = *problem;
    let shares = plan.shares(problem).1;
    if shares == 1 {
        return launch_product(client, problem, plan, operands, (&operands.y, dtype.elem()));
    }
    let partials = client.empty(4 * shares * m * n);
    let whole = Problem { bias: false, ..*problem };
    launch_product(client, &whole, plan, operands, (&partials, Dtype::F32.elem()));
    fold::launch(client, problem, operands, partials, shares);
}

/// Launches the product into `y` of the given type: the result, or the sums of every share one after another.
fn launch_product(
    client: &Client,
    problem: &Problem,
    plan: &CooperativePlan,
    operands: &Operands,
    y: (&Handle, ElemType),
) {
    let Problem { m, n, k, format, dtype, bias, .. } = *problem;
    let (fold, span) = portable::Form::scaling(format.group, k);
    let weight = portable::Form {
        bits: format.bits.get().into(),
        fold,
        span,
        whole: k.is_multiple_of(BLOCK_K),
        planes: plan.planes as usize,
        tokens: 1,
        copies: plan.copies as usize,
        rounds: 1,
        tiles: 1,
    };
    let form = Form {
        weight,
        half: dtype == Dtype::F16,
        tokens: plan.tokens as usize,
        across: plan.across as usize,
        depth: plan.depth as usize,
        stages: plan.stages as usize,
        width: width(client, k, &[(&operands.x, dtype.size())]),
    };
    let ((share, shares), (along_m, along_n)) = (plan.shares(problem), plan.cubes(problem));
    let shape = ShapeLaunch::new(m, n, k, padded_groups(k, format), share, u32::from(bias));
    // Never read without a bias, but a binding wants a buffer.
    let bias = operands.bias.as_ref().unwrap_or(&operands.scales);
    let arg = |handle: &Handle, len| {
        // SAFETY: whoever called `qgemm` had every buffer checked against these lengths.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    };
    // SAFETY: what the kernel indexes is bounded by the lengths above: rows of x beyond m read the last one, columns beyond
    // k read nothing, tiles of W beyond the last read that one, blocks end with the share, and what lies beyond n and m is
    // not written. The plan's shape was validated for the device, so its matrices and shared memory exist.
    unsafe {
        product::product::launch_unchecked(
            client,
            CubeCount::Static(along_m as u32, along_n as u32, shares as u32),
            CubeDim::new_2d(32, plan.planes),
            form.width,
            arg(&operands.x, m * k / form.width),
            arg(&operands.words, PackedWeight::words_len(n, k, format) / 4),
            arg(&operands.scales, PackedWeight::scales_len(n, k, format) / 2),
            arg(&operands.pairs, format.bits.pairs()),
            arg(bias, if problem.bias { n } else { 1 }),
            arg(y.0, shares * m * n),
            shape,
            form,
            [dtype.elem(), y.1],
        );
    }
}
