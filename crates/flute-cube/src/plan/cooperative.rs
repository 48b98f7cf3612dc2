//! The shape of the kernel on cooperative matrices.

use crate::{Dtype, Error, Limits, Problem, Result, pack};
use core::fmt;
use serde::{Deserialize, Serialize};

/// How the kernel on cooperative matrices cuts a problem: a cube serves `16 · planes` rows of W and `tokens` rows of x,
/// decodes what it has of W once, a stage of `depth` columns at a time, and `split` cubes share k.
///
/// Decoded weights are rounded to the activation type, scale included ([`crate::Plan::rounds_weights`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CooperativePlan {
    /// Planes of a cube, each of which decodes 16 rows of W: 2, 4 or 8.
    pub planes: u32,
    /// Rows of x of a cube: 16, 32, 64 or 128.
    pub tokens: u32,
    /// Planes that share rows of W when they multiply and divide the tokens: 1, 2 or 4. A plane multiplies `16 · across`
    /// rows by `tokens / across`; the nearer to a square, the less it reads of both.
    pub across: u32,
    /// Columns of a stage in shared memory: 32, 64 or 128.
    pub depth: u32,
    /// Stages in shared memory, 1 or 2. With two a plane decodes the next one while others multiply.
    pub stages: u32,
    /// Copies of the pair table in shared memory, a power of two up to 32, each for `32 / copies` units of a plane.
    pub copies: u32,
    /// Cubes that share rows of W and divide k, up to 16; their sums meet in memory and in a second kernel.
    pub split: u32,
}

/// Cubes of one axis of a launch that every Vulkan device takes.
const AXIS: usize = 65_535;
/// Units of a plane.
const LANES: usize = 32;

impl CooperativePlan {
    /// Of eight planes, as seen on an H200 through Vulkan: cubes of four took five times as long there (541 µs for 102 at 28672
    /// × 4096 and 16 rows of x), which is not understood. They are for devices that have no larger ones.
    const LEAST: Self =
        Self { planes: 8, tokens: 16, across: 1, depth: 32, stages: 2, copies: 1, split: 1 };
    /// Below these rows of x the portable kernel has no more to do than to read.
    const FROM: usize = 16;
    /// What a cube should take of shared memory where there is more, so that several run side by side.
    const ROOM: usize = 48 << 10;
    /// Fewer copies than these are worse than one stage less.
    const FEW_COPIES: u32 = 8;
    /// Cubes of four planes that a large device runs at once, or a few less.
    const CUBES: usize = 256;
    /// Blocks of 128 columns below which a share of k is not worth its fold.
    const SHARE: usize = 4;
    /// Padding of a row of a stage, in elements: 16 bytes, by which rows start in other banks.
    pub(crate) const PADDING: usize = 8;
    /// Padded row of the sums of a matrix on their way to memory, and bytes of them for each plane.
    pub(crate) const SUMS_ROW: usize = 20;
    const SUMS_BYTES: usize = 16 * Self::SUMS_ROW * 4;

    /// Rows of W of a cube.
    pub fn rows(&self) -> usize {
        pack::BLOCK_ROWS * self.planes as usize
    }

    /// Blocks of 128 columns of a cube, and the cubes that have some.
    pub(crate) fn shares(&self, problem: &Problem) -> (usize, usize) {
        let blocks = problem.k.div_ceil(pack::BLOCK_K);
        let share = blocks.div_ceil(self.split as usize);
        (share, blocks.div_ceil(share))
    }

    /// Cubes along m and n.
    pub(crate) fn cubes(&self, problem: &Problem) -> (usize, usize) {
        (problem.m.div_ceil(self.tokens as usize), problem.n.div_ceil(self.rows()))
    }

    /// None for few rows, nor where there is a kernel on the instructions of the matrix unit themselves.
    pub(super) fn select(problem: &Problem, limits: &Limits) -> Option<Self> {
        if problem.m < Self::FROM || limits.mma {
            return None;
        }
        let tokens = (problem.m as u32).next_power_of_two().clamp(16, 128);
        let across = if tokens < 64 { 1 } else { 2 };
        // With the most tokens two stages leave the table no copies, and narrow ones take longer than deep ones.
        let (depth, stages) = if tokens < 128 { (32, 2) } else { (64, 1) };
        let planes = if limits.cube_units < 8 * LANES { 4 } else { 8 };
        let plan = Self { planes, tokens, across, depth, stages, ..Self::LEAST };
        let plan = plan.divided(problem, 1).fitting(problem, limits);
        plan.filter(|plan| plan.validate(problem, limits).is_ok())
    }

    /// The selected one and others that may be faster.
    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        let Some(selected) = Self::select(problem, limits) else {
            return vec![];
        };
        let mut plans = vec![selected];
        for (depth, stages) in [(32, 2), (64, 1), (64, 2)] {
            for finer in [1, 2] {
                let plan = Self { depth, stages, ..selected }.divided(problem, finer);
                let plan = plan.fitting(problem, limits);
                let serves = |plan: &Self| plan.validate(problem, limits).is_ok();
                plans.extend(plan.filter(serves).filter(|plan| !plans.contains(plan)));
            }
        }
        plans
    }

    /// The plan with k divided among as many cubes as fill a device, or `finer` times as many.
    fn divided(self, problem: &Problem, finer: u32) -> Self {
        let (along_m, along_n) = self.cubes(problem);
        let most = (problem.k.div_ceil(pack::BLOCK_K) / Self::SHARE).clamp(1, 16) as u32;
        let planes = along_m * along_n * self.planes as usize;
        let wanted = (4 * Self::CUBES).div_ceil(planes) as u32;
        Self { split: (wanted.next_power_of_two() * finer).min(most), ..self }
    }

    /// The plan with as many copies of the table as fit, and if those are too few, with one stage; `None` if that does not
    /// fit either.
    pub fn fitting(self, problem: &Problem, limits: &Limits) -> Option<Self> {
        let room = limits.shared_bytes.min(Self::ROOM);
        let copies = |plan: Self| {
            let fits =
                |copies: &u32| Self { copies: *copies, ..plan }.shared_bytes(problem) <= room;
            [32, 16, 8, 4, 2, 1].into_iter().find(fits).map(|copies| Self { copies, ..plan })
        };
        let whole = copies(self);
        match whole {
            Some(plan) if plan.copies >= Self::FEW_COPIES => whole,
            _ => copies(Self { stages: 1, ..self }).or(whole),
        }
    }

    fn shared_bytes(&self, problem: &Problem) -> usize {
        let table = self.copies as usize * 2 * problem.format.bits.pairs();
        let stage = (self.rows() + self.tokens as usize) * (self.depth as usize + Self::PADDING);
        let halves = table + self.stages as usize * stage;
        halves * problem.dtype.size() + self.planes as usize * Self::SUMS_BYTES
    }

    pub(super) fn validate(&self, problem: &Problem, limits: &Limits) -> Result<()> {
        let Self { planes, tokens, across, depth, stages, copies, split } = *self;
        if problem.dtype == Dtype::F32 {
            let reason =
                "cooperative matrices take f16 or bf16 activations, and the problem has f32 ones";
            return Err(Error::InvalidPlan { reason: reason.into() });
        }
        let served = [2, 4, 8].contains(&planes)
            && [16, 32, 64, 128].contains(&tokens)
            && [1, 2, 4].contains(&across)
            && [32, 64, 128].contains(&depth)
            && (1..=2).contains(&stages)
            && copies.is_power_of_two()
            && copies <= 32
            && (1..=16).contains(&split);
        if !served || across > planes || 16 * across > tokens || stages * depth > 128 {
            let ranges = "planes are 2, 4 or 8, tokens 16, 32, 64 or 128, across 1, 2 or 4 but neither above planes nor \
                          tokens / 16, depth 32, 64 or 128, stages 1, or 2 of up to 64 columns, copies a power of two up \
                          to 32, split up to 16";
            return Err(Error::InvalidPlan { reason: format!("{self} is not served: {ranges}") });
        }
        let (shares, (along_m, along_n)) = (self.shares(problem).1, self.cubes(problem));
        if shares > 1 && shares * problem.m * problem.n > u32::MAX as usize {
            let reason =
                format!("{self}: the sums of {shares} shares are more than a kernel can address");
            return Err(Error::InvalidPlan { reason });
        }
        let offered = usize::from(limits.cooperative.contains(&problem.dtype));
        let needs = [
            (
                "cooperative matrices of 16 × 16 × 16 in the activation type with f32 sums",
                1,
                offered,
            ),
            (
                "units a plane that do not vary",
                LANES,
                if limits.lanes == LANES { LANES } else { 0 },
            ),
            ("units a cube", LANES * planes as usize, limits.cube_units),
            ("bytes of shared memory", self.shared_bytes(problem), limits.shared_bytes),
            ("cubes along an axis", along_m.max(along_n), limits.cube_count.min(AXIS)),
        ];
        match needs.into_iter().find(|(_, needed, offered)| needed > offered) {
            Some((what, needed, offered)) => {
                Err(Error::UnsupportedPlan { what, needed, offered, device: limits.name.clone() })
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for CooperativePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { planes, tokens, across, depth, stages, copies, split } = self;
        write!(
            f,
            "cooperative planes={planes} tokens={tokens} across={across} depth={depth} stages={stages} copies={copies} \
             split={split}"
        )
    }
}
