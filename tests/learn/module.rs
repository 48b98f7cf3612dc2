//! Learning in a module that is not ours, on the CPU and on a device with kernels.

use crate::{devices, tensor, values};
use anyhow::{Result, ensure};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor, activation::gelu};
use flute_burn::error::Error;
use flute_burn::learn::{LearnOptions, Learner, What, learned_weight};
use flute_burn::linear::FluteLinear;
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Table};

#[derive(Module, Debug)]
struct Mlp {
    up: FluteLinear,
    down: FluteLinear,
    /// Dense, and never touched.
    head: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Result<(Self, Tensor<2>, Tensor<2>)> {
        let x = tensor(&values(64 * 40, 70), [64, 40], device);
        let up = tensor(&values(96 * 40, 71), [96, 40], device) * 0.2;
        let down = tensor(&values(40 * 96, 72), [40, 96], device) * 0.2;
        let head = LinearConfig::new(40, 8).init(device);
        let hidden = gelu(x.clone().matmul(up.clone().transpose()));
        let wanted = head.forward(hidden.matmul(down.clone().transpose()));
        let method = Method::Absmax { table: Table::nf(Bits::Two), group: Group::new(32)? };
        let up = FluteLinear::from_weight(up, None, &method)?;
        let down = FluteLinear::from_weight(down, None, &method)?;
        Ok((Self { up, down, head }, x, wanted))
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.head.forward(self.down.forward(gelu(self.up.forward(x))))
    }
}

fn learn(device: &Device, what: What) -> Result<[f64; 2]> {
    let (model, x, wanted) = Mlp::new(device)?;
    let before = model.clone();
    let mut learner = Learner::new(model, LearnOptions { what, rate: 2e-2, steps: 30 })?;
    let (x, wanted) = (x.autodiff(), wanted.autodiff());
    let mut losses = vec![];
    for _ in 0..30 {
        let loss = |model: &Mlp| Ok((model.forward(x.clone()) - wanted.clone()).square().mean());
        losses.push(learner.step(loss)?);
    }
    let (was, is) = (learned_weight(&before.up)?, learned_weight(&learner.module().up)?);
    assert_eq!((is.scales.len(), is.pairs.len()), (96 * 2, 16));
    assert!(was.scales.iter().zip(&is.scales).all(|(a, b)| a != b && a.signum() == b.signum()));
    assert_eq!(was.pairs != is.pairs, what == What::ScalesAndTables);
    // A table of single values stays one: every pair is made of them.
    let values = is.table(1);
    let product = |at: usize| [values[at % 4], values[at / 4]];
    assert!(is.pairs.iter().enumerate().all(|(at, pair)| *pair == product(at)));

    let after = learner.finish();
    assert!(!after.up.scales.val().is_autodiff());
    assert_eq!(after.up.scales.val().dtype(), DType::F32);
    let words = |model: &Mlp| model.up.words.val().try_into_vec_as::<i32>();
    assert_eq!(words(&after)?, words(&before)?, "codes are never trained");
    let head = |model: &Mlp| model.head.weight.val().try_into_vec_as::<f32>();
    assert_eq!(head(&after)?, head(&before)?);
    Ok([losses[0], losses[29]])
}

#[test]
fn scales_of_any_module_learn_and_nothing_else_changes() -> Result<()> {
    for device in devices()? {
        let [first, last] = learn(&device, What::Scales)?;
        println!("{}: {first:.6} to {last:.6}", flute_burn::device::name(&device));
        ensure!(last < 0.8 * first, "{first} to {last}");
    }
    Ok(())
}

#[test]
fn tables_that_learn_beside_the_scales_go_further() -> Result<()> {
    for device in devices()? {
        let [first, last] = learn(&device, What::ScalesAndTables)?;
        let [_, scales] = learn(&device, What::Scales)?;
        println!("{first:.6} to {last:.6}, by scales alone to {scales:.6}");
        ensure!(last < scales, "{last} and not below {scales}");
    }
    Ok(())
}

#[test]
fn what_cannot_learn_is_refused() -> Result<()> {
    let (model, ..) = Mlp::new(&Device::flex())?;
    let options = LearnOptions { what: What::Scales, rate: 1e-3, steps: 4 };
    for options in [
        LearnOptions { rate: 0.0, ..options },
        LearnOptions { rate: f64::NAN, ..options },
        LearnOptions { steps: 0, ..options },
    ] {
        let error = Learner::new(model.clone(), options).err();
        assert!(matches!(error, Some(Error::InvalidOption { .. })), "{options:?}");
    }
    let error = Learner::new(model.head.clone(), options).err();
    assert!(matches!(error, Some(Error::InvalidOption { .. })), "no layer to learn");

    let mut learner = Learner::new(model, options)?;
    let nan = |model: &Mlp| Ok(model.up.scales.val().sum() * f32::NAN);
    let error = learner.step(nan).unwrap_err();
    assert!(matches!(error, Error::LossNotFinite { step: 1, .. }), "{error}");
    assert_eq!(learner.done(), 0);
    Ok(())
}
