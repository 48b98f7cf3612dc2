//! Which cases run, and with which plans.

use crate::{
    case::{BITS, Case, GROUPS, Input, MANY_ROWS, ROWS, SHAPES, TABLES, Weight},
    device::Runtime,
    run::Work,
};
use flute_cube::{Dtype, Format, Limits, Plan, TableKind};
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The whole product, or its share `i` of `of`. A case runs with its selected plan and every `deal`th of the others;
/// which ones is another matter for each class of kernels.
pub(crate) fn full(runtime: &Runtime, shard: Option<(usize, usize)>, deal: usize) -> Vec<Work> {
    let mut works = product(runtime, false);
    let mut order: Vec<Plan> = works.iter().flat_map(|work| work.plans.iter().copied()).collect();
    order.sort_by_cached_key(Plan::to_string);
    order.dedup();
    let order: HashMap<Plan, usize> = order.into_iter().zip(0..).collect();
    let classes: BTreeMap<Class, usize> = works.iter().map(|work| (class(&work.case), 0)).collect();
    let classes: HashMap<Class, usize> = classes.into_keys().zip(0..).collect();
    for Work { case, plans } in &mut works {
        let (selected, turn) = (selected(case, &runtime.limits), classes[&class(case)]);
        plans.retain(|plan| *plan == selected || (order[plan] + turn).is_multiple_of(deal));
    }
    let Some((i, of)) = shard else { return works };

    let mut kernels: BTreeMap<Class, HashSet<Plan>> = BTreeMap::new();
    for Work { case, plans } in &works {
        kernels.entry(class(case)).or_default().extend(plans);
    }
    let mut largest: Vec<(usize, Class)> =
        kernels.into_iter().map(|(class, plans)| (plans.len(), class)).collect();
    largest.sort_by(|a, b| b.cmp(a));
    let (mut loads, mut mine) = (vec![0; of], HashSet::new());
    for (len, class) in largest {
        let least = (0..of).min_by_key(|shard| loads[*shard]).unwrap_or(0);
        loads[least] += len;
        if least + 1 == i {
            mine.insert(class);
        }
    }
    works.retain(|work| mine.contains(&class(&work.case)));
    works
}

/// Cases that together have every value of every axis and every plan, and 32 at least. Where plans are many, a case
/// runs with its selected one and those that no case has run with. Of them the share `i` of `of`.
pub(crate) fn quick(runtime: &Runtime, shard: Option<(usize, usize)>) -> Vec<Work> {
    let mut seen = HashSet::new();
    let mut chosen: Vec<Work> = vec![];
    // Where plans depend on the shape there are some that only large cases have.
    let most = if runtime.limits.mma { 1 << 32 } else { 1 << 26 };
    for mut work in shuffled(runtime, most) {
        let fresh: HashSet<Plan> =
            work.plans.iter().copied().filter(|plan| seen.insert(plan.to_string())).collect();
        let values =
            traits(&work.case).into_iter().filter(|value| seen.insert(value.clone())).count();
        if fresh.is_empty() && values == 0 && chosen.len() >= 32 {
            continue;
        }
        if runtime.limits.mma {
            let selected = selected(&work.case, &runtime.limits);
            work.plans.retain(|plan| fresh.contains(plan) || *plan == selected);
        }
        chosen.push(work);
    }
    let all = product(runtime, true);
    let values = all.iter().flat_map(|work| traits(&work.case));
    let plans = all.iter().flat_map(|work| work.plans.iter().map(Plan::to_string));
    let missed: HashSet<String> =
        values.chain(plans).filter(|value| !seen.contains(value)).collect();
    assert!(missed.is_empty(), "the quick matrix misses {missed:?}");
    chosen.sort_by_key(|work| (work.case.weight.seed(), work.case.dtype, work.case.input as u8));
    match shard {
        Some((i, of)) => chosen.into_iter().skip(i - 1).step_by(of).collect(),
        None => chosen,
    }
}

/// 100 cases of one plan each, all different as long as there are so many.
pub(crate) fn sanitize(runtime: &Runtime) -> Vec<Work> {
    let mut seen = HashSet::new();
    let mut works = shuffled(runtime, 1 << 21);
    works.truncate(100);
    for work in &mut works {
        let at = work.plans.iter().position(|plan| !seen.contains(plan)).unwrap_or(0);
        work.plans = vec![work.plans[at]];
        seen.insert(work.plans[0]);
    }
    works
}

/// All cases with all of their plans. `thin` takes only some rows of the identity where k is large.
fn product(runtime: &Runtime, thin: bool) -> Vec<Work> {
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
    works
}

/// The cases of one weight, in an order that loads it once for each type and input.
fn cases(runtime: &Runtime, weight: Weight, thin: bool) -> Vec<Work> {
    let mut works = vec![];
    for &dtype in &runtime.limits.dtypes {
        let new = |input, m| {
            // One or the other for all that share their kernels, some of which are compiled for it.
            let Format { bits, group } = weight.format;
            let bias = (bits.get() as usize + group.len(0) / 32 + dtype as usize).is_multiple_of(2);
            Case { weight, dtype, input, m, bias: bias && input != Input::Identity }
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
        works.extend(runtime.limits.mma.then(|| work(new(Input::Random, MANY_ROWS))));
        let identity = new(Input::Identity, if thin { weight.k.min(96) } else { weight.k });
        // Plans for one row must find every weight too.
        let mut plans = candidates(identity);
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

fn selected(case: &Case, limits: &Limits) -> Plan {
    Plan::select(&case.problem(), limits).expect("a valid problem")
}

/// What decides, with the plan, which kernel is compiled.
type Class = (Format, Dtype, usize, u32);

fn class(case: &Case) -> Class {
    let Weight { format, k, .. } = case.weight;
    (format, case.dtype, k.next_power_of_two(), k.trailing_zeros().min(7))
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
    let mut works = product(runtime, true);
    works.retain(|work| work.case.cost() <= cost);
    works.shuffle(&mut StdRng::seed_from_u64(2025));
    works
}
