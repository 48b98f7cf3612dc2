//! The definition of correct: three loops that anyone can check by reading.

use crate::{Dtype, Quantized, QuantizedParts, Result, Table};
use rayon::prelude::*;

/// `y[m,n] = Σ_g scale[n,g] · Σ_{k∈g} x[m,k] · table[code[n,k]] + bias[n]` in f64.
///
/// `x` is `[m, k]`. Table and scales are taken as `weight` holds them: round them first to compare with a kernel that
/// stores them in a narrower type ([`rounded`]).
pub fn qgemm(x: &[f64], weight: &Quantized, bias: Option<&[f32]>) -> Vec<f64> {
    let (n, k) = (weight.n(), weight.k());
    let m = x.len() / k;
    let pairs = weight.table().pair_table();
    let (group, groups) = (weight.format().group.len(k), weight.format().group.count(k));
    let rows: Vec<Vec<f64>> = (0..n)
        .into_par_iter()
        .map(|row| {
            let value = |col: usize| {
                f64::from(pairs[usize::from(weight.pair_index(row, col / 2))][col % 2])
            };
            let w: Vec<f64> = (0..k)
                .map(|col| value(col) * f64::from(weight.scales()[row * groups + col / group]))
                .collect();
            let bias = bias.map_or(0.0, |b| f64::from(b[row]));
            (0..m)
                .map(|i| x[i * k..][..k].iter().zip(&w).map(|(a, b)| a * b).sum::<f64>() + bias)
                .collect()
        })
        .collect();
    (0..m * n).map(|i| rows[i % n][i / n]).collect()
}

/// `weight` as a kernel of `dtype` stores it: table and scales rounded to that type.
///
/// # Errors
/// [`crate::Error::NotFinite`] if a value overflows the type.
pub fn rounded(weight: &Quantized, dtype: Dtype) -> Result<Quantized> {
    let round = |values: &[f32]| values.iter().map(|v| dtype.round(*v)).collect::<Vec<f32>>();
    let table = weight.table();
    let values = round(table.values());
    let table = match table.dim() {
        1 => Table::custom(table.bits(), &values)?,
        _ => Table::pairs(table.bits(), values.as_chunks().0)?,
    };
    Quantized::new(QuantizedParts {
        n: weight.n(),
        k: weight.k(),
        format: weight.format(),
        codes: weight.codes().to_vec(),
        scales: round(weight.scales()),
        table,
    })
}
