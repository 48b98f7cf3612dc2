//! `quantization_config`: how the linear layers of a directory are quantized.
//!
//! ```json
//! {"quant_method": "flute", "version": 1, "bits": 4, "group_size": 64, "table": "nf", "scale_dtype": "float16",
//!  "modules_to_not_convert": ["lm_head"], "modules": {"model.layers.0.mlp.down_proj": {"bits": 3}}}
//! ```
//!
//! Field names are those of the other methods of transformers; `group_size` −1 is the whole row. `modules` maps a
//! module to what differs there: `bits`, `group_size`, `table`, and `in_features` where the packed row does not tell
//! it (k·bits not a multiple of 8). Rotated weights name the blocks of their rotation in `hadamard_size` (1 is none)
//! and their table `higgs`, with `p`, the weights that one code names; `hadamard_seed`, where there is one, is the seed
//! of the signs of all rotations ([`hadamard::signs`]). Refused: other methods and other versions.

use super::json;
use crate::error::{Error, Result};
use crate::hadamard;
use flute_cube::{Bits, Dtype, Group, TableKind};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// How one weight is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// Bits of a code, per weight.
    pub bits: Bits,
    /// Weights that share a scale.
    pub group: Group,
    /// Where the table's values come from; the values themselves are stored beside the codes and rule.
    pub table: TableKind,
    /// Weights that were rotated together ([`crate::hadamard`]), if they were; k is padded to a multiple.
    pub hadamard_size: Option<usize>,
    /// The seed of their signs, if the rotation is random: one for all modules of a directory.
    pub hadamard_seed: Option<u32>,
}

/// What differs from the common scheme in one module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModuleOverride {
    /// Its scheme, where it differs.
    pub scheme: Option<Scheme>,
    /// Its k, where the packed row does not tell it.
    pub in_features: Option<usize>,
}

/// The `quantization_config` of our format, version 1.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationConfig {
    /// Scheme of every module without its own.
    pub scheme: Scheme,
    /// Type that scales are stored in.
    pub scale_dtype: Dtype,
    /// Patterns of modules left dense.
    pub modules_to_not_convert: Vec<String>,
    /// Modules that differ.
    pub modules: BTreeMap<String, ModuleOverride>,
}

#[derive(Deserialize)]
struct Raw {
    version: u32,
    bits: u8,
    group_size: i64,
    table: String,
    p: Option<u8>,
    scale_dtype: Option<String>,
    hadamard_size: Option<usize>,
    hadamard_seed: Option<u32>,
    #[serde(default)]
    modules_to_not_convert: Vec<String>,
    #[serde(default)]
    modules: BTreeMap<String, RawModule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModule {
    bits: Option<u8>,
    group_size: Option<i64>,
    table: Option<String>,
    p: Option<u8>,
    hadamard_size: Option<usize>,
    in_features: Option<usize>,
}

impl QuantizationConfig {
    /// The name of our format; those of other programs are not read here.
    pub const METHOD: &'static str = "flute";

    /// Reads the object; `path` is the file it stands in, for messages.
    ///
    /// # Errors
    /// [`Error::ConfigUnsupported`], [`Error::ConfigRange`], [`Error::Json`].
    pub fn parse(value: &Value, path: &Path) -> Result<Self> {
        let unsupported = |field, found: String, known| {
            Err(Error::ConfigUnsupported { path: path.into(), field, found, known })
        };
        match value.get("quant_method").and_then(Value::as_str) {
            Some(Self::METHOD) => (),
            found => {
                let found = found.unwrap_or_default().to_owned();
                return unsupported("quant_method", found, "flute, bitsandbytes, higgs");
            }
        }
        let raw: Raw = json::typed(value, path)?;
        if raw.version != 1 {
            return unsupported("quantization version", raw.version.to_string(), "1");
        }
        let dim = raw.p.unwrap_or(1);
        let hadamard_size = block(raw.hadamard_size, path)?;
        let seed = |size: Option<usize>| size.and(raw.hadamard_seed);
        let scheme = Scheme {
            bits: bits(raw.bits, path)?,
            group: group(raw.group_size, path)?,
            table: table(&raw.table, dim, path)?,
            hadamard_size,
            hadamard_seed: seed(hadamard_size),
        };
        let scale_dtype = match raw.scale_dtype.as_deref() {
            None | Some("float16") => Dtype::F16,
            Some("bfloat16") => Dtype::BF16,
            Some("float32") => Dtype::F32,
            Some(found) => {
                let found = found.to_owned();
                return unsupported("scale_dtype", found, "float16, bfloat16, float32");
            }
        };
        let modules = raw.modules.into_iter().map(|(name, module)| {
            let hadamard_size = match module.hadamard_size {
                None => scheme.hadamard_size,
                found => block(found, path)?,
            };
            let own = Scheme {
                bits: module.bits.map_or(Ok(scheme.bits), |b| bits(b, path))?,
                group: module.group_size.map_or(Ok(scheme.group), |g| group(g, path))?,
                table: match (module.table, module.p) {
                    (None, None) => scheme.table,
                    (found, p) => {
                        table(found.as_ref().unwrap_or(&raw.table), p.unwrap_or(dim), path)?
                    }
                },
                hadamard_size,
                hadamard_seed: seed(hadamard_size),
            };
            let scheme = (own != scheme).then_some(own);
            Ok((name, ModuleOverride { scheme, in_features: module.in_features }))
        });
        Ok(Self {
            scheme,
            scale_dtype,
            modules_to_not_convert: raw.modules_to_not_convert,
            modules: modules.collect::<Result<_>>()?,
        })
    }

    /// The object as `config.json` holds it.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "quant_method": Self::METHOD,
            "version": 1,
            "bits": self.scheme.bits.get(),
            "group_size": group_size(self.scheme.group),
            "table": self.scheme.table_name(),
            "scale_dtype": dtype_name(self.scale_dtype),
            "modules_to_not_convert": self.modules_to_not_convert,
        });
        if self.scheme.p() == 2 {
            object["p"] = json!(2);
        }
        if let Some(size) = self.scheme.hadamard_size {
            object["hadamard_size"] = json!(size);
        }
        let own = self.modules.values().filter_map(|module| module.scheme);
        if let Some(seed) = own.chain([self.scheme]).find_map(|scheme| scheme.hadamard_seed) {
            object["hadamard_seed"] = json!(seed);
        }
        let modules: Map<String, Value> = self
            .modules
            .iter()
            .map(|(name, module)| (name.clone(), self.module_json(module)))
            .collect();
        if !modules.is_empty() {
            object["modules"] = Value::Object(modules);
        }
        object
    }

    /// How `module` is quantized.
    pub fn scheme_of(&self, module: &str) -> Scheme {
        self.modules.get(module).and_then(|own| own.scheme).unwrap_or(self.scheme)
    }

    /// The k of `module` where its packed row does not tell it.
    pub fn in_features_of(&self, module: &str) -> Option<usize> {
        self.modules.get(module).and_then(|own| own.in_features)
    }

    fn module_json(&self, module: &ModuleOverride) -> Value {
        let mut object = Map::new();
        if let Some(own) = module.scheme {
            if own.bits != self.scheme.bits {
                object.insert("bits".into(), json!(own.bits.get()));
            }
            if own.group != self.scheme.group {
                object.insert("group_size".into(), json!(group_size(own.group)));
            }
            if own.table_name() != self.scheme.table_name() {
                object.insert("table".into(), json!(own.table_name()));
            }
            if own.p() != self.scheme.p() {
                object.insert("p".into(), json!(own.p()));
            }
            if own.hadamard_size != self.scheme.hadamard_size {
                object.insert("hadamard_size".into(), json!(own.hadamard_size.unwrap_or(1)));
            }
        }
        if let Some(k) = module.in_features {
            object.insert("in_features".into(), json!(k));
        }
        Value::Object(object)
    }
}

impl Scheme {
    /// Weights that one code names.
    pub fn p(&self) -> usize {
        if self.table == TableKind::Pairs { 2 } else { 1 }
    }

    /// The name of the table in files: rotated weights have the grids of HIGGS.
    pub fn table_name(&self) -> &'static str {
        match (self.table, self.hadamard_size) {
            (TableKind::Custom | TableKind::Pairs, Some(_)) => "higgs",
            (table, _) => table.name(),
        }
    }
}

/// The name that config files give a type.
pub(super) fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
    }
}

fn group_size(group: Group) -> i64 {
    match group {
        Group::Size(size) => size.into(),
        Group::Whole => -1,
    }
}

fn bits(found: u8, path: &Path) -> Result<Bits> {
    Bits::new(found).map_err(|_| Error::ConfigRange {
        path: path.into(),
        field: "bits",
        found: found.to_string(),
        needed: "2, 3 or 4".into(),
    })
}

fn group(found: i64, path: &Path) -> Result<Group> {
    let group = match found {
        -1 => Some(Group::Whole),
        _ => usize::try_from(found).ok().and_then(|size| Group::new(size).ok()),
    };
    group.ok_or_else(|| Error::ConfigRange {
        path: path.into(),
        field: "group_size",
        found: found.to_string(),
        needed: "32, 64, 128, 256 or -1 (the whole row)".into(),
    })
}

/// The blocks of a rotation; 1 is none.
fn block(found: Option<usize>, path: &Path) -> Result<Option<usize>> {
    let Some(size) = found.filter(|size| *size != 1) else { return Ok(None) };
    hadamard::check_block(size).map_err(|_| Error::ConfigRange {
        path: path.into(),
        field: "hadamard_size",
        found: size.to_string(),
        needed: format!("a power of two up to {}", hadamard::MAX_BLOCK),
    })?;
    Ok(Some(size))
}

fn table(found: &str, dim: u8, path: &Path) -> Result<TableKind> {
    let kind = match (found, dim) {
        ("higgs", 1) => Ok(TableKind::Custom),
        ("higgs", 2) => Ok(TableKind::Pairs),
        _ => found.parse(),
    };
    match kind {
        Ok(kind) if (kind == TableKind::Pairs) == (dim == 2) => Ok(kind),
        _ => Err(Error::ConfigUnsupported {
            path: path.into(),
            field: "table",
            found: format!("{found} (p = {dim})"),
            known: "int, fp, nf, nf-symmetric, custom; pairs with p = 2; higgs with p = 1 or 2",
        }),
    }
}
