//! `flute quantize --learn-scales`.

use crate::{DENSE, SHORT_TEXT, done, flute, perplexity, stderr, text};

#[test]
fn scales_are_learned_and_the_model_reads_as_before() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("learned");
    let printed = done(flute([
        "quantize",
        text(&DENSE),
        "-o",
        text(&target),
        "--bits",
        "3",
        "--learn-scales",
        "--text",
        text(&SHORT_TEXT),
        "--samples",
        "4",
        "--seq-len",
        "64",
        "--lr",
        "0.003",
        "--epochs",
        "2",
        "--device",
        "cpu",
    ]));
    assert!(printed.contains("W3G64 nf, learned: 42 layers"), "{printed}");
    assert!(printed.contains("learned in 8 steps at "), "{printed}");
    let found = perplexity(&target);
    assert!(found > 1.0 && found < 100.0, "{found}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1, "no state is left behind");
}

#[test]
fn scales_are_learned_under_a_budget_too() {
    let scratch = tempfile::tempdir().unwrap();
    let quantize = |name: &str, more: &[&str]| {
        let target = scratch.path().join(name);
        let arguments =
            ["quantize", text(&DENSE), "-o", text(&target), "--device", "cpu", "--text"];
        let budget = [text(&SHORT_TEXT), "--budget-bits", "3.25", "--hadamard-size", "256"];
        let printed = done(flute(arguments.iter().chain(&budget).chain(more).copied()));
        let file = |name: &str| std::fs::read(target.join(name)).unwrap();
        let (config, weights) = (file("config.json"), file("model.safetensors"));
        (printed, config, weights, perplexity(&target))
    };
    let (_, config, weights, before) = quantize("rounded", &[]);
    let learn = ["--learn-scales", "--samples", "6", "--seq-len", "96"];
    let (printed, same, learned, after) = quantize("learned", &learn);
    assert!(
        printed.starts_with("higgs, 3.2") && printed.contains(" to be lost, learned: "),
        "{printed}"
    );
    assert!(printed.contains("learned in 6 steps at "), "{printed}");
    assert_eq!(config, same, "every layer is stored as the budget has it");
    assert_eq!(weights.len(), learned.len(), "and takes as many bytes");
    assert!(weights != learned, "its scales are others");
    assert!((after / before - 1.0).abs() < 0.1, "{before} to {after}");
}

#[test]
fn learning_without_a_text_is_a_usage_error() {
    let output = flute(["quantize", text(&DENSE), "-o", "nowhere", "--learn-scales"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--text"), "{}", stderr(&output));
}
