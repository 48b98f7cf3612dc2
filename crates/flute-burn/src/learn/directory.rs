//! From a dense model directory to a quantized one with learned scales, whole or not at all.
//!
//! The model is quantized into a temporary directory beside the target, learned there, and written. Every minute the
//! state of learning goes to a file beside the target, `<target>.learning`, which the next run with the same source,
//! text and options finds and goes on from; it is removed when the target is complete. Refused before anything is
//! quantized: a target that exists, a text too short, a device or a type that is not there, an embedding in codes.

use super::text::{self, Objective, Progress, TextOptions, Windows};
use super::values::learned_weight;
use super::{LearnedWeight, Learner, What};
use crate::checkpoint::{
    ConvertOptions, Reader, Summary, Writer, convert,
    revise::{Revision, revise},
};
use crate::device;
use crate::error::{Error, Result};
use crate::linear::AnyLinear;
use crate::model::{LoadOptions, Model};
use burn::tensor::{DType, Device};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two states that are written.
const SAVED_EVERY: Duration = Duration::from_secs(60);

/// What to quantize, and what to learn from.
pub struct DirectoryOptions<'a, 'p> {
    /// The dense directory, the target, and how to quantize.
    pub convert: ConvertOptions<'p>,
    /// Where the model learns.
    pub device: Device,
    /// The type it computes in; [`default_dtype`] if none is given. Scales are learned in f32 whatever it is.
    pub dtype: Option<DType>,
    /// A text without special tokens.
    pub ids: &'a [u32],
    /// How it is learned from.
    pub text: TextOptions,
    /// Hears every step, and may end the run: its state is kept, and nothing is written.
    pub watch: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Learned {
    /// Of quantizing.
    pub summary: Summary,
    /// Steps, those of an interrupted run included.
    pub steps: usize,
    /// Steps of an interrupted run that were not done again.
    pub resumed: usize,
    /// Mean loss of the first and of the last eighth of this run's steps, in nats a token.
    pub loss: [f64; 2],
    /// Tokens learned from per second, in this run.
    pub tokens_per_second: f64,
}

/// bf16 where a device with kernels computes in it, since gradients leave the range of f16; f32 elsewhere.
pub fn default_dtype(device: &Device) -> DType {
    match device::client(device) {
        Some(_) if device.supports_dtype(DType::BF16) => DType::BF16,
        _ => DType::F32,
    }
}

/// The file in which the state of learning for `target` is kept.
pub fn state_file(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".learning");
    target.with_file_name(name)
}

/// Quantizes, learns and writes; none if `watch` ended the run.
///
/// # Errors
/// What [`convert()`], [`Windows::cut`], [`Model::load`] and [`Learner::step`] refuse; [`Error::TargetExists`];
/// [`Error::LearnState`] for the state of another run; [`Error::Io`].
pub fn quantize_and_learn(options: DirectoryOptions<'_, '_>) -> Result<Option<Learned>> {
    let DirectoryOptions { convert: conversion, device, dtype, ids, text, watch } = options;
    let ConvertOptions { source, target, writer, .. } = &conversion;
    let (source, target, writer) = (source.clone(), target.clone(), *writer);
    if conversion.embedding.is_some() {
        return Err(Error::Unsupported {
            what: "learning a model whose embedding is quantized".into(),
            reason: "looked-up rows have no gradient; leave the embedding dense".into(),
        });
    }
    let dtype = dtype.unwrap_or_else(|| default_dtype(&device));
    device::check_dtype(&device, dtype)?;
    let windows =
        Windows::cut(ids, Reader::open(&source)?.config().max_position_embeddings, &text)?;
    // Refuses a target as it will when it is written, and leaves nothing.
    drop(Writer::create(&target, vec![], writer)?);

    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let scratch = tempfile::Builder::new().prefix(".flute-").tempdir_in(parent);
    let scratch = scratch.map_err(Error::io("write beside", &target))?;
    let quantized = scratch.path().join("quantized");
    let summary = convert(ConvertOptions { target: quantized.clone(), ..conversion })?;

    let load = LoadOptions { dtype: Some(dtype), fuse: false, ..LoadOptions::new(device) };
    let model = Model::load(&quantized, &load)?;
    let windows = match text.objective {
        Objective::Dense => windows.with_teacher(Model::load(&source, &load)?),
        Objective::Text => windows,
    };
    let mut learner = text::begin(model, &windows, &text)?;
    let (state, run) = (state_file(&target), run(&quantized, ids, &windows, &text)?);
    learner.restore(&state, &run)?;
    let (resumed, start) = (learner.done(), Instant::now());
    let (mut saved, mut losses, mut ended) = (start, vec![], false);
    text::go_on(&mut learner, &windows, &mut |progress, learner| {
        losses.push(progress.loss);
        ended = watch(progress).is_break();
        if ended || saved.elapsed() >= SAVED_EVERY {
            learner.save(&state, &run)?;
            saved = Instant::now();
        }
        Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    if learner.done() < learner.steps() {
        return Ok(None);
    }
    let seconds = start.elapsed().as_secs_f64();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    let part = losses.len().div_ceil(8);
    let learned = Learned {
        summary,
        steps: learner.done(),
        resumed,
        loss: [mean(&losses[..part]), mean(&losses[losses.len() - part..])],
        tokens_per_second: (losses.len() * windows.tokens()) as f64 / seconds,
    };
    let (weights, tables) = (weights(&learner)?, text.what == What::ScalesAndTables);
    let note = note(&learned, &windows, &text);
    revise(&quantized, &target, &Revision { weights: &weights, tables, note: &note }, writer)?;
    match std::fs::remove_file(&state) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &state)(e)),
        _ => Ok(Some(learned)),
    }
}

/// What every quantized layer has learned, by module.
fn weights(learner: &Learner<Model>) -> Result<BTreeMap<String, LearnedWeight>> {
    let mut weights = BTreeMap::new();
    for (module, linear) in learner.module().named_linears() {
        if let AnyLinear::Flute(linear) = linear {
            weights.insert(module, learned_weight(linear)?);
        }
    }
    Ok(weights)
}

/// What tells one run from another.
fn run(quantized: &Path, ids: &[u32], windows: &Windows, options: &TextOptions) -> Result<Value> {
    let reader = Reader::open(quantized)?;
    let mut model = Fingerprint::default();
    for module in reader.quantized_modules() {
        model.take(module.as_bytes());
        model.take(&reader.raw(&format!("{module}.scales"))?.bytes);
    }
    let mut text = Fingerprint::default();
    ids.iter().for_each(|id| text.take(&id.to_le_bytes()));
    Ok(json!({
        "model": model.to_string(),
        "text": text.to_string(),
        "samples": windows.count(),
        "window": windows.tokens(),
        "objective": format!("{:?}", options.objective),
        "rate": options.rate,
        "epochs": options.epochs,
        "tables": options.what == What::ScalesAndTables,
    }))
}

/// FNV-1a: it tells runs apart that differ by accident.
struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What the model card says of it.
fn note(learned: &Learned, windows: &Windows, options: &TextOptions) -> String {
    let what = match options.what {
        What::Scales => "Scales",
        What::ScalesAndTables => "Scales and tables",
    };
    let (steps, count, tokens) = (learned.steps, windows.count(), windows.tokens());
    let objective = match options.objective {
        Objective::Dense => "to predict what the dense model does",
        Objective::Text => "to predict the text",
    };
    format!(
        "\n## Learned\n\n{what} were trained {objective}: {steps} steps, at a rate of {}, on {count} windows of \
         {tokens} tokens. Codes are those of rounding to nearest. The errors above are of the weights before.\n",
        options.rate
    )
}
