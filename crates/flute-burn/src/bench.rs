//! The speed of a model, and what bounds it.
//!
//! Decoding reads every weight once a step, so no device is faster than those bytes at the rate at which it reads; that
//! floor is computed from a rate measured in the same run. A step is measured as a user of [`generate`] sees it: tokens
//! go in, the likeliest next ones come back to the host while the step behind them runs. The first steps, in which
//! kernels are compiled and a step is recorded, are left out. Where steps are replayed, steps that the host launches are
//! measured beside them.
//! The context that steps look back at is noise: what is read does not depend on it. Refused: a context or a prompt
//! beyond that of the model, counts of zero.

use crate::device;
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, generate, prefill_chunk};
use crate::model::{Decoding, Model, StepBytes};
use burn::tensor::Tensor;
use flute_cube::measure;
use serde::Serialize;
use std::time::Instant;

/// Steps that are not counted: in them kernels are compiled and a step is recorded.
const WARM_UP: usize = 8;

/// Bytes that the read rate is measured over: more than any cache holds.
const READ: usize = 1 << 30;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// Sequences decoded together.
    pub batch: usize,
    /// Tokens that each has behind it when measuring begins.
    pub context: usize,
    /// Steps measured.
    pub tokens: usize,
    /// Tokens of the prompt whose reading is measured; 0 leaves that out.
    pub prompt: usize,
    /// Whether steps are recorded and replayed where the device can.
    pub graph: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { batch: 1, context: 1024, tokens: 64, prompt: 2048, graph: true }
    }
}

/// What was measured; times in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens a second, all sequences together, by the median step.
    pub tokens_per_second: f64,
    /// One step: the median.
    pub step_seconds: f64,
    /// One step: the fastest.
    pub step_seconds_least: f64,
    /// Whether the steps above were replays.
    pub graph: bool,
    /// One step that the host launches, the median, where those above are replays.
    pub step_seconds_launched: Option<f64>,
    /// What a step reads, in the middle of the measurement.
    pub step_bytes: StepBytes,
    /// Bytes a second that a kernel reaches which only reads; none where no kernel runs.
    pub read_rate: Option<f64>,
    /// The step's bytes at that rate.
    pub floor_seconds: Option<f64>,
    /// Floor over median step: 1 is as fast as memory.
    pub of_floor: Option<f64>,
    /// Reading the prompt.
    pub prompt: Option<PromptSpeed>,
}

/// How fast a prompt is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PromptSpeed {
    /// From the prompt to hidden states, kernels being compiled and tuned.
    pub prefill_seconds: f64,
    /// From the prompt to the first token on the host.
    pub first_token_seconds: f64,
    /// The same the first time, compiling and tuning included.
    pub first_token_seconds_cold: f64,
}

/// Measures `model`; `stage` hears what is measured next.
///
/// # Errors
/// [`Error::InvalidOption`] for counts of zero; [`Error::PromptTooLong`] if context and steps, or the prompt, exceed the
/// model's context; [`Error::DeviceFailed`] and what [`generate`] and [`measure::read_rate`] refuse.
pub fn bench(model: &Model, options: &BenchOptions, stage: &mut dyn FnMut(&str)) -> Result<Speed> {
    let BenchOptions { batch, context, tokens, prompt, .. } = *options;
    for (name, found) in [("the batch", batch), ("the number of tokens", tokens)] {
        if found == 0 {
            let needed = "1 or more".into();
            return Err(Error::InvalidOption { name, found: "0".into(), needed });
        }
    }
    let (longest, limit) = ((context + WARM_UP + tokens).max(prompt + 1), model.context());
    if longest > limit {
        return Err(Error::PromptTooLong { found: longest, limit });
    }
    // First, while nothing is compiled: a user's first prompt finds a model that has just been loaded.
    let prompt = match prompt {
        0 => None,
        prompt => {
            stage("prompt");
            Some(read_prompt(model, prompt)?)
        }
    };
    stage("read rate");
    let client = device::client(model.device());
    let read_rate = client.map(|client| measure::read_rate(&client, READ)).transpose()?;
    stage("decoding");
    let Steps { median, least, graph } = decode(model, options)?;
    let step_seconds_launched = match graph {
        true => Some(decode(model, &BenchOptions { graph: false, ..*options })?.median),
        false => None,
    };
    let step_bytes = model.step_bytes(batch, context + WARM_UP + tokens / 2);
    let floor_seconds = read_rate.map(|rate| step_bytes.total() as f64 / rate);
    Ok(Speed {
        tokens_per_second: batch as f64 / median,
        step_seconds: median,
        step_seconds_least: least,
        graph,
        step_seconds_launched,
        step_bytes,
        read_rate,
        floor_seconds,
        of_floor: floor_seconds.map(|floor| floor / median),
        prompt,
    })
}

/// Steps in seconds.
struct Steps {
    median: f64,
    least: f64,
    /// Whether they were replays.
    graph: bool,
}

fn decode(model: &Model, options: &BenchOptions) -> Result<Steps> {
    let BenchOptions { batch, context, tokens, graph, .. } = *options;
    let cache = model.noise_cache(batch, context + WARM_UP + tokens, context)?;
    let first = model.tokens(&ids(model, batch), batch)?;
    let mut decoding = Decoding::new(model, first, cache, graph)?.run_ahead();
    let mut seconds = Vec::with_capacity(tokens);
    for step in 0..WARM_UP + tokens {
        let start = Instant::now();
        decoding.likeliest()?;
        if step >= WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let (median, least) = (seconds[tokens / 2], seconds[0]);
    Ok(Steps { median, least, graph: decoding.is_graph() })
}

fn read_prompt(model: &Model, len: usize) -> Result<PromptSpeed> {
    let prompt = ids(model, len);
    let options = GenerateOptions { max_new_tokens: 1, stop: Some(vec![]), ..Default::default() };
    let first_token = || -> Result<f64> {
        let start = Instant::now();
        generate(model, &prompt, &options)?.next().transpose()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let prefill = || -> Result<f64> {
        let start = Instant::now();
        let mut cache = model.new_cache(1, len)?;
        let mut last = None;
        for chunk in prompt.chunks(prefill_chunk(model, len)) {
            let hidden = model.hidden(model.tokens(chunk, 1)?, &mut cache)?;
            last = Some(hidden.narrow(1, chunk.len() - 1, 1));
        }
        // Only what is read is sure to have been computed.
        last.map(|last| host(model, last)).transpose()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let first_token_seconds_cold = first_token()?;
    Ok(PromptSpeed {
        prefill_seconds: least(prefill)?,
        first_token_seconds: least(first_token)?,
        first_token_seconds_cold,
    })
}

fn least(measure: impl Fn() -> Result<f64>) -> Result<f64> {
    (0..3).map(|_| measure()).try_fold(f64::INFINITY, |least, seconds| Ok(least.min(seconds?)))
}

/// Some ids that differ.
fn ids(model: &Model, count: usize) -> Vec<u32> {
    (0..count).map(|i| (i * 7919 % model.vocab()) as u32).collect()
}

fn host<const D: usize>(model: &Model, tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(|error| Error::DeviceFailed {
        device: device::name(model.device()),
        reason: error.to_string(),
    })
}
