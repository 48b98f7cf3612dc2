//! Every plan of a problem, checked and timed: what the planner's rules are calibrated with.
//!
//! `cargo bench --bench plans -- --shape 4096x4096 --m 1,16 --bits 4,3,2 --group 128 --top 5`. Timings are graph
//! replays over copies of the weights that together exceed any cache. Several of these programs with the same `--lock
//! FILE` compile at the same time and take turns with the device. With `--attend` attention is timed instead, with
//! `--rotate` a rotation of x before the product.

#[path = "plans/attend.rs"]
mod attend;
#[path = "plans/grid.rs"]
mod grid;
#[path = "plans/rotate.rs"]
mod rotate;

use cubecl::prelude::*;
use flute_cube::{
    Dtype, Format, Limits, Plan, Problem, Result,
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
        if options.grid { grid::all(problem, limits) } else { Plan::candidates(problem, limits)? };
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
