//! From files to parameters, one tensor after another: the host never holds more than one layer in f32.

use crate::checkpoint::{Reader, StoredWeight};
use crate::device;
use crate::error::{Error, Result};
use crate::linear::{AnyLinear, FluteLinear};
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
        if self.reader.contains(&dense) {
            expect(&dense, &self.reader.info(&dense)?.shape, &shape)?;
        }
        let stored = self.reader.linear(name)?;
        let (dtype, device) = (self.dtype, &self.options.device);
        match stored.weight {
            StoredWeight::Dense { data, .. } => {
                AnyLinear::dense(data, shape, stored.bias, dtype, device)
            }
            StoredWeight::Quantized(weight) => {
                expect(&format!("{name}.codes"), &[weight.n(), weight.k()], &shape)?;
                if self.options.dequantize {
                    return AnyLinear::dense(
                        weight.dequantize(),
                        shape,
                        stored.bias,
                        dtype,
                        device,
                    );
                }
                let bias = stored.bias.as_deref();
                let linear = FluteLinear::from_quantized(&weight, bias, dtype, device);
                linear.map(AnyLinear::Flute)
            }
        }
    }

    /// The matrix `name`, in the model's type.
    pub(super) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Param<Tensor<2>>> {
        self.tensor(name, shape, self.dtype)
    }

    /// The vector `name`, in f32: norms are computed in it.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Param<Tensor<1>>> {
        self.tensor(name, [len], DType::F32)
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
