//! The shape of the streaming kernel.

mod cost;

use super::{mma::last_step_idles, table_bytes};
use crate::{Dtype, Error, Group, Limits, Problem, Result, pack};
use core::fmt;
use serde::{Deserialize, Serialize};

/// How the streaming kernel cuts a problem.
///
/// A cube serves `tiles` tiles of 16 rows of W and `tokens` rows of x; it stays and takes further ones until none is
/// left. Its `warpgroups` share the rows, 64 each at most; `warpgroups_k` such groups divide k, each with a ring of its
/// own, and `split` cubes divide k among each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StreamPlan {
    /// Warpgroups with rows of W of their own, 128 units each.
    pub warpgroups: u32,
    /// Groups of warpgroups that share the rows and divide k.
    pub warpgroups_k: u32,
    /// Tiles of 16 rows of W of a cube: up to four a warpgroup.
    pub tiles: u32,
    /// Rows of x of a cube.
    pub tokens: u32,
    /// Blocks of 128 of k in a stage of a ring.
    pub blocks: u32,
    /// Stages of each ring, most of them ahead of their use.
    pub stages: u32,
    /// Cubes, a cluster, that share a tile and divide k.
    pub split: u32,
}

/// Bytes of one stage of a ring, part by part.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) plan: StreamPlan,
    pub(crate) bits: u8,
    /// Groups of a block, or 1 where groups are longer.
    pub(crate) groups: usize,
}

impl Sizes {
    /// Of x: a block of every token.
    pub(crate) fn tokens(self) -> usize {
        2 * pack::BLOCK_K * self.plan.tokens as usize
    }
    pub(crate) fn words(self) -> usize {
        256 * usize::from(self.bits) * self.plan.tiles as usize
    }
    pub(crate) fn scales(self) -> usize {
        32 * self.groups * self.plan.tiles as usize
    }
    /// Tokens and words of a block, at the start of which the matrix unit's swizzle repeats.
    pub(crate) fn block(self) -> usize {
        (self.tokens() + self.words()).next_multiple_of(1024)
    }
    /// Scales of a block where a tensor copy may put them. They lie behind all blocks: among them they would take 1024
    /// bytes each, and 16 row tiles with 128 tokens a stage less.
    pub(crate) fn scales_apart(self) -> usize {
        self.scales().next_multiple_of(128)
    }
    /// Of all rings.
    pub(crate) fn rings(self) -> usize {
        let StreamPlan { warpgroups_k, stages, blocks, .. } = self.plan;
        (warpgroups_k * stages * blocks) as usize * (self.block() + self.scales_apart())
    }
}

/// How the rows of W are cut where cubes go on to further items: into `wide` blocks that keep all warpgroups of a cube at
/// work, and blocks for `narrow` of them, if any, in the last round. So a round of which little is left takes as little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) wide: usize,
    pub(crate) narrow: usize,
}

/// Rows of x up to which single planes may be faster.
pub(super) const FEW: usize = 8;
/// Row tiles of a warpgroup.
const TILES: u32 = 4;
const ROWS_OF_WARPGROUP: usize = pack::BLOCK_ROWS * TILES as usize;
/// Rows of x beyond which a cube's sums leave no room for four warpgroups.
const MOST_TOKENS: usize = 128;

/// Whether this kernel is the faster one for `problem`, as seen on an H200: single planes start sooner and read as fast,
/// so that up to four rows of x are theirs (eight where W is small) but where there are many rows of W, or long ones.
pub(super) fn leads(problem: &Problem, limits: &Limits) -> bool {
    let Problem { m, n, k, format, .. } = *problem;
    let share = n.div_ceil(pack::BLOCK_ROWS).div_ceil(limits.processors);
    let blocks = k.div_ceil(pack::BLOCK_K);
    // Whether streaming leaves a last round emptier, with four row tiles at a time, than planes with two: 50.8 µs against 45.4
    // (20480 × 16384, one row), 35.2 against 33.5 (28672 × 8192, two).
    let emptier = share.next_multiple_of(TILES as usize) > share.next_multiple_of(2);
    // Words of few bits come sooner than a ring passes them on: 61 against 51 (57344 × 8192, 2 bits), 103 against 93 (16384 ×
    // 53248, 3 bits); and of what is over soon a later start counts: 19.4 against 18.0 (8192 × 14336).
    let bits = format.bits.get();
    let sooner = m == 1 && (bits < 4 || emptier || share * blocks < 512);
    // Beyond two rows they have no columns for groups of 32, and scale each: 24 µs against 21 (28672 × 4096).
    let small = matches!(format.group, Group::Size(size) if size <= 32);
    let idle = last_step_idles(k) && !(m == 1 && bits < 4);
    // With two bits five rows stream already: 5.9 against 5.1 (4096 × 4096, eight rows).
    let few = if share <= 2 && k <= 4096 && bits > 2 { FEW } else { 4 };
    // Three row tiles that are over soon: 4.5 against 3.9 (4608 × 2048, four rows).
    let three = share == 3 && k <= 2048;
    m > few
        || n > 32768 && !sooner
        || m > 2 && small
        || m > 1 && (k > 8192 || k == 8192 && !(emptier && share > 8))
        || m > 1 && three
        || n >= 8192 && k > 8192 && !sooner
        || idle && k > 4096 && share.is_multiple_of(4)
}

impl StreamPlan {
    /// Units of a cube: those that multiply, and of a plane a ring one that brings.
    pub fn units(&self) -> usize {
        self.workers() + if self.brings_beside() { 32 * self.warpgroups_k as usize } else { 0 }
    }

    /// Units that multiply.
    pub(crate) fn workers(&self) -> usize {
        128 * (self.warpgroups * self.warpgroups_k) as usize
    }

    /// Rows of W of a cube.
    pub fn rows(&self) -> usize {
        pack::BLOCK_ROWS * self.tiles as usize
    }

    /// Shares of k whose sums are folded.
    pub(crate) fn shares(&self) -> usize {
        (self.warpgroups_k * self.split) as usize
    }

    /// Whether planes that do nothing else bring what others work on: not where a plane more would take registers from
    /// the warpgroups that they need. Five planes in each quarter of a multiprocessor have 96 a unit, four 128.
    pub(crate) fn brings_beside(&self) -> bool {
        self.tokens <= 64 || self.warpgroups * self.warpgroups_k <= 2
    }

    /// Whether scales meet weights, which rounds each of those once more, and not sums: where multiplying sums would take
    /// registers and time that the matrix unit wants. Errors double; a product with an identity stays exact.
    pub fn scales_weights(&self) -> bool {
        self.tokens > 32
    }

    /// Bytes of sums that are folded.
    pub(crate) fn sums_bytes(&self) -> usize {
        if self.shares() == 1 { 0 } else { 2 * self.workers() * self.tokens as usize }
    }

    /// Whether every cube has one item: then nothing is in the rings any more when its sums are folded, and they take
    /// the place of the rings.
    pub(crate) fn ends(&self, problem: &Problem, processors: usize) -> bool {
        self.items(problem) <= Self::room(processors, self.split)
    }

    /// Bytes of shared memory on a device of `processors`.
    pub fn shared_bytes(&self, problem: &Problem, processors: usize) -> usize {
        let sizes = self.sizes(problem);
        let rings = sizes.rings();
        let sums = self.sums_bytes();
        let both = if self.ends(problem, processors) { rings.max(sums) } else { rings + sums };
        // Two barriers a stage, and the end of a vector of 16 bytes.
        let barriers = 16 * (self.warpgroups_k * self.stages + 1) as usize;
        both + table_bytes(sizes.bits) + barriers
    }

    fn sizes(&self, problem: &Problem) -> Sizes {
        let groups = pack::padded_groups(pack::BLOCK_K, problem.format);
        Sizes { plan: *self, bits: problem.format.bits.get(), groups }
    }

    /// Cubes that share k run at once on a device of `processors`.
    fn room(processors: usize, split: u32) -> usize {
        // Clusters stay within a group of multiprocessors, whose sizes are not all multiples of theirs: an H200 of 132
        // runs 66 pairs, but 30 clusters of 4 and 15 of 8.
        let room = if split > 2 { processors - processors.div_ceil(11) } else { processors };
        (room / split as usize).max(1)
    }

    /// Tiles of rows and tokens.
    fn items(&self, problem: &Problem) -> usize {
        problem.n.div_ceil(self.rows()) * problem.m.div_ceil(self.tokens as usize)
    }

    /// Which blocks of rows are narrow, on a device of `processors`: as narrow as the last round allows where every block
    /// is for whole warpgroups, and nobody else works on its sums.
    pub(crate) fn cut(&self, problem: &Problem, processors: usize) -> Cut {
        let (room, items) = (Self::room(processors, self.split), self.items(problem));
        let all = Cut { wide: problem.n.div_ceil(self.rows()), narrow: 0 };
        // With 32 tokens, whose products and sums both stay in registers, the code for it spills: 156 µs where 88 were seen.
        let spills = self.tokens == 32;
        if self.shares() > 1 || self.tiles < TILES * self.warpgroups || items <= room || spills {
            return all;
        }
        let (rounds, tokens) = (items.div_ceil(room), problem.m.div_ceil(self.tokens as usize));
        let (each, units) = (self.warpgroups as usize, problem.n.div_ceil(ROWS_OF_WARPGROUP));
        let wide = (rounds - 1) * room / tokens;
        let rest = units.saturating_sub(wide * each);
        let fits = |narrow: &usize| (wide + rest.div_ceil(*narrow)) * tokens <= rounds * room;
        (1..each).find(fits).map_or(all, |narrow| Cut { wide, narrow })
    }

    /// Cubes along n.
    pub(crate) fn cubes(&self, problem: &Problem, processors: usize) -> usize {
        Self::room(processors, self.split).min(self.items(problem))
    }

    /// Registers that a unit cannot do without: the sums, the products and the weights of what begins together, the
    /// words, and some for addresses.
    fn registers(&self, problem: &Problem) -> usize {
        let groups = self.sizes(problem).groups;
        let tokens = self.tokens as usize / 2;
        let words = 2 * usize::from(problem.format.bits.get());
        let products = if self.scales_weights() { groups } else { groups.div_ceil(2) * tokens };
        tokens + products + 32 + words + 16
    }

    /// The first candidate.
    pub(super) fn select(problem: &Problem, limits: &Limits) -> Option<Self> {
        Self::candidates(problem, limits).into_iter().next()
    }

    /// The most promising ways to share warpgroups and cubes between rows and k, with as many row tiles as give all
    /// cubes the same; the least costly first.
    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        const MOST: usize = 4;
        let tokens = problem.m.clamp(8, MOST_TOKENS).next_power_of_two() as u32;
        let mut plans = Self::with_tokens(problem, limits, tokens);
        // Half of the most tokens leaves room for a second ring, where rows of W are few and long, and for fewer columns of the
        // matrix unit without a token.
        if tokens as usize == MOST_TOKENS {
            plans.extend(Self::with_tokens(problem, limits, tokens / 2));
        }
        plans.sort_by(|a, b| a.cost(problem, limits).total_cmp(&b.cost(problem, limits)));
        plans.truncate(MOST);
        plans
    }

    /// Those for `tokens` rows of x at a time.
    fn with_tokens(problem: &Problem, limits: &Limits, tokens: u32) -> Vec<Self> {
        let token_tiles = problem.m.div_ceil(tokens as usize).max(1);
        let tiles = problem.n.div_ceil(pack::BLOCK_ROWS);
        let blocks = problem.k.div_ceil(pack::BLOCK_K);
        let mut plans: Vec<Self> = vec![];
        for (warpgroups, warpgroups_k) in [(4, 1), (2, 2), (1, 4), (2, 1), (1, 2)] {
            for split in [1, 2, 4, 8] {
                let room = Self::room(limits.processors, split);
                let most = 4 * warpgroups as usize;
                let rounds = (tiles.div_ceil(most) * token_tiles).div_ceil(room);
                let even = (tiles * token_tiles).div_ceil(rounds * room).clamp(1, most) as u32;
                let plan = Self {
                    warpgroups,
                    warpgroups_k,
                    tiles: even,
                    tokens,
                    blocks: 1,
                    stages: 0,
                    split,
                };
                if plan.shares() > 1 && blocks < 2 * plan.shares() {
                    continue;
                }
                // Two blocks a stage halve what a stage costs, but three of them are a short ring where x is large; and who
                // brings as a side job is late with them.
                let rings: &[(u32, u32)] = match plan.brings_beside() {
                    true if tokens == 8 => &[(2, 5), (2, 4), (2, 3), (1, 5), (1, 4), (1, 3)],
                    true => &[(2, 5), (2, 4), (1, 7), (1, 6), (1, 5), (1, 4), (1, 3)],
                    false => &[(1, 8), (1, 6), (1, 5), (1, 4), (1, 3)],
                };
                // Even tiles, or all that warpgroups can take with an uneven last round.
                let whole = Self { tiles: TILES * warpgroups, ..plan };
                let cut = whole != plan && whole.cut(problem, limits.processors).narrow > 0;
                for plan in [Some(plan), Some(whole).filter(|_| cut)].into_iter().flatten() {
                    let fits = |&(blocks, stages): &(u32, u32)| {
                        Some(Self { blocks, stages, ..plan })
                            .filter(|plan| plan.validate(problem, limits).is_ok())
                    };
                    plans.extend(rings.iter().find_map(fits));
                }
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
        let counts = [self.warpgroups, self.warpgroups_k].iter().all(|c| (1..=8).contains(c));
        let tiles = (1..=self.warpgroups * TILES).contains(&self.tiles);
        // Powers of two, as the vectors that hold sums must be.
        let tokens = matches!(self.tokens, 8 | 16 | 32 | 64 | 128);
        let split = matches!(self.split, 1 | 2 | 4 | 8) && matches!(self.blocks, 1 | 2);
        if !(counts && tiles && tokens && split && (3..=16).contains(&self.stages)) {
            let reason = format!(
                "{self}: warpgroups must lie in 1..=8, tiles in 1..={}, tokens be 8, 16, 32, 64 or 128, stages lie in 3..=16, blocks be 1 or 2, and split be 1, 2, 4 or 8",
                TILES * self.warpgroups
            );
            return Err(Error::InvalidPlan { reason });
        }
        let units = self.units();
        // A cluster that went on to further tiles would wait for its own fold each time: 167 µs where 90 were to be had.
        let clusters = if self.split > 1 { self.items(problem) } else { 0 };
        for (what, needed, offered) in [
            ("clusters at once", clusters, Self::room(limits.processors, self.split)),
            (
                "bytes of shared memory",
                self.shared_bytes(problem, limits.processors),
                limits.shared_bytes,
            ),
            ("units a cube", units, limits.cube_units),
            ("registers a unit", self.registers(problem), (1 << 16) / units.next_multiple_of(128)),
        ] {
            if needed > offered {
                return Err(Error::UnsupportedPlan { what, needed, offered, device: device() });
            }
        }
        Ok(())
    }
}

impl fmt::Display for StreamPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { warpgroups, warpgroups_k, tiles, tokens, blocks, stages, split } = self;
        write!(
            f,
            "stream warpgroups={warpgroups}x{warpgroups_k} tiles={tiles} tokens={tokens} stages={stages}x{blocks} split={split}"
        )
    }
}
