//! Random rotations: signs before the transform, in weights and activations alike.

use super::{
    fixture,
    models::{eval_ids, load, logits, worst},
    normal, relative, tensor,
};
use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device, Tensor, TensorData};
use flute_burn::checkpoint::{self, ConvertOptions, ExportOptions, Reader, Target};
use flute_burn::error::Error;
use flute_burn::linear::{FluteLinear, Rotation};
use flute_burn::quantize::{Higgs, Method, quantize};
use flute_burn::{device, hadamard};
use flute_cube::{Bits, Group, Table};

fn random(p: usize, block: usize, seed: u32) -> Result<Method> {
    Ok(Method::Higgs(Higgs::new(Bits::Four, p, Group::new(64)?, block)?.with_seed(seed)))
}

#[test]
fn a_seed_decides_the_signs_and_as_many_are_negative_as_positive() {
    let signs = hadamard::signs(7, 32768);
    assert!(signs.iter().all(|sign| sign.abs() == 1.0));
    let sum: f32 = signs.iter().sum();
    assert!(sum.abs() < 800.0, "{sum} of 32768");
    assert_eq!(signs[..512], hadamard::signs(7, 512), "a block's signs do not depend on its size");
    assert_ne!(signs, hadamard::signs(8, 32768));
    // What files of this version mean by seed 0.
    let first: String =
        hadamard::signs(0, 16).iter().map(|sign| if *sign > 0.0 { '+' } else { '-' }).collect();
    assert_eq!(first, "-++-+++-+-+-----");
}

#[test]
fn a_weight_that_the_plain_rotation_makes_worse_is_none_for_random_signs() -> Result<()> {
    // Rows of Sylvester's matrix: a plain rotation leaves one element with all the length of a block.
    let (n, block) = (16, 256);
    let sign = |row: usize, col: usize| {
        if (row & col).count_ones().is_multiple_of(2) { 0.5 } else { -0.5 }
    };
    let weight: Vec<f32> = (0..n * block).map(|i| sign(i / block * 11, i % block)).collect();
    let exact: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
    let lost = |method: &Method| -> Result<f64> {
        let layer = FluteLinear::from_weight(tensor(&weight, [n, block]), None, method)?;
        Ok(relative(&layer.dequantize().try_into_vec_as::<f32>()?, &exact).powi(2))
    };
    let plain = lost(&super::higgs(Bits::Four, 2, 64, block)?)?;
    let signed = lost(&random(2, block, 3)?)?;
    println!("relative squared error {plain:.4}, with random signs {signed:.4}");
    ensure!(plain > 0.3 && signed < 0.012, "{plain}, {signed}");
    Ok(())
}

#[test]
fn a_layer_of_a_random_rotation_is_the_dense_layer_that_it_came_from_on_every_device() -> Result<()>
{
    let named = std::env::var("FLUTE_DEVICE").unwrap_or_else(|_| "wgpu:cpu".into());
    for device in [Device::flex()].into_iter().chain(device::parse(&named)) {
        // 300 columns are padded to 384.
        let (n, k, block) = (40, 300, 128);
        let (weight, x) = (normal(71, n * k), normal(72, 5 * k));
        let method = random(2, block, 5)?;
        let on = |values: &[f32], rows: usize| {
            let data = TensorData::new(values.to_vec(), [rows, k]);
            Tensor::<2>::from_data(data, (&device, DType::F32))
        };
        let layer = FluteLinear::from_weight(on(&weight, n), None, &method)?;
        assert_eq!(layer.rotation(), Some(Rotation { block, in_features: k, seed: Some(5) }));
        let plain = quantize("w", &weight, n, k, &super::higgs(Bits::Four, 2, 64, block)?)?;
        assert_ne!(quantize("w", &weight, n, k, &method)?.codes(), plain.codes());

        let dense = layer.dequantize();
        let exact: Vec<f64> = weight.iter().map(|w| f64::from(*w)).collect();
        let lost = relative(&dense.clone().try_into_vec_as::<f32>()?, &exact).powi(2);
        ensure!(lost < 0.009, "{lost}");
        let expected = on(&x, 5).matmul(dense.transpose()).try_into_vec_as::<f32>()?;
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        let off = relative(&layer.forward(on(&x, 5)).try_into_vec_as::<f32>()?, &expected);
        println!("{}: relative error {off:.1e}", device::name(&device));
        ensure!(off < 1e-3, "{off}");
    }
    Ok(())
}

#[test]
fn a_record_keeps_the_signs_and_x_has_its_gradient_through_them() -> Result<()> {
    let (weight, x) = (normal(73, 24 * 200), normal(74, 3 * 200));
    let layer = FluteLinear::from_weight(tensor(&weight, [24, 200]), None, &random(1, 128, 9)?)?;
    let bytes = layer.clone().into_record().into_bytes()?;
    let empty = FluteLinear::zeros(layer.shape(), false, DType::F32, &Device::flex())?;
    let rotation = Rotation { block: 128, in_features: 200, seed: Some(9) };
    let loaded = empty.with_rotation(rotation)?.load_record(ModuleRecord::from_bytes(bytes)?);
    let of =
        |layer: &FluteLinear| layer.forward(tensor::<2>(&x, [3, 200])).try_into_vec_as::<f32>();
    assert_eq!(of(&loaded)?, of(&layer)?);

    let frozen = layer.clone().train();
    let x = tensor::<2>(&x, [3, 200]).autodiff().require_grad();
    let grads = frozen.forward(x.clone()).sum().backward();
    let Some(grad) = x.grad(&grads) else { anyhow::bail!("no gradient") };
    let columns = layer.dequantize().sum_dim(0).try_into_vec_as::<f32>()?;
    let expected: Vec<f64> = columns.iter().map(|sum| f64::from(*sum)).collect();
    let grad = grad.try_into_vec_as::<f32>()?;
    for row in grad.chunks(200) {
        ensure!(relative(row, &expected) < 1e-5);
    }
    Ok(())
}

#[test]
fn a_random_rotation_is_stored_by_its_seed_and_only_our_format_holds_it() -> Result<()> {
    let (scratch, source) = (tempfile::tempdir()?, fixture("tiny-llama"));
    let dir = scratch.path().join("model");
    let seeded = |bits, seed| -> Result<Method> {
        let higgs = Higgs::new(bits, 2, Group::new(256)?, 256)?;
        Ok(Method::Higgs(higgs.with_seed(seed)))
    };
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    let mut options = ConvertOptions::new(&source, &dir, seeded(Bits::Four, 11)?, &mut quiet);
    let nf = Method::Absmax { table: Table::nf(Bits::Four), group: Group::new(64)? };
    options.overrides = vec![("q_proj".into(), nf), ("o_proj".into(), seeded(Bits::Three, 11)?)];
    checkpoint::convert(options)?;
    let reader = Reader::open(&dir)?;
    assert_eq!(reader.config_source()["quantization_config"]["hadamard_seed"], 11);
    for (module, seed) in [("self_attn.q_proj", None), ("self_attn.o_proj", Some(11))] {
        let stored = reader.linear(&format!("model.layers.5.{module}"))?;
        assert_eq!(stored.hadamard_seed, seed, "{module}");
    }
    let ids = &eval_ids()?[..24];
    let (kernels, decoded) = (logits(&load(&dir, false)?, ids)?, logits(&load(&dir, true)?, ids)?);
    let off = worst(&kernels, &decoded);
    ensure!(off <= 1e-4, "{off}");

    let target = scratch.path().join("other");
    let mut options = ConvertOptions::new(&source, &target, seeded(Bits::Four, 11)?, &mut quiet);
    options.overrides = vec![("q_proj".into(), seeded(Bits::Four, 12)?)];
    let refused = checkpoint::convert(options).err().context("two seeds")?;
    ensure!(matches!(refused, Error::InvalidOption { .. }), "{refused}");
    let mut exports = |_: checkpoint::Progress<'_>| {};
    let mut options = ExportOptions::new(&dir, &target, &mut exports);
    options.to = Target::Higgs;
    let refused = checkpoint::export(options).err().context("it was written")?;
    ensure!(refused.to_string().contains("random signs of 11"), "{refused}");
    ensure!(!target.exists());
    Ok(())
}
