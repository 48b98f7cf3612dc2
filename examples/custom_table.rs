//! Any 2^b values can be a table: here a Lloyd–Max table, fitted to the weights it will code.
//!
//! `cargo run --example custom_table`

use burn::tensor::{Distribution, Tensor};
use flute_burn::linear::FluteLinear;
use flute_burn::{device, quantize::Method};
use flute_cube::{Bits, Group, Table};

/// The values that code `samples` with the least squared error, by alternating codes and means.
fn fit(samples: &[f32], bits: Bits) -> flute_cube::Result<Table> {
    let mut table = Table::nf(bits);
    for _ in 0..30 {
        let mut sums = vec![(0.0f64, 0u32); bits.codes()];
        for sample in samples {
            let (sum, count) = &mut sums[usize::from(table.nearest(*sample))];
            *sum += f64::from(*sample);
            *count += 1;
        }
        let mean = |((sum, count), old): (&(f64, u32), &f32)| match count {
            0 => *old,
            count => (sum / f64::from(*count)) as f32,
        };
        let values: Vec<f32> = sums.iter().zip(table.values()).map(mean).collect();
        table = Table::custom(bits, &values)?;
    }
    Ok(table)
}

fn main() -> anyhow::Result<()> {
    let (device, group, bits) = (device::parse("auto")?, 64, Bits::Three);
    let weight = Tensor::<2>::random([1024, 1024], Distribution::Normal(0.0, 0.02), &device);
    // What codes stand for: weights divided by the largest magnitude of their group.
    let groups: Tensor<2> = weight.clone().reshape([1024 * 1024 / group, group]);
    let scaled = (groups.clone() / groups.max_abs_dim(1)).try_into_vec_as::<f32>()?;

    let x = Tensor::<2>::random([16, 1024], Distribution::Normal(0.0, 1.0), &device);
    let expected = x.clone().matmul(weight.clone().transpose());
    for table in [Table::int(bits), Table::fp(bits), Table::nf(bits), fit(&scaled, bits)?] {
        let name = table.kind();
        let method = Method::Absmax { table, group: Group::new(group)? };
        let linear = FluteLinear::from_weight(weight.clone(), None, &method)?;
        let error = (linear.forward(x.clone()) - expected.clone()).square().mean().sqrt();
        let relative = error / expected.clone().square().mean().sqrt();
        println!("{name:6} relative error {:.4}", relative.into_scalar::<f32>());
    }
    Ok(())
}
