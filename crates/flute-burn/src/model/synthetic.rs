//! Models without a checkpoint: noise of the right shapes and types, made on the device, layer by layer.
//!
//! What a step reads and computes does not depend on the values, so a model's speed can be measured where its files
//! cannot be had. The host holds no weight of it. Scales follow 1 / √k, so that activations stay in the range of f16:
//! times of infinities would be no times of a model.

use super::embedding::Embedding;
use super::norm::RmsNorm;
use super::projections::{Projections, Stack};
use super::source::Source;
use crate::checkpoint::ModelConfig;
use crate::device;
use crate::error::{Error, Result};
use crate::linear::{AnyLinear, FluteLinear};
use crate::op::{FluteTensors, WeightShape};
use burn::module::{Param, ParamId};
use burn::nn;
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use flute_cube::pack::{Order, TURN};
use flute_cube::{Format, PackedWeight, Table};

const HEAD: &str = "lm_head";

/// Where a model of noise is made, and how its linear layers are stored.
#[derive(Clone, Debug)]
pub struct SyntheticOptions {
    /// The device.
    pub device: Device,
    /// Type of weights and activations; [`device::default_dtype`] if none is given.
    pub dtype: Option<DType>,
    /// Format of the linear layers but the head; dense if none is given.
    pub format: Option<Format>,
    /// Format of the head, or of the embedding that is the head; dense if none is given.
    pub head: Option<Format>,
}

/// Makes parameters on a device.
pub(super) struct Synthetic<'a> {
    options: &'a SyntheticOptions,
    dtype: DType,
    /// Whether the embedding is the head.
    tied: bool,
}

impl<'a> Synthetic<'a> {
    pub(super) fn new(options: &'a SyntheticOptions, tied: bool) -> Result<Self> {
        let dtype = options.dtype.unwrap_or_else(|| device::default_dtype(&options.device));
        device::check_dtype(&options.device, dtype)?;
        options.device.seed(0);
        Ok(Self { options, dtype, tied })
    }

    fn format(&self, name: &str) -> Option<Format> {
        if name == HEAD { self.options.head } else { self.options.format }
    }

    /// Uniform in ±`amplitude` around `middle`.
    fn floats<const D: usize>(
        &self,
        shape: [usize; D],
        [middle, amplitude]: [f64; 2],
    ) -> Tensor<D> {
        let (device, dtype) = (&self.options.device, self.dtype);
        let range = Distribution::Uniform(middle - amplitude, middle + amplitude);
        device.memory_persistent_allocations(shape, |shape: [usize; D]| {
            Tensor::random(shape, range, (device, dtype))
        })
    }

    fn words(&self, len: usize) -> Tensor<1, Int> {
        let device = &self.options.device;
        // Random integers are made from f32, which has 24 bits: a word takes two of them.
        let half = |low: f64| {
            let range = Distribution::Uniform(low, low + 65536.0);
            Tensor::<1, Int>::random([len], range, (device, DType::I32))
        };
        device.memory_persistent_allocations((), |()| half(-32768.0) * 65536 + half(0.0))
    }

    fn flute(&self, shape: WeightShape, bias: bool) -> Result<FluteLinear> {
        let WeightShape { n, k, format } = shape;
        let scale = (k as f64).powf(-0.5);
        let pairs = Table::nf(format.bits).pair_table().into_flattened();
        let len = pairs.len();
        let at = (&self.options.device, self.dtype);
        FluteLinear::from_tensors(FluteTensors {
            words: self.words(PackedWeight::words_len(n, k, format)),
            scales: self.floats([PackedWeight::scales_len(n, k, format)], [scale, scale / 2.0]),
            pairs: Tensor::from_data(TensorData::new(pairs, [len]), at),
            bias: bias.then(|| self.floats([n], [0.0, 0.1])),
            shape,
        })
    }
}

impl Source for Synthetic<'_> {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn linear(&self, name: &str, [n, k]: [usize; 2], bias: bool) -> Result<AnyLinear> {
        let linear = match self.format(name) {
            Some(format) => AnyLinear::Flute(self.flute(WeightShape { n, k, format }, bias)?),
            None => AnyLinear::Dense(nn::Linear {
                weight: self.matrix(name, [n, k])?.map(Tensor::transpose),
                bias: bias
                    .then(|| Param::initialized(ParamId::new(), self.floats([n], [0.0, 0.1]))),
            }),
        };
        // Layer by layer: what a device still has to make would pile up otherwise.
        self.options.device.sync().map_err(|error| Error::DeviceFailed {
            device: device::name(&self.options.device),
            reason: error.to_string(),
        })?;
        Ok(linear)
    }

    fn projections(&self, stack: Stack<'_>) -> Result<Projections> {
        let widths = stack.widths();
        let whole = stack.order == Order::Stacked || widths.iter().all(|n| n.is_multiple_of(TURN));
        if self.options.format.is_none() || !whole {
            let layers = stack.layers().map(|(name, shape)| self.linear(&name, shape, stack.bias));
            return Ok(Projections::apart(layers.collect::<Result<_>>()?));
        }
        let all =
            self.linear(stack.parent, [widths.iter().sum(), stack.in_features], stack.bias)?;
        Ok(Projections::together(all, stack))
    }

    fn matrix(&self, _: &str, shape: [usize; 2]) -> Result<Param<Tensor<2>>> {
        let amplitude = (shape[1] as f64).powf(-0.5);
        Ok(Param::initialized(ParamId::new(), self.floats(shape, [0.0, amplitude])))
    }

    fn embedding(&self, name: &str, [n, k]: [usize; 2]) -> Result<Embedding> {
        match self.options.head.filter(|_| self.tied) {
            Some(format) => Ok(Embedding::Flute(self.flute(WeightShape { n, k, format }, false)?)),
            None => Ok(Embedding::Dense(self.matrix(name, [n, k])?)),
        }
    }

    fn norm(&self, _: &str, len: usize, config: &ModelConfig) -> Result<RmsNorm> {
        let gain = Tensor::ones([len], (&self.options.device, DType::F32));
        Ok(RmsNorm::new(Param::initialized(ParamId::new(), gain), config.rms_norm_eps))
    }
}
