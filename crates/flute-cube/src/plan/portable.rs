//! The shape of the portable kernel.

use crate::{Error, Limits, Problem, Result, pack::BLOCK_K};
use core::fmt;
use serde::{Deserialize, Serialize};

/// How the portable kernel cuts a problem: a cube serves a tile of 16 rows of the weight and `tokens` rows of x; its
/// `planes` groups of 32 units split k and their sums are folded at the end.
///
/// Bits, group and types come from the problem; m, n and k are run-time values of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortablePlan {
    /// Groups of 32 units that share a tile and split its k: 1 to 8.
    pub planes: u32,
    /// Rows of x that one decoded weight meets: 1, 4 or 8.
    pub tokens: u32,
    /// Copies of the pair table in shared memory, a power of two up to 32: unit `u` reads copy `u % copies`, so the
    /// more copies the fewer bank conflicts.
    pub copies: u32,
}

impl PortablePlan {
    const PLANES: [u32; 2] = [4, 8];
    const TOKENS: [u32; 3] = [1, 4, 8];
    /// Rows of x whose sums are folded at once: what bounds the scratch.
    pub(crate) const FOLDED: u32 = 4;
    /// Sixteen copies of the largest table in half precision: two units in a bank, and still eight cubes on a
    /// processor with 128 KB.
    const TABLE_BYTES: usize = 16 << 10;

    pub(super) fn select(problem: &Problem, limits: &Limits) -> Self {
        let tokens = match problem.m {
            0..=1 => 1,
            2..=4 => 4,
            _ => 8,
        };
        // Fewer planes fold less; more of them keep more loads in flight when there are few cubes.
        let tiles = problem.n.div_ceil(16) * problem.m.div_ceil(tokens as usize);
        let blocks = problem.k.div_ceil(BLOCK_K);
        let planes = if tiles >= 64 * limits.processors || blocks < 8 { 4 } else { 8 };
        Self::fitting(planes, tokens, problem, limits)
    }

    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        // A tile twice as tall as x wastes half of its work; one decode for each of many short tiles wastes more.
        let tall = |t: u32| t > 1 && t as usize >= 2 * problem.m;
        let short = |t: u32| t < 8 && problem.m > 4 * t as usize;
        let tokens = Self::TOKENS.into_iter().filter(|t| !tall(*t) && !short(*t));
        let all = tokens.flat_map(|t| Self::PLANES.map(|p| Self::fitting(p, t, problem, limits)));
        let mut plans: Vec<Self> = vec![];
        for plan in all.chain([Self::select(problem, limits)]) {
            if !plans.contains(&plan) {
                plans.push(plan);
            }
        }
        plans
    }

    /// The plan with as many copies of the table and, on a small device, as few planes as fit it.
    fn fitting(planes: u32, tokens: u32, problem: &Problem, limits: &Limits) -> Self {
        let planes = planes.min(limits.cube_units as u32 / 32).max(1);
        let fits = |copies: &u32| {
            let plan = Self { planes, tokens, copies: *copies };
            plan.table_bytes(problem) <= Self::TABLE_BYTES
                && plan.shared_bytes(problem) <= limits.shared_bytes
        };
        let copies = [32, 16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
        Self { planes, tokens, copies }
    }

    fn table_bytes(&self, problem: &Problem) -> usize {
        self.copies as usize * 2 * problem.format.bits.pairs() * problem.dtype.size()
    }

    fn shared_bytes(&self, problem: &Problem) -> usize {
        self.table_bytes(problem) + 4 * 64 * (self.planes * self.tokens.min(Self::FOLDED)) as usize
    }

    pub(super) fn validate(&self, problem: &Problem, limits: &Limits) -> Result<()> {
        let Self { planes, tokens, copies } = *self;
        let served = (1..=8).contains(&planes) && Self::TOKENS.contains(&tokens);
        if !served || !copies.is_power_of_two() || copies > 32 {
            let ranges = "planes are 1 to 8, tokens 1, 4 or 8, copies a power of two up to 32";
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
        write!(f, "portable planes={} tokens={} copies={}", self.planes, self.tokens, self.copies)
    }
}
