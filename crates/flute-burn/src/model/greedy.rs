//! The likeliest next token, chosen on the device: the host reads two numbers a sequence, not a vocabulary.

use super::{Cache, Model};
use crate::choose::{Choice, choose};
use crate::device;
use crate::error::{Error, Result};
use burn::tensor::{DType, Int, Tensor};

/// The likeliest next token of each sequence; the lowest id among equals.
#[derive(Clone, Debug)]
pub struct Likeliest {
    /// `[batch, 1]`, on the device: what the next step takes.
    pub tokens: Tensor<2, Int>,
    /// `[batch, 2]`: the logit, and the id, which f32 holds exactly in every vocabulary that is served.
    pub(super) chosen: Tensor<2>,
    /// `[batch, vocab]`: what was chosen from, in f32 or the model's type.
    pub(super) logits: Tensor<2>,
}

impl Likeliest {
    /// The ids, on the host.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit was NaN or the largest is infinite: the model or its device broke;
    /// [`Error::DeviceFailed`].
    pub fn ids(&self) -> Result<Vec<u32>> {
        ids(&self.chosen, |_| true)
    }

    /// The logits that it was chosen from, `[batch, vocab]` row by row, on the host.
    ///
    /// # Errors
    /// [`Error::DeviceFailed`].
    pub fn logits(&self) -> Result<Vec<f32>> {
        floats(&self.logits)
    }
}

/// The ids of `chosen` `[batch, 2]`: as [`Likeliest::ids`], of whose rows those that `matter` must be finite.
pub(super) fn ids(chosen: &Tensor<2>, matters: impl Fn(usize) -> bool) -> Result<Vec<u32>> {
    finite_ids(&floats(chosen)?, matters)
}

/// As [`ids`], of `chosen` on the host.
pub(super) fn finite_ids(chosen: &[f32], matters: impl Fn(usize) -> bool) -> Result<Vec<u32>> {
    let id = |(row, pair): (usize, &[f32])| match pair[0].is_finite() || !matters(row) {
        true => Ok(pair[1] as u32),
        false => {
            let (tensor, value) = ("logits".into(), pair[0]);
            Err(Error::NotFinite { tensor, row, col: pair[1] as usize, value })
        }
    };
    chosen.chunks_exact(2).enumerate().map(id).collect()
}

/// `tensor` on the host.
pub(super) fn floats(tensor: &Tensor<2>) -> Result<Vec<f32>> {
    tensor.clone().try_into_vec_as::<f32>().map_err(|error| Error::DeviceFailed {
        device: device::name(&tensor.device()),
        reason: error.to_string(),
    })
}

impl Model {
    /// The likeliest next token behind `tokens` `[batch, tokens]`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    ///
    /// # Panics
    /// As [`Model::forward`].
    pub fn likeliest(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Result<Likeliest> {
        cache.admit(tokens.dims())?;
        let len = tokens.dims()[1];
        let likeliest = self.step(tokens, cache);
        cache.count(len);
        Ok(likeliest)
    }

    /// As [`Model::likeliest`], of tokens that the cache admits. A single token a sequence is written over by the next
    /// one, and the position moved, where they stand: the step after reads the same buffers as this one, if nobody else
    /// holds them. The host counts nothing.
    pub(super) fn step(&self, tokens: Tensor<2, Int>, cache: &mut Cache) -> Likeliest {
        let [batch, len] = tokens.dims();
        let hidden = self.network.states(tokens.clone(), cache);
        let (hidden, tokens) = match len {
            1 => (hidden, tokens),
            _ => {
                let last = hidden.narrow(1, len - 1, 1);
                (last, Tensor::zeros([batch, 1], (&self.device, DType::I32)))
            }
        };
        let logits = self.network.logits(hidden).squeeze_dim::<2>(1);
        cache.with_position(|position| {
            let Choice { chosen, tokens, position } = choose(logits.clone(), tokens, position, len);
            (position, Likeliest { tokens, chosen, logits })
        })
    }
}
