//! Configurations of the families beside LLaMA, as their authors published them.

use crate::assert_refused;
use flute_burn::checkpoint::{Activation, Architecture, ModelConfig};
use flute_burn::error::Error;
use serde_json::{Value, json};
use std::path::Path;

fn parse(config: &Value) -> ModelConfig {
    ModelConfig::parse(config, Path::new("config.json")).unwrap()
}

fn refusal(config: &Value) -> Error {
    ModelConfig::parse(config, Path::new("config.json")).unwrap_err()
}

/// Gemma-2 9B as transformers 4 writes it.
fn gemma_2_9b() -> Value {
    json!({
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": 50.0,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1, "final_logit_softcapping": 30.0,
        "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 3584, "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "gemma2",
        "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8, "pad_token_id": 0,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "sliding_window_size": 4096, "torch_dtype": "float32", "vocab_size": 256000
    })
}

/// Qwen-2.5 7B Instruct.
fn qwen_2_5_7b() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu",
        "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
        "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 152064
    })
}

#[test]
fn gemma_2_slides_on_even_layers_and_ties_its_embedding_where_nothing_is_said() {
    let config = parse(&gemma_2_9b());
    assert_eq!(config.architecture, Architecture::Gemma2);
    assert_eq!((config.sliding_window, config.query_pre_attn_scalar), (Some(4096), 256.0));
    assert!(config.sliding.iter().enumerate().all(|(layer, slides)| *slides == (layer % 2 == 0)));
    assert_eq!((config.sliding.len(), config.tie_word_embeddings), (42, true));
    assert_eq!((config.activation, config.rope.theta), (Activation::GeluTanh, 10_000.0));

    // 27B scales its queries by something else than the width of a head.
    let mut config = gemma_2_9b();
    for (field, value) in [
        ("hidden_size", 4608),
        ("num_attention_heads", 32),
        ("num_key_value_heads", 16),
        ("head_dim", 128),
        ("query_pre_attn_scalar", 144),
    ] {
        config[field] = json!(value);
    }
    let config = parse(&config);
    assert_eq!((config.query_pre_attn_scalar, config.head_dim), (144.0, 128));
}

#[test]
fn a_cap_that_is_absent_is_gemma_2_s_own_and_one_that_is_null_is_off() {
    let caps = |config: &Value| {
        let config = parse(config);
        (config.attn_logit_softcapping, config.final_logit_softcapping)
    };
    let mut config = gemma_2_9b();
    for field in ["attn_logit_softcapping", "final_logit_softcapping"] {
        config.as_object_mut().unwrap().remove(field);
    }
    assert_eq!(caps(&config), (Some(50.0), Some(30.0)));
    config["attn_logit_softcapping"] = Value::Null;
    assert_eq!(caps(&config), (None, Some(30.0)));
    config["final_logit_softcapping"] = json!(0.0);
    assert_refused!(
        refusal(&config),
        Error::ConfigRange { .. },
        "final_logit_softcapping",
        "greater than 0"
    );
}

#[test]
fn qwen_2_has_biases_on_q_k_and_v_and_slides_only_where_it_says_so() {
    let config = parse(&qwen_2_5_7b());
    assert_eq!((config.architecture, config.head_dim), (Architecture::Qwen2, 128));
    assert!(config.attention_bias && !config.attention_output_bias && !config.mlp_bias);
    assert_eq!((config.sliding_window, config.query_pre_attn_scalar), (None, 128.0));
    assert!(!config.sliding.contains(&true));

    let mut config = qwen_2_5_7b();
    config["use_sliding_window"] = json!(true);
    config["max_window_layers"] = json!(21);
    let config = parse(&config);
    assert_eq!(config.sliding_window, Some(131_072));
    assert_eq!(config.sliding.iter().position(|slides| *slides), Some(21));
    assert_eq!(config.sliding.iter().filter(|slides| **slides).count(), 7);
}

#[test]
fn qwen_3_has_heads_of_128_features_whatever_its_width() {
    let config = parse(&json!({
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "hidden_size": 1024,
        "intermediate_size": 3072, "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
        "tie_word_embeddings": true, "use_sliding_window": false, "vocab_size": 151936
    }));
    assert_eq!((config.architecture, config.head_dim), (Architecture::Qwen3, 128));
    assert!(config.tie_word_embeddings && !config.attention_bias);
    assert_eq!((config.rope.theta, config.max_position_embeddings), (1e6, 32_768));
}

#[test]
fn mistral_slides_on_every_layer_or_on_none() {
    let first = json!({
        "architectures": ["MistralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 32000
    });
    let config = parse(&first);
    assert_eq!((config.architecture, config.sliding_window), (Architecture::Mistral, Some(4096)));
    assert!(!config.sliding.contains(&false));
    let mut third = first.clone();
    third["sliding_window"] = Value::Null;
    assert_eq!(parse(&third).sliding_window, None);
    // Absent: the default of transformers.
    third.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(parse(&third).sliding_window, Some(4096));
}

#[test]
fn layer_types_that_contradict_the_model_are_refused() {
    let mut config = gemma_2_9b();
    config["layer_types"] = json!(["full_attention"]);
    assert_refused!(
        refusal(&config),
        Error::ConfigRange { .. },
        "layer_types is 1",
        "42 entries long"
    );
    config["layer_types"] = json!(vec!["chunked_attention"; 42]);
    assert_refused!(refusal(&config), Error::ConfigUnsupported { .. }, "'chunked_attention'");
    config["layer_types"] = Value::Null;
    config["sliding_window"] = json!(0);
    assert_refused!(refusal(&config), Error::ConfigRange { .. }, "sliding_window is 0");
}

#[test]
fn every_family_is_known_by_both_of_its_names_and_a_refusal_lists_them_all() {
    for (name, kind) in [
        ("LlamaForCausalLM", "llama"),
        ("MistralForCausalLM", "mistral"),
        ("Qwen2ForCausalLM", "qwen2"),
        ("Qwen3ForCausalLM", "qwen3"),
        ("Gemma2ForCausalLM", "gemma2"),
    ] {
        assert_eq!(Architecture::named(name).unwrap().name(), name);
        assert_eq!(Architecture::named(kind).unwrap().name(), name);
        let error = refusal(&json!({"architectures": ["MixtralForCausalLM"]}));
        assert_refused!(error, Error::UnknownArchitecture { .. }, "'MixtralForCausalLM'", name);
    }
}
