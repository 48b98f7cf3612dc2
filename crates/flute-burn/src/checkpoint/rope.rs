//! The rotary embedding's part of `config.json`, in both generations.
//!
//! transformers 5 writes `rope_parameters {rope_theta, rope_type, …}`; transformers 4 writes `rope_theta` beside
//! `rope_scaling {rope_type | type, …}` or null. Refused: scalings that are not implemented (dynamic, yarn, longrope).

use crate::error::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// Rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How the frequencies are stretched to a longer context.
    pub scaling: RopeScaling,
}

/// How frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths beyond `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Positions of the original training.
        original_max_position_embeddings: usize,
    },
}

#[derive(Deserialize)]
pub(super) struct RawRope {
    rope_type: Option<String>,
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
}

impl Rope {
    /// Resolves both generations; `theta` is the top-level one of transformers 4.
    pub(super) fn resolve(raw: Option<RawRope>, theta: Option<f64>, path: &Path) -> Result<Self> {
        let inner = raw.as_ref().and_then(|raw| raw.rope_theta);
        let theta = positive("rope_theta", inner.or(theta).or(Some(10_000.0)), path)?;
        let Some(raw) = raw else { return Ok(Self { theta, scaling: RopeScaling::None }) };
        let factor = || positive("rope factor", raw.factor, path);
        let scaling = match raw.rope_type.as_deref().or(raw.r#type.as_deref()) {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: factor()? },
            Some("llama3") => {
                let low_freq_factor = positive("low_freq_factor", raw.low_freq_factor, path)?;
                let high_freq_factor = positive("high_freq_factor", raw.high_freq_factor, path)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(Error::ConfigRange {
                        path: path.into(),
                        field: "high_freq_factor",
                        found: high_freq_factor.to_string(),
                        needed: format!("greater than low_freq_factor = {low_freq_factor}"),
                    });
                }
                let original = raw.original_max_position_embeddings.map(|n| n as f64);
                RopeScaling::Llama3 {
                    factor: factor()?,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: positive(
                        "original_max_position_embeddings",
                        original,
                        path,
                    )? as usize,
                }
            }
            Some(found) => {
                return Err(Error::ConfigUnsupported {
                    path: path.into(),
                    field: "rope_type",
                    found: found.into(),
                    known: "default, linear, llama3",
                });
            }
        };
        Ok(Self { theta, scaling })
    }
}

fn positive(field: &'static str, found: Option<f64>, path: &Path) -> Result<f64> {
    match found {
        Some(found) if found.is_finite() && found > 0.0 => Ok(found),
        _ => Err(Error::ConfigRange {
            path: path.into(),
            field,
            found: found.map_or("absent".into(), |v| v.to_string()),
            needed: "finite and greater than 0".into(),
        }),
    }
}
