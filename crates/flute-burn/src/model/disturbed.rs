//! A model with one of its layers disturbed: what a layer matters is seen by what its noise does.
//!
//! The noise is independent of the weight: ±r for every element, from a fixed seed, with r the root mean square of the
//! weight times the square root of the relative error asked for. Its norm is so exact, not a sample. Only dense layers
//! are disturbed, and only the block of the layer is read anew.

use super::load::{LoadOptions, Loader};
use super::norm::RmsNorm;
use super::source::Source;
use super::{Decoder, Model};
use crate::checkpoint::{ModelConfig, Reader};
use crate::error::{Error, Result};
use crate::linear::AnyLinear;
use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// What to disturb, and how much.
#[derive(Clone, Copy)]
pub(crate) struct Disturbance<'a> {
    /// Where the model was loaded from, and how.
    pub(crate) reader: &'a Reader,
    pub(crate) options: &'a LoadOptions,
    /// A linear layer of a block.
    pub(crate) module: &'a str,
    /// ‖noise‖² / ‖weight‖².
    pub(crate) error: f64,
    pub(crate) seed: u64,
}

/// The layers of a directory, one of them disturbed.
struct Disturbed<'a> {
    loader: Loader<'a>,
    disturbance: Disturbance<'a>,
}

impl Model {
    /// The same model but for one layer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a layer that is in no block or not dense; what loading refuses.
    pub(crate) fn disturbed(&self, disturbance: Disturbance<'_>) -> Result<Self> {
        let Disturbance { reader, options, module, .. } = disturbance;
        let block = module.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        let block = block.and_then(|index| index.parse().ok());
        let block = block.filter(|index| *index < self.config.num_hidden_layers);
        let Some(block) = block else { return Err(unsupported(module, "it is in no block")) };
        let source = Disturbed { loader: Loader::new(reader, options)?, disturbance };
        let mut network = Decoder::clone(&self.network);
        network.replace_block(&source, &self.config, block)?;
        Ok(Self { network: Box::new(network), ..self.clone() })
    }
}

impl Source for Disturbed<'_> {
    fn dtype(&self) -> DType {
        self.loader.dtype()
    }

    fn linear(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<AnyLinear> {
        let linear = self.loader.linear(name, shape, bias)?;
        if name != self.disturbance.module {
            return Ok(linear);
        }
        let AnyLinear::Dense(mut linear) = linear else {
            return Err(unsupported(name, "it is quantized already"));
        };
        let Disturbance { error, seed, .. } = self.disturbance;
        linear.weight = linear.weight.map(|weight| noisy(weight, error, seed));
        Ok(AnyLinear::Dense(linear))
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Param<Tensor<2>>> {
        self.loader.matrix(name, shape)
    }

    fn norm(&self, name: &str, len: usize, config: &ModelConfig) -> Result<RmsNorm> {
        self.loader.norm(name, len, config)
    }
}

fn noisy(weight: Tensor<2>, error: f64, seed: u64) -> Tensor<2> {
    let (shape, dtype, device) = (weight.dims(), weight.dtype(), weight.device());
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut signs = Vec::with_capacity(shape[0] * shape[1]);
    while signs.len() < signs.capacity() {
        let bits: u64 = rng.random();
        let left = (shape[0] * shape[1] - signs.len()).min(64);
        signs.extend((0..left).map(|bit| if bits >> bit & 1 == 0 { 1.0f32 } else { -1.0 }));
    }
    let signs: Tensor<2> = Tensor::from_data(TensorData::new(signs, shape), (&device, DType::F32));
    let weight = weight.cast(DType::F32);
    let size = (weight.clone() * weight.clone()).mean().sqrt() * error.sqrt();
    (weight + signs * size.unsqueeze()).cast(dtype)
}

fn unsupported(module: &str, reason: &str) -> Error {
    Error::Unsupported { what: format!("disturbing {module}"), reason: reason.into() }
}
