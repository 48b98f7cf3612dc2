//! Every plan of a problem, checked and timed: what the planner's rules are calibrated with.
//!
//! `cargo bench --bench plans -- --shape 4096x4096 --m 1,16 --bits 4,3,2 --group 128 --top 5`. Timings are graph
//! replays over copies of the weights that together exceed any cache. Several of these programs with the same `--lock
//! FILE` compile at the same time and take turns with the device. With `--attend` attention is timed instead, with
//! `--rotate` a rotation of x before the product.

#[path = "plans/attend.rs"]
mod attend;
#[path = "plans/rotate.rs"]
mod rotate;

use cubecl::prelude::*;
use flute_cube::{
    Dtype, Format, Limits, MmaPlan, Plan, Problem, Result, WgmmaPlan,
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
    lock: Option<String>,
    attend: Vec<[usize; 3]>,
    context: Vec<usize>,
    rotate: Vec<usize>,
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
    let heads = |s: &str| -> Option<[usize; 3]> {
        s.split('x').map(|v| v.parse().ok()).collect::<Option<Vec<_>>>()?.try_into().ok()
    };
    Options {
        shapes: value("--shape", "4096x4096,28672x4096").split(',').filter_map(pair).collect(),
        m: list("--m", "1"),
        bits: list("--bits", "4").into_iter().map(|b| b as u8).collect(),
        groups: list("--group", "128"),
        dtype: if value("--dtype", "f16") == "bf16" { Dtype::BF16 } else { Dtype::F16 },
        top: list("--top", "5")[0],
        only: value("--only", ""),
        grid: std::env::args().any(|a| a == "--grid"),
        lock: Some(value("--lock", "")).filter(|file| !file.is_empty()),
        attend: value("--attend", "").split(',').filter_map(heads).collect(),
        context: list("--context", ""),
        rotate: list("--rotate", ""),
    }
}

fn main() -> Result<()> {
    let options = options();
    let client = cubecl::Device::default().client();
    let limits = Limits::of(&client);
    if !options.attend.is_empty() {
        let all = options.attend.iter().flat_map(|h| options.m.iter().map(|m| (*h, *m)));
        for (heads, m) in all {
            for context in &options.context {
                attend::time_decoding(&client, heads, [m, *context], options.dtype)?;
            }
            if options.context.is_empty() {
                attend::time(&client, heads, m, options.dtype)?;
            }
        }
        return Ok(());
    }
    let rate = measure::read_rate(&client, 1 << 30)?;
    println!("{} ({}), reads {:.2} TB/s", limits.name, limits.runtime, rate / 1e12);
    for (n, k) in &options.shapes {
        for bits in &options.bits {
            for group in &options.groups {
                for m in &options.m {
                    let format = Format::new(*bits, *group)?;
                    let problem =
                        Problem { m: *m, n: *n, k: *k, format, dtype: options.dtype, bias: false };
                    if options.rotate.is_empty() {
                        sweep(&client, &limits, &problem, rate, &options)?;
                    }
                    for block in &options.rotate {
                        rotate::time(&client, &problem, *block)?;
                    }
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
    let wanted = |plan: &Plan| {
        options.only.split('+').all(|part| plan.to_string().contains(part))
            && workload.check(plan).inspect_err(|error| println!("{plan}: {error}")).is_ok()
    };
    let plans: Vec<Plan> = plans.into_iter().filter(wanted).collect();
    let lock = options.lock.as_ref().and_then(|file| std::fs::File::create(file).ok());
    let _turn = lock.as_ref().map(std::fs::File::lock);
    for plan in plans {
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
        m => (m as u32).next_multiple_of(8).min(64),
    };
    // 32 planes are the largest cube, and the one whose registers the compiler keeps to 64.
    let shapes: &[(u32, u32)] = match problem.m {
        0..=4 => &[(1, 8), (1, 16), (1, 32), (2, 16), (4, 8)],
        5..=8 => &[(1, 8), (1, 16), (2, 8), (2, 16), (4, 8), (8, 4)],
        _ => &[(2, 8), (4, 4), (8, 2), (8, 1), (16, 1), (16, 2), (8, 4), (4, 8)],
    };
    let mut plans = warpgroup_grid(problem, limits);
    for &(planes_n, planes_k) in shapes {
        for row_tiles in [1, 2, 3, 4] {
            let splits = if problem.m <= 4 { &[1, 2][..] } else { &[1, 2, 4, 8][..] };
            for &split in splits {
                let rings = [0, 2, 3];
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

/// More warpgroup plans than the planner considers.
fn warpgroup_grid(problem: &Problem, limits: &Limits) -> Vec<Plan> {
    let mut plans = vec![];
    let tokens: &[(u32, u32)] = match problem.m {
        0..=16 => &[(16, 16), (32, 32)],
        17..=32 => &[(32, 32), (64, 64)],
        33..=64 => &[(64, 64), (64, 32)],
        _ => &[(64, 64), (128, 128), (128, 64), (256, 64), (256, 128), (256, 32)],
    };
    for (warpgroups, row_tiles) in [(2, 1), (2, 2), (4, 1), (4, 2), (3, 1), (3, 2), (2, 4), (1, 1)]
    {
        for &(tokens, chunk) in tokens {
            for split in [1, 2, 4, 8] {
                let plan = WgmmaPlan { warpgroups, row_tiles, tokens, chunk, stages: 5, split };
                let rows = problem.n.div_ceil(plan.rows());
                let tiles = rows * problem.m.div_ceil(tokens as usize) * split as usize;
                if split == 1 || tiles <= limits.processors {
                    let rings = (3..=5).rev().map(|stages| WgmmaPlan { stages, ..plan });
                    let mut fitting = rings.map(Plan::Wgmma);
                    plans.extend(fitting.find(|plan| plan.validate(problem, limits).is_ok()));
                }
            }
        }
    }
    plans
}
