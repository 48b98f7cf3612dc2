//! From files to parameters, one layer after another.
//!
//! Codes go from the file to kernel order without a form between them, dense weights in the type that the device holds:
//! the host never has more than the layers of one product, and what is on its way to the device. A device copies while
//! the host reads on, but waits are put between, so that no more than [`UNDERWAY`] bytes are on that way.

use super::embedding::Embedding;
use super::norm::RmsNorm;
use super::projections::{Projections, Stack};
use super::source::Source;
use crate::checkpoint::{Architecture, ModelConfig, PackedLinear, Reader, StoredWeight};
use crate::device;
use crate::error::{Error, Result};
use crate::hadamard;
use crate::linear::{AnyLinear, FluteLinear, Rotation};
use burn::module::{Param, ParamId};
use burn::nn;
use burn::tensor::{DType, Device, Tensor, TensorData};
use flute_cube::PackedWeight;
use std::cell::Cell;

/// Where a model is loaded to, and how.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The device.
    pub device: Device,
    /// Type of weights and activations: f32, f16 or bf16; [`device::default_dtype`] if none is given.
    pub dtype: Option<DType>,
    /// Decode quantized layers once, when they are loaded, and keep them dense: the memory of a dense model, and on a
    /// CPU many times its quantized speed, since no kernel there reads codes.
    pub dequantize: bool,
    /// Make one layer of q, k and v, and one of gate and up, where they are quantized alike: fewer and larger products.
    /// Without it every layer of the checkpoint is a layer of the model.
    pub fuse: bool,
}

impl LoadOptions {
    /// To `device`, in its default type, quantized layers as they are and fused.
    pub fn new(device: Device) -> Self {
        Self { device, dtype: None, dequantize: false, fuse: true }
    }
}

/// Bytes that the device may have been given without having been waited for.
const UNDERWAY: usize = 128 << 20;

/// Reads tensors of the shapes that the configuration says, and refuses all others.
pub(super) struct Loader<'a> {
    reader: &'a Reader,
    dtype: DType,
    options: &'a LoadOptions,
    /// Bytes given to the device since it was last waited for.
    underway: Cell<usize>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(reader: &'a Reader, options: &'a LoadOptions) -> Result<Self> {
        let dtype = options.dtype.unwrap_or_else(|| device::default_dtype(&options.device));
        device::check_dtype(&options.device, dtype)?;
        Ok(Self { reader, dtype, options, underway: Cell::new(0) })
    }

    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: DType,
    ) -> Result<Param<Tensor<D>>> {
        expect(name, &self.reader.info(name)?.shape, &shape)?;
        let data = self.reader.data(name, device::kernel_dtype(dtype)?)?;
        let bytes = data.bytes().len();
        let device = &self.options.device;
        let tensor = device.memory_persistent_allocations(data, |data: TensorData| {
            Tensor::from_data(data, (device, dtype))
        });
        self.given(bytes)?;
        Ok(Param::initialized(ParamId::new(), tensor))
    }

    /// Waits for the device if that is too much at once: it would be kept on the host until copied.
    fn given(&self, bytes: usize) -> Result<()> {
        let underway = self.underway.get() + bytes;
        self.underway.set(underway);
        if underway < UNDERWAY {
            return Ok(());
        }
        self.underway.set(0);
        let device = &self.options.device;
        device.sync().map_err(|error| Error::DeviceFailed {
            device: device::name(device),
            reason: error.to_string(),
        })
    }

    fn expect_bias(&self, name: &str) -> Result<()> {
        let tensor = format!("{name}.bias");
        if self.reader.contains(&tensor) {
            return Ok(());
        }
        Err(Error::TensorAbsent { dir: self.reader.dir().into(), tensor })
    }

    fn dense(&self, name: &str, shape: [usize; 2]) -> Result<AnyLinear> {
        let bias = format!("{name}.bias");
        // Burn's layout is [k, n]: a transposed view of the rows as they lie, which its matmuls read as well.
        let weight = self.matrix(&format!("{name}.weight"), shape)?.map(Tensor::transpose);
        let bias = match self.reader.contains(&bias) {
            true => Some(self.tensor(&bias, [shape[0]], self.dtype)?),
            false => None,
        };
        Ok(AnyLinear::Dense(nn::Linear { weight, bias }))
    }

    /// A quantized layer, decoded.
    fn decoded(&self, name: &str, [n, k]: [usize; 2]) -> Result<AnyLinear> {
        let stored = self.reader.linear(name)?;
        let dense = match stored.weight {
            StoredWeight::Dense { data, .. } => data,
            StoredWeight::Quantized(weight) => {
                expect_codes(name, [weight.n(), weight.k()], [n, k], stored.hadamard_size)?;
                match stored.hadamard_size {
                    Some(block) => {
                        let seed = stored.hadamard_seed;
                        hadamard::restored_rows(weight.dequantize(), k, block, seed)
                    }
                    None => weight.dequantize(),
                }
            }
        };
        let dense = AnyLinear::dense(dense, [n, k], stored.bias, self.dtype, &self.options.device)?;
        self.given(dense.bytes())?;
        Ok(dense)
    }

    fn packed(&self, name: &str, shape: [usize; 2]) -> Result<PackedLinear> {
        let packed = self.reader.packed(name)?;
        let PackedWeight { n, k, .. } = packed.weight;
        expect_codes(name, [n, k], shape, packed.hadamard_size)?;
        Ok(packed)
    }

    fn layer(&self, packed: PackedLinear, in_features: usize) -> Result<AnyLinear> {
        let PackedLinear { weight, bias, hadamard_size, hadamard_seed: seed } = packed;
        let (dtype, device) = (self.dtype, &self.options.device);
        let linear = FluteLinear::from_packed(weight, bias.as_deref(), dtype, device)?;
        self.given(linear.bytes())?;
        Ok(AnyLinear::Flute(match hadamard_size {
            Some(block) => linear.with_rotation(Rotation { block, in_features, seed })?,
            None => linear,
        }))
    }
}

impl Source for Loader<'_> {
    fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dense or quantized, as it is stored; it must have a bias where `bias` says so.
    fn linear(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<AnyLinear> {
        if bias {
            self.expect_bias(name)?;
        }
        match (self.reader.is_quantized(name), self.options.dequantize) {
            (false, _) => self.dense(name, shape),
            (true, true) => self.decoded(name, shape),
            (true, false) => self.layer(self.packed(name, shape)?, shape[1]),
        }
    }

    fn projections(&self, stack: Stack<'_>) -> Result<Projections> {
        let one = |(name, shape): (String, [usize; 2])| self.linear(&name, shape, stack.bias);
        let quantized = stack.layers().all(|(name, _)| self.reader.is_quantized(&name));
        if !quantized || self.options.dequantize || !self.options.fuse {
            let layers = stack.layers().map(one).collect::<Result<_>>()?;
            return Ok(Projections::apart(layers));
        }
        let mut names = vec![];
        for (name, shape) in stack.layers() {
            if stack.bias {
                self.expect_bias(&name)?;
            }
            let (found, hadamard_size) = self.reader.quantized_shape(&name)?;
            expect_codes(&name, found, shape, hadamard_size)?;
            names.push(name);
        }
        match self.reader.packed_stack(&names, stack.order)? {
            Some(all) => {
                let layer = self.layer(all, stack.in_features)?;
                Ok(Projections::together(layer, stack))
            }
            None => {
                let layers = stack.layers().map(one).collect::<Result<_>>()?;
                Ok(Projections::apart(layers))
            }
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Param<Tensor<2>>> {
        self.tensor(name, shape, self.dtype)
    }

    fn embedding(&self, name: &str, shape: [usize; 2]) -> Result<Embedding> {
        if !self.reader.is_quantized(name) {
            return Ok(Embedding::Dense(self.matrix(&format!("{name}.weight"), shape)?));
        }
        Ok(match self.linear(name, shape, false)? {
            AnyLinear::Flute(weight) => Embedding::Flute(weight),
            AnyLinear::Dense(linear) => Embedding::Dense(linear.weight.map(Tensor::transpose)),
        })
    }

    fn norm(&self, name: &str, len: usize, config: &ModelConfig) -> Result<RmsNorm> {
        let gain = self.tensor(&format!("{name}.weight"), [len], DType::F32)?;
        let gain = match config.architecture {
            // Stored is how far the gain lies from 1.
            Architecture::Gemma2 => gain.map(|weight| weight + 1.0),
            _ => gain,
        };
        Ok(RmsNorm::new(gain, config.rms_norm_eps))
    }
}

/// Codes of `[n, k]`, the k in whole blocks where they are rotated.
fn expect_codes(
    name: &str,
    found: [usize; 2],
    [n, k]: [usize; 2],
    hadamard_size: Option<usize>,
) -> Result<()> {
    let k = hadamard_size.map_or(k, |block| k.next_multiple_of(block));
    expect(&format!("{name}.codes"), &found, &[n, k])
}

fn expect(tensor: &str, found: &[usize], needed: &[usize]) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    let needed = format!("{needed:?}, as config.json says");
    Err(Error::TensorShape { tensor: tensor.into(), found: found.to_vec(), needed })
}
