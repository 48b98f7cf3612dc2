//! Measured plans: what is stored, who finds it, and when nothing is measured.

use crate::{
    case::{Input, Weight, activations},
    device::{Runtime, alone, runtimes},
};
use cubecl::environment;
use flute_cube::{
    Bits, Dtype, Error, Format, Group, Operands, PackedWeight, Plan, Problem, TableKind, qgemm,
    qgemm_with, tune,
};

/// One story: the environment that plans are stored in is that of the whole process.
#[test]
fn a_measured_plan_is_used_from_then_on_and_forgotten_when_asked() {
    if !alone("tuning::a_measured_plan_is_used_from_then_on_and_forgotten_when_asked") {
        return;
    }
    let before = environment::root();
    let ours = tempfile::tempdir().expect("a directory");
    let empty = tempfile::tempdir().expect("a directory");
    for Runtime { name, client, limits } in runtimes() {
        environment::set_root(ours.path());
        let dtype = if limits.mma { Dtype::F16 } else { Dtype::F32 };
        let format = Format { bits: Bits::Three, group: Group::Size(32) };
        let problem = Problem { m: 3, n: 48, k: 320, format, dtype, bias: false, gate: None };
        let selected = Plan::select(&problem, limits).expect("a plan");
        assert_eq!(tune::tuned(client, &problem), None);
        assert_eq!(tune::plan(client, &problem), Ok(selected));

        if client.graph_prepare().is_ok() && client.start_capture().is_ok() {
            assert_eq!(tune::tune(client, &problem, |_, _| ()), Err(Error::Capturing));
            client.stop_capture().expect("captured nothing");
        }

        let mut seen = vec![];
        let tuned = tune::tune(client, &problem, |plan, run| {
            assert!(run.as_ref().is_ok_and(|run| run.is_right()), "{plan}: {run:?}");
            seen.push(*plan);
        });
        let tuned = tuned.expect("measured");
        println!("{name}: {} of {} in {} ns", tuned.plan, seen.len(), tuned.nanoseconds);
        let rounded = Problem { m: 4, ..problem };
        assert_eq!(Ok(seen), Plan::candidates(&rounded, limits));
        assert!(tuned.nanoseconds <= tuned.selected_nanoseconds);

        // It serves the rows up to the power of two that it was measured with, and nothing else.
        assert_eq!(tune::tuned(client, &rounded), Some(tuned));
        assert_eq!(tune::plan(client, &problem), Ok(tuned.plan));
        let group = Format { group: Group::Size(64), ..format };
        for other in [
            Problem { m: 2, ..problem },
            Problem { m: 5, ..problem },
            Problem { n: 64, ..problem },
            Problem { format: group, ..problem },
        ] {
            assert_eq!(tune::tuned(client, &other), None, "{other:?}");
        }

        let weight = Weight { format, table: TableKind::Nf, n: 48, k: 320, exact: false };
        let packed = PackedWeight::pack(&weight.quantized());
        let x = activations(Input::Random, problem.m, problem.k, dtype);
        let operands = || Operands::upload(client, &packed, &x, None, dtype);
        let (found, expected) = (operands(), operands());
        qgemm(client, &problem, found.clone()).expect("launched");
        qgemm_with(client, &problem, &tuned.plan, expected.clone()).expect("launched");
        let read = |operands: Operands| client.read_one(operands.y).expect("read").to_vec();
        assert_eq!(read(found), read(expected));

        // Another environment knows nothing; back in ours everything is read from disk anew.
        environment::set_root(empty.path());
        assert_eq!(tune::tuned(client, &problem), None);
        environment::set_root(ours.path());
        assert_eq!(tune::tuned(client, &problem), Some(tuned));

        // Measuring again replaces what was stored.
        let again = tune::tune(client, &problem, |_, _| ()).expect("measured");
        assert_eq!(tune::tuned(client, &problem), Some(again));

        tune::forget(client);
        assert_eq!(tune::tuned(client, &problem), None);
        environment::set_root(ours.path());
        assert_eq!(tune::tuned(client, &problem), None);
    }
    environment::set_root(before);
}

#[test]
fn a_problem_that_no_kernel_serves_is_refused_before_it_is_measured() {
    for Runtime { client, limits, .. } in runtimes() {
        let format = Format { bits: Bits::Four, group: Group::Size(32) };
        let problem =
            Problem { m: 1, n: 0, k: 64, format, dtype: limits.dtypes[0], bias: false, gate: None };
        let refused = tune::tune(client, &problem, |plan, _| panic!("{plan} was measured"));
        assert!(matches!(refused, Err(Error::OutOfRange { what: "n", found: 0, .. })));
    }
}
