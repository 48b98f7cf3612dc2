//! Puts FLUTE layers into a Burn model of your own: train or load it dense, then quantize layer by layer.
//!
//! `cargo run --example linear`

use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::{Device, Distribution, Tensor, activation::relu};
use flute_burn::linear::{AnyLinear, FluteLinear};
use flute_burn::{device, quantize::Method};
use flute_cube::{Bits, Group, Table};

#[derive(Module, Debug)]
struct Mlp {
    up: AnyLinear,
    down: AnyLinear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Self {
            up: AnyLinear::Dense(LinearConfig::new(512, 2048).init(device)),
            down: AnyLinear::Dense(LinearConfig::new(2048, 512).init(device)),
        }
    }

    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.down.forward(relu(self.up.forward(x)))
    }

    fn quantize(self, method: &Method) -> flute_burn::error::Result<Self> {
        let quantize = |linear| match linear {
            AnyLinear::Dense(linear) => {
                FluteLinear::from_linear(&linear, method).map(AnyLinear::Flute)
            }
            flute => Ok(flute),
        };
        Ok(Self { up: quantize(self.up)?, down: quantize(self.down)? })
    }
}

fn main() -> anyhow::Result<()> {
    let device = device::parse("auto")?;
    let dense = Mlp::new(&device);
    let x = Tensor::<3>::random([2, 5, 512], Distribution::Normal(0.0, 1.0), &device);
    let expected = dense.forward(x.clone());

    for bits in Bits::ALL {
        let method = Method::Absmax { table: Table::nf(bits), group: Group::Size(64) };
        let quantized = dense.clone().quantize(&method)?;
        let error = (quantized.forward(x.clone()) - expected.clone()).square().mean().sqrt();
        let relative = error / expected.clone().square().mean().sqrt();
        println!("{bits} bits: relative error {:.4}", relative.into_scalar::<f32>());
        if bits == Bits::Four {
            println!("{quantized}");
        }
    }
    Ok(())
}
