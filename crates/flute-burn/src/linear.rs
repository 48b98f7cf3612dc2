//! Linear layers: [`FluteLinear`] holds codes, [`AnyLinear`] is what a model holds, either kind.
//!
//! A [`FluteLinear`] is made from stored codes, from a weight, or from a Burn `nn::Linear`; it takes inputs of any rank
//! from 1 on and is a Burn module like any other: records save and load it, `to_device` moves it. Refused by the
//! constructors, so that `forward` has nothing left to refuse: a type that the device does not compute in, shapes that
//! no kernel addresses, scales that overflow the type, weights that are not finite.

mod parts;
mod rotation;
mod rounded;

pub use rotation::Rotation;

use crate::checkpoint::Activation;
use crate::dense;
use crate::device;
use crate::error::{Error, Result};
use crate::hadamard;
use crate::op::{self, FluteTensors, WeightShape};
use crate::quantize::{self, Method};
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param, ParamId};
use burn::nn;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use flute_cube::{Limits, MAX_DIM, PackedWeight, Plan, Problem, Quantized};

/// `y = x · Wᵀ + b` with W `[n, k]` in 2, 3 or 4 bits, rotated or not.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct FluteLinear {
    /// Pair indices in kernel order; see [`FluteTensors::words`].
    pub words: Param<Tensor<1, Int>>,
    /// Scales in kernel order.
    pub scales: Param<Tensor<1>>,
    /// The pair table `[2^(2·bits) · 2]`.
    pub pairs: Param<Tensor<1>>,
    /// `[n]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// `[k]`: what activations are multiplied by before a random rotation.
    pub signs: Option<Param<Tensor<1>>>,
    #[module(skip)]
    shape: WeightShape,
    #[module(skip)]
    rotation: Option<Rotation>,
}

impl FluteLinear {
    /// A layer of `weight`, with table, scales and bias rounded to `dtype`, on `device`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] and [`flute_cube::Error`] if the device does not serve type or shape; a
    /// scale or table value that overflows `dtype`; a bias of another length than n.
    pub fn from_quantized(
        weight: &Quantized,
        bias: Option<&[f32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let shape = WeightShape { n: weight.n(), k: weight.k(), format: weight.format() };
        check_bias(bias.map(<[f32]>::len), shape.n)?;
        check(shape, dtype, device)?;
        let kernel = device::kernel_dtype(dtype)?;
        let table = weight.table().values();
        if let Some(index) = table.iter().position(|value| !kernel.round(*value).is_finite()) {
            let (what, value) = ("the table, rounded to the layer's type,", table[index]);
            return Err(flute_cube::Error::NotFinite { what, index, value }.into());
        }
        Self::from_packed(PackedWeight::pack(weight), bias, dtype, device)
    }

    /// The same layer for a weight that was rotated: activations are padded and rotated before the product. Like
    /// [`FluteLinear::shape`], this is said by whoever makes the layer; records hold tensors alone.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a block that cannot be rotated; [`Error::TensorShape`] unless the weight's k is
    /// that of `in_features` in whole blocks.
    pub fn with_rotation(self, rotation: Rotation) -> Result<Self> {
        hadamard::check_block(rotation.block)?;
        let (found, needed) = (self.shape.k, rotation.in_features.next_multiple_of(rotation.block));
        if found != needed || rotation.in_features == 0 {
            let Rotation { block, in_features, .. } = rotation;
            return Err(Error::TensorShape {
                tensor: "a rotated weight".into(),
                found: vec![self.shape.n, found],
                needed: format!("[n, {needed}]: {in_features} features in blocks of {block}"),
            });
        }
        let pairs = self.pairs.val();
        let on = On { dtype: pairs.dtype(), device: &pairs.device() };
        let signs = rotation.seed.map(|seed| {
            let signs = hadamard::signs(seed, rotation.block);
            on.floats(signs.repeat(found / rotation.block), [found])
        });
        Ok(Self { rotation: Some(rotation), signs, ..self })
    }

    /// Quantizes `weight` `[n, k]` (rows are output features, as Hugging Face stores them); the layer has its type
    /// and lives on its device.
    ///
    /// # Errors
    /// What [`quantize::quantize`] and [`FluteLinear::from_quantized`] refuse; [`Error::DeviceFailed`] if the weight
    /// cannot be read.
    pub fn from_weight(
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        method: &Method,
    ) -> Result<Self> {
        Self::from_named("weight", weight, bias, method)
    }

    /// [`FluteLinear::from_weight`] of a weight that messages call `name`.
    pub(crate) fn from_named(
        name: &str,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
        method: &Method,
    ) -> Result<Self> {
        let ([n, k], dtype, device) = (weight.dims(), weight.dtype(), weight.device());
        let weight = quantize::quantize(name, &host(weight)?, n, k, method)?;
        let bias = bias.map(host).transpose()?;
        let linear = Self::from_quantized(&weight, bias.as_deref(), dtype, &device)?;
        match method.hadamard_size() {
            Some(block) => {
                let seed = method.hadamard_seed();
                linear.with_rotation(Rotation { block, in_features: k, seed })
            }
            None => Ok(linear),
        }
    }

    /// Quantizes a dense layer of Burn (whose weight is `[k, n]`).
    ///
    /// # Errors
    /// As [`FluteLinear::from_weight`].
    pub fn from_linear(linear: &nn::Linear, method: &Method) -> Result<Self> {
        let bias = linear.bias.as_ref().map(Param::val);
        Self::from_weight(linear.weight.val().transpose(), bias, method)
    }

    /// A layer of zeros, to load a record into.
    ///
    /// # Errors
    /// As [`FluteLinear::from_quantized`].
    pub fn zeros(shape: WeightShape, bias: bool, dtype: DType, device: &Device) -> Result<Self> {
        check(shape, dtype, device)?;
        let WeightShape { n, k, format } = shape;
        let on = On { dtype, device };
        let zeros = |len| on.floats(vec![0.0; len], [len]);
        Ok(Self {
            words: on.words(vec![0; PackedWeight::words_len(n, k, format)]),
            scales: zeros(PackedWeight::scales_len(n, k, format)),
            pairs: zeros(2 * format.bits.pairs()),
            bias: bias.then(|| zeros(n)),
            signs: None,
            shape,
            rotation: None,
        })
    }

    /// `x[.., k]` to `[.., n]`, in the type of `x`; computed in the type of the scales ([`op::qgemm`]).
    ///
    /// # Panics
    /// If the last axis of `x` is not the layer's input features, if `x` lives on another device, or if the device
    /// fails.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        op::qgemm(self.rotated(x), self.tensors())
    }

    /// The gate of [`FluteLinear::forward`], for a weight whose rows are those of gate and up by turns: `[.., n/2]`
    /// ([`op::qgemm_gated`]).
    ///
    /// # Panics
    /// As [`FluteLinear::forward`], and if n is no multiple of 16.
    pub fn gated<const D: usize>(&self, x: Tensor<D>, activation: Activation) -> Tensor<D> {
        op::qgemm_gated(self.rotated(x), self.tensors(), activation)
    }

    /// [`FluteLinear::forward`] with a bias that is kept elsewhere, instead of the layer's own.
    ///
    /// # Panics
    /// As [`FluteLinear::forward`].
    pub fn forward_with_bias<const D: usize>(
        &self,
        x: Tensor<D>,
        bias: Option<Tensor<1>>,
    ) -> Tensor<D> {
        let tensors = self.tensors();
        let bias = bias.map(|bias| bias.cast(tensors.scales.dtype()));
        op::qgemm(self.rotated(x), FluteTensors { bias, ..tensors })
    }

    /// The buffers that [`op::qgemm`] takes; cheap, since tensors share their data.
    pub fn tensors(&self) -> FluteTensors {
        FluteTensors {
            words: self.words.val(),
            scales: self.scales.val(),
            pairs: self.pairs.val(),
            bias: self.bias.as_ref().map(Param::val),
            shape: self.shape,
        }
    }

    /// Shape and format of the weight as it is stored: k counts padding, where there is some.
    pub fn shape(&self) -> WeightShape {
        self.shape
    }

    /// What is done to activations first.
    pub fn rotation(&self) -> Option<Rotation> {
        self.rotation
    }

    /// Elements of the last axis of an input.
    pub fn in_features(&self) -> usize {
        self.rotation.map_or(self.shape.k, |rotation| rotation.in_features)
    }

    /// Bytes of codes, scales and table on the device.
    pub fn bytes(&self) -> usize {
        let floats = self.scales.shape().num_elements() + self.pairs.shape().num_elements();
        4 * self.words.shape().num_elements() + floats * self.scales.val().dtype().size()
    }
}

impl ModuleDisplay for FluteLinear {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        // Words and scales are not parameters in the sense in which Burn counts them.
        let settings = DisplaySettings::new().with_new_line_after_attribute(false);
        settings.with_show_num_parameters(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let WeightShape { n, format, .. } = self.shape;
        let content = content.add("d_input", &self.in_features()).add("d_output", &n);
        let mut content = content.add("format", &format.to_string());
        if let Some(rotation) = self.rotation {
            content = content.add("hadamard_size", &rotation.block);
            if let Some(seed) = rotation.seed {
                content = content.add("hadamard_seed", &seed);
            }
        }
        content.add("bias", &self.bias.is_some()).optional()
    }
}

/// A linear layer of a model: dense or quantized.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has few, and none that is empty")]
pub enum AnyLinear {
    /// Burn's own.
    Dense(nn::Linear),
    /// In codes.
    Flute(FluteLinear),
}

impl AnyLinear {
    /// A dense layer of `weight` `[n, k]`, row-major, rounded to `dtype`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the device does not compute in `dtype`; lengths that contradict `[n, k]`.
    pub fn dense(
        weight: Vec<f32>,
        [n, k]: [usize; 2],
        bias: Option<Vec<f32>>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        device::check_dtype(device, dtype)?;
        check_bias(bias.as_ref().map(Vec::len), n)?;
        if weight.len() != n * k {
            let (tensor, found, needed) = ("weight".into(), weight.len(), n * k);
            return Err(Error::WeightLength { tensor, n, k, found, needed });
        }
        let on = On { dtype, device };
        // Burn's layout is [k, n]: a transposed view of the rows as they lie, which its matmuls read as well.
        let weight = on.floats(weight, [n, k]).map(Tensor::transpose);
        Ok(Self::Dense(nn::Linear { weight, bias: bias.map(|bias| on.floats(bias, [n])) }))
    }

    /// `x[.., k]` to `[.., n]`.
    ///
    /// # Panics
    /// If the last axis of `x` is not k.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Dense(linear) => multiply(linear, x),
            Self::Flute(linear) => linear.forward(x),
        }
    }

    /// Output and input features `[n, k]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(linear) => {
                let [k, n] = linear.weight.shape().dims();
                [n, k]
            }
            Self::Flute(linear) => [linear.shape.n, linear.in_features()],
        }
    }

    /// Bytes of the weight on the device.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(linear) => {
                linear.weight.shape().num_elements() * linear.weight.val().dtype().size()
            }
            Self::Flute(linear) => linear.bytes(),
        }
    }
}

/// As Burn's own, and for few rows through [`dense`].
fn multiply<const D: usize>(linear: &nn::Linear, x: Tensor<D>) -> Tensor<D> {
    let weight = linear.weight.val();
    if !dense::serves(&x, &weight) {
        return linear.forward(x);
    }
    let y = dense::dense(x, weight.transpose());
    match &linear.bias {
        Some(bias) => y + bias.val().unsqueeze(),
        None => y,
    }
}

/// Where and in what type parameters are made.
struct On<'a> {
    dtype: DType,
    device: &'a Device,
}

// Weights live as long as the model: persistent allocations keep them out of the pools that activations churn.
impl On<'_> {
    fn words(&self, words: Vec<u32>) -> Param<Tensor<1, Int>> {
        let len = words.len();
        let words: Vec<i32> = bytemuck::allocation::cast_vec(words);
        let tensor = self
            .device
            .memory_persistent_allocations(TensorData::new(words, [len]), |data: TensorData| {
                Tensor::from_data(data, (self.device, DType::I32))
            });
        Param::initialized(ParamId::new(), tensor)
    }

    fn floats<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        self.data(TensorData::new(values, shape))
    }

    fn data<const D: usize>(&self, data: TensorData) -> Param<Tensor<D>> {
        let tensor = self.device.memory_persistent_allocations(data, |data: TensorData| {
            Tensor::from_data(data, (self.device, self.dtype))
        });
        Param::initialized(ParamId::new(), tensor)
    }
}

/// Whether `device` will take every product with a weight of `shape` in `dtype`.
fn check(shape: WeightShape, dtype: DType, device: &Device) -> Result<()> {
    let dtype = device::check_dtype(device, dtype)?;
    let WeightShape { n, k, format } = shape;
    for (what, found) in [("n", n), ("k", k)] {
        if !(1..=MAX_DIM).contains(&found) {
            return Err(flute_cube::Error::OutOfRange { what, found, min: 1, max: MAX_DIM }.into());
        }
    }
    let Some(client) = device::client(device) else { return Ok(()) };
    let limits = Limits::of(&client);
    for m in [1, 16, 512] {
        Plan::select(&Problem { m, n, k, format, dtype, bias: true, gate: None }, &limits)?;
    }
    Ok(())
}

fn check_bias(found: Option<usize>, n: usize) -> Result<()> {
    match found {
        Some(found) if found != n => Err(Error::TensorShape {
            tensor: "bias".into(),
            found: vec![found],
            needed: format!("[{n}], one value an output feature"),
        }),
        _ => Ok(()),
    }
}

fn host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    let device = tensor.device();
    tensor.try_into_vec_as::<f32>().map_err(|error| Error::DeviceFailed {
        device: device::name(&device),
        reason: format!("it could not read a weight back: {error}"),
    })
}
