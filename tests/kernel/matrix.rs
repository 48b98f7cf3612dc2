//! The matrix: bits × groups × types × tables × rows × shapes, each with every plan that might serve it.

use crate::{
    case::{BITS, Case, GROUPS, Input, ROWS, SHAPES, TABLES, Weight},
    device::{Runtime, runtimes},
    run::{Bench, Work},
};
use flute_cube::{Format, Plan, TableKind};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{
    collections::{HashMap, HashSet},
    env,
    time::{Duration, Instant},
};

/// Failures after which a runtime's cases are given up.
const PATIENCE: usize = 20;

#[test]
fn every_plan_meets_the_numeric_contract_and_repeats_its_bits() {
    let choice = env::var("FLUTE_MATRIX").unwrap_or_else(|_| "quick".into());
    let (mut cases, mut failures) = (0, vec![]);
    for runtime in runtimes() {
        let works = match choice.as_str() {
            "quick" => quick(runtime),
            "full" => full(runtime, false),
            "sanitize" => sanitize(runtime),
            other => panic!("FLUTE_MATRIX is '{other}'; known are quick, full and sanitize"),
        };
        let works = only_asked(works);
        cases += works.len();
        let repeats = if choice == "sanitize" { 1 } else { 2 };
        for failure in run(runtime, &works, repeats) {
            failures.push(format!(
                "{}: {failure}\n    repeat: FLUTE_REQUIRE={} FLUTE_MATRIX={choice} FLUTE_CASE='{}' cargo test --test \
                 kernel matrix -- --nocapture",
                runtime.name,
                runtime.name,
                failure.split(',').next().unwrap_or_default(),
            ));
        }
    }
    assert!(cases > 0 || runtimes().is_empty(), "no case bears the name that FLUTE_CASE asks for");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
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

/// The cases of the product. `thin` takes only some rows of the identity where k is large.
fn full(runtime: &Runtime, thin: bool) -> Vec<Work> {
    let mut works = vec![];
    for (n, k) in SHAPES {
        for bits in BITS {
            for group in GROUPS {
                let format = Format { bits, group };
                let plain = TABLES.map(|table| Weight { format, table, n, k, exact: false });
                let exact = [TableKind::Custom, TableKind::Pairs];
                let exact = exact.map(|table| Weight { format, table, n, k, exact: true });
                for weight in plain.into_iter().chain(exact) {
                    works.extend(cases(runtime, weight, thin));
                }
            }
        }
    }
    match env::var("FLUTE_SHARD").ok() {
        None => works,
        Some(shard) => {
            let parts: Vec<usize> = shard.split('/').filter_map(|part| part.parse().ok()).collect();
            let &[i, of] = parts.as_slice() else {
                panic!("FLUTE_SHARD is '{shard}'; it must be like 2/4")
            };
            let size = works.len().div_ceil(of);
            works.into_iter().skip((i - 1) * size).take(size).collect()
        }
    }
}

/// The cases of one weight, in an order that loads it once for each type and input.
fn cases(runtime: &Runtime, weight: Weight, thin: bool) -> Vec<Work> {
    let mut works = vec![];
    for &dtype in &runtime.limits.dtypes {
        let new = |input, m| {
            let bias = input != Input::Identity && (weight.seed() >> 8) as usize % 2 == m / 2 % 2;
            Case { weight, dtype, input, m, bias }
        };
        let candidates = |case: Case| {
            Plan::candidates(&case.problem(), &runtime.limits).expect("a valid problem")
        };
        let work = |case: Case| Work { case, plans: candidates(case) };
        if weight.exact {
            works.push(work(new(Input::Exact, ROWS[weight.seed() as usize % ROWS.len()])));
            continue;
        }
        works.extend(ROWS.map(|m| work(new(Input::Random, m))));
        let identity = new(Input::Identity, if thin { weight.k.min(96) } else { weight.k });
        // Plans for one row must find every weight too.
        let mut plans: Vec<Plan> = vec![];
        for m in ROWS {
            let more = candidates(Case { m, ..identity });
            let more = more
                .into_iter()
                .filter(|p| p.validate(&identity.problem(), &runtime.limits).is_ok());
            plans.extend(more.filter(|plan| !plans.contains(plan)).collect::<Vec<_>>());
        }
        works.push(Work { case: identity, plans });
    }
    works
}

/// Cases that together have every value of every axis and every plan, and 32 at least.
fn quick(runtime: &Runtime) -> Vec<Work> {
    let mut seen = HashSet::new();
    let mut chosen = vec![];
    for work in shuffled(runtime, 1 << 26) {
        let mut new = work.plans.iter().filter(|plan| seen.insert(plan.to_string())).count();
        new += traits(&work.case).into_iter().filter(|value| seen.insert(value.clone())).count();
        if new > 0 || chosen.len() < 32 {
            chosen.push(work);
        }
    }
    let all = full(runtime, true);
    let values = all.iter().flat_map(|work| traits(&work.case));
    let plans = all.iter().flat_map(|work| work.plans.iter().map(Plan::to_string));
    let missed: HashSet<String> =
        values.chain(plans).filter(|value| !seen.contains(value)).collect();
    assert!(missed.is_empty(), "the quick matrix misses {missed:?}");
    chosen.sort_by_key(|work| (work.case.weight.seed(), work.case.dtype, work.case.input as u8));
    chosen
}

/// 100 cases of one plan each, all different as long as there are so many.
fn sanitize(runtime: &Runtime) -> Vec<Work> {
    let mut seen = HashSet::new();
    let mut works = shuffled(runtime, 1 << 21);
    for work in &mut works {
        let at = work.plans.iter().position(|plan| !seen.contains(plan)).unwrap_or(0);
        work.plans = vec![work.plans[at]];
        seen.insert(work.plans[0]);
    }
    works.truncate(100);
    works
}

/// The values that `case` has on each axis.
fn traits(case: &Case) -> Vec<String> {
    let Case { weight: Weight { format, table, n, k, .. }, dtype, input, m, bias } = *case;
    let mut values = vec![
        format!("{} bits", format.bits),
        format!("group {} in {dtype}", format.group),
        format!("table {table}"),
        format!("shape {n}x{k}"),
        format!("{input:?} in {dtype} of {} bits", format.bits),
        format!("bias {bias}"),
    ];
    if input == Input::Random {
        values.push(format!("m {m}"));
    }
    values
}

/// All cases of up to `cost` multiplications, in a fixed disorder.
fn shuffled(runtime: &Runtime, cost: usize) -> Vec<Work> {
    let mut works = full(runtime, true);
    works.retain(|work| work.case.cost() <= cost);
    works.shuffle(&mut StdRng::seed_from_u64(2025));
    works
}

fn only_asked(mut works: Vec<Work>) -> Vec<Work> {
    if let Ok(name) = env::var("FLUTE_CASE") {
        works.retain(|work| work.case.to_string().contains(&name));
    }
    works
}
