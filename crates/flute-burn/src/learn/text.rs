//! Learning from a text: its windows, and how well a model predicts one.

use super::{LearnOptions, Learner, RATE, What};
use crate::error::{Error, Result};
use crate::model::Model;
use burn::tensor::{Int, Tensor, activation::log_softmax};
use std::ops::ControlFlow;

/// What a model is to predict of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// What the dense model predicts, every probability of it: more to learn from a token than the one that follows
    /// (twice the gain from the same text, on the models here), for the memory and the forward pass of the dense model.
    #[default]
    Dense,
    /// The text itself, as the paper has it.
    Text,
}

/// How a text is learned from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextOptions {
    /// What is learned.
    pub what: What,
    /// Against what; [`Windows::with_teacher`] is what makes the difference.
    pub objective: Objective,
    /// Windows of the text, spread evenly over it.
    pub samples: usize,
    /// Tokens of a window.
    pub seq_len: usize,
    /// [`LearnOptions::rate`].
    pub rate: f64,
    /// Passes over the windows, a step each window.
    pub epochs: usize,
    /// The token that begins a sequence, where the model has one: it stands before every window.
    pub begin: Option<u32>,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            what: What::Scales,
            objective: Objective::Dense,
            samples: 128,
            seq_len: 2048,
            rate: RATE,
            epochs: 1,
            begin: None,
        }
    }
}

/// How far learning is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// [`Windows::loss`] of the last window, in nats a token, before its step.
    pub loss: f64,
    /// Tokens of a step.
    pub tokens: usize,
}

/// What hears every step of a model, and may end it.
pub type Watch<'a> = dyn FnMut(Progress, &Learner<Model>) -> Result<ControlFlow<()>> + 'a;

/// The windows of a text, of equal length, and who says what a model should predict of them.
#[derive(Clone, Debug)]
pub struct Windows {
    /// What the model reads and what the text goes on with, token by token.
    pairs: Vec<(Vec<u32>, Vec<u32>)>,
    teacher: Option<Model>,
}

impl Windows {
    /// Cuts `ids`, a text without special tokens, for a model of `context` tokens.
    ///
    /// A text with fewer windows than wanted gives those it has, and a context shorter than a window cuts it.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for 0 samples, tokens or epochs, and for a text shorter than a window.
    pub fn cut(ids: &[u32], context: usize, options: &TextOptions) -> Result<Self> {
        let TextOptions { samples, seq_len, epochs, begin, .. } = *options;
        for (name, found) in
            [("the number of samples", samples), ("the window", seq_len), ("epochs", epochs)]
        {
            if found == 0 {
                let needed = "1 or more".into();
                return Err(Error::InvalidOption { name, found: "0".into(), needed });
            }
        }
        let len = seq_len.min(context);
        // Without a token that begins a sequence, the text's own precedes each window.
        let (text, before) = match begin {
            Some(_) => (ids, None),
            None => (ids.get(1..).unwrap_or_default(), Some(ids)),
        };
        let whole = text.len() / len;
        if whole == 0 {
            let (name, found) = ("the text", format!("{} tokens long", ids.len()));
            let needed = format!("{} tokens long at least, one window", len + 1);
            return Err(Error::InvalidOption { name, found, needed });
        }
        let samples = samples.min(whole);
        let pairs = (0..samples).map(|sample| {
            let start = sample * whole / samples * len;
            let said = text[start..start + len].to_vec();
            let first = match before {
                Some(before) => before[start],
                None => begin.unwrap_or_default(),
            };
            let read = std::iter::once(first).chain(said[..len - 1].iter().copied()).collect();
            (read, said)
        });
        Ok(Self { pairs: pairs.collect(), teacher: None })
    }

    /// The same windows, of which a model should predict what `teacher` does.
    pub fn with_teacher(self, teacher: Model) -> Self {
        Self { teacher: Some(teacher), ..self }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.pairs.len()
    }

    /// Tokens of each.
    pub fn tokens(&self) -> usize {
        self.pairs.first().map_or(0, |(_, said)| said.len())
    }

    /// How far `model` is off over window `index`, in nats a token: `[1]`. Without a teacher that is the mean negative
    /// log-probability of the text, with one the mean divergence of the model's predictions from the teacher's.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`], [`Error::PromptTooLong`].
    pub fn loss(&self, model: &Model, index: usize) -> Result<Tensor<1>> {
        let (read, said) = &self.pairs[index % self.pairs.len()];
        let predicted = predictions(model, read)?;
        let Some(teacher) = &self.teacher else {
            let said: Tensor<3, Int> = model.tokens(said, 1)?.reshape([1, said.len(), 1]);
            return Ok(predicted.gather(2, said).mean().neg());
        };
        let wanted = predictions(teacher, read)?;
        let each = wanted.clone().exp() * (wanted - predicted);
        Ok(each.sum().div_scalar(read.len() as f64))
    }
}

/// Log-probabilities `[1, tokens, vocab]`.
fn predictions(model: &Model, read: &[u32]) -> Result<Tensor<3>> {
    let mut cache = model.new_cache(1, read.len())?;
    Ok(log_softmax(model.forward(model.tokens(read, 1)?, &mut cache)?, 2))
}

/// Teaches `model` on `windows`; `progress` hears every step and may end it.
///
/// # Errors
/// What [`Learner::new`] and [`Learner::step`] refuse.
pub fn learn(
    model: Model,
    windows: &Windows,
    options: &TextOptions,
    progress: &mut Watch<'_>,
) -> Result<Learner<Model>> {
    let mut learner = begin(model, windows, options)?;
    go_on(&mut learner, windows, progress)?;
    Ok(learner)
}

/// A learner of `model` that has done no step yet.
///
/// # Errors
/// What [`Learner::new`] refuses.
pub fn begin(model: Model, windows: &Windows, options: &TextOptions) -> Result<Learner<Model>> {
    let TextOptions { what, rate, epochs, .. } = *options;
    Learner::new(model, LearnOptions { what, rate, steps: windows.count() * epochs })
}

/// The steps that `learner` has not done yet.
///
/// # Errors
/// What [`Learner::step`] refuses, and what `progress` returns.
pub fn go_on(
    learner: &mut Learner<Model>,
    windows: &Windows,
    progress: &mut Watch<'_>,
) -> Result<()> {
    let (steps, tokens) = (learner.steps(), windows.tokens());
    while learner.done() < steps {
        let at = learner.done();
        let loss = learner.step(|model| windows.loss(model, at))?;
        let now = Progress { step: learner.done(), steps, loss, tokens };
        if progress(now, learner)?.is_break() {
            break;
        }
    }
    Ok(())
}
