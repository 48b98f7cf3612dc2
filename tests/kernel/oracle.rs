//! What a result must be, and how to say that it is not.

use crate::case::{Case, Input, Weight, activations, bias, identity_column};
use flute_cube::{Dtype, Format, Quantized, TableKind, reference};
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

    /// What all plans of `case` are compared with.
    pub(crate) fn target(&self, case: &Case) -> Target {
        let (n, k) = (self.n, self.k);
        // A sum passes through fewer additions than this in any plan: a block of 128 in one unit, the blocks after
        // it, the fold. Matrix units truncate where others round, hence an ulp and not half.
        let sums = (160 + k / 64) as f64 * f64::from(f32::EPSILON);
        let element = |row: usize, col: usize| {
            let exact = match case.input {
                Input::Identity => self.y[col * k + identity_column(row, case.m, k)],
                _ => self.y[row * n + col],
            };
            let exact = exact + if case.bias { f64::from(self.bias[col]) } else { 0.0 };
            let right = self.dtype.round(exact as f32);
            match case.input {
                Input::Identity | Input::Exact => {
                    Element { exact: right.into(), bound: 0.0, decoded: 0.0, right }
                }
                Input::Random => {
                    let sums = sums * self.norms.0[row] * self.norms.1[col];
                    let bound = sums + unit(self.dtype) * exact.abs() + least(self.dtype);
                    let decoded = unit(self.dtype) * self.norms.0[row] * self.norms.1[col];
                    Element { exact, bound, decoded, right }
                }
            }
        };
        let rows = (0..case.m).into_par_iter();
        let elements = rows
            .flat_map_iter(|row| (0..n).map(move |col| (row, col)))
            .map(|(row, col)| element(row, col));
        // The numbers of the contract are averages; a few elements may each fall to the other side of a rounding.
        let contract = match self.dtype {
            Dtype::F32 => 1e-5,
            Dtype::F16 => 2e-4,
            Dtype::BF16 => 2e-3,
        };
        // Of one sum that cancels, as of any handful, nothing is an average: there the bound of each speaks alone.
        let few = match case.m * n {
            0..16 => f64::INFINITY,
            16..1024 => 2.0 * unit(self.dtype),
            _ => 0.0,
        };
        Target { n, elements: elements.collect(), frobenius: contract + few }
    }
}

/// The right result of one case.
pub(crate) struct Target {
    n: usize,
    elements: Vec<Element>,
    /// Allowed relative Frobenius distance from the right values *rounded to the type*: from the exact ones the best
    /// rounding to f16 alone is 2.07e-4 away.
    frobenius: f64,
}

struct Element {
    exact: f64,
    /// How far from `exact` a result may be.
    bound: f64,
    /// How much farther, if weights were rounded before they were multiplied.
    decoded: f64,
    /// `exact`, rounded to the type.
    right: f32,
}

impl Target {
    /// Compares all of `y`, and describes what is wrong with it.
    pub(crate) fn check(&self, y: &[f32]) -> Result<(), String> {
        self.compare(y, |e| e.bound, self.frobenius)
    }

    /// The same for a product of weights that were rounded before: each moves by half an ulp at most, and on the
    /// average the result by as much as its own rounding.
    pub(crate) fn check_decoded(&self, y: &[f32]) -> Result<(), String> {
        self.compare(y, |e| e.bound + e.decoded, 2.0 * self.frobenius)
    }

    fn compare(
        &self,
        y: &[f32],
        bound: impl Fn(&Element) -> f64,
        frobenius: f64,
    ) -> Result<(), String> {
        let error = |y: f32, e: &Element| (f64::from(y) - e.exact).abs();
        let pairs = || y.iter().zip(&self.elements);
        // A NaN is not within any bound.
        let wrong = |(y, e): &(&f32, &Element)| {
            error(**y, e).partial_cmp(&bound(e)).is_none_or(|order| order.is_gt())
        };
        let count = pairs().filter(wrong).count();
        if count > 0 || y.len() != self.elements.len() {
            let off = pairs().enumerate().filter(|(_, pair)| wrong(pair));
            let mut worst: Vec<(usize, f64)> = off.map(|(at, (y, e))| (at, error(*y, e))).collect();
            worst.sort_by(|a, b| b.1.total_cmp(&a.1));
            let story = worst.iter().take(8).map(|(at, _)| {
                let element = &self.elements[*at];
                let (exact, bound) = (element.exact, bound(element));
                let (row, col) = (at / self.n, at % self.n);
                format!("\n    y[{row}, {col}] = {:e}, expected {exact:e} ± {bound:.1e}", y[*at])
            });
            return Err(format!(
                "{count} of {} elements are wrong, the worst:{}",
                y.len(),
                story.collect::<String>()
            ));
        }
        let (mut error, mut total) = (0.0, 0.0);
        for (y, e) in pairs() {
            error += f64::from(y - e.right).powi(2);
            total += f64::from(e.right).powi(2);
        }
        let found = (error / f64::max(total, f64::MIN_POSITIVE)).sqrt();
        if found > frobenius {
            return Err(format!("relative Frobenius error {found:.2e}, allowed {frobenius:.0e}"));
        }
        Ok(())
    }
}

/// Half an ulp of one.
pub(crate) fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => f64::from(f32::EPSILON) / 2.0,
        Dtype::F16 => 2f64.powi(-11),
        Dtype::BF16 => 2f64.powi(-8),
    }
}

/// What may be lost at zero: shaders may flush what is smaller than the least normal number.
pub(crate) fn least(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 2f64.powi(-14),
        Dtype::F32 | Dtype::BF16 => f64::from(f32::MIN_POSITIVE),
    }
}

#[test]
fn one_wrong_element_is_reported_whatever_is_wrong_with_it() {
    for (input, exact) in [(Input::Random, false), (Input::Exact, true), (Input::Identity, false)] {
        let format = Format::new(3, 32).expect("served");
        let weight = Weight { format, table: TableKind::Custom, n: 40, k: 70, exact };
        let case = Case { weight, dtype: Dtype::F16, input, m: 70, bias: false };
        let target = Oracle::new(&case, case.m).target(&case);
        let right: Vec<f32> = target.elements.iter().map(|e| e.right).collect();
        assert_eq!(target.check(&right), Ok(()));
        for wrong in [f32::NAN, f32::INFINITY, right[81] * 1.004, -right[81]] {
            let mut y = right.clone();
            y[81] = wrong;
            let story = target.check(&y).expect_err("wrong");
            assert!(
                story.starts_with("1 of 2800 elements") && story.contains("y[2, 1] = "),
                "{story}"
            );
        }
        assert!(target.check(&right[1..]).is_err());
    }
}
