//! Generation with `fixtures/tiny-llama`: greedy continuations of PyTorch, caches, ends, and what is refused.

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::Reader;
use flute_burn::error::Error;
use flute_burn::generate::{Finish, GenerateOptions, generate};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::{sample::Sampling, text::Tokenizer};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama")
}

/// In f32 on the CPU, as the reference is.
static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let options = LoadOptions { dtype: Some(DType::F32), ..LoadOptions::new(Device::flex()) };
    Model::load(&fixture(), &options).expect("the fixture loads")
});

fn reference() -> Result<Value> {
    let text = std::fs::read_to_string(fixture().join("reference.json"))?;
    Ok(serde_json::from_str(&text)?)
}

fn run(prompt: &[u32], options: &GenerateOptions) -> Result<(Vec<u32>, Option<Finish>)> {
    let mut generation = generate(&MODEL, prompt, options)?;
    let tokens = generation.by_ref().map(|token| Ok(token?.id)).collect::<Result<_>>()?;
    Ok((tokens, generation.finish()))
}

fn greedy(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..GenerateOptions::default() }
}

/// The error of a request that must be refused.
fn refused(prompt: &[u32], options: &GenerateOptions) -> Error {
    generate(&MODEL, prompt, options).expect_err("refused before anything is computed")
}

#[test]
fn every_greedy_continuation_is_the_reference_s() -> Result<()> {
    let tokenizer = Tokenizer::open(fixture())?;
    for case in reference()?["greedy"].as_array().context("continuations")? {
        let prompt: Vec<u32> = serde_json::from_value(case["prompt_ids"].clone())?;
        let expected: Vec<u32> = serde_json::from_value(case["greedy_ids"].clone())?;
        let text = case["prompt"].as_str().context("a prompt")?;
        assert_eq!(tokenizer.encode(text, true)?, prompt, "{text}");
        let (found, finish) = run(&prompt, &greedy(expected.len()))?;
        assert_eq!(found, expected, "{text}");
        assert_eq!(finish, Some(Finish::Length));
        assert_eq!(Some(tokenizer.decode(&found, true)?.as_str()), case["greedy_text"].as_str());
    }
    Ok(())
}

#[test]
fn token_by_token_gives_the_logits_of_the_whole_text_at_once() -> Result<()> {
    let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 2048).collect();
    let mut whole = MODEL.new_cache(1, ids.len())?;
    let whole = MODEL.forward(MODEL.tokens(&ids, 1)?, &mut whole)?.try_into_vec_as::<f32>()?;
    let mut cache = MODEL.new_cache(1, ids.len())?;
    let mut steps = Vec::new();
    // Pieces of one token, and larger ones in the middle of a sequence.
    for piece in [&ids[..7], &ids[7..8], &ids[8..9], &ids[9..30], &ids[30..31], &ids[31..]] {
        let logits = MODEL.forward(MODEL.tokens(piece, 1)?, &mut cache)?;
        steps.extend(logits.try_into_vec_as::<f32>()?);
    }
    assert_eq!((cache.len(), steps.len()), (ids.len(), whole.len()));
    let worst = steps.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    ensure!(worst <= 1e-4, "worst logit off by {worst}");
    Ok(())
}

#[test]
fn sequences_of_a_batch_do_not_see_each_other() -> Result<()> {
    let (a, b): (Vec<u32>, Vec<u32>) = ((100..116).collect(), (900..916).collect());
    let single = |ids: &[u32]| -> Result<Vec<f32>> {
        let mut cache = MODEL.new_cache(1, 16)?;
        Ok(MODEL.forward(MODEL.tokens(ids, 1)?, &mut cache)?.try_into_vec_as::<f32>()?)
    };
    let mut cache = MODEL.new_cache(2, 16)?;
    let both = MODEL.tokens(&[a.clone(), b.clone()].concat(), 2)?;
    let both = MODEL.forward(both, &mut cache)?.try_into_vec_as::<f32>()?;
    let alone = [single(&a)?, single(&b)?].concat();
    let worst = both.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    ensure!(both.len() == alone.len() && worst <= 1e-4, "worst logit off by {worst}");
    Ok(())
}

#[test]
fn a_prompt_is_continued_alike_whatever_is_computed_at_once() -> Result<()> {
    let text = std::fs::read_to_string(fixture().join("eval.txt"))?;
    let ids = Tokenizer::open(fixture())?.encode(&text, true)?[..700].to_vec();
    let mut cache = MODEL.new_cache(1, ids.len())?;
    let logits = MODEL.forward_last(MODEL.tokens(&ids, 1)?, &mut cache)?;
    let logits = logits.try_into_vec_as::<f32>()?;
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    for prefill in [None, Some(1), Some(350), Some(512), Some(699), Some(700)] {
        // Token by token, seven hundred steps are too many.
        let from = if prefill == Some(1) { 690 } else { 0 };
        let (tokens, _) = run(&ids[from..], &GenerateOptions { prefill, ..greedy(1) })?;
        ensure!(from > 0 || tokens == [best.context("a best token")? as u32], "{prefill:?}");
        ensure!(tokens == run(&ids[from..], &greedy(1))?.0, "{prefill:?}");
    }
    Ok(())
}

#[test]
fn a_stop_token_ends_the_sequence_and_is_not_part_of_it() -> Result<()> {
    let prompt = [0, 380, 1272, 1074];
    let (free, _) = run(&prompt, &greedy(8))?;
    let stop = free[5];
    let until = free.iter().position(|id| *id == stop).context("the stop token")?;
    let options = GenerateOptions { stop: Some(vec![9, stop]), ..greedy(8) };
    assert_eq!(run(&prompt, &options)?, (free[..until].to_vec(), Some(Finish::Stop(stop))));
    assert_eq!(MODEL.stop_ids(), [1]);
    Ok(())
}

#[test]
fn the_context_ends_a_sequence_before_it_overflows() -> Result<()> {
    let prompt = vec![5; MODEL.context() - 3];
    let options = GenerateOptions { stop: Some(vec![]), ..greedy(10) };
    let (tokens, finish) = run(&prompt, &options)?;
    assert_eq!((tokens.len(), finish), (3, Some(Finish::Context)));
    Ok(())
}

#[test]
fn the_same_seed_writes_the_same_text_and_another_seed_another() -> Result<()> {
    let draw = |seed| {
        let sampling =
            Sampling { temperature: 1.0, top_p: Some(0.95), seed, ..Sampling::default() };
        run(&[0, 7, 869, 271], &GenerateOptions { sampling, ..greedy(24) })
    };
    assert_eq!(draw(11)?, draw(11)?);
    assert_ne!(draw(11)?, draw(12)?);
    Ok(())
}

#[test]
fn an_empty_prompt_is_refused() {
    let error = refused(&[], &greedy(4));
    assert!(matches!(error, Error::EmptyPrompt), "{error}");
}

#[test]
fn a_prompt_that_fills_the_context_is_refused_with_both_numbers() {
    let prompt = vec![5; MODEL.context()];
    let error = refused(&prompt, &greedy(4));
    assert!(matches!(error, Error::PromptTooLong { found: 2048, limit: 2047 }), "{error}");
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_by_number() {
    let error = refused(&[0, 2048], &greedy(4));
    assert!(matches!(error, Error::TokenOutOfRange { token: 2048, vocab: 2048 }), "{error}");
}

#[test]
fn no_tokens_to_generate_and_impossible_sampling_are_refused_by_name() {
    let error = refused(&[0], &greedy(0)).to_string();
    assert!(error.contains("new tokens"), "{error}");
    let error = refused(&[0], &GenerateOptions { prefill: Some(0), ..greedy(1) }).to_string();
    assert!(error.contains("at once is 0"), "{error}");
    let sampling = Sampling { top_p: Some(2.0), temperature: 1.0, ..Sampling::default() };
    let error = refused(&[0], &GenerateOptions { sampling, ..greedy(1) }).to_string();
    assert!(error.contains("top-p is 2"), "{error}");
}

#[test]
fn a_step_that_the_cache_was_not_made_for_is_refused_and_leaves_it_alone() -> Result<()> {
    let mut cache = MODEL.new_cache(1, 4)?;
    MODEL.forward(MODEL.tokens(&[1, 2, 3], 1)?, &mut cache)?;
    let error = MODEL.forward(MODEL.tokens(&[4, 5], 1)?, &mut cache).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { found: 5, limit: 4 }), "{error}");
    let error = MODEL.forward(MODEL.tokens(&[4, 5], 2)?, &mut cache).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { .. }), "{error}");
    assert_eq!(cache.len(), 3);
    assert!(MODEL.new_cache(1, MODEL.context() + 1).is_err());
    assert!(MODEL.new_cache(0, 4).is_err());
    Ok(())
}

/// The fixture with another head, on `device`; `change` sees each row and its id.
fn with_head(device: Device, change: impl Fn(usize, &mut [f32])) -> Result<Model> {
    let (source, dir) = (Reader::open(fixture())?, tempfile::tempdir()?);
    let tensors: Vec<_> = source
        .tensor_names()
        .map(|name| {
            let mut tensor = source.tensor(name)?;
            if name == "lm_head.weight" {
                let rows = tensor.data.chunks_mut(tensor.shape[1]);
                rows.enumerate().for_each(|(id, row)| change(id, row));
            }
            Ok((name, tensor))
        })
        .collect::<Result<_>>()?;
    let views = tensors.iter().map(|(name, tensor)| {
        let bytes = bytemuck::cast_slice(&tensor.data);
        Ok((*name, TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?))
    });
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?;
    std::fs::write(dir.path().join("model.safetensors"), bytes)?;
    std::fs::copy(fixture().join("config.json"), dir.path().join("config.json"))?;
    let options = LoadOptions { dtype: Some(DType::F32), ..LoadOptions::new(device) };
    Ok(Model::load(dir.path(), &options)?)
}

/// The CPU, and a device with kernels where there is one.
fn devices() -> impl Iterator<Item = Device> {
    let kernels = std::env::var("FLUTE_DEVICE").unwrap_or("wgpu:cpu".into());
    [Some(Device::flex()), flute_burn::device::parse(&kernels).ok()].into_iter().flatten()
}

#[test]
fn among_equal_logits_the_lowest_id_is_taken_on_every_device() -> Result<()> {
    for device in devices() {
        let mut seen = [0, 0];
        for sign in [1.0, -1.0] {
            // The first 17 logits are 0, all others are equal: which is larger, the sign decides.
            let model = with_head(device.clone(), |id, row| {
                let row = row.iter_mut().enumerate();
                row.for_each(|(i, w)| *w = if id < 17 { 0.0 } else { sign * (i % 7) as f32 });
            })?;
            for first in (0..2048).step_by(197) {
                let mut cache = model.new_cache(1, 2)?;
                let chosen = model.likeliest(model.tokens(&[first, 300], 1)?, &mut cache)?;
                let ids = chosen.ids()?;
                let at = [0, 17].iter().position(|id| ids == [*id]);
                seen[at.with_context(|| format!("{ids:?}"))?] += 1;
                let tokens = chosen.tokens.try_into_vec_as::<i32>()?;
                assert_eq!(tokens, [ids[0] as i32], "what stays on the device is what was read");
            }
        }
        assert_eq!(seen, [11, 11], "each sign has its own");
    }
    Ok(())
}

#[test]
fn logits_that_are_not_numbers_end_a_greedy_text_with_an_error() -> Result<()> {
    for device in devices() {
        let model = with_head(device, |id, row| {
            if id == 1234 {
                row[3] = f32::NAN;
            }
        })?;
        let mut generation = generate(&model, &[5, 6], &greedy(3))?;
        let error = generation.next().context("an item")?.unwrap_err();
        assert!(matches!(error, Error::NotFinite { col: 1234, .. }), "{error}");
        assert!(generation.next().is_none());
    }
    Ok(())
}
