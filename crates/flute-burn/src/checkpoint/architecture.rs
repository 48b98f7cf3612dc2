//! Families of models, and what the `config.json` of each may leave unsaid.
//!
//! Served are the families that differ from LLaMA by fields of a configuration: biases, norms of q and k, sliding
//! windows, soft caps. The defaults are those of the configuration classes of transformers. Every other family is
//! refused by name: a model that runs with a part ignored answers wrongly instead of not at all.

use super::config::Activation;

/// A family of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// LLaMA 1, 2, 3, 3.1, 3.2.
    Llama,
    /// Mistral: LLaMA, and all layers may slide.
    Mistral,
    /// Qwen-1.5, 2 and 2.5: biases on q, k and v.
    Qwen2,
    /// Qwen-3: norms on the heads of q and k.
    Qwen3,
    /// Gemma-2: four norms a block, soft caps, every second layer slides.
    Gemma2,
}

/// What transformers takes for fields that are absent.
pub(super) struct Defaults {
    /// As many as query heads if none.
    pub(super) key_value_heads: Option<usize>,
    /// The width divided by the query heads if none.
    pub(super) head_dim: Option<usize>,
    pub(super) positions: usize,
    pub(super) window: Option<usize>,
    pub(super) attention_cap: Option<f64>,
    pub(super) final_cap: Option<f64>,
    pub(super) activation: Activation,
    pub(super) tied: bool,
}

impl Architecture {
    /// The names that are known, as `architectures` spells them.
    pub const KNOWN: &'static str = "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, \
                                     Qwen3ForCausalLM, Gemma2ForCausalLM";

    /// The family of an entry of `architectures`, or of a `model_type`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            // The second spelling is that of the first LLaMA conversions.
            "LlamaForCausalLM" | "LLaMAForCausalLM" | "llama" => Self::Llama,
            "MistralForCausalLM" | "mistral" => Self::Mistral,
            "Qwen2ForCausalLM" | "qwen2" => Self::Qwen2,
            "Qwen3ForCausalLM" | "qwen3" => Self::Qwen3,
            "Gemma2ForCausalLM" | "gemma2" => Self::Gemma2,
            _ => return None,
        })
    }

    /// The name, as `architectures` spells it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
        }
    }

    /// Whether q, k, v and whether the output projection have biases; `field` is `attention_bias`, which some
    /// families have and some do not read.
    pub(super) fn attention_biases(self, field: Option<bool>) -> [bool; 2] {
        match self {
            Self::Llama | Self::Qwen3 | Self::Gemma2 => [field.unwrap_or(false); 2],
            Self::Qwen2 => [true, false],
            Self::Mistral => [false; 2],
        }
    }

    /// Whether layer `index` slides where no `layer_types` say it.
    pub(super) fn slides(self, index: usize, max_window_layers: Option<usize>) -> bool {
        match self {
            Self::Llama => false,
            Self::Mistral => true,
            // The first `max_window_layers` are the full ones, whatever the name suggests.
            Self::Qwen2 | Self::Qwen3 => index >= max_window_layers.unwrap_or(28),
            Self::Gemma2 => index.is_multiple_of(2),
        }
    }

    pub(super) fn defaults(self) -> Defaults {
        let llama = Defaults {
            key_value_heads: None,
            head_dim: None,
            positions: 2048,
            window: None,
            attention_cap: None,
            final_cap: None,
            activation: Activation::Silu,
            tied: false,
        };
        let (window, heads) = (Some(4096), Some(32));
        match self {
            Self::Llama => llama,
            Self::Mistral => {
                Defaults { key_value_heads: Some(8), positions: 131_072, window, ..llama }
            }
            Self::Qwen2 => Defaults { key_value_heads: heads, positions: 32_768, window, ..llama },
            Self::Qwen3 => Defaults {
                key_value_heads: heads,
                head_dim: Some(128),
                positions: 32_768,
                window,
                ..llama
            },
            Self::Gemma2 => Defaults {
                key_value_heads: Some(4),
                head_dim: Some(256),
                positions: 8192,
                window,
                attention_cap: Some(50.0),
                final_cap: Some(30.0),
                activation: Activation::GeluTanh,
                tied: true,
            },
        }
    }
}
