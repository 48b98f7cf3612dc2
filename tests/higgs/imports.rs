//! Directories of transformers: what their `config.json` says about the order of codes and the type of the grid.

use crate::fixture;
use anyhow::{Context, Result, ensure};
use flute_burn::checkpoint::import::FluteTiles;
use flute_burn::checkpoint::{ExportOptions, Reader, StoredLinear, StoredWeight, export};
use flute_burn::error::Error;
use flute_cube::{Bits, Quantized};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const GOLDEN: &str = "golden/tiny-llama-higgs-p2-4bit";
const Q: &str = "model.layers.0.self_attn.q_proj";
const K: &str = "model.layers.0.self_attn.k_proj";

/// The golden model after `edit` of its `quantization_config`.
fn edited(edit: impl FnOnce(&mut Value)) -> Result<TempDir> {
    let copy = tempfile::tempdir()?;
    std::fs::copy(
        fixture(GOLDEN).join("model.safetensors"),
        copy.path().join("model.safetensors"),
    )?;
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(fixture(GOLDEN).join("config.json"))?)?;
    edit(&mut config["quantization_config"]);
    std::fs::write(copy.path().join("config.json"), config.to_string())?;
    Ok(copy)
}

fn quantized(linear: StoredLinear) -> Result<Quantized> {
    match linear.weight {
        StoredWeight::Quantized(weight) => Ok(weight),
        StoredWeight::Dense { .. } => anyhow::bail!("dense"),
    }
}

fn weight(dir: &Path, module: &str) -> Result<Quantized> {
    quantized(Reader::open(dir)?.linear(module)?)
}

fn refusal(edit: impl FnOnce(&mut Value)) -> Result<Error> {
    let copy = edited(edit)?;
    let read = Reader::open(copy.path()).and_then(|reader| reader.linear(K));
    read.err().context("it was read")
}

#[test]
fn a_code_of_two_weights_has_the_even_one_in_its_high_half() -> Result<()> {
    let reader = Reader::open(fixture(GOLDEN))?;
    let halves =
        FluteTiles::new(Bits::Four).unpack(&reader.raw(&format!("{Q}.weight"))?.bytes, 256, 256)?;
    let stored = reader.linear(Q)?;
    assert_eq!(stored.hadamard_size, Some(256));
    let weight = quantized(stored)?;
    let expected: Vec<u8> =
        halves.as_chunks().0.iter().map(|[even, odd]| even << 4 | odd).collect();
    assert_eq!(weight.codes(), expected);
    // The grid is the one that transformers ships, rounded to the model's type.
    let golden = crate::golden(Bits::Four, 2)?;
    let rounded = golden.values().iter().map(|v| half::f16::from_f32(*v).to_f32());
    assert_eq!(weight.table().values(), rounded.collect::<Vec<_>>());
    Ok(())
}

#[test]
fn with_p_1_codes_are_single_and_name_the_values_of_tables() -> Result<()> {
    let copy = edited(|config| config["p"] = json!(1))?;
    let (single, pairs) = (weight(copy.path(), Q)?, weight(&fixture(GOLDEN), Q)?);
    let halves: Vec<u8> = pairs.codes().iter().flat_map(|code| [code >> 4, code & 15]).collect();
    assert_eq!(single.codes(), halves);
    let counting: Vec<f32> = (0..16).map(|i| i as f32).collect();
    assert_eq!(single.table().values(), counting, "what this file has there");
    Ok(())
}

#[test]
fn the_template_says_how_wide_the_tiles_of_codes_are() -> Result<()> {
    let copy = edited(|config| config["tune_metadata"][Q]["template_id"] = json!(49))?;
    let bytes = Reader::open(copy.path())?.raw(&format!("{Q}.weight"))?.bytes;
    let halves = FluteTiles::with_tile(Bits::Four, 64)?.unpack(&bytes, 256, 256)?;
    let expected: Vec<u8> =
        halves.as_chunks().0.iter().map(|[even, odd]| even << 4 | odd).collect();
    assert_eq!(weight(copy.path(), Q)?.codes(), expected);
    assert_ne!(weight(&fixture(GOLDEN), Q)?.codes(), expected);
    Ok(())
}

#[test]
fn the_bits_of_a_grid_are_of_the_type_that_it_was_packed_in() -> Result<()> {
    let copy = edited(|config| config["tune_metadata"][Q]["dtype"] = json!("torch.bfloat16"))?;
    let raw = Reader::open(copy.path())?.raw(&format!("{Q}.tables2"))?;
    let words = raw.bytes.as_chunks().0.iter();
    let expected: Vec<f32> =
        words.map(|b| half::bf16::from_bits(u16::from_le_bytes(*b)).to_f32()).collect();
    assert_eq!(weight(copy.path(), Q)?.table().values(), expected);
    Ok(())
}

#[test]
fn exported_to_our_format_it_keeps_every_code_scale_and_point() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("model");
    let mut quiet = |_: flute_burn::checkpoint::Progress<'_>| {};
    let done = export(ExportOptions::new(fixture(GOLDEN), &target, &mut quiet))?;
    assert_eq!(done.modules, 6 * 7);
    let (source, reader) = (Reader::open(fixture(GOLDEN))?, Reader::open(&target)?);
    for module in source.quantized_modules() {
        assert_eq!(source.linear(module)?, reader.linear(module)?, "{module}");
    }
    Ok(())
}

#[test]
fn what_the_configuration_and_the_tensors_contradict_is_refused() -> Result<()> {
    let found = refusal(|config| config["p"] = json!(3))?.to_string();
    ensure!(found.contains("p is 3; it must be 1 or 2"), "{found}");
    let found = refusal(|config| config["bits"] = json!(8))?.to_string();
    ensure!(found.contains("bits is 8; it must be 2, 3 or 4"), "{found}");
    let found = refusal(|config| config["hadamard_size"] = json!(96))?.to_string();
    ensure!(found.contains("hadamard_size is 96"), "{found}");
    let found = refusal(|config| config["group_size"] = json!(100))?.to_string();
    ensure!(found.contains("group_size is 100"), "{found}");
    // Without a word on it the blocks are of 1024, and k is 256.
    let found = refusal(|config| {
        config.as_object_mut().map(|fields| fields.remove("hadamard_size"));
    })?;
    assert!(matches!(found, Error::PackedShape { multiple: 1024, .. }), "{found}");
    // Tiles of 64 need n in multiples of 256; this has 128.
    let found = refusal(|config| config["tune_metadata"][K]["template_id"] = json!(0))?;
    assert!(matches!(found, Error::PackedShape { found: 128, multiple: 256, .. }), "{found}");
    let found = refusal(|config| config["group_size"] = json!(128))?;
    assert!(matches!(found, Error::TensorShape { .. }), "{found}");
    let found = refusal(|config| config["bits"] = json!(2))?;
    assert!(matches!(found, Error::TensorShape { .. } | Error::PackedShape { .. }), "{found}");
    Ok(())
}
