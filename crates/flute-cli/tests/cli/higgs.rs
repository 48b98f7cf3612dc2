//! HIGGS by the command.

use crate::{DENSE, done, flute, json, text};
use tempfile::TempDir;

#[test]
fn a_grid_is_printed_as_json() {
    let grid = json(flute(["grid", "--bits", "3", "-p", "1"]));
    let points = grid["points"].as_array().unwrap();
    assert_eq!((&grid["bits"], &grid["p"], points.len()), (&3.into(), &1.into(), 8));
    let top = points[7][0].as_f64().unwrap();
    assert!((top - 2.1519456).abs() < 1e-6, "{top}");
    let error = grid["error"].as_f64().unwrap();
    assert!((error - 0.034548).abs() < 1e-6, "{error}");
}

#[test]
fn a_model_is_quantized_in_rotated_blocks_and_found_sound() {
    let scratch = TempDir::new().unwrap();
    let target = scratch.path().join("model");
    let more = ["--table", "higgs", "--bits", "3", "-p", "2", "--hadamard-size", "256"];
    let words =
        done(flute(["quantize", text(&DENSE), "-o", text(&target)].into_iter().chain(more)));
    assert!(words.contains("W3G256 higgs, p = 2"), "{words}");
    let found = json(flute(["inspect", text(&target), "--verify", "--json"]));
    for linear in found["linears"].as_array().unwrap() {
        assert_eq!((&linear["table"], &linear["p"]), (&"higgs".into(), &2.into()));
        assert_eq!((&linear["hadamard_size"], &linear["group"]), (&256.into(), &256.into()));
    }
    let arguments = ["-p", "The iterator returns", "--device", "cpu", "-n", "8"];
    let continued = done(flute(["generate", text(&target)].into_iter().chain(arguments)));
    assert!(!continued.trim().is_empty());
}

#[test]
fn a_code_of_three_weights_is_a_usage_error() {
    let output = flute(["grid", "-p", "3"]);
    assert_eq!(output.status.code(), Some(2));
}
