//! Whether plans agree: `--check` compares the whole result of each with that of the portable one, which every device runs.

use cubecl::prelude::Client;
use flute_cube::{Limits, Plan, Problem, Result, measure::Workload};

/// Prints for each of `plans` how far its result is from the portable plan's, and how large that one's is.
pub(crate) fn check(
    client: &Client,
    workload: &Workload,
    problem: &Problem,
    plans: &[Plan],
) -> Result<()> {
    let plain = Limits {
        mma: false,
        wgmma: false,
        dense: false,
        cooperative: vec![],
        ..Limits::of(client)
    };
    let portable = Plan::select(problem, &plain)?;
    let right = workload.result(&portable)?;
    let largest = right.iter().fold(0.0f32, |most, y| most.max(y.abs()));
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let whole = norm(&mut right.iter().map(|y| f64::from(*y)));
    let Problem { m, n, k, format, dtype, .. } = problem;
    println!("n={n} k={k} m={m} {format} {dtype}: {portable}, up to {largest:.3}");
    for plan in plans {
        let y = workload.result(plan)?;
        let apart = || y.iter().zip(&right).map(|(y, right)| f64::from(*y) - f64::from(*right));
        // A NaN is the largest of differences.
        let most = apart().map(f64::abs).max_by(f64::total_cmp).unwrap_or(0.0);
        let relative = norm(&mut apart()) / whole;
        println!("  apart by up to {most:.5}, {relative:.2e} in all  {plan}");
    }
    Ok(())
}
