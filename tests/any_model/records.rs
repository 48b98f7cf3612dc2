//! Records of quantized modules, and the modules that they load into.

use super::{Mlp, encoder, error, nf4, noise, seeded};
use anyhow::{Result, ensure};
use burn::module::{Module, Param, ParamId};
use burn::nn::transformer::{TransformerEncoder, TransformerEncoderInput};
use burn::nn::{Linear, LinearConfig, LinearLayout};
use burn::store::{BurnpackStore, ModuleRecord, ModuleSnapshot, SafetensorsStore};
use burn::tensor::{Device, Tensor};
use flute_burn::{module, quantize_module};

#[test]
fn a_record_loads_into_a_prepared_module_bit_for_bit() -> Result<()> {
    let device = Device::flex();
    let quantized = quantize_module(encoder(&device), &nf4())?;
    let x = noise([1, 5, 64], 41, &device);
    let run = |encoder: &TransformerEncoder| {
        encoder.forward(TransformerEncoderInput::new(x.clone())).try_into_vec_as::<f32>()
    };
    let expected = run(&quantized)?;
    let prepared = || module::prepare_module(encoder(&device), &nf4());
    assert_ne!(run(&prepared()?)?, expected);

    let bytes = quantized.clone().into_record().into_bytes()?;
    ensure!(3 * bytes.len() < 2 * module::bytes(&encoder(&device)), "{} bytes", bytes.len());
    let loaded = prepared()?.load_record(ModuleRecord::from_bytes(bytes)?);
    assert_eq!(run(&loaded)?, expected);

    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("record.bpk");
    quantized.clone().save_file(&file)?;
    assert_eq!(run(&prepared()?.try_load_file(&file)?)?, expected);

    let mut store = BurnpackStore::from_file(scratch.path().join("store.bpk"));
    quantized.save_into(&mut store)?;
    let mut loaded = prepared()?;
    loaded.load_from(&mut store)?;
    assert_eq!(run(&loaded)?, expected);

    let mut store = SafetensorsStore::from_file(scratch.path().join("store.safetensors"));
    quantized.save_into(&mut store)?;
    let mut loaded = prepared()?;
    loaded.load_from(&mut store)?;
    assert_eq!(run(&loaded)?, expected);
    Ok(())
}

#[test]
fn a_dense_record_does_not_load_into_quantized_weights() -> Result<()> {
    let device = Device::flex();
    let record = Mlp::new(&device).into_record();
    let error = module::prepare_module(Mlp::new(&device), &nf4())?.try_load_record(record);
    assert!(error.is_err_and(|error| error.to_string().contains("up.weight")));
    Ok(())
}

#[test]
fn a_prepared_module_never_makes_the_weights_that_it_replaces() -> Result<()> {
    let device = Device::flex();
    let weight = Param::uninitialized(
        ParamId::new(),
        |_: &Device, _| -> Tensor<2> { panic!("the dense weight was made") },
        device.clone(),
        true,
        [64, 32].into(),
    );
    let layer = module::prepare_module(Linear { weight, bias: None }, &nf4())?;
    let y = layer.forward(noise([3, 64], 51, &device));
    assert_eq!(y.try_into_vec_as::<f32>()?, [0.0; 96]);
    Ok(())
}

#[test]
fn weights_stored_by_columns_quantize_and_materialize_alike() -> Result<()> {
    let device = Device::flex();
    let config = LinearConfig::new(96, 40).with_layout(LinearLayout::Col);
    let dense = seeded(config.init(&device), 5);
    let x = noise([3, 96], 81, &device);
    let quantized = quantize_module(dense.clone(), &nf4())?;
    let off = error(quantized.forward(x.clone()), dense.forward(x.clone()));
    ensure!(off > 1e-3 && off < 0.2, "{off}");
    // The materialized layer writes its weight whole and by columns, as a fresh layer reads it.
    let expected = quantized.forward(x.clone()).try_into_vec_as::<f32>()?;
    let loaded = config.init(&device).load_record(quantized.materialize().into_record());
    assert_eq!(loaded.forward(x).try_into_vec_as::<f32>()?, expected);
    Ok(())
}
