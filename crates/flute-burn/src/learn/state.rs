//! The state of learning in a file, so that what was interrupted goes on: values and momenta of all that is learned, the
//! steps done, and the run they belong to.
//!
//! One safetensors file, written beside its place and renamed. A run that goes on reaches the very values of one that
//! was never interrupted. Refused: a state of another run (another text, rate or model), by the first thing that
//! differs, and a file that does not hold what it must.

use super::learner::Learner;
use super::selection::Place;
use super::values::host;
use crate::error::{Error, Result};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::{AdamState, AdaptiveMomentumState};
use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The parts of a learned parameter.
const PARTS: [&str; 3] = ["value", "moment_1", "moment_2"];

impl<M: Module> Learner<M> {
    /// Writes the state to `path`; `run` says in one JSON object what run it is.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::DeviceFailed`].
    pub fn save(&self, path: &Path, run: &Value) -> Result<()> {
        let mut values = Values::default();
        self.module.visit(&mut values);
        let mut parts: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let mut times = serde_json::Map::new();
        for (name, value) in values.learned {
            let Some(state) = self.states.get(&name) else { continue };
            let AdaptiveMomentumState { time, moment_1, moment_2, .. } = state.momentum.clone();
            for (part, tensor) in PARTS.into_iter().zip([value, moment_1, moment_2]) {
                parts.insert(format!("{part}.{name}"), host(tensor)?);
            }
            times.insert(name, time.into());
        }
        let views = parts.iter().map(|(name, values)| {
            let bytes = bytemuck::cast_slice(values);
            TensorView::new(Dtype::F32, vec![values.len()], bytes).map(|view| (name, view))
        });
        let invalid = |e| Error::io("write", path)(std::io::Error::other(e));
        let views = views.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
        let about = json!({ "run": run, "done": self.done, "times": times });
        let about = HashMap::from([("learning".to_owned(), about.to_string())]);
        let bytes = safetensors::serialize(views, Some(about)).map_err(invalid)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let write = || {
            let file = tempfile::NamedTempFile::new_in(dir.unwrap_or(Path::new(".")))?;
            std::fs::write(file.path(), bytes)?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|e| e.error).map(drop)
        };
        write().map_err(Error::io("write", path))
    }

    /// Takes the state in `path` over, if there is one; whether there was. The learner must be fresh, and of the same
    /// module.
    ///
    /// # Errors
    /// [`Error::LearnState`] for a state of another run and for a broken one; [`Error::Io`].
    pub fn restore(&mut self, path: &Path, run: &Value) -> Result<bool> {
        let bytes = match std::fs::read(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            read => read.map_err(Error::io("read", path))?,
        };
        let broken = |reason: String| Error::LearnState { path: path.into(), reason };
        let unreadable = |e: safetensors::SafeTensorError| broken(e.to_string());
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(unreadable)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(unreadable)?;
        let about = metadata.metadata().as_ref().and_then(|about| about.get("learning"));
        let about: Value = about
            .and_then(|about| serde_json::from_str(about).ok())
            .ok_or_else(|| broken("its header does not say what run it belongs to".into()))?;
        if let Some(reason) = difference(&about["run"], run) {
            return Err(broken(reason));
        }
        let done = about["done"].as_u64().unwrap_or_default() as usize;
        if !(1..=self.options.steps).contains(&done) {
            return Err(broken(format!("{done} of {} steps are done", self.options.steps)));
        }
        let read = |name: &str, len: usize| -> Result<[Vec<f32>; 3]> {
            let mut parts = [vec![], vec![], vec![]];
            for (out, part) in parts.iter_mut().zip(PARTS) {
                let name = format!("{part}.{name}");
                let view = tensors.tensor(&name).map_err(unreadable)?;
                if (view.dtype(), view.shape()) != (Dtype::F32, &[len]) {
                    let (dtype, shape) = (view.dtype(), view.shape());
                    let found = format!("{name} is {dtype} {shape:?} and must be F32 [{len}]");
                    return Err(broken(found));
                }
                *out = bytemuck::pod_collect_to_vec(view.data());
            }
            Ok(parts)
        };
        let mut taking = Taking {
            place: Place::default(),
            read: &read,
            times: &about["times"],
            states: BTreeMap::new(),
            failed: None,
        };
        let module = self.module.clone().map(&mut taking);
        if let Some(error) = taking.failed {
            return Err(error);
        }
        (self.states, self.module, self.done) = (taking.states, module, done);
        Ok(true)
    }
}

/// The first field in which two runs differ, in words.
fn difference(found: &Value, needed: &Value) -> Option<String> {
    let fields = needed.as_object()?.iter();
    let mut differing = fields.filter(|(field, value)| found[field.as_str()] != **value);
    let (field, value) = differing.next()?;
    Some(format!("its {field} is {}, and that of this run is {value}", found[field.as_str()]))
}

/// The values of all that is learned, by path.
#[derive(Default)]
struct Values {
    place: Place,
    learned: Vec<(String, Tensor<1>)>,
}

impl ModuleVisitor for Values {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.leave();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        if self.place.part().is_some() && value.is_require_grad() {
            let len = value.shape().num_elements();
            self.learned.push((self.place.path(), value.without_autodiff().reshape([len])));
        }
    }
}

/// The stored parts of a parameter of a name and a length.
type Read<'a> = dyn Fn(&str, usize) -> Result<[Vec<f32>; 3]> + 'a;

/// Puts stored values and momenta where they belong.
struct Taking<'a> {
    place: Place,
    read: &'a Read<'a>,
    times: &'a Value,
    states: BTreeMap<String, AdamState<1>>,
    failed: Option<Error>,
}

impl ModuleMapper for Taking<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.leave();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.failed.is_some() || self.place.part().is_none() || !param.val().is_require_grad() {
            return param;
        }
        let (path, (id, old, mapper)) = (self.place.path(), param.consume());
        let (shape, device) = (old.dims(), old.device());
        let [value, moment_1, moment_2] = match (self.read)(&path, old.shape().num_elements()) {
            Ok(parts) => parts,
            Err(error) => {
                self.failed = Some(error);
                return Param::from_mapped_value(id, old, mapper);
            }
        };
        let plain = device.clone().without_autodiff();
        let time = self.times[&path].as_u64().unwrap_or_default() as usize;
        let momentum = AdaptiveMomentumState::new(
            time,
            floats(moment_1, [old.shape().num_elements()], &plain),
            floats(moment_2, [old.shape().num_elements()], &plain),
        );
        self.states.insert(path, AdamState::new(momentum));
        Param::from_mapped_value(id, floats(value, shape, &device).require_grad(), mapper)
    }
}

fn floats<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}
