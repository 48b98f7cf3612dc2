//! `flute tune`: measures the plans of products and keeps the fastest for every later run.

use crate::args::TuneArgs;
use crate::product::Product;
use crate::{output, progress};
use flute_burn::device;
use flute_cube::{Limits, Plan, tune};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    device: String,
    /// The database that the plans are kept in.
    stored_in: PathBuf,
    products: Vec<Product>,
}

pub(crate) fn run(args: &TuneArgs, quiet: bool) -> anyhow::Result<()> {
    let device = device::parse(&args.device)?;
    let Some(client) = device::client(&device) else {
        anyhow::bail!("{} runs no kernel, so there is no plan to measure", device::name(&device));
    };
    let limits = Limits::of(&client);
    let problems = match &args.model {
        Some(dir) => args.products.problems_of(dir, &limits)?,
        None => args.products.problems(&limits)?,
    };
    if problems.is_empty() && !args.forget {
        anyhow::bail!("name a quantized model directory, or weights with --shape NxK");
    }
    if args.forget {
        tune::forget(&client);
    }
    let bar = progress::steps(quiet, "plans");
    for problem in &problems {
        bar.inc_length(Plan::candidates(problem, &limits)?.len() as u64);
    }
    let mut products = vec![];
    for problem in problems {
        bar.set_message(format!("{}x{}, m = {}", problem.n, problem.k, problem.m));
        let tuned = tune::tune(&client, &problem, |_, _| bar.inc(1))?;
        products.push(Product::new(&problem, &tuned.plan, Some(tuned)));
    }
    bar.finish_and_clear();
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        device: device::name(&device),
        stored_in: tune::path(),
        products,
    };
    if args.json.wanted {
        return Ok(output::json(&report)?);
    }
    report.products.iter().try_for_each(output::line)?;
    Ok(output::line(format_args!("kept in {}", report.stored_in.display()))?)
}
