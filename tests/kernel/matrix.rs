//! The matrix: bits × groups × types × tables × rows × shapes × plans, as much of it as is asked for.

use crate::{
    device::{Runtime, runtimes},
    run::{Bench, Work},
    selection,
};
use flute_cube::Plan;
use std::{
    collections::{HashMap, HashSet},
    env,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// Failures after which a runtime's cases are given up.
const PATIENCE: usize = 20;

#[test]
fn every_plan_meets_the_numeric_contract_and_repeats_its_bits() {
    let choice = env::var("FLUTE_MATRIX").unwrap_or_else(|_| "quick".into());
    let name = env::var("FLUTE_CASE").ok();
    let (mut found, mut failures) = (0, vec![]);
    for runtime in runtimes() {
        let mut works = match choice.as_str() {
            "sanitize" => selection::sanitize(runtime),
            // Kernels are compiled one after another in a process, and there are hundreds of them.
            _ if name.is_none() && shard().is_none() => {
                failures.extend(in_processes(runtime));
                continue;
            }
            "quick" => selection::quick(runtime, shard()),
            "full" => selection::full(runtime, shard(), 8),
            "every" => selection::full(runtime, shard(), 1),
            other => panic!("FLUTE_MATRIX is '{other}'; known are quick, full, every and sanitize"),
        };
        works.retain(|work| name.as_ref().is_none_or(|name| work.case.to_string().contains(name)));
        found += works.len();
        let repeats = if choice == "sanitize" { 1 } else { 2 };
        for failure in run(runtime, &works, repeats) {
            let (case, runtime) = (failure.split(',').next().unwrap_or_default(), runtime.name);
            failures.push(format!(
                "{runtime}: {failure}\n    repeat: FLUTE_REQUIRE={runtime} FLUTE_MATRIX={choice} FLUTE_CASE='{case}' \
                 cargo test --test kernel matrix -- --nocapture",
            ));
        }
    }
    let asked = name.is_some() && !runtimes().is_empty();
    assert!(found > 0 || !asked, "no case bears the name that FLUTE_CASE asks for");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// `FLUTE_SHARD=2/4` as (2, 4).
fn shard() -> Option<(usize, usize)> {
    let shard = env::var("FLUTE_SHARD").ok()?;
    let parts: Vec<usize> = shard.split('/').filter_map(|part| part.parse().ok()).collect();
    match parts.as_slice() {
        &[i, of] if (1..=of).contains(&i) => Some((i, of)),
        _ => panic!("FLUTE_SHARD is '{shard}'; it must be like 2/4"),
    }
}

/// Runs this test in as many processes as there are cores, up to 16, each with its share of the kernels.
fn in_processes(runtime: &Runtime) -> Option<String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let of = cores.min(16);
    let spawn = |i| {
        let mut command = Command::new(env::current_exe().expect("a running program"));
        command.args(["every_plan_meets_the_numeric_contract", "--nocapture"]);
        command.env("FLUTE_SHARD", format!("{i}/{of}")).env("FLUTE_ONLY", runtime.name);
        command.env("RAYON_NUM_THREADS", (cores / of).to_string());
        command.spawn().expect("this program runs again")
    };
    let start = Instant::now();
    let children: Vec<_> = (1..=of).map(spawn).collect();
    let succeeded =
        children.into_iter().map(|mut child| child.wait().is_ok_and(|status| status.success()));
    let failed = succeeded.filter(|succeeded| !succeeded).count();
    println!(
        "{}: {of} processes in {:.1} s, {failed} failed",
        runtime.name,
        start.elapsed().as_secs_f64()
    );
    (failed > 0)
        .then(|| format!("{}: {failed} of {of} shards failed, see their output", runtime.name))
}

fn run(runtime: &Runtime, works: &[Work], repeats: usize) -> Vec<String> {
    let mut rows = HashMap::new();
    for Work { case, .. } in works {
        let most = rows.entry((case.weight, case.dtype, case.input)).or_insert(0);
        *most = case.m.max(*most);
    }
    let (start, mut told) = (Instant::now(), Instant::now());
    let (mut bench, mut failures, mut done) = (Bench::new(runtime, repeats), vec![], 0);
    for work in works {
        let Work { case, .. } = work;
        failures.extend(bench.run(work, rows[&(case.weight, case.dtype, case.input)]));
        done += 1;
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!(
                "{}: {done} of {} cases, {} launches",
                runtime.name,
                works.len(),
                bench.launches
            );
        }
        if failures.len() >= PATIENCE {
            println!("{}: giving up after {PATIENCE} failures", runtime.name);
            break;
        }
    }
    failures.extend(bench.finish());
    let plans: HashSet<Plan> = works.iter().flat_map(|work| work.plans.iter().copied()).collect();
    println!(
        "{}: {done} cases, {} plans, {} launches, {} failures in {:.1} s",
        runtime.name,
        plans.len(),
        bench.launches,
        failures.len(),
        start.elapsed().as_secs_f64(),
    );
    failures
}
