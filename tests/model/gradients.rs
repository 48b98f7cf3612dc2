//! A whole model on a device with autodiff: what learning needs of it.

use crate::{LLAMA, load};
use anyhow::{Context, Result, ensure};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Gradients, Int, Tensor, activation::log_softmax};
use flute_burn::model::Model;

/// The mean negative log-probability of each token behind those before it.
fn loss(model: &Model, ids: &[u32]) -> Result<Tensor<1>> {
    let len = ids.len() - 1;
    let mut cache = model.new_cache(1, len)?;
    let logits = model.forward(model.tokens(&ids[..len], 1)?, &mut cache)?;
    let said: Tensor<3, Int> = model.tokens(&ids[1..], 1)?.reshape([1, len, 1]);
    Ok(log_softmax(logits, 2).gather(2, said).mean().neg())
}

/// Squared lengths of the gradients, by parameter.
struct Lengths<'a> {
    grads: &'a Gradients,
    path: Vec<String>,
    found: Vec<(String, f64)>,
}

impl ModuleVisitor for Lengths<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let grad = param.val().grad(self.grads);
        let values = grad.and_then(|grad| grad.try_into_vec_as::<f32>().ok()).unwrap_or_default();
        let length = values.iter().map(|v| f64::from(*v).powi(2)).sum();
        self.found.push((self.path.join("."), length));
    }
}

/// Asks for the gradient of every parameter.
struct Tracked;

impl ModuleMapper for Tracked {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.set_require_grad(true)
    }
}

/// Moves every parameter along its gradient.
struct Along<'a>(&'a Gradients, f64);

impl ModuleMapper for Along<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match param.val().grad(self.0) {
            Some(grad) => param.map(|value| (value.without_autodiff() + grad * self.1).autodiff()),
            None => param,
        }
    }
}

#[test]
fn the_gradient_of_a_model_reaches_every_parameter_and_is_the_slope_of_its_loss() -> Result<()> {
    let ids = &LLAMA.eval_ids()?[..24];
    let plain = load(&LLAMA.path(), Device::flex(), DType::F32)?;
    let model = plain.map(&mut Tracked).train();
    let grads = loss(&model, ids)?.backward();
    let mut lengths = Lengths { grads: &grads, path: vec![], found: vec![] };
    model.visit(&mut lengths);
    ensure!(lengths.found.len() > 6 * 9, "{} parameters", lengths.found.len());
    for (path, length) in &lengths.found {
        ensure!(*length > 0.0, "{path} has no gradient");
    }
    let length = lengths.found.iter().map(|(_, length)| length).sum::<f64>().sqrt();
    let step = 0.02;
    let at = |by: f64| -> Result<f64> {
        let moved = model.clone().map(&mut Along(&grads, by / length));
        let loss = loss(&moved, ids)?.try_into_vec_as::<f32>()?;
        Ok(f64::from(*loss.first().context("a loss")?))
    };
    let slope = (at(step)? - at(-step)?) / (2.0 * step);
    println!("slope {slope:.5}, length of the gradient {length:.5}");
    ensure!((slope / length - 1.0).abs() < 0.02, "{slope} and {length}");
    Ok(())
}
