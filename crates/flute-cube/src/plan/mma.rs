//! The shape of the tensor-core kernel.

use crate::{Bits, Dtype, Error, Limits, Problem, Result, pack};
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
    /// Blocks of rows whose sums a cube keeps before its planes meet to fold them.
    pub slots: u32,
}

/// Bytes of x that a plan stages: with them two cubes of a table of 32 kB still fit a multiprocessor.
const X_BYTES: u32 = 64 << 10;

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

    /// Lanes of a plane whose sums belong to tokens that exist.
    pub(crate) fn live_lanes(&self) -> usize {
        8 * (self.tokens as usize).div_ceil(2).min(4)
    }

    /// Vectors of four sums that a plane leaves for one block of rows.
    pub(crate) fn plane_sums(&self) -> usize {
        self.row_tiles as usize * self.token_tiles() * self.live_lanes()
    }

    /// Vectors of four sums of a cube.
    pub(crate) fn sums(&self) -> usize {
        match self.planes_k {
            1 => 0,
            _ => (self.slots * self.planes_n * self.planes_k) as usize * self.plane_sums(),
        }
    }

    /// Bytes of shared memory: the table, once for every lane (two bits look up four weights at a time); the staged
    /// x, whose rows are 64 bytes longer than their content so that two of them fill the 32 banks; the sums.
    pub fn shared_bytes(&self, problem: &Problem) -> usize {
        let table = 128 << if problem.format.bits == Bits::Three { 6 } else { 8 };
        table + self.tokens as usize * (self.k_stage as usize * 2 + 64) + 16 * self.sums()
    }

    pub(super) fn select(problem: &Problem, limits: &Limits) -> Option<Self> {
        let all = Self::candidates(problem, limits);
        all.into_iter().min_by(|a, b| a.cost(problem, limits).total_cmp(&b.cost(problem, limits)))
    }

    /// What a multiprocessor has to do, in an arbitrary unit: only the order of plans means anything.
    ///
    /// The shared-memory unit is the one that is busiest: four lookups a fragment, and two loads of x for every tile
    /// of tokens, shared by the row tiles of a plane. The rest are what was seen on an H200: a block of rows costs a
    /// plane as much as four fragments, and fewer than 16 planes a multiprocessor do not hide their own latencies.
    fn cost(&self, problem: &Problem, limits: &Limits) -> f64 {
        let row_blocks = problem.n.div_ceil(self.rows());
        let cubes = row_blocks * problem.m.div_ceil(self.tokens as usize) * self.split as usize;
        // Cubes that stay take turns, so that a multiprocessor has at most one block more than its share.
        let busiest = cubes.div_ceil(limits.processors);
        let k_blocks = problem.k.div_ceil(pack::BLOCK_K);
        let steps = k_blocks.div_ceil((self.planes_k * self.split) as usize);
        let fragments = 8.0 * (steps * self.row_tiles as usize) as f64;
        let tokens = self.token_tiles() as f64;
        let shared = 4.0 + 2.0 * tokens / f64::from(self.row_tiles) + 0.5 * tokens;
        let stages =
            (steps * self.planes_k as usize * pack::BLOCK_K).div_ceil(self.k_stage as usize);
        let staging = if stages > 1 {
            f64::from(self.tokens * self.k_stage) / 2048.0 * stages as f64
        } else {
            0.0
        };
        let planes = self.planes_n * self.planes_k;
        let together = planes as usize * busiest.min(self.residency(problem, limits));
        let idle = (16.0 / together as f64).max(1.0);
        let fold = if self.split > 1 { 600.0 * f64::from(self.split) } else { 0.0 };
        let block = f64::from(planes) * ((fragments + 4.0) * shared) + staging;
        busiest as f64 * block * idle + fold
    }

    /// Cubes that fit a multiprocessor at once.
    fn residency(&self, problem: &Problem, limits: &Limits) -> usize {
        let by_memory = limits.shared_bytes / (self.shared_bytes(problem) + 1024);
        let tiles = self.row_tiles as usize
            * (8 * self.token_tiles() + 2 * problem.format.bits.get() as usize);
        let registers = (40 + tiles).next_multiple_of(8);
        let by_units = (65536 / registers / self.units()).min(2048 / self.units());
        by_memory.min(by_units).max(1)
    }

    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        // (planes along n, planes along k, row tiles) that won somewhere, by the rows of x that meet a weight.
        let (tokens, shapes): (u32, &[(u32, u32, u32)]) = match problem.m {
            0..=8 => (
                (problem.m.max(1) as u32).next_power_of_two(),
                &[(1, 16, 2), (1, 8, 4), (1, 16, 1), (1, 8, 1)],
            ),
            9..=16 => (16, &[(4, 4, 2), (1, 8, 2), (1, 8, 1)]),
            17..=32 => (32, &[(2, 4, 2), (1, 8, 1)]),
            _ => (64, &[(8, 1, 2), (8, 1, 1)]),
        };
        let k_blocks = problem.k.div_ceil(pack::BLOCK_K) as u32;
        let whole = (k_blocks * pack::BLOCK_K as u32).next_power_of_two().max(512);
        let mut plans = vec![];
        for &(planes_n, planes_k, row_tiles) in shapes {
            // Planes without a block of k would only wait.
            let planes_k = planes_k.min(k_blocks.next_power_of_two());
            let rows = pack::BLOCK_ROWS * (row_tiles * planes_n) as usize;
            for split in [1, 2, 4] {
                let cubes =
                    problem.n.div_ceil(rows) * problem.m.div_ceil(tokens as usize) * split as usize;
                if split > 1 && (cubes > 2 * limits.processors || planes_k * split > k_blocks) {
                    continue;
                }
                let slots = if tokens <= 8 { 4 } else { 1 };
                let least = pack::BLOCK_K as u32 * planes_k;
                let plan = |k_stage| Self {
                    planes_n,
                    planes_k,
                    row_tiles,
                    tokens,
                    k_stage,
                    split,
                    resident: 2,
                    slots,
                };
                // As much of x as is useful; less where a cube has less shared memory.
                let mut k_stage = whole.min(1 << (X_BYTES / (2 * tokens)).ilog2()).max(least);
                while k_stage > least && plan(k_stage).shared_bytes(problem) > limits.shared_bytes {
                    k_stage /= 2;
                }
                let plan = plan(k_stage);
                if !plans.contains(&plan) && plan.validate(problem, limits).is_ok() {
                    plans.push(plan);
                }
            }
        }
        plans
    }

    pub(super) fn validate(&self, problem: &Problem, limits: &Limits) -> Result<()> {
        let device = || limits.name.clone();
        if !limits.mma {
            return Err(Error::UnsupportedPlan {
                what: "tensor-core path",
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
        let k_step = pack::BLOCK_K as u32 * self.planes_k;
        let tokens =
            matches!(self.tokens, 1 | 2 | 4) || self.tokens > 0 && self.tokens.is_multiple_of(8);
        let counts = [self.planes_n, self.planes_k, self.row_tiles, self.split, self.slots]
            .iter()
            .all(|c| (1..=64).contains(c));
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
        let Self { planes_n, planes_k, row_tiles, tokens, k_stage, split, resident, slots } = self;
        write!(
            f,
            "mma planes={planes_n}x{planes_k} row_tiles={row_tiles} tokens={tokens} k_stage={k_stage} split={split} resident={resident} slots={slots}"
        )
    }
}
