//! Gemma-2: `fixtures/tiny-gemma2` against PyTorch and against the model in double precision, and small models of
//! random weights whose window and caps are narrow.

use crate::fixture::Fixture;
use crate::{kernel_device, load, oracle, variants};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::Reader;
use flute_burn::device;
use flute_burn::generate::{GenerateOptions, generate};
use flute_burn::text::Tokenizer;
use flute_cube::{Bits, Table};
use serde_json::{Value, json};

const GEMMA: Fixture = Fixture("tiny-gemma2");

#[test]
fn dense_logits_are_those_of_a_model_in_double_precision() -> Result<()> {
    GEMMA.logits_are_exact_within(1e-4)
}

// As with the LLaMA: PyTorch's logits of the first token, one computation, differ between the prompts.
#[test]
fn dense_logits_are_those_of_the_reference_within_its_own_precision() -> Result<()> {
    GEMMA.logits_are_the_reference_s_within(5e-3)
}

#[test]
fn past_the_window_logits_are_still_exact_at_once_and_from_a_cache() -> Result<()> {
    let ids = &GEMMA.eval_ids()?[..300];
    let model = load(&GEMMA.path(), Device::flex(), DType::F32)?;
    ensure!(model.config().sliding_window == Some(256));
    let expected = oracle::logits(&GEMMA.path(), ids)?.concat();
    let check = |pieces: &[&[u32]]| -> Result<()> {
        let mut cache = model.new_cache(1, ids.len())?;
        let mut found = Vec::new();
        for piece in pieces {
            let logits = model.forward(model.tokens(piece, 1)?, &mut cache)?;
            found.extend(logits.try_into_vec_as::<f32>()?);
        }
        let errors = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
        let worst = errors.fold(0.0, f64::max);
        println!("{} pieces: worst logit off by {worst:.2e}", pieces.len());
        ensure!(found.len() == expected.len() && worst <= 1e-4, "{worst}");
        Ok(())
    };
    check(&[ids])?;
    let singles = ids[250..270].chunks(1);
    check(&[&ids[..250]].into_iter().chain(singles).chain([&ids[270..]]).collect::<Vec<_>>())
}

#[test]
fn every_greedy_continuation_is_the_reference_s() -> Result<()> {
    let (model, tokenizer) =
        (load(&GEMMA.path(), Device::flex(), DType::F32)?, Tokenizer::open(GEMMA.path())?);
    let reference = GEMMA.reference()?;
    let cases = reference["greedy"].as_array().context("continuations")?;
    ensure!(!cases.is_empty());
    for case in cases {
        let prompt: Vec<u32> = serde_json::from_value(case["prompt_ids"].clone())?;
        let expected: Vec<u32> = serde_json::from_value(case["greedy_ids"].clone())?;
        let text = case["prompt"].as_str().context("a prompt")?;
        assert_eq!(tokenizer.encode(text, true)?, prompt, "{text}");
        let options = GenerateOptions { max_new_tokens: expected.len(), ..Default::default() };
        let found = generate(&model, &prompt, &options)?.map(|token| Ok(token?.id));
        assert_eq!(found.collect::<Result<Vec<u32>>>()?, expected, "{text}");
    }
    Ok(())
}

#[test]
fn the_dense_model_predicts_as_the_reference_does() -> Result<()> {
    GEMMA.row("dense", None, 1e-3)
}

#[test]
fn nf4_in_groups_of_64_predicts_as_the_reference_does() -> Result<()> {
    GEMMA.row("nf4_g64", Some((Table::nf(Bits::Four), 64)), 1e-3)
}

#[test]
fn int3_in_groups_of_128_predicts_as_the_reference_does() -> Result<()> {
    GEMMA.row("int3_g128", Some((Table::int(Bits::Three), 128)), 1e-3)
}

#[test]
fn quantizing_leaves_the_embedding_that_serves_as_head_and_every_norm_as_they_were() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("model");
    GEMMA.quantize(Table::nf(Bits::Four), 64, &target)?;
    let (dense, stored) = (Reader::open(GEMMA.path())?, Reader::open(&target)?);
    let mut copied = 0;
    for (name, _) in dense.tensors() {
        let linear = name.ends_with("_proj.weight");
        assert_eq!(stored.contains(name), !linear, "{name}");
        if !linear {
            assert_eq!(stored.raw(name)?, dense.raw(name)?, "{name}");
            copied += 1;
        }
    }
    // Four norms a block, the last one, and the embedding.
    assert_eq!(copied, 4 * 6 + 2);
    assert!(!stored.contains("lm_head.weight") && !stored.contains("lm_head.codes"));
    let model = load(&target, Device::flex(), DType::F32)?;
    assert_eq!((model.weights().linears, model.weights().quantized), (7 * 6, 7 * 6));
    Ok(())
}

/// Narrow enough that every cap and window shows.
fn narrow() -> Value {
    json!({
        "architectures": ["Gemma2ForCausalLM"], "num_key_value_heads": 2, "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 10.0,
        "sliding_window": 4, "attn_logit_softcapping": 0.7, "final_logit_softcapping": 2.0,
        "tie_word_embeddings": true,
    })
}

#[test]
fn a_window_of_four_tokens_on_even_layers_or_on_those_that_the_file_names() -> Result<()> {
    variants::check(narrow(), 1)?;
    let mut named = narrow();
    named["layer_types"] = json!(["full_attention", "sliding_attention"]);
    variants::check(named, 2)
}

#[test]
fn caps_may_be_switched_off_and_biases_on() -> Result<()> {
    let mut config = narrow();
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        config[field] = Value::Null;
    }
    config["attention_bias"] = json!(true);
    config["tie_word_embeddings"] = json!(false);
    variants::check(config, 1)
}

#[test]
fn a_device_masks_and_caps_as_the_cpu_does() -> Result<()> {
    let Some(device) = kernel_device()? else { return Ok(()) };
    let (dir, ids) = (tempfile::tempdir()?, variants::ids());
    variants::write(dir.path(), narrow(), 1)?;
    let (ids, name) = (&ids[..21], device::name(&device));
    let expected = oracle::logits(dir.path(), ids)?.concat();
    // A rasterizer compiles for seconds: one type is enough there.
    let types = if name.ends_with(":cpu") { 1 } else { 2 };
    for (dtype, tolerance) in [(DType::F32, 1e-3), (DType::F16, 3e-2)].into_iter().take(types) {
        let model = load(dir.path(), device.clone(), dtype)?;
        let (mut cache, mut found) = (model.new_cache(1, ids.len())?, Vec::new());
        // Both far beyond the window: one with a mask, one without.
        for piece in [&ids[..20], &ids[20..]] {
            let logits = model.forward(model.tokens(piece, 1)?, &mut cache)?;
            found.extend(logits.try_into_vec_as::<f32>()?);
        }
        let errors = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
        let worst = errors.fold(0.0, f64::max);
        println!("{name}, {dtype:?}: worst logit off by {worst:.2e}");
        ensure!(found.len() == expected.len() && worst <= tolerance, "{dtype:?}: {worst}");
    }
    Ok(())
}
