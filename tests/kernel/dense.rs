//! Plans that decode and leave the product to the vendor's library.

use crate::{
    case::{Case, Input, Weight, activations},
    device::{Guarded, alone, runtimes},
    oracle::Oracle,
};
use cubecl::{prelude::Client, server::Handle};
use flute_cube::{
    Bits, DensePlan, Dtype, Error, Format, Group, Limits, Operands, PackedWeight, Plan, Problem,
    TableKind, qgemm_with, tune,
};

const FORMAT: Format = Format { bits: Bits::Four, group: Group::Size(64) };

fn problem(m: usize, n: usize, k: usize, dtype: Dtype) -> Problem {
    Problem { m, n, k, format: FORMAT, dtype, bias: false, gate: None }
}

#[test]
fn a_dense_plan_is_for_many_rows_of_half_types_and_its_memory_is_bounded() {
    let limits = Limits { dense: true, ..Limits::nvidia("H200", 132, 227) };
    let dense = |problem: &Problem| {
        let plans = Plan::candidates(problem, &limits).expect("a valid problem");
        plans.into_iter().find_map(|plan| match plan {
            Plan::Dense(plan) => Some(plan),
            _ => None,
        })
    };
    for (n, k) in [(4096, 4096), (28672, 4096), (57344, 8192), (53248, 16384), (1 << 18, 16384)] {
        for dtype in [Dtype::F16, Dtype::BF16] {
            let many = problem(8192, n, k, dtype);
            let plan = dense(&many).expect("a dense plan");
            assert!(plan.workspace(&many) <= 1 << 30, "{plan} for {many:?}");
            assert!(plan.workspace(&many) > 1 << 28 || plan.parts == 1, "{plan}");
            assert_eq!(Plan::select(&many, &limits), Ok(Plan::Dense(plan)));
            assert_eq!(dense(&problem(128, n, k, dtype)), None);
            let plan = Plan::select(&problem(64, n, k, dtype), &limits);
            assert!(matches!(plan, Ok(Plan::Stream(_))));
        }
    }
    assert_eq!(dense(&problem(8192, 4096, 4096, Dtype::F32)), None);
    let without = Limits { dense: false, ..limits.clone() };
    let plan = Plan::select(&problem(8192, 4096, 4096, Dtype::F16), &without);
    assert!(matches!(plan, Ok(Plan::Stream(_))));
}

#[test]
fn a_dense_plan_is_refused_where_there_is_no_library() {
    for runtime in runtimes().iter().filter(|runtime| !runtime.limits.dense) {
        let problem = problem(300, 64, 64, runtime.limits.dtypes[0]);
        let error = Plan::Dense(DensePlan { parts: 2 }).validate(&problem, &runtime.limits);
        let error = error.expect_err("refused");
        assert!(error.is_unsupported(), "{error}");
        assert!(error.to_string().contains("needs 1 dense library"), "{error}");
    }
}

/// A product whose operands lie on a device.
struct Loaded {
    case: Case,
    oracle: Oracle,
    operands: Operands,
}

impl Loaded {
    fn new(client: &Client, case: Case) -> Self {
        let oracle = Oracle::new(&case, case.m);
        let packed = PackedWeight::pack(&oracle.weight);
        let x = activations(case.input, case.m, case.weight.k, case.dtype);
        let bias = case.bias.then(|| oracle.bias());
        let operands = Operands::upload(client, &packed, &x, bias, case.dtype);
        Self { case, oracle, operands }
    }

    fn writing(&self, y: Handle) -> Operands {
        Operands { y, ..self.operands.clone() }
    }
}

#[test]
fn a_weight_decoded_part_by_part_gives_what_it_gives_as_a_whole() {
    for runtime in runtimes().iter().filter(|runtime| runtime.limits.dense) {
        let client = &runtime.client;
        for (dtype, bias) in [(Dtype::F16, true), (Dtype::BF16, false)] {
            let weight =
                Weight { format: FORMAT, table: TableKind::Nf, n: 1000, k: 320, exact: false };
            let case = Case { weight, dtype, input: Input::Random, m: 257, bias };
            let loaded = Loaded::new(client, case);
            // Many launches after another: what is queued before and after each must wait for it.
            for parts in [1, 16, 63] {
                let y = Guarded::poisoned(client, case.m * weight.n * dtype.size());
                let plan = Plan::Dense(DensePlan { parts });
                qgemm_with(client, &case.problem(), &plan, loaded.writing(y.inner()))
                    .expect("launched");
                let outer = client.read_one(y.outer()).expect("read");
                let found = dtype.decode(y.content(&outer).expect("guards are whole"));
                let verdict = loaded.oracle.target(&loaded.case).check_decoded(&found);
                assert_eq!(verdict, Ok(()), "{plan} in {dtype}");
            }
        }
    }
}

#[test]
fn a_graph_capture_refuses_a_dense_plan_and_takes_another() {
    if !alone("dense::a_graph_capture_refuses_a_dense_plan_and_takes_another") {
        return;
    }
    for runtime in runtimes().iter().filter(|runtime| runtime.limits.dense) {
        let client = &runtime.client;
        let weight = Weight { format: FORMAT, table: TableKind::Nf, n: 256, k: 256, exact: false };
        let case = Case { weight, dtype: Dtype::F16, input: Input::Random, m: 1024, bias: false };
        let loaded = Loaded::new(client, case);
        let y = client.empty(case.m * weight.n * 2);
        client.graph_prepare().expect("graphs");
        client.start_capture().expect("a capture");
        let plan = Plan::Dense(DensePlan { parts: 1 });
        let refused = qgemm_with(client, &case.problem(), &plan, loaded.writing(y));
        let taken = tune::plan(client, &case.problem());
        client.stop_capture().expect("captured nothing");
        assert!(matches!(refused, Err(Error::UnsupportedPlan { .. })), "{refused:?}");
        assert!(taken.is_ok_and(|plan| !matches!(plan, Plan::Dense(_))));
    }
}
