//! What a rotation of x costs before a product: `--rotate 512` times the product alone, the rotation alone, and the two
//! in sequence, in replays of a graph, for every shape, width and number of rows.

use cubecl::{prelude::*, server::Handle};
use flute_cube::{
    Hadamard, Limits, Operands, Plan, Problem, Result, hadamard,
    measure::{self, Workload},
    qgemm_with,
};

/// Launches of a round: products find no weight of the round before in a cache.
const ROUND: usize = 64;

/// Times `problem` with its selected plan on x in blocks of `block`, and prints a line.
pub(crate) fn time(client: &Client, problem: &Problem, block: usize) -> Result<()> {
    let Problem { m, n, k, format, dtype, .. } = *problem;
    let workload = Workload::new(client, problem)?;
    let plan = Plan::select(problem, &Limits::of(client))?;
    let x = workload.operands(0, &client.empty(1)).x;
    let (rotated, y) = (client.empty(m * k * dtype.size()), client.empty(m * n * dtype.size()));
    let blocks = Hadamard { rows: m * k / block, block, dtype };
    let rotate = || hadamard(client, &blocks, &x, &rotated);
    let multiply = |i: usize, x: &Handle| {
        let operands = Operands { x: x.clone(), ..workload.operands(i, &y) };
        qgemm_with(client, problem, &plan, operands)
    };
    let product = measure::time(client, ROUND, &y, |i| multiply(i, &x))?;
    let rotation = measure::time(client, ROUND, &rotated, |_| rotate())?;
    let both = measure::time(client, ROUND, &y, |i| {
        rotate()?;
        multiply(i, &rotated)
    })?;
    let [product, rotation, both] = [product, rotation, both].map(|timing| timing.median * 1e6);
    println!(
        "n={n} k={k} m={m} {format} {dtype}, blocks of {block}: product {product:.2} µs, rotation {rotation:.2} µs, \
         in sequence {both:.2} µs, which is {:.2} more",
        both - product
    );
    Ok(())
}
