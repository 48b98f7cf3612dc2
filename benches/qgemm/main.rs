//! How fast a quantized product is: against what the device can read, and against the dense product.
//!
//! `cargo bench --bench qgemm -- --help` lists the options. Every result is checked on sampled elements before its time
//! is printed. On CUDA, times are of graph replays over copies of the weight that together exceed the cache. A pause
//! before each group of figures keeps the heat of one out of the next. Exit codes: 0, 1 if a case failed or a
//! result was wrong (the others are measured nevertheless) or no device was found, 2 for a command line that is none.

mod dense;
mod layer;
mod options;
mod plot;
mod report;
mod sweep;
mod target;

use anyhow::{Result, ensure};
use dense::{Dense, DenseSeconds};
use flute_cube::{
    Plan, Problem,
    measure::{Run, Synthetic, Workload},
};
use options::{Options, USAGE};
use report::{Measured, Report};
use std::{process::ExitCode, thread::sleep};
use target::{Target, caught};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("error: {error:#}\nhint: --help lists the options");
            return ExitCode::from(2);
        }
    };
    let mut report = Report::new(options.json.clone());
    let mut swept = true;
    for name in &options.devices {
        match Target::open(name) {
            Ok(target) => match &options.sweep {
                Some(folder) => match sweep::run(&target, &options, folder) {
                    Ok(good) => swept &= good,
                    Err(error) => {
                        eprintln!("error: {name}: {error:#}");
                        swept = false;
                    }
                },
                None => measure(&target, &options, &mut report),
            },
            Err(error) => eprintln!("note: {name} is left out: {error:#}"),
        }
    }
    let good = if options.sweep.is_some() { swept } else { report.is_good() };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All cases of one device.
fn measure(target: &Target, options: &Options, report: &mut Report) {
    if let Some(Err(error)) = target.gpu.as_ref().map(|(_, l)| l.require(options.dtype)) {
        eprintln!("note: {} is left out: {error}", target.identity);
        return;
    }
    let dense = Dense::open(target, options.burn);
    report.open(target, options.dtype);
    for ((n, k), rows) in options.cases(target.is_slow()) {
        let weights = dense.weights(n, k);
        for m in rows {
            let dense = weights.time(m, options.pause);
            for format in &options.formats {
                let dtype = options.dtype;
                let problem = Problem { m, n, k, format: *format, dtype, bias: false, gate: None };
                let case = Case { target, options, problem, dense };
                let added = caught(|| case.measure(report))
                    .and_then(|measured| report.add(target, measured));
                if let Err(error) = added {
                    report.fail(&case.to_string(), &error);
                }
            }
        }
        drop(weights);
        if let Err(error) = target.release() {
            report.fail(&target.identity, &error);
        }
    }
}

/// One line of figures.
struct Case<'a> {
    target: &'a Target,
    options: &'a Options,
    problem: Problem,
    dense: DenseSeconds,
}

impl Case<'_> {
    fn measure(&self, report: &mut Report) -> Result<Measured> {
        let Self { target, options, problem, dense } = *self;
        let measured = |synthetic: &Synthetic, selected, best| Measured {
            problem,
            weight_bytes: synthetic.weight_bytes(),
            selected,
            best,
            dense,
        };
        let Some((client, limits)) = target.gpu.as_ref().filter(|_| !options.layer) else {
            let synthetic = Synthetic::new(&problem);
            let (copies, plan) = match target.gpu {
                Some(_) => (dense::copies(synthetic.weight_bytes()), "the operation of a layer"),
                // Decoding takes so long there that no cache matters.
                None => (1, "decode, then Burn's matmul"),
            };
            sleep(options.pause);
            let seconds = right(layer::time(&target.device, &synthetic, copies)?)?;
            return Ok(measured(&synthetic, (plan.into(), seconds), None));
        };
        let plan = Plan::select(&problem, limits)?;
        let workload = Workload::new(client, &problem)?;
        sleep(options.pause);
        let selected = (plan.to_string(), right(workload.time(&plan)?)?);
        let mut best = options.tune.then(|| selected.clone());
        if let Some(best) = &mut best {
            for other in Plan::candidates(&problem, limits)?.into_iter().filter(|p| *p != plan) {
                let timed = workload.time(&other).map_err(Into::into).and_then(right);
                match timed {
                    Ok(seconds) if seconds < best.1 => *best = (other.to_string(), seconds),
                    Ok(_) => {}
                    Err(error) => report.fail(&format!("{self}, {other}"), &error),
                }
            }
        }
        Ok(measured(&workload.synthetic, selected, best))
    }
}

impl std::fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Problem { m, n, k, format, dtype, .. } = self.problem;
        write!(f, "{}, n={n} k={k} m={m} {format} {dtype}", self.target.backend)
    }
}

/// Seconds of a run whose result was right.
fn right(run: Run) -> Result<f64> {
    ensure!(run.is_right(), "the result is wrong: {:.1} times what is allowed", run.deviation);
    Ok(run.timing.median)
}
