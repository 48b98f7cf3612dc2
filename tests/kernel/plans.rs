//! Plans of devices that need not be here: plain data, so they can be asked for anywhere.

use crate::case::{BITS, GROUPS, ROWS, SHAPES};
use flute_cube::{Dtype, Format, Limits, Plan, Problem};
use std::collections::HashSet;

/// GPUs with and without tensor cores, large and small.
fn devices() -> Vec<Limits> {
    let nvidia = |name, processors, kilobytes| Limits::nvidia(name, processors, kilobytes);
    let plain = |name: &str, kilobytes: usize, cube_units| Limits {
        runtime: "wgpu<wgsl>".into(),
        mma: false,
        cube_units,
        cube_count: 65535,
        dtypes: vec![Dtype::F32, Dtype::F16],
        ..Limits::nvidia(name, 16, kilobytes)
    };
    vec![
        nvidia("H200", 132, 227),
        nvidia("A10", 72, 99),
        nvidia("T4", 40, 64),
        plain("WebGPU's least", 16, 256),
        plain("an integrated GPU", 32, 1024),
    ]
}

fn problems(limits: &Limits) -> Vec<Problem> {
    let mut problems = vec![];
    let large = [(57344, 8192), (8192, 28672), (53248, 16384)];
    for (n, k) in SHAPES.into_iter().chain(large) {
        for bits in BITS {
            for group in GROUPS {
                for &dtype in &limits.dtypes {
                    let format = Format { bits, group };
                    problems.extend(ROWS.map(|m| Problem {
                        m,
                        n,
                        k,
                        format,
                        dtype,
                        bias: m % 2 == 0,
                    }));
                }
            }
        }
    }
    problems
}

#[test]
fn the_selected_plan_is_among_the_candidates_and_each_of_them_is_valid() {
    for limits in devices() {
        for problem in problems(&limits) {
            let plans = Plan::candidates(&problem, &limits).expect("a valid problem");
            let selected = Plan::select(&problem, &limits).expect("a valid problem");
            assert!(plans.contains(&selected), "{selected} for {problem:?} on {}", limits.name);
            let different: HashSet<Plan> = plans.iter().copied().collect();
            assert_eq!(
                different.len(),
                plans.len(),
                "{problem:?} on {} has a plan twice",
                limits.name
            );
            for plan in plans {
                let verdict = plan.validate(&problem, &limits);
                assert_eq!(verdict, Ok(()), "{plan} for {problem:?} on {}", limits.name);
            }
        }
    }
}
