//! Plans: how a problem will be done, as plain data.
//!
//! A plan is chosen by [`Plan::select`], listed by [`Plan::candidates`] (for tuners and tests) or made by hand. What
//! passes [`Plan::validate`] can be launched.

mod cooperative;
mod dense;
mod mma;
mod portable;
pub(crate) mod stream;

pub use cooperative::CooperativePlan;
pub use dense::DensePlan;
pub use mma::MmaPlan;
pub use portable::PortablePlan;
pub use stream::StreamPlan;

use crate::{Limits, Problem, Result};
use core::fmt;
use serde::{Deserialize, Serialize};

/// Which kernel family, and its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Plan {
    /// Plain arithmetic: every runtime.
    Portable(PortablePlan),
    /// Cooperative matrices: Vulkan where the device offers them, for many rows of x.
    Cooperative(CooperativePlan),
    /// Tensor cores through inline PTX: CUDA.
    Mma(MmaPlan),
    /// Hopper's warpgroup tensor cores behind rings of tensor copies: CUDA of compute capability 9.0.
    Stream(StreamPlan),
    /// Decoded once, then the vendor's dense product: CUDA with its library, outside graph captures.
    Dense(DensePlan),
}

impl Plan {
    /// The plan for `problem` on a device of `limits`, without measuring.
    ///
    /// # Errors
    /// What [`Problem::validate`] refuses.
    pub fn select(problem: &Problem, limits: &Limits) -> Result<Self> {
        problem.validate(limits)?;
        let streaming = StreamPlan::select(problem, limits);
        if let Some(plan) = DensePlan::candidates(problem, limits).into_iter().next() {
            let fused = streaming.map(|plan| plan.cost(problem, limits));
            if fused.is_none_or(|fused| DensePlan::cost(problem) < fused) {
                return Ok(Self::Dense(plan));
            }
        }
        if let Some(plan) = streaming.filter(|_| stream::leads(problem, limits)) {
            return Ok(Self::Stream(plan));
        }
        if let Some(plan) = MmaPlan::select(problem, limits) {
            return Ok(Self::Mma(plan));
        }
        Ok(match CooperativePlan::select(problem, limits) {
            Some(plan) => Self::Cooperative(plan),
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
        let mut plans: Vec<Self> =
            StreamPlan::candidates(problem, limits).into_iter().map(Self::Stream).collect();
        if plans.is_empty() || problem.m <= stream::FEW {
            plans.extend(MmaPlan::candidates(problem, limits).into_iter().map(Self::Mma));
        }
        plans.extend(DensePlan::candidates(problem, limits).into_iter().map(Self::Dense));
        plans.extend(
            CooperativePlan::candidates(problem, limits).into_iter().map(Self::Cooperative),
        );
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
            Self::Cooperative(plan) => plan.validate(problem, limits),
            Self::Mma(plan) => plan.validate(problem, limits),
            Self::Stream(plan) => plan.validate(problem, limits),
            Self::Dense(plan) => plan.validate(problem, limits),
        }
    }
}

/// Bytes of the pair table in shared memory of a tensor-core kernel: once for every lane, 128 bytes an index; two bits
/// look up four weights at a time.
pub(crate) fn table_bytes(bits: u8) -> usize {
    128 << if bits == 3 { 6 } else { 8 }
}

impl Plan {
    /// Whether its kernel computes [`Problem::gate`] on its sums: then gate and up are neither rounded nor stored. What
    /// does not is followed by a kernel that gates, and needs memory for `[m, n]`.
    pub fn gates(&self) -> bool {
        matches!(self, Self::Mma(_) | Self::Stream(_))
    }

    /// Whether each decoded weight is rounded to the activation type before it is multiplied: results are then twice as
    /// far from exact ones as those of other plans, and a product with an identity is still exact.
    pub fn rounds_weights(&self) -> bool {
        match self {
            Self::Portable(_) | Self::Mma(_) => false,
            Self::Stream(plan) => plan.scales_weights(),
            Self::Cooperative(_) | Self::Dense(_) => true,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Portable(plan) => plan.fmt(f),
            Self::Cooperative(plan) => plan.fmt(f),
            Self::Mma(plan) => plan.fmt(f),
            Self::Stream(plan) => plan.fmt(f),
            Self::Dense(plan) => plan.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, Format};

    /// (n, k) of the linears of LLaMA-3 8B, 70B and 405B and of Gemma-2 9B and 27B, with their tensor-parallel cuts.
    #[rustfmt::skip]
    const SHAPES: [(usize, usize); 53] = [
        (1024, 4096), (4096, 4096), (4096, 14336), (6144, 4096), (14336, 4096), (1024, 8192), (8192, 8192),
        (8192, 28672), (10240, 8192), (28672, 8192), (5120, 8192), (8192, 4096), (8192, 14336), (14336, 8192),
        (2560, 8192), (7168, 8192), (8192, 2048), (8192, 7168), (2048, 16384), (2560, 16384), (5120, 16384),
        (16384, 2048), (16384, 4096), (16384, 6656), (16384, 16384), (16384, 53248), (16384, 13312), (53248, 16384),
        (20480, 16384), (26624, 16384), (13312, 16384), (106496, 16384), (28672, 4096), (57344, 8192), (2048, 3584),
        (3584, 4096), (3584, 14336), (4096, 3584), (14336, 3584), (8192, 3584), (28672, 3584), (2048, 4608),
        (4096, 4608), (4608, 4096), (4608, 36864), (36864, 4608), (8192, 4608), (73728, 4608), (4608, 2048),
        (4608, 18432), (4608, 1024), (4608, 9216), (18432, 4608),
    ];

    fn gpus() -> [Limits; 3] {
        [
            Limits::nvidia("H200", 132, 227),
            Limits::nvidia("A100", 108, 163),
            Limits::nvidia("RTX 4090", 128, 99),
        ]
    }

    #[test]
    fn every_projection_of_llama_and_gemma_takes_a_tensor_core_plan_on_every_gpu() {
        for limits in gpus() {
            for (n, k) in SHAPES {
                for bits in [2, 3, 4] {
                    for m in [1, 2, 8, 16, 17, 64, 1000] {
                        let format = Format::new(bits, 128).unwrap();
                        let problem =
                            Problem { m, n, k, format, dtype: Dtype::F16, bias: false, gate: None };
                        let plan = Plan::select(&problem, &limits).unwrap();
                        assert!(
                            matches!(plan, Plan::Mma(_) | Plan::Stream(_)),
                            "{} {problem:?}: {plan}",
                            limits.name
                        );
                        assert!(Plan::candidates(&problem, &limits).unwrap().contains(&plan));
                        plan.validate(&problem, &limits).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn only_hopper_streams_and_only_half_types() {
        let streams = |limits: &Limits, m, dtype| {
            let format = Format::new(4, 128).unwrap();
            let problem = Problem { m, n: 28672, k: 4096, format, dtype, bias: false, gate: None };
            let plans = Plan::candidates(&problem, limits).unwrap();
            plans.iter().any(|plan| matches!(plan, Plan::Stream(_)))
        };
        let [hopper, ampere, ada] = gpus();
        for m in [1, 8, 33, 64, 65, 128, 1024, 4096] {
            assert!(streams(&hopper, m, Dtype::F16) && streams(&hopper, m, Dtype::BF16));
            assert!(!streams(&hopper, m, Dtype::F32));
            assert!(!streams(&ampere, m, Dtype::F16) && !streams(&ada, m, Dtype::F16));
        }
    }

    #[test]
    fn one_row_streams_where_rows_are_long_or_very_many_and_nine_rows_everywhere() {
        let [hopper, ampere, _] = gpus();
        let streams = |limits: &Limits, m, (n, k)| {
            let format = Format::new(4, 128).unwrap();
            let problem = Problem { m, n, k, format, dtype: Dtype::F16, bias: false, gate: None };
            matches!(Plan::select(&problem, limits), Ok(Plan::Stream(_)))
        };
        for shape in [(4096, 4096), (4096, 14336), (28672, 4096), (8192, 8192), (28672, 8192)] {
            assert!(!streams(&hopper, 1, shape) && streams(&hopper, 9, shape));
        }
        for shape in [(8192, 28672), (57344, 8192), (16384, 6656)] {
            assert!(streams(&hopper, 1, shape) && !streams(&ampere, 16, shape));
        }
        assert!(streams(&hopper, 2, (8192, 8192)) && !streams(&hopper, 4, (28672, 4096)));
    }

    #[test]
    fn weights_are_rounded_by_plans_for_more_than_32_rows_alone() {
        let [hopper, ampere, _] = gpus();
        for limits in [hopper, ampere] {
            for m in [1, 8, 32, 33, 128] {
                let format = Format::new(4, 128).unwrap();
                let problem = Problem {
                    m,
                    n: 8192,
                    k: 8192,
                    format,
                    dtype: Dtype::F16,
                    bias: false,
                    gate: None,
                };
                let rounds = Plan::select(&problem, &limits).unwrap().rounds_weights();
                assert_eq!(rounds, m > 32 && limits.wgmma, "{m} on {}", limits.name);
            }
        }
    }

    #[test]
    fn what_has_no_tensor_cores_takes_the_portable_plan() {
        let limits = Limits { mma: false, ..Limits::nvidia("any", 16, 32) };
        let format = Format::new(4, 64).unwrap();
        for dtype in Dtype::ALL {
            let problem = Problem { m: 3, n: 100, k: 100, format, dtype, bias: true, gate: None };
            assert!(matches!(Plan::select(&problem, &limits), Ok(Plan::Portable(_))));
        }
    }
}
