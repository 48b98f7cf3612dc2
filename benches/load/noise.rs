//! A checkpoint of noise: right names, shapes and types, written tensor by tensor.

use anyhow::Result;
use flute_burn::checkpoint::{
    Architecture, ModelConfig, QuantizationConfig, Scheme, TensorSpec, Writer, WriterOptions,
};
use flute_cube::{Dtype as Float, Format, Table, TableKind, pack};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;
use std::path::Path;

/// Bytes that one thread makes at a time.
const PIECE: usize = 1 << 20;

/// What is to be written.
pub(crate) struct Noise {
    json: Value,
    config: ModelConfig,
    format: Format,
}

impl Noise {
    /// Of the model whose `config.json` is `json`, its linear layers in `format`.
    pub(crate) fn new(mut json: Value, format: Format) -> Result<Self> {
        let quantization = QuantizationConfig {
            scheme: Scheme {
                bits: format.bits,
                group: format.group,
                table: TableKind::Nf,
                hadamard_size: None,
                hadamard_seed: None,
            },
            scale_dtype: Float::F16,
            modules_to_not_convert: vec!["lm_head".into()],
            modules: Default::default(),
        };
        json["quantization_config"] = quantization.to_json();
        json["dtype"] = "float16".into();
        let config = ModelConfig::parse(&json, Path::new("config.json"))?;
        Ok(Self { json, config, format })
    }

    pub(crate) fn layers(&self) -> usize {
        self.config.num_hidden_layers
    }

    /// Bytes of the largest layer: an end of the model, or a product of a block.
    pub(crate) fn largest_layer_bytes(&self) -> u64 {
        let end = 2 * self.config.vocab_size * self.config.hidden_size;
        let linears = self.linears().into_iter().map(|(_, shape)| self.linear_bytes(shape));
        linears.chain([end as u64]).max().unwrap_or(0)
    }

    /// Bytes of one block's linear layers.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.linears().into_iter().map(|(_, shape)| self.linear_bytes(shape)).sum()
    }

    fn linear_bytes(&self, [n, k]: [usize; 2]) -> u64 {
        (n * (self.row_bytes(k) + 2 * self.format.group.count(k))) as u64
    }

    fn row_bytes(&self, k: usize) -> usize {
        pack::canonical_row_bytes(k, self.format.bits.get())
    }

    /// Writes it to `dir`.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let specs = self.specs();
        let mut writer = Writer::create(dir, specs.clone(), WriterOptions::default())?;
        let table = Float::F32.encode(Table::nf(self.format.bits).values());
        for (index, spec) in specs.iter().enumerate() {
            if spec.name.ends_with(".table") {
                writer.append(&spec.name, &table)?;
                continue;
            }
            let bytes = spec.shape.iter().product::<usize>() * spec.dtype.bitsize() / 8;
            let mut written = 0;
            // Never more in memory than a piece a thread.
            while written < bytes {
                let len = (bytes - written).min(PIECE * rayon::current_num_threads());
                writer.append(&spec.name, &noise(len, spec.dtype, (index << 32) + written))?;
                written += len;
            }
        }
        writer.file("config.json", format!("{:#}\n", self.json).as_bytes())?;
        writer.finish()?;
        Ok(())
    }

    /// Every tensor of the model.
    fn specs(&self) -> Vec<TensorSpec> {
        let ModelConfig { vocab_size: vocab, hidden_size: hidden, head_dim, .. } = self.config;
        let half = |name: String, shape: Vec<usize>| TensorSpec { name, dtype: Dtype::F16, shape };
        let mut specs = vec![
            half("model.embed_tokens.weight".into(), vec![vocab, hidden]),
            half("model.norm.weight".into(), vec![hidden]),
        ];
        if !self.config.tie_word_embeddings {
            specs.push(half("lm_head.weight".into(), vec![vocab, hidden]));
        }
        let norms: &[(&str, usize)] = match self.config.architecture {
            Architecture::Gemma2 => &[
                ("input_layernorm", hidden),
                ("post_attention_layernorm", hidden),
                ("pre_feedforward_layernorm", hidden),
                ("post_feedforward_layernorm", hidden),
            ],
            Architecture::Qwen3 => &[
                ("input_layernorm", hidden),
                ("post_attention_layernorm", hidden),
                ("self_attn.q_norm", head_dim),
                ("self_attn.k_norm", head_dim),
            ],
            _ => &[("input_layernorm", hidden), ("post_attention_layernorm", hidden)],
        };
        for layer in 0..self.config.num_hidden_layers {
            let block = format!("model.layers.{layer}");
            for (norm, len) in norms {
                specs.push(half(format!("{block}.{norm}.weight"), vec![*len]));
            }
            for (name, [n, k]) in self.linears() {
                let module = format!("{block}.{name}");
                let codes = vec![n, self.row_bytes(k)];
                specs.push(TensorSpec {
                    name: format!("{module}.codes"),
                    dtype: Dtype::U8,
                    shape: codes,
                });
                specs.push(half(format!("{module}.scales"), vec![n, self.format.group.count(k)]));
                let values = vec![self.format.bits.codes()];
                specs.push(TensorSpec {
                    name: format!("{module}.table"),
                    dtype: Dtype::F32,
                    shape: values,
                });
                let biased = ["q_proj", "k_proj", "v_proj"].iter().any(|part| name.ends_with(part));
                if self.config.attention_bias && biased {
                    specs.push(half(format!("{module}.bias"), vec![n]));
                }
            }
        }
        specs
    }

    /// Name in its block and `[n, k]` of each linear layer.
    fn linears(&self) -> [(&'static str, [usize; 2]); 7] {
        let ModelConfig { hidden_size: hidden, intermediate_size: wide, head_dim, .. } =
            self.config;
        let queries = self.config.num_attention_heads * head_dim;
        let keys = self.config.num_key_value_heads * head_dim;
        [
            ("self_attn.q_proj", [queries, hidden]),
            ("self_attn.k_proj", [keys, hidden]),
            ("self_attn.v_proj", [keys, hidden]),
            ("self_attn.o_proj", [hidden, queries]),
            ("mlp.gate_proj", [wide, hidden]),
            ("mlp.up_proj", [wide, hidden]),
            ("mlp.down_proj", [hidden, wide]),
        ]
    }
}

/// `len` bytes of codes, or of f16 between 1/128 and 1/64: any sign would do for weights, and scales want one.
fn noise(len: usize, dtype: Dtype, seed: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes.par_chunks_mut(PIECE).enumerate().for_each(|(piece, bytes)| {
        let mut rng = StdRng::seed_from_u64((seed + piece) as u64);
        rng.fill_bytes(bytes);
        if dtype == Dtype::F16 {
            bytes.chunks_exact_mut(2).for_each(|half| half[1] = half[1] & 3 | 0x20);
        }
    });
    bytes
}
