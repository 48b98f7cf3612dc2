//! Products that gate, as layers: against f64, and their gradients against those of ordinary operations.

use crate::{devices, ensure_within, tensor, values};
use anyhow::{Context, Result, ensure};
use burn::module::Module;
use burn::tensor::{DType, Device, Tensor, activation::sigmoid};
use flute_burn::{checkpoint::Activation, linear::FluteLinear};
use flute_cube::{
    Bits, Format, Group, PackedWeight, Quantized, QuantizedParts, Table, pack::Order, reference,
};

const K: usize = 96;

/// A weight `[n, K]` whose values every type holds exactly.
fn weight(seed: u64, n: usize) -> Result<Quantized> {
    let format = Format { bits: Bits::Four, group: Group::Size(32) };
    let codes =
        values(seed, n * K).iter().map(|v| ((v.abs() * 256.0) as usize % 16) as u8).collect();
    let signs = values(seed + 1, n * 3);
    let scales = signs.iter().map(|v| if *v < 0.0 { 0.125 } else { 0.25 }).collect();
    let table = Table::int(format.bits);
    Ok(Quantized::new(QuantizedParts { n, k: K, format, codes, scales, table })?)
}

/// Gate and up of `inner` features as one layer, its bias by turns.
fn layer([gate, up]: &[Quantized; 2], bias: &[f32], on: &(Device, DType)) -> Result<FluteLinear> {
    let both = vec![PackedWeight::pack(gate), PackedWeight::pack(up)];
    let both = PackedWeight::stack(both, Order::ByTurns).ok().context("they are alike")?;
    Ok(FluteLinear::from_packed(both, Some(bias), on.1, &on.0)?)
}

fn exact(activation: Activation, x: f64) -> f64 {
    let factor = (2.0 / std::f64::consts::PI).sqrt();
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => 0.5 * x * (1.0 + (factor * (x + 0.044715 * x.powi(3))).tanh()),
    }
}

#[test]
fn a_layer_of_gate_and_up_gives_what_two_layers_and_a_gate_give_for_any_number_of_rows()
-> Result<()> {
    let inner = 24;
    let weights = [weight(70, inner)?, weight(72, inner)?];
    let biases = [values(74, inner), values(75, inner)];
    let by_turns = flute_cube::pack::by_turns(&biases[0], &biases[1], 1);
    for on in devices() {
        let layer = layer(&weights, &by_turns, &on)?;
        for (m, activation) in [
            (1, Activation::Silu),
            (1, Activation::GeluTanh),
            (9, Activation::GeluTanh),
            (33, Activation::Silu),
            // Beyond what any kernel but Hopper's multiplies by codes.
            (200, Activation::GeluTanh),
        ] {
            let x = values(76, m * K);
            let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let [gate, up] = [0, 1].map(|i| reference::qgemm(&wide, &weights[i], Some(&biases[i])));
            let expected: Vec<f64> =
                gate.iter().zip(&up).map(|(g, u)| exact(activation, *g) * u).collect();
            let found = layer.gated(tensor(&x, [1, m, K], &on), activation);
            ensure!(found.dims() == [1, m, inner] && found.dtype() == on.1);
            // Where a kernel of its own gates halves, gate and up are rounded before.
            let relative = if on.1 == DType::F32 { 2e-5 } else { 4e-3 };
            ensure_within(&format!("{m} rows, {activation:?}"), found, &expected, relative)?;
        }
        let none = layer.gated(Tensor::<3>::zeros([1, 0, K], (&on.0, on.1)), Activation::Silu);
        ensure!(none.dims() == [1, 0, inner]);
    }
    Ok(())
}

#[test]
fn the_gradient_of_a_gated_product_is_that_of_the_product_and_ordinary_operations() -> Result<()> {
    let (inner, m) = (16, 5);
    let weights = [weight(80, inner)?, weight(82, inner)?];
    let (bias, x, r) = (values(84, 2 * inner), values(85, m * K), values(86, m * inner));
    for on in devices().into_iter().filter(|on| on.1 == DType::F32) {
        let grads = |gated: bool| -> Result<Vec<Vec<f32>>> {
            let layer = layer(&weights, &bias, &on)?.set_require_grad(true).train();
            let learning = (on.0.clone().autodiff(), on.1);
            let x = tensor(&x, [m, K], &learning).require_grad();
            let y = if gated {
                layer.gated(x.clone(), Activation::Silu)
            } else {
                let both = layer.forward(x.clone()).reshape([m * inner / 8, 2, 8]);
                let [gate, up] = [0, 1].map(|part| both.clone().narrow(1, part, 1));
                (gate.clone() * sigmoid(gate) * up).reshape([m, inner])
            };
            let grads = (y * tensor(&r, [m, inner], &learning)).sum().backward();
            let bias = layer.bias.as_ref().context("a bias")?;
            let mut all = vec![x.grad(&grads).context("of x")?.try_into_vec_as::<f32>()?];
            for param in [&layer.scales, &layer.pairs, bias] {
                let grad = param.val().grad(&grads).context("of a parameter")?;
                all.push(grad.try_into_vec_as::<f32>()?);
            }
            Ok(all)
        };
        for (found, expected) in grads(true)?.iter().zip(&grads(false)?) {
            let length = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
            let whole = length(&mut expected.iter().copied());
            let apart = length(&mut found.iter().zip(expected).map(|(f, e)| f - e));
            ensure!(found.len() == expected.len() && whole > 0.0 && apart <= 1e-5 * whole);
        }
    }
    Ok(())
}

#[test]
#[should_panic(expected = "24 rows are no turns of gate and up of 16 rows")]
fn a_layer_whose_rows_are_no_whole_turns_gates_nothing() {
    let on = (Device::flex(), DType::F32);
    let weight = PackedWeight::pack(&weight(90, 24).expect("valid"));
    let layer = FluteLinear::from_packed(weight, None, on.1, &on.0).expect("served");
    let _ = layer.gated(tensor(&values(92, K), [1, K], &on), Activation::Silu);
}
