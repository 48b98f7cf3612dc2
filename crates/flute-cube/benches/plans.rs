//! Every plan of a problem, checked and timed: what the planner's rules are calibrated with. `--selected` times the
//! planner's choice alone, `--grid` more plans than it considers, `--only a+b` those whose names contain both, `--skip a`
//! no others than those whose names do not; `--check` first says how far the result of each is from the portable plan's.
//!
//! `cargo bench --bench plans -- --shape 4096x4096 --m 1,16 --bits 4,3,2 --group 128 --top 5`. Timings are graph
//! replays over copies of the weights that together exceed any cache. Several of these programs (`--peers N`) with the
//! same `--lock FILE` compile at the same time, wait for each other, and then take turns with the device; `--pause MS` lets
//! it cool down before each plan's figure. With `--attend` or
//! `--next` attention is timed instead, with `--rotate` a rotation of x before the product, with `--gate` a gate behind it
//! and in it, with `--decode` what precedes a dense product, with `--layer` a whole layer of a model. `--device
//! cuda|vulkan|wgpu` takes the first device of that kind instead of the default one.

#[path = "plans/attend.rs"]
mod attend;
#[path = "plans/check.rs"]
mod check;
#[path = "plans/decode.rs"]
mod decode;
#[path = "plans/gate.rs"]
mod gate;
#[path = "plans/grid.rs"]
mod grid;
#[path = "plans/layer.rs"]
mod layer;
#[path = "plans/rotate.rs"]
mod rotate;

use cubecl::{Device, prelude::*};
use flute_cube::{
    Dtype, Format, Limits, Plan, Problem, Result,
    measure::{self, Workload},
};
use std::time::Duration;

struct Options {
    shapes: Vec<(usize, usize)>,
    m: Vec<usize>,
    bits: Vec<u8>,
    groups: Vec<usize>,
    dtype: Dtype,
    top: usize,
    pause: Duration,
    only: String,
    skip: String,
    grid: bool,
    selected: bool,
    check: bool,
    lock: Option<String>,
    peers: usize,
    attend: Vec<[usize; 3]>,
    context: Vec<usize>,
    next: Vec<[usize; 3]>,
    cubes: Vec<usize>,
    rotate: Vec<usize>,
    gate: bool,
    decode: bool,
    layer: Vec<[usize; 5]>,
    device: String,
}

impl Options {
    /// What might be timed.
    fn plans(&self, problem: &Problem, limits: &Limits) -> Result<Vec<Plan>> {
        if self.grid { Ok(grid::all(problem, limits)) } else { Plan::candidates(problem, limits) }
    }

    fn wants(&self, plan: &Plan) -> bool {
        let name = plan.to_string();
        self.only.split('+').all(|part| name.contains(part)) && !name.contains(&self.skip)
    }
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
    let numbers = |s: &str| s.split('x').map(|v| v.parse().ok()).collect::<Option<Vec<usize>>>();
    let heads = |s: &str| -> Option<[usize; 3]> { numbers(s)?.try_into().ok() };
    let widths = |s: &str| -> Option<[usize; 5]> { numbers(s)?.try_into().ok() };
    Options {
        shapes: value("--shape", "4096x4096,28672x4096").split(',').filter_map(pair).collect(),
        m: list("--m", "1"),
        bits: list("--bits", "4").into_iter().map(|b| b as u8).collect(),
        groups: list("--group", "128"),
        dtype: if value("--dtype", "f16") == "bf16" { Dtype::BF16 } else { Dtype::F16 },
        top: list("--top", "5")[0],
        pause: Duration::from_millis(list("--pause", "0")[0] as u64),
        only: value("--only", ""),
        skip: value("--skip", "nothing"),
        grid: std::env::args().any(|a| a == "--grid"),
        selected: std::env::args().any(|a| a == "--selected"),
        check: std::env::args().any(|a| a == "--check"),
        lock: Some(value("--lock", "")).filter(|file| !file.is_empty()),
        peers: list("--peers", "1")[0],
        attend: value("--attend", "").split(',').filter_map(heads).collect(),
        context: list("--context", ""),
        next: value("--next", "").split(',').filter_map(heads).collect(),
        cubes: match value("--cubes", "").as_str() {
            "all" => vec![8, 4, 2, 1],
            _ => list("--cubes", ""),
        },
        rotate: list("--rotate", ""),
        gate: std::env::args().any(|a| a == "--gate"),
        decode: std::env::args().any(|a| a == "--decode"),
        layer: value("--layer", "").split(',').filter_map(widths).collect(),
        device: value("--device", ""),
    }
}

/// The first device of the kind that `name` says; without a name the default one.
fn device(name: &str) -> Device {
    let found = match name {
        "" => Ok(Device::default()),
        "cuda" => Device::cuda(0).map_err(|error| error.to_string()),
        "vulkan" => Device::vulkan(Default::default()).map_err(|error| error.to_string()),
        "wgpu" => Device::wgpu(Default::default()).map_err(|error| error.to_string()),
        _ => Err("it is none of cuda, vulkan, wgpu".into()),
    };
    found.unwrap_or_else(|error| {
        eprintln!("--device {name}: {error}");
        std::process::exit(2)
    })
}

fn main() -> Result<()> {
    let options = options();
    let client = device(&options.device).client();
    let limits = Limits::of(&client);
    for heads in &options.next {
        attend::time_next(&client, *heads, options.dtype, &options.cubes)?;
    }
    if !options.next.is_empty() {
        return Ok(());
    }
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
    for dims in &options.layer {
        for (bits, m) in options.bits.iter().flat_map(|bits| options.m.iter().map(|m| (*bits, *m)))
        {
            let format = Format::new(bits, options.groups[0])?;
            layer::time(&client, *dims, m, format, &options)?;
        }
    }
    if !options.layer.is_empty() {
        return Ok(());
    }
    let mut sweeps = vec![];
    for (n, k) in &options.shapes {
        for bits in &options.bits {
            for group in &options.groups {
                for m in &options.m {
                    let format = Format::new(*bits, *group)?;
                    let problem = Problem {
                        m: *m,
                        n: *n,
                        k: *k,
                        format,
                        dtype: options.dtype,
                        bias: false,
                        gate: None,
                    };
                    if options.gate {
                        gate::time(&client, &problem, &options.only)?;
                    } else if options.decode {
                        decode::time(&client, &problem)?;
                    } else if options.rotate.is_empty() {
                        sweeps.push(Sweep::new(&client, &limits, &problem, &options)?);
                    }
                    for block in &options.rotate {
                        rotate::time(&client, &problem, *block)?;
                    }
                }
            }
        }
    }
    let lock = options.lock.as_ref().and_then(|file| std::fs::File::create(file).ok());
    if let Some(file) = &options.lock {
        await_peers(file, options.peers);
    }
    let _turn = lock.as_ref().map(std::fs::File::lock);
    let rate = measure::read_rate(&client, 1 << 30)?;
    println!("{} ({}), reads {:.2} TB/s", limits.name, limits.runtime, rate / 1e12);
    for sweep in &sweeps {
        sweep.run(rate, &options);
    }
    Ok(())
}

/// Waits until `peers` programs have come this far, this one among them, but for a minute at most.
fn await_peers(file: &str, peers: usize) {
    let ready = std::path::PathBuf::from(format!("{file}.ready"));
    let _ = std::fs::create_dir_all(&ready);
    let _ = std::fs::write(ready.join(std::process::id().to_string()), "");
    let start = std::time::Instant::now();
    let late = |start: std::time::Instant| start.elapsed().as_secs() > 60;
    while !late(start) && std::fs::read_dir(&ready).map_or(peers, Iterator::count) < peers {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// A problem on the device and the plans that solved it.
struct Sweep {
    problem: Problem,
    workload: Workload,
    plans: Vec<Plan>,
    selected: Plan,
}

impl Sweep {
    /// Compiles and checks every plan that is asked for.
    fn new(client: &Client, limits: &Limits, problem: &Problem, options: &Options) -> Result<Self> {
        let workload = Workload::new(client, problem)?;
        let selected = Plan::select(problem, limits)?;
        let plans = match options.selected {
            true => vec![selected],
            false => options.plans(problem, limits)?,
        };
        let wanted = |plan: &Plan| {
            options.wants(plan)
                && workload.check(plan).inspect_err(|error| println!("{plan}: {error}")).is_ok()
        };
        let plans: Vec<Plan> = plans.into_iter().filter(wanted).collect();
        if options.check {
            check::check(client, &workload, problem, &plans)?;
        }
        Ok(Self { problem: *problem, workload, plans, selected })
    }

    fn run(&self, rate: f64, options: &Options) {
        let mut rows = vec![];
        for plan in &self.plans {
            std::thread::sleep(options.pause);
            match self.workload.time(plan) {
                Ok(run) => {
                    let verdict = if run.is_right() { "" } else { "  WRONG" };
                    let chosen = if *plan == self.selected { " *" } else { "" };
                    rows.push((run.timing.median, format!("{plan}{chosen}{verdict}")));
                }
                Err(error) => println!("{plan}: {error}"),
            }
        }
        rows.sort_by(|a, b| a.0.total_cmp(&b.0));
        let floor = measure::floor(&self.problem, rate);
        let Problem { m, n, k, format, dtype, .. } = self.problem;
        println!("n={n} k={k} m={m} {format} {dtype}: floor {:.2} µs", floor * 1e6);
        let chosen = rows.iter().position(|r| r.1.contains(" *")).unwrap_or(0);
        for (i, (seconds, plan)) in rows.iter().enumerate() {
            if i < options.top || i == chosen || plan.contains("WRONG") {
                println!("  {:>8.2} µs  {:>5.2} of floor  {plan}", seconds * 1e6, floor / seconds);
            }
        }
    }
}
