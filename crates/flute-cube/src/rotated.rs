//! A product whose x is rotated first: by a kernel of its own, or by the product where that is faster.
//!
//! A kernel of its own costs a launch, and the way of x to memory and back. A tensor-core product that rotates has x in
//! shared memory anyway; but each of its cubes rotates all of its share of k, so that the work is done as often as there
//! are multiprocessors, and grows with the rows of x. It pays for one row, and for two of a short k.

use crate::{
    Hadamard, Operands, Plan, Problem, Result, hadamard, launch::limits, qgemm, qgemm_with, tune,
};
use cubecl::prelude::Client;

/// Elements of x that a cube may rotate: twice as many take longer than a launch.
const MOST: usize = 8192;

/// Computes `y = H(x) · Wᵀ` with blocks of `block` elements along k rotated, in one launch or in two.
///
/// # Errors
/// What [`hadamard`] and [`qgemm`] refuse.
pub fn qgemm_rotated(
    client: &Client,
    problem: &Problem,
    block: usize,
    operands: Operands,
) -> Result<()> {
    if let Some(plan) = rotating(client, problem, block)? {
        return qgemm_with(client, problem, &plan, operands);
    }
    let Problem { m, k, dtype, .. } = *problem;
    let blocks = Hadamard { rows: m * k / block.max(1), block, dtype };
    let x = client.empty((m * k).max(1) * dtype.size());
    hadamard(client, &blocks, &operands.x, &x)?;
    qgemm(client, problem, Operands { x, ..operands })
}

/// The plan of a product that rotates x itself, where that is faster than two launches.
///
/// # Errors
/// What [`Problem::validate`] refuses.
pub fn rotating(client: &Client, problem: &Problem, block: usize) -> Result<Option<Plan>> {
    let Plan::Mma(plan) = tune::plan(client, problem)? else { return Ok(None) };
    let plan = crate::MmaPlan { rotated: block as u32, ..plan };
    let few = (plan.tokens * plan.k_stage) as usize <= MOST;
    let plan = Plan::Mma(plan);
    Ok((few && plan.validate(problem, &limits(client)).is_ok()).then_some(plan))
}
