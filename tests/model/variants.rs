//! Every architecture and its variants, in small models of random weights, against the model in double precision.

use crate::{load, oracle};
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{self, ConvertOptions, Reader, StoredLinear, StoredWeight};
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Table};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::path::Path;

const SEED: u64 = 20;

/// Two blocks of 48 features; `config` adds to the fields that all variants share, and may replace them.
pub(crate) fn write(dir: &Path, mut config: Value, shards: usize) -> Result<()> {
    let shared = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": 50, "hidden_size": 48,
        "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    });
    for (name, value) in shared.as_object().into_iter().flatten() {
        if config.get(name).is_none() {
            config[name] = value.clone();
        }
    }
    std::fs::write(dir.join("config.json"), config.to_string())?;

    let number = |name: &str, default: usize| config[name].as_u64().map_or(default, |v| v as usize);
    let (heads, dim) = (number("num_attention_heads", 4), number("head_dim", 12));
    let (q, kv) = (heads * dim, number("num_key_value_heads", heads) * dim);
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![50, 48])];
    shapes.push(("model.norm.weight".into(), vec![48]));
    if config["tie_word_embeddings"] != true {
        shapes.push(("lm_head.weight".into(), vec![50, 48]));
    }
    let family = config["architectures"][0].clone();
    let mut norms = vec![("input_layernorm", 48), ("post_attention_layernorm", 48)];
    if family == "Gemma2ForCausalLM" {
        norms.extend([("pre_feedforward_layernorm", 48), ("post_feedforward_layernorm", 48)]);
    }
    if family == "Qwen3ForCausalLM" {
        norms.extend([("self_attn.q_norm", dim), ("self_attn.k_norm", dim)]);
    }
    let [attention, mlp] = ["attention_bias", "mlp_bias"].map(|bias| config[bias] == true);
    let inputs = attention || family == "Qwen2ForCausalLM";
    for layer in 0..2 {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for (norm, len) in &norms {
            shapes.push((name(&format!("{norm}.weight")), vec![*len]));
        }
        for (part, shape, bias) in [
            ("self_attn.q_proj", [q, 48], inputs),
            ("self_attn.k_proj", [kv, 48], inputs),
            ("self_attn.v_proj", [kv, 48], inputs),
            ("self_attn.o_proj", [48, q], attention),
            ("mlp.gate_proj", [80, 48], mlp),
            ("mlp.up_proj", [80, 48], mlp),
            ("mlp.down_proj", [48, 80], mlp),
        ] {
            shapes.push((name(&format!("{part}.weight")), shape.to_vec()));
            if bias {
                shapes.push((name(&format!("{part}.bias")), vec![shape[0]]));
            }
        }
    }
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let len = shape.iter().product::<usize>();
            let values = (0..len).flat_map(|_| rng.random_range(-0.4f32..0.4).to_le_bytes());
            let values = values.collect();
            (name, shape, values)
        })
        .collect();
    let mut index = serde_json::Map::new();
    for (shard, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let file = match shards {
            1 => "model.safetensors".into(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        let mut views = Vec::new();
        for (name, shape, bytes) in part {
            index.insert(name.clone(), file.clone().into());
            views.push((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
        }
        safetensors::serialize_to_file(views, None, &dir.join(file))?;
    }
    if shards > 1 {
        let index = json!({"metadata": {}, "weight_map": index});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string())?;
    }
    Ok(())
}

/// Forty tokens of a vocabulary of fifty.
pub(crate) fn ids() -> Vec<u32> {
    (0..40).map(|i| (i * 17 + 3) % 50).collect()
}

pub(crate) fn check(config: Value, shards: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    write(dir.path(), config, shards)?;
    let ids = ids();
    let model = load(dir.path(), Device::flex(), DType::F32)?;
    let mut cache = model.new_cache(1, ids.len())?;
    let found = model.forward(model.tokens(&ids, 1)?, &mut cache)?.try_into_vec_as::<f32>()?;
    let expected = oracle::logits(dir.path(), &ids)?.concat();
    let errors = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
    let worst = errors.fold(0.0, f64::max);
    println!("seed {SEED}: worst logit off by {worst:.2e}");
    ensure!(found.len() == expected.len() && worst <= 1e-4, "{worst}");

    // The same through a cache: a piece that fills no window, single tokens, a piece beyond any window.
    let mut cache = model.new_cache(1, ids.len())?;
    let mut steps = Vec::new();
    let pieces = [&ids[..3], &ids[3..20]].into_iter().chain(ids[20..35].chunks(1));
    for piece in pieces.chain([&ids[35..]]) {
        let logits = model.forward(model.tokens(piece, 1)?, &mut cache)?;
        steps.extend(logits.try_into_vec_as::<f32>()?);
    }
    let worst = steps.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("in pieces: worst logit off by {worst:.2e}");
    ensure!(steps.len() == found.len() && worst <= 1e-4, "{worst}");
    Ok(())
}

#[test]
fn llama_1_with_as_many_key_heads_as_query_heads_and_no_rope_fields() -> Result<()> {
    check(json!({"torch_dtype": "float16", "rope_scaling": null}), 1)
}

#[test]
fn biases_tied_embeddings_one_key_head_and_heads_wider_than_the_stream() -> Result<()> {
    let config = json!({
        "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true,
        "num_key_value_heads": 1, "head_dim": 32,
    });
    check(config, 1)
}

#[test]
fn linear_rope_scaling_as_transformers_4_writes_it() -> Result<()> {
    let config = json!({
        "num_key_value_heads": 2, "rope_theta": 1000.0,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    });
    check(config, 1)
}

#[test]
fn llama_3_rope_scaling_in_both_generations_of_the_file_and_in_shards() -> Result<()> {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    });
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500.0);
    check(json!({"num_key_value_heads": 2, "rope_parameters": parameters}), 3)?;
    check(json!({"num_key_value_heads": 2, "rope_theta": 500.0, "rope_scaling": scaling}), 2)
}

#[test]
fn mistral_whose_layers_all_slide_and_without_a_window() -> Result<()> {
    let config = |window: Option<usize>| {
        json!({
            "architectures": ["MistralForCausalLM"], "num_key_value_heads": 2, "head_dim": 16,
            "sliding_window": window,
        })
    };
    check(config(Some(4)), 1)?;
    check(config(None), 1)
}

#[test]
fn qwen_2_has_biases_on_queries_keys_and_values_that_no_field_names() -> Result<()> {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 4,
        "use_sliding_window": false, "max_window_layers": 0, "tie_word_embeddings": true,
    });
    check(config, 1)
}

#[test]
fn qwen_2_slides_from_the_layer_on_that_it_names() -> Result<()> {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 4,
        "use_sliding_window": true, "max_window_layers": 1,
    });
    check(config, 1)
}

#[test]
fn qwen_3_normalizes_the_heads_of_queries_and_keys() -> Result<()> {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2, "head_dim": 32,
        "attention_bias": false, "rope_theta": 1e6, "sliding_window": null,
        "use_sliding_window": false,
    });
    check(config, 1)
}

#[test]
fn quantized_layers_keep_the_biases_that_qwen_2_gives_them() -> Result<()> {
    let (dir, scratch) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let config = json!({"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2});
    write(dir.path(), config, 1)?;
    let target = scratch.path().join("model");
    let method = Method::Absmax { table: Table::nf(Bits::Four), group: Group::new(32)? };
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    checkpoint::convert(ConvertOptions::new(dir.path(), &target, method, &mut quiet))?;

    let (source, stored) = (Reader::open(dir.path())?, Reader::open(&target)?);
    let logits = |dir: &Path| -> Result<Vec<f32>> {
        let model = load(dir, Device::flex(), DType::F32)?;
        let mut cache = model.new_cache(1, 40)?;
        Ok(model.forward(model.tokens(&ids(), 1)?, &mut cache)?.try_into_vec_as::<f32>()?)
    };
    // What the codes say, as the dense model of the oracle.
    let dense = scratch.path().join("dense");
    std::fs::create_dir(&dense)?;
    std::fs::copy(dir.path().join("config.json"), dense.join("config.json"))?;
    let mut tensors = Vec::new();
    for (name, info) in source.tensors() {
        let module =
            name.strip_suffix(".weight").filter(|m| stored.contains(&format!("{m}.codes")));
        let values = match module.map(|module| stored.linear(module)).transpose()? {
            Some(StoredLinear { weight: StoredWeight::Quantized(weight), .. }) => {
                weight.dequantize()
            }
            _ => stored.tensor(name)?.data,
        };
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        tensors.push((name.to_owned(), info.shape.clone(), bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        Ok((name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes)?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &dense.join("model.safetensors"))?;

    let (found, expected) = (logits(&target)?, oracle::logits(&dense, &ids())?.concat());
    let errors = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
    let worst = errors.fold(0.0, f64::max);
    println!("seed {SEED}: worst logit off by {worst:.2e}");
    ensure!(found.len() == expected.len() && worst <= 1e-4, "{worst}");
    Ok(())
}

#[test]
fn a_qwen_2_without_its_biases_is_refused_by_the_tensor_s_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    write(dir.path(), json!({"num_key_value_heads": 2}), 1)?;
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path)?.replace("LlamaForCausalLM", "Qwen2ForCausalLM");
    std::fs::write(&path, text)?;
    let error = load(dir.path(), Device::flex(), DType::F32).expect_err("biases are missing");
    ensure!(error.to_string().contains("model.layers.0.self_attn.q_proj.bias"), "{error}");
    Ok(())
}
