//! The shape of the warpgroup kernel.

use crate::{Bits, Dtype, Error, Format, Group, Limits, Problem, Result, pack};
use core::fmt;
use serde::{Deserialize, Serialize};

/// How the warpgroup kernel cuts a problem.
///
/// A cube serves `64 · row_tiles · warpgroups` rows of W and `tokens` rows of x, of which
/// `stages` blocks of k lie in shared memory, most of them ahead of their use; it stays and takes further tiles until none is left. `split` cubes
/// share a tile and split its k; their sums are folded in the order of k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WgmmaPlan {
    /// Warpgroups that multiply, 128 units each.
    pub warpgroups: u32,
    /// Tiles of 64 rows of a warpgroup.
    pub row_tiles: u32,
    /// Rows of x of a cube.
    pub tokens: u32,
    /// Rows of x that one instruction meets: a divisor of `tokens`.
    pub chunk: u32,
    /// Blocks of k of x in shared memory.
    pub stages: u32,
    /// Cubes that share a tile and split k.
    pub split: u32,
}

/// Rows of x up to which the other tensor-core kernel may be the faster one.
pub(super) const FEW: usize = 32;
/// Rows of W that the instruction takes.
pub(crate) const TILE_ROWS: usize = 64;
/// Bytes of a row of x in one stage.
const STAGE_ROW: usize = 2 * pack::BLOCK_K;
/// What the alignment of the swizzled stages may cost, and the barriers.
const SLACK: usize = 1024;

impl WgmmaPlan {
    /// Units of a cube.
    pub fn units(&self) -> usize {
        128 * self.warpgroups as usize
    }

    /// Rows of W of a cube.
    pub fn rows(&self) -> usize {
        TILE_ROWS * (self.row_tiles * self.warpgroups) as usize
    }

    /// Bytes of the pair table, once for every lane; two bits look up four weights at a time.
    pub(crate) fn table_bytes(bits: Bits) -> usize {
        128 << if bits == Bits::Three { 6 } else { 8 }
    }

    /// Bytes of shared memory.
    pub fn shared_bytes(&self, format: Format) -> usize {
        Self::table_bytes(format.bits) + (self.stages * self.tokens) as usize * STAGE_ROW + SLACK
    }

    /// Registers that a unit cannot do without: the sums, those of one instruction, the decoded weights of one chain
    /// of instructions, the next words and scales, and a few for addresses.
    fn registers(&self, format: Format) -> usize {
        let parts = match format.group {
            Group::Size(size) => pack::BLOCK_K.div_ceil(size as usize),
            Group::Whole => 1,
        };
        let words = 2 * usize::from(format.bits.get()) + parts;
        let tiles = self.row_tiles as usize;
        (self.tokens as usize / 2 + words) * tiles + self.chunk as usize / 2 + 32 / parts + 16
    }

    pub(super) fn select(problem: &Problem, limits: &Limits) -> Option<Self> {
        let tiles = problem.n.div_ceil(pack::BLOCK_ROWS) / limits.processors.max(1);
        // Few tokens and many rows of W are the other kernel's: with 16 tokens it took 26.7 µs where this one took 33.5
        // at 28672 × 4096, but 28.0 against 18.1 at 4096 × 14336.
        if problem.m <= 16 && !(tiles < 3 || tiles < 8 && problem.k > 8192) {
            return None;
        }
        let all = Self::candidates(problem, limits);
        all.into_iter().min_by(|a, b| a.cost(problem, limits).total_cmp(&b.cost(problem, limits)))
    }

    /// Microseconds on an H200, as seen there in 4 bits: what a cube takes for a block of 128 of k, and a launch and a
    /// split have their own price. Only the order of plans means anything.
    pub(super) fn cost(&self, problem: &Problem, limits: &Limits) -> f64 {
        let tiles = problem.n.div_ceil(self.rows()) * problem.m.div_ceil(self.tokens as usize);
        let rounds = (tiles * self.split as usize).div_ceil(limits.processors);
        let blocks = problem.k.div_ceil(pack::BLOCK_K).div_ceil(self.split as usize);
        let block = match (self.warpgroups, self.tokens) {
            (4.., ..=16) => 0.88,
            (4.., ..=32) => 0.92,
            (4.., _) => 1.28,
            (_, ..=64) if self.row_tiles == 1 => 0.86,
            (_, ..=64) => 1.26,
            (_, ..=128) => 1.08,
            _ => 1.82,
        };
        // Shares are written and read again, mostly from the cache.
        let shares = 8.0 * f64::from(self.split) * (problem.m * problem.n) as f64;
        let fold = if self.split > 1 { 0.3 + shares / 6e6 } else { 0.0 };
        (rounds * blocks) as f64 * block + 5.0 + fold
    }

    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        // (warpgroups, row tiles, tokens, chunk).
        let shapes: &[[u32; 4]] = match problem.m {
            0..=8 => &[],
            9..=16 => &[[4, 1, 16, 16]],
            17..=32 => &[[4, 1, 32, 32]],
            33..=64 => &[[2, 2, 64, 64], [4, 1, 64, 64], [2, 1, 64, 64]],
            65..=128 => &[[2, 1, 128, 128], [2, 2, 64, 64]],
            _ => &[[2, 1, 256, 128], [2, 1, 128, 128]],
        };
        let k_blocks = problem.k.div_ceil(pack::BLOCK_K);
        let mut plans = vec![];
        for &[warpgroups, row_tiles, tokens, chunk] in shapes {
            // What four groups a block need beside the sums of 256 tokens, the compiler spills.
            if tokens == 256 && matches!(problem.format.group, Group::Size(32)) {
                continue;
            }
            for split in [1, 2, 4, 8] {
                let plan = Self { warpgroups, row_tiles, tokens, chunk, stages: 3, split };
                let tiles = problem.n.div_ceil(plan.rows()) * problem.m.div_ceil(tokens as usize);
                let idle = tiles * (split as usize) <= 2 * limits.processors;
                if split > 1 && (!idle || k_blocks < 4 * split as usize) {
                    continue;
                }
                let fitting = (3..=5).rev().map(|stages| Self { stages, ..plan });
                plans.extend(fitting.into_iter().find(|p| p.validate(problem, limits).is_ok()));
            }
        }
        plans
    }

    pub(super) fn validate(&self, problem: &Problem, limits: &Limits) -> Result<()> {
        let device = || limits.name.clone();
        if !(limits.mma && limits.wgmma) {
            return Err(Error::UnsupportedPlan {
                what: "warpgroup path",
                needed: 1,
                offered: 0,
                device: device(),
            });
        }
        if problem.dtype == Dtype::F32 {
            let reason = "tensor cores take f16 or bf16 activations, and the problem has f32 ones"
                .to_string();
            return Err(Error::InvalidPlan { reason });
        }
        let counts =
            [self.warpgroups, self.row_tiles, self.split].iter().all(|c| (1..=16).contains(c));
        let chunk = matches!(self.chunk, 16 | 32 | 64 | 128)
            && self.tokens > 0
            && self.tokens <= 256
            && self.tokens.is_multiple_of(self.chunk);
        if !(counts && chunk && (3..=8).contains(&self.stages)) {
            let reason = format!(
                "{self}: counts must lie in 1..=16, stages in 3..=8, chunk be 16, 32, 64 or 128, and tokens a multiple of it up to 256"
            );
            return Err(Error::InvalidPlan { reason });
        }
        let units = self.units();
        for (what, needed, offered) in [
            ("bytes of shared memory", self.shared_bytes(problem.format), limits.shared_bytes),
            ("units a cube", units, limits.cube_units),
            ("registers", self.registers(problem.format) * units, (1 << 16).min(255 * units)),
        ] {
            if needed > offered {
                return Err(Error::UnsupportedPlan { what, needed, offered, device: device() });
            }
        }
        Ok(())
    }
}

impl fmt::Display for WgmmaPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { warpgroups, row_tiles, tokens, chunk, stages, split } = self;
        write!(
            f,
            "wgmma warpgroups={warpgroups} row_tiles={row_tiles} tokens={tokens} chunk={chunk} stages={stages} split={split}"
        )
    }
}
