//! Every plan of a problem, checked and timed: what the planner's rules are calibrated with.
//!
//! `cargo bench --bench plans -- --shape 4096x4096 --m 1,16 --bits 4,3,2 --group 128 --top 5`. Timings are graph
//! replays over copies of the weights that together exceed any cache.

use cubecl::prelude::*;
use flute_cube::{
    Dtype, Error, Format, Limits, MmaPlan, Operands, PackedWeight, Plan, Problem, Result, measure,
    qgemm_with,
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

/// Reproducible bits: splitmix64.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
    let Problem { m, n, k, format, dtype, .. } = *problem;
    let mut seed = 7;
    let words: Vec<u32> =
        (0..PackedWeight::words_len(n, k, format)).map(|_| random(&mut seed) as u32).collect();
    let unit = |seed: &mut u64| (random(seed) >> 40) as f32 / (1 << 24) as f32;
    let scales: Vec<f32> =
        (0..PackedWeight::scales_len(n, k, format)).map(|_| 0.5 + unit(&mut seed)).collect();
    let pairs = flute_cube::Table::nf(format.bits).pair_table();
    let weight = PackedWeight { n, k, format, words, scales, pairs };
    let x: Vec<f32> = (0..m * k).map(|_| dtype.round(unit(&mut seed) - 0.5)).collect();
    let copies = (400_000_000 / (4 * weight.words.len())).clamp(2, 200);
    // x and the table are hot in a model; only the weights are not.
    let first = Operands::upload(client, &weight, &x, None, dtype);
    let operands: Vec<Operands> = (0..copies)
        .map(|_| {
            let own = Operands::upload(client, &weight, &x, None, dtype);
            Operands { x: first.x.clone(), pairs: first.pairs.clone(), ..own }
        })
        .collect();
    let checked = expected(&weight, &x, m, dtype);
    let mut rows = vec![];
    let selected = Plan::select(problem, limits)?;
    let plans =
        if options.grid { grid(problem, limits) } else { Plan::candidates(problem, limits)? };
    for plan in plans {
        if !plan.to_string().contains(&options.only) {
            continue;
        }
        let y = operands[copies - 1].y.clone();
        let timing = measure::time(client, copies, &y, |i| {
            qgemm_with(client, problem, &plan, operands[i].clone())
        });
        let timing = match timing {
            Ok(timing) => timing,
            Err(error) => {
                println!("{plan}: {error}");
                continue;
            }
        };
        let bytes = client
            .read_one(y)
            .map_err(|e| Error::Device { during: "read y", reason: e.to_string() })?;
        let y = dtype.decode(&bytes);
        let worst = checked
            .iter()
            .map(|(i, want, size)| (f64::from(y[*i]) - want).abs() / size)
            .fold(0.0, f64::max);
        let tolerance = if dtype == Dtype::F16 { 4e-3 } else { 3e-2 };
        let verdict = if worst < tolerance { "" } else { "  WRONG" };
        let chosen = if plan == selected { " *" } else { "" };
        rows.push((timing.median, format!("{plan}{chosen}{verdict}")));
    }
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let floor = problem.bytes() as f64 / rate + 1.4e-6;
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
    for (planes_n, planes_k) in
        [(1, 8), (1, 16), (1, 32), (2, 4), (2, 8), (2, 16), (4, 4), (4, 8), (8, 1), (8, 2)]
    {
        for row_tiles in [1, 2, 4] {
            for split in [1] {
                for (resident, slots) in
                    [(0, 1), (1, 1), (1, 4), (1, 16), (2, 1), (2, 4), (2, 8), (3, 4), (4, 4)]
                {
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

/// Some elements of the result, in f64, with the sum of the absolute products beside each.
fn expected(weight: &PackedWeight, x: &[f32], m: usize, dtype: Dtype) -> Vec<(usize, f64, f64)> {
    let (indices, scales) = weight.unpack();
    let (n, k) = (weight.n, weight.k);
    let (group, groups) = (weight.format.group.len(k), weight.format.group.count(k));
    let mut seed = 11;
    let picks = (0..64).map(|_| (random(&mut seed) as usize % m, random(&mut seed) as usize % n));
    picks
        .map(|(token, row)| {
            let product = |col: usize| {
                let pair = weight.pairs[usize::from(indices[row * k.div_ceil(2) + col / 2])];
                let w = f64::from(dtype.round(pair[col % 2]))
                    * f64::from(dtype.round(scales[row * groups + col / group]));
                w * f64::from(x[token * k + col])
            };
            let size: f64 = (0..k).map(|c| product(c).abs()).sum::<f64>() / (k as f64).sqrt();
            (token * n + row, (0..k).map(product).sum(), size)
        })
        .collect()
}
