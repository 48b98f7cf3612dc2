//! The steps of learning: loss, gradients, a change of scales.

use super::relative::{Relative, adam};
use super::selection::{Part, Place, What, frozen, trainable};
use super::ties::{bits_of, single_values, tied};
use super::values::host;
use crate::error::{Error, Result};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{AdamState, GradientsParams, Optimizer};
use burn::tensor::{DType, Tensor};
use flute_cube::Bits;
use std::collections::BTreeMap;
use std::f64::consts::PI;

/// Gradients are those of the loss times this: halves would lose the small ones, and a step of Adam does not depend on
/// it.
const LOSS_FACTOR: f64 = 1024.0;

/// The rate unless the caller says otherwise: what suited three bits of the small models here best, where twice it was
/// as good and four times it was worse. For scales of 0.02 it is the 10⁻⁴ that the Python package takes for any model.
pub const RATE: f64 = 5e-3;

/// How to learn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearnOptions {
    /// What is learned.
    pub what: What,
    /// The first step's change of a scale, as a fraction of it ([`Relative`]); of a table value, as a fraction of 1. It
    /// falls to 0 along half a cosine.
    pub rate: f64,
    /// Steps in all.
    pub steps: usize,
}

/// A module that learns.
#[derive(Clone)]
pub struct Learner<M> {
    pub(super) module: M,
    pub(super) options: LearnOptions,
    pub(super) done: usize,
    /// Momenta of every learned parameter, by its path.
    pub(super) states: BTreeMap<String, AdamState<1>>,
    dtype: DType,
    /// Paths of tables of single values.
    tied: BTreeMap<String, Bits>,
}

impl<M: Module> Learner<M> {
    /// Prepares `module` ([`trainable`]).
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a rate that is no positive number, for 0 steps, and for a module without FLUTE
    /// layers; [`Error::DeviceFailed`].
    pub fn new(module: M, options: LearnOptions) -> Result<Self> {
        if !(options.rate.is_finite() && options.rate > 0.0) {
            let (found, needed) = (options.rate.to_string(), "a number above 0".into());
            return Err(Error::InvalidOption { name: "the rate of learning", found, needed });
        }
        if options.steps == 0 {
            let (name, needed) = ("the number of steps", "1 or more".into());
            return Err(Error::InvalidOption { name, found: "0".into(), needed });
        }
        let mut layers = Layers::default();
        module.visit(&mut layers);
        let Some(dtype) = layers.dtype else {
            return Err(Error::InvalidOption {
                name: "the module to learn",
                found: "without FLUTE layers".into(),
                needed: "one with scales: quantized, and not decoded when it was loaded".into(),
            });
        };
        let mut known = BTreeMap::new();
        if options.what == What::ScalesAndTables {
            for (path, pairs) in layers.pairs {
                let pairs = host(pairs)?;
                let bits = bits_of(pairs.len());
                if let Some(bits) = bits.filter(|bits| single_values(&pairs, *bits).is_some()) {
                    known.insert(path, bits);
                }
            }
        }
        let (module, states) = (trainable(module, options.what), BTreeMap::new());
        Ok(Self { module, options, done: 0, states, dtype, tied: known })
    }

    /// One step against `loss` of the module: `[1]`, a mean. Returns the loss before the step.
    ///
    /// # Errors
    /// [`Error::LossNotFinite`]; [`Error::DeviceFailed`]; what `loss` returns.
    ///
    /// # Panics
    /// If the loss does not depend on any scale.
    pub fn step(&mut self, loss: impl FnOnce(&M) -> Result<Tensor<1>>) -> Result<f64> {
        let loss = loss(&self.module)?;
        let value = host(loss.clone().without_autodiff())?.first().copied().unwrap_or(f32::NAN);
        if !value.is_finite() {
            return Err(Error::LossNotFinite { step: self.done + 1, value });
        }
        let grads = loss.mul_scalar(LOSS_FACTOR).backward();
        let mut change = Change {
            place: Place::default(),
            grads: GradientsParams::from_grads(grads, &self.module),
            rate: self.rate(),
            tied: &self.tied,
            states: &mut self.states,
        };
        self.module = self.module.clone().map(&mut change);
        self.done += 1;
        Ok(value.into())
    }

    /// The module as it is now.
    pub fn module(&self) -> &M {
        &self.module
    }

    /// Steps done.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Steps in all.
    pub fn steps(&self) -> usize {
        self.options.steps
    }

    /// The module with what it learned, ready to run ([`frozen`]).
    pub fn finish(self) -> M {
        frozen(self.module, self.dtype)
    }

    /// The rate of the next step.
    fn rate(&self) -> f64 {
        let done = self.done as f64 / self.options.steps as f64;
        self.options.rate * (1.0 + (PI * done.min(1.0)).cos()) / 2.0
    }
}

/// A change of every parameter that has a gradient.
struct Change<'a> {
    place: Place,
    grads: GradientsParams,
    rate: f64,
    tied: &'a BTreeMap<String, Bits>,
    states: &'a mut BTreeMap<String, AdamState<1>>,
}

impl ModuleMapper for Change<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.leave();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(part) = self.place.part() else { return param };
        let Some(grad) = self.grads.remove::<D>(param.id) else { return param };
        let (path, (id, tensor, mapper)) = (self.place.path(), param.consume());
        let (shape, len) = (tensor.dims(), tensor.shape().num_elements());
        let strategy = tensor.gradient_checkpointing_strategy();
        let (value, grad) = (tensor.without_autodiff().reshape([len]), grad.reshape([len]));
        let grad = match self.tied.get(&path) {
            Some(bits) => tied(grad, *bits),
            None => grad,
        };
        let state = self.states.remove(&path);
        let (value, state) = match part {
            Part::Scales => Relative::default().step(self.rate, value, grad, state),
            Part::Pairs => adam().step(self.rate, value, grad, state),
        };
        self.states.extend(state.map(|state| (path, state)));
        let value = value.reshape(shape).autodiff();
        let value = match strategy {
            Some(strategy) => value.with_gradient_checkpointing_strategy(strategy),
            None => value,
        };
        Param::from_mapped_value(id, value.require_grad(), mapper)
    }
}

/// What a module's FLUTE layers hold.
#[derive(Default)]
struct Layers {
    place: Place,
    /// The type that they compute in.
    dtype: Option<DType>,
    /// Pair tables by their paths.
    pairs: Vec<(String, Tensor<1>)>,
}

impl ModuleVisitor for Layers {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.leave();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.place.part() == Some(Part::Pairs) {
            let pairs = param.val().without_autodiff();
            self.dtype = self.dtype.or(Some(pairs.dtype()));
            let len = pairs.shape().num_elements();
            self.pairs.push((self.place.path(), pairs.reshape([len])));
        }
    }
}
