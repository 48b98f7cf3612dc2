//! What of the tensor-core kernel's plans is tried: the whole of what the planner knows of them from measurements.

use super::{MmaPlan, last_step_idles};
use crate::{Group, Limits, Problem, pack};

/// What of a plan is chosen; the rest follows from what fits.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    tokens: u32,
    planes: (u32, u32),
    row_tiles: u32,
    split: u32,
    resident: u32,
    /// Whether planes keep their x in registers if it is at most [`HELD`] times 16 registers.
    hold: bool,
    /// Stages of words and scales in shared memory.
    ring: u32,
}

/// Steps times tiles of 8 tokens of x that a plane may keep in registers: four leave it 64 of 128.
const HELD: u32 = 4;

impl Cut {
    pub(super) fn plan(self, problem: &Problem, limits: &Limits) -> MmaPlan {
        let Self { tokens, planes: (planes_n, planes_k), row_tiles, split, resident, hold, ring } =
            self;
        // Planes without a block of k would only wait.
        let k_blocks = problem.k.div_ceil(pack::BLOCK_K) as u32;
        let planes_k = planes_k.min(k_blocks.next_power_of_two());
        let split = split.min(k_blocks.div_ceil(planes_k).next_power_of_two());
        let plan = MmaPlan {
            planes_n,
            planes_k,
            row_tiles,
            tokens,
            k_stage: 0,
            held: 0,
            ring,
            bulk: limits.bulk && ring > 0,
            split,
            cluster: limits.bulk && split > 1,
            resident,
            slots: 1,
        };
        let steps = plan.steps(problem) as u32;
        let held = MmaPlan { held: steps, ..plan }.fitting(problem, limits);
        let few = steps * tokens.div_ceil(8) <= HELD;
        match hold && few && held.k_stage >= steps * planes_k * pack::BLOCK_K as u32 {
            true => held,
            false => plan.fitting(problem, limits),
        }
    }

    /// The same with the row tiles and the ring that one row of x takes where copies are bulk and a multiprocessor has at most
    /// `share` row tiles: of 53 shapes in 4, 3 and 2 bits the best, or within 6 % of it (`docs/perf-log.md`, section 21).
    fn lone(self, problem: &Problem, share: usize) -> Self {
        let bits = problem.format.bits.get();
        let short = problem.k <= 8192;
        // What four row tiles at once leave empty.
        let empty = share.next_multiple_of(4) - share;
        let (row_tiles, ring) = match share {
            // Most of a small share is on its way before x is there.
            1 | 3 | 5 if short => (1, 3),
            // Two tiles at once are 6 % faster alone; in a layer, where words come before x, one is 1 %.
            2 if short && bits == 4 => (1, 3),
            ..=8 if short && bits == 4 && (share == 7 || problem.k <= 2048) => (1, 3),
            // Of four bits a round takes so long that more of it may be on its way.
            9.. if short && (bits == 4 || last_step_idles(problem.k)) => (2, 4),
            _ if short => (2, 2),
            ..=2 => (2, 2),
            3 => (3, 0),
            // What a plane reads of x serves all its row tiles, where few of them are empty.
            _ if bits == 3 && 7 * empty <= share => (4, 2),
            _ if bits == 2 && 16 * empty <= share => (4, 2),
            _ if bits == 4 && empty == 0 => (2, 2),
            _ => (2, 4),
        };
        Self { row_tiles, ring, ..self }
    }

    /// The same for the least number of cubes among which all of x fits their shared memory, from its own number on.
    fn spread(self, problem: &Problem, limits: &Limits) -> Self {
        let whole = |cut: &Self| {
            let plan = cut.plan(problem, limits);
            (plan.k_stage * plan.split) as usize >= problem.k
        };
        let more = [1, 2, 4, 8].into_iter().filter(|split| *split >= self.split);
        more.map(|split| Self { split, ..self }).find(whole).unwrap_or(self)
    }
}

/// What to try, best first: seen on an H200 (`docs/perf-log.md` has the figures). Where x does not fit, cubes of a
/// cluster divide k; before Hopper, cubes stage x part by part, and split k only for want of rows.
pub(super) fn all(problem: &Problem, limits: &Limits) -> Vec<Cut> {
    let cut = |tokens, planes, row_tiles, resident| {
        let (split, hold, ring) = (1, false, 0);
        Cut { tokens, planes, row_tiles, split, resident, hold, ring }
    };
    let spread = |cut: Cut, split| match limits.bulk {
        true => Cut { split, ..cut }.spread(problem, limits),
        false => cut,
    };
    // Where x is staged part by part, half as many row tiles are what leaves the compiler registers: with all of them 4 to
    // 176 bytes spill.
    let side_by_side = |row_tiles: u32| if limits.bulk { row_tiles } else { row_tiles / 2 };
    let small_groups = matches!(problem.format.group, Group::Size(size) if size <= 32);
    let bits = problem.format.bits.get();
    let (tiles, processors) = (problem.n.div_ceil(pack::BLOCK_ROWS), limits.processors.max(1));
    let (share, tiles) = (tiles.div_ceil(processors), tiles / processors);
    // The sums of four groups of 32 tokens leave no registers where x is staged part by part.
    let m = match problem.m {
        17..=32 if small_groups && !limits.bulk => 16,
        m => m,
    };
    let mut cuts = match m {
        0..=8 => {
            let tokens = (problem.m.max(1) as u32).next_power_of_two();
            let narrow = cut(tokens, (1, 16), 2, 1);
            let held = Cut { hold: true, ..narrow };
            let ringed = Cut { ring: 2, ..held };
            // Most of a small share of W on its way before x is there.
            let early = Cut { ring: 3, row_tiles: 1, ..held };
            let long = Cut { ring: 4, ..held };
            let (tall, wide) = (cut(tokens, (1, 16), 4, 1), cut(tokens, (2, 16), 2, 1));
            let (third, deep) = (cut(tokens, (1, 16), 3, 1), cut(tokens, (1, 32), 2, 1));
            let twice = cut(tokens, (1, 16), 2, 2);
            let broad = Cut { ring: 2, ..tall };
            let lone = limits.bulk && tokens == 1;
            let spread_held = held.spread(problem, limits);
            if spread_held.split > 1 && limits.bulk {
                let apart = Cut { hold: true, ..cut(tokens, (2, 8), 2, 1) };
                let (held, others) = (spread(held, 2), [spread(apart, 2), spread(tall, 2)]);
                match spread_held.plan(problem, limits).held {
                    0 => vec![others[0], others[1], held, twice],
                    _ => vec![held, others[0], others[1], twice],
                }
            } else {
                // What leaves no plane without a row tile in the last round.
                let even = match share {
                    _ if lone => held.lone(problem, share),
                    // A step of k for each plane: three tiles side by side wait for memory once.
                    3 if (1025..=2048).contains(&problem.k) => third,
                    // Several rows of x take longer to come than a first tile, so two may come at once.
                    _ if limits.bulk && problem.k <= 8192 && share.is_multiple_of(2) => ringed,
                    _ if limits.bulk && problem.k <= 8192 => early,
                    0..3 if problem.k > 8192 => ringed,
                    0..3 => narrow,
                    _ if share.is_multiple_of(4) && problem.k > 8192 => wide,
                    _ if share.is_multiple_of(4) && tokens >= 4 => ringed,
                    _ if share.is_multiple_of(4) => tall,
                    _ if problem.k > 8192 && share > 8 => deep,
                    _ if share.is_multiple_of(3) => third,
                    _ => ringed,
                };
                let mut cuts = match problem.k {
                    0..=8192 => vec![even, early, ringed, long, tall, narrow, wide, third, deep],
                    _ => vec![even, ringed, long, deep, narrow, tall, wide, third],
                };
                if lone && problem.k > 8192 {
                    cuts.push(broad);
                }
                // What stages x part by part does so anew for every round.
                cuts.sort_by_key(|cut| (cut.plan(problem, limits).k_stage as usize) < problem.k);
                cuts
            }
        }
        9..=16 => {
            let (flat, square) = (cut(16, (2, 8), 2, 1), cut(16, (4, 4), 2, 1));
            let flat = Cut { hold: true, ..flat };
            let tall = cut(16, (16, 1), side_by_side(4), 1);
            match tiles {
                0..2 if problem.k <= 8192 => vec![spread(flat, 2), spread(square, 2), square],
                0..8 => vec![spread(square, 2), spread(flat, 2), square],
                _ => vec![spread(tall, 4), spread(square, 2), square],
            }
        }
        17..=32 => {
            let (square, tall) = (cut(32, (4, 4), 1, 1), cut(32, (16, 1), side_by_side(2), 1));
            let whole = spread(tall, 2).plan(problem, limits);
            let whole = (whole.k_stage * whole.split) as usize >= problem.k;
            match tiles {
                0..3 if problem.k <= 8192 => vec![spread(square, 2), spread(tall, 2), square],
                _ if whole => vec![spread(tall, 2), spread(square, 2), square],
                _ => vec![square, spread(square, 2), spread(tall, 2)],
            }
        }
        // The sums of four groups of two row tiles side by side leave the compiler no registers.
        _ if small_groups => vec![cut(64, (8, 1), 1, 1)],
        _ => vec![cut(64, (8, 1), 2, 1), cut(64, (8, 1), 1, 1)],
    };
    if !limits.bulk {
        // The smaller cubes that fit 99 kB, and shares of k where rows are few.
        let tokens = cuts[0].tokens;
        cuts.extend([cut(tokens, (1, 8), 2, 2), cut(tokens, (1, 8), 1, 2)]);
        // Nothing begins before x is there, so nothing gains by long rings.
        cuts.retain(|cut| cut.ring < 3);
        // What spills otherwise: eight sums in each of four row tiles, what 32 planes have beside eight sums or the masks of a
        // lone row in their 64 registers, and the sums of four groups of a block.
        cuts.retain(|cut| match tokens {
            8 => cut.row_tiles < 4 && cut.planes.0 * cut.planes.1 < 32,
            1 => bits < 4 || cut.planes != (1, 32),
            _ => true,
        });
        if small_groups {
            let spills = |cut: &&mut Cut| !cut.hold || cut.tokens > 8;
            cuts.iter_mut().filter(spills).for_each(|cut| cut.row_tiles = 1);
        }
        let rows = problem.n.div_ceil(32) * problem.m.div_ceil(tokens as usize);
        if 2 * rows <= limits.processors {
            cuts.insert(0, Cut { split: 2, ..cuts[0] });
        }
    }
    cuts
}
