//! Some elements of a product, computed exactly: what a result is checked with.

use super::noise::random;
use crate::Dtype;

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
