//! Bits under a budget, and the report of what quantizing costs.

use crate::{DENSE, SHORT_TEXT, done, flute, json, stderr, text};
use std::collections::BTreeSet;
use tempfile::TempDir;

#[test]
fn a_budget_gives_layers_different_bits_and_the_model_runs() {
    let scratch = TempDir::new().unwrap();
    let target = scratch.path().join("model");
    let more = ["--budget-bits", "3.25", "--hadamard-size", "256", "--device", "cpu"];
    let words =
        done(flute(["quantize", text(&DENSE), "-o", text(&target)].into_iter().chain(more)));
    assert!(words.starts_with("higgs, 3.2"), "{words}");
    let found = json(flute(["inspect", text(&target), "--verify", "--json"]));
    let linears = found["linears"].as_array().unwrap();
    let kinds = linears.iter().map(|linear| format!("{}, {}", linear["bits"], linear["p"]));
    let kinds: BTreeSet<String> = kinds.collect();
    assert!(kinds.len() > 1, "{kinds:?}");
    let arguments = ["-p", "The iterator returns", "--device", "cpu", "-n", "8"];
    let continued = done(flute(["generate", text(&target)].into_iter().chain(arguments)));
    assert!(!continued.trim().is_empty());
}

#[test]
fn a_budget_that_nothing_fits_is_refused_before_anything_is_measured() {
    let scratch = TempDir::new().unwrap();
    let target = scratch.path().join("model");
    let arguments = ["quantize", text(&DENSE), "-o", text(&target), "--budget-bits"];
    let output = flute(arguments.into_iter().chain(["1.5"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the bits a weight is 1.5"), "{}", stderr(&output));
    let output = flute(arguments.into_iter().chain(["3.25", "--bits", "4"]));
    assert_eq!(output.status.code(), Some(2), "what chooses the bits leaves none to choose");
}

#[test]
fn a_comparison_is_a_table_a_plot_and_a_page_that_loads_nothing() {
    let scratch = TempDir::new().unwrap();
    let dir = scratch.path().join("report");
    let more = ["--window", "48", "--limit", "1", "--hadamard-size", "256", "--device", "cpu"];
    let learn = ["--calibration", text(&SHORT_TEXT), "--samples", "2"];
    let arguments = ["eval", text(&DENSE), "--text", text(&SHORT_TEXT), "--compare", text(&dir)];
    let words = done(flute(arguments.into_iter().chain(more).chain(learn)));
    assert!(words.starts_with("tiny-llama "), "{words}");
    for series in [
        "dense",
        "int",
        "fp",
        "nf",
        "nf, learned",
        "higgs, p = 1",
        "higgs, p = 2",
        "higgs, dynamic",
    ] {
        assert!(words.lines().any(|line| line.starts_with(series)), "{series}: {words}");
    }
    let file = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (plot, page) = (file("tiny-llama.svg"), file("report.html"));
    assert!(plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"));
    for series in ["dense, ", "higgs, p = 2", "higgs, dynamic"] {
        assert!(plot.contains(series), "{series} is not in the plot");
    }
    assert!(page.contains(&plot), "the plot is not in the page");
    for elsewhere in ["src=", "href=", "@import", "url("] {
        assert!(!page.contains(elsewhere), "the page loads something: {elsewhere}");
    }
    assert!(page.contains("Scales were learned on 2 windows of it."), "{page}");
    let report: serde_json::Value = serde_json::from_str(&file("report.json")).unwrap();
    let ways = report["models"][0]["ways"].as_array().unwrap();
    assert!(ways.len() > 20, "{}", ways.len());
    assert!(ways.iter().all(|way| way["perplexity"].as_f64().unwrap() > 1.0));
    let names: BTreeSet<_> =
        dir.read_dir().unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}
