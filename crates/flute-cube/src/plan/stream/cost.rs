//! What a plan of the streaming kernel takes, by a model whose numbers were fitted to what an H200 took: the planner's order of
//! them, not a promise.

use super::{MOST_TOKENS, StreamPlan, TILES};
use crate::{Limits, Problem, pack};

impl StreamPlan {
    /// Microseconds on an H200: mostly within a tenth of what was seen there. Two bits take less than others where a warpgroup is
    /// alone, and nearly what four take where shared memory decides.
    pub(in crate::plan) fn cost(&self, problem: &Problem, limits: &Limits) -> f64 {
        let rounds = self.items(problem).div_ceil(Self::room(limits.processors, self.split));
        let rounds = match self.cut(problem, limits.processors).narrow {
            0 => rounds as f64,
            // With the most tokens a narrow round gains half of what its warpgroups say.
            narrow if self.tokens as usize == MOST_TOKENS => {
                rounds as f64 - 0.5 + narrow as f64 / f64::from(2 * self.warpgroups)
            }
            narrow => rounds as f64 - 1.0 + narrow as f64 / f64::from(self.warpgroups),
        };
        let steps = problem.k.div_ceil(pack::BLOCK_K).div_ceil(self.shares());
        let (tiles, tokens) = (f64::from(self.tiles), f64::from(self.tokens));
        let (warpgroups, rings) = (f64::from(self.warpgroups), f64::from(self.warpgroups_k));
        // Of a block, in cycles. Shared memory: words twice, lookups, x once and for each warpgroup.
        let bits = problem.format.bits.get();
        let words = if bits == 2 { 14.0 } else { 4.0 * f64::from(bits) };
        // Where a warpgroup has fewer tiles than others, it waits for them.
        let uneven = if self.tokens <= 16 && self.tiles > 2 * self.warpgroups {
            0.2 * f64::from(TILES * self.warpgroups - self.tiles)
        } else {
            0.0
        };
        let shared = (tiles + uneven) * (34.0 + words) + 2.0 * tokens + 2.0 * warpgroups * tokens;
        let matrix = 4.0 * warpgroups * tokens;
        // What of that is lost where warpgroups wait for each other, and for a short ring.
        let few = self.tokens <= 16;
        let lost = match (self.warpgroups, self.warpgroups_k, self.blocks) {
            (4, 1, _) if self.tokens == 8 => 1.2,
            (2, 2, _) if self.tokens == 8 => 1.12,
            (4, 1, _) if few => 1.12,
            (2, 2, _) if few => 1.04,
            (1, 4, _) if few => 0.98,
            (1, 2, _) if few => 0.95,
            (_, 1, _) => 1.3,
            (1, 2, _) => 1.12,
            (_, 2, 1) if self.tokens >= 64 => 1.25,
            (_, 2, 1) => 1.3,
            (_, 2, _) => 1.22,
            (_, _, 2) => 1.1,
            _ => 1.2,
        } * if self.stages * self.blocks < 4 { 1.15 } else { 1.0 };
        // A warpgroup alone takes so long for a block. Planes without a tile leave quarters of a multiprocessor idle.
        let idle = if self.tiles < 3 * self.warpgroups { 1.25 } else { 1.0 };
        let alone = idle * (if bits == 2 && few { 420.0 } else { 620.0 } + 5.0 * tokens);
        let step = alone.max(lost * rings * matrix.max(idle * shared));
        let fold = if self.shares() > 1 && !few { 0.1 * self.shares() as f64 } else { 0.0 };
        let cluster = match self.split {
            1 => 0.0,
            2 => 0.8,
            // Every cube folds the sums of its tiles from all shares: −0.2 to 0.6 µs seen of three tiles in eight shares, 1.8 of eight.
            4 if few => 0.03 * f64::from(self.tiles) * self.shares() as f64,
            4 => 3.0,
            _ => 5.0,
        };
        // Seen of four warpgroups with the most tokens: what they take beside their steps in each round.
        let most = self.warpgroups == 4 && self.tokens as usize == MOST_TOKENS;
        let end = if most { 2.0 } else { 0.0 };
        // A product that lasts runs at a lower clock, and x leaves the L2 cache.
        let lasting = 1.0 + 0.07 * (problem.m as f64 / 1024.0).log2().max(0.0);
        lasting * rounds * (steps as f64 * step / 1900.0 + fold + end) + 3.0 + cluster
    }
}
