//! The likeliest next token, chosen on the device: the host reads two numbers a sequence, not a vocabulary.

use super::{Cache, Model};
use crate::device;
use crate::error::{Error, Result};
use burn::tensor::{DType, Int, Tensor};

/// The likeliest next token of each sequence; the lowest id among equals.
#[derive(Clone, Debug)]
pub struct Likeliest {
    /// `[batch, 1]`, on the device: what the next step takes.
    pub tokens: Tensor<2, Int>,
    /// `[batch, 2]`: the logit, and the id, which f32 holds exactly in every vocabulary that is served.
    chosen: Tensor<2>,
}

impl Likeliest {
    /// The ids, on the host.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit was NaN or the largest is infinite: the model or its device broke;
    /// [`Error::DeviceFailed`].
    pub fn ids(&self) -> Result<Vec<u32>> {
        let device = self.chosen.device();
        let chosen = self.chosen.clone().try_into_vec_as::<f32>();
        let chosen = chosen.map_err(|error| Error::DeviceFailed {
            device: device::name(&device),
            reason: error.to_string(),
        })?;
        let id = |(row, pair): (usize, &[f32])| match pair[0].is_finite() {
            true => Ok(pair[1] as u32),
            false => {
                let (tensor, value) = ("logits".into(), pair[0]);
                Err(Error::NotFinite { tensor, row, col: pair[1] as usize, value })
            }
        };
        chosen.chunks_exact(2).enumerate().map(id).collect()
    }
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
        let logits = self.forward_last(tokens, cache)?;
        let (values, ids) = logits.squeeze_dim::<2>(1).max_dim_with_indices(1);
        let chosen = Tensor::cat(vec![values, ids.clone().float().cast(DType::F32)], 1);
        Ok(Likeliest { tokens: ids, chosen })
    }
}
