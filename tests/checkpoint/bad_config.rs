//! Directories and configurations that are refused.

use crate::assert_refused;
use crate::model_dir::ModelDir;
use flute_burn::checkpoint::Reader;
use flute_burn::error::Error;
use flute_cube::{Bits, Group};
use serde_json::json;

/// The refusal of a directory whose config.json has `field` set to `value`.
fn with(field: &str, value: serde_json::Value) -> Error {
    let dir = ModelDir::new();
    dir.edit_config(|config| config[field] = value);
    dir.refusal()
}

/// The same for a field of a quantized directory's `quantization_config`.
fn with_quantization(field: &str, value: serde_json::Value) -> Error {
    let dir = ModelDir::quantized(Bits::Four, Group::Size(32));
    dir.edit_config(|config| config["quantization_config"][field] = value);
    dir.refusal()
}

#[test]
fn a_file_in_place_of_a_directory_is_refused() {
    let file = ModelDir::new().path().join("model.safetensors");
    let error = Reader::open(&file).unwrap_err();
    assert!(error.hint().unwrap().contains("directory that holds the file"));
    assert_refused!(error, Error::NotADirectory { .. }, "model.safetensors");
}

#[test]
fn a_directory_without_configuration_is_refused() {
    let dir = ModelDir::new();
    dir.remove("config.json");
    assert_refused!(dir.refusal(), Error::FileAbsent { .. }, "config.json does not exist");
}

#[test]
fn a_configuration_that_is_not_json_is_refused() {
    let dir = ModelDir::new();
    dir.write("config.json", b"{\"hidden_size\": 64,");
    let error = dir.refusal();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("line 1 column"));
    assert_refused!(error, Error::Json { .. }, "config.json");
}

#[test]
fn a_field_of_the_wrong_type_is_refused_by_name() {
    assert_refused!(with("hidden_size", json!("big")), Error::Json { at, .. } if at == "hidden_size", "'hidden_size'");
    assert_refused!(with("hidden_size", json!(-64)), Error::Json { .. }, "'hidden_size'");
    let nested = with("rope_parameters", json!({"rope_type": "llama3", "factor": "eight"}));
    assert_refused!(nested, Error::Json { .. }, "'rope_parameters.factor'");
}

#[test]
fn a_missing_field_is_refused_by_name() {
    let dir = ModelDir::new();
    dir.edit_config(|config| drop(config.as_object_mut().unwrap().remove("vocab_size")));
    let error = dir.refusal();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("`vocab_size`"));
    assert_refused!(error, Error::Json { .. }, "config.json");
}

#[test]
fn a_configuration_of_a_megabyte_is_refused_unread() {
    let dir = ModelDir::new();
    dir.write("config.json", &vec![b' '; (1 << 20) + 1]);
    assert_refused!(dir.refusal(), Error::FileTooLarge { .. }, "1048577", "1048576");
}

#[test]
fn an_unknown_architecture_is_refused_by_name_before_its_fields() {
    let dir = ModelDir::new();
    dir.write("config.json", br#"{"architectures": ["GPT2LMHeadModel"], "n_embd": 768}"#);
    let error = dir.refusal();
    assert_refused!(
        error,
        Error::UnknownArchitecture { .. },
        "'GPT2LMHeadModel'",
        "LlamaForCausalLM"
    );
}

#[test]
fn a_configuration_without_architecture_is_refused() {
    let dir = ModelDir::new();
    dir.write("config.json", b"{}");
    assert_refused!(dir.refusal(), Error::UnknownArchitecture { .. }, "''", "known are");
}

#[test]
fn a_width_that_heads_do_not_divide_is_refused_with_both_numbers() {
    let error = with("num_attention_heads", json!(6));
    assert_refused!(
        error,
        Error::ConfigIndivisible { value: 64, by: 6, .. },
        "hidden_size is 64",
        "= 6"
    );
}

#[test]
fn heads_that_key_value_heads_do_not_divide_are_refused_with_both_numbers() {
    let error = with("num_key_value_heads", json!(3));
    assert_refused!(
        error,
        Error::ConfigIndivisible { value: 4, by: 3, .. },
        "num_attention_heads is 4",
        "= 3"
    );
}

#[test]
fn a_head_that_cannot_be_rotated_is_refused() {
    assert_refused!(
        with("head_dim", json!(15)),
        Error::ConfigIndivisible { .. },
        "head_dim is 15",
        "2"
    );
}

#[test]
fn sizes_of_zero_and_beyond_reason_are_refused() {
    for field in [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    ] {
        assert_refused!(with(field, json!(0)), Error::ConfigRange { .. }, field, "is 0");
    }
    let error = with("intermediate_size", json!(u64::MAX));
    assert_refused!(
        error,
        Error::ConfigRange { .. },
        "intermediate_size",
        "18446744073709551615",
        "1048576"
    );
    assert_refused!(
        with("rms_norm_eps", json!(-1.0)),
        Error::ConfigRange { .. },
        "rms_norm_eps",
        "-1"
    );
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let yarn = with("rope_scaling", json!({"type": "yarn", "factor": 4.0}));
    assert_refused!(yarn, Error::ConfigUnsupported { .. }, "rope_type 'yarn'", "llama3");
    assert_refused!(
        with("hidden_act", json!("relu")),
        Error::ConfigUnsupported { .. },
        "'relu'",
        "silu"
    );
    assert_refused!(
        with("dtype", json!("float8")),
        Error::ConfigUnsupported { .. },
        "'float8'",
        "bfloat16"
    );
}

#[test]
fn a_rope_scaling_without_its_factors_is_refused() {
    let error = with("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}));
    assert_refused!(error, Error::ConfigRange { .. }, "low_freq_factor is absent");
    let error = with("rope_scaling", json!({"rope_type": "linear", "factor": 0.0}));
    assert_refused!(error, Error::ConfigRange { .. }, "factor is 0");
}

#[test]
fn other_quantization_methods_and_versions_are_refused_by_name() {
    let error = with_quantization("quant_method", json!("gptq"));
    assert_refused!(error, Error::ConfigUnsupported { .. }, "quant_method 'gptq'", "flute");
    let error = with_quantization("version", json!(2));
    assert_refused!(error, Error::ConfigUnsupported { .. }, "version '2'", "supported are 1");
    let error = with_quantization("hadamard_size", json!(96));
    assert_refused!(error, Error::ConfigRange { .. }, "hadamard_size is 96");
    let error = with_quantization("table", json!("nf5"));
    assert_refused!(error, Error::ConfigUnsupported { .. }, "'nf5", "nf-symmetric");
}

#[test]
fn bits_and_groups_that_no_kernel_serves_are_refused() {
    let error = with_quantization("bits", json!(5));
    assert_refused!(error, Error::ConfigRange { .. }, "bits is 5", "2, 3 or 4");
    let error = with_quantization("group_size", json!(48));
    assert_refused!(error, Error::ConfigRange { .. }, "group_size is 48", "256");
    let error = with_quantization("modules", json!({"x": {"bits": 1}}));
    assert_refused!(error, Error::ConfigRange { .. }, "bits is 1");
    let error = with_quantization("modules", json!({"x": {"bit": 4}}));
    assert_refused!(error, Error::Json { .. }, "'modules.x.bit'");
}

#[test]
fn codes_without_a_quantization_config_are_refused() {
    let dir = ModelDir::quantized(Bits::Four, Group::Size(32));
    dir.edit_config(|config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
    assert_refused!(
        dir.refusal(),
        Error::QuantizationAbsent { .. },
        "down_proj.codes",
        "quantization_config"
    );
}

#[test]
fn a_generation_config_of_the_wrong_type_is_refused_by_name() {
    let dir = ModelDir::new();
    dir.write("generation_config.json", br#"{"top_k": "forty"}"#);
    assert_refused!(dir.refusal(), Error::Json { at, .. } if at == "top_k", "generation_config.json");
}
