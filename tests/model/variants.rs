//! Every variant of the architecture, in small models of random weights, against the model in double precision.

use crate::{load, oracle};
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::path::Path;

const SEED: u64 = 20;

/// Two blocks of 48 features; `config` adds to the fields that all variants share, and may replace them.
fn write(dir: &Path, mut config: Value, shards: usize) -> Result<()> {
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
    for layer in 0..2 {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            shapes.push((name(&format!("{norm}.weight")), vec![48]));
        }
        for (part, shape, bias) in [
            ("self_attn.q_proj", [q, 48], "attention_bias"),
            ("self_attn.k_proj", [kv, 48], "attention_bias"),
            ("self_attn.v_proj", [kv, 48], "attention_bias"),
            ("self_attn.o_proj", [48, q], "attention_bias"),
            ("mlp.gate_proj", [80, 48], "mlp_bias"),
            ("mlp.up_proj", [80, 48], "mlp_bias"),
            ("mlp.down_proj", [48, 80], "mlp_bias"),
        ] {
            shapes.push((name(&format!("{part}.weight")), shape.to_vec()));
            if config[bias] == true {
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

fn check(config: Value, shards: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    write(dir.path(), config, shards)?;
    let ids: Vec<u32> = (0..40).map(|i| (i * 17 + 3) % 50).collect();
    let model = load(dir.path(), Device::flex(), DType::F32)?;
    let mut cache = model.new_cache(1, ids.len())?;
    let found = model.forward(model.tokens(&ids, 1)?, &mut cache)?.try_into_vec_as::<f32>()?;
    let expected = oracle::logits(dir.path(), &ids)?.concat();
    let errors = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
    let worst = errors.fold(0.0, f64::max);
    println!("seed {SEED}: worst logit off by {worst:.2e}");
    ensure!(found.len() == expected.len() && worst <= 1e-4, "{worst}");
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
