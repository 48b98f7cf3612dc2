//! Decoding by replaying a recorded step: the same tokens as steps that are launched one by one.

use crate::{LLAMA, kernel_device, load, variants};
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device};
use cubecl::{MemoryScope, MemoryUsage};
use flute_burn::checkpoint::shapes;
use flute_burn::device;
use flute_burn::error::Error;
use flute_burn::generate::{Finish, GenerateOptions, generate};
use flute_burn::model::{Decoding, Model, SyntheticOptions};
use flute_burn::sample::Sampling;
use flute_cube::Format;
use serde_json::json;
use std::time::Instant;

/// Steps that are launched before one is replayed.
const BEFORE: usize = 4;

fn devices() -> Result<Vec<Device>> {
    Ok([Some(Device::flex()), kernel_device()?].into_iter().flatten().collect())
}

/// A model of noise in `fixtures/tiny-llama`'s shape, in codes, in the type that its device prefers.
fn noise(device: Device) -> Result<Model> {
    let format = Some(Format::new(4, 128)?);
    let options = SyntheticOptions { device, dtype: None, format, head: None };
    Ok(Model::synthetic(shapes::named("tiny")?, &options)?)
}

/// A decoding behind a prompt of 7 tokens for each of `batch` sequences, with room for `steps` more.
fn decoding(model: &Model, batch: usize, steps: usize, graph: bool) -> Result<Decoding<'_>> {
    let vocab = model.vocab() as u32;
    let prompt: Vec<u32> = (0..7 * batch as u32).map(|i| (i * 17 + 3) % vocab).collect();
    let mut cache = model.new_cache(batch, 7 + steps)?;
    let first = model.likeliest(model.tokens(&prompt, batch)?, &mut cache)?;
    Ok(Decoding::new(model, first.tokens, cache, graph)?)
}

/// The tokens of `steps` steps, launched one by one and with a graph where the device has graphs, which must not depend
/// on whether steps run ahead.
fn both(model: &Model, batch: usize, steps: usize) -> Result<[Vec<Vec<u32>>; 2]> {
    let run = |graph: bool, ahead: bool| -> Result<Vec<Vec<u32>>> {
        let decoding = decoding(model, batch, steps, graph)?;
        let mut decoding = if ahead { decoding.run_ahead() } else { decoding };
        let tokens: Vec<_> =
            (0..steps).map(|_| Ok(decoding.likeliest()?)).collect::<Result<_>>()?;
        let kernels = device::client(model.device()).is_some();
        ensure!(decoding.is_graph() == (graph && kernels), "{graph}: {}", decoding.is_graph());
        ensure!(decoding.computed() == 7 + steps);
        let full = decoding.likeliest();
        ensure!(matches!(full, Err(Error::PromptTooLong { .. })), "{full:?}");
        Ok(tokens)
    };
    let [plain, graph, ahead] = [run(false, true)?, run(true, false)?, run(true, true)?];
    ensure!(graph == ahead, "{graph:?} and {ahead:?}");
    Ok([plain, graph])
}

#[test]
fn every_family_decodes_the_same_tokens_with_and_without_a_graph_past_its_window() -> Result<()> {
    for (family, config) in [
        ("Llama", json!({"num_key_value_heads": 2, "head_dim": 32})),
        ("Mistral", json!({"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 4})),
        (
            "Qwen2",
            json!({
                "num_key_value_heads": 2, "sliding_window": 4, "use_sliding_window": true,
                "max_window_layers": 1, "tie_word_embeddings": true,
            }),
        ),
        ("Qwen3", json!({"num_key_value_heads": 2, "head_dim": 32, "attention_bias": false})),
        (
            "Gemma2",
            json!({
                "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 6,
                "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
                "tie_word_embeddings": true,
            }),
        ),
    ] {
        let dir = tempfile::tempdir()?;
        let mut config = config;
        config["architectures"] = json!([format!("{family}ForCausalLM")]);
        variants::write(dir.path(), config, 1)?;
        for device in devices()? {
            let model = load(dir.path(), device.clone(), DType::F32)?;
            let [plain, graph] = both(&model, 3, 24)?;
            ensure!(plain == graph, "{family} on {}", device::name(&device));
            let different = plain.concat().into_iter().collect::<std::collections::HashSet<_>>();
            ensure!(different.len() > 2, "{family} says {different:?} alone");
        }
    }
    Ok(())
}

#[test]
fn a_replayed_step_gives_the_bits_of_a_launched_one_for_tokens_put_from_outside() -> Result<()> {
    for device in devices()? {
        let model = noise(device)?;
        let run = |graph: bool| -> Result<Vec<Vec<f32>>> {
            let mut decoding = decoding(&model, 2, 16, graph)?;
            let logits = |step: u32| {
                decoding.put(&[step * 31 % 2048, step * 77 % 2048])?;
                Ok(decoding.logits()?)
            };
            (0..12).map(logits).collect()
        };
        let (plain, graph) = (run(false)?, run(true)?);
        ensure!(plain.len() == 12 && plain == graph);
        ensure!(plain.iter().all(|logits| logits.len() == 2 * model.vocab()));
        ensure!(plain.windows(2).all(|pair| pair[0] != pair[1]), "two steps are one");
        let mut decoding = decoding(&model, 2, 16, true)?;
        ensure!(matches!(decoding.put(&[1]), Err(Error::InvalidOption { .. })));
        ensure!(matches!(decoding.put(&[1, 4096]), Err(Error::TokenOutOfRange { .. })));
        ensure!(matches!(decoding.rewind(8), Err(Error::InvalidOption { .. })));
    }
    Ok(())
}

#[test]
fn a_text_is_the_same_with_and_without_a_graph_drawn_or_not() -> Result<()> {
    let Some(device) = kernel_device()? else { return Ok(()) };
    let model = load(&LLAMA.path(), device, DType::F32)?;
    let prompt = [0, 380, 1272, 1074];
    for temperature in [0.0, 0.9] {
        let text = |graph: bool| -> Result<Vec<u32>> {
            let sampling =
                Sampling { temperature, top_p: Some(0.95), seed: 5, ..Default::default() };
            let stop = Some(vec![]);
            let options =
                GenerateOptions { max_new_tokens: 24, sampling, stop, graph, ..Default::default() };
            let mut generation = generate(&model, &prompt, &options)?;
            let tokens = generation.by_ref().take(16).map(|t| Ok(t?.id)).collect::<Result<_>>()?;
            ensure!(generation.is_graph() == graph, "{graph}, temperature {temperature}");
            let mut tokens: Vec<u32> = tokens;
            for token in generation.by_ref() {
                tokens.push(token?.id);
            }
            ensure!(generation.finish() == Some(Finish::Length));
            Ok(tokens)
        };
        let (plain, graph) = (text(false)?, text(true)?);
        ensure!(plain.len() == 24 && plain == graph, "{plain:?} {graph:?}");
    }
    Ok(())
}

#[test]
fn a_decoding_that_goes_to_another_thread_and_back_goes_on_with_the_same_tokens() -> Result<()> {
    let Some(device) = kernel_device()? else { return Ok(()) };
    let model = noise(device)?;
    let [plain, _] = both(&model, 2, 30)?;
    let mut moved = decoding(&model, 2, 30, true)?.run_ahead();
    let mut tokens: Vec<Vec<u32>> =
        (0..10).map(|_| Ok(moved.likeliest()?)).collect::<Result<_>>()?;
    ensure!(moved.is_graph());
    let elsewhere = std::thread::scope(|scope| {
        let elsewhere = scope.spawn(|| -> Result<Vec<Vec<u32>>> {
            (0..10).map(|_| Ok(moved.likeliest()?)).collect()
        });
        elsewhere.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the thread panicked")))
    })?;
    ensure!(!moved.is_graph(), "the model was loaded on this thread");
    tokens.extend(elsewhere);
    for _ in 0..10 {
        tokens.push(moved.likeliest()?);
    }
    ensure!(moved.is_graph(), "no step was recorded back home");
    ensure!(tokens == plain);
    Ok(())
}

#[test]
fn a_step_ahead_is_taken_back_for_whoever_does_something_else_between_two_steps() -> Result<()> {
    let Some(device) = kernel_device()? else { return Ok(()) };
    let model = noise(device)?;
    let run = |ahead: bool| -> Result<(Vec<u32>, Vec<f32>)> {
        let decoding = decoding(&model, 2, 40, true)?;
        let mut decoding = if ahead { decoding.run_ahead() } else { decoding };
        let (mut tokens, mut logits) = (vec![], vec![]);
        let mut steps = |decoding: &mut Decoding<'_>, count: usize| -> Result<()> {
            for _ in 0..count {
                tokens.extend(decoding.likeliest()?);
            }
            Ok(())
        };
        steps(&mut decoding, 8)?;
        ensure!(decoding.is_graph() && decoding.computed() == 7 + 8);
        decoding.put(&[11, 1234])?;
        steps(&mut decoding, 3)?;
        logits.extend(decoding.logits()?);
        steps(&mut decoding, 3)?;
        decoding.rewind(12)?;
        steps(&mut decoding, 3)?;
        logits.extend(decoding.logits()?);
        decoding.release(1)?;
        steps(&mut decoding, 2)?;
        let admitted = decoding.admit(&[5, 4, 3, 2], 40)?;
        ensure!(admitted.row == 1);
        steps(&mut decoding, 4)?;
        ensure!(decoding.is_graph() && decoding.computed() == 12 + 3 + 1 + 2 + 4);
        Ok((tokens, logits))
    };
    let (one, other) = (run(false)?, run(true)?);
    // While its row had no sequence, what is said of it means nothing.
    let free = 2 * (8 + 3 + 3 + 3)..2 * (8 + 3 + 3 + 3 + 2);
    let heard = |tokens: Vec<u32>| -> Vec<u32> {
        let counts = |at: &usize| !(free.contains(at) && at % 2 == 1);
        (0..tokens.len()).filter(counts).map(|at| tokens[at]).collect()
    };
    ensure!(one.1 == other.1);
    ensure!(heard(one.0) == heard(other.0));
    Ok(())
}

#[test]
fn where_the_caller_records_already_steps_are_launched_and_the_tokens_are_the_same() -> Result<()> {
    let Some(device) = kernel_device()? else { return Ok(()) };
    let model = noise(device)?;
    let [plain, _] = both(&model, 1, 12)?;
    let mut decoding = decoding(&model, 1, 12, true)?;
    let client = device::client(model.device()).expect("kernels have a client");
    client.graph_prepare()?;
    let tokens: Vec<Vec<u32>> =
        (0..12).map(|_| Ok(decoding.likeliest()?)).collect::<Result<_>>()?;
    let ended = client.stop_capture();
    ensure!(ended.is_err() && !decoding.is_graph() && tokens == plain, "{tokens:?}");
    Ok(())
}

/// What the calling thread holds on the device.
fn held(model: &Model) -> Option<MemoryUsage> {
    let client = device::client(model.device())?;
    Some(client.memory_report(MemoryScope::CurrentStream).usage())
}

#[test]
fn replayed_steps_neither_drift_nor_leak() -> Result<()> {
    let Some(device) = kernel_device()? else { return Ok(()) };
    let model = noise(device)?;
    let steps = 50;
    let mut decoding = decoding(&model, 1, steps + BEFORE, true)?.run_ahead();
    for _ in 0..BEFORE {
        decoding.likeliest()?;
    }
    ensure!(decoding.is_graph());
    let start = decoding.likeliest()?;
    let round = |decoding: &mut Decoding<'_>| -> Result<Vec<Vec<u32>>> {
        decoding.rewind(7 + BEFORE)?;
        decoding.put(&start)?;
        (0..steps).map(|_| Ok(decoding.likeliest()?)).collect()
    };
    let expected = round(&mut decoding)?;
    // A rasterizer takes ten minutes for as many.
    let software = device::name(model.device()).ends_with(":cpu");
    let all = if software { 500 } else { 10_000 };
    let (before, clock) = (held(&model), Instant::now());
    for at in 0..all / steps {
        let found = round(&mut decoding)?;
        ensure!(found == expected, "round {at}: {found:?} and not {expected:?}");
    }
    let after = held(&model);
    println!("{all} steps, {:.1} µs each", clock.elapsed().as_secs_f64() * 1e6 / all as f64);
    let [before, after] = [before, after].map(|usage| {
        usage.map(|usage| (usage.number_allocs, usage.bytes_in_use, usage.bytes_reserved))
    });
    println!("allocations, bytes in use, bytes reserved: {before:?} before, {after:?} after");
    ensure!(before.is_some() && before == after, "{before:?} became {after:?}");
    ensure!(decoding.is_graph());
    Ok(())
}
