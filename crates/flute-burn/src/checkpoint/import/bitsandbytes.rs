//! Linear layers of bitsandbytes in 4 bits, nf4 and fp4, as transformers saves them.
//!
//! | tensor | type | shape | holds |
//! |---|---|---|---|
//! | `X.weight` | U8, or any type of the same bytes | `[n·k/2, 1]` | codes, two a byte, the first in the high half |
//! | `X.weight.absmax` | F32 | `[blocks]` | one factor a block |
//! | `X.weight.quant_map` | F32 | `[16]` | what codes name |
//! | `X.weight.quant_state.bitsandbytes__nf4` (or `fp4`) | U8 | | JSON: block size, shape and the like |
//!
//! With double quantization `X.weight.absmax` is U8, and a factor is `nested_quant_map[absmax] · nested_absmax[block of
//! factors] + nested_offset`, each operation in f32. So every weight keeps its exact value, table · factor.
//!
//! Blocks run over the flattened weight, heedless of rows. A weight whose blocks and rows have a common group of 32,
//! 64, 128 or 256, or whose rows divide its blocks, is read with that group; any other is refused with both numbers.

use super::{in_module, table};
use crate::checkpoint::json;
use crate::checkpoint::layout::Layout;
use crate::checkpoint::reader::Reader;
use crate::error::{Error, Result};
use flute_cube::{Bits, Dtype as Float, Format, Group, MAX_DIM, Quantized, QuantizedParts, Table};
use safetensors::Dtype;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Its `quant_method`.
pub(super) const METHOD: &str = "bitsandbytes";
const TYPES: [&str; 2] = ["nf4", "fp4"];
/// Bytes of a state that are read; they are about 170.
const STATE_LIMIT: u64 = 1 << 16;

/// The JSON of `quant_state`; its `dtype` is that of the weight before, which no value depends on.
#[derive(Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// A module's tensors, checked against each other.
struct Stored<'a> {
    reader: &'a Reader,
    module: &'a str,
    n: usize,
    k: usize,
    group: Group,
    blocksize: usize,
    /// Block size of the factors' factors, and the offset.
    nested: Option<(usize, f32)>,
    table: Table,
}

/// The name of the tensor that holds the state of `module`.
pub(super) fn state_name(reader: &Reader, module: &str) -> Option<String> {
    let names = TYPES.map(|kind| format!("{module}.weight.quant_state.bitsandbytes__{kind}"));
    names.into_iter().find(|name| reader.contains(name))
}

/// The module that `tensor` would be a part of.
pub(super) fn module_of(tensor: &str) -> Option<&str> {
    let (module, part) = tensor.split_once(".weight")?;
    (part.is_empty() || part.starts_with('.')).then_some(module)
}

pub(super) fn layout(reader: &Reader, module: &str) -> Result<Layout> {
    let Stored { n, k, group, table, .. } = Stored::open(reader, module)?;
    let format = Format { bits: Bits::Four, group };
    let (table, scale) = (table.kind(), Float::F32);
    Ok(Layout { n, k, dim: 1, format, table, scale, hadamard_size: None, hadamard_seed: None })
}

pub(super) fn weight(reader: &Reader, module: &str) -> Result<Quantized> {
    let stored = Stored::open(reader, module)?;
    let (n, k, group, blocksize) = (stored.n, stored.k, stored.group, stored.blocksize);
    let factors = stored.factors()?;
    let firsts = (0..k).step_by(group.len(k));
    let scales = (0..n).flat_map(|row| firsts.clone().map(move |col| (row * k + col) / blocksize));
    let scales = scales.map(|block| factors[block]).collect();
    let bytes = reader.raw(&format!("{module}.weight"))?.bytes;
    let mut codes: Vec<u8> = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).collect();
    codes.truncate(n * k);
    let format = Format { bits: Bits::Four, group };
    let parts = QuantizedParts { n, k, format, codes, scales, table: stored.table };
    Quantized::new(parts).map_err(in_module(module))
}

impl<'a> Stored<'a> {
    fn open(reader: &'a Reader, module: &'a str) -> Result<Self> {
        let (weight, state) = (format!("{module}.weight"), read_state(reader, module)?);
        let shape = format!("the shape in the state of {module}");
        let &[n, k] = state.shape.as_slice() else {
            let (found, needed) = (state.shape, "[n, k]".into());
            return Err(Error::TensorShape { tensor: shape, found, needed });
        };
        if [n, k].iter().any(|dim| !(1..=MAX_DIM).contains(dim)) {
            let (found, needed) = (state.shape, format!("within 1..={MAX_DIM}"));
            return Err(Error::TensorShape { tensor: shape, found, needed });
        }
        let info = reader.info(&weight)?;
        let needed = (n * k).div_ceil(2);
        if info.bytes != needed as u64 {
            let (found, needed) = (info.shape.clone(), format!("{needed} bytes for [{n}, {k}]"));
            return Err(Error::TensorShape { tensor: weight, found, needed });
        }
        let positive = |name: &'static str, size: usize| match size {
            0 => Err(Error::InvalidOption {
                name,
                found: format!("0 in the state of {module}"),
                needed: "at least 1".into(),
            }),
            size => Ok(size),
        };
        let blocksize = positive("blocksize", state.blocksize)?;
        let nested = match state.nested_blocksize {
            Some(size) => {
                Some((positive("nested_blocksize", size)?, state.nested_offset.unwrap_or_default()))
            }
            None => None,
        };
        let group = group(k, blocksize).ok_or_else(|| Error::BlocksCrossRows {
            module: module.into(),
            k,
            blocksize,
        })?;
        let map = format!("{weight}.quant_map");
        let table = table(Bits::Four, &floats(reader, &map, Bits::Four.codes())?)
            .map_err(in_module(module))?;
        Ok(Self { reader, module, n, k, group, blocksize, nested, table })
    }

    /// The factor of every block.
    fn factors(&self) -> Result<Vec<f32>> {
        let Self { reader, module, .. } = *self;
        let blocks = (self.n * self.k).div_ceil(self.blocksize);
        let absmax = format!("{module}.weight.absmax");
        let Some((size, offset)) = self.nested else {
            return floats(reader, &absmax, blocks);
        };
        let part = |name: &str| format!("{module}.weight.nested_{name}");
        let map = floats(reader, &part("quant_map"), 256)?;
        let outer = floats(reader, &part("absmax"), blocks.div_ceil(size))?;
        check_len(reader, &absmax, blocks)?;
        let inner = reader.raw(&absmax)?;
        if inner.dtype != Dtype::U8 {
            let (found, needed) = (inner.dtype.to_string(), "U8 with double quantization");
            return Err(Error::TensorDtype { tensor: absmax, found, needed });
        }
        let factor = |(at, code): (usize, u8)| map[usize::from(code)] * outer[at / size] + offset;
        Ok(inner.bytes.into_iter().enumerate().map(factor).collect())
    }
}

fn read_state(reader: &Reader, module: &str) -> Result<State> {
    let Some(name) = state_name(reader, module) else {
        let tensor = format!("{module}.weight.quant_state.bitsandbytes__nf4 (or fp4)");
        return Err(Error::TensorAbsent { dir: reader.dir().into(), tensor });
    };
    let found = reader.info(&name)?.bytes;
    if found > STATE_LIMIT {
        let (path, limit) = (PathBuf::from(name), STATE_LIMIT);
        return Err(Error::FileTooLarge { path, found, limit });
    }
    let bytes = reader.raw(&name)?.bytes;
    let value = serde_json::from_slice(&bytes).map_err(|source| {
        let (path, at) = (PathBuf::from(&name), ".".into());
        Error::Json { path, at, source }
    })?;
    json::typed(&value, Path::new(&name))
}

/// The widest group of which every one lies in one row and in one block.
fn group(k: usize, blocksize: usize) -> Option<Group> {
    let sizes = Group::SIZES.into_iter().rev();
    let common = sizes.filter(|size| k.is_multiple_of(*size) && blocksize.is_multiple_of(*size));
    let common = common.filter_map(|size| Group::new(size).ok()).next();
    common.or_else(|| blocksize.is_multiple_of(k).then_some(Group::Whole))
}

fn floats(reader: &Reader, name: &str, len: usize) -> Result<Vec<f32>> {
    check_len(reader, name, len)?;
    reader.finite(name)
}

fn check_len(reader: &Reader, name: &str, len: usize) -> Result<()> {
    let found = &reader.info(name)?.shape;
    if found[..] == [len] {
        return Ok(());
    }
    let (tensor, found, needed) = (name.into(), found.clone(), format!("[{len}]"));
    Err(Error::TensorShape { tensor, found, needed })
}
