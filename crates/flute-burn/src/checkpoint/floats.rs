//! Float tensors in the type that a device will hold them in, read and rounded piece by piece: no copy in f32 between.

use super::positioned::read_exact_at;
use super::reader::{CHUNK, Reader, float_dtype, read_floats};
use crate::error::{Error, Result};
use burn::tensor::TensorData;
use flute_cube::Dtype as Float;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;

impl Reader {
    /// A float tensor of any shape, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`Reader::tensor`].
    pub(crate) fn data(&self, name: &str, dtype: Float) -> Result<TensorData> {
        let shape = self.info(name)?.shape.clone();
        Ok(match dtype {
            Float::F32 => TensorData::new(self.tensor(name)?.data, shape),
            Float::F16 => {
                TensorData::new(self.halves(name, dtype)?.reinterpret_into::<f16>(), shape)
            }
            Float::BF16 => {
                TensorData::new(self.halves(name, dtype)?.reinterpret_into::<bf16>(), shape)
            }
        })
    }

    /// The bits of f16 or bf16.
    fn halves(&self, name: &str, dtype: Float) -> Result<Vec<u16>> {
        let (path, file, info) = self.find(name)?;
        let stored = float_dtype(name, info.dtype)?;
        let mut data = vec![0u16; info.shape.iter().product()];
        let convert = |scratch: &mut (Vec<u16>, Vec<f32>), offset, out: &mut [u16]| {
            if stored == dtype {
                read_exact_at(file, bytemuck::cast_slice_mut(out), offset)?;
                out.iter_mut().for_each(|word| *word = u16::from_le(*word));
                return Ok(());
            }
            let (words, wide) = scratch;
            wide.resize(out.len(), 0.0);
            read_floats(file, offset, stored, words, wide)?;
            if dtype == Float::F16 {
                out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(wide);
            } else {
                out.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(wide);
            }
            Ok(())
        };
        let read = |scratch: &mut (Vec<u16>, Vec<f32>), (index, out): (usize, &mut [u16])| {
            let offset = info.offset + (index * CHUNK * stored.size()) as u64;
            convert(scratch, offset, out).map_err(Error::io("read", path))
        };
        data.par_chunks_mut(CHUNK).enumerate().try_for_each_init(Default::default, read)?;
        Ok(data)
    }
}
