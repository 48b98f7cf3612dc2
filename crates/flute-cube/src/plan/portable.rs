//! The shape of the portable kernel.

use crate::{Dtype, Error, Limits, Problem, Result, pack::BLOCK_K};
use core::fmt;
use serde::{Deserialize, Serialize};

/// How the portable kernel cuts a problem: a cube serves `tiles` tiles of 16 rows of the weight and `tokens` rows of x;
/// its `planes` groups of 32 units split k and their sums are folded at the end.
///
/// Bits, group and types come from the problem; m, n and k are run-time values of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortablePlan {
    /// Groups of 32 units that share a tile and split its k: 1 to 8.
    pub planes: u32,
    /// Rows of x that one decoded weight meets: 1, 2, 4 or 8.
    pub tokens: u32,
    /// Copies of the pair table in shared memory, a power of two up to 32, each for `32 / copies` units of a plane: the
    /// more copies the fewer bank conflicts.
    pub copies: u32,
    /// Blocks of 128 columns of x for each plane that lie in shared memory at a time, a power of two up to 16. What is
    /// all of k stays there from tile to tile.
    pub rounds: u32,
    /// Tiles of 16 rows that meet what is read of x, 1 or 2; 2 for up to two rows of x.
    pub tiles: u32,
    /// Whether the table in shared memory is f32 whatever the types: it takes twice the room of halves, and what is looked
    /// up need not be converted.
    pub wide: bool,
}

impl PortablePlan {
    const PLANES: [u32; 2] = [4, 8];
    const TOKENS: [u32; 4] = [1, 2, 4, 8];
    const ROUNDS: u32 = 16;
    const LEAST: Self = Self { planes: 1, tokens: 1, copies: 1, rounds: 1, tiles: 1, wide: false };
    /// Rows of x whose sums are folded at once: what bounds the scratch.
    pub(crate) const FOLDED: u32 = 2;
    /// Sixteen copies of the largest table in half precision: two units in a bank, and still several cubes on a
    /// processor with 128 KB.
    const TABLE_BYTES: usize = 16 << 10;
    /// A copy for each unit of a plane.
    const WHOLE_TABLE_BYTES: usize = 32 << 10;
    /// 4096 columns of one row of x.
    const X_BYTES: usize = 16 << 10;

    pub(super) fn select(problem: &Problem, limits: &Limits) -> Self {
        let tokens = match problem.m {
            0..=1 => 1,
            2 => 2,
            3..=4 => 4,
            _ => 8,
        };
        // More planes share a table and keep more loads in flight, fewer of them stage less of x. Two tiles share what is
        // read of x. (Through Vulkan on an H200, SPIR-V, 8192 × 8192: 28 µs with two tiles and a table of halves, 32 with
        // one of f32, 40 with one tile; 16 rows of x 157 µs with eight planes and 213 with four.)
        let blocks = problem.k.div_ceil(BLOCK_K);
        let planes = if blocks < 16 { 4 } else { 8 };
        let tiles = if tokens <= 2 && planes == 8 { 2 } else { 1 };
        Self { planes, tokens, tiles, ..Self::LEAST }.fitting(Self::TABLE_BYTES, problem, limits)
    }

    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        // A tile twice as tall as x wastes half of its work; one decode for each of many short tiles wastes more.
        let tall = |t: u32| t > 1 && t as usize >= 2 * problem.m;
        let short = |t: u32| t < 8 && problem.m > 2 * t as usize;
        let tokens = || Self::TOKENS.into_iter().filter(|t| !tall(*t) && !short(*t));
        let fitting = |plan: Self, bytes| plan.fitting(bytes, problem, limits);
        let least = |planes, tokens| Self { planes, tokens, ..Self::LEAST };
        let all =
            tokens().flat_map(|t| Self::PLANES.map(|p| fitting(least(p, t), Self::TABLE_BYTES)));
        let few = tokens().filter(|t| *t <= 2).flat_map(|t| {
            let wide = Self { wide: problem.dtype != Dtype::F32, ..least(8, t) };
            let two = |plan| Self { tiles: 2, ..plan };
            [
                fitting(two(least(8, t)), Self::TABLE_BYTES),
                fitting(wide, Self::WHOLE_TABLE_BYTES),
                fitting(two(wide), Self::WHOLE_TABLE_BYTES),
            ]
        });
        let mut plans: Vec<Self> = vec![];
        for plan in all.chain(few).chain([Self::select(problem, limits)]) {
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        plans
    }

    /// The plan with as many copies of the table as take `table_bytes` and as much of x staged and, on a small device,
    /// as few planes as fit it.
    fn fitting(self, table_bytes: usize, problem: &Problem, limits: &Limits) -> Self {
        let planes = self.planes.min(limits.cube_units as u32 / 32).max(1);
        let mut plan = Self { planes, ..self };
        let fits = |plan: &Self| {
            plan.table_bytes(problem) <= table_bytes
                && (plan.rounds == 1 || plan.x_bytes() <= Self::X_BYTES)
                && plan.shared_bytes(problem) <= limits.shared_bytes
        };
        while plan.planes > 1 && plan.shared_bytes(problem) > limits.shared_bytes {
            plan.planes /= 2;
        }
        let blocks = problem.k.div_ceil(BLOCK_K).div_ceil(plan.planes as usize) as u32;
        let most = blocks.next_power_of_two().min(Self::ROUNDS);
        // Two rounds first, since they are unrolled, then the table, then what room is left.
        for (rounds, copies) in [(2, 1), (1, 32), (most, 1)] {
            while plan.rounds < rounds.min(most) || plan.copies < copies {
                let more = match plan.rounds < rounds.min(most) {
                    true => Self { rounds: 2 * plan.rounds, ..plan },
                    false => Self { copies: 2 * plan.copies, ..plan },
                };
                if !fits(&more) {
                    break;
                }
                plan = more;
            }
        }
        plan
    }

    fn table_bytes(&self, problem: &Problem) -> usize {
        let dtype = if self.wide { Dtype::F32 } else { problem.dtype };
        self.copies as usize * 2 * problem.format.bits.pairs() * dtype.size()
    }

    fn x_bytes(&self) -> usize {
        4 * BLOCK_K * (self.planes * self.rounds * self.tokens) as usize
    }

    fn shared_bytes(&self, problem: &Problem) -> usize {
        let scratch =
            2 * 4 * 64 * (self.planes * self.tiles * self.tokens.min(Self::FOLDED)) as usize;
        self.table_bytes(problem) + self.x_bytes() + scratch
    }

    pub(super) fn validate(&self, problem: &Problem, limits: &Limits) -> Result<()> {
        let Self { planes, tokens, copies, rounds, tiles, .. } = *self;
        let power = |value: u32, most: u32| value.is_power_of_two() && value <= most;
        let served = (1..=8).contains(&planes) && Self::TOKENS.contains(&tokens);
        let side_by_side = tiles == 1 || tiles == 2 && tokens <= 2;
        if !served || !side_by_side || !power(copies, 32) || !power(rounds, Self::ROUNDS) {
            let ranges = "planes are 1 to 8, tokens 1, 2, 4 or 8, copies a power of two up to 32, rounds one up to 16, \
                          tiles 1, or 2 for up to 2 tokens";
            return Err(Error::InvalidPlan { reason: format!("{self} is not served: {ranges}") });
        }
        let needs = [
            ("units a cube", 32 * planes as usize, limits.cube_units),
            ("bytes of shared memory", self.shared_bytes(problem), limits.shared_bytes),
        ];
        match needs.into_iter().find(|(_, needed, offered)| needed > offered) {
            Some((what, needed, offered)) => {
                Err(Error::UnsupportedPlan { what, needed, offered, device: limits.name.clone() })
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for PortablePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { planes, tokens, copies, rounds, tiles, wide } = self;
        write!(
            f,
            "portable planes={planes} tokens={tokens} copies={copies} rounds={rounds} tiles={tiles}"
        )?;
        if *wide { write!(f, " wide") } else { Ok(()) }
    }
}
