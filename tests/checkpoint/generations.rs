//! Both generations of `config.json`, and every LLaMA.

use crate::model_dir::ModelDir;
use flute_burn::checkpoint::{Activation, Architecture, ModelConfig, Reader, Rope, RopeScaling};
use flute_cube::Dtype;
use serde_json::{Value, json};
use std::path::Path;

fn parse(config: &Value) -> ModelConfig {
    ModelConfig::parse(config, Path::new("config.json")).unwrap()
}

/// Llama 3.1 8B as transformers 4 writes it.
fn llama_3_1() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
        "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
        "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
        "use_cache": true, "vocab_size": 128256
    })
}

#[test]
fn both_generations_of_one_model_are_the_same() {
    let fourth = llama_3_1();
    let mut fifth = fourth.clone();
    let object = fifth.as_object_mut().unwrap();
    let mut rope = object.remove("rope_scaling").unwrap();
    rope["rope_theta"] = object.remove("rope_theta").unwrap();
    object.insert("rope_parameters".into(), rope);
    let dtype = object.remove("torch_dtype").unwrap();
    object.insert("dtype".into(), dtype);
    assert_eq!(parse(&fourth), parse(&fifth));

    let config = parse(&fourth);
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.head_dim, config.num_key_value_heads), (128, 8));
    assert_eq!(config.eos_token_ids, [128_001, 128_008, 128_009]);
    assert_eq!((config.dtype, config.activation), (Some(Dtype::BF16), Activation::Silu));
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(config.rope, Rope { theta: 500_000.0, scaling });
}

#[test]
fn llama_1_and_2_have_their_defaults() {
    // The first conversions: another spelling, no key-value heads, no RoPE fields, -1 for no padding.
    let config = parse(&json!({
        "architectures": ["LLaMAForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
        "num_attention_heads": 32, "num_hidden_layers": 32, "vocab_size": 32000, "bos_token_id": 0,
        "eos_token_id": 1, "pad_token_id": -1, "rms_norm_eps": 1e-06, "max_sequence_length": 2048,
        "hidden_act": "silu", "torch_dtype": "float16"
    }));
    assert_eq!((config.num_key_value_heads, config.max_position_embeddings), (32, 2048));
    assert_eq!(config.rope, Rope { theta: 10_000.0, scaling: RopeScaling::None });
    assert_eq!((config.eos_token_ids, config.bos_token_id), (vec![1], Some(0)));
    assert!(!config.tie_word_embeddings && !config.attention_bias && !config.mlp_bias);

    let config = parse(&json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
        "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8, "vocab_size": 32000,
        "rope_scaling": null, "max_position_embeddings": 4096, "eos_token_id": 2
    }));
    assert_eq!((config.head_dim, config.rope.scaling), (128, RopeScaling::None));
}

#[test]
fn tied_embeddings_biases_and_a_head_of_its_own_are_read() {
    let mut config = llama_3_1();
    for (field, value) in [
        ("tie_word_embeddings", json!(true)),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("head_dim", json!(64)),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
    ] {
        config[field] = value;
    }
    let config = parse(&config);
    assert!(config.tie_word_embeddings && config.attention_bias && config.mlp_bias);
    assert_eq!((config.head_dim, config.rope.scaling), (64, RopeScaling::Linear { factor: 2.0 }));
}

#[test]
fn the_fixtures_are_what_they_are() {
    let reader = Reader::open("fixtures/tiny-llama").unwrap();
    let config = reader.config();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.hidden_size, config.head_dim, config.vocab_size), (256, 64, 2048));
    assert!(matches!(config.rope.scaling, RopeScaling::Llama3 { factor: 8.0, .. }));
    assert_eq!(reader.stop_token_ids(), [1]);
    let embedding = reader.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!((embedding.shape, embedding.data.len()), (vec![2048, 256], 2048 * 256));

    let reader = Reader::open("fixtures/tiny-gemma2").unwrap();
    let gemma = reader.config();
    assert_eq!(gemma.architecture, Architecture::Gemma2);
    assert_eq!(gemma.sliding, [true, false, true, false, true, false]);
    assert_eq!((gemma.sliding_window, gemma.query_pre_attn_scalar), (Some(256), 64.0));
    assert_eq!(
        (gemma.attn_logit_softcapping, gemma.final_logit_softcapping),
        (Some(50.0), Some(30.0))
    );
    assert_eq!(reader.config().activation, Activation::GeluTanh);
    assert!(reader.config().tie_word_embeddings);
}

#[test]
fn stop_tokens_are_those_of_the_generation_config_when_it_names_any() {
    let dir = ModelDir::new();
    assert_eq!(dir.open().unwrap().stop_token_ids(), [1]);
    dir.write(
        "generation_config.json",
        br#"{"eos_token_id": [7, 8], "temperature": 0.6, "top_p": 0.9}"#,
    );
    let reader = dir.open().unwrap();
    assert_eq!(reader.stop_token_ids(), [7, 8]);
    assert_eq!((reader.generation().temperature, reader.generation().top_k), (Some(0.6), None));
    dir.write("generation_config.json", br#"{"eos_token_id": null}"#);
    assert_eq!(dir.open().unwrap().stop_token_ids(), [1]);
}

#[test]
fn float_types_are_widened_exactly() {
    let dir = ModelDir::new();
    let values = [1.0f32, -0.333_251_95, 6.1e-5, -0.0, 65504.0, 0.099_975_586];
    let halves: Vec<half::f16> = values.iter().map(|v| half::f16::from_f32(*v)).collect();
    let brains: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
    dir.edit_tensors(|tensors| {
        let f32s = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16s = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
        let bf16s = brains.iter().flat_map(|v| v.to_le_bytes()).collect();
        // An odd byte in front leaves the others unaligned in the file.
        tensors.insert("a".into(), ("a".into(), "U8", vec![1], vec![0]));
        tensors.insert("b".into(), ("b".into(), "F32", vec![6], f32s));
        tensors.insert("c".into(), ("c".into(), "F16", vec![2, 3], f16s));
        tensors.insert("d".into(), ("d".into(), "BF16", vec![3, 1, 2], bf16s));
    });
    let reader = dir.open().unwrap();
    assert_eq!(reader.tensor("b").unwrap().data, values);
    let widened: Vec<f32> = halves.iter().map(|v| v.to_f32()).collect();
    assert_eq!(reader.tensor("c").unwrap().data, widened);
    let widened: Vec<f32> = brains.iter().map(|v| v.to_f32()).collect();
    assert_eq!(reader.tensor("d").unwrap().data, widened);
}
