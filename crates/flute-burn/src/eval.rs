//! Perplexity: how well a model predicts a text.
//!
//! The text is cut into windows that share nothing: window `i` predicts the tokens `w·i + 1 … w·i + w` from the tokens
//! `w·i …` of itself alone. The perplexity is the exponential of the mean negative log-probability over all of them;
//! tokens behind the last full window are left out. Log-probabilities are computed in f32, their sum in f64. Refused:
//! a text shorter than one window, a window beyond the context.

use crate::device;
use crate::error::{Error, Result};
use crate::model::Model;
use burn::tensor::{Int, Tensor, activation::log_softmax};

/// Logits that are held at once: 256 MB in f32. Vocabularies of 128,000 tokens would fill a GPU otherwise.
const LOGITS: usize = 1 << 26;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalOptions {
    /// Predictions a window.
    pub window: usize,
    /// Windows computed at once. If none is given: one on a CPU, where more only leave its caches
    /// (measured: 0.23 s a window alone, 0.34 s in eights), eight on a GPU.
    pub batch: Option<usize>,
    /// Windows at most, from the beginning; all if none is given.
    pub limit: Option<usize>,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { window: 512, batch: None, limit: None }
    }
}

/// How far an evaluation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Windows done.
    pub windows: usize,
    /// Windows in all.
    pub total: usize,
    /// Perplexity over the windows done.
    pub perplexity: f64,
}

/// The result of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// The perplexity.
    pub value: f64,
    /// Mean negative log-probability, in nats a token.
    pub mean_nll: f64,
    /// Tokens predicted.
    pub predicted: usize,
    /// Windows they came from.
    pub windows: usize,
}

impl Perplexity {
    fn of(sum: f64, windows: usize, window: usize) -> Self {
        let predicted = windows * window;
        let mean_nll = sum / predicted as f64;
        Self { value: mean_nll.exp(), mean_nll, predicted, windows }
    }
}

/// The perplexity of `model` over `ids`: a text without special tokens.
///
/// # Errors
/// [`Error::InvalidOption`] for a window or batch of 0 and for a text shorter than a window; [`Error::PromptTooLong`]
/// for a window beyond the context; [`Error::TokenOutOfRange`]; [`Error::DeviceFailed`]; [`Error::NotFinite`] if the
/// model predicts nothing but NaN.
pub fn perplexity(
    model: &Model,
    ids: &[u32],
    options: &EvalOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Perplexity> {
    let EvalOptions { window, batch, limit } = *options;
    let batch = batch.unwrap_or(if device::client(model.device()).is_some() { 8 } else { 1 });
    for (name, found) in [("the window", window), ("the batch of windows", batch)] {
        if found == 0 {
            return Err(Error::InvalidOption {
                name,
                found: "0".into(),
                needed: "1 or more".into(),
            });
        }
    }
    if window > model.context() {
        return Err(Error::PromptTooLong { found: window, limit: model.context() });
    }
    let total = (ids.len().saturating_sub(1) / window).min(limit.unwrap_or(usize::MAX));
    if total == 0 {
        let (name, found) = ("the text", format!("{} tokens long", ids.len()));
        let needed = format!("{} tokens long at least, one window and its first token", window + 1);
        return Err(Error::InvalidOption { name, found, needed });
    }
    let mut sum = 0.0;
    for first in (0..total).step_by(batch) {
        let windows = first..total.min(first + batch);
        sum += negative_log_probability(model, ids, window, windows.clone())?;
        let done = Perplexity::of(sum, windows.end, window);
        progress(Progress { windows: windows.end, total, perplexity: done.value });
    }
    let result = Perplexity::of(sum, total, window);
    if result.value.is_nan() {
        let (tensor, value) = ("the log-probabilities".into(), f32::NAN);
        return Err(Error::NotFinite { tensor, row: 0, col: 0, value });
    }
    Ok(result)
}

/// The sum over `windows` of `ids`.
fn negative_log_probability(
    model: &Model,
    ids: &[u32],
    window: usize,
    windows: std::ops::Range<usize>,
) -> Result<f64> {
    let (batch, len) = (windows.len(), windows.len() * window);
    let (start, end) = (windows.start * window, windows.end * window);
    let inputs = model.tokens(&ids[start..end], batch)?;
    let targets = model.tokens(&ids[start + 1..end + 1], 1)?.reshape([1, len, 1]);
    let mut cache = model.new_cache(batch, window)?;
    let hidden = model.hidden(inputs, &mut cache)?;
    let width = hidden.dims()[2];
    let hidden: Tensor<3> = hidden.reshape([1, len, width]);

    let rows = (LOGITS / model.vocab()).clamp(1, len);
    let mut sum = 0.0;
    for at in (0..len).step_by(rows) {
        let rows = rows.min(len - at);
        let logits = model.logits(hidden.clone().narrow(1, at, rows));
        let targets: Tensor<3, Int> = targets.clone().narrow(1, at, rows);
        let chosen = log_softmax(logits, 2).gather(2, targets);
        let chosen = chosen.try_into_vec_as::<f32>().map_err(|error| Error::DeviceFailed {
            device: device::name(model.device()),
            reason: error.to_string(),
        })?;
        sum -= chosen.iter().map(|p| f64::from(*p)).sum::<f64>();
    }
    Ok(sum)
}
