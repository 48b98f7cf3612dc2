//! HIGGS directories that are written: those of transformers to the byte, and ours read back to the bit.

use crate::{fixture, golden, higgs, normal};
use anyhow::{Context, Result, ensure};
use flute_burn::checkpoint::{
    ConvertOptions, ExportOptions, Progress, Reader, ScaleDtype, StoredLinear, StoredWeight,
    Target, convert, export,
};
use flute_burn::error::Error;
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Quantized, Table};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::path::Path;

const GOLDEN: &str = "golden/tiny-llama-higgs-p2-4bit";

fn write(source: &Path, target: &Path, to: Target) -> flute_burn::error::Result<()> {
    let mut quiet = |_: Progress<'_>| {};
    let mut options = ExportOptions::new(source, target, &mut quiet);
    options.to = to;
    export(options).map(|_| ())
}

fn quantization(dir: &Path) -> Result<Value> {
    let config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    Ok(config["quantization_config"].clone())
}

/// A model of two layers of which the first has a bias, `[512, k]` each, in `dtype`.
fn dense(dir: &Path, k: usize, dtype: &str) -> Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 512,
        "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 8, "dtype": dtype,
    });
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let mut tensors = vec![];
    for (name, shape) in [
        ("model.layers.0.self_attn.q_proj.weight", vec![512, k]),
        ("model.layers.0.self_attn.q_proj.bias", vec![512]),
        ("model.layers.0.mlp.gate_proj.weight", vec![512, k]),
        ("model.norm.weight", vec![512]),
    ] {
        tensors.push((name, normal(60, shape.iter().product()), shape));
    }
    let views = tensors.iter().map(|(name, values, shape)| {
        Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(values))?))
    });
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)?;
    std::fs::write(dir.join("model.safetensors"), bytes)?;
    Ok(())
}

fn quantized(linear: &StoredLinear) -> Result<&Quantized> {
    match &linear.weight {
        StoredWeight::Quantized(weight) => Ok(weight),
        StoredWeight::Dense { .. } => anyhow::bail!("dense"),
    }
}

#[test]
fn a_model_of_transformers_is_written_back_to_the_byte() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (ours, again) = (scratch.path().join("ours"), scratch.path().join("again"));
    write(&fixture(GOLDEN), &ours, Target::Flute)?;
    write(&ours, &again, Target::Higgs)?;
    for file in ["model.safetensors", "tokenizer.json", "generation_config.json"] {
        let (found, expected) =
            (std::fs::read(again.join(file))?, std::fs::read(fixture(GOLDEN).join(file))?);
        ensure!(found == expected, "{file} differs");
    }
    assert_eq!(quantization(&again)?, quantization(&fixture(GOLDEN))?);
    Ok(())
}

#[test]
fn what_is_written_is_read_back_in_every_width_dimension_and_type() -> Result<()> {
    for (dtype, scale) in [("float16", ScaleDtype::Float16), ("bfloat16", ScaleDtype::BFloat16)] {
        // 384 columns are padded to 512.
        for (bits, p, k) in Bits::ALL.into_iter().flat_map(|b| [(b, 1, 512), (b, 2, 384)]) {
            let scratch = tempfile::tempdir()?;
            let dir = |name: &str| scratch.path().join(name);
            std::fs::create_dir(dir("dense"))?;
            dense(&dir("dense"), k, dtype)?;
            let mut quiet = |_: Progress<'_>| {};
            let method = higgs(bits, p, 128, 256)?;
            let mut options = ConvertOptions::new(dir("dense"), dir("ours"), method, &mut quiet);
            options.scale_dtype = scale;
            convert(options)?;
            write(&dir("ours"), &dir("higgs"), Target::Higgs)?;
            write(&dir("higgs"), &dir("back"), Target::Flute)?;
            write(&dir("back"), &dir("again"), Target::Higgs)?;

            let (ours, found) = (Reader::open(dir("ours"))?, Reader::open(dir("higgs"))?);
            let modules: Vec<&str> = found.quantized_modules().collect();
            assert_eq!(modules, ours.quantized_modules().collect::<Vec<_>>());
            assert_eq!(modules.len(), 2);
            for module in modules {
                let (expected, found) = (ours.linear(module)?, found.linear(module)?);
                assert_eq!(found.bias, expected.bias);
                assert_eq!(found.hadamard_size, Some(256));
                let (expected, found) = (quantized(&expected)?, quantized(&found)?);
                assert_eq!((found.n(), found.k()), (512, 512));
                assert_eq!(found.codes(), expected.codes(), "{bits} bits, p = {p}");
                assert_eq!(found.scales(), expected.scales());
                let round = |value: &f32| match scale {
                    ScaleDtype::BFloat16 => half::bf16::from_f32(*value).to_f32(),
                    _ => half::f16::from_f32(*value).to_f32(),
                };
                let rounded: Vec<f32> = expected.table().values().iter().map(round).collect();
                assert_eq!(found.table().values(), rounded);
            }
            for file in ["model.safetensors", "config.json"] {
                let both = ["higgs", "again"].map(|name| std::fs::read(dir(name).join(file)));
                let [once, twice] = both;
                ensure!(once? == twice?, "{file} differs");
            }
        }
    }
    Ok(())
}

#[test]
fn with_p_1_the_values_stand_in_tables_and_their_pairs_in_tables2() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let dir = |name: &str| scratch.path().join(name);
    std::fs::create_dir(dir("dense"))?;
    dense(&dir("dense"), 512, "float16")?;
    let mut quiet = |_: Progress<'_>| {};
    let method = higgs(Bits::Two, 1, 64, 64)?;
    convert(ConvertOptions::new(dir("dense"), dir("ours"), method, &mut quiet))?;
    write(&dir("ours"), &dir("higgs"), Target::Higgs)?;
    let reader = Reader::open(dir("higgs"))?;
    let module = "model.layers.0.mlp.gate_proj";
    let values = reader.tensor(&format!("{module}.tables"))?.data;
    let mut grid = golden(Bits::Two, 1)?.values().to_vec();
    grid.sort_by(f32::total_cmp);
    let grid: Vec<f32> = grid.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
    assert_eq!(values, grid);
    let pairs = reader.tensor(&format!("{module}.tables2"))?;
    assert_eq!(pairs.shape, [4, 4, 2]);
    let expected: Vec<f32> =
        values.iter().flat_map(|a| values.iter().flat_map(move |b| [*a, *b])).collect();
    assert_eq!(pairs.data, expected);
    let config = quantization(&dir("higgs"))?;
    assert_eq!(
        (&config["p"], &config["bits"], &config["group_size"]),
        (&1.into(), &2.into(), &64.into())
    );
    assert_eq!(config["modules_to_not_convert"], json!(["lm_head"]));
    Ok(())
}

#[test]
fn what_transformers_cannot_hold_is_refused_and_nothing_is_written() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let source = scratch.path().join("dense");
    std::fs::create_dir(&source)?;
    dense(&source, 512, "float16")?;
    let nf = Method::Absmax { table: Table::nf(Bits::Four), group: Group::new(64)? };
    let other = higgs(Bits::Two, 2, 128, 256)?;
    let refusal = |name: &str, method: Method, own: Option<Method>| -> Result<Error> {
        let (ours, target) = (scratch.path().join(name), scratch.path().join("higgs"));
        let mut quiet = |_: Progress<'_>| {};
        let mut options = ConvertOptions::new(&source, &ours, method, &mut quiet);
        options.overrides = own.into_iter().map(|own| ("q_proj".to_owned(), own)).collect();
        convert(options)?;
        let refused = write(&ours, &target, Target::Higgs).err().context("it was written")?;
        ensure!(!target.exists(), "{name} left something behind");
        Ok(refused)
    };
    for (name, method, own, words) in [
        ("nf", nf, None, "this is not rotated"),
        ("mixed", higgs(Bits::Two, 2, 256, 256)?, Some(other), "all its layers are alike"),
        ("narrow", higgs(Bits::Two, 2, 32, 256)?, None, "its groups are 64, 128 or 256"),
    ] {
        let refused = refusal(name, method, own)?;
        ensure!(matches!(refused, Error::Unsupported { .. }), "{refused:?}");
        ensure!(refused.to_string().contains(words), "{refused}");
    }
    // 3 bits need n in multiples of 512, and tiny-llama has 256.
    let (ours, mut quiet) = (scratch.path().join("llama"), |_: Progress<'_>| {});
    let method = higgs(Bits::Three, 2, 256, 256)?;
    convert(ConvertOptions::new(fixture("tiny-llama"), &ours, method, &mut quiet))?;
    let refused = write(&ours, &scratch.path().join("higgs"), Target::Higgs);
    ensure!(matches!(refused, Err(Error::PackedShape { multiple: 512, .. })), "{refused:?}");
    Ok(())
}
