//! Weight files that are refused before any tensor is read.

use crate::assert_refused;
use crate::model_dir::ModelDir;
use flute_burn::checkpoint::{MAX_HEADER, MAX_TENSORS};
use flute_burn::error::Error;
use serde_json::json;

/// The refusal of weights with this header and `data` bytes.
fn header(json: &str, data: usize) -> Error {
    let dir = ModelDir::new();
    dir.header(json, data);
    dir.refusal()
}

/// The refusal of shards with this index.
fn index(map: serde_json::Value) -> Error {
    let dir = ModelDir::new();
    std::fs::rename(dir.path().join("model.safetensors"), dir.path().join("a.safetensors"))
        .unwrap();
    let index = json!({ "weight_map": map }).to_string();
    dir.write("model.safetensors.index.json", index.as_bytes());
    dir.refusal()
}

#[test]
fn pickles_are_refused_with_a_hint() {
    let dir = ModelDir::new();
    dir.remove("model.safetensors");
    dir.write("pytorch_model.bin", b"PK");
    let error = dir.refusal();
    assert!(error.hint().unwrap().contains("safetensors"));
    assert_refused!(error, Error::Pickle { .. }, "pytorch_model.bin");
}

#[test]
fn a_directory_without_weights_is_refused() {
    let dir = ModelDir::new();
    dir.remove("model.safetensors");
    assert_refused!(dir.refusal(), Error::WeightsAbsent { .. }, "neither model.safetensors nor");
}

#[test]
fn a_truncated_header_is_refused_with_both_numbers() {
    let dir = ModelDir::new();
    dir.write("model.safetensors", &[1, 0, 0]);
    assert_refused!(dir.refusal(), Error::HeaderTruncated { found: 3, needed: 8, .. }, "8", "3");
    dir.write("model.safetensors", &[100, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']);
    assert_refused!(
        dir.refusal(),
        Error::HeaderTruncated { found: 10, needed: 108, .. },
        "108",
        "10"
    );
}

#[test]
fn an_oversized_header_is_refused_before_it_is_allocated() {
    let dir = ModelDir::new();
    for size in [MAX_HEADER + 1, u64::MAX] {
        dir.write("model.safetensors", &size.to_le_bytes());
        let words = size.to_string();
        assert_refused!(dir.refusal(), Error::HeaderTooLarge { .. }, words.as_str(), "16777216");
    }
}

#[test]
fn a_header_that_is_not_json_is_refused() {
    for json in ["{", "[]", "{\"w\": 1}", "{\"w\": {\"dtype\": \"F32\"}}", ""] {
        assert_refused!(header(json, 0), Error::HeaderJson { .. }, "header is not the JSON");
    }
    let dir = ModelDir::new();
    let mut file = 4u64.to_le_bytes().to_vec();
    file.extend_from_slice(b"{\"\xff\"");
    dir.write("model.safetensors", &file);
    assert_refused!(dir.refusal(), Error::HeaderJson { .. }, "header is not the JSON");
}

#[test]
fn a_header_of_endless_nesting_is_refused() {
    let json = format!("{{\"__metadata__\": {}", "[".repeat(100_000));
    assert_refused!(header(&json, 0), Error::HeaderJson { .. }, "model.safetensors");
}

#[test]
fn an_unknown_dtype_is_refused_by_name() {
    let error = header(r#"{"w": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}"#, 8);
    assert_refused!(error, Error::UnknownDtype { .. }, "tensor w", "'F33'");
}

#[test]
fn too_many_dimensions_are_refused() {
    let error =
        header(r#"{"w": {"dtype": "U8", "shape": [1,1,1,1,8], "data_offsets": [0, 8]}}"#, 8);
    assert_refused!(error, Error::RankTooHigh { found: 5, limit: 4, .. }, "tensor w", "5", "4");
}

#[test]
fn a_shape_whose_product_overflows_is_refused() {
    let json =
        r#"{"w": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}}"#;
    assert_refused!(header(json, 8), Error::ShapeOverflow { .. }, "tensor w", "4294967296");
}

#[test]
fn a_tensor_that_ends_before_it_begins_is_refused() {
    let error = header(r#"{"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#, 8);
    assert_refused!(
        error,
        Error::OffsetsReversed { begin: 8, end: 0, .. },
        "begins at byte 8",
        "0"
    );
}

#[test]
fn a_tensor_that_spans_other_bytes_than_its_shape_needs_is_refused() {
    let error = header(r#"{"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}"#, 8);
    assert_refused!(error, Error::TensorBytes { found: 8, needed: 12, .. }, "spans 8", "need 12");
    let error = header(r#"{"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}"#, 2);
    assert_refused!(error, Error::TensorBytes { .. }, "tensor w");
}

#[test]
fn a_tensor_beyond_the_end_of_its_file_is_refused() {
    let error = header(r#"{"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}"#, 8);
    assert_refused!(
        error,
        Error::OutOfFile { end: 16, len: 8, .. },
        "ends at data byte 16",
        "holds 8"
    );
    let json = r#"{"w": {"dtype": "U8", "shape": [18446744073709551615], "data_offsets": [0, 18446744073709551615]}}"#;
    assert_refused!(header(json, 8), Error::ShapeOverflow { .. }, "tensor w");
}

#[test]
fn overlapping_tensors_are_refused_by_both_names() {
    let json = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                   "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}"#;
    assert_refused!(
        header(json, 12),
        Error::TensorOverlap { begin: 4, end: 8, .. },
        "tensor b",
        "inside a"
    );
}

#[test]
fn bytes_that_belong_to_no_tensor_are_refused() {
    let json = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                   "b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}}"#;
    assert_refused!(header(json, 20), Error::TensorGap { begin: 8, end: 12, .. }, "bytes 8..12");
    let json = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#;
    assert_refused!(header(json, 9), Error::TensorGap { begin: 8, end: 9, .. }, "bytes 8..9");
}

#[test]
fn one_name_for_two_tensors_is_refused() {
    let json = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                   "a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}"#;
    assert_refused!(header(json, 16), Error::DuplicateTensor { .. }, "tensor a appears twice");
}

#[test]
fn more_tensors_than_any_model_has_are_refused() {
    let entry = |i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let entries: Vec<String> = (0..=MAX_TENSORS).map(entry).collect();
    let error = header(&format!("{{{}}}", entries.join(",")), 0);
    assert_refused!(error, Error::TooManyTensors { .. }, "100001 tensors", "100000");
}

#[test]
fn an_index_whose_path_leaves_the_directory_is_refused() {
    for file in [
        "../a.safetensors",
        "/etc/a.safetensors",
        "sub/a.safetensors",
        "..\\a.safetensors",
        "c:a.safetensors",
        "",
        "..",
        "a.bin",
    ] {
        let error = index(json!({"lm_head.weight": file}));
        assert_refused!(error, Error::PathEscapes { .. }, file, "index.json");
    }
}

#[test]
fn a_missing_shard_is_refused_by_name() {
    let error =
        index(json!({"lm_head.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}));
    assert_refused!(error, Error::ShardAbsent { .. }, "b.safetensors", "does not exist");
}

#[test]
fn an_index_that_names_an_absent_tensor_is_refused() {
    let error = index(json!({"lm_head.weight": "a.safetensors", "lm_head.scale": "a.safetensors"}));
    assert_refused!(error, Error::IndexMismatch { .. }, "a.safetensors", "lm_head.scale");
}

#[test]
fn an_index_that_is_not_one_is_refused() {
    assert_refused!(index(json!(["a.safetensors"])), Error::Json { .. }, "'weight_map'");
}
