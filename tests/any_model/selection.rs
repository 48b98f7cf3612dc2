//! Which weights are quantized, and what is refused.

use super::{Mlp, nf4};
use anyhow::Result;
use burn::module::{Lora, Module, ParamGroup};
use burn::tensor::{Device, Tensor};
use flute_burn::error::Error;
use flute_burn::linear::FluteLinear;
use flute_burn::quantize_module;

#[test]
fn the_filter_chooses_by_path() -> Result<()> {
    let device = Device::flex();
    let config = nf4().with_filter(ParamGroup::from_path("down.weight"));
    let mlp = quantize_module(Mlp::new(&device), &config)?;
    assert!(mlp.up.weight.reparameterization::<FluteLinear>().is_none());
    let down = mlp.down.weight.reparameterization::<FluteLinear>();
    assert_eq!(down.map(|down| (down.shape().n, down.shape().k)), Some((40, 256)));
    Ok(())
}

#[test]
fn a_filter_that_names_no_linear_layer_is_refused() {
    let device = Device::flex();
    let config = nf4().with_filter(ParamGroup::from_path("up.bias"));
    let error = quantize_module(Mlp::new(&device), &config).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { name: "the filter", .. }), "{error}");
    assert!(error.to_string().contains("none of the module's 2 dense linear layers"), "{error}");
    // Nothing is left to quantize a second time.
    let twice = quantize_module(Mlp::new(&device), &nf4()).and_then(|m| quantize_module(m, &nf4()));
    let error = twice.unwrap_err();
    assert!(error.to_string().contains("none of the module's 0 dense linear layers"), "{error}");
}

#[test]
fn adapted_weights_are_left_alone() -> Result<()> {
    let device = Device::flex();
    let mut mlp = Mlp::new(&device);
    mlp.up = mlp.up.apply_lora(Lora::new(4, 8.0));
    let mlp = quantize_module(mlp, &nf4())?;
    assert!(mlp.up.weight.adapter().is_some());
    assert!(mlp.down.weight.reparameterization::<FluteLinear>().is_some());
    Ok(())
}

#[test]
fn a_weight_that_is_not_finite_is_refused_by_its_path() {
    let device = Device::flex();
    let mut mlp = Mlp::new(&device);
    mlp.down.weight = mlp.down.weight.map(|weight| {
        let patch = Tensor::full([1, 1], f32::NAN, &weight.device());
        weight.slice_assign([5..6, 3..4], patch)
    });
    let error = quantize_module(mlp, &nf4()).unwrap_err();
    let place = matches!(&error, Error::NotFinite { tensor, row: 3, col: 5, .. } if tensor == "down.weight");
    assert!(place, "{error}");
}
