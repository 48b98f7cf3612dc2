//! `FluteLinear` against dense products of the same weights, on the CPU.

use anyhow::{Result, ensure};
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use flute_burn::error::Error;
use flute_burn::linear::{AnyLinear, FluteLinear};
use flute_burn::op::WeightShape;
use flute_burn::quantize::{self, Method};
use flute_cube::{Bits, Format, Group, Quantized, QuantizedParts, Table};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

fn values(len: usize, seed: u64) -> Vec<f32> {
    println!("seed {seed}");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn quantized(n: usize, k: usize, table: Table, group: usize) -> Result<Quantized> {
    let method = Method::Absmax { table, group: Group::new(group)? };
    Ok(quantize::quantize("w", &values(n * k, 3), n, k, &method)?)
}

/// Relative Frobenius error of `found` against a dense product with the dequantized weight, in f64.
fn error(x: &[f32], weight: &Quantized, bias: &[f32], found: &[f32]) -> f64 {
    let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let expected = flute_cube::reference::qgemm(&x, weight, Some(bias));
    assert_eq!(found.len(), expected.len());
    let off = found.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
    (off / expected.iter().map(|v| v * v).sum::<f64>()).sqrt()
}

#[test]
fn inputs_of_any_rank_meet_the_weight_and_its_bias() -> Result<()> {
    for (n, k, bits, group) in [(48, 96, 4, 32), (130, 100, 3, 64), (1, 257, 2, 128)] {
        let weight = quantized(n, k, Table::nf(Bits::new(bits)?), group)?;
        let (x, bias) = (values(12 * k, 5), values(n, 6));
        let linear =
            FluteLinear::from_quantized(&weight, Some(&bias), DType::F32, &Device::flex())?;
        let outputs = [
            linear.forward(tensor(x.clone(), [12, k])).try_into_vec_as::<f32>()?,
            linear.forward(tensor(x.clone(), [3, 4, k])).try_into_vec_as::<f32>()?,
            linear.forward(tensor(x.clone(), [2, 3, 2, k])).try_into_vec_as::<f32>()?,
        ];
        let relative = error(&x, &weight, &bias, &outputs[0]);
        ensure!(relative <= 1e-5, "[{n}, {k}] {bits} bits: {relative}");
        assert_eq!(outputs[0], outputs[1]);
        assert_eq!(outputs[0], outputs[2]);
        let first = linear.forward(tensor(x[..k].to_vec(), [k]));
        assert_eq!(first.dims(), [n]);
    }
    Ok(())
}

#[test]
fn an_input_of_another_type_is_computed_in_the_weight_s_and_returned_in_its_own() -> Result<()> {
    let weight = quantized(32, 64, Table::int(Bits::Four), 32)?;
    let linear = FluteLinear::from_quantized(&weight, None, DType::F32, &Device::flex())?;
    let x = values(4 * 64, 9);
    let y = linear.forward(tensor(x.clone(), [4, 64]).cast(DType::F16));
    assert_eq!((y.dims(), y.dtype()), ([4, 32], DType::F16));
    let relative = error(&x, &weight, &[0.0; 32], &y.cast(DType::F32).try_into_vec_as::<f32>()?);
    ensure!(relative <= 1e-3, "{relative}");
    Ok(())
}

#[test]
fn a_codebook_of_pairs_is_a_table_like_any_other() -> Result<()> {
    let pairs: Vec<[f32; 2]> = values(512, 21).as_chunks().0.to_vec();
    let codes = values(8 * 32, 22).iter().map(|v| ((v + 1.0) * 127.9) as u8).collect();
    let weight = Quantized::new(QuantizedParts {
        n: 8,
        k: 64,
        format: Format::new(4, 32)?,
        codes,
        scales: values(16, 23),
        table: Table::pairs(Bits::Four, &pairs)?,
    })?;
    let linear = FluteLinear::from_quantized(&weight, None, DType::F32, &Device::flex())?;
    let x = values(5 * 64, 24);
    let y = linear.forward(tensor(x.clone(), [5, 64])).try_into_vec_as::<f32>()?;
    let relative = error(&x, &weight, &[0.0; 8], &y);
    ensure!(relative <= 1e-5, "{relative}");
    Ok(())
}

#[test]
fn a_dense_layer_of_burn_becomes_a_quantized_one() -> Result<()> {
    let dense = LinearConfig::new(256, 128).init(&Device::flex());
    let x = Tensor::<2>::random([7, 256], Distribution::Normal(0.0, 1.0), &Device::flex());
    let expected = dense.forward(x.clone());
    let method = Method::Absmax { table: Table::nf(Bits::Four), group: Group::new(64)? };
    let linear = FluteLinear::from_linear(&dense, &method)?;
    assert_eq!(linear.shape(), WeightShape { n: 128, k: 256, format: method.format() });
    let found = linear.forward(x);
    let relative =
        (found - expected.clone()).square().sum().sqrt() / expected.square().sum().sqrt();
    let relative = relative.into_scalar::<f32>();
    // NF4 keeps a uniform weight to about 9 %.
    ensure!(relative > 1e-3 && relative < 0.15, "{relative}");
    Ok(())
}

#[test]
fn a_record_brings_a_layer_back_bit_for_bit() -> Result<()> {
    let weight = quantized(40, 160, Table::nf(Bits::Three), 64)?;
    let bias = values(40, 31);
    let linear = FluteLinear::from_quantized(&weight, Some(&bias), DType::F16, &Device::flex())?;
    let x = tensor(values(3 * 160, 32), [3, 160]);
    let expected = linear.forward(x.clone()).try_into_vec_as::<f32>()?;
    let shape = linear.shape();

    let bytes = AnyLinear::Flute(linear.clone()).into_record().into_bytes()?;
    let empty = FluteLinear::zeros(shape, true, DType::F16, &Device::flex())?;
    let loaded = AnyLinear::Flute(empty).load_record(ModuleRecord::from_bytes(bytes)?);
    assert_eq!(loaded.forward(x.clone()).try_into_vec_as::<f32>()?, expected);

    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("layer.bpk");
    linear.save_file(&file)?;
    let empty = FluteLinear::zeros(shape, true, DType::F16, &Device::flex())?;
    let loaded = empty.try_load_file(file)?;
    assert_eq!(loaded.forward(x).try_into_vec_as::<f32>()?, expected);
    Ok(())
}

#[test]
fn a_layer_says_what_it_is() -> Result<()> {
    let weight = quantized(48, 96, Table::nf(Bits::Four), 32)?;
    let linear = FluteLinear::from_quantized(&weight, None, DType::F32, &Device::flex())?;
    let shown = linear.to_string();
    assert_eq!(shown, "FluteLinear {d_input: 96, d_output: 48, format: W4G32, bias: false}");
    Ok(())
}

#[test]
fn scales_and_tables_that_overflow_the_type_are_refused_by_place() -> Result<()> {
    let parts = QuantizedParts {
        n: 2,
        k: 64,
        format: Format::new(4, 32)?,
        codes: vec![0; 128],
        scales: vec![1.0, 1.0, 1.0, 1e30],
        table: Table::int(Bits::Four),
    };
    let weight = Quantized::new(parts.clone())?;
    assert!(FluteLinear::from_quantized(&weight, None, DType::F32, &Device::flex()).is_ok());
    let error =
        FluteLinear::from_quantized(&weight, None, DType::F16, &Device::flex()).unwrap_err();
    assert!(matches!(error, Error::ScaleOverflow { row: 1, group: 1, .. }), "{error}");
    let values: Vec<f32> = (0..16).map(|i| i as f32 * 1e4).collect();
    let table = Table::custom(Bits::Four, &values)?;
    let parts =
        QuantizedParts { n: 1, k: 32, codes: vec![15; 32], scales: vec![1.0], table, ..parts };
    let weight = Quantized::new(parts)?;
    let error =
        FluteLinear::from_quantized(&weight, None, DType::F16, &Device::flex()).unwrap_err();
    assert!(matches!(error, Error::Cube(flute_cube::Error::NotFinite { index: 7, .. })), "{error}");
    Ok(())
}

#[test]
fn types_and_biases_that_do_not_fit_are_refused() -> Result<()> {
    let weight = quantized(8, 32, Table::int(Bits::Four), 32)?;
    let error =
        FluteLinear::from_quantized(&weight, None, DType::F64, &Device::flex()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let bias = [0.0; 9];
    let error = FluteLinear::from_quantized(&weight, Some(&bias), DType::F32, &Device::flex());
    assert!(matches!(error, Err(Error::TensorShape { .. })), "{error:?}");
    let shape = WeightShape { n: 0, k: 32, format: Format::new(4, 32)? };
    let error = FluteLinear::zeros(shape, false, DType::F32, &Device::flex()).unwrap_err();
    assert!(error.to_string().starts_with("n is 0"), "{error}");
    Ok(())
}

#[test]
fn a_weight_that_is_not_finite_is_refused_by_place() -> Result<()> {
    let mut weight = values(4 * 32, 41);
    weight[37] = f32::NAN;
    let method = Method::Absmax { table: Table::int(Bits::Four), group: Group::new(32)? };
    let error = FluteLinear::from_weight(tensor(weight, [4, 32]), None, &method).unwrap_err();
    assert!(matches!(error, Error::NotFinite { row: 1, col: 5, .. }), "{error}");
    Ok(())
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

#[test]
fn few_rows_and_many_meet_the_same_weight_on_a_device_with_kernels() -> Result<()> {
    let Some(device) = kernels()? else { return Ok(()) };
    let (n, k) = (96, 200);
    let weight = quantized(n, k, Table::nf(Bits::Four), 64)?;
    let bias = values(n, 6);
    let linear = FluteLinear::from_quantized(&weight, Some(&bias), DType::F32, &device)?;
    // Up to 128 rows the codes are multiplied as they are; from then on they are decoded once.
    for m in [1, 128, 129, 300] {
        let x = values(m * k, 5);
        let input = Tensor::from_data(TensorData::new(x.clone(), [m, k]), &device);
        let y = linear.forward::<2>(input).try_into_vec_as::<f32>()?;
        let relative = error(&x, &weight, &bias, &y);
        ensure!(relative <= 1e-5, "{m} rows: {relative}");
    }
    Ok(())
}
