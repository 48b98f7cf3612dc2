//! `flute bench`, of a shape and of a directory.

use super::{QUANTIZED, done, flute, json, stderr, text};

const QUICK: [&str; 8] = ["--device", "cpu", "-n", "2", "--context", "8", "--prompt", "4"];

#[test]
fn a_shape_is_measured_without_any_checkpoint() {
    let shape = ["bench", "--shape", "tiny", "--bits", "3", "--json"];
    let found = json(flute(shape.into_iter().chain(QUICK)));
    assert_eq!(found["model"], "tiny");
    assert_eq!(found["format"], "W3G128");
    assert_eq!(found["device"], "cpu");
    assert!(found["load"].is_null() && found["first_token_seconds"].is_null());
    let speed = &found["speed"];
    assert!(speed["tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(speed["step_bytes"]["linears"].as_u64().unwrap() > 0);
    assert!(speed["read_rate"].is_null(), "no kernel runs on the CPU");
}

#[test]
fn a_directory_is_measured_from_its_loading_on() {
    let found = json(flute(["bench", text(&QUANTIZED), "--json"].into_iter().chain(QUICK)));
    let bytes = std::fs::metadata(QUANTIZED.join("model.safetensors")).unwrap().len();
    let loaded = found["load"]["bytes"].as_u64().unwrap();
    assert!(loaded <= bytes && bytes < loaded + 100_000, "{loaded} of {bytes}");
    assert!(found["load"]["bytes_per_second"].as_f64().unwrap() > 0.0);
    assert!(found["speed"]["prompt"]["first_token_seconds"].as_f64().unwrap() > 0.0);
    let seconds = |value: &serde_json::Value| value.as_f64().unwrap();
    assert!(seconds(&found["first_token_seconds"]) > seconds(&found["load"]["seconds"]));
    let words = done(flute(["bench", text(&QUANTIZED)].into_iter().chain(QUICK)));
    for line in ["load ", "start ", "decode ", "reads ", "prompt "] {
        assert!(words.contains(line), "{line} is not in {words}");
    }
}

#[test]
fn an_unknown_shape_is_refused_with_the_known_ones() {
    let output = flute(["bench", "--shape", "llama-9"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("gemma-2-27b"), "{}", stderr(&output));
    assert_eq!(flute(["bench"]).status.code(), Some(2), "neither a model nor a shape");
}
