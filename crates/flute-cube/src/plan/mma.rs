//! The shape of the tensor-core kernel.

mod cut;

use super::table_bytes;
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
    /// Columns of x that lie in shared memory at a time.
    pub k_stage: u32,
    /// Steps along k whose share of x a plane keeps in registers, which are then all of its steps; 0 if it reads x from
    /// shared memory for every row tile anew.
    pub held: u32,
    /// Steps of words and scales that have room in shared memory, all but one of them ahead of their use; 0 if a plane
    /// loads them into registers, one step ahead.
    pub ring: u32,
    /// Whether one lane of a plane brings a stage by bulk copies, Hopper and later; else every lane copies its part.
    pub bulk: bool,
    /// Cubes that share rows of W and split k.
    pub split: u32,
    /// Whether those cubes are a cluster and fold their sums through each other's shared memory; else through memory
    /// and a second kernel. Hopper and later, at most 8 cubes.
    pub cluster: bool,
    /// Cubes a multiprocessor that stay; 0 gives every block of rows a cube of its own.
    pub resident: u32,
    /// Blocks of rows whose sums a cube keeps before its planes meet to fold them.
    pub slots: u32,
}

/// Whether of the 16 planes that share a row tile few have a block of k in their last step.
pub(super) fn last_step_idles(k: usize) -> bool {
    (1..8).contains(&(k.div_ceil(pack::BLOCK_K) % 16))
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

    /// Lanes of a plane whose sums belong to tokens that exist.
    pub(crate) fn live_lanes(&self) -> usize {
        8 * (self.tokens as usize).div_ceil(2).min(4)
    }

    /// Row tiles whose sums are one vector of four: two where a token has but two in each.
    pub(crate) fn paired(&self) -> usize {
        if self.tokens == 1 && self.row_tiles.is_multiple_of(2) { 2 } else { 1 }
    }

    /// Vectors of four sums that a plane leaves for one block of rows.
    pub(crate) fn plane_sums(&self) -> usize {
        self.row_tiles as usize / self.paired() * self.token_tiles() * self.live_lanes()
    }

    /// Vectors of four sums of a cube.
    pub(crate) fn sums(&self) -> usize {
        match self.planes_k {
            1 if !self.cluster => 0,
            _ => (self.slots * self.planes_n * self.planes_k) as usize * self.plane_sums(),
        }
    }

    /// Cubes along n: as many as the device runs at once, since they share the row tiles evenly and whoever came after
    /// would double the time; fewer where there are not so many row tiles.
    pub fn cubes(&self, problem: &Problem, processors: usize) -> usize {
        let row_blocks = problem.n.div_ceil(self.rows());
        let others = self.split as usize * problem.m.div_ceil(self.tokens as usize);
        match self.resident as usize {
            0 => row_blocks,
            resident => {
                let room = processors * resident;
                // Clusters stay within a group of multiprocessors, whose sizes are not all multiples of theirs: an H200
                // of 132 runs 66 pairs, but 30 clusters of 4 and 15 of 8.
                let room =
                    if self.cluster && self.split > 2 { room - room.div_ceil(11) } else { room };
                (room / others.max(1)).clamp(1, row_blocks)
            }
        }
    }

    /// Steps along k that a plane takes for each row tile.
    pub fn steps(&self, problem: &Problem) -> usize {
        let blocks = problem.k.div_ceil(pack::BLOCK_K);
        blocks.div_ceil((self.planes_k * self.split) as usize).max(1)
    }

    /// The plan with as much of x and as many sums in shared memory as leave room for `resident` cubes a
    /// multiprocessor: all of a cube's share of k, and the sums of all of its row tiles, if they fit.
    pub fn fitting(self, problem: &Problem, limits: &Limits) -> Self {
        let room = (limits.shared_bytes + 1024) / self.resident.max(1) as usize - 1024;
        let step = pack::BLOCK_K * self.planes_k as usize;
        let steps = self.steps(problem);
        let tiles = problem.n.div_ceil(pack::BLOCK_ROWS);
        let share = tiles.div_ceil(self.cubes(problem, limits.processors));
        let blocks = share.div_ceil((self.row_tiles * self.planes_n) as usize).clamp(1, 16);
        let plan = |steps: usize, slots: usize| Self {
            k_stage: (steps * step) as u32,
            slots: slots as u32,
            ..self
        };
        let fits = |plan: &Self| plan.shared_bytes(problem) <= room;
        let staged = (1..=steps).rev().map(|steps| plan(steps, 1)).find(fits).unwrap_or(plan(1, 1));
        let steps = staged.k_stage as usize / step;
        (1..=blocks).rev().map(|slots| plan(steps, slots)).find(fits).unwrap_or(staged)
    }

    /// Bytes of shared memory: the table, once for every lane (two bits look up four weights at a time); the staged
    /// x, whose rows are 16 bytes longer than their content so that eight of them fill the 32 banks; the sums.
    pub fn shared_bytes(&self, problem: &Problem) -> usize {
        let table = table_bytes(problem.format.bits.get());
        let x = self.tokens as usize * (self.k_stage as usize * 2 + 16);
        let groups = pack::padded_groups(pack::BLOCK_K, problem.format);
        let stage = self.stage_bytes(problem.format.bits.get(), groups);
        table + x + 16 * self.sums() + self.ring as usize * stage
    }

    /// Groups of a block, of `groups`, that have columns of the matrix unit of their own: all of them, or none (1).
    pub(crate) fn columns(&self, groups: usize) -> usize {
        let room = self.held > 0 && matches!(groups, 2 | 4) && self.tokens as usize * groups <= 8;
        if room { groups } else { 1 }
    }

    /// Words of scales of a block of `groups` that a lane keeps for a row tile: those of its two columns where groups
    /// have columns, else all.
    pub(crate) fn scale_words(&self, groups: usize) -> usize {
        match (self.columns(groups), self.tokens) {
            (1, _) => groups,
            (_, 1) => 2,
            _ => 1,
        }
    }

    /// Bytes of one stage of the ring: a plane's words of a block and its scales, 32 bytes a group, in all row tiles, and a
    /// barrier of 8 bytes.
    pub(crate) fn stage_bytes(&self, bits: u8, groups: usize) -> usize {
        let tiles = self.units() * self.row_tiles as usize * (8 * usize::from(bits) + groups);
        tiles + (self.units() / 4).next_multiple_of(16)
    }

    /// The first candidate: they are in order of preference.
    pub(super) fn select(problem: &Problem, limits: &Limits) -> Option<Self> {
        Self::candidates(problem, limits).into_iter().next()
    }

    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        let mut plans = vec![];
        for cut in cut::all(problem, limits) {
            let plan = cut.plan(problem, limits);
            if !plans.contains(&plan) && plan.validate(problem, limits).is_ok() {
                plans.push(plan);
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
        let stage = counts && self.k_stage > 0 && self.k_stage.is_multiple_of(k_step);
        let held = self.held == 0
            || self.held as usize == self.steps(problem) && self.k_stage >= self.held * k_step;
        if !held {
            let reason = format!(
                "{self}: planes hold x for {} steps, all of them, or for none",
                self.steps(problem)
            );
            return Err(Error::InvalidPlan { reason });
        }
        let ring = self.ring == 0 || (2..=8).contains(&self.ring);
        if !(tokens && counts && stage && ring) {
            let reason = format!(
                "{self}: counts must lie in 1..=64, tokens be 1, 2, 4 or a multiple of 8, ring 0 or in 2..=8, and k_stage {} a multiple of {k_step}",
                self.k_stage
            );
            return Err(Error::InvalidPlan { reason });
        }
        let clusters = if limits.bulk { 8 } else { 0 };
        let cluster = if self.cluster { self.split as usize } else { 0 };
        for (what, needed, offered) in [
            ("cubes a cluster", cluster, clusters),
            ("bulk copies", self.bulk.into(), limits.bulk.into()),
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
        let Self {
            planes_n,
            planes_k,
            row_tiles,
            tokens,
            k_stage,
            held,
            ring,
            bulk,
            split,
            cluster,
            resident,
            slots,
        } = self;
        write!(
            f,
            "mma planes={planes_n}x{planes_k} row_tiles={row_tiles} tokens={tokens} k_stage={k_stage} held={held} ring={ring} bulk={bulk} split={split} cluster={cluster} resident={resident} slots={slots}"
        )
    }
}
