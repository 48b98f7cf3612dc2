//! What the command refuses, in which words and with which exit code, and what stays behind: nothing.

use super::{DENSE, QUANTIZED, flute, greedy, stderr, text, with_stdin};
use serde_json::Value;
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;

/// A command that must be refused with exit code 1, in words that hold each of `words`.
fn refused<'a>(arguments: impl IntoIterator<Item = &'a str>, words: &[&str]) {
    expect_refusal(flute(arguments), 1, words);
}

fn expect_refusal(output: Output, code: i32, words: &[&str]) {
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty(), "stdout: {}", String::from_utf8_lossy(&output.stdout));
    assert!(message.contains("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}

/// A copy of the dense model in which `change` altered something.
fn altered(change: impl FnOnce(&Path)) -> TempDir {
    let dir = TempDir::new().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(DENSE.join(name), dir.path().join(name)).unwrap();
    }
    change(dir.path());
    dir
}

fn edit_config(dir: &Path, from: &str, to: &str) {
    let path = dir.join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    assert!(config.contains(from));
    std::fs::write(path, config.replace(from, to)).unwrap();
}

#[test]
fn an_existing_target_is_refused_and_stays_as_it_was() {
    let dir = TempDir::new().unwrap();
    let mine = dir.path().join("mine");
    std::fs::create_dir(&mine).unwrap();
    std::fs::write(mine.join("notes.txt"), "keep").unwrap();
    let arguments = ["quantize", text(&DENSE), "-o", text(&mine)];
    refused(arguments, &["exists already", "hint: "]);
    // Not even by force: flute did not write it.
    refused(arguments.into_iter().chain(["--force"]), &["not a directory that flute wrote"]);
    assert_eq!(std::fs::read_to_string(mine.join("notes.txt")).unwrap(), "keep");
    assert_eq!(std::fs::read_dir(&mine).unwrap().count(), 1);
}

#[test]
fn a_failed_run_leaves_nothing_behind() {
    // In bf16 all ones are a NaN.
    let model = altered(|dir| {
        let path = dir.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let info: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        let weight = &info["model.layers.5.mlp.up_proj.weight"]["data_offsets"][0];
        let at = 8 + header + weight.as_u64().unwrap() as usize;
        bytes[at..at + 2].copy_from_slice(&[0xff, 0xff]);
        std::fs::write(path, bytes).unwrap();
    });
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    let words = ["model.layers.5.mlp.up_proj.weight", "NaN", "finite"];
    refused(["quantize", text(model.path()), "-o", text(&target)], &words);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "neither target nor leftovers");
}

#[test]
fn a_quantized_model_is_not_quantized_again() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    refused(["quantize", text(&QUANTIZED), "-o", text(&target)], &["quantized already", "hint: "]);
    assert!(!target.exists());
}

#[test]
fn a_skip_that_names_no_layer_is_refused() {
    let dir = TempDir::new().unwrap();
    let target = dir.path().join("out");
    let arguments = ["quantize", text(&DENSE), "-o", text(&target), "--skip", "up_porj"];
    refused(arguments, &["up_porj"]);
    assert!(!target.exists());
}

#[test]
fn a_missing_directory_is_named() {
    for command in ["inspect", "chat"] {
        refused([command, "/no/such/model"], &["/no/such/model"]);
    }
    refused(["generate", "/no/such/model", "-p", "x"], &["/no/such/model", "hint: "]);
    refused(["quantize", "/no/such/model", "-o", "/no/such/target"], &["/no/such/model"]);
}

#[test]
fn an_unknown_architecture_is_refused_with_the_known_ones() {
    let model = altered(|dir| edit_config(dir, "LlamaForCausalLM", "MambaForCausalLM"));
    refused(["inspect", text(model.path())], &["MambaForCausalLM", "LlamaForCausalLM"]);
}

#[test]
fn a_model_without_a_tokenizer_is_refused_before_it_is_loaded() {
    let model = altered(|dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap());
    refused(["generate", text(model.path()), "-p", "x", "--device", "cpu"], &["tokenizer.json"]);
}

#[test]
fn a_model_without_a_template_does_not_chat() {
    let model = altered(|_| {});
    refused(["chat", text(model.path()), "--device", "cpu"], &["chat template", "hint: "]);
}

#[test]
fn an_empty_prompt_is_refused() {
    refused(["generate", text(&DENSE), "-p", ""], &["prompt is empty"]);
    let arguments = ["generate", text(&DENSE), "-p", "-"];
    expect_refusal(with_stdin(arguments, ""), 1, &["prompt is empty"]);
}

#[test]
fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let prompt = "word ".repeat(3000);
    refused(["generate", text(&DENSE), "-p", &prompt, "--device", "cpu"], &["2047"]);
}

#[test]
fn sampling_outside_its_range_is_refused() {
    let cases =
        [("--temperature", "-1"), ("--temperature", "NaN"), ("--top-p", "0"), ("--min-p", "2")];
    for (flag, value) in cases {
        let flag = format!("{flag}={value}");
        let output = greedy(&DENSE, &[&flag]);
        expect_refusal(output, 1, &["must be"]);
    }
}

#[test]
fn a_text_that_cannot_be_evaluated_is_refused() {
    let eval = |file: &str| flute(["eval", text(&DENSE), "--device", "cpu", "--text", file]);
    expect_refusal(eval("/no/such/text"), 1, &["/no/such/text", "caused by: "]);
    let dir = TempDir::new().unwrap();
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "Too short.").unwrap();
    expect_refusal(eval(text(&short)), 1, &["513"]);
}

#[test]
fn an_absent_device_is_refused_by_name() {
    let device = |name| flute(["generate", text(&DENSE), "-p", "x", "--device", name]);
    expect_refusal(device("abacus"), 1, &["abacus", "known are", "flute doctor"]);
    expect_refusal(device("cuda:4242"), 1, &["cuda:4242", "flute doctor"]);
}

#[test]
fn usage_errors_have_their_own_exit_code() {
    let quantize = ["quantize", text(&DENSE), "-o", "/no/such/target"];
    let cases: [(&[&str], &str); 6] = [
        (&["--bits", "5"], "choose 2, 3 or 4"),
        (&["--bits", "four"], "choose 2, 3 or 4"),
        (&["--group-size", "100"], "choose 32, 64, 128, 256"),
        (&["--table", "custom"], "gives no values"),
        (&["--table", "gguf"], "known are int, fp, nf"),
        (&["--bitz", "4"], "--bits"),
    ];
    for (more, words) in cases {
        expect_refusal(flute(quantize.into_iter().chain(more.iter().copied())), 2, &[words]);
    }
    expect_refusal(flute(["quantize", text(&DENSE)]), 2, &["--output"]);
    expect_refusal(flute(["fly"]), 2, &["fly"]);
}
