//! `config.json`: what a model is, typed and checked.
//!
//! Served: the families of [`Architecture`], as transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and
//! transformers 5 (`rope_parameters`, `dtype`) write them; where a field may be absent, the default is that of
//! transformers. Refused: architectures that are not known (by name, before any other field is
//! looked at), sizes that contradict each other, RoPE scalings and activations that are not implemented. A
//! [`ModelConfig`] needs no further check: its products do not overflow, and every division it implies is exact.

use super::architecture::{Architecture, Defaults};
use super::quantization::QuantizationConfig;
use super::raw::{RawConfig, RawFamily, TokenIds};
use super::rope::Rope;
use super::{import, json};
use crate::error::{Error, Result};
use flute_cube::Dtype;
use serde_json::Value;
use std::path::Path;

/// Bytes of `config.json` that are read.
const LIMIT: u64 = 1 << 20;

/// A decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
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
    /// Whether q, k and v have biases.
    pub attention_bias: bool,
    /// Whether the output projection of the attention has a bias.
    pub attention_output_bias: bool,
    /// Whether gate, up and down have biases.
    pub mlp_bias: bool,
    /// Queries are scaled by its inverse square root: the width of a head, but in some of Gemma-2.
    pub query_pre_attn_scalar: f64,
    /// Attention logits are capped softly at it: `cap · tanh(logit / cap)`.
    pub attn_logit_softcapping: Option<f64>,
    /// Final logits are capped softly at it.
    pub final_logit_softcapping: Option<f64>,
    /// Tokens that a token sees in sliding layers, itself included; none if no layer slides.
    pub sliding_window: Option<usize>,
    /// One per block: whether its attention slides.
    pub sliding: Vec<bool>,
    /// First token of a sequence.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence; `generation_config.json` may know more.
    pub eos_token_ids: Vec<u32>,
    /// The type its author stored it in.
    pub dtype: Option<Dtype>,
    /// How its linear layers are quantized, if they are in our format.
    pub quantization: Option<QuantizationConfig>,
}

/// Activation of the MLP's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU by its tanh approximation.
    GeluTanh,
}

impl From<Activation> for flute_cube::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Silu => Self::Silu,
            Activation::GeluTanh => Self::GeluTanh,
        }
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
        let Some(architecture) = Architecture::named(&name) else {
            let (path, known) = (path.into(), Architecture::KNOWN);
            return Err(Error::UnknownArchitecture { path, found: name, known });
        };
        let mut raw: RawConfig = json::typed(value, path)?;
        let check = Check { path };
        let defaults = architecture.defaults();
        check.sizes(&raw, &defaults)?;
        let head_dim = match raw.head_dim.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None => check.divide(
                ("hidden_size", raw.hidden_size),
                ("num_attention_heads", raw.num_attention_heads),
            )?,
        };
        check.divide(("head_dim", head_dim), ("the two halves of a rotation", 2))?;
        let num_key_value_heads = raw.key_value_heads(&defaults);
        check.divide(
            ("num_attention_heads", raw.num_attention_heads),
            ("num_key_value_heads", num_key_value_heads),
        )?;
        let rms_norm_eps = check.positive("rms_norm_eps", raw.rms_norm_eps.unwrap_or(1e-6))?;
        let rope = raw.rope_parameters.take().or(raw.rope_scaling.take());
        let rope = Rope::resolve(rope, raw.rope_theta, path)?;
        let activation = raw.hidden_activation.take().or(raw.hidden_act.take());
        let activation = check.activation(activation, defaults.activation)?;
        let dtype = check.dtype(raw.dtype.take().or(raw.torch_dtype.take()))?;
        let query_pre_attn_scalar = match architecture {
            Architecture::Gemma2 => raw.query_pre_attn_scalar.unwrap_or(256.0),
            _ => head_dim as f64,
        };
        let cap = |field, found: Option<Option<f64>>, default: Option<f64>| match default {
            Some(_) => found.unwrap_or(default).map(|cap| check.positive(field, cap)).transpose(),
            None => Ok(None),
        };
        let (sliding_window, sliding) = check.sliding(&raw, architecture)?;
        let [attention_bias, attention_output_bias] =
            architecture.attention_biases(raw.attention_bias);
        let quantization = raw
            .quantization_config
            .filter(|quantization| !import::is_foreign(quantization))
            .map(|quantization| QuantizationConfig::parse(&quantization, path))
            .transpose()?;
        Ok(Self {
            architecture,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads,
            head_dim,
            max_position_embeddings: raw.max_position_embeddings.unwrap_or(defaults.positions),
            rms_norm_eps,
            rope,
            activation,
            tie_word_embeddings: raw.tie_word_embeddings.unwrap_or(defaults.tied),
            attention_bias,
            attention_output_bias,
            mlp_bias: architecture == Architecture::Llama && raw.mlp_bias.unwrap_or(false),
            query_pre_attn_scalar: check
                .positive("query_pre_attn_scalar", query_pre_attn_scalar)?,
            attn_logit_softcapping: cap(
                "attn_logit_softcapping",
                raw.attn_logit_softcapping,
                defaults.attention_cap,
            )?,
            final_logit_softcapping: cap(
                "final_logit_softcapping",
                raw.final_logit_softcapping,
                defaults.final_cap,
            )?,
            sliding_window,
            sliding,
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
    fn sizes(&self, raw: &RawConfig, defaults: &Defaults) -> Result<()> {
        let most = 1 << 20;
        self.size("vocab_size", raw.vocab_size, 1 << 24)?;
        self.size("hidden_size", raw.hidden_size, most)?;
        self.size("intermediate_size", raw.intermediate_size, most)?;
        self.size("num_hidden_layers", raw.num_hidden_layers, 4096)?;
        self.size("num_attention_heads", raw.num_attention_heads, 4096)?;
        self.size("num_key_value_heads", raw.key_value_heads(defaults), 4096)?;
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

    fn activation(&self, name: Option<String>, default: Activation) -> Result<Activation> {
        match name.as_deref() {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
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

    /// The window, and the layers that slide in it.
    fn sliding(
        &self,
        raw: &RawConfig,
        architecture: Architecture,
    ) -> Result<(Option<usize>, Vec<bool>)> {
        let (layers, default) = (raw.num_hidden_layers, architecture.defaults().window);
        let window = match architecture {
            Architecture::Llama => None,
            // These write a window even where they do not use it.
            Architecture::Qwen2 | Architecture::Qwen3 if raw.use_sliding_window != Some(true) => {
                None
            }
            _ => raw.sliding_window.unwrap_or(default),
        };
        let Some(window) = window else { return Ok((None, vec![false; layers])) };
        self.size("sliding_window", window, 1 << 30)?;
        let Some(types) = &raw.layer_types else {
            let slides = |index| architecture.slides(index, raw.max_window_layers);
            return Ok((Some(window), (0..layers).map(slides).collect()));
        };
        if types.len() != layers {
            let (found, needed) = (types.len().to_string(), format!("{layers} entries long"));
            let field = "layer_types";
            return Err(Error::ConfigRange { path: self.path.into(), field, found, needed });
        }
        let slides = |name: &String| match name.as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            _ => Err(Error::ConfigUnsupported {
                path: self.path.into(),
                field: "layer_types",
                found: name.clone(),
                known: "sliding_attention, full_attention",
            }),
        };
        Ok((Some(window), types.iter().map(slides).collect::<Result<_>>()?))
    }
}
