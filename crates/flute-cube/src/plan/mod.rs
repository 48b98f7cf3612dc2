//! Plans: how a problem will be done, as plain data.
//!
//! A plan is chosen by [`Plan::select`], listed by [`Plan::candidates`] (for tuners and tests) or made by hand. What
//! passes [`Plan::validate`] can be launched.

mod mma;
mod portable;

pub use mma::MmaPlan;
pub use portable::PortablePlan;

use crate::{Limits, Problem, Result};
use core::fmt;
use serde::{Deserialize, Serialize};

/// Which kernel family, and its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Plan {
    /// Plain arithmetic: every runtime.
    Portable(PortablePlan),
    /// Tensor cores through inline PTX: CUDA.
    Mma(MmaPlan),
}

impl Plan {
    /// The plan for `problem` on a device of `limits`, without measuring.
    ///
    /// # Errors
    /// What [`Problem::validate`] refuses.
    pub fn select(problem: &Problem, limits: &Limits) -> Result<Self> {
        problem.validate(limits)?;
        Ok(match MmaPlan::select(problem, limits) {
            Some(plan) => Self::Mma(plan),
            None => Self::Portable(PortablePlan::select(problem, limits)),
        })
    }

    /// Every plan that might be the best one for `problem` on a device of `limits`: what a tuner measures and what
    /// tests must cover. The selected plan is among them.
    ///
    /// # Errors
    /// What [`Problem::validate`] refuses.
    pub fn candidates(problem: &Problem, limits: &Limits) -> Result<Vec<Self>> {
        problem.validate(limits)?;
        let mut plans: Vec<Self> = MmaPlan::candidates(problem, limits).into_iter().map(Self::Mma).collect();
        plans.extend(PortablePlan::candidates(problem, limits).into_iter().map(Self::Portable));
        Ok(plans)
    }

    /// Whether the plan serves `problem` and a device of `limits` can run it.
    ///
    /// # Errors
    /// [`crate::Error::UnsupportedPlan`] and [`crate::Error::InvalidPlan`], and what [`Problem::validate`] refuses.
    pub fn validate(&self, problem: &Problem, limits: &Limits) -> Result<()> {
        problem.validate(limits)?;
        match self {
            Self::Portable(plan) => plan.validate(problem, limits),
            Self::Mma(plan) => plan.validate(problem, limits),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Portable(plan) => plan.fmt(f),
            Self::Mma(plan) => plan.fmt(f),
        }
    }
}
