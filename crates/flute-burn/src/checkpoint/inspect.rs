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
    /// Weights that were rotated together, if they were.
    pub hadamard_size: Option<usize>,
    /// The seed of their signs, if the rotation is random.
    pub hadamard_seed: Option<u32>,
    /// Narrowest type that holds the scales exactly; in our format, the one that they are stored in.
    pub scales: Dtype,
    /// Bytes of all its tensors but the bias.
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
    let mut sizes: BTreeMap<&str, u64> =
        reader.quantized_modules().map(|module| (module, 0)).collect();
    let mut parameters = 0;
    let mut dense = vec![];
    for (name, info) in reader.tensors() {
        let module = reader.module_of(name).and_then(|module| sizes.get_mut(module));
        match module {
            Some(bytes) => *bytes += info.bytes,
            None => {
                parameters += info.shape.iter().product::<usize>() as u64;
                dense.push(name);
            }
        }
    }
    let mut modules: Vec<(&str, u64)> = sizes.into_iter().collect();
    modules.sort_by_cached_key(|(module, _)| natural_key(module));
    let mut linears = vec![];
    for (module, bytes) in modules {
        let linear = describe(&reader, module, bytes)?;
        parameters += (linear.n * linear.k) as u64;
        linears.push(linear);
    }
    if verify {
        for linear in &linears {
            // Decoding checks codes and padding, scales and table.
            reader.linear(&linear.module)?;
        }
        for name in dense {
            check(&reader, name)?;
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

fn describe(reader: &Reader, module: &str, bytes: u64) -> Result<InspectedLinear> {
    let layout = reader.layout(module)?;
    Ok(InspectedLinear {
        module: module.into(),
        n: layout.n,
        k: layout.k,
        bits: layout.format.bits.get(),
        group: layout.format.group,
        table: layout.scheme().table_name(),
        p: layout.dim,
        hadamard_size: layout.hadamard_size,
        hadamard_seed: layout.hadamard_seed,
        scales: layout.scale,
        bytes,
        bits_per_weight: bytes as f64 * 8.0 / (layout.n * layout.k) as f64,
    })
}

/// Reads one tensor that is no part of a quantized layer, and checks its values if they are floats.
fn check(reader: &Reader, name: &str) -> Result<()> {
    match float_dtype(name, reader.info(name)?.dtype) {
        Ok(_) => reader.finite(name).map(drop),
        Err(_) => reader.stream(name, |_| Ok(())),
    }
}
