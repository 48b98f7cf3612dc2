//! The report of a comparison: what quantizing costs, as a table, plots and one page.
//!
//! A plot a model in SVG, `report.html` with all of them and their tables in one file that loads nothing, and the
//! figures in `report.json`. No date and no machine: the same figures give the same bytes. Files appear complete.

mod page;
mod plot;

use anyhow::Context;
use flute_burn::compare::{Measured, Series};
use serde::Serialize;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// What was compared.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Name of the text's file.
    pub(crate) text: String,
    /// Predictions a window.
    pub(crate) window: usize,
    /// Windows at most, if not all of them.
    pub(crate) limit: Option<usize>,
    /// What sensitivities were measured on, and scales learned from.
    pub(crate) calibration: String,
    /// Windows of that which scales were learned on.
    pub(crate) samples: usize,
    pub(crate) models: Vec<Compared>,
}

/// One model in many ways.
#[derive(Debug, Serialize)]
pub(crate) struct Compared {
    /// Name of its directory.
    pub(crate) model: String,
    pub(crate) ways: Vec<Measured>,
}

impl Report {
    /// Writes every file into `dir`, which is made if it is not there.
    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut plots = vec![];
        for compared in &self.models {
            let plot = plot::draw(compared)?;
            replace(dir, &format!("{}.svg", compared.model), &plot)?;
            plots.push(plot);
        }
        replace(dir, "report.html", &page::render(self, &plots))?;
        replace(dir, "report.json", &format!("{}\n", serde_json::to_string_pretty(self)?))
    }

    /// What was measured, in a sentence.
    fn measured(&self) -> String {
        let Self { text, window, limit, calibration, .. } = self;
        let windows = match limit {
            Some(limit) => format!("the first {limit} windows"),
            None => "all windows".to_owned(),
        };
        let learned = match self.samples {
            0 => String::new(),
            samples => format!(" Scales were learned on {samples} windows of it."),
        };
        format!(
            "Perplexity over {windows} of {window} tokens of {text}. What layers matter was measured on \
             {calibration}.{learned}"
        )
    }
}

impl Compared {
    /// A table in Markdown, legible as it is.
    pub(crate) fn table(&self) -> String {
        let mut table = format!(
            "{:<16} | {:<12} | {:>13} | {:>10} | {:>7}\n",
            self.model, "format", "bits a weight", "perplexity", "change"
        );
        table += "-----------------|--------------|--------------:|-----------:|--------:\n";
        for way in &self.ways {
            let Measured { series, format, bits_per_weight: bits, perplexity } = way;
            let (name, change) = (series.name(), self.change(way));
            // Writing to a string does not fail.
            let _ = writeln!(
                table,
                "{name:<16} | {format:<12} | {bits:>13.3} | {perplexity:>10.3} | {change:>7}"
            );
        }
        table
    }

    /// The perplexity of the dense model, if it was measured.
    fn dense(&self) -> Option<f64> {
        let dense = self.ways.iter().find(|way| way.series == Series::Dense);
        dense.map(|way| way.perplexity)
    }

    /// How much the perplexity is above that of the dense model.
    fn change(&self, way: &Measured) -> String {
        match self.dense().filter(|_| way.series != Series::Dense) {
            Some(dense) => format!("{:+.1} %", (way.perplexity / dense - 1.0) * 100.0),
            None => String::new(),
        }
    }
}

/// Writes a file beside its name and gives it the name when it is complete.
fn replace(dir: &Path, name: &str, contents: &str) -> anyhow::Result<()> {
    let (path, part) = (dir.join(name), dir.join(format!(".{name}.part")));
    fs::write(&part, contents)
        .and_then(|()| fs::rename(&part, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}
