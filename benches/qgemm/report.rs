//! The figures: a line each as they are measured, and an array of objects for machines.

use crate::{dense::DenseSeconds, target::Target};
use anyhow::{Context, Result};
use flute_cube::{Dtype, Problem, measure};
use serde::Serialize;
use std::{fs, path::PathBuf};

/// What was measured of one case.
pub(crate) struct Measured {
    pub(crate) problem: Problem,
    /// Bytes of codes and scales.
    pub(crate) weight_bytes: usize,
    /// The selected plan and its seconds.
    pub(crate) selected: (String, f64),
    /// The fastest plan of all and its seconds, if all were measured.
    pub(crate) best: Option<(String, f64)>,
    pub(crate) dense: DenseSeconds,
}

/// One object of the array.
#[derive(Serialize)]
struct Figures {
    backend: String,
    device: String,
    n: usize,
    k: usize,
    m: usize,
    bits: u8,
    /// Weights a scale.
    group: usize,
    dtype: Dtype,
    plan: String,
    us: f64,
    /// Of codes and scales.
    gb_per_s: f64,
    /// Part of the rate that reading alone reaches on this device, in this run.
    read_share: f64,
    /// See [`measure::floor`].
    floor_us: f64,
    /// By cuBLAS; null where there is none.
    dense_us: Option<f64>,
    /// How many times as fast as dense.
    dense_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burn_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    burn_ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best_plan: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best_us: Option<f64>,
}

const MICRO: f64 = 1e6;

#[rustfmt::skip]
const HEADER: &str =
    "     n      k     m format          µs    GB/s   read      floor     cuBLAS   ratio       Burn   ratio  plan";

impl Figures {
    fn new(target: &Target, measured: Measured) -> Self {
        let Measured { problem, weight_bytes, selected: (plan, seconds), best, dense } = measured;
        let rate = weight_bytes as f64 / seconds;
        let (best_plan, best_us) = best.map(|(plan, s)| (plan, s * MICRO)).unzip();
        Self {
            backend: target.backend.clone(),
            device: target.identity.clone(),
            n: problem.n,
            k: problem.k,
            m: problem.m,
            bits: problem.format.bits.get(),
            group: problem.format.group.len(problem.k),
            dtype: problem.dtype,
            plan,
            us: seconds * MICRO,
            gb_per_s: rate / 1e9,
            read_share: rate / target.rate,
            floor_us: measure::floor(&problem, target.rate) * MICRO,
            dense_us: dense.cublas.map(|s| s * MICRO),
            dense_ratio: dense.cublas.map(|s| s / seconds),
            burn_us: dense.burn.map(|s| s * MICRO),
            burn_ratio: dense.burn.map(|s| s / seconds),
            best_plan,
            best_us,
        }
    }

    fn line(&self) -> String {
        let absent = || "-".to_string();
        let us = |us: Option<f64>| us.map_or_else(absent, |us| format!("{us:.2}"));
        let times = |ratio: Option<f64>| ratio.map_or_else(absent, |r| format!("{r:.2}x"));
        let best = match (self.best_us, &self.best_plan) {
            (Some(us), Some(plan)) if *plan != self.plan => format!("; best {us:.2}: {plan}"),
            (Some(_), _) => "; the best".into(),
            _ => String::new(),
        };
        format!(
            "{:>6} {:>6} {:>5} {:>6} {:>11.2} {:>7.1} {:>5.0}% {:>10.2} {:>10} {:>7} {:>10} {:>7}  {}{best}",
            self.n,
            self.k,
            self.m,
            format!("W{}G{}", self.bits, self.group),
            self.us,
            self.gb_per_s,
            100.0 * self.read_share,
            self.floor_us,
            us(self.dense_us),
            times(self.dense_ratio),
            us(self.burn_us),
            times(self.burn_ratio),
            self.plan,
        )
    }
}

/// All figures of a run.
pub(crate) struct Report {
    json: Option<PathBuf>,
    figures: Vec<Figures>,
    failures: usize,
}

impl Report {
    /// An empty report, to be written to `json` as well.
    pub(crate) fn new(json: Option<PathBuf>) -> Self {
        Self { json, figures: vec![], failures: 0 }
    }

    /// Announces the figures of `target`.
    pub(crate) fn open(&self, target: &Target, dtype: Dtype) {
        let Target { identity, backend, rate, .. } = target;
        println!("\n{identity} ({backend}), {dtype}, reads {:.1} GB/s", rate / 1e9);
        println!("{HEADER}");
    }

    /// Prints one case, and writes all so far: a run that is cut short leaves what it measured.
    pub(crate) fn add(&mut self, target: &Target, measured: Measured) -> Result<()> {
        let figures = Figures::new(target, measured);
        println!("{}", figures.line());
        self.figures.push(figures);
        let Some(path) = &self.json else { return Ok(()) };
        let partial = path.with_added_extension("partial");
        let written = fs::write(&partial, serde_json::to_string_pretty(&self.figures)? + "\n");
        let written = written.and_then(|()| fs::rename(&partial, path));
        written.with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Prints why there is no figure, or not one to trust.
    pub(crate) fn fail(&mut self, what: &str, error: &anyhow::Error) {
        self.failures += 1;
        eprintln!("error: {what}: {error:#}");
    }

    /// Whether something was measured and nothing failed.
    pub(crate) fn is_good(&self) -> bool {
        self.failures == 0 && !self.figures.is_empty()
    }
}
