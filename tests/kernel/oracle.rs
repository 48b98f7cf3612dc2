//! What a result must be, and how to say that it is not.

use crate::case::{Case, Input, activations, bias, identity_column};
use flute_cube::{Dtype, Quantized, reference};
use rayon::prelude::*;

/// The right results of one weight in one type, for all its cases of one input: the rows of x of a smaller m are
/// those of the largest.
pub(crate) struct Oracle {
    pub(crate) weight: Quantized,
    dtype: Dtype,
    n: usize,
    k: usize,
    /// `x · Wᵀ` in f64, without bias; the weight itself for an identity.
    y: Vec<f64>,
    /// ‖x‖₂ of each row and ‖W‖₂ of each row: their product bounds Σ|x·w|.
    norms: (Vec<f64>, Vec<f64>),
    bias: Vec<f32>,
}

impl Oracle {
    /// For cases of `case`'s weight, type and input with up to `rows` rows of x.
    pub(crate) fn new(case: &Case, rows: usize) -> Self {
        let weight =
            reference::rounded(&case.weight.quantized(), case.dtype).expect("cases fit every type");
        let (n, k) = (weight.n(), weight.k());
        let dense = weight.dequantize();
        let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let (y, x_norms) = match case.input {
            Input::Identity => (dense.iter().map(|w| f64::from(*w)).collect(), vec![]),
            Input::Random | Input::Exact => {
                let x = activations(case.input, rows, k, case.dtype);
                let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                (reference::qgemm(&wide, &weight, None), x.par_chunks(k).map(norm).collect())
            }
        };
        let w_norms = dense.par_chunks(k).map(norm).collect();
        let bias = bias(n, case.dtype, case.weight.exact);
        Self { weight, dtype: case.dtype, n, k, y, norms: (x_norms, w_norms), bias }
    }

    pub(crate) fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// What element `at` of `case`'s result must be, and how far it may be off.
    fn expected(&self, case: &Case, at: usize) -> (f64, f64) {
        let (row, col) = (at / self.n, at % self.n);
        let bias = if case.bias { f64::from(self.bias[col]) } else { 0.0 };
        match case.input {
            Input::Identity => {
                let w = self.y[col * self.k + identity_column(row, case.m, self.k)];
                (f64::from(self.dtype.round((w + bias) as f32)), 0.0)
            }
            Input::Exact => (f64::from(self.dtype.round((self.y[at] + bias) as f32)), 0.0),
            Input::Random => {
                let exact = self.y[at] + bias;
                // A sum passes through fewer additions than this in any plan: a block of 128 in one unit, the
                // blocks after it, the fold. Matrix units truncate where others round, hence an ulp and not half.
                let additions = (160 + self.k / 64) as f64;
                let sums =
                    additions * f64::from(f32::EPSILON) * self.norms.0[row] * self.norms.1[col];
                (exact, sums + unit(self.dtype) * exact.abs() + least(self.dtype))
            }
        }
    }

    /// Compares all of `y`, and describes what is wrong with it.
    pub(crate) fn check(&self, case: &Case, y: &[f32]) -> Result<(), String> {
        let off = |at: usize| {
            let (expected, bound) = self.expected(case, at);
            let error = (f64::from(y[at]) - expected).abs();
            // Not `error > bound`, which no NaN is.
            if error <= bound {
                0.0
            } else if error.is_nan() {
                f64::INFINITY
            } else {
                error
            }
        };
        let mut wrong: Vec<(usize, f64)> = (0..y.len())
            .into_par_iter()
            .map(|at| (at, off(at)))
            .filter(|(_, error)| *error > 0.0)
            .collect();
        if !wrong.is_empty() {
            wrong.sort_by(|a, b| b.1.total_cmp(&a.1));
            let worst = wrong.iter().take(8).map(|(at, _)| {
                let (expected, bound) = self.expected(case, *at);
                format!(
                    "\n    y[{}, {}] = {:e}, expected {expected:e} ± {bound:.1e}",
                    at / self.n,
                    at % self.n,
                    y[*at]
                )
            });
            return Err(format!(
                "{} of {} elements are wrong, the worst:{}",
                wrong.len(),
                y.len(),
                worst.collect::<String>()
            ));
        }
        let sums = (0..y.len()).into_par_iter().map(|at| {
            let expected = f64::from(self.dtype.round(self.expected(case, at).0 as f32));
            [(f64::from(y[at]) - expected).powi(2), expected.powi(2)]
        });
        let [error, total] = sums.reduce(|| [0.0; 2], |a, b| [a[0] + b[0], a[1] + b[1]]);
        let (found, limit) =
            ((error / total.max(f64::MIN_POSITIVE)).sqrt(), self.frobenius(y.len()));
        if found > limit {
            return Err(format!("relative Frobenius error {found:.2e}, allowed {limit:.0e}"));
        }
        Ok(())
    }

    /// The relative Frobenius distance that the numeric contract allows from the reference rounded to the type: the
    /// best rounding alone is 2.07e-4 in f16 from the exact one. It is an average; a few elements may each fall to
    /// the other side of a rounding and be an ulp off.
    fn frobenius(&self, elements: usize) -> f64 {
        let contract = match self.dtype {
            Dtype::F32 => 1e-5,
            Dtype::F16 => 2e-4,
            Dtype::BF16 => 2e-3,
        };
        if elements >= 1024 { contract } else { 2.0 * unit(self.dtype) + contract }
    }
}

/// Half an ulp of one.
fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(f32::EPSILON) / 2.0,
        Dtype::F16 => 2f64.powi(-11),
        Dtype::BF16 => 2f64.powi(-8),
    }
}

/// What may be lost at zero: shaders may flush what is smaller than the least normal number.
fn least(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 2f64.powi(-14),
        Dtype::F32 | Dtype::BF16 => f64::from(f32::MIN_POSITIVE),
    }
}
