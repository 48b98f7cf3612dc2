//! Values in the type that a device holds, rounded on all cores: a model has a scale for every 32 to 256 weights, and
//! rounding those one by one took as long as reading its codes.

use burn::tensor::TensorData;
use flute_cube::Dtype;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Values that one thread rounds at a time.
const CHUNK: usize = 1 << 16;

/// Values `[len]` of a type, and which of them that type cannot hold.
pub(super) struct Rounded {
    pub(super) data: TensorData,
    /// The first that is infinite or no number.
    pub(super) broken: Option<usize>,
}

impl Rounded {
    /// `values`, each rounded to the nearest of `dtype`.
    pub(super) fn new(values: &[f32], dtype: Dtype) -> Self {
        let shape = [values.len()];
        let (data, broken) = match dtype {
            Dtype::F32 => {
                let broken = first(values, |value| !value.is_finite());
                (TensorData::new(values.to_vec(), shape), broken)
            }
            Dtype::F16 => {
                let mut out = vec![f16::ZERO; values.len()];
                let chunks = out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
                chunks.for_each(|(out, values)| out.convert_from_f32_slice(values));
                let broken = first(&out, |value| !value.is_finite());
                (TensorData::new(out, shape), broken)
            }
            Dtype::BF16 => {
                let mut out = vec![bf16::ZERO; values.len()];
                let chunks = out.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
                chunks.for_each(|(out, values)| out.convert_from_f32_slice(values));
                let broken = first(&out, |value| !value.is_finite());
                (TensorData::new(out, shape), broken)
            }
        };
        Self { data, broken }
    }
}

/// Where `values` first are `wrong`.
fn first<T: Sync>(values: &[T], wrong: impl Fn(&T) -> bool + Sync) -> Option<usize> {
    let chunk = values.par_chunks(CHUNK).position_first(|chunk| chunk.iter().any(&wrong))?;
    let within = values[chunk * CHUNK..].iter().position(&wrong)?;
    Some(chunk * CHUNK + within)
}
