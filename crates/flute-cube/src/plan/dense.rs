//! The plan that multiplies densely: decode once, then the vendor's matrix product.

use crate::{Dtype, Error, Limits, Problem, Result, pack};
use core::fmt;
use serde::{Deserialize, Serialize};

/// How a weight is decoded for a dense product: part by part, into memory that is given back at once.
///
/// It serves f16 and bf16 and rounds each decoded weight once more than the other plans do, and it does not run inside
/// a graph capture, where [`crate::qgemm`] takes another plan instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DensePlan {
    /// Parts of about the same number of rows of W, of which one is decoded at a time.
    pub parts: u32,
}

/// Bytes of decoded weight at a time.
const WORKSPACE: usize = 1 << 30;
/// Beyond which every part would be a small product.
const MOST_PARTS: u32 = 64;

impl DensePlan {
    /// Bytes of memory beside the operands.
    pub fn workspace(&self, problem: &Problem) -> usize {
        self.rows(problem).min(problem.n) * problem.k * problem.dtype.size()
    }

    /// Rows of a part, but for the last: whole tiles.
    pub(crate) fn rows(&self, problem: &Problem) -> usize {
        problem.n.div_ceil(self.parts as usize).next_multiple_of(pack::BLOCK_ROWS)
    }

    /// As few parts as the workspace has room for.
    fn of(problem: &Problem) -> Self {
        let fits = |plan: &Self| plan.workspace(problem) <= WORKSPACE;
        let parts = (1..MOST_PARTS).map(|parts| Self { parts });
        parts.into_iter().find(fits).unwrap_or(Self { parts: MOST_PARTS })
    }

    /// The only one, where it may win: below these rows every fused kernel has less to read than a dense product.
    pub(super) fn candidates(problem: &Problem, limits: &Limits) -> Vec<Self> {
        const FROM: usize = 129;
        let plan = Self::of(problem);
        let serves = problem.m >= FROM && plan.validate(problem, limits).is_ok();
        if serves { vec![plan] } else { vec![] }
    }

    /// Microseconds on an H200, like `StreamPlan::cost`: decoding, a product that is bound by its arithmetic or by
    /// reading the decoded weight, and two events; and a gate behind it, which reads both parts and writes one. The host
    /// takes 65 for all of it.
    pub(super) fn cost(problem: &Problem) -> f64 {
        let Problem { m, n, k, format, gate, .. } = *problem;
        let weights = (n * k) as f64;
        // A last tile of few rows costs what it would if it were full, but no more than a thirtieth.
        let m = m.next_multiple_of(128).min(m + m / 32);
        let decode = weights * (f64::from(format.bits.get()) / 8.0 + 2.0) / 3.3e6;
        let product = (2.0 * weights * m as f64 / 720e6).max(2.0 * weights / 4.2e6);
        let gated = if gate.is_some() { 3.0 * (m * n) as f64 / 3.9e6 } else { 0.0 };
        (decode + product + gated + 12.0).max(65.0)
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
        if !(1..=MOST_PARTS).contains(&self.parts) {
            let reason = format!("{self}: parts must lie in 1..={MOST_PARTS}");
            return Err(Error::InvalidPlan { reason });
        }
        Ok(())
    }
}

impl fmt::Display for DensePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dense parts={}", self.parts)
    }
}
