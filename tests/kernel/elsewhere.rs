//! Plans of GPUs that are not at hand: what an A100 and an RTX 4090 would be given, forced on every device with tensor cores.
//! Their planes copy words lane by lane, stage x part by part, and fold a divided k through memory.

use crate::{
    case::{Case, Input, Weight},
    device::{Runtime, runtimes},
    run::{Bench, Work},
};
use flute_cube::{Bits, Dtype, Format, Group, Limits, Plan, Problem, TableKind};

/// Rows of weights for which plans are made; what they do with a share of that is seen with fewer.
const ROWS_OF_WEIGHTS: [usize; 3] = [1024, 4096, 28672];
const N: usize = 72;

/// Bits, groups and k: groups with columns, of a block and of several, x that fits shared memory and x that does not.
const FORMATS: [(Bits, Group, usize); 7] = [
    (Bits::Four, Group::Size(128), 4096),
    (Bits::Four, Group::Size(32), 4096),
    (Bits::Three, Group::Size(64), 4096),
    (Bits::Three, Group::Whole, 1000),
    (Bits::Two, Group::Size(128), 4096),
    (Bits::Two, Group::Size(32), 2048),
    (Bits::Four, Group::Size(128), 14336),
];

const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 29, 100];

/// What an A100 and an RTX 4090 might be given for `problem` with many rows of W, where `here` can run it.
fn plans(problem: &Problem, here: &Limits) -> Vec<Plan> {
    let mut plans = vec![];
    for limits in [Limits::nvidia("A100", 108, 163), Limits::nvidia("RTX 4090", 128, 99)] {
        for n in ROWS_OF_WEIGHTS {
            let all =
                Plan::candidates(&Problem { n, ..*problem }, &limits).expect("a valid problem");
            let serves =
                |plan: &Plan| matches!(plan, Plan::Mma(_)) && plan.validate(problem, here).is_ok();
            for plan in all.into_iter().filter(serves) {
                if !plans.contains(&plan) {
                    plans.push(plan);
                }
            }
        }
    }
    plans
}

fn case((bits, group, k): (Bits, Group, usize), m: usize) -> Case {
    let (format, dtype) = (Format { bits, group }, Dtype::F16);
    let weight = Weight { format, table: TableKind::Nf, n: N, k, exact: false };
    Case { weight, dtype, input: Input::Random, m, bias: m % 2 == 1 }
}

#[test]
fn gpus_before_hopper_get_plans_without_bulk_copies_and_clusters_with_rings_and_shares_of_k_among_them()
 {
    let hopper = Limits::nvidia("H200", 132, 227);
    let (mut rings, mut splits) = (0, 0);
    for (format, m) in FORMATS.into_iter().flat_map(|format| ROWS.map(|m| (format, m))) {
        let case = case(format, m);
        let plans = plans(&case.problem(), &hopper);
        assert!(!plans.is_empty(), "{case}");
        for plan in plans {
            let Plan::Mma(plan) = plan else { unreachable!("filtered") };
            assert!(!plan.bulk && !plan.cluster, "{plan}");
            rings += usize::from(plan.ring > 0);
            splits += usize::from(plan.split > 1);
        }
    }
    println!("{rings} plans with rings, {splits} that divide k");
    assert!(rings > 0 && splits > 0, "{rings} plans with rings, {splits} that divide k");
}

#[test]
fn plans_of_an_a100_and_an_rtx_4090_are_right_on_every_device_with_tensor_cores() {
    for runtime in runtimes() {
        let Runtime { name, limits, .. } = runtime;
        if !limits.mma {
            println!("{name}: no tensor cores here, skipped");
            continue;
        }
        // Twice, to compare the bits.
        let mut bench = Bench::new(runtime, 2);
        let mut failures = vec![];
        for (format, m) in FORMATS.into_iter().flat_map(|format| ROWS.map(|m| (format, m))) {
            let case = case(format, m);
            let plans = plans(&case.problem(), limits);
            failures.extend(bench.run(&Work { case, plans }, ROWS[ROWS.len() - 1]));
        }
        failures.extend(bench.finish());
        println!("{name}: {} launches", bench.launches);
        assert!(failures.is_empty(), "{name}:\n{}", failures.join("\n"));
    }
}
