//! The shape of the tensor-core kernel.

use crate::{Dtype, Error, Limits, Problem, Result, pack};
use core::fmt;
use serde::{Deserialize, Serialize};

/// How the tensor-core kernel cuts a problem.
///
/// A cube serves `16 · row_tiles · planes_n` rows of W and `tokens` rows of x; it stays and takes further rows of W
/// until none is left. Its `planes_k` groups of planes split k among themselves, and `split` cubes split k among each
/// other; both kinds of partial sums are folded in the order of k.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MmaPlan {
    /// Planes with rows of W of their own.
    pub planes_n: u32,
    /// Planes that share rows of W and split k.
    pub planes_k: u32,
    /// Tiles of 16 rows that a plane decodes side by side.
    pub row_tiles: u32,
    /// Rows of x of a cube: 1, 2, 4 or a multiple of 8.
    pub tokens: u32,
    /// Columns of x that lie in shared memory at a time: a power of two.
    pub k_stage: u32,
    /// Cubes that share rows of W and split k.
    pub split: u32,
    /// Cubes a multiprocessor that stay; 0 gives every block of rows a cube of its own.
    pub resident: u32,
}

impl MmaPlan {
    /// Units of a cube.
    pub fn units(&self) -> usize {
        32 * (self.planes_n * self.planes_k) as usize
    }

    /// Tiles of 8 tokens, the narrow side of the matrix unit.
    pub fn token_tiles(&self) -> usize {
        (self.tokens as usize).div_ceil(8)
    }

    /// Rows of W of a cube.
    pub fn rows(&self) -> usize {
        pack::BLOCK_ROWS * (self.row_tiles * self.planes_n) as usize
    }

    /// Bytes of shared memory: the table, once for every lane; the staged x, whose rows are 64 bytes longer than
    /// their content so that two of them fill the 32 banks; the partial sums of the planes.
    pub fn shared_bytes(&self, problem: &Problem) -> usize {
        let table = problem.format.bits.pairs() * 128;
        let x = self.tokens as usize * (self.k_stage as usize * 2 + 64);
        let sums = if self.planes_k > 1 { self.units() * self.row_tiles as usize * self.token_tiles() * 16 } else { 0 };
        table + x + sums
    }

    pub(super) fn select(problem: &Problem, limits: &Limits) -> Option<Self> {
        let all = Self::candidates(problem, limits);
        all.into_iter().min_by_key(|plan| plan.cost(problem, limits))
    }

    /// A rough order of plans: waves of work, then what a cube repeats.
    fn cost(&self, problem: &Problem, limits: &Limits) -> u64 {
        let blocks = problem.n.div_ceil(self.rows()) * problem.m.div_ceil(self.tokens as usize) * self.split as usize;
        let resident = limits.processors * self.residency(problem, limits);
        let waves = blocks.div_ceil(resident.max(1));
        let k_blocks = problem.k.div_ceil(pack::BLOCK_K).div_ceil((self.planes_k * self.split) as usize);
        let block = 16 * self.row_tiles as usize + 8 * self.token_tiles() * (1 + self.row_tiles as usize);
        let planes = (self.planes_n * self.planes_k) as usize * self.residency(problem, limits);
        let fold = if self.split > 1 { 2000 } else { 0 };
        (waves * k_blocks * block * planes.max(16) + fold + 40 * waves) as u64
    }

    /// Cubes that fit a multiprocessor at once.
    fn residency(&self, problem: &Problem, limits: &Limits) -> usize {
        let by_memory = limits.shared_bytes / self.shared_bytes(problem).max(1);
        let registers = 56 + 12 * self.row_tiles as usize * self.token_tiles() + 4 * self.row_tiles as usize;
        let by_units = (65536 / registers.next_multiple_of(8) / self.units()).min(1536 / self.units());
        by_memory.min(by_units).clamp(1, self.resident.max(1) as usize)
    }

    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        let tokens: &[u32] = match problem.m {
            0..=1 => &[1],
            2 => &[2],
            3..=4 => &[4],
            5..=8 => &[8],
            9..=16 => &[16],
            17..=32 => &[16, 32],
            _ => &[32, 64],
        };
        let k = problem.k.next_power_of_two().max(512) as u32;
        let mut plans = vec![];
        for &tokens in tokens {
            for (planes_n, planes_k) in [(1, 4), (1, 8), (1, 16), (2, 4), (4, 2), (8, 1)] {
                for row_tiles in [1, 2] {
                    for split in [1, 2, 4] {
                        let widest = (128 << 10) / (2 * tokens);
                        let k_stage = k.min(1 << widest.ilog2()).max(128 * planes_k);
                        let plan = Self { planes_n, planes_k, row_tiles, tokens, k_stage, split, resident: 4 };
                        let useful = problem.k.div_ceil(pack::BLOCK_K) >= (planes_k * split) as usize;
                        let first = planes_k * split == 4 && split == 1;
                        if (useful || first) && plan.validate(problem, limits).is_ok() {
                            plans.push(plan);
                        }
                    }
                }
            }
        }
        plans
    }

    pub(super) fn validate(&self, problem: &Problem, limits: &Limits) -> Result<()> {
        let device = || limits.name.clone();
        if !limits.mma {
            return Err(Error::UnsupportedPlan { what: "tensor-core path", needed: 1, offered: 0, device: device() });
        }
        if problem.dtype == Dtype::F32 {
            let reason = "tensor cores take f16 or bf16 activations, and the problem has f32 ones".to_string();
            return Err(Error::InvalidPlan { reason });
        }
        let k_step = pack::BLOCK_K as u32 * self.planes_k;
        let tokens = matches!(self.tokens, 1 | 2 | 4) || self.tokens > 0 && self.tokens.is_multiple_of(8);
        let counts = [self.planes_n, self.planes_k, self.row_tiles, self.split].iter().all(|c| (1..=64).contains(c));
        let stage = self.k_stage.is_power_of_two() && counts && self.k_stage.is_multiple_of(k_step);
        if !(tokens && counts && stage) {
            let reason = format!(
                "{self}: counts must lie in 1..=64, tokens be 1, 2, 4 or a multiple of 8, and k_stage {} a power of two that {k_step} divides",
                self.k_stage
            );
            return Err(Error::InvalidPlan { reason });
        }
        for (what, needed, offered) in [
            ("bytes of shared memory", self.shared_bytes(problem), limits.shared_bytes),
            ("units a cube", self.units(), limits.cube_units),
        ] {
            if needed > offered {
                return Err(Error::UnsupportedPlan { what, needed, offered, device: device() });
            }
        }
        Ok(())
    }
}

impl fmt::Display for MmaPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { planes_n, planes_k, row_tiles, tokens, k_stage, split, resident } = self;
        write!(f, "mma planes={planes_n}x{planes_k} row_tiles={row_tiles} tokens={tokens} k_stage={k_stage} split={split} resident={resident}")
    }
}
