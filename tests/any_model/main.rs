//! FLUTE weights in modules whose source knows nothing of them: Burn's own layers, and the example's LLaMA.

#[path = "../../examples/any_model/llama.rs"]
mod llama;
mod records;
mod selection;

use anyhow::{Result, ensure};
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::nn::transformer::{
    TransformerEncoder, TransformerEncoderConfig, TransformerEncoderInput,
};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation::relu};
use cubecl::MemoryScope;
use flute_burn::linear::FluteLinear;
use flute_burn::quantize::{self, Higgs, Method};
use flute_burn::{QuantizeConfig, linear, module, quantize_module};
use flute_cube::{Bits, Group, Table};
use llama::{Llama, LlamaConfig};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        let (up, down) = (LinearConfig::new(96, 256), LinearConfig::new(256, 40));
        seeded(Self { up: up.init(device), down: down.init(device) }, 1)
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward(relu(self.up.forward(x)))
    }

    /// The same source after the one-line change.
    fn forward_fused(&self, x: Tensor<2>) -> Tensor<2> {
        linear(&self.down, relu(linear(&self.up, x)))
    }
}

fn nf4() -> QuantizeConfig {
    QuantizeConfig::new(Method::Absmax { table: Table::nf(Bits::Four), group: Group::Size(64) })
}

fn noise<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    println!("seed {seed}");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| rng.random_range(-1.7..1.7)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// `module` with matrices that follow `seed`: Burn's own seed is one for all tests that run at once.
fn seeded<M: Module>(module: M, seed: u64) -> M {
    struct Seeded(u64);
    impl ModuleMapper for Seeded {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if D == 1 {
                return param;
            }
            self.0 += 1000;
            let (seed, device) = (self.0, param.lazy_device());
            param.map(|weight| noise(weight.dims(), seed, &device) / 16.0)
        }
    }
    module.map(&mut Seeded(seed))
}

/// Relative error of `found` against `expected`, as Frobenius norms.
fn error<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f32 {
    let off = (found - expected.clone()).square().sum() / expected.square().sum();
    off.sqrt().into_scalar::<f32>()
}

fn encoder(device: &Device) -> TransformerEncoder {
    seeded(TransformerEncoderConfig::new(64, 192, 4, 2).with_dropout(0.0).init(device), 2)
}

fn small_llama(device: &Device) -> Llama {
    let config = LlamaConfig {
        vocab_size: 96,
        d_model: 64,
        hidden_size: 160,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        max_seq_len: 32,
    };
    seeded(config.init(device), 3)
}

/// A device whose kernels run here: the one that `FLUTE_DEVICE` names, or a software rasterizer, or none.
fn kernels() -> Result<Option<Device>> {
    let name = std::env::var("FLUTE_DEVICE").unwrap_or_else(|_| "wgpu:cpu".into());
    let required = std::env::var("FLUTE_REQUIRE").is_ok_and(|names| !names.is_empty());
    match flute_burn::device::parse(&name) {
        Ok(device) => Ok(Some(device)),
        Err(error) if required => Err(error.into()),
        Err(error) => {
            println!("{error}: no kernel was checked");
            Ok(None)
        }
    }
}

/// Flex, and a device with kernels if there is one.
fn devices() -> Result<Vec<Device>> {
    Ok([Some(Device::flex()), kernels()?].into_iter().flatten().collect())
}

/// `layer` with the weight that its codes stand for, computed on the host.
fn decoded(layer: &Linear, method: &Method) -> Result<Linear> {
    let weight = layer.weight.val();
    let [k, n] = weight.dims();
    let rows = weight.clone().transpose().try_into_vec_as::<f32>()?;
    let dense = quantize::quantize("w", &rows, n, k, method)?.dequantize();
    let dense = Tensor::<2>::from_data(TensorData::new(dense, [n, k]), &weight.device());
    let weight = Param::initialized(ParamId::new(), dense.transpose());
    Ok(Linear { weight, bias: layer.bias.clone() })
}

#[test]
fn a_module_multiplies_by_the_dequantized_weights_with_and_without_the_one_line_change()
-> Result<()> {
    for device in devices()? {
        let dense = Mlp::new(&device);
        let QuantizeConfig { method, .. } = nf4();
        let expected =
            Mlp { up: decoded(&dense.up, &method)?, down: decoded(&dense.down, &method)? };
        let quantized = quantize_module(dense.clone(), &nf4())?;
        for m in [1, 7, 200] {
            let x = noise([m, 96], m as u64, &device);
            let y = expected.forward(x.clone());
            let plain = error(quantized.forward(x.clone()), y.clone());
            let fused = error(quantized.forward_fused(x.clone()), y.clone());
            ensure!(plain <= 1e-5 && fused <= 1e-5, "{m} rows: {plain}, {fused}");
            // It is not the dense module that ran, and the dense one takes the same line.
            let off = error(y, dense.forward(x.clone()));
            ensure!(off > 1e-3 && off < 0.3, "{off}");
            let same = error(dense.forward_fused(x.clone()), dense.forward(x));
            ensure!(same == 0.0, "{same}");
        }
    }
    Ok(())
}

#[test]
fn burn_s_transformer_encoder_runs_on_quantized_weights_unedited() -> Result<()> {
    for device in devices()? {
        let dense = encoder(&device);
        let x = noise([2, 9, 64], 21, &device);
        let run =
            |encoder: &TransformerEncoder| encoder.forward(TransformerEncoderInput::new(x.clone()));
        let quantized = quantize_module(dense.clone(), &nf4())?;
        let y = run(&quantized);
        // Back to a dense module of the same values, which is Burn's own arithmetic throughout.
        let same = error(y.clone(), run(&quantized.clone().materialize()));
        ensure!(same <= 1e-6, "{same}");
        let off = error(y, run(&dense));
        ensure!(off > 1e-3 && off < 0.2, "{off}");
    }
    Ok(())
}

#[test]
fn four_bits_and_a_scale_are_what_is_left_of_a_weight_in_memory() -> Result<()> {
    let device = Device::flex();
    let dense = LinearConfig::new(256, 512).init(&device);
    let weights = 256 * 512;
    assert_eq!(module::bytes(&dense), 4 * (weights + 512));
    let layer = quantize_module(dense, &nf4())?;
    // Half a byte a weight, a float for each 64 of them, a table of 256 pairs, and one element that holds the place.
    let expected = weights / 2 + 4 * (weights / 64) + 4 * (512 + 1) + 4 * 512;
    assert_eq!(module::bytes(&layer), expected);
    layer.forward(noise([1, 256], 25, &device));
    assert_eq!(module::bytes(&layer), expected);
    assert_eq!(layer.weight.dims(), [256, 512], "sources ask a weight for its shape");
    Ok(())
}

#[test]
fn the_device_s_memory_shrinks_with_the_module() -> Result<()> {
    let Some(device) = kernels()? else { return Ok(()) };
    let Some(client) = flute_burn::device::client(&device) else { return Ok(()) };
    let in_use = || -> Result<u64> {
        device.sync()?;
        Ok(client.memory_report(MemoryScope::CurrentStream).usage().bytes_in_use)
    };
    let weights = 1024 * 1024;
    let layer = LinearConfig::new(1024, 1024).init(&device);
    let x = noise([1, 1024], 31, &device);
    layer.forward(x.clone()).into_data();
    let before = in_use()?;
    let layer = quantize_module(layer, &nf4())?;
    linear(&layer, x).into_data();
    let after = in_use()?;
    println!("{before} bytes in use before, {after} after");
    ensure!(before - after > 3 * weights, "{before} before and {after} after");
    Ok(())
}

#[test]
fn activations_get_their_gradient_through_frozen_codes() -> Result<()> {
    let device = Device::flex().autodiff();
    let quantized = quantize_module(Mlp::new(&device), &nf4())?;
    let dense = quantized.clone().materialize();
    let x = noise([5, 96], 61, &device).require_grad();
    let gradients = |y: Tensor<2>| -> Result<_> {
        let gradients = y.square().sum().backward();
        let x = x.grad(&gradients).ok_or_else(|| anyhow::anyhow!("x has no gradient"))?;
        Ok((x, gradients))
    };
    let (expected, _) = gradients(dense.forward(x.clone()))?;
    let (found, all) = gradients(quantized.forward(x.clone()))?;
    let off = error(found, expected.clone());
    ensure!(off <= 1e-6, "{off}");
    let (fused, _) = gradients(quantized.forward_fused(x.clone()))?;
    let off = error(fused, expected);
    ensure!(off <= 1e-5, "through the kernels: {off}");
    // What is left dense trains, and codes do not.
    let bias = quantized.up.bias.as_ref().map(|bias| bias.val().grad(&all).is_some());
    assert_eq!(bias, Some(true));
    assert!(quantized.up.weight.base().grad(&all).is_none());
    Ok(())
}

#[test]
fn codes_stay_through_validation_training_and_moves() -> Result<()> {
    let device = Device::flex().autodiff();
    let quantized = quantize_module(Mlp::new(&device), &nf4())?;
    let x = noise([3, 96], 71, &device);
    let expected = quantized.forward(x.clone()).try_into_vec_as::<f32>()?;
    let moved = quantized.valid().train().to_device(&device).fork(&device);
    assert!(moved.up.weight.reparameterization::<FluteLinear>().is_some());
    assert_eq!(moved.forward(x).try_into_vec_as::<f32>()?, expected);
    Ok(())
}

#[test]
fn rotated_weights_stand_for_themselves_whatever_the_padding() -> Result<()> {
    for device in devices()? {
        let method = Method::Higgs(Higgs::new(Bits::Four, 2, Group::Size(32), 32)?);
        let layer = seeded(LinearConfig::new(72, 24).init(&device), 4);
        let x = noise([4, 72], 91, &device);
        let expected = layer.forward(x.clone());
        let layer = quantize_module(layer, &QuantizeConfig::new(method))?;
        let same = error(layer.forward(x.clone()), linear(&layer, x.clone()));
        ensure!(same <= 1e-4, "{same}");
        let off = error(layer.forward(x), expected);
        ensure!(off > 1e-3 && off < 0.2, "{off}");
    }
    Ok(())
}

#[test]
fn half_precision_modules_keep_their_type() -> Result<()> {
    let device = Device::flex();
    let half = |layer: Linear| Linear {
        weight: layer.weight.map(|weight| weight.cast(DType::F16)),
        bias: layer.bias.map(|bias| bias.map(|bias| bias.cast(DType::F16))),
    };
    let Mlp { up, down } = Mlp::new(&device);
    let mlp = quantize_module(Mlp { up: half(up), down: half(down) }, &nf4())?;
    let y = mlp.forward(noise([2, 96], 95, &device).cast(DType::F16));
    assert_eq!(y.dtype(), DType::F16);
    let fused = mlp.forward_fused(noise([2, 96], 95, &device).cast(DType::F16));
    let off = error(fused.cast(DType::F32), y.cast(DType::F32));
    ensure!(off <= 5e-3, "{off}");
    Ok(())
}

#[test]
fn a_llama_decodes_from_its_cache_what_it_says_at_once() -> Result<()> {
    for device in devices()? {
        let llama = quantize_module(small_llama(&device), &nf4())?;
        let text = vec![3i64, 14, 15, 92, 65, 35];
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(text, [1, 6]), &device);
        let dense = llama.clone().materialize();
        let expected = dense.forward(tokens.clone(), &mut dense.empty_cache());
        let mut cache = llama.empty_cache();
        let prompt = llama.forward(tokens.clone().slice([0..1, 0..4]), &mut cache);
        let steps =
            (4..6).map(|i| llama.forward(tokens.clone().slice([0..1, i..i + 1]), &mut cache));
        let steps = steps.collect::<Vec<_>>();
        let found = Tensor::cat([vec![prompt], steps].concat(), 1);
        let off = error(found, expected);
        ensure!(off <= 1e-5, "{off}");
    }
    Ok(())
}
