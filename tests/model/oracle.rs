//! LLaMA and its kin in f64, written down as they are defined: loops over tokens, heads and features, and nothing else.

use anyhow::Result;
use flute_burn::checkpoint::{Activation, Architecture, Reader, RopeScaling};
use rayon::prelude::*;
use std::f64::consts::{PI, TAU};
use std::path::Path;

/// Logits `[tokens][vocab]` of the dense model in `dir`, of any architecture.
pub(crate) fn logits(dir: &Path, ids: &[u32]) -> Result<Vec<Vec<f64>>> {
    let reader = Reader::open(dir)?;
    let config = reader.config();
    let (heads, kv, dim) =
        (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let gemma = config.architecture == Architecture::Gemma2;
    let tensor = |name: &str| Ok::<_, anyhow::Error>(reader.tensor(name)?.data);
    let norm = |x: &[f64], weight: &[f32]| -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = (mean + config.rms_norm_eps).sqrt();
        let gain = |w: f32| f64::from(w) + if gemma { 1.0 } else { 0.0 };
        x.iter().zip(weight).map(|(v, w)| v / scale * gain(*w)).collect()
    };

    let embedding = tensor("model.embed_tokens.weight")?;
    let row = |id: &u32| &embedding[*id as usize * config.hidden_size..][..config.hidden_size];
    let scale = if gemma { (config.hidden_size as f64).sqrt() } else { 1.0 };
    let mut x: Vec<Vec<f64>> =
        ids.iter().map(|id| row(id).iter().map(|v| scale * f64::from(*v)).collect()).collect();

    for layer in 0..config.num_hidden_layers {
        let weight = |part: &str| tensor(&format!("model.layers.{layer}.{part}.weight"));
        let normed = |part: &str, x: &[Vec<f64>]| -> Result<Vec<Vec<f64>>> {
            let weight = weight(part)?;
            Ok(x.iter().map(|x| norm(x, &weight)).collect())
        };
        let h = normed("input_layernorm", &x)?;
        let linear = |part: &str, x: &[Vec<f64>]| -> Result<Vec<Vec<f64>>> {
            let mut y = products(&weight(part)?, x);
            let bias = format!("model.layers.{layer}.{part}.bias");
            if reader.contains(&bias) {
                let bias: Vec<f64> = tensor(&bias)?.into_iter().map(f64::from).collect();
                add(&mut y, vec![bias; x.len()]);
            }
            Ok(y)
        };
        let mut q = linear("self_attn.q_proj", &h)?;
        let mut k = linear("self_attn.k_proj", &h)?;
        let v = linear("self_attn.v_proj", &h)?;
        if config.architecture == Architecture::Qwen3 {
            for (features, part) in [(&mut q, "q_norm"), (&mut k, "k_norm")] {
                let weight = weight(&format!("self_attn.{part}"))?;
                for head in features.iter_mut().flat_map(|token| token.chunks_mut(dim)) {
                    head.copy_from_slice(&norm(head, &weight));
                }
            }
        }
        let rotate = |features: &[Vec<f64>], head: usize, token: usize| -> Vec<f64> {
            let part = &features[token][head * dim..][..dim];
            let turn = |i: usize| {
                let (sin, cos) = (token as f64 * frequency(config, i % (dim / 2))).sin_cos();
                match i < dim / 2 {
                    true => part[i] * cos - part[i + dim / 2] * sin,
                    false => part[i] * cos + part[i - dim / 2] * sin,
                }
            };
            (0..dim).map(turn).collect()
        };
        let mut attended = vec![vec![0.0; heads * dim]; ids.len()];
        for head in 0..heads {
            let shared = head / (heads / kv);
            let keys: Vec<Vec<f64>> = (0..ids.len()).map(|seen| rotate(&k, shared, seen)).collect();
            for (token, attended) in attended.iter_mut().enumerate() {
                let query = rotate(&q, head, token);
                let score = |seen: usize| {
                    let dot: f64 = query.iter().zip(&keys[seen]).map(|(a, b)| a * b).sum();
                    cap(dot / config.query_pre_attn_scalar.sqrt(), config.attn_logit_softcapping)
                };
                let first = match config.sliding_window {
                    Some(window) if config.sliding[layer] => (token + 1).saturating_sub(window),
                    _ => 0,
                };
                let scores: Vec<f64> = (first..=token).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..dim {
                    let values = weights.iter().enumerate();
                    let value = |seen: usize| v[first + seen][shared * dim + i];
                    let sum: f64 = values.map(|(seen, w)| w * value(seen)).sum();
                    attended[head * dim + i] = sum / total;
                }
            }
        }
        let mut attended = linear("self_attn.o_proj", &attended)?;
        let mut before = "post_attention_layernorm";
        if gemma {
            attended = normed("post_attention_layernorm", &attended)?;
            before = "pre_feedforward_layernorm";
        }
        add(&mut x, attended);

        let h = normed(before, &x)?;
        let (gate, up) = (linear("mlp.gate_proj", &h)?, linear("mlp.up_proj", &h)?);
        let activation = |v: f64| match config.activation {
            Activation::Silu => v / (1.0 + (-v).exp()),
            Activation::GeluTanh => {
                v / 2.0 * (1.0 + ((2.0 / PI).sqrt() * (v + 0.044_715 * v.powi(3))).tanh())
            }
        };
        let gated = |(gate, up): (Vec<f64>, Vec<f64>)| {
            gate.into_iter().zip(up).map(|(g, u)| activation(g) * u).collect()
        };
        let inner: Vec<Vec<f64>> = gate.into_iter().zip(up).map(gated).collect();
        let mut mixed = linear("mlp.down_proj", &inner)?;
        if gemma {
            mixed = normed("post_feedforward_layernorm", &mixed)?;
        }
        add(&mut x, mixed);
    }
    let last = tensor("model.norm.weight")?;
    let h: Vec<Vec<f64>> = x.iter().map(|x| norm(x, &last)).collect();
    let head = if config.tie_word_embeddings { embedding } else { tensor("lm_head.weight")? };
    let mut logits = products(&head, &h);
    for logit in logits.iter_mut().flatten() {
        *logit = cap(*logit, config.final_logit_softcapping);
    }
    Ok(logits)
}

/// A soft cap, if there is one.
fn cap(x: f64, cap: Option<f64>) -> f64 {
    cap.map_or(x, |cap| cap * (x / cap).tanh())
}

/// Radians a position of rotating pair `i`; the scaling as the Llama 3.1 release defines it.
fn frequency(config: &flute_burn::checkpoint::ModelConfig, i: usize) -> f64 {
    let plain = config.rope.theta.powf(-2.0 * i as f64 / config.head_dim as f64);
    let (factor, low, high, original) = match config.rope.scaling {
        RopeScaling::None => return plain,
        RopeScaling::Linear { factor } => return plain / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        } => (factor, low, high, original),
    };
    let (wavelength, original) = (TAU / plain, original as f64);
    if wavelength < original / high {
        plain
    } else if wavelength > original / low {
        plain / factor
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * plain / factor + smooth * plain
    }
}

/// `x · Wᵀ` of every token, W `[n, k]`.
fn products(weight: &[f32], x: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let dot = |row: &[f32], x: &[f64]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum();
    x.iter().map(|x| weight.par_chunks(x.len()).map(|row| dot(row, x)).collect()).collect()
}

fn add(x: &mut [Vec<f64>], y: Vec<Vec<f64>>) {
    for (x, y) in x.iter_mut().zip(y) {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}
