//! Which parameters of a module are learned: those of its FLUTE layers, found by the path that Burn walks.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor};

/// What is learned of every FLUTE layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum What {
    /// The scales.
    #[default]
    Scales,
    /// The scales and the tables; the layers compute in f32 then.
    ScalesAndTables,
}

/// A parameter of a FLUTE layer that can be learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Scales,
    Pairs,
}

/// Where a walk through a module is.
#[derive(Debug, Default)]
pub(super) struct Place {
    names: Vec<String>,
    containers: Vec<String>,
}

impl Place {
    pub(super) fn enter(&mut self, name: &str, container: &str) {
        self.names.push(name.to_owned());
        self.containers.push(container.to_owned());
    }

    pub(super) fn leave(&mut self) {
        self.names.pop();
        self.containers.pop();
    }

    /// The names from the root to here.
    pub(super) fn path(&self) -> String {
        self.names.join(".")
    }

    /// The part of a FLUTE layer that this place is.
    pub(super) fn part(&self) -> Option<Part> {
        if self.containers.last()? != "Struct:FluteLinear" {
            return None;
        }
        match self.names.last()?.as_str() {
            "scales" => Some(Part::Scales),
            "pairs" => Some(Part::Pairs),
            _ => None,
        }
    }
}

/// `module` with the scales of its FLUTE layers, and their tables if `what` says so, as its only trained parameters: in
/// f32, since steps are smaller than what halves tell apart, and on the autodiff side of their devices. Layers compute
/// in the type they did before. Any optimizer of Burn can train it.
pub fn trainable<M: Module>(module: M, what: What) -> M {
    module.map(&mut Prepare { place: Place::default(), what }).train()
}

/// `module` with nothing left to train, off autodiff; scales that were learned are rounded to the type that their layer
/// computes in, `dtype`.
pub fn frozen<M: Module>(module: M, dtype: DType) -> M {
    module.valid().map(&mut Restore { place: Place::default(), dtype })
}

struct Prepare {
    place: Place,
    what: What,
}

impl ModuleMapper for Prepare {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.leave();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let learned = match self.place.part() {
            Some(Part::Scales) => true,
            Some(Part::Pairs) => self.what == What::ScalesAndTables,
            None => false,
        };
        if learned {
            cast(param, DType::F32).set_require_grad(true)
        } else {
            param.set_require_grad(false)
        }
    }
}

struct Restore {
    place: Place,
    dtype: DType,
}

impl ModuleMapper for Restore {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.leave();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let param = param.set_require_grad(false);
        if self.place.part().is_some() { cast(param, self.dtype) } else { param }
    }
}

fn cast<const D: usize>(param: Param<Tensor<D>>, dtype: DType) -> Param<Tensor<D>> {
    let (id, tensor, mapper) = param.consume();
    Param::from_mapped_value(id, tensor.cast(dtype), mapper)
}
