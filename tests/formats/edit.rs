//! Golden directories, copied and changed.

use crate::golden;
use anyhow::Result;
use flute_burn::checkpoint::Reader;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A tensor: type, shape and bytes.
pub(crate) type Tensor = (Dtype, Vec<usize>, Vec<u8>);
pub(crate) type Tensors = BTreeMap<String, Tensor>;

pub(crate) struct Copy(TempDir);

impl Copy {
    /// A copy of the golden directory `name`, its weights replaced by `tensors`.
    pub(crate) fn with_tensors(name: &str, tensors: &Tensors) -> Result<Self> {
        let copy = Self(tempfile::tempdir()?);
        for entry in std::fs::read_dir(golden(name))? {
            let entry = entry?;
            if entry.file_name() != "model.safetensors" {
                std::fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
            }
        }
        let mut views = vec![];
        for (name, (dtype, shape, bytes)) in tensors {
            views.push((name, TensorView::new(*dtype, shape.clone(), bytes)?));
        }
        std::fs::write(
            copy.path().join("model.safetensors"),
            safetensors::serialize(views, None)?,
        )?;
        Ok(copy)
    }

    /// A copy of the golden directory `name` after `edit` of its tensors.
    pub(crate) fn edited(name: &str, edit: impl FnOnce(&mut Tensors)) -> Result<Self> {
        let mut tensors = tensors(&golden(name))?;
        edit(&mut tensors);
        Self::with_tensors(name, &tensors)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The same after `edit` of its JSON file `name`.
    pub(crate) fn json(self, name: &str, edit: impl FnOnce(&mut Value)) -> Result<Self> {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(name))?)?;
        edit(&mut value);
        std::fs::write(self.file(name), value.to_string())?;
        Ok(self)
    }
}

/// All tensors of a directory as they are stored.
pub(crate) fn tensors(dir: &Path) -> Result<Tensors> {
    let reader = Reader::open(dir)?;
    let stored = |name: &str| {
        let raw = reader.raw(name)?;
        Ok((name.to_owned(), (raw.dtype, raw.shape, raw.bytes)))
    };
    reader.tensor_names().map(stored).collect()
}
