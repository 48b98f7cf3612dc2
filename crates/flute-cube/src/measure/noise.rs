//! Reproducible noise, as operands: a GPU draws less power for constant ones, and so is faster than it would be in a
//! model.

use crate::Dtype;

/// Reproducible bits: splitmix64.
pub(super) fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Uniform in [0, 1).
pub(super) fn unit(seed: &mut u64) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;

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
