//! A low-rank adapter beside a frozen layer, trained as Burn trains anything.

use crate::{devices, tensor, values};
use anyhow::{Result, ensure};
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use flute_burn::linear::FluteLinear;
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Table};

/// `y = x · Wᵀ + b(a(x))`, W in codes.
#[derive(Module, Debug)]
struct Adapted {
    frozen: FluteLinear,
    down: Linear,
    up: Linear,
}

impl Adapted {
    fn new(frozen: FluteLinear, rank: usize, device: &Device) -> Self {
        let shape = frozen.shape();
        let down = LinearConfig::new(shape.k, rank).with_bias(false).init(device);
        let up = LinearConfig::new(rank, shape.n).with_bias(false).init(device);
        Self { frozen, down, up }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.frozen.forward(x.clone()) + self.up.forward(self.down.forward(x))
    }
}

#[test]
fn an_adapter_on_a_frozen_layer_learns_what_quantization_lost() -> Result<()> {
    let (n, k, m) = (32, 64, 48);
    for device in devices()? {
        let dense = tensor(&values(n * k, 61), [n, k], &device);
        let method = Method::Absmax { table: Table::nf(Bits::Two), group: Group::new(64)? };
        let frozen = FluteLinear::from_weight(dense.clone(), None, &method)?;
        let words = frozen.words.val().try_into_vec_as::<i32>()?;
        let scales = frozen.scales.val().try_into_vec_as::<f32>()?;

        let device = device.autodiff();
        let x = tensor(&values(m * k, 62), [m, k], &device);
        let wanted = x.clone().matmul(dense.autodiff().transpose());
        let mut model = Adapted::new(frozen.train(), 16, &device);
        let mut optimizer = AdamConfig::new().init();
        let mut losses = vec![];
        for _ in 0..40 {
            let loss = (model.forward(x.clone()) - wanted.clone()).square().mean();
            losses.push(loss.clone().into_scalar::<f32>());
            let grads = GradientsParams::from_grads(loss.backward(), &model);
            assert_eq!(grads.len(), 2, "the two parts of the adapter and nothing else");
            model = optimizer.step(1e-2, model, grads);
        }
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        ensure!(last < 0.5 * first, "{first} to {last}");
        assert_eq!(model.frozen.words.val().try_into_vec_as::<i32>()?, words);
        assert_eq!(model.frozen.scales.val().try_into_vec_as::<f32>()?, scales);
    }
    Ok(())
}
