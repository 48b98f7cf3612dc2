//! Directories of other programs that are wrong: refused by the name of what is wrong, before anything is computed.

use crate::bitsandbytes::add_module;
use crate::edit::{Copy, Tensors};
use crate::{BITSANDBYTES, LEGACY, golden};
use anyhow::Result;
use flute_burn::checkpoint::{ConvertOptions, ExportOptions, Reader, Target, convert, export};
use flute_burn::error::Error;
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Table};
use safetensors::Dtype;
use serde_json::json;

const DOWN: &str = "model.layers.0.mlp.down_proj";

#[track_caller]
fn says(error: &Error, words: &[&str]) {
    let message = error.to_string();
    for word in words {
        assert!(message.contains(word), "'{message}' does not say '{word}'");
    }
}

/// Why module [`DOWN`] of the golden directory `name` is refused after `edit`.
fn refusal(name: &str, edit: impl FnOnce(&mut Tensors)) -> Result<Error> {
    let copy = Copy::edited(name, edit)?;
    Ok(Reader::open(copy.path())?.linear(DOWN).expect_err("this module must be refused"))
}

/// The same after a change of the tensor `part` of it.
fn part(
    name: &str,
    part: &str,
    edit: impl FnOnce(&mut (Dtype, Vec<usize>, Vec<u8>)),
) -> Result<Error> {
    let tensor = format!("{DOWN}.{part}");
    refusal(name, |tensors| edit(tensors.get_mut(&tensor).expect("the tensor is there")))
}

/// Why the golden directory `name` does not open after `edit` of its file `file`.
fn unopened(name: &str, file: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Result<Error> {
    let copy = Copy::edited(name, |_| ())?.json(file, edit)?;
    Ok(Reader::open(copy.path()).expect_err("this directory must be refused"))
}

#[test]
fn a_flute_config_that_no_kernel_serves_is_refused_by_field() -> Result<()> {
    let file = "flute_config.json";
    let error = unopened(LEGACY, file, |config| config["num_bits"] = json!(5))?;
    says(&error, &["flute_config.json", "num_bits is 5", "2, 3 or 4"]);
    let error = unopened(LEGACY, file, |config| config["group_size"] = json!(48))?;
    says(&error, &["group_size is 48", "256"]);
    let error = unopened(LEGACY, file, |config| config["num_bits"] = json!("four"))?;
    says(&error, &["flute_config.json", "'num_bits'"]);
    Ok(())
}

#[test]
fn a_flute_config_needs_neither_version_nor_multiprocessors() -> Result<()> {
    let copy = Copy::edited(LEGACY, |_| ())?.json("flute_config.json", |config| {
        *config = json!({"version": "0.4.2", "num_bits": 4, "group_size": 64});
    })?;
    let expected = Reader::open(golden(LEGACY))?.linear(DOWN)?;
    assert_eq!(Reader::open(copy.path())?.linear(DOWN)?, expected);
    Ok(())
}

#[test]
fn the_pair_tables_of_flute_are_not_trusted() -> Result<()> {
    let copy = Copy::edited(LEGACY, |tensors| {
        for (_, (.., bytes)) in tensors.iter_mut().filter(|(name, _)| name.ends_with("tables2")) {
            bytes.fill(0xff);
        }
    })?;
    let expected = Reader::open(golden(LEGACY))?.linear(DOWN)?;
    assert_eq!(Reader::open(copy.path())?.linear(DOWN)?, expected);
    Ok(())
}

#[test]
fn a_flute_config_that_contradicts_the_tensors_is_refused() -> Result<()> {
    let cases = [
        ("num_bits", 3, "n (out_features) is 341", "512"),
        ("num_bits", 2, "scales has shape [256, 12]", "[512, 12]"),
        ("group_size", 128, "scales has shape [256, 12]", "[256, 6]"),
    ];
    for (field, value, found, needed) in cases {
        let copy = Copy::edited(LEGACY, |_| ())?
            .json("flute_config.json", |config| config[field] = json!(value))?;
        says(&Reader::open(copy.path())?.linear(DOWN).unwrap_err(), &[DOWN, found, needed]);
    }
    Ok(())
}

#[test]
fn parts_of_a_flute_layer_that_are_wrong_are_refused() -> Result<()> {
    let error = part(LEGACY, "weight", |(_, shape, _)| *shape = vec![32, 1536])?;
    assert!(matches!(error, Error::TensorShape { .. }), "{error:?}");
    says(&error, &["scales has shape [256, 12]", "[128, 24]"]);
    let error = part(LEGACY, "weight", |(_, shape, _)| *shape = vec![48, 1024])?;
    says(&error, &["n (out_features) is 192", "multiple of 128"]);
    let error = part(LEGACY, "scales", |(dtype, ..)| *dtype = Dtype::I16)?;
    says(&error, &["scales is I16", "BF16"]);
    let error = part(LEGACY, "scales", |(.., bytes)| bytes[26..28].copy_from_slice(&[0, 0x7e]))?;
    assert!(matches!(error, Error::NotFinite { row: 1, col: 1, .. }), "{error:?}");
    let error = refusal(LEGACY, |tensors| drop(tensors.remove(&format!("{DOWN}.tables"))))?;
    assert!(matches!(error, Error::TensorAbsent { .. }), "{error:?}");
    Ok(())
}

#[test]
fn bitsandbytes_in_8_bits_is_refused_by_name() -> Result<()> {
    let error = unopened(BITSANDBYTES, "config.json", |config| {
        config["quantization_config"]["load_in_4bit"] = json!(false);
        config["quantization_config"]["load_in_8bit"] = json!(true);
    })?;
    assert!(matches!(error, Error::ConfigUnsupported { .. }), "{error:?}");
    says(&error, &["bitsandbytes", "4 bits (nf4, fp4)"]);
    Ok(())
}

#[test]
fn parts_of_a_bitsandbytes_layer_that_are_wrong_are_refused() -> Result<()> {
    let state = "weight.quant_state.bitsandbytes__nf4";
    let error = refusal(BITSANDBYTES, |tensors| drop(tensors.remove(&format!("{DOWN}.{state}"))))?;
    says(&error, &["down_proj.weight.quant_state", "nf4 (or fp4)"]);
    let rewritten = |field: &'static str, value: serde_json::Value| {
        part(BITSANDBYTES, state, move |(_, shape, bytes)| {
            let mut json: serde_json::Value = serde_json::from_slice(bytes).expect("a state");
            json[field] = value;
            *bytes = json.to_string().into_bytes();
            *shape = vec![bytes.len()];
        })
    };
    says(&rewritten("blocksize", json!(0))?, &["blocksize is 0", DOWN]);
    says(&rewritten("nested_blocksize", json!(0))?, &["nested_blocksize is 0", DOWN]);
    says(&rewritten("blocksize", json!("all"))?, &["'blocksize'", state]);
    says(&rewritten("blocksize", json!(128))?, &["nested_absmax has shape [12]", "[6]"]);
    says(&rewritten("shape", json!([256]))?, &["shape in the state", "[n, k]"]);
    says(&rewritten("shape", json!([1u64 << 40, 768]))?, &["shape in the state", "16777216"]);
    says(&rewritten("shape", json!([256, 769]))?, &["down_proj.weight has shape", "98432 bytes"]);
    let error = part(BITSANDBYTES, state, |(.., bytes)| bytes[0] = b'[')?;
    assert!(matches!(error, Error::Json { .. }), "{error:?}");
    let error = part(BITSANDBYTES, "weight.absmax", |(dtype, ..)| *dtype = Dtype::I8)?;
    says(&error, &["absmax is I8", "U8 with double quantization"]);
    let error = part(BITSANDBYTES, "weight.nested_absmax", |(.., bytes)| {
        bytes[8..12].copy_from_slice(&f32::INFINITY.to_le_bytes());
    })?;
    says(&error, &["nested_absmax", "inf"]);
    let error = part(BITSANDBYTES, "weight.nested_quant_map", |(_, shape, bytes)| {
        *shape = vec![255];
        bytes.truncate(1020);
    })?;
    says(&error, &["nested_quant_map has shape [255]", "[256]"]);
    Ok(())
}

#[test]
fn blocks_across_rows_that_no_group_describes_are_refused_with_both_numbers() -> Result<()> {
    for (k, blocksize) in [(48, 64), (80, 128), (1000, 64)] {
        let mut stored = Tensors::new();
        add_module(&mut stored, [4, k], blocksize);
        let copy = Copy::with_tensors(BITSANDBYTES, &stored)?;
        let error = Reader::open(copy.path())?.linear("x").unwrap_err();
        assert!(matches!(error, Error::BlocksCrossRows { .. }), "{error:?}");
        says(&error, &["x: ", &format!("blocks of {blocksize}"), &format!("rows of {k}")]);
    }
    Ok(())
}

#[test]
fn quantized_models_of_any_format_are_not_quantized_again() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    for name in [LEGACY, BITSANDBYTES] {
        let method = Method::Absmax { table: Table::nf(Bits::Three), group: Group::Size(64) };
        let target = scratch.path().join("out");
        let mut quiet = |_: flute_burn::checkpoint::Progress<'_>| ();
        let options = ConvertOptions::new(golden(name), &target, method, &mut quiet);
        let error = convert(options).unwrap_err();
        assert!(matches!(error, Error::AlreadyQuantized { bits: 4, .. }), "{error:?}");
        assert!(!target.exists());
    }
    Ok(())
}

/// Why an export is refused; it must leave nothing behind.
fn export_refusal(source: &std::path::Path, to: Target) -> Result<Error> {
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("out");
    let mut quiet = |_: flute_burn::checkpoint::Progress<'_>| ();
    let mut options = ExportOptions::new(source, &target, &mut quiet);
    options.to = to;
    let error = export(options).expect_err("this export must be refused");
    assert_eq!(std::fs::read_dir(scratch.path())?.count(), 0, "{error}");
    Ok(error)
}

#[test]
fn a_dense_model_is_not_exported() -> Result<()> {
    let dense = golden("../tiny-llama");
    for to in [Target::Flute, Target::FluteLegacy] {
        let error = export_refusal(&dense, to)?;
        assert!(matches!(error, Error::NotQuantized { .. }), "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("flute quantize")));
    }
    Ok(())
}

#[test]
fn what_flute_s_own_format_cannot_hold_is_refused_before_anything_is_written() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let nf = |bits, group| Method::Absmax { table: Table::nf(bits), group };
    let quantized = |name: &str, method: Method, own: Option<Method>| -> Result<_> {
        let target = scratch.path().join(name);
        let mut quiet = |_: flute_burn::checkpoint::Progress<'_>| ();
        let mut options = ConvertOptions::new(golden("../tiny-llama"), &target, method, &mut quiet);
        options.overrides = own.map(|own| ("down_proj".to_owned(), own)).into_iter().collect();
        convert(options)?;
        Ok(target)
    };
    let group = Group::Size(64);
    let mixed = quantized("mixed", nf(Bits::Four, group), Some(nf(Bits::Two, group)))?;
    let error = export_refusal(&mixed, Target::FluteLegacy)?;
    says(&error, &["all its layers are alike", "W4G64", "W2G64"]);
    let rows = quantized("rows", nf(Bits::Four, Group::Whole), None)?;
    says(&export_refusal(&rows, Target::FluteLegacy)?, &["one a row"]);
    // Its 3-bit kernels take 512 output features at a time; k_proj has 128, and the first layer but that 256.
    let three = quantized("three", nf(Bits::Three, group), None)?;
    let error = export_refusal(&three, Target::FluteLegacy)?;
    assert!(matches!(error, Error::PackedShape { .. }), "{error:?}");
    says(&error, &["down_proj", "is 256", "multiple of 512"]);
    Ok(())
}

#[test]
fn a_scale_beyond_the_range_of_half_precision_leaves_no_directory() -> Result<()> {
    let copy = Copy::edited(BITSANDBYTES, |tensors| {
        let name = format!("{DOWN}.weight.nested_absmax");
        let (.., bytes) = tensors.get_mut(&name).expect("the tensor is there");
        bytes[..4].copy_from_slice(&1e9f32.to_le_bytes());
    })?
    .json("config.json", |config| config["dtype"] = json!("float16"))?;
    let error = export_refusal(copy.path(), Target::FluteLegacy)?;
    assert!(matches!(error, Error::ScaleOverflow { .. }), "{error:?}");
    says(&error, &[DOWN, "f16"]);
    Ok(())
}
