//! Every plan of a problem, checked and timed: what the planner's rules are calibrated with.
//!
//! `cargo bench --bench plans -- --shape 4096x4096 --m 1,16 --bits 4,3,2 --group 128 --top 5`. Timings are graph
//! replays over copies of the weights that together exceed any cache.

use cubecl::prelude::*;
use flute_cube::{
    Dtype, Format, Limits, MmaPlan, Plan, Problem, Result,
    measure::{self, Workload},
};

struct Options {
    shapes: Vec<(usize, usize)>,
    m: Vec<usize>,
    bits: Vec<u8>,
    groups: Vec<usize>,
    dtype: Dtype,
    top: usize,
    only: String,
    grid: bool,
}

fn options() -> Options {
    let value = |name: &str, default: &str| {
        let mut args = std::env::args().skip_while(|a| a != name);
        args.nth(1).unwrap_or_else(|| default.to_string())
    };
    let list = |name: &str, default: &str| -> Vec<usize> {
        value(name, default).split(',').filter_map(|v| v.parse().ok()).collect()
    };
    let pair =
        |s: &str| s.split_once('x').and_then(|(n, k)| Some((n.parse().ok()?, k.parse().ok()?)));
    Options {
        shapes: value("--shape", "4096x4096,28672x4096").split(',').filter_map(pair).collect(),
        m: list("--m", "1"),
        bits: list("--bits", "4").into_iter().map(|b| b as u8).collect(),
        groups: list("--group", "128"),
        dtype: if value("--dtype", "f16") == "bf16" { Dtype::BF16 } else { Dtype::F16 },
        top: list("--top", "5")[0],
        only: value("--only", ""),
        grid: std::env::args().any(|a| a == "--grid"),
    }
}

fn main() -> Result<()> {
    let options = options();
    let client = cubecl::Device::default().client();
    let limits = Limits::of(&client);
    let rate = measure::read_rate(&client, 1 << 30)?;
    println!("{} ({}), reads {:.2} TB/s", limits.name, limits.runtime, rate / 1e12);
    for (n, k) in &options.shapes {
        for bits in &options.bits {
            for group in &options.groups {
                for m in &options.m {
                    let format = Format::new(*bits, *group)?;
                    let problem =
                        Problem { m: *m, n: *n, k: *k, format, dtype: options.dtype, bias: false };
                    sweep(&client, &limits, &problem, rate, &options)?;
                }
            }
        }
    }
    Ok(())
}

fn sweep(
    client: &Client,
    limits: &Limits,
    problem: &Problem,
    rate: f64,
    options: &Options,
) -> Result<()> {
    let workload = Workload::new(client, problem)?;
    let selected = Plan::select(problem, limits)?;
    let plans =
        if options.grid { grid(problem, limits) } else { Plan::candidates(problem, limits)? };
    let mut rows = vec![];
    for plan in plans.into_iter().filter(|plan| plan.to_string().contains(&options.only)) {
        match workload.time(&plan) {
            Ok(run) => {
                let verdict = if run.is_right() { "" } else { "  WRONG" };
                let chosen = if plan == selected { " *" } else { "" };
                rows.push((run.timing.median, format!("{plan}{chosen}{verdict}")));
            }
            Err(error) => println!("{plan}: {error}"),
        }
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let floor = measure::floor(problem, rate);
    let Problem { m, n, k, format, dtype, .. } = *problem;
    println!("n={n} k={k} m={m} {format} {dtype}: floor {:.2} µs", floor * 1e6);
    let chosen = rows.iter().position(|r| r.1.contains(" *")).unwrap_or(0);
    for (i, (seconds, plan)) in rows.iter().enumerate() {
        if i < options.top || i == chosen || plan.contains("WRONG") {
            println!("  {:>8.2} µs  {:>5.2} of floor  {plan}", seconds * 1e6, floor / seconds);
        }
    }
    Ok(())
}

/// More tensor-core plans than the planner considers.
fn grid(problem: &Problem, limits: &Limits) -> Vec<Plan> {
    let tokens = match problem.m {
        0..=8 => problem.m.next_power_of_two() as u32,
        m => (m as u32).next_multiple_of(8).min(32),
    };
    let mut plans = vec![];
    for (planes_n, planes_k) in [(1, 8), (1, 16), (1, 32), (2, 8), (4, 4)] {
        for row_tiles in [1, 2, 4] {
            for split in [1] {
                for (resident, slots) in [(1, 4), (1, 16), (2, 4), (3, 4)] {
                    let k = problem.k.next_power_of_two() as u32;
                    let k_stage = k.min(1 << ((96u32 << 10) / (2 * tokens)).ilog2());
                    let plan = Plan::Mma(MmaPlan {
                        planes_n,
                        planes_k,
                        row_tiles,
                        tokens,
                        k_stage,
                        split,
                        resident,
                        slots,
                    });
                    let cubes = resident.max(1) as usize;
                    let Plan::Mma(mma) = plan else { continue };
                    let fits = cubes * mma.units() <= 2048
                        && cubes * (mma.shared_bytes(problem) + 1024) <= 228 << 10;
                    if fits && plan.validate(problem, limits).is_ok() {
                        plans.push(plan);
                    }
                }
            }
        }
    }
    plans
}
