//! A product to be measured: synthetic operands, and what its result must be.
//!
//! Operands are noise, since a GPU draws less power for constant ones and so is faster than it would be in a model. The
//! weight lies on the device as often as it takes to exceed any cache; activations, pair table and result exist once,
//! as in a model, where the layer before leaves them in the cache.

use super::{
    Timing,
    noise::{Noise, random, unit},
    samples::Samples,
    time, time_queued,
};
use crate::{
    Dtype, Error, Limits, Operands, PackedWeight, Plan, Problem, Result, Table, pack, qgemm_with,
};
use cubecl::{
    future::block_on,
    prelude::Client,
    server::{Handle, ServerError},
};
use std::time::{Duration, Instant};

/// Bytes of weights among which the launches of one round go around: more than the last-level cache of any device.
pub const COLD_BYTES: usize = 400_000_000;

/// The longest round. Launches of which fewer than all copies fill it are not bound by memory, so they may find some of
/// it in a cache. It is short, since a device lowers its clock while it is under load: what is compared has to be under
/// load for as long.
const ROUND: Duration = Duration::from_millis(10);

/// A problem with synthetic operands, on the host.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// What is asked.
    pub problem: Problem,
    /// Random codes into the Normal Float table, scales in [1/2, 3/2).
    pub weight: PackedWeight,
    /// Activations.
    pub x: Noise,
    /// What the result must be.
    pub samples: Samples,
}

impl Synthetic {
    /// Operands of `problem`, whose bias and gate are left out.
    pub fn new(problem: &Problem) -> Self {
        let problem = Problem { bias: false, gate: None, ..*problem };
        let Problem { n, k, format, dtype, .. } = problem;
        let mut seed = 7;
        let words = (0..PackedWeight::words_len(n, k, format)).map(|_| random(&mut seed) as u32);
        let words = words.collect();
        let scales = (0..PackedWeight::scales_len(n, k, format)).map(|_| 0.5 + unit(&mut seed));
        let scales = scales.collect();
        let pairs = Table::nf(format.bits).pair_table();
        let weight = PackedWeight { n, k, format, words, scales, pairs };
        let x = Noise::new(seed, dtype);
        let samples = samples(&problem, &weight, &x);
        Self { problem, weight, x, samples }
    }

    /// Other rows of the same x.
    fn take(&mut self, m: usize) {
        self.problem.m = m;
        self.samples = samples(&self.problem, &self.weight, &self.x);
    }

    /// Bytes of codes and scales.
    pub fn weight_bytes(&self) -> usize {
        4 * self.weight.words.len() + self.weight.scales.len() * self.problem.dtype.size()
    }
}

fn samples(problem: &Problem, weight: &PackedWeight, x: &Noise) -> Samples {
    let Problem { m, n, k, dtype, .. } = *problem;
    let row = |row: usize| weight_row(weight, row, dtype);
    Samples::new([m, n], dtype, |token| x.row(token, k), row)
}

/// One row of `weight` as a kernel decodes it: table and scale rounded to `dtype`, their product not.
fn weight_row(weight: &PackedWeight, row: usize, dtype: Dtype) -> Vec<f64> {
    let (k, format) = (weight.k, weight.format);
    let tiles = weight.n.div_ceil(pack::BLOCK_ROWS);
    let (tile, row) = (row / pack::BLOCK_ROWS, row % pack::BLOCK_ROWS);
    // The rows of a block lie together, and packed alone they would look the same.
    fn part<T: Clone>(all: &[T], tile: usize, tiles: usize) -> Vec<T> {
        let len = all.len() / tiles;
        all[tile * len..][..len].to_vec()
    }
    let block = PackedWeight {
        n: pack::BLOCK_ROWS,
        k,
        format,
        words: part(&weight.words, tile, tiles),
        scales: part(&weight.scales, tile, tiles),
        pairs: vec![],
    };
    let (indices, scales) = block.unpack();
    let (per_row, groups, group) = (k.div_ceil(2), format.group.count(k), format.group.len(k));
    let value = |col: usize| {
        let pair = weight.pairs[usize::from(indices[row * per_row + col / 2])];
        let scale = dtype.round(scales[row * groups + col / group]);
        f64::from(dtype.round(pair[col % 2])) * f64::from(scale)
    };
    (0..k).map(value).collect()
}

/// What a plan did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Of one launch.
    pub timing: Timing,
    /// See [`Samples::deviation`].
    pub deviation: f64,
}

impl Run {
    /// Whether the result was right, so that its time means something.
    pub fn is_right(&self) -> bool {
        self.deviation <= 1.0
    }
}

/// A [`Synthetic`] product on a device, ready to be timed with any plan.
pub struct Workload {
    /// The host's side of it.
    pub synthetic: Synthetic,
    client: Client,
    /// Of x on the device.
    rows: usize,
    x: Handle,
    pairs: Handle,
    /// Words and scales of each copy of the weight.
    copies: Vec<(Handle, Handle)>,
}

impl Workload {
    /// Uploads synthetic operands of `problem`, with as many copies of the weight as [`COLD_BYTES`] ask for.
    ///
    /// # Errors
    /// What [`Problem::validate`] refuses.
    pub fn new(client: &Client, problem: &Problem) -> Result<Self> {
        problem.validate(&Limits::of(client))?;
        let synthetic = Synthetic::new(problem);
        let Problem { m, k, dtype, .. } = synthetic.problem;
        let weight = &synthetic.weight;
        let (words, scales) = (bytemuck::cast_slice(&weight.words), dtype.encode(&weight.scales));
        // Replays of a few hundred launches last long enough, whatever a cache makes of such small weights.
        let count = COLD_BYTES.div_ceil(synthetic.weight_bytes()).clamp(2, 200);
        let copies = (0..count)
            .map(|_| (client.create_from_slice(words), client.create_from_slice(&scales)))
            .collect();
        let x = client.create_from_slice(&synthetic.x.bytes((m * k).max(1)));
        let pairs = client.create_from_slice(&dtype.encode(weight.pairs.as_flattened()));
        Ok(Self { client: client.clone(), rows: m, x, pairs, copies, synthetic })
    }

    /// Launches `plan` once, and says how far its result is from the right one ([`Samples::deviation`]).
    ///
    /// # Errors
    /// What [`qgemm_with`] refuses, and [`Error::Device`].
    pub fn check(&self, plan: &Plan) -> Result<f64> {
        Ok(self.synthetic.samples.deviation(&self.bytes(plan)?))
    }

    /// Launches `plan` once, and returns all of its result `[m, n]`.
    ///
    /// # Errors
    /// What [`qgemm_with`] refuses, and [`Error::Device`].
    pub fn result(&self, plan: &Plan) -> Result<Vec<f32>> {
        Ok(self.synthetic.problem.dtype.decode(&self.bytes(plan)?))
    }

    fn bytes(&self, plan: &Plan) -> Result<Vec<u8>> {
        let Problem { m, n, dtype, .. } = self.synthetic.problem;
        let len = m * n * dtype.size();
        let y = self.client.create_from_slice(&vec![0xff; len.max(dtype.size())]);
        self.launch(plan, 0, &y)?;
        let bytes = self.client.read_one(y).map_err(failed("read a result"))?;
        Ok(bytes[..len].to_vec())
    }

    /// Takes only the first `m` rows of x from now on, of as many as there were at first.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for more.
    pub fn take(&mut self, m: usize) -> Result<()> {
        let most = self.rows;
        if m > most {
            return Err(Error::OutOfRange { what: "rows of x", found: m, min: 0, max: most });
        }
        self.synthetic.take(m);
        Ok(())
    }

    fn launch(&self, plan: &Plan, copy: usize, y: &Handle) -> Result<()> {
        qgemm_with(&self.client, &self.synthetic.problem, plan, self.operands(copy, y))
    }

    /// The buffers of launch `launch` of a round, which writes `y`: those of the next copy of the weight, for callers
    /// that time more than the product.
    pub fn operands(&self, launch: usize, y: &Handle) -> Operands {
        let (words, scales) = self.copies[launch % self.copies.len()].clone();
        let (x, pairs) = (self.x.clone(), self.pairs.clone());
        Operands { x, words, scales, pairs, bias: None, y: y.clone() }
    }

    /// Times `plan` and checks what it computed.
    ///
    /// # Errors
    /// What [`qgemm_with`] refuses, and [`Error::Device`].
    pub fn time(&self, plan: &Plan) -> Result<Run> {
        let Problem { m, n, dtype, .. } = self.synthetic.problem;
        let len = m * n * dtype.size();
        let y = self.client.create_from_slice(&vec![0xff; len.max(dtype.size())]);
        let timing = self.clock(plan, &y)?;
        let bytes = self.client.read_one(y).map_err(failed("read a result"))?;
        Ok(Run { timing, deviation: self.synthetic.samples.deviation(&bytes[..len]) })
    }

    /// Times `plan` alone: where results are so large that a look at them would cost more than the time is worth.
    ///
    /// # Errors
    /// What [`Self::time`] refuses.
    pub fn time_unseen(&self, plan: &Plan) -> Result<Timing> {
        let Problem { m, n, dtype, .. } = self.synthetic.problem;
        self.clock(plan, &self.client.empty((m * n).max(1) * dtype.size()))
    }

    fn clock(&self, plan: &Plan, y: &Handle) -> Result<Timing> {
        let launch = |i: usize| self.launch(plan, i, y);
        let once = || -> Result<f64> {
            let start = Instant::now();
            launch(0)?;
            block_on(self.client.sync_buffers([y])).map_err(failed("warmed up"))?;
            Ok(start.elapsed().as_secs_f64())
        };
        // The first launch compiles.
        once()?;
        let most = (ROUND.as_secs_f64() / once()?) as usize;
        let count = self.copies.len().min(most.max(2));
        match plan {
            // What no graph captures: launches are long, and the device is behind the host.
            Plan::Dense(_) => time_queued(&self.client, count, launch),
            _ => time(&self.client, count, y, launch),
        }
    }
}

fn failed(during: &'static str) -> impl Fn(ServerError) -> Error {
    move |error| Error::Device { during, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    fn synthetic() -> Synthetic {
        let format = Format::new(3, 64).unwrap();
        Synthetic::new(&Problem {
            m: 3,
            n: 21,
            k: 200,
            format,
            dtype: Dtype::F16,
            bias: false,
            gate: None,
        })
    }

    /// The whole product, by another way than the samples take.
    fn product(synthetic: &Synthetic) -> Vec<f32> {
        let Problem { m, n, k, dtype, .. } = synthetic.problem;
        let rounded = PackedWeight {
            scales: synthetic.weight.scales.iter().map(|s| dtype.round(*s)).collect(),
            pairs: synthetic.weight.pairs.iter().map(|p| p.map(|v| dtype.round(v))).collect(),
            ..synthetic.weight.clone()
        };
        let (w, x) = (rounded.dequantize(), dtype.decode(&synthetic.x.bytes(m * k)));
        let dot = |token: usize, row: usize| {
            let rows = x[token * k..][..k].iter().zip(&w[row * k..][..k]);
            rows.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>() as f32
        };
        (0..m * n).map(|i| dot(i / n, i % n)).collect()
    }

    #[test]
    fn a_right_result_deviates_by_its_rounding_alone() {
        let synthetic = synthetic();
        let y = Dtype::F16.encode(&product(&synthetic));
        assert!(synthetic.samples.deviation(&y) < 0.5);
    }

    #[test]
    fn wrong_swapped_and_unwritten_results_are_found() {
        let synthetic = synthetic();
        let right = product(&synthetic);
        let n = synthetic.problem.n;
        let deviation = |y: &[f32]| synthetic.samples.deviation(&Dtype::F16.encode(y));
        let swapped: Vec<f32> = (0..right.len()).map(|i| right[i / n * n + (i + 1) % n]).collect();
        assert!(deviation(&swapped) > 1.0);
        assert!(deviation(&right.iter().map(|y| y * 1.05).collect::<Vec<_>>()) > 1.0);
        assert_eq!(deviation(&vec![f32::NAN; right.len()]), f64::INFINITY);
        assert_eq!(deviation(&right[1..]), f64::INFINITY);
        let mut y = Dtype::F16.encode(&right);
        y[14..16].fill(0xff);
        assert_eq!(synthetic.samples.deviation(&y), f64::INFINITY);
    }
}
