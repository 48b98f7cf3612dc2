//! `generation_config.json`: how its author means a model to be sampled, and where it stops.
//!
//! Absent files and absent fields are fine; fields of the wrong type are refused by name.

use super::json;
use super::raw::TokenIds;
use crate::error::Result;
use serde::Deserialize;
use std::path::Path;

const LIMIT: u64 = 1 << 20;

/// What `generation_config.json` says, where it says it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// First token of a sequence.
    pub bos_token_id: Option<u32>,
    /// Whether the author samples at all.
    pub do_sample: Option<bool>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Sample from this many likeliest tokens.
    pub top_k: Option<usize>,
    /// Sample from the likeliest tokens of this total probability.
    pub top_p: Option<f64>,
    /// Sample from tokens at least this likely, relative to the likeliest.
    pub min_p: Option<f64>,
}

#[derive(Deserialize)]
struct Raw {
    eos_token_id: Option<TokenIds>,
    bos_token_id: Option<TokenIds>,
    do_sample: Option<bool>,
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
}

impl GenerationConfig {
    /// Reads that of `dir`; all empty where there is none.
    ///
    /// # Errors
    /// [`crate::error::Error::Json`], [`crate::error::Error::FileTooLarge`].
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("generation_config.json");
        let Some(value) = json::read_value(&path, LIMIT)? else { return Ok(Self::default()) };
        let raw: Raw = json::typed(&value, &path)?;
        Ok(Self {
            eos_token_ids: raw.eos_token_id.map(TokenIds::list).unwrap_or_default(),
            bos_token_id: raw.bos_token_id.and_then(|ids| ids.list().first().copied()),
            do_sample: raw.do_sample,
            temperature: raw.temperature,
            top_k: raw.top_k,
            top_p: raw.top_p,
            min_p: raw.min_p,
        })
    }
}
