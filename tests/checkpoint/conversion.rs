//! From a dense directory to a quantized one and back into memory.

use crate::assert_refused;
use crate::model_dir::ModelDir;
use flute_burn::checkpoint::{
    ConvertOptions, Inspection, Reader, ScaleDtype, StoredWeight, convert, inspect, pattern,
};
use flute_burn::error::Error;
use flute_burn::quantize::{Method, quantize};
use flute_cube::{Bits, Dtype, Group, Quantized, Table, TableKind};
use std::path::Path;

fn nf(bits: Bits, group: Group) -> Method {
    Method::Absmax { table: Table::nf(bits), group }
}

fn quantized(reader: &Reader, module: &str) -> Quantized {
    match reader.linear(module).unwrap().weight {
        StoredWeight::Quantized(weight) => weight,
        StoredWeight::Dense { .. } => panic!("{module} is dense"),
    }
}

/// Asserts that `module` of `stored` holds what quantizing that of `dense` gives, scales rounded to `dtype`.
fn assert_round_trip(dense: &Reader, stored: &Reader, module: &str, method: &Method, dtype: Dtype) {
    let StoredWeight::Dense { n, k, data } = dense.linear(module).unwrap().weight else {
        panic!("{module} is quantized")
    };
    let expected = quantize(module, &data, n, k, method).unwrap();
    let found = quantized(stored, module);
    assert_eq!((found.n(), found.k(), found.format()), (n, k, method.format()), "{module}");
    assert_eq!(found.codes(), expected.codes(), "{module}");
    assert_eq!(found.table(), method.table(), "{module}");
    let scales: Vec<f32> = expected.scales().iter().map(|s| dtype.round(*s)).collect();
    assert_eq!(found.scales(), scales, "{module}");
}

fn linears(reader: &Reader) -> Vec<String> {
    let module = |name: &str| {
        name.contains("_proj").then(|| name.strip_suffix(".weight").map(str::to_owned))
    };
    reader.tensor_names().filter_map(module).flatten().collect()
}

#[test]
fn what_was_quantized_is_what_is_read() {
    let dense = ModelDir::new();
    let source = dense.open().unwrap();
    for bits in Bits::ALL {
        for group in [Group::Size(32), Group::Size(64), Group::Size(256), Group::Whole] {
            for table in
                [Table::int(bits), Table::fp(bits), Table::nf(bits), Table::nf_symmetric(bits)]
            {
                let target = dense.path().with_file_name("out");
                let method = Method::Absmax { table, group };
                dense.convert(&target, method.clone()).unwrap();
                let stored = Reader::open(&target).unwrap();
                for module in linears(&source) {
                    assert_round_trip(&source, &stored, &module, &method, Dtype::F16);
                }
                std::fs::remove_dir_all(target).unwrap();
            }
        }
    }
}

#[test]
fn everything_that_is_not_quantized_is_copied_bit_for_bit() {
    let dense = ModelDir::new();
    dense.write("tokenizer.json", b"not even a tokenizer");
    dense.write("chat_template.jinja", b"{{ messages }}\n");
    dense.write("LICENSE.txt", b"yours");
    dense.write("pytorch_model.bin", b"not this");
    let target = dense.path().with_file_name("out");
    let summary = dense.convert(&target, nf(Bits::Four, Group::Size(64))).unwrap();
    assert_eq!((summary.quantized, summary.copied), (14, 7));
    let (source, stored) = (dense.open().unwrap(), Reader::open(&target).unwrap());
    for name in ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"] {
        assert_eq!(stored.raw(name).unwrap(), source.raw(name).unwrap());
    }
    for name in ["tokenizer.json", "chat_template.jinja", "LICENSE.txt"] {
        let read = |dir: &Path| std::fs::read(dir.join(name)).unwrap();
        assert_eq!(read(&target), read(&dense.path()), "{name}");
    }
    assert!(!target.join("pytorch_model.bin").exists());
    assert!(!stored.contains("model.layers.0.mlp.up_proj.weight"));
    let mut config = stored.config_source().clone();
    let quantization = config.as_object_mut().unwrap().remove("quantization_config").unwrap();
    assert_eq!(&config, source.config_source());
    let expected = serde_json::json!({"quant_method": "flute", "version": 1, "bits": 4, "group_size": 64,
        "table": "nf", "scale_dtype": "float16", "modules_to_not_convert": ["lm_head"]});
    assert_eq!(quantization, expected);
}

#[test]
fn two_conversions_write_the_same_bytes() {
    let out = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| {
        let target = out.path().join(name);
        let method = nf(Bits::Three, Group::Size(128));
        convert(ConvertOptions::new("fixtures/tiny-llama", &target, method, &mut |_| ())).unwrap();
        target
    });
    let mut names: Vec<_> =
        std::fs::read_dir(&a).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    println!("{names:?}");
    assert_eq!(names.len(), std::fs::read_dir(&b).unwrap().count());
    for name in names {
        assert_eq!(
            std::fs::read(a.join(&name)).unwrap(),
            std::fs::read(b.join(&name)).unwrap(),
            "{name:?}"
        );
    }
}

#[test]
fn the_fixture_survives_conversion_and_inspection() {
    let out = tempfile::tempdir().unwrap();
    let target = out.path().join("tiny-llama-nf4");
    let (mut tensors, method) = (vec![], nf(Bits::Four, Group::Size(64)));
    let progress = &mut |p: flute_burn::checkpoint::Progress<'_>| {
        assert!(p.bytes <= p.bytes_total && p.tensors <= p.tensors_total);
        tensors.push((p.tensor.to_owned(), p.bytes == p.bytes_total));
    };
    let summary =
        convert(ConvertOptions::new("fixtures/tiny-llama", &target, method.clone(), progress))
            .unwrap();
    assert_eq!((summary.quantized, tensors.len()), (42, 57));
    assert!(tensors.last().unwrap().1, "progress ends at 100 %");
    assert!((4.25..4.27).contains(&summary.bits_per_weight), "{}", summary.bits_per_weight);
    for class in &summary.classes {
        // Gaussian weights would lose 0.00845.
        assert!((0.005..0.012).contains(&class.relative_error()), "{class:?}");
    }
    let (source, stored) =
        (Reader::open("fixtures/tiny-llama").unwrap(), Reader::open(&target).unwrap());
    for module in linears(&source) {
        assert_round_trip(&source, &stored, &module, &method, Dtype::F16);
    }
    let found: Inspection = inspect(&target, true).unwrap();
    assert_eq!((found.linears.len(), found.files, found.verified), (42, 1, true));
    assert_eq!(found.bytes, summary.bytes_after);
    assert_eq!(found.parameters, inspect(source.dir(), true).unwrap().parameters);
    let linear = &found.linears[0];
    assert_eq!((linear.bits, linear.group, linear.table, linear.p), (4, Group::Size(64), "nf", 1));
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["linears"][0]["group"], 64);
    assert_eq!(json["linears"][0]["scales"], "f16");
    let card = std::fs::read_to_string(target.join("README.md")).unwrap();
    assert!(card.starts_with("---\n") && card.contains("base_model: \"tiny-llama\"\n"), "{card}");
}

#[test]
fn a_ragged_input_width_is_read_as_it_was_written() {
    let dense = ModelDir::new();
    let module = "model.layers.0.mlp.down_proj";
    for (bits, k) in
        [(Bits::Three, 95), (Bits::Four, 95), (Bits::Two, 93), (Bits::Three, 1), (Bits::Two, 4)]
    {
        dense.edit_tensors(|tensors| {
            let name = format!("{module}.weight");
            let weight: Vec<u8> =
                (0..64 * k).flat_map(|i| (((i * 37) % 101) as f32 - 50.0).to_le_bytes()).collect();
            tensors.insert(name.clone(), (name, "F32", vec![64, k], weight));
        });
        let target = dense.path().with_file_name("out");
        dense.convert(&target, nf(bits, Group::Size(32))).unwrap();
        let (source, stored) = (dense.open().unwrap(), Reader::open(&target).unwrap());
        assert_round_trip(&source, &stored, module, &nf(bits, Group::Size(32)), Dtype::F16);
        inspect(&target, true).unwrap();
        std::fs::remove_dir_all(target).unwrap();
    }
}

#[test]
fn layers_may_differ_in_bits_and_stay_dense() {
    let dense = ModelDir::new();
    let target = dense.path().with_file_name("out");
    let progress = &mut |_: flute_burn::checkpoint::Progress<'_>| ();
    let custom = Table::custom(Bits::Two, &[0.9, -0.9, 0.2, -0.2]).unwrap();
    let down = Method::Absmax { table: custom, group: Group::Whole };
    let mut options =
        ConvertOptions::new(dense.path(), &target, nf(Bits::Four, Group::Size(64)), progress);
    options.skip = vec!["layers.1.self_attn".into(), "model.*.0.*.gate_proj".into()];
    options.overrides = vec![("down_proj".into(), down.clone())];
    options.scale_dtype = ScaleDtype::Model;
    convert(options).unwrap();
    let (source, stored) = (dense.open().unwrap(), Reader::open(&target).unwrap());
    for module in linears(&source) {
        let skipped =
            module.contains("layers.1.self_attn") || module == "model.layers.0.mlp.gate_proj";
        assert_eq!(stored.contains(&format!("{module}.weight")), skipped, "{module}");
        if !skipped {
            let method = if module.ends_with("down_proj") {
                down.clone()
            } else {
                nf(Bits::Four, Group::Size(64))
            };
            assert_round_trip(&source, &stored, &module, &method, Dtype::BF16);
        }
    }
    let config = stored.config().quantization.as_ref().unwrap();
    assert_eq!((config.scale_dtype, config.modules.len()), (Dtype::BF16, 2));
    let own = config.scheme_of("model.layers.1.mlp.down_proj");
    assert_eq!((own.bits, own.group, own.table), (Bits::Two, Group::Whole, TableKind::Custom));
    assert_eq!(
        config.modules_to_not_convert,
        ["lm_head", "layers.1.self_attn", "model.*.0.*.gate_proj"]
    );
}

#[test]
fn a_weight_that_is_not_finite_is_refused_and_nothing_is_left() {
    let dense = ModelDir::new();
    dense.edit_tensors(|tensors| {
        let bytes = &mut tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap().3;
        bytes[(63 * 96 + 95) * 2..].copy_from_slice(&[0xc0, 0x7f]);
    });
    let target = dense.path().with_file_name("out");
    let error = dense.convert(&target, nf(Bits::Four, Group::Size(64))).unwrap_err();
    assert_refused!(
        error,
        Error::NotFinite { row: 63, col: 95, .. },
        "down_proj.weight[63, 95] is NaN"
    );
    let left: Vec<_> = std::fs::read_dir(target.parent().unwrap()).unwrap().collect();
    assert_eq!(left.len(), 1, "only the source: {left:?}");
}

#[test]
fn a_quantized_source_is_refused() {
    let dir = ModelDir::quantized(Bits::Three, Group::Size(32));
    let error = dir
        .convert(&dir.path().with_file_name("out"), nf(Bits::Four, Group::Size(64)))
        .unwrap_err();
    assert_refused!(error, Error::AlreadyQuantized { bits: 3, .. }, "quantized already");
}

#[test]
fn a_skip_pattern_that_matches_nothing_is_refused() {
    let dense = ModelDir::new();
    let progress = &mut |_: flute_burn::checkpoint::Progress<'_>| ();
    let target = dense.path().with_file_name("out");
    for pattern in ["donw_proj", "layers.10", "proj", "", "*.q_proj.*"] {
        let mut options =
            ConvertOptions::new(dense.path(), &target, nf(Bits::Four, Group::Size(64)), progress);
        options.skip = vec![pattern.into()];
        assert_refused!(
            convert(options).unwrap_err(),
            Error::PatternUnmatched { modules: 14, .. },
            pattern
        );
    }
}

#[test]
fn skipping_everything_is_refused() {
    let dense = ModelDir::new();
    let target = dense.path().with_file_name("out");
    let progress = &mut |_: flute_burn::checkpoint::Progress<'_>| ();
    let mut options =
        ConvertOptions::new(dense.path(), target, nf(Bits::Four, Group::Size(64)), progress);
    options.skip = vec!["model".into()];
    assert_refused!(convert(options).unwrap_err(), Error::NothingToQuantize { .. }, "not skipped");
}

#[test]
fn a_pattern_names_whole_components_of_a_module() {
    let module = "model.layers.10.self_attn.q_proj";
    for pattern in [
        module,
        "q_proj",
        "layers.10",
        "model.layers",
        "self_attn.q_proj",
        "*",
        "*q_proj",
        "model.*",
        "model.layers.*.self_attn.*",
        "*.1*.*",
    ] {
        assert!(pattern::matches(pattern, module), "{pattern}");
    }
    for pattern in ["layers.1", "proj", "model.", "", "*.k_proj", "layers.*", "*q_proj*q_proj"] {
        assert!(!pattern::matches(pattern, module), "{pattern}");
    }
}
