//! Whole models: those of transformers against their reference, and ours against dense and Normal Float ones.

use crate::{fixture, higgs, normal, oracle};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{
    self, ConvertOptions, Reader, ScaleDtype, StoredLinear, StoredWeight,
};
use flute_burn::eval::{self, EvalOptions};
use flute_burn::generate::{GenerateOptions, generate};
use flute_burn::hadamard;
use flute_burn::model::{LoadOptions, Model};
use flute_burn::quantize::{Method, quantize};
use flute_burn::text::Tokenizer;
use flute_cube::{Bits, Group, Table};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

const GOLDEN: &str = "golden/tiny-llama-higgs-p2-4bit";

pub(crate) fn load(dir: &Path, dequantize: bool) -> Result<Model> {
    let dtype = Some(DType::F32);
    Ok(Model::load(dir, &LoadOptions { dtype, dequantize, ..LoadOptions::new(Device::flex()) })?)
}

fn reference() -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(fixture(GOLDEN).join("reference.json"))?)?)
}

pub(crate) fn logits(model: &Model, ids: &[u32]) -> Result<Vec<f32>> {
    let mut cache = model.new_cache(1, ids.len())?;
    Ok(model.forward(model.tokens(ids, 1)?, &mut cache)?.try_into_vec_as::<f32>()?)
}

pub(crate) fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub(crate) fn eval_ids() -> Result<Vec<u32>> {
    let text = std::fs::read_to_string(fixture("tiny-llama/eval.txt"))?;
    Ok(Tokenizer::open(fixture("tiny-llama"))?.encode(&text, false)?)
}

fn convert(source: &str, method: Method, target: &Path) -> Result<()> {
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    let mut options = ConvertOptions::new(fixture(source), target, method, &mut quiet);
    options.scale_dtype = ScaleDtype::Float16;
    checkpoint::convert(options)?;
    Ok(())
}

/// The golden model with its weights decoded and rotated back; with `round` through the model's type, f16, before.
fn dense(round: bool) -> Result<TempDir> {
    let copy = tempfile::tempdir()?;
    let reader = Reader::open(fixture(GOLDEN))?;
    let mut tensors = vec![];
    for (name, _) in reader.tensors().filter(|(name, _)| !name.contains("_proj.")) {
        let tensor = reader.tensor(name)?;
        tensors.push((name.to_owned(), tensor.shape, tensor.data));
    }
    for module in reader.quantized_modules() {
        let StoredLinear { weight, hadamard_size, .. } = reader.linear(module)?;
        let StoredWeight::Quantized(weight) = weight else { anyhow::bail!("dense") };
        let mut values = weight.dequantize();
        if round {
            values.iter_mut().for_each(|w| *w = half::f16::from_f32(*w).to_f32());
        }
        hadamard::rotate(&mut values, hadamard_size.context("a rotation")?);
        tensors.push((format!("{module}.weight"), vec![weight.n(), weight.k()], values));
    }
    let views = tensors.iter().map(|(name, shape, values)| {
        let bytes = bytemuck::cast_slice(values);
        Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
    });
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?;
    std::fs::write(copy.path().join("model.safetensors"), bytes)?;
    let mut config = reader.config_source().clone();
    config.as_object_mut().map(|fields| fields.remove("quantization_config"));
    std::fs::write(copy.path().join("config.json"), config.to_string())?;
    Ok(copy)
}

// Two things keep these layers from the reference's logits: its weights are rounded to f16 after the product, and its
// own products have reduced precision (the first token is the same in all prompts, and its logits differ by 2e-3
// between them). So each is checked alone, with a model in double precision between the two.
#[test]
fn a_model_of_transformers_gives_the_logits_and_tokens_of_its_reference() -> Result<()> {
    let model = load(&fixture(GOLDEN), false)?;
    let (exact, rounded) = (dense(false)?, dense(true)?);
    let bytes = std::fs::read(fixture(GOLDEN).join("reference_logits.safetensors"))?;
    let (file, reference) = (SafeTensors::deserialize(&bytes)?, reference()?);
    // The logits of the first prompt alone are there.
    assert_eq!(file.len(), 1);
    for (index, prompt) in reference["greedy"].as_array().context("prompts")?.iter().enumerate() {
        let ids: Vec<u32> = serde_json::from_value(prompt["prompt_ids"].clone())?;
        if index < file.len() {
            let expected = file.tensor(&format!("logits_{index}"))?;
            assert_eq!(expected.shape(), [ids.len(), model.vocab()]);
            let expected: Vec<f32> =
                expected.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let found = logits(&model, &ids)?;
            let oracle = |dir: &TempDir| -> Result<Vec<f32>> {
                let logits = oracle::logits(dir.path(), &ids)?.concat();
                Ok(logits.into_iter().map(|logit| logit as f32).collect())
            };
            let ours = worst(&found, &oracle(&exact)?);
            let file = worst(&oracle(&rounded)?, &expected);
            println!("{} tokens: layers {ours:.1e}, file {file:.1e}", ids.len());
            ensure!(ours <= 1e-4, "our layers are off by {ours}");
            ensure!(file <= 5e-3, "the file is off by {file}");
        }
        let expected: Vec<u32> = serde_json::from_value(prompt["greedy_ids"].clone())?;
        let options =
            GenerateOptions { max_new_tokens: expected.len(), ..GenerateOptions::default() };
        let found: Vec<u32> =
            generate(&model, &ids, &options)?.map(|token| Ok(token?.id)).collect::<Result<_>>()?;
        assert_eq!(found, expected);
    }
    Ok(())
}

#[test]
fn a_model_of_transformers_predicts_as_its_reference_does() -> Result<()> {
    let (model, reference, start) =
        (load(&fixture(GOLDEN), false)?, reference()?, std::time::Instant::now());
    let found = eval::perplexity(&model, &eval_ids()?, &EvalOptions::default(), &mut |_| {})?;
    assert_eq!(Some(found.predicted as u64), reference["predicted"].as_u64());
    let expected = reference["ppl"].as_f64().context("a perplexity")?;
    let relative = found.value / expected - 1.0;
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.6}, reference {expected:.6}, {relative:+.1e}; {seconds:.1} s", found.value);
    ensure!(relative.abs() <= 1e-3, "{} and not {expected}", found.value);
    Ok(())
}

#[test]
fn what_is_converted_is_stored_and_read_back_rotated() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let module = "model.layers.0.mlp.down_proj";
    // 768 columns are one and a half blocks of 512.
    for (bits, p) in [(Bits::Four, 2), (Bits::Three, 1), (Bits::Three, 2)] {
        let (dir, method) = (scratch.path().join(format!("{bits}-{p}")), higgs(bits, p, 256, 512)?);
        convert("tiny-llama", method.clone(), &dir)?;
        let (source, reader) = (Reader::open(fixture("tiny-llama"))?, Reader::open(&dir)?);
        let dense = source.tensor(&format!("{module}.weight"))?.data;
        let stored = reader.linear(module)?;
        assert_eq!(stored.hadamard_size, Some(512));
        let StoredWeight::Quantized(stored) = stored.weight else { anyhow::bail!("dense") };
        let expected = quantize(module, &dense, 256, 768, &method)?;
        assert_eq!((stored.k(), stored.codes()), (1024, expected.codes()));
        assert_eq!(stored.table().values(), expected.table().values());
        let rounded = expected.scales().iter().map(|scale| half::f16::from_f32(*scale).to_f32());
        assert_eq!(stored.scales(), rounded.collect::<Vec<_>>());
        let config = &reader.config_source()["quantization_config"];
        assert_eq!((&config["table"], &config["hadamard_size"]), (&"higgs".into(), &512.into()));
        let ids = &eval_ids()?[..24];
        let both = [load(&dir, false)?, load(&dir, true)?].map(|model| logits(&model, ids));
        let [rotated, restored] = both;
        let off = worst(&rotated?, &restored?);
        ensure!(off <= 1e-4, "{bits} bits, p = {p}: {off}");
    }
    Ok(())
}

#[test]
fn layers_may_differ_in_rotation_and_in_dimension() -> Result<()> {
    let (scratch, source) = (tempfile::tempdir()?, fixture("tiny-llama"));
    let dir = scratch.path().join("model");
    let nf = Method::Absmax { table: Table::nf(Bits::Four), group: Group::new(64)? };
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    let method = higgs(Bits::Four, 2, 256, 256)?;
    let mut options = ConvertOptions::new(source, &dir, method, &mut quiet);
    options.overrides =
        vec![("down_proj".into(), nf), ("q_proj".into(), higgs(Bits::Three, 1, 64, 128)?)];
    checkpoint::convert(options)?;
    let reader = Reader::open(&dir)?;
    for (module, bits, block, dim) in [
        ("mlp.down_proj", Bits::Four, None, 1),
        ("self_attn.q_proj", Bits::Three, Some(128), 1),
        ("self_attn.k_proj", Bits::Four, Some(256), 2),
    ] {
        let stored = reader.linear(&format!("model.layers.5.{module}"))?;
        let StoredWeight::Quantized(weight) = stored.weight else { anyhow::bail!("dense") };
        let found = (weight.format().bits, stored.hadamard_size, weight.table().dim());
        assert_eq!(found, (bits, block, dim), "{module}");
    }
    let ids = &eval_ids()?[..24];
    let off = worst(&logits(&load(&dir, false)?, ids)?, &logits(&load(&dir, true)?, ids)?);
    ensure!(off <= 1e-4, "{off}");
    Ok(())
}

// The same groups too, so that both take as many bits for scales.
#[test]
fn in_as_many_bits_a_model_of_pairs_predicts_better_than_normal_float() -> Result<()> {
    let text = std::fs::read_to_string(fixture("tiny-llama/eval.txt"))?;
    for source in ["tiny-llama", "tiny-gemma2"] {
        let ids = Tokenizer::open(fixture(source))?.encode(&text, false)?;
        let scratch = tempfile::tempdir()?;
        let perplexity = |name: String, windows: usize, method: Method| -> Result<f64> {
            let dir = scratch.path().join(&name);
            convert(source, method, &dir)?;
            // Decoded once: the same weights, in a tenth of the time.
            let options = EvalOptions { limit: Some(windows), ..EvalOptions::default() };
            let found = eval::perplexity(&load(&dir, true)?, &ids, &options, &mut |_| {})?;
            println!("{source}, {name}: {:.4}", found.value);
            Ok(found.value)
        };
        for bits in Bits::ALL.into_iter().rev() {
            // In 4 bits both are within 3 % of the dense model: a few windows do not tell them apart.
            let windows = if bits == Bits::Four { 16 } else { 4 };
            let pairs = perplexity(format!("higgs-{bits}"), windows, higgs(bits, 2, 256, 256)?)?;
            let table = Table::nf(bits);
            let nf = Method::Absmax { table, group: Group::new(256)? };
            let nf = perplexity(format!("nf-{bits}"), windows, nf)?;
            ensure!(pairs < nf, "{source}, {bits} bits: {pairs} and {nf}");
        }
    }
    Ok(())
}

/// tiny-llama with biases at all of its linear layers, which LLaMA's configuration knows.
fn biased(dir: &Path) -> Result<()> {
    let source = Reader::open(fixture("tiny-llama"))?;
    let mut tensors = vec![];
    for (name, _) in source.tensors() {
        let tensor = source.tensor(name)?;
        if let Some(module) = name.strip_suffix("_proj.weight") {
            let bias: Vec<f32> = normal(71, tensor.shape[0]).iter().map(|b| b * 0.1).collect();
            tensors.push((format!("{module}_proj.bias"), vec![bias.len()], bias));
        }
        tensors.push((name.to_owned(), tensor.shape, tensor.data));
    }
    let views = tensors.iter().map(|(name, shape, values)| {
        Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values))?))
    });
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?;
    std::fs::write(dir.join("model.safetensors"), bytes)?;
    let mut config = source.config_source().clone();
    config["attention_bias"] = true.into();
    config["mlp_bias"] = true.into();
    std::fs::write(dir.join("config.json"), config.to_string())?;
    Ok(())
}

#[test]
fn padded_layers_with_biases_run_in_models() -> Result<()> {
    let (scratch, source) = (tempfile::tempdir()?, tempfile::tempdir()?);
    biased(source.path())?;
    let dir = scratch.path().join("model");
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    // 256 and 768 columns in blocks of 512.
    let method = higgs(Bits::Four, 2, 256, 512)?;
    checkpoint::convert(ConvertOptions::new(source.path(), &dir, method, &mut quiet))?;
    let ids = &eval_ids()?[..24];
    let rotated = logits(&load(&dir, false)?, ids)?;
    let restored = logits(&load(&dir, true)?, ids)?;
    let off = worst(&rotated, &restored);
    ensure!(off <= 1e-4, "{off} between layers that rotate and their dense weights");
    // The biases are there: without them the logits are others, and with them near those of the dense model.
    let dense = logits(&load(source.path(), false)?, ids)?;
    let unbiased = logits(&load(&fixture("tiny-llama"), false)?, ids)?;
    let distance = |a: &[f32], b: &[f32]| -> f32 {
        let squares = a.iter().zip(b).map(|(a, b)| (a - b).powi(2));
        squares.sum::<f32>().sqrt()
    };
    let (near, far) = (distance(&rotated, &dense), distance(&rotated, &unbiased));
    println!("{near} from the dense model with biases, {far} from that without");
    ensure!(near * 2.0 < far, "{near} and {far}");
    Ok(())
}
