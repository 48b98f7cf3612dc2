//! From files to parameters, one tensor after another: the host never holds more than one layer in f32.

use super::norm::RmsNorm;
use crate::checkpoint::{Architecture, ModelConfig, Reader, StoredWeight};
use crate::device;
use crate::error::{Error, Result};
use crate::hadamard;
use crate::linear::{AnyLinear, FluteLinear, Rotation};
use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};

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
}

impl LoadOptions {
    /// To `device`, in its default type, quantized layers as they are.
    pub fn new(device: Device) -> Self {
        Self { device, dtype: None, dequantize: false }
    }
}

/// Reads tensors of the shapes that the configuration says, and refuses all others.
pub(super) struct Loader<'a> {
    reader: &'a Reader,
    dtype: DType,
    options: &'a LoadOptions,
}

impl<'a> Loader<'a> {
    pub(super) fn new(reader: &'a Reader, options: &'a LoadOptions) -> Result<Self> {
        let dtype = options.dtype.unwrap_or_else(|| device::default_dtype(&options.device));
        device::check_dtype(&options.device, dtype)?;
        Ok(Self { reader, dtype, options })
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The linear layer `name` of `[n, k]`, dense or quantized as it is stored; `bias` says whether it must have one.
    pub(super) fn linear(&self, name: &str, shape: [usize; 2], bias: bool) -> Result<AnyLinear> {
        let (dense, tensor) = (format!("{name}.weight"), format!("{name}.bias"));
        if bias && !self.reader.contains(&tensor) {
            return Err(Error::TensorAbsent { dir: self.reader.dir().into(), tensor });
        }
        if self.reader.contains(&dense) && !self.reader.is_quantized(name) {
            expect(&dense, &self.reader.info(&dense)?.shape, &shape)?;
        }
        let stored = self.reader.linear(name)?;
        let (dtype, device) = (self.dtype, &self.options.device);
        match stored.weight {
            StoredWeight::Dense { data, .. } => {
                AnyLinear::dense(data, shape, stored.bias, dtype, device)
            }
            StoredWeight::Quantized(weight) => {
                let [n, k] = shape;
                let block = stored.hadamard_size;
                let needed = [n, block.map_or(k, |block| k.next_multiple_of(block))];
                expect(&format!("{name}.codes"), &[weight.n(), weight.k()], &needed)?;
                if self.options.dequantize {
                    let mut dense = weight.dequantize();
                    if let Some(block) = block {
                        dense = hadamard::restored_rows(dense, k, block);
                    }
                    return AnyLinear::dense(dense, shape, stored.bias, dtype, device);
                }
                let bias = stored.bias.as_deref();
                let linear = FluteLinear::from_quantized(&weight, bias, dtype, device)?;
                Ok(AnyLinear::Flute(match block {
                    Some(block) => linear.with_rotation(Rotation { block, in_features: k })?,
                    None => linear,
                }))
            }
        }
    }

    /// The matrix `name`, in the model's type.
    pub(super) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Param<Tensor<2>>> {
        self.tensor(name, shape, self.dtype)
    }

    /// The norm `name` over `len` features, in f32: norms are computed in it.
    pub(super) fn norm(&self, name: &str, len: usize, config: &ModelConfig) -> Result<RmsNorm> {
        let gain = self.tensor(&format!("{name}.weight"), [len], DType::F32)?;
        let gain = match config.architecture {
            // Stored is how far the gain lies from 1.
            Architecture::Gemma2 => gain.map(|weight| weight + 1.0),
            _ => gain,
        };
        Ok(RmsNorm::new(gain, config.rms_norm_eps))
    }

    fn tensor<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        dtype: DType,
    ) -> Result<Param<Tensor<D>>> {
        expect(name, &self.reader.info(name)?.shape, &shape)?;
        let stored = self.reader.tensor(name)?;
        let device = &self.options.device;
        let data = TensorData::new(stored.data, shape);
        let tensor = device.memory_persistent_allocations(data, |data: TensorData| {
            Tensor::from_data(data, (device, dtype))
        });
        Ok(Param::initialized(ParamId::new(), tensor))
    }
}

fn expect(tensor: &str, found: &[usize], needed: &[usize]) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    let needed = format!("{needed:?}, as config.json says");
    Err(Error::TensorShape { tensor: tensor.into(), found: found.to_vec(), needed })
}
