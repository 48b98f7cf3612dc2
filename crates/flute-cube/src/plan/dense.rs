//! The plan that multiplies densely: decode once, then the vendor's matrix product.

use crate::{Dtype, Error, Limits, Problem, Result, pack};
use core::fmt;
use serde::{Deserialize, Serialize};

/// How a weight is decoded for a dense product: so many of its rows at a time, into memory that is given back at once.
///
/// It serves f16 and bf16 and rounds each decoded weight once more than the other plans do, and it does not run inside
/// a graph capture, where [`crate::qgemm`] takes another plan instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DensePlan {
    /// Rows of W that are decoded at a time: a multiple of 16.
    pub rows: u32,
}

/// Bytes of decoded weight at a time.
const WORKSPACE: usize = 1 << 30;

impl DensePlan {
    /// Bytes of memory beside the operands.
    pub fn workspace(&self, problem: &Problem) -> usize {
        (self.rows as usize).min(problem.n) * problem.k * problem.dtype.size()
    }

    /// As many rows as the workspace has room for, in equal parts.
    fn of(problem: &Problem) -> Self {
        let row = problem.k * problem.dtype.size();
        let most = (WORKSPACE / row / pack::BLOCK_ROWS).max(1) * pack::BLOCK_ROWS;
        let parts = problem.n.div_ceil(most);
        let rows = problem.n.div_ceil(parts).next_multiple_of(pack::BLOCK_ROWS);
        Self { rows: rows as u32 }
    }

    /// The only one, where it may win: below these rows every fused kernel has less to read than a dense product.
    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        const FROM: usize = 129;
        let plan = Self::of(problem);
        let serves = problem.m >= FROM && plan.validate(problem, limits).is_ok();
        if serves { vec![plan] } else { vec![] }
    }

    /// Microseconds on an H200: see `WgmmaPlan::cost`. The product is bound by its arithmetic or by reading the decoded
    /// weight, and an event before and one after it cost as much as a few launches.
    pub(super) fn cost(problem: &Problem) -> f64 {
        let Problem { m, n, k, format, .. } = *problem;
        let weights = (n * k) as f64;
        let decode = weights * (f64::from(format.bits.get()) / 8.0 + 2.0) / 3.4e6;
        let product = (2.0 * weights * m as f64 / 690e6).max(2.0 * weights / 4.2e6);
        decode + product + 12.0
    }

    pub(super) fn validate(&self, problem: &Problem, limits: &Limits) -> Result<()> {
        if !limits.dense {
            return Err(Error::UnsupportedPlan {
                what: "dense library",
                needed: 1,
                offered: 0,
                device: limits.name.clone(),
            });
        }
        if problem.dtype == Dtype::F32 {
            let reason =
                "the dense library takes f16 or bf16 activations, and the problem has f32 ones"
                    .to_string();
            return Err(Error::InvalidPlan { reason });
        }
        if self.rows == 0 || !(self.rows as usize).is_multiple_of(pack::BLOCK_ROWS) {
            let reason = format!("{self}: rows must be a multiple of {}", pack::BLOCK_ROWS);
            return Err(Error::InvalidPlan { reason });
        }
        Ok(())
    }
}

impl fmt::Display for DensePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dense rows={}", self.rows)
    }
}
