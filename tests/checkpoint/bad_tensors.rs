//! Tensors and text files that are refused when they are asked for.

use crate::assert_refused;
use crate::model_dir::{ModelDir, Tensor};
use flute_burn::checkpoint::inspect;
use flute_burn::error::Error;
use flute_burn::text::{ChatTemplate, Tokenizer};
use flute_cube::{Bits, Dtype, Format, Group, Quantized, QuantizedParts, Table};

const DOWN: &str = "model.layers.1.mlp.down_proj";

/// The refusal of module [`DOWN`] of a dense directory after `edit` of its weight.
fn dense(edit: impl FnOnce(&mut Tensor)) -> Error {
    let dir = ModelDir::new();
    dir.edit_tensors(|tensors| edit(tensors.get_mut(&format!("{DOWN}.weight")).unwrap()));
    dir.open().unwrap().linear(DOWN).unwrap_err()
}

/// The refusal of module [`DOWN`] of a 3-bit directory after `edit` of one of its parts.
fn quantized(part: &str, edit: impl FnOnce(&mut Tensor)) -> Error {
    let dir = ModelDir::quantized(Bits::Three, Group::Size(32));
    dir.edit_tensors(|tensors| edit(tensors.get_mut(&format!("{DOWN}.{part}")).unwrap()));
    dir.open().unwrap().linear(DOWN).unwrap_err()
}

#[test]
fn an_absent_tensor_is_refused_by_name() {
    let dir = ModelDir::new();
    let reader = dir.open().unwrap();
    let error = reader.linear("model.layers.9.mlp.down_proj").unwrap_err();
    assert_refused!(error, Error::TensorAbsent { .. }, "model.layers.9.mlp.down_proj.weight");
    assert_refused!(reader.tensor("x").unwrap_err(), Error::TensorAbsent { .. }, "no tensor x");
}

#[test]
fn a_weight_of_integers_is_refused() {
    let error = dense(|(_, dtype, ..)| *dtype = "I16");
    assert_refused!(error, Error::TensorDtype { .. }, "down_proj.weight is I16", "BF16");
}

#[test]
fn a_weight_that_is_no_matrix_is_refused() {
    let error = dense(|(_, _, shape, _)| *shape = vec![shape.iter().product()]);
    assert_refused!(error, Error::TensorShape { .. }, "[6144]", "[n, k]");
}

#[test]
fn a_bias_of_another_length_is_refused() {
    let dir = ModelDir::new();
    dir.edit_tensors(|tensors| {
        let name = format!("{DOWN}.bias");
        tensors.insert(name.clone(), (name, "F32", vec![63], vec![0; 252]));
    });
    let error = dir.open().unwrap().linear(DOWN).unwrap_err();
    assert_refused!(error, Error::TensorShape { .. }, "down_proj.bias", "[63]", "[64]");
}

#[test]
fn a_module_stored_dense_and_quantized_is_refused() {
    let dir = ModelDir::quantized(Bits::Four, Group::Size(32));
    dir.edit_tensors(|tensors| {
        let name = format!("{DOWN}.weight");
        tensors.insert(name.clone(), (name, "F32", vec![1, 1], vec![0; 4]));
    });
    let error = dir.open().unwrap().linear(DOWN).unwrap_err();
    assert_refused!(error, Error::Ambiguous { .. }, DOWN);
}

#[test]
fn a_quantized_module_that_lacks_a_part_is_refused() {
    for part in ["scales", "table"] {
        let dir = ModelDir::quantized(Bits::Four, Group::Size(32));
        let name = format!("{DOWN}.{part}");
        dir.edit_tensors(|tensors| drop(tensors.remove(&name)));
        let error = dir.open().unwrap().linear(DOWN).unwrap_err();
        assert_refused!(error, Error::TensorAbsent { .. }, name.as_str());
    }
}

#[test]
fn parts_of_the_wrong_type_are_refused() {
    let error = quantized("codes", |(_, dtype, ..)| *dtype = "I8");
    assert_refused!(error, Error::TensorDtype { .. }, "down_proj.codes is I8", "U8");
    let error = quantized("table", |(_, dtype, ..)| *dtype = "I32");
    assert_refused!(error, Error::TensorDtype { .. }, "down_proj.table is I32", "F32");
    let error = quantized("scales", |(_, dtype, ..)| *dtype = "I16");
    assert_refused!(error, Error::TensorDtype { .. }, "down_proj.scales is I16", "F16");
}

#[test]
fn parts_of_the_wrong_shape_are_refused() {
    let error = quantized("codes", |(_, _, shape, _)| *shape = vec![32, 72]);
    assert_refused!(error, Error::TensorShape { .. }, "down_proj.scales", "[64, 3]", "[32, 6]");
    let error = quantized("codes", |(_, _, shape, _)| *shape = vec![64 * 36]);
    assert_refused!(error, Error::TensorShape { .. }, "down_proj.codes", "[2304]");
    let error = quantized("scales", |(_, _, shape, _)| *shape = vec![3, 64]);
    assert_refused!(error, Error::TensorShape { .. }, "[3, 64]", "[64, 3]");
    let error = quantized("table", |(_, _, shape, bytes)| {
        *shape = vec![7];
        bytes.truncate(28);
    });
    assert_refused!(error, Error::TensorShape { .. }, "[7]", "[8] or [64, 2]");
}

#[test]
fn an_in_features_that_the_row_cannot_hold_is_refused() {
    let dir = ModelDir::quantized(Bits::Three, Group::Size(32));
    for k in [0, 90, 97, 1 << 40, usize::MAX] {
        dir.edit_config(|config| {
            config["quantization_config"]["modules"] =
                serde_json::json!({DOWN: {"in_features": k}});
        });
        let (error, words) = (dir.open().unwrap().linear(DOWN).unwrap_err(), format!("k = {k}"));
        assert_refused!(error, Error::TensorShape { .. }, "down_proj.codes", words.as_str());
    }
}

#[test]
fn set_bits_after_the_last_code_are_refused() {
    let dir = ModelDir::quantized(Bits::Three, Group::Size(32));
    // 95 codes of 3 bits leave 3 bits of the row's last byte; the 96th code of this row is not 0.
    dir.edit_config(|config| {
        config["quantization_config"]["modules"] = serde_json::json!({DOWN: {"in_features": 95}});
    });
    dir.edit_tensors(|tensors| {
        let codes = &mut tensors.get_mut(&format!("{DOWN}.codes")).unwrap().3;
        codes.fill(0);
        codes[36 * 5 + 35] = 0x80;
    });
    let error = dir.open().unwrap().linear(DOWN).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("row 5"), "{source}");
    assert_refused!(error, Error::Module { .. }, DOWN);
}

#[test]
fn scales_and_tables_that_are_not_finite_are_refused_with_their_place() {
    let error = quantized("scales", |(.., bytes)| bytes[14..16].copy_from_slice(&[0, 0x7e]));
    assert_refused!(
        error,
        Error::NotFinite { row: 2, col: 1, .. },
        "down_proj.scales[2, 1] is NaN"
    );
    let infinity = f32::INFINITY.to_le_bytes();
    let error = quantized("table", |(.., bytes)| bytes[28..].copy_from_slice(&infinity));
    assert_refused!(error, Error::NotFinite { .. }, "down_proj.table", "inf");
}

#[test]
fn verification_finds_a_dense_tensor_that_is_not_finite() {
    let dir = ModelDir::new();
    dir.edit_tensors(|tensors| {
        tensors.get_mut("model.norm.weight").unwrap().3[20..22].copy_from_slice(&[0xc0, 0x7f]);
    });
    assert!(inspect(&dir.path(), false).is_ok());
    let error = inspect(&dir.path(), true).unwrap_err();
    assert_refused!(error, Error::NotFinite { col: 10, .. }, "model.norm.weight", "NaN");
}

#[test]
fn codes_out_of_range_are_refused() {
    let format = Format { bits: Bits::Three, group: Group::Size(32) };
    let (scales, table) = (vec![1.0], Table::nf(Bits::Three));
    let parts = QuantizedParts { n: 1, k: 3, format, codes: vec![7, 8, 0], scales, table };
    let error = Quantized::new(parts).unwrap_err();
    assert_refused!(error.into(), Error::Cube(_), "code 8", "0..8");
}

#[test]
fn a_scale_that_its_type_cannot_hold_is_refused_with_its_place() {
    let dir = ModelDir::new();
    dir.edit_tensors(|tensors| {
        let bytes = &mut tensors.get_mut(&format!("{DOWN}.weight")).unwrap().3;
        let huge = half::bf16::from_f32(1e6).to_le_bytes();
        bytes[(3 * 96 + 40) * 2..][..2].copy_from_slice(&huge);
    });
    let target = dir.path().with_file_name("out");
    let method = flute_burn::quantize::Method::Absmax {
        table: Table::nf(Bits::Four),
        group: Group::Size(32),
    };
    let error = dir.convert(&target, method).unwrap_err();
    assert!(error.hint().unwrap().contains("--scale-dtype"));
    assert_refused!(
        error,
        Error::ScaleOverflow { row: 3, group: 1, dtype: Dtype::F16, .. },
        "down_proj",
        "f16"
    );
    assert!(!target.exists());
}

#[test]
fn a_model_without_tokenizer_is_refused() {
    let dir = ModelDir::new();
    assert_refused!(
        Tokenizer::open(dir.path()).unwrap_err(),
        Error::TokenizerAbsent { .. },
        "tokenizer.json"
    );
}

#[test]
fn a_broken_tokenizer_is_refused() {
    let dir = ModelDir::new();
    for contents in ["", "{}", "[1]", "{\"model\": {\"type\": \"BPE\"}}"] {
        dir.write("tokenizer.json", contents.as_bytes());
        let error = Tokenizer::open(dir.path()).unwrap_err();
        assert!(std::error::Error::source(&error).is_some());
        assert_refused!(error, Error::Tokenizer { .. }, "failed to be read");
    }
}

#[test]
fn a_tokenizer_whose_template_names_an_undefined_token_is_refused() {
    let whole = std::fs::read("fixtures/tiny-llama/tokenizer.json").unwrap();
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    tokenizer["post_processor"]["special_tokens"] = serde_json::json!({});
    let error = Tokenizer::from_bytes(tokenizer.to_string().as_bytes()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("'<|begin_of_text|>'"), "{source}");
    assert_refused!(error, Error::Tokenizer { .. }, "failed to be read");
}

#[test]
fn a_model_without_chat_template_is_refused() {
    let dir = ModelDir::new();
    let error = ChatTemplate::open(dir.path()).unwrap_err();
    assert!(error.hint().unwrap().contains("base model"));
    assert_refused!(error, Error::TemplateAbsent { .. }, "chat_template.jinja");
}
