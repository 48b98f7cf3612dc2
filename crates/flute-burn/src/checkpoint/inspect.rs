//! What a model directory holds, and whether all of it is sound.
//!
//! Without `verify` only headers are read. With it every tensor is: a quantized layer must decode (padding bits zero,
//! every code in range), its scales and table must be finite, and so must every dense float tensor. The first fault is
//! the error.

use super::reader::{Reader, float_dtype};
use super::writer::natural_key;
use crate::error::Result;
use flute_cube::{Dtype, Group};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::Path;

/// A model directory, described.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The architecture, as `config.json` spells it.
    pub architecture: &'static str,
    /// Whether every tensor was read and found sound.
    pub verified: bool,
    /// Weight files.
    pub files: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Weights and other parameters, each counted once whatever its bits.
    pub parameters: u64,
    /// Stored bits per parameter.
    pub bits_per_parameter: f64,
    /// The quantized linear layers, in order.
    pub linears: Vec<InspectedLinear>,
    /// All tensors, in order of the layers.
    pub tensors: Vec<InspectedTensor>,
}

/// A quantized linear layer.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedLinear {
    /// Its module.
    pub module: String,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Bits of a code, per weight.
    pub bits: u8,
    /// Weights that share a scale; a number, or "row".
    #[serde(serialize_with = "group_size")]
    pub group: Group,
    /// The table's name.
    pub table: &'static str,
    /// Weights that one code names.
    pub p: usize,
    /// Type of the scales.
    pub scales: Dtype,
    /// Bytes of codes, scales and table.
    pub bytes: u64,
    /// The same in bits per weight.
    pub bits_per_weight: f64,
}

/// A stored tensor.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedTensor {
    /// Its name.
    pub name: String,
    /// Type of its elements, as safetensors spells it.
    pub dtype: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Bytes.
    pub bytes: u64,
}

fn group_size<S: Serializer>(group: &Group, serializer: S) -> Result<S::Ok, S::Error> {
    match group {
        Group::Size(size) => serializer.serialize_u32(*size),
        Group::Whole => serializer.serialize_str("row"),
    }
}

/// Describes `dir`; with `verify`, reads and checks every tensor.
///
/// # Errors
/// Those of [`Reader::open`] and [`Reader::linear`]; with `verify`, [`crate::error::Error::NotFinite`] for a dense
/// tensor.
pub fn inspect(dir: &Path, verify: bool) -> Result<Inspection> {
    let reader = Reader::open(dir)?;
    let mut tensors: Vec<InspectedTensor> = reader
        .tensors()
        .map(|(name, info)| InspectedTensor {
            name: name.into(),
            dtype: info.dtype.to_string(),
            shape: info.shape.clone(),
            bytes: info.bytes,
        })
        .collect();
    tensors.sort_by_cached_key(|tensor| natural_key(&tensor.name));
    let mut linears = vec![];
    for tensor in &tensors {
        if let Some(module) = tensor.name.strip_suffix(".codes") {
            linears.push(describe(&reader, module)?);
        }
    }
    let sizes: BTreeMap<&str, &InspectedLinear> =
        linears.iter().map(|linear| (linear.module.as_str(), linear)).collect();
    let mut parameters = 0;
    for tensor in &tensors {
        let linear = tensor
            .name
            .rsplit_once('.')
            .and_then(|(module, part)| Some((sizes.get(module)?, part)));
        match linear {
            Some((linear, "codes")) => parameters += (linear.n * linear.k) as u64,
            Some((_, "scales" | "table")) => (),
            _ => parameters += tensor.shape.iter().product::<usize>() as u64,
        }
    }
    if verify {
        for tensor in &tensors {
            check(&reader, &tensor.name, &sizes)?;
        }
    }
    let bytes = tensors.iter().map(|tensor| tensor.bytes).sum();
    Ok(Inspection {
        architecture: reader.config().architecture.name(),
        verified: verify,
        files: reader.files().count(),
        bytes,
        parameters,
        bits_per_parameter: bytes as f64 * 8.0 / parameters.max(1) as f64,
        linears,
        tensors,
    })
}

fn describe(reader: &Reader, module: &str) -> Result<InspectedLinear> {
    let layout = reader.layout(module)?;
    let parts = ["codes", "scales", "table"].map(|part| format!("{module}.{part}"));
    let mut bytes = 0;
    for part in &parts {
        bytes += reader.info(part)?.bytes;
    }
    Ok(InspectedLinear {
        module: module.into(),
        n: layout.n,
        k: layout.k,
        bits: layout.format.bits.get(),
        group: layout.format.group,
        table: layout.table.name(),
        p: layout.dim,
        scales: float_dtype(&parts[1], reader.info(&parts[1])?.dtype)?,
        bytes,
        bits_per_weight: bytes as f64 * 8.0 / (layout.n * layout.k) as f64,
    })
}

/// Reads one tensor and checks its values.
fn check(reader: &Reader, name: &str, linears: &BTreeMap<&str, &InspectedLinear>) -> Result<()> {
    let part = name.rsplit_once('.').filter(|(module, _)| linears.contains_key(module));
    match part {
        // Decoding checks codes and padding, scales and table.
        Some((module, "codes")) => reader.linear(module).map(drop),
        Some((_, "scales" | "table")) => Ok(()),
        _ if float_dtype(name, reader.info(name)?.dtype).is_ok() => reader.finite(name).map(drop),
        _ => reader.stream(name, |_| Ok(())),
    }
}
