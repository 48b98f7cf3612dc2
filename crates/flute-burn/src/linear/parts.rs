//! Layers of weights in kernel order, on the host or on their device already.

use super::rounded::Rounded;
use super::{FluteLinear, On, check, check_bias};
use crate::device;
use crate::error::{Error, Result};
use crate::op::{FluteTensors, WeightShape};
use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor};
use flute_cube::{PackedWeight, pack};

impl FluteLinear {
    /// As [`FluteLinear::from_quantized`], of a weight that is in kernel order already.
    ///
    /// # Errors
    /// As [`FluteLinear::from_quantized`]; [`Error::TensorShape`] for lengths that contradict the shape.
    pub fn from_packed(
        weight: PackedWeight,
        bias: Option<&[f32]>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let PackedWeight { n, k, format, words, scales, pairs } = weight;
        let shape = WeightShape { n, k, format };
        check_bias(bias.map(<[f32]>::len), n)?;
        check(shape, dtype, device)?;
        check_lengths(shape, [words.len(), scales.len(), 2 * pairs.len()])?;
        let kernel = device::kernel_dtype(dtype)?;
        let on = On { dtype, device };
        // The one copy that stays is in the device's type: the f32 go when it is made.
        let scale = |at: usize| (pack::scale_place(at, k, format), scales[at]);
        let rounded = Rounded::new(&scales, kernel);
        if let Some(((row, group), value)) = rounded.broken.map(scale) {
            let tensor = format!("a weight of [{n}, {k}]");
            return Err(Error::ScaleOverflow { tensor, row, group, value, dtype: kernel });
        }
        drop(scales);
        let pairs = pairs.into_flattened();
        let table = Rounded::new(&pairs, kernel);
        if let Some(index) = table.broken {
            let (what, value) = ("the pair table, rounded to the layer's type,", pairs[index]);
            return Err(flute_cube::Error::NotFinite { what, index, value }.into());
        }
        Ok(Self {
            words: on.words(words),
            scales: on.data(rounded.data),
            pairs: on.data(table.data),
            bias: bias.map(|bias| on.floats(bias.to_vec(), [n])),
            signs: None,
            shape,
            rotation: None,
        })
    }

    /// A layer of `tensors`, whose values nobody looks at: any bits are codes.
    ///
    /// # Errors
    /// [`Error::TensorShape`] for lengths that contradict the shape; [`Error::Unsupported`] and [`flute_cube::Error`]
    /// as [`FluteLinear::from_quantized`], and for float tensors of different types.
    pub fn from_tensors(tensors: FluteTensors) -> Result<Self> {
        let FluteTensors { words, scales, pairs, bias, shape } = tensors;
        let (dtype, device) = (scales.dtype(), words.device());
        check(shape, dtype, &device)?;
        check_bias(bias.as_ref().map(|bias| bias.dims()[0]), shape.n)?;
        check_lengths(shape, [words.dims()[0], scales.dims()[0], pairs.dims()[0]])?;
        if let Some(other) =
            [Some(&pairs), bias.as_ref()].into_iter().flatten().find(|t| t.dtype() != dtype)
        {
            return Err(Error::Unsupported {
                what: format!("scales in {} beside {}", dtype.name(), other.dtype().name()),
                reason: "scales, table and bias of a layer have one type".into(),
            });
        }
        let float = |tensor: Tensor<1>| Param::initialized(ParamId::new(), tensor);
        Ok(Self {
            words: Param::initialized(ParamId::new(), words),
            scales: float(scales),
            pairs: float(pairs),
            bias: bias.map(float),
            signs: None,
            shape,
            rotation: None,
        })
    }
}

/// Checks the lengths of words, scales and pairs.
fn check_lengths(shape: WeightShape, found: [usize; 3]) -> Result<()> {
    let WeightShape { n, k, format } = shape;
    let needed = [
        PackedWeight::words_len(n, k, format),
        PackedWeight::scales_len(n, k, format),
        2 * format.bits.pairs(),
    ];
    for (i, name) in ["words", "scales", "pairs"].into_iter().enumerate() {
        if found[i] != needed[i] {
            let (found, needed) = (vec![found[i]], needed[i]);
            let needed = format!("[{needed}] for a weight of [{n}, {k}] {format}");
            return Err(Error::TensorShape { tensor: name.into(), found, needed });
        }
    }
    Ok(())
}
