//! JSON files of a model directory: bounded, typed, and wrong with the path of the wrong field.

use crate::error::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The file's bytes, or `None` where there is no such file.
///
/// # Errors
/// [`Error::FileTooLarge`] beyond `limit` bytes, before any is kept; [`Error::Io`].
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { action: "open", path: path.into(), source }),
    };
    let found = file.metadata().map_err(Error::io("examine", path))?.len();
    if found > limit {
        return Err(Error::FileTooLarge { path: path.into(), found, limit });
    }
    // A file may grow after it was measured, and special files measure 0.
    let mut bytes = Vec::with_capacity(found as usize);
    file.by_ref().take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::FileTooLarge { path: path.into(), found: bytes.len() as u64, limit });
    }
    Ok(Some(bytes))
}

/// The file as JSON of any shape, or `None` where there is no such file.
///
/// # Errors
/// As [`read_bounded`]; [`Error::Json`] where it is not JSON.
pub(crate) fn read_value(path: &Path, limit: u64) -> Result<Option<Value>> {
    let Some(bytes) = read_bounded(path, limit)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        path: path.into(),
        at: ".".into(),
        source,
    })?;
    Ok(Some(value))
}

/// `value` as a `T`; `path` is where it came from.
///
/// # Errors
/// [`Error::Json`] that names the field.
pub(crate) fn typed<T: DeserializeOwned>(value: &Value, path: &Path) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| Error::Json {
        path: path.into(),
        at: e.path().to_string(),
        source: e.into_inner(),
    })
}
