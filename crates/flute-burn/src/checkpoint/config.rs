//! `config.json`: what a model is, typed and checked.
//!
//! Served: LLaMA 1, 2, 3, 3.1 and 3.2 (and the fields of Gemma-2), as transformers 4 (`rope_theta`, `rope_scaling`,
//! `torch_dtype`) and transformers 5 (`rope_parameters`, `dtype`) write them; where a field may be absent, the
//! default is that of transformers. Refused: architectures that are not known (by name, before any other field is
//! looked at), sizes that contradict each other, RoPE scalings and activations that are not implemented. A
//! [`ModelConfig`] needs no further check: its products do not overflow, and every division it implies is exact.

use super::json;
use super::quantization::QuantizationConfig;
use super::rope::{RawRope, Rope};
use crate::error::{Error, Result};
use flute_cube::Dtype;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// Bytes of `config.json` that are read.
const LIMIT: u64 = 1 << 20;

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family, with the fields that only it has.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    /// Rotary embedding.
    pub rope: Rope,
    /// Activation of the MLP's gate.
    pub activation: Activation,
    /// Whether the output projection is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// First token of a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence; `generation_config.json` may know more.
    pub eos_token_ids: Vec<u32>,
    /// The type its author stored it in.
    pub dtype: Option<Dtype>,
    /// How its linear layers are quantized, if they are.
    pub quantization: Option<QuantizationConfig>,
}

/// A family of models.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Architecture {
    /// LLaMA 1, 2, 3, 3.1, 3.2.
    Llama,
    /// Gemma-2.
    Gemma2(Gemma2),
}

/// What Gemma-2 has beyond LLaMA.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma2 {
    /// Queries are scaled by its inverse square root.
    pub query_pre_attn_scalar: f64,
    /// Attention logits are capped softly at it.
    pub attn_logit_softcapping: Option<f64>,
    /// Final logits are capped softly at it.
    pub final_logit_softcapping: Option<f64>,
    /// Window of the sliding layers.
    pub sliding_window: usize,
    /// One per block: whether its attention slides.
    pub sliding: Vec<bool>,
}

impl Architecture {
    /// The names that are known, as `architectures` spells them.
    pub const KNOWN: &'static str = "LlamaForCausalLM, Gemma2ForCausalLM";

    /// The name, as `architectures` spells it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Gemma2(_) => "Gemma2ForCausalLM",
        }
    }
}

/// Activation of the MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

#[derive(Deserialize)]
struct RawFamily {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    hidden_act: Option<String>,
    hidden_activation: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    bos_token_id: Option<TokenIds>,
    eos_token_id: Option<TokenIds>,
    dtype: Option<String>,
    torch_dtype: Option<String>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
}

/// A token id or a list of them. Some configurations of LLaMA 1 write −1 for none.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum TokenIds {
    One(i64),
    Many(Vec<i64>),
}

impl TokenIds {
    /// The ids that can be ids.
    pub(super) fn list(self) -> Vec<u32> {
        let ids = match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        };
        ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
    }
}

impl ModelConfig {
    /// Reads and checks the `config.json` of `dir`; returns it typed and as it stands.
    ///
    /// # Errors
    /// [`Error::FileAbsent`], [`Error::FileTooLarge`], [`Error::Json`], [`Error::UnknownArchitecture`],
    /// [`Error::ConfigRange`], [`Error::ConfigIndivisible`], [`Error::ConfigUnsupported`].
    pub fn read(dir: &Path) -> Result<(Self, Value)> {
        let path = dir.join("config.json");
        let Some(value) = json::read_value(&path, LIMIT)? else {
            return Err(Error::FileAbsent { path });
        };
        Ok((Self::parse(&value, &path)?, value))
    }

    /// Checks a `config.json`; `path` is where it came from, for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::read`].
    pub fn parse(value: &Value, path: &Path) -> Result<Self> {
        let family: RawFamily = json::typed(value, path)?;
        let name = family.architectures.and_then(|names| names.into_iter().next());
        let name = name.or(family.model_type).unwrap_or_default();
        let gemma2 = match name.as_str() {
            // The second spelling is that of the first LLaMA conversions.
            "LlamaForCausalLM" | "LLaMAForCausalLM" | "llama" => false,
            "Gemma2ForCausalLM" | "gemma2" => true,
            _ => {
                let (path, known) = (path.into(), Architecture::KNOWN);
                return Err(Error::UnknownArchitecture { path, found: name, known });
            }
        };
        let raw: RawConfig = json::typed(value, path)?;
        let check = Check { path };
        check.sizes(&raw)?;
        let head_dim = match raw.head_dim {
            Some(head_dim) => head_dim,
            None if gemma2 => 256,
            None => check.divide(
                ("hidden_size", raw.hidden_size),
                ("num_attention_heads", raw.num_attention_heads),
            )?,
        };
        check.divide(("head_dim", head_dim), ("the two halves of a rotation", 2))?;
        let num_key_value_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        check.divide(
            ("num_attention_heads", raw.num_attention_heads),
            ("num_key_value_heads", num_key_value_heads),
        )?;
        let rms_norm_eps = check.positive("rms_norm_eps", raw.rms_norm_eps.unwrap_or(1e-6))?;
        let rope = Rope::resolve(raw.rope_parameters.or(raw.rope_scaling), raw.rope_theta, path)?;
        let activation = check.activation(raw.hidden_activation.or(raw.hidden_act), gemma2)?;
        let dtype = check.dtype(raw.dtype.or(raw.torch_dtype))?;
        let architecture = if gemma2 {
            Architecture::Gemma2(Gemma2 {
                query_pre_attn_scalar: check.positive(
                    "query_pre_attn_scalar",
                    raw.query_pre_attn_scalar.unwrap_or(256.0),
                )?,
                attn_logit_softcapping: raw.attn_logit_softcapping,
                final_logit_softcapping: raw.final_logit_softcapping,
                sliding_window: check.size(
                    "sliding_window",
                    raw.sliding_window.unwrap_or(4096),
                    1 << 30,
                )?,
                sliding: check.sliding(raw.layer_types, raw.num_hidden_layers)?,
            })
        } else {
            Architecture::Llama
        };
        let quantization =
            raw.quantization_config.map(|q| QuantizationConfig::parse(&q, path)).transpose()?;
        Ok(Self {
            architecture,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: raw.max_position_embeddings.unwrap_or(2048),
            rms_norm_eps,
            rope,
            activation,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(gemma2),
            attention_bias: raw.attention_bias.unwrap_or(false),
            mlp_bias: raw.mlp_bias.unwrap_or(false),
            bos_token_id: raw.bos_token_id.and_then(|ids| ids.list().first().copied()),
            eos_token_ids: raw.eos_token_id.map(TokenIds::list).unwrap_or_default(),
            dtype,
            quantization,
        })
    }
}

/// Checks that share the file's name.
struct Check<'a> {
    path: &'a Path,
}

impl Check<'_> {
    fn size(&self, field: &'static str, found: usize, max: usize) -> Result<usize> {
        if (1..=max).contains(&found) {
            return Ok(found);
        }
        let (found, needed) = (found.to_string(), format!("in 1..={max}"));
        Err(Error::ConfigRange { path: self.path.into(), field, found, needed })
    }

    /// Every size within what any model has, so that no product of two or three of them overflows.
    fn sizes(&self, raw: &RawConfig) -> Result<()> {
        let (heads, most) = (raw.num_attention_heads, 1 << 20);
        self.size("vocab_size", raw.vocab_size, 1 << 24)?;
        self.size("hidden_size", raw.hidden_size, most)?;
        self.size("intermediate_size", raw.intermediate_size, most)?;
        self.size("num_hidden_layers", raw.num_hidden_layers, 4096)?;
        self.size("num_attention_heads", heads, 4096)?;
        self.size("num_key_value_heads", raw.num_key_value_heads.unwrap_or(heads), 4096)?;
        self.size("head_dim", raw.head_dim.unwrap_or(1), 4096)?;
        self.size("max_position_embeddings", raw.max_position_embeddings.unwrap_or(1), 1 << 30)?;
        Ok(())
    }

    fn positive(&self, field: &'static str, found: f64) -> Result<f64> {
        if found.is_finite() && found > 0.0 {
            return Ok(found);
        }
        let (found, needed) = (found.to_string(), "finite and greater than 0".into());
        Err(Error::ConfigRange { path: self.path.into(), field, found, needed })
    }

    fn divide(&self, value: (&'static str, usize), by: (&'static str, usize)) -> Result<usize> {
        if value.1.is_multiple_of(by.1) {
            return Ok(value.1 / by.1);
        }
        let ((field, value), (by_field, by)) = (value, by);
        Err(Error::ConfigIndivisible { path: self.path.into(), field, value, by_field, by })
    }

    fn activation(&self, name: Option<String>, gemma2: bool) -> Result<Activation> {
        match name.as_deref() {
            None if gemma2 => Ok(Activation::GeluTanh),
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some(found) => Err(Error::ConfigUnsupported {
                path: self.path.into(),
                field: "hidden_act",
                found: found.into(),
                known: "silu, gelu_pytorch_tanh",
            }),
        }
    }

    fn dtype(&self, name: Option<String>) -> Result<Option<Dtype>> {
        match name.as_deref() {
            None | Some("auto") => Ok(None),
            Some("float32") => Ok(Some(Dtype::F32)),
            Some("float16") => Ok(Some(Dtype::F16)),
            Some("bfloat16") => Ok(Some(Dtype::BF16)),
            Some(found) => Err(Error::ConfigUnsupported {
                path: self.path.into(),
                field: "dtype",
                found: found.into(),
                known: "float32, float16, bfloat16",
            }),
        }
    }

    fn sliding(&self, types: Option<Vec<String>>, layers: usize) -> Result<Vec<bool>> {
        // Without the list, even layers slide (transformers 4).
        let Some(types) = types else { return Ok((0..layers).map(|i| i % 2 == 0).collect()) };
        if types.len() != layers {
            let (found, needed) = (types.len().to_string(), format!("{layers} entries long"));
            let field = "layer_types";
            return Err(Error::ConfigRange { path: self.path.into(), field, found, needed });
        }
        let slides = |name: String| match name.as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            _ => Err(Error::ConfigUnsupported {
                path: self.path.into(),
                field: "layer_types",
                found: name,
                known: "sliding_attention, full_attention",
            }),
        };
        types.into_iter().map(slides).collect()
    }
}
