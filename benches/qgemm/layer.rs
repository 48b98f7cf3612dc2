//! Our product as a model calls it, through Burn: on the CPU, where no kernel runs and each call decodes the weight, and
//! on GPUs on request, where with many rows the operation may decode it and let Burn multiply. What is timed holds the
//! host's work too.

use crate::target::burn_dtype;
use anyhow::Result;
use burn::tensor::{DType, Device, Tensor, TensorData};
use flute_burn::op::{self, FluteTensors, WeightShape};
use flute_cube::{
    Problem,
    measure::{self, Run, Synthetic, Timing},
};

/// Bytes of results that wait for the device at a time.
const PENDING_BYTES: usize = 1 << 30;

/// Times the product of `synthetic`, going around among `copies` of its weight, and checks it.
pub(crate) fn time(device: &Device, synthetic: &Synthetic, copies: usize) -> Result<Run> {
    let Problem { m, n, k, format, dtype, .. } = synthetic.problem;
    let float = burn_dtype(dtype);
    let vector = |values: &[f32]| {
        let data = TensorData::from_bytes_vec(dtype.encode(values), [values.len()], float);
        Tensor::<1>::from_data(data, (device, float))
    };
    let words: &[i32] = bytemuck::cast_slice(&synthetic.weight.words);
    let pairs = vector(synthetic.weight.pairs.as_flattened());
    let copy = |_| FluteTensors {
        words: Tensor::from_data(
            TensorData::new(words.to_vec(), [words.len()]),
            (device, DType::I32),
        ),
        scales: vector(&synthetic.weight.scales),
        pairs: pairs.clone(),
        bias: None,
        shape: WeightShape { n, k, format },
    };
    let weights: Vec<_> = (0..copies).map(copy).collect();
    let x = TensorData::from_bytes_vec(synthetic.x.bytes(m * k), [m, k], float);
    let x = Tensor::<2>::from_data(x, (device, float));
    let product = |weight: &FluteTensors| op::qgemm(x.clone(), weight.clone());
    let timing = queued(device, &weights, m * n * dtype.size(), product)?;
    let y = product(&weights[0]).try_into_data()?;
    Ok(Run { timing, deviation: synthetic.samples.deviation(y.as_bytes()) })
}

/// Times `product` of each of `weights` in turn, whose results of `bytes` bytes stay on the device.
pub(crate) fn queued<W>(
    device: &Device,
    weights: &[W],
    bytes: usize,
    product: impl Fn(&W) -> Tensor<2>,
) -> Result<Timing> {
    let most = (PENDING_BYTES / bytes).clamp(1, 1000);
    measure::sample(weights.len(), |times| {
        // Fusion is lazy: a result that nobody holds need not be computed.
        let mut results = vec![];
        for _ in 0..times {
            for weight in weights {
                if results.len() == most {
                    device.sync()?;
                    results.clear();
                }
                results.push(product(weight));
            }
        }
        device.sync()?;
        Ok(())
    })
}
