//! The gradients of the operation against differences of a reference in f64, on the CPU and on a device with kernels.

use crate::{devices, tensor, values};
use anyhow::{Result, ensure};
use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Tensor};
use flute_burn::linear::FluteLinear;
use flute_burn::quantize::{self, Method};
use flute_cube::{Bits, Format, Group, Limits, PackedWeight, Quantized, QuantizedParts, Table};

/// A layer, an input and the weights of a loss `Σ r · y`, all of them on the host.
struct Case {
    weight: Quantized,
    bias: Vec<f32>,
    x: Vec<f32>,
    r: Vec<f32>,
    m: usize,
}

/// Gradients of the loss, scales and pairs in kernel order.
#[derive(Debug)]
struct Gradients {
    x: Vec<f32>,
    scales: Vec<f32>,
    pairs: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(weight: Quantized, m: usize) -> Self {
        let (n, k) = (weight.n(), weight.k());
        Self { bias: values(n, 2), x: values(m * k, 3), r: values(m * n, 4), weight, m }
    }

    fn absmax(n: usize, k: usize, bits: Bits, group: Group, m: usize) -> Result<Self> {
        let method = Method::Absmax { table: Table::nf(bits), group };
        Ok(Self::new(quantize::quantize("w", &values(n * k, 1), n, k, &method)?, m))
    }

    /// By autodiff on `device`.
    fn found(&self, device: &Device) -> Result<Gradients> {
        let (n, k) = (self.weight.n(), self.weight.k());
        let layer =
            FluteLinear::from_quantized(&self.weight, Some(&self.bias), DType::F32, device)?;
        let layer = layer.set_require_grad(true).train();
        let device = device.clone().autodiff();
        let x = tensor(&self.x, [self.m, k], &device).require_grad();
        let y = layer.forward(x.clone());
        let grads = (y * tensor(&self.r, [self.m, n], &device)).sum().backward();
        let of = |param: &Param<Tensor<1>>| -> Result<Vec<f32>> {
            let grad = param.val().grad(&grads);
            Ok(grad.expect("a gradient").try_into_vec_as::<f32>()?)
        };
        Ok(Gradients {
            x: x.grad(&grads).expect("a gradient").try_into_vec_as::<f32>()?,
            scales: of(&layer.scales)?,
            pairs: of(&layer.pairs)?,
            bias: of(layer.bias.as_ref().expect("a bias"))?,
        })
    }

    /// By central differences of the loss in f64, which is linear in each of its arguments.
    fn expected(&self) -> Gradients {
        let packed = PackedWeight::pack(&self.weight);
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let arguments = [
            wide(&self.x),
            wide(&packed.scales),
            wide(packed.pairs.as_flattened()),
            wide(&self.bias),
        ];
        let place = places(&self.weight);
        let differences = |which: usize| -> Vec<f32> {
            (0..arguments[which].len())
                .map(|at| {
                    let loss = |step: f64| {
                        let mut changed = arguments.clone();
                        changed[which][at] += step;
                        self.loss(&changed, &place)
                    };
                    (loss(0.5) - loss(-0.5)) as f32
                })
                .collect()
        };
        let [x, scales, pairs, bias] = [0, 1, 2, 3].map(differences);
        Gradients { x, scales, pairs, bias }
    }

    /// `Σ r · (x · Wᵀ + b)` in f64.
    fn loss(&self, arguments: &[Vec<f64>; 4], places: &[Place]) -> f64 {
        let [x, scales, pairs, bias] = arguments;
        let (n, k) = (self.weight.n(), self.weight.k());
        let w = |row: usize, col: usize| {
            let Place { scale, pair } = places[row * k + col];
            scales[scale] * pairs[pair]
        };
        let term = |at: usize| {
            let (m, row) = (at / n, at % n);
            let y: f64 = (0..k).map(|col| x[m * k + col] * w(row, col)).sum();
            f64::from(self.r[at]) * (y + bias[row])
        };
        (0..self.r.len()).map(term).sum()
    }
}

/// Where the scale and the table value of one weight lie in kernel order.
#[derive(Clone, Copy)]
struct Place {
    scale: usize,
    pair: usize,
}

/// The places of all weights: the scale's is found by packing scales that are their own numbers.
fn places(weight: &Quantized) -> Vec<Place> {
    let (n, k, format) = (weight.n(), weight.k(), weight.format());
    let (groups, group) = (format.group.count(k), format.group.len(k));
    let numbered = Quantized::new(QuantizedParts {
        n,
        k,
        format,
        codes: weight.codes().to_vec(),
        scales: (1..=n * groups).map(|number| number as f32).collect(),
        table: weight.table().clone(),
    });
    let packed = PackedWeight::pack(&numbered.expect("the weight was one"));
    let scale = |number: usize| packed.scales.iter().position(|s| *s == number as f32);
    let scales: Vec<usize> = (1..=n * groups).map(|number| scale(number).expect("it")).collect();
    let place = |at: usize| {
        let (row, col) = (at / k, at % k);
        let pair = usize::from(weight.pair_index(row, col / 2));
        Place { scale: scales[row * groups + col / group], pair: 2 * pair + col % 2 }
    };
    (0..n * k).map(place).collect()
}

/// How far a gradient may be off on `device`: dense products are Burn's own, and on tensor cores those of f32 round to 11
/// bits.
fn bound(device: &Device) -> f64 {
    let tensor_cores =
        flute_burn::device::client(device).is_some_and(|client| Limits::of(&client).mma);
    if tensor_cores { 5e-4 } else { 1e-5 }
}

fn compare(what: &str, found: &[f32], expected: &[f32], bound: f64) -> Result<()> {
    ensure!(found.len() == expected.len(), "{what}: {} values", found.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(a - b)));
    let relative = off / norm(&mut expected.iter().map(|v| f64::from(*v)));
    ensure!(relative <= bound, "{what}: {relative} off");
    Ok(())
}

fn check(case: &Case) -> Result<()> {
    let expected = case.expected();
    for device in devices()? {
        let found = case.found(&device)?;
        let name = flute_burn::device::name(&device);
        for (what, found, expected) in [
            ("x", &found.x, &expected.x),
            ("the scales", &found.scales, &expected.scales),
            ("the table", &found.pairs, &expected.pairs),
            ("the bias", &found.bias, &expected.bias),
        ] {
            let what = format!("the gradient of {what} on {name}");
            compare(&what, found, expected, bound(&device))?;
        }
    }
    Ok(())
}

#[test]
fn every_gradient_is_that_of_finite_differences() -> Result<()> {
    check(&Case::absmax(20, 96, Bits::Four, Group::new(32)?, 3)?)?;
    check(&Case::absmax(16, 128, Bits::Three, Group::new(128)?, 2)?)
}

#[test]
fn shapes_that_fill_no_block_and_groups_of_a_row_have_them_too() -> Result<()> {
    check(&Case::absmax(9, 71, Bits::Two, Group::Whole, 2)?)?;
    check(&Case::absmax(5, 161, Bits::Three, Group::new(64)?, 1)?)
}

#[test]
fn a_codebook_of_pairs_has_a_gradient_for_every_pair() -> Result<()> {
    let pairs = values(512, 21).as_chunks().0.to_vec();
    let codes = values(8 * 32, 22).iter().map(|v| ((v + 1.0) * 127.9) as u8).collect();
    let weight = Quantized::new(QuantizedParts {
        n: 8,
        k: 64,
        format: Format::new(4, 32)?,
        codes,
        scales: values(16, 23),
        table: Table::pairs(Bits::Four, &pairs)?,
    })?;
    check(&Case::new(weight, 2))
}

#[test]
fn what_is_frozen_has_no_gradient_and_the_input_has_the_same_one() -> Result<()> {
    let case = Case::absmax(20, 96, Bits::Four, Group::new(32)?, 3)?;
    let layer = FluteLinear::from_quantized(&case.weight, None, DType::F32, &Device::flex())?;
    let device = Device::flex().autodiff();
    // In rank 3, as models have it, and under both strategies of keeping activations.
    for device in [device.clone(), device.gradient_checkpointing()] {
        let x = tensor(&case.x, [1, case.m, 96], &device).require_grad();
        let y = layer.forward(x.clone().exp().log());
        let grads = (y * tensor(&case.r, [1, case.m, 20], &device)).sum().backward();
        assert!(layer.scales.val().grad(&grads).is_none());
        assert!(layer.pairs.val().grad(&grads).is_none());
        let found = x.grad(&grads).expect("a gradient").try_into_vec_as::<f32>()?;
        compare("the gradient of x", &found, &case.expected().x, bound(&Device::flex()))?;
    }
    Ok(())
}

#[test]
fn an_autodiff_device_computes_what_its_plain_one_does() -> Result<()> {
    let case = Case::absmax(40, 200, Bits::Three, Group::new(64)?, 5)?;
    for device in devices()? {
        let layer =
            FluteLinear::from_quantized(&case.weight, Some(&case.bias), DType::F32, &device)?;
        let y = layer.forward::<2>(tensor(&case.x, [5, 200], &device));
        let tracked = tensor(&case.x, [5, 200], &device.autodiff());
        let z = layer.train().forward(tracked);
        assert_eq!(y.try_into_vec_as::<f32>()?, z.try_into_vec_as::<f32>()?);
    }
    Ok(())
}
