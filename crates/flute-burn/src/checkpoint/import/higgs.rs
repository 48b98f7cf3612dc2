//! HIGGS models of transformers (`quant_method` = `higgs`), with grids of one or two dimensions.
//!
//! | tensor | type | shape | holds |
//! |---|---|---|---|
//! | `X.weight` | I16 | `[n·bits/16, k]` | codes in the order of [`FluteTiles`]; with p = 2 a code is two halves |
//! | `X.scales` | F16 or BF16 | `[n, k/group]` | norm of the rotated block / √block, repeated for every group |
//! | `X.tables` | F16 or BF16 | `[2^bits]` | the grid with p = 1; with p = 2 nothing that is used |
//! | `X.tables2` | F16 | `[2^bits, 2^bits, 2]` | the grid with p = 2, by the halves of a code |
//!
//! The weight is rotated and its k padded to whole blocks. `X.tables2` always says F16 and holds the bits of the type
//! that the model was packed in, which `tune_metadata` names and `X.scales` have; there too is the template whose tile
//! orders the codes. Files of 2024 have neither `tune_metadata` nor `hadamard_size`: tiles of 32, blocks of 1024.
//! Refused: what the tensors contradict.

use super::in_module;
use super::tiles::FluteTiles;
use crate::checkpoint::json;
use crate::checkpoint::layout::Layout;
use crate::checkpoint::reader::{Reader, float_dtype};
use crate::error::{Error, Result};
use crate::hadamard;
use flute_cube::{
    Bits, Dtype as Float, Format, Group, MAX_DIM, Quantized, QuantizedParts, Table, TableKind,
};
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Its `quant_method`.
pub(in crate::checkpoint) const METHOD: &str = "higgs";
/// The block of files that name none.
const OLD_BLOCK: usize = 1024;

/// Its `quantization_config`, checked.
#[derive(Clone, Debug)]
pub(in crate::checkpoint) struct HiggsConfig {
    pub(super) format: Format,
    p: usize,
    block: usize,
    tuned: BTreeMap<String, Tuned>,
}

/// What is said of one module.
#[derive(Clone, Debug, Deserialize)]
struct Tuned {
    template_id: u32,
    dtype: Option<String>,
}

#[derive(Deserialize)]
struct Raw {
    bits: u8,
    p: usize,
    group_size: Option<usize>,
    hadamard_size: Option<usize>,
    #[serde(default)]
    tune_metadata: BTreeMap<String, Tuned>,
}

impl HiggsConfig {
    /// Reads `quantization`; `path` is the file it stands in, for messages.
    pub(super) fn parse(quantization: &Value, path: &Path) -> Result<Self> {
        let raw: Raw = json::typed(quantization, path)?;
        let range = |field, found: usize, needed: &str| {
            let (path, found, needed) = (path.into(), found.to_string(), needed.to_owned());
            Error::ConfigRange { path, field, found, needed }
        };
        let bits = Bits::new(raw.bits).map_err(|_| range("bits", raw.bits.into(), "2, 3 or 4"))?;
        if !matches!(raw.p, 1 | 2) {
            return Err(range("p", raw.p, "1 or 2"));
        }
        let group = raw.group_size.unwrap_or(256);
        let block = raw.hadamard_size.unwrap_or(OLD_BLOCK);
        let format = Group::new(group).map(|group| Format { bits, group });
        let format = format.map_err(|_| range("group_size", group, "32, 64, 128 or 256"))?;
        hadamard::check_block(block)
            .map_err(|_| range("hadamard_size", block, "a power of two from 2 to 32768"))?;
        Ok(Self { format, p: raw.p, block, tuned: raw.tune_metadata })
    }

    pub(super) fn layout(&self, reader: &Reader, module: &str) -> Result<Layout> {
        let Self { format, p, block, .. } = *self;
        let [weight, scales, tables] = self.names(module);
        let bits = format.bits;
        let [rows, k] = reader.dims(&weight, "[n * bits / 16, k]")?;
        let (tiles, n) = (self.tiles(module)?, rows.saturating_mul(16) / usize::from(bits.get()));
        tiles.check(module, n, k)?;
        let len = format.group.len(k);
        for (multiple, what) in [(len, "k (in_features)"), (block, "k (padded in_features)")] {
            if !k.is_multiple_of(multiple) {
                return Err(Error::PackedShape { module: module.into(), what, found: k, multiple });
            }
        }
        let shape = |tensor: String, found: &[usize], needed: &[usize]| {
            let (found, needed) = (found.to_vec(), format!("{needed:?} for n = {n}, k = {k}"));
            Err(Error::TensorShape { tensor, found, needed })
        };
        if rows != tiles.rows(n) || n > MAX_DIM || k > MAX_DIM {
            return shape(weight, &[rows, k], &[tiles.rows(n), k]);
        }
        let (found, needed) = (&reader.info(&scales)?.shape, [n, format.group.count(k)]);
        if found[..] != needed {
            return shape(scales, found, &needed);
        }
        let (codes, found) = (bits.codes(), &reader.info(&tables)?.shape);
        let needed = if p == 1 { vec![codes] } else { vec![codes, codes, 2] };
        if found[..] != needed {
            return shape(tables, found, &needed);
        }
        let scale = float_dtype(&scales, reader.info(&scales)?.dtype)?;
        let table = if p == 1 { TableKind::Custom } else { TableKind::Pairs };
        Ok(Layout {
            n,
            k,
            dim: p,
            format,
            table,
            scale,
            hadamard_size: Some(block),
            hadamard_seed: None,
        })
    }

    pub(super) fn weight(&self, reader: &Reader, module: &str) -> Result<Quantized> {
        let Layout { n, k, format, scale, .. } = self.layout(reader, module)?;
        let [weight, scales, tables] = self.names(module);
        let table = if self.p == 1 {
            Table::custom(format.bits, &reader.finite(&tables)?)
        } else {
            let values = self.grid(reader, module, scale)?;
            Table::pairs(format.bits, values.as_chunks().0)
        };
        let table = table.map_err(in_module(module))?;
        let mut codes = self.tiles(module)?.unpack(&reader.raw(&weight)?.bytes, n, k)?;
        if self.p == 2 {
            let bits = format.bits.get();
            codes = codes.as_chunks().0.iter().map(|[even, odd]| even << bits | odd).collect();
        }
        let scales = reader.finite(&scales)?;
        Quantized::new(QuantizedParts { n, k, format, codes, scales, table })
            .map_err(in_module(module))
    }

    /// The points of the plane, flat. Their bits are those of the type that the module was packed in.
    fn grid(&self, reader: &Reader, module: &str, scale: Float) -> Result<Vec<f32>> {
        let [_, _, tables] = self.names(module);
        let stored = reader.raw(&tables)?;
        let packed = self.tuned.get(module).and_then(|tuned| tuned.dtype.as_deref());
        let bfloat = match packed {
            Some(dtype) => dtype == "torch.bfloat16",
            None => scale == Float::BF16,
        };
        let words = stored.bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
        match stored.dtype {
            Dtype::F16 if !bfloat => Ok(words.map(|w| half::f16::from_bits(w).to_f32()).collect()),
            Dtype::F16 | Dtype::BF16 => {
                Ok(words.map(|w| half::bf16::from_bits(w).to_f32()).collect())
            }
            found => {
                let (found, needed) = (found.to_string(), "F16 or BF16");
                Err(Error::TensorDtype { tensor: tables, found, needed })
            }
        }
    }

    /// Codes, scales and grid of `module`.
    fn names(&self, module: &str) -> [String; 3] {
        let grid = if self.p == 1 { "tables" } else { "tables2" };
        ["weight", "scales", grid].map(|part| format!("{module}.{part}"))
    }

    /// The order of codes: a quarter (2 and 3 bits) or a third (4 bits) of FLUTE's templates has tiles of 64.
    fn tiles(&self, module: &str) -> Result<FluteTiles> {
        let bits = self.format.bits;
        let wide = self.tuned.get(module).is_some_and(|tuned| match bits {
            Bits::Four => tuned.template_id % 48 < 16,
            Bits::Two | Bits::Three => tuned.template_id % 12 < 4,
        });
        FluteTiles::with_tile(bits, if wide { 64 } else { 32 })
    }
}
