//! Embedding and head in codes: written, read, looked up and multiplied by.

use crate::{Fixture, LLAMA, kernel_device};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{self, ConvertOptions, Target, inspect};
use flute_burn::eval::{self, EvalOptions};
use flute_burn::generate::{GenerateOptions, generate};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::quantize::{Higgs, Method};
use flute_cube::{Bits, Group, Table};
use std::path::Path;

const GEMMA: Fixture = Fixture("tiny-gemma2");

fn nf(bits: Bits) -> Method {
    Method::Absmax { table: Table::nf(bits), group: Group::Size(64) }
}

/// `fixture` with its linear layers in 4 bits, and what `ends` says for head and embedding.
fn quantize(fixture: Fixture, ends: [Option<Method>; 2], target: &Path) -> Result<()> {
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    let mut options = ConvertOptions::new(fixture.path(), target, nf(Bits::Four), &mut quiet);
    [options.head, options.embedding] = ends;
    checkpoint::convert(options)?;
    Ok(())
}

fn load(dir: &Path, device: Device, dequantize: bool) -> Result<Model> {
    let options = LoadOptions { dtype: Some(DType::F32), dequantize, ..LoadOptions::new(device) };
    Ok(Model::load(dir, &options)?)
}

fn logits(model: &Model) -> Result<Vec<f32>> {
    let ids: Vec<u32> = (0..12).map(|i| i * 163 % model.vocab() as u32).collect();
    let mut cache = model.new_cache(2, 6)?;
    let logits = model.forward(model.tokens(&ids, 2)?, &mut cache)?;
    Ok(logits.try_into_vec_as::<f32>()?)
}

#[test]
fn codes_of_head_and_embedding_give_the_logits_of_their_decoded_weights() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let higgs = Higgs::new(Bits::Three, 2, Group::Size(64), 64)?;
    let random = Method::Higgs(higgs.clone().with_seed(4));
    let cases = [
        ("llama", LLAMA, [Some(nf(Bits::Four)), Some(nf(Bits::Three))]),
        // One copy of the codes is looked up and multiplied by.
        ("gemma", GEMMA, [None, Some(nf(Bits::Four))]),
        ("rotated", GEMMA, [None, Some(Method::Higgs(higgs))]),
        ("rotated at random", GEMMA, [None, Some(random)]),
    ];
    for (name, fixture, ends) in cases {
        let dir = scratch.path().join(name);
        quantize(fixture, ends, &dir)?;
        let expected = logits(&load(&dir, Device::flex(), true)?)?;
        for device in [Some(Device::flex()), kernel_device()?].into_iter().flatten() {
            let found = logits(&load(&dir, device, false)?)?;
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
            };
            let error = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
            let relative = error / norm(&mut expected.iter().copied());
            println!("{name}: relative error {relative:.1e}");
            ensure!(found.len() == expected.len() && relative <= 1e-4, "{name}: {relative}");
        }
    }
    Ok(())
}

#[test]
fn four_bits_of_head_and_embedding_cost_a_few_percent_of_perplexity_and_their_bytes() -> Result<()>
{
    let scratch = tempfile::tempdir()?;
    let (dense, codes) = (scratch.path().join("dense"), scratch.path().join("codes"));
    let four = || Some(nf(Bits::Four));
    for (fixture, ends) in [(LLAMA, [four(), four()]), (GEMMA, [None, four()])] {
        for dir in [&dense, &codes] {
            if dir.exists() {
                std::fs::remove_dir_all(dir)?;
            }
        }
        quantize(fixture, [None, None], &dense)?;
        quantize(fixture, ends, &codes)?;
        let ids = fixture.eval_ids()?;
        let perplexity = |dir: &Path| -> Result<f64> {
            let options = EvalOptions { window: 256, batch: None, limit: Some(6) };
            let model = load(dir, Device::flex(), true)?;
            Ok(eval::perplexity(&model, &ids, &options, &mut |_| {})?.value)
        };
        let ratio = perplexity(&codes)? / perplexity(&dense)?;
        println!("{}: {:+.2} % of perplexity", fixture.0, (ratio - 1.0) * 100.0);
        ensure!((0.97..1.10).contains(&ratio), "{ratio}");
        let (before, after) = (inspect(&dense, true)?, inspect(&codes, true)?);
        let ends = after.linears.len() - before.linears.len();
        ensure!(ends == if fixture.0 == "tiny-llama" { 2 } else { 1 });
        let embedding = after.linears.iter().find(|linear| linear.module == "model.embed_tokens");
        let embedding = embedding.context("the embedding is listed")?;
        // 16 bits became 4 and a scale of 16 bits for 64 weights.
        let saved = ends as u64 * (embedding.n * embedding.k) as u64 * (16 * 4 - 4 * 4 - 1) / 4 / 8;
        let table = ends as u64 * 16 * 4;
        ensure!(before.bytes - after.bytes == saved - table);
    }
    Ok(())
}

#[test]
fn a_model_with_codes_for_ends_generates_on_a_device_what_it_does_on_the_cpu() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let dir = scratch.path().join("model");
    quantize(GEMMA, [None, Some(nf(Bits::Four))], &dir)?;
    let options = GenerateOptions { max_new_tokens: 8, stop: Some(vec![]), ..Default::default() };
    let tokens = |device: Device, dequantize| -> Result<Vec<u32>> {
        let model = load(&dir, device, dequantize)?;
        let tokens = generate(&model, &[3, 1, 4, 1, 5], &options)?;
        Ok(tokens.map(|token| token.map(|token| token.id)).collect::<Result<_, _>>()?)
    };
    let expected = tokens(Device::flex(), true)?;
    ensure!(expected.len() == 8);
    ensure!(tokens(kernel_device()?.unwrap_or_else(Device::flex), false)? == expected);
    Ok(())
}

#[test]
fn a_head_that_is_the_embedding_cannot_be_quantized_alone() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("model");
    let refused = quantize(GEMMA, [Some(nf(Bits::Four)), None], &target);
    let message = refused.unwrap_err().to_string();
    ensure!(message.contains("--embeddings") && !target.exists(), "{message}");
    Ok(())
}

#[test]
fn formats_that_keep_ends_dense_refuse_codes_for_them_by_name() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let source = scratch.path().join("model");
    quantize(LLAMA, [None, Some(nf(Bits::Four))], &source)?;
    let target = scratch.path().join("legacy");
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    let mut options = checkpoint::ExportOptions::new(&source, &target, &mut quiet);
    options.to = Target::FluteLegacy;
    let message = checkpoint::export(options).unwrap_err().to_string();
    ensure!(message.contains("model.embed_tokens") && !target.exists(), "{message}");
    Ok(())
}
