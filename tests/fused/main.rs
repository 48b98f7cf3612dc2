//! What a decoding model does between its products, on every device that is here, against the host.

mod blocks;
mod gated;
mod next;

use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use flute_burn::{
    checkpoint::Activation,
    device,
    fused::{self, Attend, Norm, Rotated, Slot},
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// The CPU, and the device with kernels that this machine has, each in every type that it computes in.
fn devices() -> Vec<(Device, DType)> {
    let named = std::env::var("FLUTE_DEVICE").unwrap_or_else(|_| "wgpu:cpu".into());
    let mut found = vec![(Device::flex(), DType::F32)];
    match device::parse(&named) {
        Err(_) => println!("neither FLUTE_DEVICE nor a software Vulkan is here; no kernel was run"),
        Ok(device) => {
            let half = device::check_dtype(&device, DType::F16).is_ok().then_some(DType::F16);
            let dtypes = [Some(DType::F32), half];
            found.extend(dtypes.into_iter().flatten().map(|dtype| (device.clone(), dtype)));
        }
    }
    found
}

/// `count` values of −2..2 that every type holds exactly.
fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-512..512) as f32 / 256.0).collect()
}

fn tensor<const D: usize>(
    values: &[f32],
    shape: [usize; D],
    (device, dtype): &(Device, DType),
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (device, *dtype))
}

/// The blocks of each of `batch` sequences.
fn table(blocks: &[i32], batch: usize, device: &Device) -> Tensor<2, Int> {
    let shape = [batch, blocks.len() / batch];
    Tensor::from_data(TensorData::new(blocks.to_vec(), shape), (device, DType::I32))
}

fn positions(start: &[i32], device: &Device) -> Tensor<1, Int> {
    Tensor::from_data(TensorData::new(start.to_vec(), [start.len()]), (device, DType::I32))
}

/// Whether `found` is `expected` within the roundings of its type: results here are of the order of one.
fn ensure_near<const D: usize>(what: &str, found: Tensor<D>, expected: &[f64]) -> Result<()> {
    let relative = if found.dtype() == DType::F32 { 2e-5 } else { 1e-3 };
    ensure_within(what, found, expected, relative)
}

/// Whether `found` is `expected` within `relative` of one, or of itself if that is more.
fn ensure_within<const D: usize>(
    what: &str,
    found: Tensor<D>,
    expected: &[f64],
    relative: f64,
) -> Result<()> {
    let (dtype, name) = (found.dtype(), device::name(&found.device()));
    let found = found.try_into_vec_as::<f32>()?;
    ensure!(found.len() == expected.len(), "{what} on {name}: {} elements", found.len());
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        let bound = relative * expected.abs().max(1.0);
        ensure!(error <= bound, "{what} on {name} in {dtype:?}: [{at}] is {found}, not {expected}");
    }
    Ok(())
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> + '_ {
    values.iter().map(|v| f64::from(*v))
}

fn norm_of(row: &[f64], gain: &[f32], epsilon: f64, offset: f64) -> Vec<f64> {
    let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
    let factor = 1.0 / (mean + epsilon).sqrt();
    row.iter().zip(gain).map(|(v, gain)| v * factor * (f64::from(*gain) + offset)).collect()
}

#[test]
fn norms_with_and_without_a_residual_are_those_of_the_host() -> Result<()> {
    let (shape, len) = ([2, 3, 48], 48);
    let (x, branch, gain) = (values(1, 288), values(2, 288), values(3, len));
    for on in devices() {
        for (stream, offset) in [(on.1, 0.0), (DType::F32, 1.0)] {
            let form = Norm { epsilon: 1e-5, offset, dtype: on.1 };
            let gains = tensor(&gain, [len], &(on.0.clone(), DType::F32));
            let input = tensor(&x, shape, &(on.0.clone(), stream));
            let plain: Vec<f64> = x
                .chunks(len)
                .flat_map(|row| norm_of(&wide(row).collect::<Vec<_>>(), &gain, 1e-5, offset))
                .collect();
            let found = fused::norm(input.clone(), gains.clone(), form);
            ensure!(found.dtype() == on.1 && found.dims() == shape);
            ensure_near("a norm", found, &plain)?;

            let sums: Vec<f64> = wide(&x).zip(wide(&branch)).map(|(a, b)| a + b).collect();
            let normed: Vec<f64> =
                sums.chunks(len).flat_map(|row| norm_of(row, &gain, 1e-5, offset)).collect();
            let [sum, found] = fused::add_norm(input, tensor(&branch, shape, &on), gains, form);
            ensure!(sum.dtype() == stream && found.dtype() == on.1);
            ensure_near("a sum", sum, &sums)?;
            ensure_near("its norm", found, &normed)?;
        }
    }
    Ok(())
}

#[test]
fn gates_are_those_of_the_host() -> Result<()> {
    let (rows, len) = (5, 30);
    let x = values(4, rows * 2 * len);
    for on in devices() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let act = |x: f64| match activation {
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::GeluTanh => {
                    let factor = (2.0 / std::f64::consts::PI).sqrt();
                    0.5 * x * (1.0 + (factor * (x + 0.044715 * x * x * x)).tanh())
                }
            };
            let expected: Vec<f64> = x
                .chunks(2 * len)
                .flat_map(|row| (0..len).map(|i| act(row[i].into()) * f64::from(row[len + i])))
                .collect();
            let found = fused::gate(tensor(&x, [1, rows, 2 * len], &on), activation);
            ensure!(found.dims() == [1, rows, len]);
            ensure_near("a gate", found, &expected)?;
        }
    }
    Ok(())
}

/// Sequences that are decoded token by token, on the host.
struct Decoding {
    query_heads: usize,
    key_heads: usize,
    dim: usize,
    capacity: usize,
    form: Attend,
}

impl Decoding {
    fn turned(&self, x: &[f32], position: usize) -> Vec<f64> {
        let half = self.dim / 2;
        let angle = |i: usize| f64::from(position as f32 * (0.3 / (i + 1) as f32));
        (0..self.dim)
            .map(|i| {
                let (low, high) = (f64::from(x[i % half]), f64::from(x[half + i % half]));
                let (sin, cos) = angle(i % half).sin_cos();
                if i < half { low * cos - high * sin } else { high * cos + low * sin }
            })
            .collect()
    }

    fn tables(&self, device: &Device) -> [Tensor<2>; 2] {
        let half = self.dim / 2;
        let angle = |at: usize| (at / half) as f32 * (0.3 / (at % half + 1) as f32);
        [f32::cos, f32::sin].map(|of| {
            let rows = self.capacity.next_multiple_of(64);
            let values: Vec<f32> = (0..rows * half).map(|at| of(angle(at))).collect();
            tensor(&values, [rows, half], &(device.clone(), DType::F32))
        })
    }

    /// What the last of `tokens` (each q, k and v) attends to, the first of them at position 0.
    fn attended(&self, tokens: &[&[f32]]) -> Vec<f64> {
        let Self { query_heads, key_heads, dim, form, .. } = *self;
        let last = tokens.len() - 1;
        let first = form.window.map_or(0, |window| tokens.len().saturating_sub(window));
        let mut all = vec![];
        for head in 0..query_heads {
            let key_head = query_heads + head / (query_heads / key_heads);
            let query = self.turned(&tokens[last][head * dim..][..dim], last);
            let score = |at: usize| {
                let key = self.turned(&tokens[at][key_head * dim..][..dim], at);
                let dot: f64 = query.iter().zip(&key).map(|(q, k)| q * k).sum();
                let score = dot * form.scale;
                form.cap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
            };
            let weights: Vec<f64> = (first..=last).map(score).collect();
            let total: f64 = weights.iter().sum();
            let value = |i: usize| {
                let of = |at: usize| f64::from(tokens[at][(key_head + key_heads) * dim + i]);
                (first..=last).map(|at| weights[at - first] * of(at)).sum::<f64>() / total
            };
            all.extend((0..dim).map(value));
        }
        all
    }

    /// What each token of a prompt attends to, that of sequence b from `start[b]` on.
    fn prompt(&self, tokens: &[Vec<&[f32]>; 2], start: [i32; 2], len: usize) -> Vec<f64> {
        let each = tokens.iter().zip(start).flat_map(|(tokens, start)| {
            (0..len).map(move |token| &tokens[..=start as usize + token])
        });
        each.flat_map(|seen| self.attended(seen)).collect()
    }

    /// Prompts of 30 and of 5 tokens, then one token each, 45 times: past a chunk of positions.
    fn run(&self, on: &(Device, DType)) -> Result<()> {
        let Self { query_heads, key_heads, dim, capacity, form } = *self;
        let (features, steps) = ((query_heads + 2 * key_heads) * dim, 45);
        let tokens: [_; 2] = [9, 10].map(|seed| values(seed, capacity * features));
        let tokens = tokens.each_ref().map(|all| all.chunks(features).collect::<Vec<&[f32]>>());
        // Two blocks of each sequence, in no order, and one that nobody has.
        let zeros = || Tensor::zeros([5, key_heads, 64, dim], (&on.0, on.1));
        let blocks = table(&[3, 0, 4, 2], 2, &on.0);
        let (mut keys, mut values) = (zeros(), zeros());
        let tables = self.tables(&on.0);

        // What the second sequence's prompt has behind its fifth token is overwritten by what follows.
        let mut start = [0, 0];
        for (step, len) in [13, 17].into_iter().chain(vec![1; steps]).enumerate() {
            let part = |b: usize| &tokens[b][start[b] as usize..][..len];
            let qkv = tensor(&[part(0), part(1)].concat().concat(), [2, len, features], on);
            let at = positions(&start, &on.0);
            let slot = Slot { keys, values, start: at.clone(), table: blocks.clone() };
            let Rotated { query, keys: k, values: v } =
                fused::rotate_append(qkv, tables.clone(), slot);
            (keys, values) = (k, v);
            let (keys, values) = (keys.clone(), values.clone());
            let slot = Slot { keys, values, start: at, table: blocks.clone() };
            let found = fused::attend(query, slot, form);
            if [0, 1, 2, 3, steps / 2, steps + 1].contains(&step) {
                ensure!(found.dims() == [2, len, query_heads * dim]);
                let expected = self.prompt(&tokens, start, len);
                // Halves are rounded between their rotation and their scores, which the host does not follow.
                let relative = if on.1 == DType::F32 { 2e-5 } else { 4e-3 };
                let what = format!("attention of step {step}");
                ensure_within(&what, found, &expected, relative)?;
            }
            start = start.map(|position| position + len as i32);
            if step == 1 {
                start[1] = 5;
            }
        }
        Ok(())
    }
}

#[test]
fn sequences_of_their_own_lengths_attend_as_the_host_says_prompt_and_token_by_token() -> Result<()>
{
    let plain = Attend { scale: 0.25, cap: None, window: None };
    for form in [
        plain,
        Attend { window: Some(20), ..plain },
        Attend { cap: Some(2.0), window: Some(65), ..plain },
    ] {
        let decoding = Decoding { query_heads: 4, key_heads: 2, dim: 16, capacity: 80, form };
        for on in devices() {
            decoding.run(&on)?;
        }
    }
    Ok(())
}

#[test]
fn heads_that_no_kernel_takes_are_attended_all_the_same() -> Result<()> {
    for tokens in [1, 2] {
        let (shape, cache) = ([1, 2, tokens, 320], [1, 1, 64, 320]);
        let (q, k, v) = (values(20, tokens * 640), values(21, 20480), values(22, 20480));
        let run = |on: &(Device, DType)| {
            let (keys, values) = (tensor(&k, cache, on), tensor(&v, cache, on));
            let (start, table) = (positions(&[6], &on.0), table(&[0], 1, &on.0));
            let slot = Slot { keys, values, start, table };
            let form = Attend { scale: 0.05, cap: None, window: None };
            fused::attend(tensor(&q, shape, on), slot, form)
        };
        let expected = run(&(Device::flex(), DType::F32)).try_into_vec_as::<f32>()?;
        let expected: Vec<f64> = wide(&expected).collect();
        for on in devices() {
            // Its products are Burn's own, and on tensor cores those of f32 round to 11 bits.
            ensure_within("a wide head", run(&on), &expected, 1e-3)?;
        }
    }
    Ok(())
}

#[test]
fn a_cache_that_somebody_else_holds_is_not_overwritten() -> Result<()> {
    for on in devices() {
        let zeros = || Tensor::<4>::zeros([1, 1, 64, 2], (&on.0, on.1));
        let (keys, values_) = (zeros(), zeros());
        let tables = [
            Tensor::ones([64, 1], (&on.0, DType::F32)),
            Tensor::zeros([64, 1], (&on.0, DType::F32)),
        ];
        let qkv = tensor(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1, 1, 6], &on);
        let start = positions(&[2], &on.0);
        let table = table(&[0], 1, &on.0);
        let slot = Slot { keys: keys.clone(), values: values_.clone(), start, table };
        let rotated = fused::rotate_append(qkv, tables, slot);
        let all = |tensor: Tensor<4>| tensor.try_into_vec_as::<f32>();
        ensure!(all(rotated.query)? == [1.0, 2.0]);
        let third = |pair: [f32; 2]| [&[0.0; 4], pair.as_slice(), &[0.0; 122]].concat();
        ensure!(all(rotated.keys)? == third([3.0, 4.0]));
        ensure!(all(rotated.values)? == third([5.0, 6.0]));
        ensure!(all(keys)? == [0.0; 128] && all(values_)? == [0.0; 128], "the old caches changed");
    }
    Ok(())
}

#[test]
fn gradients_pass_through_all_of_them() -> Result<()> {
    let device = Device::flex().autodiff();
    let on = (device.clone(), DType::F32);
    let x = tensor(&values(30, 24), [1, 2, 12], &on).require_grad();
    let gain = tensor(&values(31, 12), [12], &on).require_grad();
    let form = Norm { epsilon: 1e-5, offset: 0.0, dtype: DType::F32 };
    let [sum, normed] = fused::add_norm(x.clone(), x.clone(), gain.clone(), form);
    let gated = fused::gate(normed + sum, Activation::GeluTanh);
    let weights = tensor(&values(32, 12), [1, 2, 6], &on);
    let loss = |x: &[f32], gain: &[f32]| -> f64 {
        let sums: Vec<f64> = wide(x).map(|v| 2.0 * v).collect();
        let rows = sums.chunks(12).flat_map(|row| {
            let normed = norm_of(row, gain, 1e-5, 0.0);
            let both: Vec<f64> = normed.iter().zip(row).map(|(a, b)| a + b).collect();
            let factor = (2.0 / std::f64::consts::PI).sqrt();
            let act = move |x: f64| 0.5 * x * (1.0 + (factor * (x + 0.044715 * x.powi(3))).tanh());
            (0..6).map(|i| act(both[i]) * both[6 + i]).collect::<Vec<_>>()
        });
        rows.zip(wide(&values(32, 12))).map(|(y, w)| y * w).sum()
    };
    let grads = (gated * weights).sum().backward();
    let (Some(of_x), Some(of_gain)) = (x.grad(&grads), gain.grad(&grads)) else {
        anyhow::bail!("no gradient")
    };
    let (base, gains, step) = (values(30, 24), values(31, 12), 1.0 / 256.0);
    let differences = |of: &[f32], loss: &dyn Fn(&[f32]) -> f64| -> Vec<f64> {
        let moved = |i: usize, by: f32| {
            let mut moved = of.to_vec();
            moved[i] += by;
            loss(&moved)
        };
        let slope = |i| (moved(i, step) - moved(i, -step)) / (2.0 * f64::from(step));
        (0..of.len()).map(slope).collect()
    };
    let close = |found: Vec<f32>, expected: Vec<f64>| {
        let length = expected.iter().map(|v| v * v).sum::<f64>().sqrt();
        let apart: f64 = wide(&found).zip(&expected).map(|(f, e)| (f - e).powi(2)).sum();
        apart.sqrt() <= 2e-3 * length
    };
    ensure!(close(of_x.try_into_vec_as()?, differences(&base, &|x| loss(x, &gains))));
    ensure!(close(of_gain.try_into_vec_as()?, differences(&gains, &|gain| loss(&base, gain))));
    Ok(())
}
