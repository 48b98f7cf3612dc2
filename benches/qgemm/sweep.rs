//! The time of a product over all its rows: where plans take turns, and whether they do so without cliffs.
//!
//! For each shape and every power of two up to 8192, its neighbours and three times it, this measures the plan that
//! runs by itself, all other candidates, decoding with a dense product, and the dense product of an f16 weight. A result
//! is checked before its time is kept, unless it is larger than [`SEEN_BYTES`]. Figures are written as JSON and drawn.

use crate::{
    dense::Dense,
    options::Options,
    plot::{self, Line},
    right,
    target::{Target, caught},
};
use anyhow::{Context, Result};
use flute_cube::{
    DensePlan, Dtype, Format, Plan, Problem,
    measure::{self, Workload},
};
use serde::Serialize;
use std::{fs, path::Path, thread::sleep, time::Instant};

/// The largest result that is looked at.
const SEEN_BYTES: usize = 64 << 20;
/// The most rows.
const MOST: usize = 8192;
/// Rows from which on decoding and a dense product are timed.
const DECODE_FROM: usize = 64;

/// What was measured of one number of rows.
#[derive(Serialize)]
struct Point {
    n: usize,
    k: usize,
    m: usize,
    bits: u8,
    group: usize,
    dtype: Dtype,
    /// The plan that runs by itself, and its time.
    plan: String,
    us: f64,
    /// The fastest of all candidates, and its time.
    best_plan: String,
    best_us: f64,
    /// The dense product of an f16 weight by cuBLAS.
    dense_us: Option<f64>,
    /// The weight decoded, then that product.
    decoded_us: Option<f64>,
    /// Reading at the rate that reading alone reaches, or computing at the best rate that cuBLAS reached for the shape,
    /// whichever is longer, and a launch.
    floor_us: f64,
    /// Candidates that failed or were wrong.
    failures: Vec<String>,
}

/// Sweeps all shapes of `options` on `target`, into `folder`. Whether every candidate ran and was right.
///
/// # Errors
/// If nothing can be measured or written.
pub(crate) fn run(target: &Target, options: &Options, folder: &Path) -> Result<bool> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let dense = Dense::open(target, false);
    let mut good = true;
    for ((n, k), _) in options.cases(false) {
        for format in &options.formats {
            let start = Instant::now();
            let points = shape(target, options, &dense, (n, k), *format)?;
            let name = format!("sweep-{n}x{k}-{format}-{}", options.dtype).to_lowercase();
            let json = serde_json::to_string_pretty(&points)?;
            write(folder, &format!("{name}.json"), &json)?;
            let title = format!("{n} × {k}, {format}, {}: {}", options.dtype, target.identity);
            write(folder, &format!("{name}.svg"), &plot::draw(&title, &lines(&points))?)?;
            summary(&points, start.elapsed().as_secs_f64());
            good &= points.iter().all(|point| point.failures.is_empty());
            target.release()?;
        }
    }
    Ok(good)
}

fn write(folder: &Path, name: &str, content: &str) -> Result<()> {
    let (path, draft) = (folder.join(name), folder.join(format!("{name}.part")));
    fs::write(&draft, content).and_then(|()| fs::rename(&draft, &path))?;
    Ok(())
}

/// All powers of two up to the most rows, their neighbours, and three times each.
fn rows() -> Vec<usize> {
    let powers = (0..).map(|i| 1usize << i).take_while(|power| *power <= MOST);
    let mut rows: Vec<usize> = powers.flat_map(|p| [p - 1, p, p + 1, 3 * p]).collect();
    rows.retain(|m| (1..=MOST).contains(m));
    rows.sort_unstable();
    rows.dedup();
    rows
}

fn shape(
    target: &Target,
    options: &Options,
    dense: &Dense<'_>,
    (n, k): (usize, usize),
    format: Format,
) -> Result<Vec<Point>> {
    let (client, limits) = target.gpu.as_ref().context("a sweep needs a GPU")?;
    let dtype = options.dtype;
    let problem = |m| Problem { m, n, k, format, dtype, bias: false, gate: None };
    let weights = dense.weights(n, k);
    let mut workload = Workload::new(client, &problem(MOST))?;
    let mut points = vec![];
    for m in rows() {
        // Right before what it is compared with: the clock of a device at work goes down for minutes.
        let dense = weights.time(m, options.pause).cublas;
        workload.take(m)?;
        let mut failures = vec![];
        let seen = m * n * dtype.size() <= SEEN_BYTES;
        let mut time = |plan: &Plan| {
            // As before each dense product: a device that comes from work is slower than one that comes from a pause.
            sleep(options.pause);
            let timed = caught(|| match seen {
                true => right(workload.time(plan)?),
                false => Ok(workload.time_unseen(plan)?.median),
            });
            timed.map_err(|error| failures.push(format!("{plan}: {error:#}"))).ok()
        };
        let selected = Plan::select(&problem(m), limits)?;
        let own = time(&selected).unwrap_or(f64::NAN);
        let mut best = (selected, own);
        let whole = Plan::Dense(DensePlan { parts: 1 });
        let mut decoded = (selected == whole).then_some(own);
        let mut others = Plan::candidates(&problem(m), limits)?;
        // The portable plans of a device with others are for types that those do not serve.
        others
            .retain(|plan| *plan != selected && !(limits.mma && matches!(plan, Plan::Portable(_))));
        let decodes = m >= DECODE_FROM && whole.validate(&problem(m), limits).is_ok();
        if decodes && decoded.is_none() && !others.contains(&whole) {
            others.push(whole);
        }
        for plan in others {
            let Some(seconds) = time(&plan) else { continue };
            if plan == whole {
                decoded = Some(seconds);
            }
            if seconds < best.1 || best.1.is_nan() {
                best = (plan, seconds);
            }
        }
        let floor = measure::floor(&problem(m), target.rate);
        let micro = |seconds: f64| seconds * 1e6;
        points.push(Point {
            n,
            k,
            m,
            bits: format.bits.get(),
            group: format.group.len(k),
            dtype,
            plan: selected.to_string(),
            us: micro(own),
            best_plan: best.0.to_string(),
            best_us: micro(best.1),
            dense_us: dense.map(micro),
            decoded_us: decoded.map(micro),
            floor_us: micro(floor),
            failures,
        });
    }
    let flops = |m: usize| 2.0 * (m * n * k) as f64;
    let rate = |p: &Point| p.dense_us.map(|us| flops(p.m) / us);
    let most = points.iter().filter_map(rate).fold(0.0, f64::max);
    for point in &mut points {
        if most > 0.0 {
            let arithmetic = flops(point.m) / most + measure::LAUNCH_SECONDS * 1e6;
            point.floor_us = point.floor_us.max(arithmetic);
        }
    }
    Ok(points)
}

fn lines(points: &[Point]) -> Vec<Line<'static>> {
    let line = |name, of: &dyn Fn(&Point) -> Option<f64>| {
        let value = |p: &Point| Some((p.m as f64, of(p).filter(|us| us.is_finite())?));
        Line { name, points: points.iter().filter_map(value).collect() }
    };
    vec![
        line("floor", &|p| Some(p.floor_us)),
        line("dense f16, cuBLAS", &|p| p.dense_us),
        line("decoded, then dense", &|p| p.decoded_us),
        line("the best plan of this project", &|p| Some(p.best_us)),
        line("the plan that runs", &|p| Some(p.us)),
    ]
}

/// What of the sweep breaks a promise: a slower plan than another of ours, than decoding and a dense product, or a cliff.
fn summary(points: &[Point], seconds: f64) {
    let Some(Point { n, k, bits, dtype, .. }) = points.first() else { return };
    println!("{n} x {k}, {bits} bits, {dtype}: {} rows in {seconds:.0} s", points.len());
    for (i, p) in points.iter().enumerate() {
        let ratio =
            |us: Option<f64>| us.map_or_else(|| "-".into(), |us| format!("{:.2}", us / p.us));
        let mut marks = vec![];
        if p.us > 1.05 * p.best_us {
            marks.push(format!("{:.2} of {}", p.us / p.best_us, p.best_plan));
        }
        if p.decoded_us.is_some_and(|us| p.us > us) {
            marks.push("slower than decoding and a dense product".into());
        }
        let before = i.checked_sub(1).map(|i| &points[i]).filter(|q| q.m + 1 == p.m);
        if let Some(q) = before.filter(|q| p.us > 1.15 * q.us) {
            marks.push(format!("{:.2} of one row less", p.us / q.us));
        }
        println!(
            "{:>6} {:>9.2} µs  floor {:>9.2}  dense/ours {:>5}  {}  {}",
            p.m,
            p.us,
            p.floor_us,
            ratio(p.dense_us),
            p.plan,
            marks.join("; ")
        );
        for failure in &p.failures {
            println!("       failed: {failure}");
        }
    }
}
