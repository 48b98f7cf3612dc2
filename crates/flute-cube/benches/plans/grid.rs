//! More plans than the planner considers.

use flute_cube::{CooperativePlan, DensePlan, Limits, MmaPlan, Plan, Problem, StreamPlan};

/// All of them.
pub(crate) fn all(problem: &Problem, limits: &Limits) -> Vec<Plan> {
    let tokens = match problem.m {
        0..=8 => problem.m.next_power_of_two() as u32,
        m => (m as u32).next_multiple_of(8).min(64),
    };
    // 32 planes are the largest cube, and the one whose registers the compiler keeps to 64.
    let shapes: &[(u32, u32)] = match problem.m {
        0..=4 => &[(1, 8), (1, 16), (1, 32), (2, 16), (4, 8)],
        5..=8 => &[(1, 8), (1, 16), (2, 8), (2, 16), (4, 8), (8, 4)],
        _ => &[(1, 16), (2, 8), (4, 4), (8, 2), (8, 1), (16, 1), (16, 2), (8, 4), (4, 8)],
    };
    let mut plans = streams(problem, limits);
    plans.extend(cooperative(problem, limits));
    let parts = [1, 2, 3, 4, 6, 8].map(|parts| Plan::Dense(DensePlan { parts }));
    plans.extend(parts.into_iter().filter(|plan| plan.validate(problem, limits).is_ok()));
    for &(planes_n, planes_k) in shapes {
        for row_tiles in [1, 2, 3, 4] {
            let splits = if problem.m <= 4 { &[1, 2][..] } else { &[1, 2, 4, 8][..] };
            for &split in splits {
                let rings = [0, 2, 3, 4, 6];
                let cubes = [(1, false), (2, false), (1, true)];
                for (ring, (resident, held)) in
                    rings.into_iter().flat_map(|ring| cubes.map(|cube| (ring, cube)))
                {
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
                        cluster: split > 1,
                        resident,
                        slots: 1,
                    };
                    let held = if held { plan.steps(problem) as u32 } else { 0 };
                    let plan = MmaPlan { held, ..plan }.fitting(problem, limits);
                    if held * tokens.div_ceil(8) > 5 {
                        continue;
                    }
                    let (cubes, units) = (resident as usize, plan.units());
                    let fits = (512..=1024).contains(&(cubes * units))
                        && cubes * (plan.shared_bytes(problem) + 1024) <= 228 << 10;
                    let whole = (plan.k_stage * split) as usize >= problem.k;
                    let plan = Plan::Mma(plan);
                    if fits && whole && plan.validate(problem, limits).is_ok() {
                        plans.push(plan);
                    }
                }
            }
        }
    }
    plans
}

/// More streaming plans than the planner considers.
fn streams(problem: &Problem, limits: &Limits) -> Vec<Plan> {
    let tokens = (problem.m as u32).clamp(8, 128).next_power_of_two();
    let tiles = problem.n.div_ceil(16) * problem.m.div_ceil(tokens as usize);
    let mut plans: Vec<Plan> = vec![];
    let shapes = [(4, 1), (2, 2), (1, 4), (2, 1), (2, 3), (3, 2), (1, 6), (1, 5)];
    for (warpgroups, warpgroups_k) in shapes {
        for split in [1, 2, 4] {
            let room = limits.processors / split as usize;
            let most = 4 * warpgroups as usize;
            let rounds = tiles.div_ceil(most * room);
            let own = tiles.div_ceil(rounds * room).clamp(1, most) as u32;
            for blocks in [1, 2] {
                let plan = |stages| StreamPlan {
                    warpgroups,
                    warpgroups_k,
                    tiles: own,
                    tokens,
                    blocks,
                    stages,
                    split,
                };
                let serves =
                    |stages: &u32| Plan::Stream(plan(*stages)).validate(problem, limits).is_ok();
                // Short rings leave room for what runs before or after.
                let most = (3..=10 / blocks).rev().find(serves);
                let mut stages: Vec<u32> =
                    [3, 4, 6].into_iter().filter(|stages| Some(*stages) < most).collect();
                stages.extend(most);
                plans.extend(stages.into_iter().map(|stages| Plan::Stream(plan(stages))));
            }
        }
    }
    plans.dedup();
    plans
}

/// Plans on cooperative matrices, where there are tensor-core plans too.
fn cooperative(problem: &Problem, limits: &Limits) -> Vec<Plan> {
    let tokens = (problem.m as u32).next_power_of_two().clamp(16, 128);
    let mut plans = vec![];
    for planes in [2, 4, 8] {
        for (depth, stages) in [(128, 1), (64, 2), (64, 1), (32, 2), (32, 1)] {
            for across in [1, 2, 4] {
                for tokens in [tokens / 2, tokens] {
                    for split in [1, 2, 4, 8, 16] {
                        let plan = CooperativePlan {
                            planes,
                            tokens,
                            across,
                            depth,
                            stages,
                            copies: 1,
                            split,
                        };
                        let cubes = problem.n.div_ceil(plan.rows())
                            * problem.m.div_ceil(tokens as usize)
                            * split as usize;
                        // Fewer leave most of a large device alone; of more, none gains by a further fold.
                        let fills = (64..2048).contains(&cubes) || split == 1;
                        let plan = plan.fitting(problem, limits).map(Plan::Cooperative);
                        let serves = |plan: &Plan| plan.validate(problem, limits).is_ok();
                        plans.extend(plan.filter(|plan| fills && serves(plan)));
                    }
                }
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    plans.retain(|plan| seen.insert(*plan));
    plans
}
