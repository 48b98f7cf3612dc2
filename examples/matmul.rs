//! `flute_cube` alone, without Burn: quantizes a matrix, multiplies on the first device found, checks the answer.
//!
//! `cargo run --example matmul`

use cubecl::{Device, device::WgpuDeviceKind};
use flute_cube::{
    Dtype, Format, Limits, Operands, PackedWeight, Plan, Problem, Quantized, QuantizedParts, Table,
    qgemm, reference,
};

fn main() -> anyhow::Result<()> {
    let (m, n, k) = (4, 1024, 2048);
    let format = Format::new(4, 128)?;
    let table = Table::nf(format.bits);

    // Any weights will do. A scale a group, then the nearest table entry for each weight.
    let dense: Vec<f32> = (0..n * k).map(|i| (i as f32 * 0.618).sin() / 32.0).collect();
    let (mut codes, mut scales) = (Vec::with_capacity(n * k), vec![]);
    for group in dense.chunks(format.group.len(k)) {
        let scale = group.iter().fold(f32::MIN_POSITIVE, |max, w| w.abs().max(max));
        codes.extend(group.iter().map(|w| table.nearest(w / scale)));
        scales.push(scale);
    }
    let weight = Quantized::new(QuantizedParts { n, k, format, codes, scales, table })?;

    let device = Device::cuda(0)
        .or_else(|_| Device::wgpu(WgpuDeviceKind::DiscreteGpu(0)))
        .or_else(|_| Device::wgpu(WgpuDeviceKind::IntegratedGpu(0)))
        .or_else(|_| Device::wgpu(WgpuDeviceKind::Cpu))?;
    let client = device.client();
    let limits = Limits::of(&client);
    let dtype = if limits.dtypes.contains(&Dtype::F16) { Dtype::F16 } else { Dtype::F32 };

    let x: Vec<f32> = (0..m * k).map(|i| dtype.round((i as f32 * 0.414).cos())).collect();
    let operands = Operands::upload(&client, &PackedWeight::pack(&weight), &x, None, dtype);
    let problem = Problem { m, n, k, format, dtype, bias: false, gate: None };
    println!("{} on {} with {}", format, limits.name, Plan::select(&problem, &limits)?);
    qgemm(&client, &problem, operands.clone())?;
    let y = dtype.decode(&client.read_one(operands.y).map_err(|e| anyhow::anyhow!("{e}"))?);

    let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let right = reference::qgemm(&wide, &reference::rounded(&weight, dtype)?, None);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut y.iter().zip(&right).map(|(a, b)| f64::from(*a) - b))
        / norm(&mut right.iter().copied());
    println!("relative error {error:.1e}, {:.2} bits a weight", weight_bits(&weight));
    anyhow::ensure!(error < 1e-3, "the result is wrong");
    Ok(())
}

/// Bits that a weight takes on the device, its share of a half-precision scale included.
fn weight_bits(weight: &Quantized) -> f64 {
    let packed = PackedWeight::pack(weight);
    (32 * packed.words.len() + 16 * packed.scales.len()) as f64 / (packed.n * packed.k) as f64
}
