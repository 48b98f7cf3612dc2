//! How much each layer matters: what a model loses for every bit of error in one of its weights.
//!
//! By the linearity theorem of HIGGS (arXiv 2411.17525) the loss of a model whose layers have the relative squared
//! errors `t_l² = ‖ŵ_l − w_l‖² / ‖w_l‖²` grows by `Σ α_l · t_l²` while errors are small. Here `α_l` is measured: layer l
//! alone gets noise of a known `t²`, and the mean Kullback-Leibler divergence of the next token's distribution from
//! that of the undisturbed model, over `t²`, is its sensitivity. On a text this is the loss to be expected there; on
//! random tokens it needs no data. The divergence has no first-order term, so that one draw of noise is enough where
//! the loss itself would need many. Refused: sources that are quantized already, texts shorter than a window.

use crate::checkpoint::Reader;
use crate::device;
use crate::error::{Error, Result};
use crate::model::{Disturbance, LoadOptions, Model};
use burn::tensor::{Int, Tensor, activation::log_softmax};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::Serialize;
use std::path::Path;

/// Logits that are held at once, of each of two models: 128 MB in f32.
const LOGITS: usize = 1 << 25;

/// How to measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SensitivityOptions {
    /// Tokens a window.
    pub window: usize,
    /// Windows; of a text, evenly spread over it.
    pub windows: usize,
    /// Relative squared error of the noise: about that of 3 bits, where assignments are decided.
    pub error: f64,
    /// Of noise and random tokens.
    pub seed: u64,
}

impl Default for SensitivityOptions {
    fn default() -> Self {
        Self { window: 256, windows: 4, error: 0.03, seed: 0 }
    }
}

/// What one layer matters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// The linear layer.
    pub module: String,
    /// Nats a token for every unit of relative squared error.
    pub alpha: f64,
}

/// Measures every linear layer of the dense model in `dir` that quantizers take, on `text` or, without one, on random
/// tokens. `progress` hears the layers done and their number.
///
/// # Errors
/// [`Error::InvalidOption`] for sizes of 0, an error that is not above 0, and a text shorter than a window;
/// [`Error::AlreadyQuantized`]; [`Error::PromptTooLong`]; [`Error::TokenOutOfRange`]; [`Error::NotFinite`] for a model
/// that predicts NaN; what [`Model::load`] refuses.
pub fn measure(
    dir: &Path,
    load: &LoadOptions,
    text: Option<&[u32]>,
    options: &SensitivityOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Sensitivity>> {
    let reader = Reader::open(dir)?;
    if let Some(bits) = reader.bits() {
        return Err(Error::AlreadyQuantized { dir: dir.into(), bits });
    }
    check(options, reader.config().max_position_embeddings)?;
    let windows = windows(text, reader.config().vocab_size, options)?;
    let modules: Vec<String> =
        reader.linears().into_iter().map(|linear| linear.module.to_owned()).collect();
    if modules.is_empty() {
        return Err(Error::NothingToQuantize { dir: dir.into() });
    }
    let model = Model::load(dir, load)?;
    let batch = if device::client(model.device()).is_some() { 8 } else { 1 };
    let mut expected = vec![];
    for windows in windows.chunks(batch) {
        let tokens = model.tokens(&windows.concat(), windows.len())?;
        let hidden = hidden(&model, tokens.clone())?;
        expected.push((tokens, hidden));
    }
    let predicted = (options.windows * options.window) as f64;
    let mut measured = Vec::with_capacity(modules.len());
    for (index, module) in modules.iter().enumerate() {
        let disturbed = model.disturbed(Disturbance {
            reader: &reader,
            options: load,
            module,
            error: options.error,
            seed: options.seed.wrapping_add(index as u64),
        })?;
        let mut sum = 0.0;
        for (tokens, expected) in &expected {
            let found = hidden(&disturbed, tokens.clone())?;
            sum += divergence(&model, expected.clone(), found)?;
        }
        let alpha = sum / predicted / options.error;
        if !alpha.is_finite() {
            let (tensor, value) = (format!("the sensitivity of {module}"), alpha as f32);
            return Err(Error::NotFinite { tensor, row: 0, col: 0, value });
        }
        // Rounding may leave a layer that does nothing a little below 0.
        measured.push(Sensitivity { module: module.clone(), alpha: alpha.max(0.0) });
        progress(index + 1, modules.len());
    }
    Ok(measured)
}

fn check(options: &SensitivityOptions, context: usize) -> Result<()> {
    let SensitivityOptions { window, windows, error, .. } = *options;
    let invalid = |name, found: String, needed: &str| {
        Err(Error::InvalidOption { name, found, needed: needed.into() })
    };
    if window == 0 || windows == 0 {
        return invalid(
            "the windows",
            format!("{windows} of {window} tokens"),
            "1 or more of each",
        );
    }
    if !error.is_finite() || error <= 0.0 {
        return invalid("the error of the noise", error.to_string(), "finite and above 0");
    }
    if window > context {
        return Err(Error::PromptTooLong { found: window, limit: context });
    }
    Ok(())
}

fn windows(
    text: Option<&[u32]>,
    vocab: usize,
    options: &SensitivityOptions,
) -> Result<Vec<Vec<u32>>> {
    let SensitivityOptions { window, windows, seed, .. } = *options;
    let Some(ids) = text else {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut random = || (0..window).map(|_| rng.random_range(0..vocab as u32)).collect();
        return Ok((0..windows).map(|_| random()).collect());
    };
    let Some(room) = ids.len().checked_sub(window) else {
        return Err(Error::InvalidOption {
            name: "the text",
            found: format!("{} tokens long", ids.len()),
            needed: format!("{window} tokens long at least, one window"),
        });
    };
    let start = |index: usize| room * index / windows.saturating_sub(1).max(1);
    Ok((0..windows).map(|index| ids[start(index)..][..window].to_vec()).collect())
}

fn hidden(model: &Model, tokens: Tensor<2, Int>) -> Result<Tensor<3>> {
    let [batch, window] = tokens.dims();
    let mut cache = model.new_cache(batch, window)?;
    let hidden = model.hidden(tokens, &mut cache)?;
    let width = hidden.dims()[2];
    Ok(hidden.reshape([1, batch * window, width]))
}

/// The divergence of what `found` predicts from what `expected` predicts, summed over tokens.
fn divergence(model: &Model, expected: Tensor<3>, found: Tensor<3>) -> Result<f64> {
    let len = expected.dims()[1];
    let rows = (LOGITS / model.vocab()).clamp(1, len);
    let mut sum = 0.0;
    for at in (0..len).step_by(rows) {
        let rows = rows.min(len - at);
        let [expected, found] = [&expected, &found]
            .map(|hidden| log_softmax(model.logits(hidden.clone().narrow(1, at, rows)), 2));
        let tokens = (expected.clone().exp() * (expected - found)).sum_dim(2);
        let tokens = tokens.try_into_vec_as::<f32>().map_err(|error| Error::DeviceFailed {
            device: device::name(model.device()),
            reason: error.to_string(),
        })?;
        sum += tokens.iter().map(|token| f64::from(*token)).sum::<f64>();
    }
    Ok(sum)
}
