//! Our product where no kernel runs: the operation as a model calls it, on the CPU, which decodes the weight each time.

use crate::target::burn_dtype;
use anyhow::Result;
use burn::tensor::{DType, Device, Tensor, TensorData};
use flute_burn::op::{self, FluteTensors, WeightShape};
use flute_cube::{
    Problem,
    measure::{self, Run, Synthetic},
};

/// Times and checks the product of `synthetic`.
pub(crate) fn time(device: &Device, synthetic: &Synthetic) -> Result<Run> {
    let Problem { m, n, k, format, dtype, .. } = synthetic.problem;
    let float = burn_dtype(dtype);
    let vector = |values: &[f32]| {
        let data = TensorData::from_bytes_vec(dtype.encode(values), [values.len()], float);
        Tensor::<1>::from_data(data, (device, float))
    };
    let words: Vec<i32> = bytemuck::cast_slice(&synthetic.weight.words).to_vec();
    let len = words.len();
    let weight = FluteTensors {
        words: Tensor::from_data(TensorData::new(words, [len]), (device, DType::I32)),
        scales: vector(&synthetic.weight.scales),
        pairs: vector(synthetic.weight.pairs.as_flattened()),
        bias: None,
        shape: WeightShape { n, k, format },
    };
    let x = TensorData::from_bytes_vec(synthetic.x.bytes(m * k), [m, k], float);
    let x = Tensor::<2>::from_data(x, (device, float));
    let product = || op::qgemm(x.clone(), weight.clone()).try_into_data();
    let timing = measure::sample(1, |times| (0..times).try_for_each(|_| product().map(drop)))?;
    Ok(Run { timing, deviation: synthetic.samples.deviation(product()?.as_bytes()) })
}
