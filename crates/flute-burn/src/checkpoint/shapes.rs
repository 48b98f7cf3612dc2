//! Configurations by name: the shapes of well-known models, for measuring where no checkpoint can be had.
//!
//! Sizes are those of the models' own `config.json`; what only matters to what a model says (token ids, dropout) is left
//! out.

use super::config::ModelConfig;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// hidden, intermediate, layers, query heads, key heads, `head_dim`, vocabulary.
type Sizes = [usize; 7];

/// Families whose members differ in sizes alone, or nearly.
#[derive(Clone, Copy)]
enum Family {
    /// LLaMA 3.1 and 3.2; whether the embedding is the head too.
    Llama3 {
        tied: bool,
    },
    Mistral,
    Qwen25 {
        tied: bool,
    },
    Qwen3,
    /// With `query_pre_attn_scalar`.
    Gemma2(usize),
}

use Family::{Gemma2, Llama3, Mistral, Qwen3, Qwen25};

#[rustfmt::skip]
const SHAPES: [(&str, Family, Sizes); 17] = [
    // The model in `fixtures/tiny-llama`.
    ("tiny", Llama3 { tied: false }, [256, 768, 6, 4, 2, 64, 2048]),
    ("llama-3.2-1b", Llama3 { tied: true }, [2048, 8192, 16, 32, 8, 64, 128_256]),
    ("llama-3.2-3b", Llama3 { tied: true }, [3072, 8192, 28, 24, 8, 128, 128_256]),
    ("llama-3.1-8b", Llama3 { tied: false }, [4096, 14336, 32, 32, 8, 128, 128_256]),
    ("llama-3.1-70b", Llama3 { tied: false }, [8192, 28672, 80, 64, 8, 128, 128_256]),
    ("llama-3.1-405b", Llama3 { tied: false }, [16384, 53248, 126, 128, 8, 128, 128_256]),
    ("mistral-7b", Mistral, [4096, 14336, 32, 32, 8, 128, 32_768]),
    ("qwen2.5-0.5b", Qwen25 { tied: true }, [896, 4864, 24, 14, 2, 64, 151_936]),
    ("qwen2.5-1.5b", Qwen25 { tied: true }, [1536, 8960, 28, 12, 2, 128, 151_936]),
    ("qwen2.5-7b", Qwen25 { tied: false }, [3584, 18944, 28, 28, 4, 128, 152_064]),
    ("qwen2.5-14b", Qwen25 { tied: false }, [5120, 13824, 48, 40, 8, 128, 152_064]),
    ("qwen2.5-32b", Qwen25 { tied: false }, [5120, 27648, 64, 40, 8, 128, 152_064]),
    ("qwen2.5-72b", Qwen25 { tied: false }, [8192, 29568, 80, 64, 8, 128, 152_064]),
    ("qwen3-8b", Qwen3, [4096, 12288, 36, 32, 8, 128, 151_936]),
    ("gemma-2-2b", Gemma2(256), [2304, 9216, 26, 8, 4, 256, 256_000]),
    ("gemma-2-9b", Gemma2(256), [3584, 14336, 42, 16, 8, 256, 256_000]),
    ("gemma-2-27b", Gemma2(144), [4608, 36864, 46, 32, 16, 128, 256_000]),
];

/// The names that [`named`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|(name, ..)| *name)
}

/// The configuration of the model `name`.
///
/// # Errors
/// [`Error::InvalidOption`] with the names that are known.
pub fn named(name: &str) -> Result<ModelConfig> {
    ModelConfig::parse(&config_json(name)?, Path::new(name))
}

/// The `config.json` of a dense model of the shape `name`, for whoever writes a directory of it.
///
/// # Errors
/// As [`named`].
pub fn config_json(name: &str) -> Result<Value> {
    let Some((_, family, sizes)) = SHAPES.iter().find(|(known, ..)| *known == name) else {
        let needed = format!("one of {}", names().collect::<Vec<_>>().join(", "));
        return Err(Error::InvalidOption { name: "the shape", found: name.into(), needed });
    };
    Ok(json(*family, *sizes))
}

fn json(family: Family, sizes: Sizes) -> Value {
    let [hidden, intermediate, layers, heads, key_heads, head_dim, vocab] = sizes;
    let mut config = json!({
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
    });
    let more = match family {
        Llama3 { tied } => json!({
            "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": tied, "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        }),
        Mistral => json!({
            "architectures": ["MistralForCausalLM"], "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5,
            "rope_theta": 1e6, "sliding_window": null,
        }),
        Qwen25 { tied } => json!({
            "architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "tie_word_embeddings": tied,
        }),
        Qwen3 => json!({
            "architectures": ["Qwen3ForCausalLM"], "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6,
            "rope_theta": 1e6, "tie_word_embeddings": false,
        }),
        Gemma2(scalar) => json!({
            "architectures": ["Gemma2ForCausalLM"], "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
            "rope_theta": 1e4, "query_pre_attn_scalar": scalar,
        }),
    };
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters of the linear layers of a block and of embedding and head.
    fn parameters(config: &ModelConfig) -> f64 {
        let ModelConfig { hidden_size: hidden, head_dim, .. } = *config;
        let heads = 2 * config.num_attention_heads + 2 * config.num_key_value_heads;
        let block = hidden * (heads * head_dim + 3 * config.intermediate_size);
        let ends = if config.tie_word_embeddings { 1 } else { 2 };
        (config.num_hidden_layers * block + ends * config.vocab_size * hidden) as f64
    }

    #[test]
    fn every_shape_has_about_the_parameters_of_its_name() {
        for name in names().filter(|name| *name != "tiny") {
            let size = name.rsplit('-').next().unwrap().trim_end_matches('b');
            let (found, told) = (parameters(&named(name).unwrap()) / 1e9, size.parse::<f64>());
            let ratio = found / told.unwrap();
            assert!((0.85..1.35).contains(&ratio), "{name}: {found:.2} billion parameters");
        }
    }

    #[test]
    fn an_unknown_shape_is_refused_with_the_known_ones() {
        let error = named("llama-9").unwrap_err().to_string();
        assert!(error.contains("llama-9") && error.contains("gemma-2-27b"), "{error}");
    }
}
