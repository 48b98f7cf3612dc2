//! Quantized directories of other programs, read as they are: every weight comes back as the codes, scales and table
//! that its author stored, in our canonical form.
//!
//! | directory | recognized by | its layers |
//! |---|---|---|
//! | FLUTE (Python) | `flute_config.json` | int16 tiles, one table a layer |
//! | bitsandbytes, 4 bits | `quantization_config.quant_method` = `bitsandbytes` | two codes a byte, blocks over the flattened weight |
//! | HIGGS | `quantization_config.quant_method` = `higgs` | int16 tiles, rotated weights |
//!
//! Refused: 8-bit bitsandbytes, whose weights are not tables, and whatever a layer's tensors contradict.

mod bitsandbytes;
pub(super) mod flute_legacy;
pub(super) mod higgs;
pub(super) mod higgs_writer;
mod tiles;

pub use tiles::FluteTiles;

use super::config::ModelConfig;
use super::json;
use super::layout::Layout;
use super::reader::Reader;
use crate::error::{Error, Result};
use flute_cube::{Bits, Dtype as Float, Quantized, Table};
use flute_legacy::FluteConfig;
use higgs::HiggsConfig;
use safetensors::Dtype;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// The program whose format a directory has, if it is not ours.
#[derive(Clone, Debug)]
pub(super) enum Foreign {
    FluteLegacy(FluteConfig),
    BitsAndBytes,
    Higgs(HiggsConfig),
}

/// Whether `quantization_config` is that of a program which [`Foreign`] serves.
pub(super) fn is_foreign(quantization: &Value) -> bool {
    let method = quantization.get("quant_method").and_then(Value::as_str);
    [bitsandbytes::METHOD, higgs::METHOD].map(Some).contains(&method)
}

#[derive(Deserialize)]
struct RawBitsAndBytes {
    #[serde(default)]
    load_in_4bit: bool,
}

impl Foreign {
    /// Recognizes `dir`, whose `config.json` is `config` and, as it stands, `source`.
    ///
    /// # Errors
    /// [`Error::ConfigUnsupported`], [`Error::ConfigRange`], [`Error::Json`].
    pub(super) fn detect(dir: &Path, config: &ModelConfig, source: &Value) -> Result<Option<Self>> {
        if config.quantization.is_some() {
            return Ok(None);
        }
        let path = dir.join("config.json");
        if let Some(quantization) = source.get("quantization_config").filter(|q| is_foreign(q)) {
            if quantization["quant_method"] == higgs::METHOD {
                return Ok(Some(Self::Higgs(HiggsConfig::parse(quantization, &path)?)));
            }
            let raw: RawBitsAndBytes = json::typed(quantization, &path)?;
            if !raw.load_in_4bit {
                return Err(Error::ConfigUnsupported {
                    path,
                    field: "quant_method",
                    found: "bitsandbytes without load_in_4bit".into(),
                    known: "bitsandbytes in 4 bits (nf4, fp4)",
                });
            }
            return Ok(Some(Self::BitsAndBytes));
        }
        Ok(FluteConfig::read(dir)?.map(Self::FluteLegacy))
    }

    /// Bits of a code.
    pub(super) fn bits(&self) -> Bits {
        match self {
            Self::FluteLegacy(config) => config.format.bits,
            Self::BitsAndBytes => Bits::Four,
            Self::Higgs(config) => config.format.bits,
        }
    }

    /// Whether `module` is quantized. A dense matrix is a float tensor; these programs keep their codes in integers,
    /// or beside a state that says so.
    pub(super) fn holds(&self, reader: &Reader, module: &str) -> bool {
        let stored = reader.info(&format!("{module}.weight")).ok().map(|info| info.dtype);
        match self {
            Self::FluteLegacy(_) | Self::Higgs(_) => stored == Some(Dtype::I16),
            Self::BitsAndBytes => {
                stored == Some(Dtype::U8) || bitsandbytes::state_name(reader, module).is_some()
            }
        }
    }

    /// What the headers (and the small tensors that belong to them) say of `module`.
    pub(super) fn layout(&self, reader: &Reader, module: &str) -> Result<Layout> {
        match self {
            Self::FluteLegacy(config) => config.layout(reader, module),
            Self::BitsAndBytes => bitsandbytes::layout(reader, module),
            Self::Higgs(config) => config.layout(reader, module),
        }
    }

    /// The weight of `module`.
    pub(super) fn weight(&self, reader: &Reader, module: &str) -> Result<Quantized> {
        match self {
            Self::FluteLegacy(config) => config.weight(reader, module),
            Self::BitsAndBytes => bitsandbytes::weight(reader, module),
            Self::Higgs(config) => config.weight(reader, module),
        }
    }

    /// The module that `tensor` would be a part of.
    pub(super) fn module_of<'a>(&self, tensor: &'a str) -> Option<&'a str> {
        match self {
            Self::FluteLegacy(_) | Self::Higgs(_) => flute_legacy::module_of(tensor),
            Self::BitsAndBytes => bitsandbytes::module_of(tensor),
        }
    }
}

/// The table of stored `values`, under its name where it is one that has a name, to the last bit.
fn table(bits: Bits, values: &[f32]) -> flute_cube::Result<Table> {
    let bit_patterns = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let named = [Table::nf(bits), Table::nf_symmetric(bits), Table::int(bits), Table::fp(bits)];
    let stored = bit_patterns(values);
    match named.into_iter().find(|table| bit_patterns(table.values()) == stored) {
        Some(table) => Ok(table),
        None => Table::custom(bits, values),
    }
}

/// Refuses scales and table values of `weight` that `dtype` cannot hold.
fn check_range(module: &str, weight: &Quantized, dtype: Float) -> Result<()> {
    let overflows = |value: &f32| !dtype.round(*value).is_finite();
    if let Some(index) = weight.scales().iter().position(overflows) {
        let groups = weight.format().group.count(weight.k());
        let (row, group, value) = (index / groups, index % groups, weight.scales()[index]);
        let tensor = format!("{module}.scales");
        return Err(Error::ScaleOverflow { tensor, row, group, value, dtype });
    }
    let values = weight.table().values();
    if let Some(col) = values.iter().position(overflows) {
        let (tensor, value) = (format!("{module}.tables"), dtype.round(values[col]));
        return Err(Error::NotFinite { tensor, row: 0, col, value });
    }
    Ok(())
}

/// The pairs of a table's 16-bit values: entry [i, j] is value i in the low half and value j in the high half.
fn pairs_of(tables: &[u8]) -> Vec<u8> {
    let halves: &[[u8; 2]] = tables.as_chunks().0;
    let pairs = |i: &[u8; 2]| halves.iter().flat_map(|j| [i[0], i[1], j[0], j[1]]).collect();
    let pairs: Vec<Vec<u8>> = halves.iter().map(pairs).collect();
    pairs.concat()
}

fn in_module(module: &str) -> impl FnOnce(flute_cube::Error) -> Error {
    let module = module.to_owned();
    move |source| Error::Module { module, source }
}
