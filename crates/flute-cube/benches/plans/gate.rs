//! What a gate costs behind a product and in it: `--gate` times the product alone, the product and the kernel that gates
//! in sequence, and the product that gates, in replays of a graph, with every plan that gates.

use cubecl::prelude::*;
use flute_cube::{
    Activation, Gate, Limits, Operands, Plan, Problem, Result, gate,
    measure::{self, Workload},
    pack, qgemm_with,
};

/// Launches of a round: products find no weight of the round before in a cache.
const ROUND: usize = 64;

/// Times `problem` with the plans whose names have all parts of `only`, and prints a line each.
pub(crate) fn time(client: &Client, problem: &Problem, only: &str) -> Result<()> {
    let Problem { m, n, k, format, dtype, .. } = *problem;
    let activation = Activation::Silu;
    let gated = Problem { gate: Some(activation), ..*problem };
    let workload = Workload::new(client, problem)?;
    let [both, y] = [m * n, m * gated.columns()].map(|len| client.empty(len * dtype.size()));
    let after = Gate { rows: m * n / pack::BLOCK_ROWS, len: pack::TURN, activation, dtype };
    let plans = Plan::candidates(problem, &Limits::of(client))?;
    let wanted = |plan: &Plan| only.split('+').all(|part| plan.to_string().contains(part));
    println!("n={n} k={k} m={m} {format} {dtype}, µs: product, product and gate, gated product");
    for plan in plans.iter().filter(|plan| plan.gates() && wanted(plan)) {
        let operands = |i: usize| workload.operands(i, &both);
        let multiply = |i: usize| qgemm_with(client, problem, plan, operands(i));
        let product = measure::time(client, ROUND, &both, multiply)?;
        let sequence = measure::time(client, ROUND, &y, |i| {
            multiply(i)?;
            gate(client, &after, &both, &y)
        })?;
        let inside = measure::time(client, ROUND, &y, |i| {
            qgemm_with(client, &gated, plan, Operands { y: y.clone(), ..operands(i) })
        })?;
        let [product, sequence, inside] =
            [product, sequence, inside].map(|timing| timing.median * 1e6);
        println!("  {product:>8.2} {sequence:>8.2} {inside:>8.2}  {plan}");
    }
    Ok(())
}
