//! Any Burn module on FLUTE weights, without editing its source.
//!
//! [`quantize_module`] replaces the weight of every `nn::Linear` in a module by codes, through Burn's reparameterization
//! of parameters: the module keeps its type, its parameter keeps its place, and what is stored there is a
//! [`FluteLinear`].
//!
//! | what calls the layer | what runs | good for |
//! |---|---|---|
//! | `layer.forward(x)`, as in any source that knows nothing of this crate | the weight is decoded at every call, then multiplied densely | many rows: prompts, encoders, training around frozen layers |
//! | [`linear(&layer, x)`](linear()), one changed line | the kernel that multiplies by the codes as they are | few rows: decoding |
//!
//! Either way the dense weight does not stay in memory; where speed matters more, as on a CPU, [`Module::materialize`]
//! puts it back. Biases, norms and embeddings are left as they are. Records
//! ([`Module::into_record`], `burn-store`) hold `<layer>.weight.flute.{words,scales,pairs}` and, at `<layer>.weight`, one
//! element that holds the place. They load into a module fresh from [`prepare_module`] or [`quantize_module`]: what has
//! run holds places of the weights' shapes, as sources expect that ask a weight for its shape, and refuses records.
//!
//! Quantized weights do not train: autodiff passes through them to the activations. Refused: a filter that names no
//! linear layer, and what [`FluteLinear`] refuses. Left alone: weights that are reparameterized already (low-rank
//! adapters, or codes), since Burn knows no second reparameterization of one parameter.

use crate::dequantize;
use crate::error::{Error, Result};
use crate::linear::{FluteLinear, Rotation};
use crate::op::WeightShape;
use crate::quantize::Method;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup, Reparameterization, Reparameterizer};
use burn::nn;
use burn::tensor::{Bool, DType, Device, Int, Shape, Slice, Tensor};

/// What Burn's traversals call the container of that which a parameter is reparameterized by.
const REPARAMETERIZATION: &str = "Reparameterization";

/// Which linear layers to quantize, and how.
#[derive(Clone, Debug)]
pub struct QuantizeConfig {
    /// Codes and scales.
    pub method: Method,
    /// Matched against the weight of each `nn::Linear` by its path in the module, such as
    /// `layers.0.mha.query.weight`.
    pub filter: ParamGroup,
}

impl QuantizeConfig {
    /// Every linear layer by `method`.
    pub fn new(method: Method) -> Self {
        Self { method, filter: ParamGroup::all() }
    }

    /// The linear layers whose weights are in `filter` alone.
    pub fn with_filter(self, filter: ParamGroup) -> Self {
        Self { filter, ..self }
    }
}

/// `module` with the weights of its linear layers in codes. They stay on their devices and in their types.
///
/// # Errors
/// [`Error::InvalidOption`] if the filter names no linear layer, and what [`FluteLinear::from_weight`] refuses.
///
/// ```
/// use burn::nn::transformer::{TransformerEncoderConfig, TransformerEncoderInput};
/// use burn::tensor::{Device, Distribution, Tensor};
/// use flute_burn::quantize::Method;
/// use flute_burn::{QuantizeConfig, module, quantize_module};
/// use flute_cube::{Bits, Group, Table};
///
/// let device = Device::flex();
/// let encoder = TransformerEncoderConfig::new(256, 1024, 4, 1).init(&device);
/// let dense = module::bytes(&encoder);
/// let method = Method::Absmax { table: Table::nf(Bits::Four), group: Group::Size(64) };
/// let encoder = quantize_module(encoder, &QuantizeConfig::new(method))?;
/// assert!(6 * module::bytes(&encoder) < dense);
///
/// let x = Tensor::random([1, 3, 256], Distribution::Default, &device);
/// assert_eq!(encoder.forward(TransformerEncoderInput::new(x)).dims(), [1, 3, 256]);
/// # Ok::<(), flute_burn::error::Error>(())
/// ```
pub fn quantize_module<M: Module>(module: M, config: &QuantizeConfig) -> Result<M> {
    attach(module, config, Fill::Quantize)
}

/// `module` with codes of zeros where [`quantize_module`] would put those of its weights, to load a record of a module
/// quantized by the same `config` into. Weights that were not initialized yet never are.
///
/// # Errors
/// As [`quantize_module`].
pub fn prepare_module<M: Module>(module: M, config: &QuantizeConfig) -> Result<M> {
    attach(module, config, Fill::Zeros)
}

/// `layer.forward(x)`, by the kernel that multiplies by codes if the layer's weight is quantized.
///
/// # Panics
/// As [`FluteLinear::forward`] and `nn::Linear::forward`.
pub fn linear<const D: usize>(layer: &nn::Linear, x: Tensor<D>) -> Tensor<D> {
    match layer.weight.reparameterization::<FluteLinear>() {
        Some(flute) => flute.forward_with_bias(x, layer.bias.as_ref().map(Param::val)),
        None => layer.forward(x),
    }
}

/// Bytes of all parameters of `module` as they are stored; those that are not initialized yet count as if they were.
pub fn bytes<M: Module>(module: &M) -> usize {
    let mut bytes = Bytes::default();
    module.visit(&mut bytes);
    bytes.sum
}

impl FluteLinear {
    /// The weight that the layer stands for, dense: `[n, in_features]` in the type of the scales, rotated back where it
    /// is stored rotated. For autodiff it is a constant.
    ///
    /// # Panics
    /// If the device fails.
    pub fn dequantize(&self) -> Tensor<2> {
        let dense = dequantize::dequantize(self.tensors());
        self.restored(dense)
    }
}

impl Reparameterization for FluteLinear {
    const NAME: &'static str = "flute";

    /// The dense weight `[in_features, n]`, as `nn::Linear` keeps it, whatever holds its place.
    fn apply<const D: usize>(&self, _place: Tensor<D>) -> Tensor<D> {
        Tensor::from_dispatch(self.dequantize().transpose().into_dispatch())
    }
}

/// What the codes of a new layer are.
#[derive(Clone, Copy)]
enum Fill {
    Quantize,
    Zeros,
}

fn attach<M: Module>(module: M, config: &QuantizeConfig, fill: Fill) -> Result<M> {
    let mut layers = Layers::default();
    module.visit(&mut layers);
    let mut refused = None;
    let found = layers.weights.len();
    layers.weights.retain(|weight| config.filter.matches(&weight.id, Some(&weight.path)));
    if layers.weights.is_empty() {
        return Err(Error::InvalidOption {
            name: "the filter",
            found: format!("one that names none of the module's {found} dense linear layers"),
            needed: "one that names such a weight: layers.0.mha.query.weight, say".into(),
        });
    }
    let weights = layers.weights.into_iter().map(|weight| weight.path).collect();
    let attach = Attach { weights, method: &config.method, fill, refused: &mut refused };
    let module = module.apply_reparameterization(attach);
    refused.map_or(Ok(module), Err)
}

/// Weights of `nn::Linear` that are plain parameters.
#[derive(Default)]
struct Layers {
    path: Vec<String>,
    containers: Vec<String>,
    weights: Vec<Weight>,
}

struct Weight {
    path: String,
    id: burn::module::ParamId,
}

impl ModuleVisitor for Layers {
    fn enter_module(&mut self, name: &str, container: &str) {
        // A parameter is visited first, then what it is reparameterized by.
        if container == REPARAMETERIZATION {
            let path = self.path.join(".");
            self.weights.retain(|weight| weight.path != path);
        }
        self.path.push(name.into());
        self.containers.push(container.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let linear = self.containers.last().is_some_and(|container| container == "Struct:Linear");
        if D == 2 && linear && self.path.last().is_some_and(|name| name == "weight") {
            self.weights.push(Weight { path: self.path.join("."), id: param.id });
        }
    }
}

struct Attach<'a> {
    weights: std::collections::HashSet<String>,
    method: &'a Method,
    fill: Fill,
    /// Burn's traversal cannot stop; the first error is kept, and nothing is done after it.
    refused: &'a mut Option<Error>,
}

impl Reparameterizer for Attach<'_> {
    type Reparam = FluteLinear;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<FluteLinear>) {
        if self.refused.is_some() || !self.weights.contains(path) {
            return (param, None);
        }
        match self.layer(path, &param) {
            Ok(layer) => (place(param, layer.scales.dtype()), Some(layer)),
            Err(error) => {
                *self.refused = Some(error);
                (param, None)
            }
        }
    }
}

impl Attach<'_> {
    fn layer<const D: usize>(&self, path: &str, param: &Param<Tensor<D>>) -> Result<FluteLinear> {
        match self.fill {
            Fill::Quantize => {
                let weight: Tensor<2> = Tensor::from_dispatch(param.val().into_dispatch());
                FluteLinear::from_named(path, weight.transpose(), None, self.method)
            }
            Fill::Zeros => {
                let (shape, device) = (param.lazy_shape(), param.lazy_device());
                let (k, n) = (shape[0], shape[1]);
                let (format, stored_k) = (self.method.format(), self.method.stored_k(k));
                let dtype = float_dtype(&device);
                let shape = WeightShape { n, k: stored_k, format };
                let layer = FluteLinear::zeros(shape, false, dtype, &device)?;
                match self.method.hadamard_size() {
                    Some(block) => {
                        let seed = self.method.hadamard_seed();
                        layer.with_rotation(Rotation { block, in_features: k, seed })
                    }
                    None => Ok(layer),
                }
            }
        }
    }
}

/// What stands where the weight `param` was: of its shape and type, and of one element in memory and in records.
///
/// That element is NaN, which no weight is: a module that was materialized keeps these mappings, and its dense weights
/// must be saved as they are.
fn place<const D: usize>(param: Param<Tensor<D>>, dtype: DType) -> Param<Tensor<D>> {
    let (id, shape, device) = (param.id, param.lazy_shape(), param.lazy_device());
    let element = move |device: &Device| Tensor::<D>::full([1; D], f32::NAN, (device, dtype));
    // The weight's own mappings, without a weight that was not initialized yet ever being made.
    let (_, _, own) = param.transform_for_load(element(&device), id).consume();
    let (own_save, own_load) = (own.clone(), own);
    let (full, loaded) = (shape.clone(), shape);
    let first = Shape::new([1; D]);
    // Records are checked against the shape that a parameter has before it is first used.
    Param::uninitialized(id, move |device, _| element(device).expand(full), device, false, first)
        .save_mapper(move |tensor| {
            let first = tensor.clone().slice([Slice::from(0..1); D]);
            let place = first.to_data().iter::<f32>().any(f32::is_nan);
            if place { first } else { own_save.on_save(tensor) }
        })
        .load_mapper(move |tensor| match tensor.dims() == [1; D] {
            true => tensor.expand(loaded.clone()),
            false => own_load.on_load(tensor),
        })
}

fn float_dtype(device: &Device) -> DType {
    device.settings().float_dtype.into()
}

#[derive(Default)]
struct Bytes {
    sum: usize,
    /// Of the float parameter that was visited last.
    last: usize,
    /// Of one of its elements.
    element: usize,
}

impl ModuleVisitor for Bytes {
    fn enter_module(&mut self, name: &str, container: &str) {
        // A place is as large as its weight by its shape alone.
        if container == REPARAMETERIZATION && name == FluteLinear::NAME {
            self.sum = self.sum - self.last + self.element;
        }
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let dtype = match param.is_initialized() {
            true => param.base().dtype(),
            false => float_dtype(&param.lazy_device()),
        };
        self.element = dtype.size();
        self.last = param.lazy_shape().num_elements() * self.element;
        self.sum += self.last;
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.sum += param.lazy_shape().num_elements() * param.base().dtype().size();
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.sum += param.lazy_shape().num_elements() * param.base().dtype().size();
    }
}
