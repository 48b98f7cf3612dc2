//! The header of a safetensors file, checked before anything it describes is allocated.
//!
//! The layout is that of the `safetensors` crate (8 bytes of length, JSON, data). The crate's own reader wants the
//! whole file in memory and reports what is wrong without saying where; here the header alone is read, and every way
//! in which it can be wrong is its own error with names and numbers. The rules are the crate's: tensors lie in the
//! data without gaps or overlaps and fill it to the last byte, so that no byte of a file goes unaccounted for.

use super::positioned::read_exact_at;
use crate::error::{Error, Result};
use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

/// Bytes of a header that are read: fifty times that of a 405B model.
pub const MAX_HEADER: u64 = 16 << 20;
/// Tensors of a file that are read.
pub const MAX_TENSORS: usize = 100_000;
/// Dimensions of a tensor that are read.
pub const MAX_RANK: usize = 4;

/// Where a tensor lies in its file, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The entries of the JSON, in its order, duplicates included: a map would hide them.
struct Entries(Vec<(String, Entry)>);

#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Entries;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = vec![];
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Walk)
    }
}

/// Reads and checks the header of `file`; `path` is for messages.
///
/// # Errors
/// Every variant of the section *Safetensors headers* of [`Error`].
pub(super) fn read(file: &File, path: &Path) -> Result<BTreeMap<String, TensorInfo>> {
    let len = file.metadata().map_err(Error::io("examine", path))?.len();
    let truncated = |needed| Error::HeaderTruncated { path: path.into(), found: len, needed };
    let mut prefix = [0; 8];
    if len < 8 {
        return Err(truncated(8));
    }
    read_exact_at(file, &mut prefix, 0).map_err(Error::io("read", path))?;
    let size = u64::from_le_bytes(prefix);
    if size > MAX_HEADER {
        return Err(Error::HeaderTooLarge { path: path.into(), found: size, limit: MAX_HEADER });
    }
    if 8 + size > len {
        return Err(truncated(8 + size));
    }
    let mut header = vec![0; size as usize];
    read_exact_at(file, &mut header, 8).map_err(Error::io("read", path))?;
    let entries: Entries = serde_json::from_slice(&header)
        .map_err(|source| Error::HeaderJson { path: path.into(), source })?;
    check(entries.0, path, 8 + size, len)
}

/// Checks `entries` against a file of `len` bytes whose data begins at `start`.
fn check(
    mut entries: Vec<(String, Entry)>,
    path: &Path,
    start: u64,
    len: u64,
) -> Result<BTreeMap<String, TensorInfo>> {
    if entries.len() > MAX_TENSORS {
        let (found, limit) = (entries.len(), MAX_TENSORS);
        return Err(Error::TooManyTensors { path: path.into(), found, limit });
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let data = len - start;
    let (mut at, mut previous) = (0, String::new());
    let mut tensors = BTreeMap::new();
    for (name, entry) in entries {
        let (begin, end) = entry.data_offsets;
        let (dtype, shape) = describe(&name, &entry, path)?;
        let (path, tensor) = (path.to_owned(), name.clone());
        if tensors.contains_key(&name) {
            return Err(Error::DuplicateTensor { path, tensor });
        }
        if end > data {
            return Err(Error::OutOfFile { path, tensor, end, len: data });
        }
        if begin < at {
            return Err(Error::TensorOverlap { path, tensor, other: previous, begin, end: at });
        }
        if begin > at {
            return Err(Error::TensorGap { path, begin: at, end: begin });
        }
        let info = TensorInfo { dtype, shape, offset: start + begin, bytes: end - begin };
        tensors.insert(name, info);
        (at, previous) = (end, tensor);
    }
    if at < data {
        return Err(Error::TensorGap { path: path.into(), begin: at, end: data });
    }
    Ok(tensors)
}

/// The entry's dtype and shape, their product checked against its offsets.
fn describe(name: &str, entry: &Entry, path: &Path) -> Result<(Dtype, Vec<usize>)> {
    let (path, tensor) = (path.to_owned(), name.to_owned());
    let text: serde::de::value::StrDeserializer<'_, serde_json::Error> =
        entry.dtype.as_str().into_deserializer();
    let Ok(dtype) = Dtype::deserialize(text) else {
        return Err(Error::UnknownDtype { path, tensor, found: entry.dtype.clone() });
    };
    if entry.shape.len() > MAX_RANK {
        return Err(Error::RankTooHigh { path, tensor, found: entry.shape.len(), limit: MAX_RANK });
    }
    let (begin, end) = entry.data_offsets;
    if end < begin {
        return Err(Error::OffsetsReversed { path, tensor, begin, end });
    }
    let shape: Option<Vec<usize>> = entry.shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    let bits = entry.shape.iter().try_fold(dtype.bitsize() as u64, |a, d| a.checked_mul(*d));
    let (Some(shape), Some(bits)) = (shape, bits) else {
        return Err(Error::ShapeOverflow { path, tensor, shape: entry.shape.clone() });
    };
    // Types below a byte may leave a byte unfinished; such a tensor has no whole number of bytes to match.
    let (found, needed) = (end - begin, bits.div_ceil(8));
    if found != needed || !bits.is_multiple_of(8) {
        return Err(Error::TensorBytes { path, tensor, found, needed });
    }
    Ok((dtype, shape))
}
