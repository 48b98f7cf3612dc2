//! What decoding a weight costs before a dense product: `--decode` times the kernel that decodes, in replays of a graph,
//! and the plan that decodes and multiplies, queued as it is used, for every shape, width and number of rows.

use cubecl::prelude::*;
use flute_cube::{
    DensePlan, Limits, Plan, Problem, Result, decode,
    measure::{self, Workload},
};

/// Launches of a round.
const ROUND: usize = 8;

/// Times `problem`, and prints a line.
pub(crate) fn time(client: &Client, problem: &Problem) -> Result<()> {
    let Problem { m, n, k, format, dtype, .. } = *problem;
    let workload = Workload::new(client, problem)?;
    let [dense, y] = [n * k, 1].map(|len| client.empty(len * dtype.size()));
    let decoding = measure::time(client, ROUND, &dense, |i| {
        decode(client, problem, workload.operands(i, &y), &dense)
    })?;
    let bytes = n * k * dtype.size() + workload.operands(0, &y).words.size() as usize;
    let rate = bytes as f64 / decoding.median / 1e12;
    let plan = Plan::Dense(DensePlan { parts: 1 });
    let product = match plan.validate(problem, &Limits::of(client)) {
        Ok(()) => format!("{:.1} µs", workload.time_unseen(&plan)?.median * 1e6),
        Err(error) => error.to_string(),
    };
    println!(
        "n={n} k={k} m={m} {format} {dtype}: decoded in {:.1} µs ({rate:.2} TB/s), with its product {product}",
        decoding.median * 1e6
    );
    Ok(())
}
