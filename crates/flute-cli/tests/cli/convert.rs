//! Models of other programs by the command.

use crate::{done, flute, json, stderr, text};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/golden").join(name)
}

#[test]
fn a_model_of_bitsandbytes_runs_as_it_is_and_converted() {
    let scratch = TempDir::new().unwrap();
    let (source, target) = (golden("tiny-llama-bnb-nf4"), scratch.path().join("model"));
    let words = done(flute(["convert", text(&source), "-o", text(&target)]));
    assert!(words.starts_with("42 layers, 15 tensors kept"), "{words}");
    let continued = |model: &Path| {
        let arguments = ["-p", "The iterator returns", "--device", "cpu", "-n", "8"];
        done(flute(["generate", text(model)].into_iter().chain(arguments)))
    };
    assert_eq!(continued(&source), continued(&target));
    for model in [&source, &target] {
        let found = json(flute(["inspect", text(model), "--verify", "--json"]));
        assert_eq!(found["linears"].as_array().unwrap().len(), 42);
        assert_eq!(found["linears"][0]["table"], "nf");
        assert_eq!(found["parameters"], 5_770_496);
    }
}

#[test]
fn a_legacy_model_is_written_back_to_the_byte() {
    let scratch = TempDir::new().unwrap();
    let (source, target) = (golden("tiny-llama-flute-nf4-g64"), scratch.path().join("model"));
    let arguments = ["convert", text(&source), "-o", text(&target), "--to", "flute-legacy"];
    done(flute(arguments));
    let file = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(file(&source) == file(&target), "model.safetensors differs");
    let again = flute(arguments);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("exists already"), "{}", stderr(&again));
    done(flute(arguments.into_iter().chain(["--force"])));
}

#[test]
fn a_model_of_transformers_is_written_back_to_the_byte_and_runs_as_it_is() {
    let scratch = TempDir::new().unwrap();
    let (source, target) = (golden("tiny-llama-higgs-p2-4bit"), scratch.path().join("model"));
    let words =
        done(flute(["convert", text(&source), "-o", text(&target), "--to", "higgs", "--force"]));
    assert!(words.contains("in the HIGGS format of transformers"), "{words}");
    let file = |dir: &Path| std::fs::read(dir.join("model.safetensors")).unwrap();
    assert!(file(&source) == file(&target), "model.safetensors differs");
    let again = ["convert", text(&target), "-o", text(&target), "--to", "higgs", "--force"];
    done(flute(again));
    for dir in [source, golden("tiny-llama-flute-nf4-g64"), target] {
        let short = text(&crate::SHORT_TEXT);
        let arguments = ["--text", short, "--window", "64", "--limit", "2", "--device", "cpu"];
        let words = done(flute(["eval", text(&dir)].into_iter().chain(arguments)));
        assert!(words.contains("over 128 tokens in 2 windows"), "{words}");
        let arguments = ["-p", "The iterator returns", "--device", "cpu", "-n", "4"];
        let continued = done(flute(["generate", text(&dir)].into_iter().chain(arguments)));
        assert!(!continued.trim().is_empty());
    }
}

#[test]
fn a_dense_model_is_not_converted() {
    let scratch = TempDir::new().unwrap();
    let target = scratch.path().join("model");
    let output = flute(["convert", text(&crate::DENSE), "-o", text(&target)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("flute quantize"), "{}", stderr(&output));
}
