//! The kernel on cooperative matrices: right wherever a device multiplies them, CUDA included, which never chooses it, and
//! refused elsewhere.

use crate::{
    case::{Case, Input, Weight},
    device::{Runtime, runtimes},
    run::{Bench, Work},
};
use flute_cube::{
    Bits, CooperativePlan, Dtype, Error, Format, Group, Limits, Operands, PackedWeight, Plan,
    Problem, TableKind, qgemm_with,
};

/// Plans that differ in everything: tiles, stages, copies of the table, and how k is divided.
const PLANS: [CooperativePlan; 5] = [
    CooperativePlan { planes: 4, tokens: 16, across: 1, depth: 64, stages: 2, copies: 8, split: 1 },
    CooperativePlan {
        planes: 2,
        tokens: 32,
        across: 2,
        depth: 128,
        stages: 1,
        copies: 16,
        split: 4,
    },
    CooperativePlan { planes: 8, tokens: 64, across: 2, depth: 32, stages: 2, copies: 4, split: 2 },
    CooperativePlan {
        planes: 4,
        tokens: 128,
        across: 4,
        depth: 64,
        stages: 1,
        copies: 1,
        split: 16,
    },
    CooperativePlan {
        planes: 8,
        tokens: 16,
        across: 1,
        depth: 32,
        stages: 1,
        copies: 16,
        split: 3,
    },
];

/// Bits, groups, n and k: whole and ragged rows, columns and shares of k, loads of x of every width.
const WEIGHTS: [(Bits, Group, usize, usize); 8] = [
    (Bits::Four, Group::Size(128), 100, 512),
    (Bits::Four, Group::Size(32), 33, 130),
    (Bits::Four, Group::Whole, 256, 1032),
    (Bits::Three, Group::Size(64), 130, 204),
    (Bits::Three, Group::Size(128), 1, 1280),
    (Bits::Two, Group::Whole, 48, 1001),
    (Bits::Two, Group::Size(32), 17, 256),
    (Bits::Two, Group::Size(64), 200, 1),
];

const ROWS: [usize; 5] = [1, 16, 17, 33, 100];

/// A GPU behind Vulkan, as NVIDIA's driver describes one.
fn vulkan() -> Limits {
    Limits {
        runtime: "wgpu<spirv>".into(),
        mma: false,
        bulk: false,
        wgmma: false,
        cooperative: vec![Dtype::F16],
        ..Limits::nvidia("a GPU", 16, 48)
    }
}

fn problem(m: usize) -> Problem {
    let format = Format::new(4, 128).expect("served");
    Problem { m, n: 4096, k: 4096, format, dtype: Dtype::F16, bias: false, gate: None }
}

fn cooperative(plan: &Plan) -> bool {
    matches!(plan, Plan::Cooperative(_))
}

/// The cases of one weight in one type: its rows, and an identity of half of its columns.
fn cases((bits, group, n, k): (Bits, Group, usize, usize), dtype: Dtype) -> Vec<Case> {
    let format = Format { bits, group };
    let weight = |exact| {
        let table = if exact { TableKind::Custom } else { TableKind::Nf };
        Weight { format, table, n, k, exact }
    };
    let case = |input, m, bias| {
        let weight = weight(input == Input::Exact);
        Case { weight, dtype, input, m, bias }
    };
    let mut cases = ROWS.map(|m| case(Input::Random, m, m % 2 == 1)).to_vec();
    cases.push(case(Input::Identity, k.div_ceil(2).clamp(1, 200), false));
    cases.push(case(Input::Exact, 53, true));
    cases
}

#[test]
fn products_on_cooperative_matrices_are_right_wherever_there_are_such() {
    for runtime in runtimes() {
        let Runtime { name, limits, .. } = runtime;
        if limits.cooperative.is_empty() || limits.lanes != 32 {
            println!("{name}: no cooperative matrices of 16 × 16 × 16 here, skipped");
            continue;
        }
        // Twice, to compare the bits.
        let mut bench = Bench::new(runtime, 2);
        let mut failures = vec![];
        for &dtype in &limits.cooperative {
            for weight in WEIGHTS {
                for case in cases(weight, dtype) {
                    let plans = PLANS.map(Plan::Cooperative).to_vec();
                    failures.extend(bench.run(&Work { case, plans }, ROWS[ROWS.len() - 1]));
                }
            }
        }
        failures.extend(bench.finish());
        println!("{name}: {} launches on cooperative matrices", bench.launches);
        assert!(failures.is_empty(), "{name}:\n{}", failures.join("\n"));
    }
}

#[test]
fn cooperative_matrices_serve_16_rows_and_more_where_nothing_better_does() {
    let limits = vulkan();
    for m in [1, 8, 15, 16, 17, 64, 128, 1000] {
        let plan = Plan::select(&problem(m), &limits).expect("a valid problem");
        let plans = Plan::candidates(&problem(m), &limits).expect("a valid problem");
        assert_eq!(cooperative(&plan), m >= 16, "{m} rows: {plan}");
        assert_eq!(plans.iter().any(cooperative), m >= 16, "{m} rows: {plans:?}");
        assert!(plans.contains(&plan), "{m} rows: {plan}");
        assert_eq!(plan.rounds_weights(), m >= 16);
    }
    let none = Limits { cooperative: vec![], ..vulkan() };
    let varying = Limits { lanes: 1, ..vulkan() };
    for (dtype, limits) in [
        (Dtype::F32, vulkan()),
        (Dtype::BF16, vulkan()),
        (Dtype::F16, none),
        (Dtype::F16, varying),
        (Dtype::F16, Limits::nvidia("A100", 108, 163)),
        (Dtype::F16, Limits::nvidia("H200", 132, 227)),
    ] {
        for m in [16, 100] {
            let problem = Problem { dtype, ..problem(m) };
            let plans = Plan::candidates(&problem, &limits).expect("a valid problem");
            assert!(!plans.iter().any(cooperative), "{dtype} on {}: {plans:?}", limits.name);
        }
    }
}

#[test]
fn k_is_divided_where_rows_of_the_weight_would_leave_a_device_idle() {
    let split = |n| {
        let plan = Plan::select(&Problem { n, ..problem(16) }, &vulkan());
        match plan.expect("a valid problem") {
            Plan::Cooperative(plan) => plan.split,
            other => panic!("{other}"),
        }
    };
    assert_eq!(split(28672), 1);
    assert!(split(4096) > 1 && split(1024) >= split(4096));
}

#[test]
fn a_device_without_what_cooperative_matrices_need_refuses_their_plans() {
    let whole = Plan::Cooperative(PLANS[0]);
    assert_eq!(whole.validate(&problem(16), &vulkan()), Ok(()));
    assert_eq!(whole.validate(&problem(16), &Limits::nvidia("H200", 132, 227)), Ok(()));
    let tight = Limits { shared_bytes: 16 << 10, ..vulkan() };
    let small = Limits { cube_units: 64, ..vulkan() };
    let varying = Limits { lanes: 1, ..vulkan() };
    for (limits, lacking) in [
        (Limits { cooperative: vec![], ..vulkan() }, "cooperative matrices"),
        (Limits { cooperative: vec![Dtype::BF16], ..vulkan() }, "cooperative matrices"),
        (varying, "units a plane"),
        (small, "units a cube"),
        (tight, "bytes of shared memory"),
    ] {
        match whole.validate(&problem(16), &limits) {
            Err(Error::UnsupportedPlan { what, .. }) => {
                assert!(what.starts_with(lacking), "{what}, not {lacking}");
            }
            other => panic!("{lacking}: {other:?}"),
        }
    }
    for runtime in runtimes().iter().filter(|runtime| runtime.limits.cooperative.is_empty()) {
        let (client, problem) = (&runtime.client, Problem { n: 16, k: 128, ..problem(16) });
        if !runtime.limits.dtypes.contains(&problem.dtype) {
            continue;
        }
        let weight =
            Weight { format: problem.format, table: TableKind::Nf, n: 16, k: 128, exact: false };
        let packed = PackedWeight::pack(&weight.quantized());
        let operands = Operands::upload(client, &packed, &vec![1.0; 16 * 128], None, problem.dtype);
        let error = qgemm_with(client, &problem, &whole, operands).expect_err("refused");
        assert!(error.is_unsupported(), "{}: {error}", runtime.name);
    }
}

#[test]
fn a_cooperative_plan_that_no_kernel_follows_is_refused() {
    let plan = PLANS[0];
    for plan in [
        CooperativePlan { planes: 0, ..plan },
        CooperativePlan { planes: 3, ..plan },
        CooperativePlan { tokens: 8, ..plan },
        CooperativePlan { tokens: 48, ..plan },
        CooperativePlan { across: 0, ..plan },
        CooperativePlan { across: 2, ..plan },
        CooperativePlan { planes: 2, tokens: 64, across: 4, ..plan },
        CooperativePlan { depth: 16, ..plan },
        CooperativePlan { depth: 128, ..plan },
        CooperativePlan { stages: 0, ..plan },
        CooperativePlan { stages: 3, depth: 32, ..plan },
        CooperativePlan { copies: 3, ..plan },
        CooperativePlan { copies: 64, ..plan },
        CooperativePlan { split: 0, ..plan },
        CooperativePlan { split: 17, ..plan },
    ] {
        let error = Plan::Cooperative(plan).validate(&problem(64), &vulkan());
        assert!(matches!(error, Err(Error::InvalidPlan { .. })), "{plan}: {error:?}");
    }
    let wide = Problem { dtype: Dtype::F32, ..problem(16) };
    let error = Plan::Cooperative(plan).validate(&wide, &vulkan());
    assert!(matches!(error, Err(Error::InvalidPlan { .. })), "{error:?}");
}
