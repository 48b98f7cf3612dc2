//! Whole models of other programs against what PyTorch computes from the weights that those programs dequantize.
//!
//! The reference's weights are table · scale rounded to the model's 16-bit type; FLUTE layers in f32 keep the product as
//! it is, so that their logits lie as far from the file as that rounding takes them: 4e-3 in float16, 3e-2 in bfloat16.
//! Each side of it is checked alone, to the precision of f32: our layers against double precision with the weights
//! unrounded, and the file against double precision with the weights rounded.

use crate::edit::{Copy, tensors};
use crate::{BITSANDBYTES, LEGACY, golden, oracle};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{Reader, StoredWeight};
use flute_burn::eval::{self, EvalOptions};
use flute_burn::generate::{GenerateOptions, generate};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::text::Tokenizer;
use flute_cube::Dtype as Float;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::Path;

fn load(dir: &Path) -> Result<Model> {
    let options = LoadOptions { dtype: Some(DType::F32), ..LoadOptions::new(Device::flex()) };
    Ok(Model::load(dir, &options)?)
}

fn reference(name: &str) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(golden(name).join("reference.json"))?)?)
}

/// The golden model `name` with its weights decoded, in f32 or rounded.
fn dense(name: &str, dtype: Float) -> Result<Copy> {
    let reader = Reader::open(golden(name))?;
    let mut stored = tensors(&golden(name))?;
    for module in reader.quantized_modules() {
        let StoredWeight::Quantized(weight) = reader.linear(module)?.weight else {
            anyhow::bail!("{module} is dense");
        };
        let part = format!("{module}.weight.");
        stored.retain(|name, _| !name.starts_with(&part));
        let bytes = dtype.encode(&weight.dequantize());
        let stored_as = match dtype {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
            Float::BF16 => Dtype::BF16,
        };
        stored.insert(format!("{module}.weight"), (stored_as, vec![weight.n(), weight.k()], bytes));
    }
    let copy = Copy::with_tensors(name, &stored)?;
    if copy.file("flute_config.json").exists() {
        std::fs::remove_file(copy.file("flute_config.json"))?;
    }
    copy.json("config.json", |config| {
        config.as_object_mut().map(|fields| fields.remove("quantization_config"));
    })
}

fn worst(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// `apart` is how far rounding the weights to `stored` moves a logit at most.
fn logits_agree(name: &str, stored: Float, apart: f64) -> Result<()> {
    let model = load(&golden(name))?;
    let (exact, rounded) = (dense(name, Float::F32)?, dense(name, stored)?);
    let bytes = std::fs::read(golden(name).join("reference_logits.safetensors"))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let reference = reference(name)?;
    let prompts = reference["greedy"].as_array().context("prompts")?;
    // The logits of the first prompt alone are stored.
    assert_eq!(file.names(), ["logits_0"]);
    for (index, prompt) in prompts.iter().enumerate().take(file.len()) {
        let ids: Vec<u32> = serde_json::from_value(prompt["prompt_ids"].clone())?;
        let expected = file.tensor(&format!("logits_{index}"))?;
        assert_eq!(expected.shape(), [ids.len(), model.vocab()]);
        let expected: Vec<f64> =
            Float::F32.decode(expected.data()).into_iter().map(f64::from).collect();
        let mut cache = model.new_cache(1, ids.len())?;
        let found = model.forward(model.tokens(&ids, 1)?, &mut cache)?.try_into_vec_as::<f32>()?;
        assert_eq!(found.len(), expected.len());
        let found: Vec<f64> = found.into_iter().map(f64::from).collect();
        let exact = oracle::logits(exact.path(), &ids)?.concat();
        let rounded = oracle::logits(rounded.path(), &ids)?.concat();
        let (ours, file) = (worst(found.clone(), exact), worst(rounded, expected.clone()));
        let both = worst(found, expected);
        println!(
            "{name}, {} tokens: layers {ours:.1e}, file {file:.1e}, both {both:.1e}",
            ids.len()
        );
        ensure!(ours <= 1e-4, "our layers are off by {ours}");
        ensure!(file <= 1e-4, "the file is off by {file}");
        ensure!(both <= apart, "the rounding of weights moves logits by {both}");
    }
    Ok(())
}

fn predictions_agree(name: &str) -> Result<()> {
    let (model, reference) = (load(&golden(name))?, reference(name)?);
    for prompt in reference["greedy"].as_array().context("prompts")? {
        let ids: Vec<u32> = serde_json::from_value(prompt["prompt_ids"].clone())?;
        let expected: Vec<u32> = serde_json::from_value(prompt["greedy_ids"].clone())?;
        let text = prompt["prompt"].as_str().context("a prompt")?;
        assert_eq!(Tokenizer::open(golden(name))?.encode(text, true)?, ids, "{text}");
        let options =
            GenerateOptions { max_new_tokens: expected.len(), ..GenerateOptions::default() };
        let found: Vec<u32> =
            generate(&model, &ids, &options)?.map(|token| Ok(token?.id)).collect::<Result<_>>()?;
        assert_eq!(found, expected, "{text}");
    }
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama/eval.txt"),
    )?;
    let ids = Tokenizer::open(golden(name))?.encode(&text, false)?;
    let found = eval::perplexity(&model, &ids, &EvalOptions::default(), &mut |_| {})?;
    assert_eq!(Some(found.predicted as u64), reference["predicted"].as_u64());
    let expected = reference["ppl"].as_f64().context("a perplexity")?;
    let relative = found.value / expected - 1.0;
    println!("{name}: perplexity {:.6}, reference {expected:.6}, {relative:+.1e}", found.value);
    ensure!(relative.abs() <= 1e-3, "{name}: {} and not {expected}", found.value);
    Ok(())
}

#[test]
fn a_model_of_flute_gives_the_logits_of_its_reference() -> Result<()> {
    logits_agree(LEGACY, Float::F16, 5e-3)
}

#[test]
fn a_model_of_flute_predicts_as_its_reference_does() -> Result<()> {
    predictions_agree(LEGACY)
}

#[test]
fn a_model_of_bitsandbytes_gives_the_logits_of_its_reference() -> Result<()> {
    logits_agree(BITSANDBYTES, Float::BF16, 4e-2)
}

#[test]
fn a_model_of_bitsandbytes_predicts_as_its_reference_does() -> Result<()> {
    predictions_agree(BITSANDBYTES)
}
