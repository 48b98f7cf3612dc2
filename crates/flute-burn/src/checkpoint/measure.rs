//! How far quantized weights are from the dense ones, by class of layer.

use flute_cube::Quantized;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Error of the weights of one class of layers; of the rotated ones, where they are stored rotated.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct ClassError {
    /// Last component of the modules' names, such as `q_proj`.
    pub class: String,
    /// Layers.
    pub layers: usize,
    /// Σ (ŵ − w)².
    pub squared_error: f64,
    /// Σ w².
    pub squared_norm: f64,
    /// Largest |ŵ − w|.
    pub max_error: f64,
}

impl ClassError {
    /// `Σ (ŵ − w)² / Σ w²`; 0 for weights that are all zero.
    pub fn relative_error(&self) -> f64 {
        if self.squared_norm > 0.0 { self.squared_error / self.squared_norm } else { 0.0 }
    }

    /// Adds one layer's `error` to that of its class.
    pub(super) fn add(classes: &mut BTreeMap<String, Self>, class: &str, error: Self) {
        let sum = classes.entry(class.into()).or_default();
        sum.class = class.into();
        sum.layers += 1;
        sum.squared_error += error.squared_error;
        sum.squared_norm += error.squared_norm;
        sum.max_error = sum.max_error.max(error.max_error);
    }
}

/// The error of one weight with the `scales` that are stored. Rows are summed apart and then in order, so that the sums
/// do not depend on threads.
pub(super) fn measure(dense: &[f32], quantized: &Quantized, scales: &[f32]) -> ClassError {
    let (k, values) = (quantized.k(), quantized.table().values());
    // 1 if a code names two weights, else 0.
    let pair = quantized.table().dim() - 1;
    let (groups, len) = (quantized.format().group.count(k), quantized.format().group.len(k));
    let rows = dense
        .par_chunks(k)
        .zip(quantized.codes().par_chunks(k.div_ceil(pair + 1)))
        .zip(scales.par_chunks(groups))
        .map(|((dense, codes), scales)| {
            let mut error = ClassError::default();
            for (group, (dense, scale)) in dense.chunks(len).zip(scales).enumerate() {
                for (col, w) in dense.iter().enumerate() {
                    let col = group * len + col;
                    let value = values[usize::from(codes[col >> pair]) << pair | col & pair];
                    let (w, difference) = (f64::from(*w), f64::from(value * scale - w));
                    error.squared_error += difference * difference;
                    error.squared_norm += w * w;
                    error.max_error = error.max_error.max(difference.abs());
                }
            }
            error
        });
    let rows: Vec<ClassError> = rows.collect();
    let mut total = ClassError::default();
    for row in rows {
        total.squared_error += row.squared_error;
        total.squared_norm += row.squared_norm;
        total.max_error = total.max_error.max(row.max_error);
    }
    total
}
