//! The `flute` command as its users meet it: what it does, and what it prints where.

mod bench;
mod convert;
mod higgs;
mod learn;
mod quality;
mod readme;
mod refusals;
mod tune;

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use tempfile::TempDir;

/// The dense model that everything starts from.
static DENSE: LazyLock<PathBuf> =
    LazyLock::new(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny-llama"));

/// The same in 4 bits, quantized once by the command itself.
static QUANTIZED: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-llama-nf4");
    done(flute(["quantize", text(&DENSE), "--output", text(&target), "--force"]));
    target
});

/// 3 kB of text the model was not trained on.
static SHORT_TEXT: LazyLock<PathBuf> = LazyLock::new(|| {
    let all = std::fs::read_to_string(DENSE.join("eval.txt")).unwrap();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("short.txt");
    std::fs::write(&path, &all[..3000]).unwrap();
    path
});

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn command<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flute"));
    command.args(arguments).stdin(Stdio::null());
    // What whoever runs the tests has set is not what is tested.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLUTE_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG");
    command
}

fn flute<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Output {
    command(arguments).output().unwrap()
}

fn with_stdin<'a>(arguments: impl IntoIterator<Item = &'a str>, stdin: &str) -> Output {
    let mut command = command(arguments);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The stdout of a command that succeeded.
fn done(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn json(output: Output) -> Value {
    serde_json::from_str(&done(output)).unwrap()
}

fn perplexity(model: &Path) -> f64 {
    let value = json(flute([
        "eval",
        text(model),
        "--text",
        text(&SHORT_TEXT),
        "--window",
        "128",
        "--device",
        "cpu",
        "--dequantize",
        "--json",
    ]));
    assert_eq!(value["device"], "cpu");
    assert!(value["predicted"].as_u64().unwrap() >= 128);
    value["perplexity"].as_f64().unwrap()
}

fn greedy<'a>(model: &'a Path, more: &[&'a str]) -> Output {
    let arguments = ["generate", text(model), "-p", "The iterator returns", "--device", "cpu"];
    flute(arguments.into_iter().chain(more.iter().copied()))
}

#[test]
fn a_model_is_quantized_inspected_and_found_sound() {
    let found = json(flute(["inspect", text(&QUANTIZED), "--verify", "--json"]));
    assert_eq!(found["architecture"], "LlamaForCausalLM");
    assert_eq!(found["verified"], true);
    let linears = found["linears"].as_array().unwrap();
    assert_eq!(linears.len(), 6 * 7, "seven layers in each of six blocks");
    assert!(linears.iter().all(|linear| linear["bits"] == 4 && linear["group"] == 64));
    let words = done(flute(["inspect", text(&QUANTIZED), "--verify"]));
    assert!(words.contains("W4G64 nf") && words.contains("sound"), "{words}");
}

#[test]
fn a_dense_model_is_inspected_as_such() {
    let words = done(flute(["inspect", text(&DENSE)]));
    assert!(words.contains("LlamaForCausalLM") && words.contains("no quantized layer"), "{words}");
}

#[test]
fn four_bits_change_the_perplexity_by_a_few_percent() {
    let (dense, quantized) = (perplexity(&DENSE), perplexity(&QUANTIZED));
    assert!((0.97..1.10).contains(&(quantized / dense)), "{dense} became {quantized}");
}

#[test]
fn greedy_text_is_that_of_the_reference() {
    let reference = std::fs::read_to_string(DENSE.join("reference.json")).unwrap();
    let reference: Value = serde_json::from_str(&reference).unwrap();
    let continuation = &reference["greedy"][0];
    assert_eq!(continuation["prompt"], "The iterator returns");
    let output = greedy(&DENSE, &["--dtype", "f32", "-n", "48"]);
    let told = stderr(&output);
    assert_eq!(done(output).trim_end_matches('\n'), continuation["greedy_text"]);
    assert!(told.contains("tokens/s"), "speed belongs on stderr: {told}");
}

#[test]
fn a_quantized_model_generates_and_quiet_means_quiet() {
    let output = greedy(&QUANTIZED, &["-n", "6", "--quiet"]);
    assert_eq!(stderr(&output), "");
    assert!(done(output).len() > 6);
}

#[test]
fn a_seed_decides_the_text_and_another_seed_another() {
    let text = |seed| done(greedy(&DENSE, &["-n", "12", "--temperature", "1.5", "--seed", seed]));
    assert_eq!(text("7"), text("7"));
    assert_ne!(text("7"), text("8"));
}

#[test]
fn a_prompt_may_come_from_stdin() {
    let arguments = ["generate", text(&DENSE), "-p", "-", "-n", "8", "--device", "cpu"];
    let piped = done(with_stdin(arguments, "The iterator returns"));
    assert_eq!(piped, done(greedy(&DENSE, &["-n", "8"])));
}

#[test]
fn text_ends_before_a_stop_phrase() {
    let whole = done(greedy(&DENSE, &["-n", "24"]));
    let (before, _) = whole.split_once("elements").unwrap();
    let stopped = done(greedy(&DENSE, &["-n", "24", "--stop", "elements"]));
    assert_eq!(stopped, format!("{before}\n"));
}

#[test]
fn a_conversation_has_an_answer_a_turn() {
    let arguments = ["chat", text(&DENSE), "-n", "4", "--device", "cpu", "--system", "Be brief."];
    let output = with_stdin(arguments, "What is a vector?\n\nAnd a slice?\n");
    let told = stderr(&output);
    done(output);
    assert_eq!(told.matches("tokens read").count(), 2, "an empty line is no turn: {told}");
}

#[test]
fn every_width_and_table_is_written_and_verified() {
    let dir = TempDir::new().unwrap();
    for (bits, group, table) in
        [("2", "32", "nf-symmetric"), ("3", "row", "int"), ("4", "256", "fp")]
    {
        let target = dir.path().join(bits);
        let format = ["--bits", bits, "--group-size", group, "--table", table];
        let arguments = ["quantize", text(&DENSE), "-o", text(&target)];
        done(flute(arguments.into_iter().chain(format)));
        let found = json(flute(["inspect", text(&target), "--verify", "--json"]));
        assert_eq!(found["linears"][0]["table"], table);
        assert_eq!(found["linears"][0]["bits"].to_string(), bits);
    }
}

#[test]
fn skipped_layers_stay_dense() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    let skip = ["--skip", "down_proj,layers.0", "--dtype", "bf16"];
    done(flute(["quantize", text(&DENSE), "-o", text(&target)].into_iter().chain(skip)));
    let found = json(flute(["inspect", text(&target), "--json"]));
    let linears = found["linears"].as_array().unwrap();
    assert_eq!(linears.len(), 5 * 6, "five blocks without their down_proj");
    assert!(linears.iter().all(|linear| linear["scales"] == "bf16"));
}

#[test]
fn flags_can_come_from_the_environment_and_typed_ones_win() {
    let dir = TempDir::new().unwrap();
    let quantize = |name: &str, typed: &[&str]| {
        let target = dir.path().join(name);
        let mut command = command(["quantize", text(&DENSE), "-o", text(&target)]);
        done(command.args(typed).env("FLUTE_BITS", "3").output().unwrap());
        json(flute(["inspect", text(&target), "--json"]))["linears"][0]["bits"].clone()
    };
    assert_eq!(quantize("variable", &[]), 3);
    assert_eq!(quantize("typed", &["--bits", "2"]), 2);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let cases: [&[&str]; 3] = [
        &["completions", "bash"],
        &["inspect", text(&DENSE), "--json"],
        &["generate", text(&DENSE), "-p", "The", "-n", "4", "--device", "cpu", "--quiet"],
    ];
    for arguments in cases {
        let mut command = command(arguments.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), stderr(&output).as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

#[test]
fn doctor_lists_the_cpu_last_and_what_each_device_can_do() {
    let found = json(flute(["doctor", "--json"]));
    let devices = found["devices"].as_array().unwrap();
    assert_eq!(devices.last().unwrap()["name"], "cpu");
    for device in devices.iter().filter(|device| device["opens"] == true) {
        assert!(
            device["dtypes"].as_array().unwrap().iter().any(|dtype| dtype == "f32"),
            "{device}"
        );
        let gpu = &device["gpu"];
        assert!(gpu.is_null() == (device["name"] == "cpu"), "{device}");
        assert!(gpu.is_null() || gpu["shared_memory_bytes"].as_u64().unwrap() > 0, "{device}");
    }
    let words = done(flute(["doctor"]));
    assert!(words.contains("CUDA headers") && words.contains("--device auto"), "{words}");
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = done(flute(["completions", shell]));
        for command in ["quantize", "inspect", "generate", "chat", "eval", "doctor"] {
            assert!(script.contains(command), "{command} is not in the script for {shell}");
        }
    }
}
