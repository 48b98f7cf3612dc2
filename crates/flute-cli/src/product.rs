//! A product and its plan, as `flute doctor` and `flute tune` print them.

use flute_cube::tune::Tuned;
use flute_cube::{Dtype, Plan, Problem};
use serde::Serialize;
use std::fmt;

#[derive(Serialize)]
pub(crate) struct Product {
    n: usize,
    k: usize,
    m: usize,
    format: String,
    dtype: Dtype,
    plan: String,
    /// Of one launch, where it was measured.
    microseconds: Option<f64>,
    /// Of one launch of the plan that is chosen without measuring.
    unmeasured_microseconds: Option<f64>,
}

impl Product {
    /// `problem`, which runs with `plan`; `tuned` is what was measured of it.
    pub(crate) fn new(problem: &Problem, plan: &Plan, tuned: Option<Tuned>) -> Self {
        let Problem { m, n, k, format, dtype, .. } = *problem;
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        Self {
            n,
            k,
            m,
            format: format.to_string(),
            dtype,
            plan: plan.to_string(),
            microseconds: tuned.map(|tuned| microseconds(tuned.nanoseconds)),
            unmeasured_microseconds: tuned.map(|tuned| microseconds(tuned.selected_nanoseconds)),
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n, k, m, format, dtype, plan, .. } = self;
        write!(f, "{n}x{k} m={m} {format} {dtype}: {plan}, ")?;
        match (self.microseconds, self.unmeasured_microseconds) {
            (Some(now), Some(before)) => write!(f, "{now:.1} µs (unmeasured {before:.1})"),
            _ => write!(f, "not measured"),
        }
    }
}
