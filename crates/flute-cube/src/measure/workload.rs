//! A product to be measured: synthetic operands, and what its result must be.
//!
//! Operands are noise, since a GPU draws less power for constant ones and so is faster than it would be in a model. The
//! weight lies on the device as often as it takes to exceed any cache; activations, pair table and result exist once,
//! as in a model, where the layer before leaves them in the cache.

use super::{Timing, time};
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
/// it in a cache.
const ROUND: Duration = Duration::from_millis(200);

/// Reproducible bits: splitmix64.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in [0, 1).
fn unit(seed: &mut u64) -> f32 {
    (random(seed) >> 40) as f32 / (1 << 24) as f32
}

/// An endless row of reproducible values of one type, uniform in [−1/2, 1/2).
///
/// It repeats, so that gigabytes of it cost no more than a copy; after a prime number of values, so that the rows of a
/// matrix differ.
#[derive(Clone, Debug)]
pub struct Noise {
    values: Vec<f32>,
    dtype: Dtype,
}

impl Noise {
    const PERIOD: usize = (1 << 20) - 3;

    /// The noise of `seed`, rounded to `dtype`.
    pub fn new(mut seed: u64, dtype: Dtype) -> Self {
        let values = (0..Self::PERIOD).map(|_| dtype.round(unit(&mut seed) - 0.5)).collect();
        Self { values, dtype }
    }

    /// Row `row` of a matrix of `k` columns that holds the noise row by row.
    pub fn row(&self, row: usize, k: usize) -> Vec<f64> {
        let at = |i: usize| f64::from(self.values[i % Self::PERIOD]);
        (row * k..(row + 1) * k).map(at).collect()
    }

    /// The first `len` values as a device stores them.
    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let period = self.dtype.encode(&self.values[..len.min(Self::PERIOD)]);
        let mut bytes = Vec::with_capacity(len * self.dtype.size());
        while bytes.len() < bytes.capacity() {
            let rest = len * self.dtype.size() - bytes.len();
            bytes.extend_from_slice(&period[..rest.min(period.len())]);
        }
        bytes
    }
}

/// Some elements of a product `[m, n]`, computed in f64: what a result is checked with.
#[derive(Clone, Debug)]
pub struct Samples {
    elements: usize,
    dtype: Dtype,
    picked: Vec<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: usize,
    exact: f64,
    /// How far from `exact` a result may be.
    bound: f64,
}

impl Samples {
    const COUNT: usize = 64;

    /// Of the product of rows `x(0) … x(m − 1)` with rows `w(0) … w(n − 1)`, for results of `dtype`.
    pub fn new(
        [m, n]: [usize; 2],
        dtype: Dtype,
        x: impl Fn(usize) -> Vec<f64>,
        w: impl Fn(usize) -> Vec<f64>,
    ) -> Self {
        // Of the size that a sum of terms of random sign has; a few times the rounding of a result three such sizes
        // away from zero.
        let tolerance = match dtype {
            Dtype::F32 => 1e-4,
            Dtype::F16 => 4e-3,
            Dtype::BF16 => 3e-2,
        };
        let mut seed = 11;
        let mut pick = |end: usize| (random(&mut seed) % end.max(1) as u64) as usize;
        let count = if m == 0 { 0 } else { Self::COUNT };
        let picked = (0..count).map(|_| {
            let (token, row) = (pick(m), pick(n));
            let products: Vec<f64> = x(token).iter().zip(w(row)).map(|(x, w)| x * w).collect();
            let size =
                products.iter().map(|p| p.abs()).sum::<f64>() / (products.len() as f64).sqrt();
            Sample { at: token * n + row, exact: products.iter().sum(), bound: tolerance * size }
        });
        Self { elements: m * n, dtype, picked: picked.collect() }
    }

    /// How far the result of these bytes is from what it must be, in units of what is allowed: up to 1 is right. A
    /// NaN anywhere, or another number of elements, is infinitely far.
    pub fn deviation(&self, y: &[u8]) -> f64 {
        let size = self.dtype.size();
        // What nobody wrote is still the NaN whose bits are all ones.
        let unwritten = |element: &[u8]| element.iter().all(|byte| *byte == 0xff);
        if y.len() != self.elements * size || y.chunks_exact(size).any(unwritten) {
            return f64::INFINITY;
        }
        let off = |sample: &Sample| {
            let y = self.dtype.decode(&y[sample.at * size..][..size])[0];
            let off = (f64::from(y) - sample.exact).abs() / sample.bound;
            if off.is_nan() { f64::INFINITY } else { off }
        };
        self.picked.iter().map(off).fold(0.0, f64::max)
    }
}

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
    /// Operands of `problem`, whose bias is left out.
    pub fn new(problem: &Problem) -> Self {
        let problem = Problem { bias: false, ..*problem };
        let Problem { m, n, k, format, dtype, .. } = problem;
        let mut seed = 7;
        let words = (0..PackedWeight::words_len(n, k, format)).map(|_| random(&mut seed) as u32);
        let words = words.collect();
        let scales = (0..PackedWeight::scales_len(n, k, format)).map(|_| 0.5 + unit(&mut seed));
        let scales = scales.collect();
        let pairs = Table::nf(format.bits).pair_table();
        let weight = PackedWeight { n, k, format, words, scales, pairs };
        let x = Noise::new(seed, dtype);
        let row = |row: usize| weight_row(&weight, row, dtype);
        let samples = Samples::new([m, n], dtype, |token| x.row(token, k), row);
        Self { problem, weight, x, samples }
    }

    /// Bytes of codes and scales.
    pub fn weight_bytes(&self) -> usize {
        4 * self.weight.words.len() + self.weight.scales.len() * self.problem.dtype.size()
    }
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
        Ok(Self { client: client.clone(), x, pairs, copies, synthetic })
    }

    /// Launches `plan` once, and says how far its result is from the right one ([`Samples::deviation`]).
    ///
    /// # Errors
    /// What [`qgemm_with`] refuses, and [`Error::Device`].
    pub fn check(&self, plan: &Plan) -> Result<f64> {
        let Problem { m, n, dtype, .. } = self.synthetic.problem;
        let len = m * n * dtype.size();
        let y = self.client.create_from_slice(&vec![0xff; len.max(dtype.size())]);
        self.launch(plan, 0, &y)?;
        let bytes = self.client.read_one(y).map_err(failed("read a result"))?;
        Ok(self.synthetic.samples.deviation(&bytes[..len]))
    }

    fn launch(&self, plan: &Plan, copy: usize, y: &Handle) -> Result<()> {
        let (words, scales) = self.copies[copy].clone();
        let (x, pairs) = (self.x.clone(), self.pairs.clone());
        let operands = Operands { x, words, scales, pairs, bias: None, y: y.clone() };
        qgemm_with(&self.client, &self.synthetic.problem, plan, operands)
    }

    /// Times `plan` and checks what it computed.
    ///
    /// # Errors
    /// What [`qgemm_with`] refuses, and [`Error::Device`].
    pub fn time(&self, plan: &Plan) -> Result<Run> {
        let Problem { m, n, dtype, .. } = self.synthetic.problem;
        let len = m * n * dtype.size();
        let y = self.client.create_from_slice(&vec![0xff; len.max(dtype.size())]);
        let launch = |i: usize| self.launch(plan, i, &y);
        let once = || -> Result<f64> {
            let start = Instant::now();
            launch(0)?;
            block_on(self.client.sync_buffers([&y])).map_err(failed("warmed up"))?;
            Ok(start.elapsed().as_secs_f64())
        };
        // The first launch compiles.
        once()?;
        let most = (ROUND.as_secs_f64() / once()?) as usize;
        let count = self.copies.len().min(most.max(2));
        let timing = time(&self.client, count, &y, launch)?;
        let bytes = self.client.read_one(y.clone()).map_err(failed("read a result"))?;
        Ok(Run { timing, deviation: self.synthetic.samples.deviation(&bytes[..len]) })
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
        Synthetic::new(&Problem { m: 3, n: 21, k: 200, format, dtype: Dtype::F16, bias: false })
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

    #[test]
    fn noise_goes_on_after_its_period() {
        let noise = Noise::new(1, Dtype::BF16);
        let (k, rows) = (1 << 18, 5);
        let all = Dtype::BF16.decode(&noise.bytes(rows * k));
        let last: Vec<f64> = all[(rows - 1) * k..].iter().map(|v| f64::from(*v)).collect();
        assert_eq!(last, noise.row(rows - 1, k));
        assert_ne!(noise.row(0, k), last);
    }
}
