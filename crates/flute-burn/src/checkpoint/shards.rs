//! The files that hold a model's tensors: `model.safetensors`, or shards and their index.
//!
//! Refused: pickles, shard names that are paths, shards that are absent, and an index that promises tensors which
//! their shard lacks. Symbolic links inside the directory are followed (the Hugging Face cache consists of them).

use super::header::{self, TensorInfo};
use super::json;
use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Bytes of an index that are read.
const INDEX_LIMIT: u64 = 64 << 20;
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Open files and where each tensor lies in them.
#[derive(Debug)]
pub(super) struct Shards {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Opens the files of `dir` and checks every header; reads no tensor.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let single = dir.join(SINGLE);
        if let Some(file) = open(&single)? {
            let tensors = header::read(&file, &single)?;
            let tensors = tensors.into_iter().map(|(name, info)| (name, (0, info))).collect();
            return Ok(Self { files: vec![(single, file)], tensors });
        }
        let path = dir.join(INDEX);
        match json::read_value(&path, INDEX_LIMIT)? {
            Some(value) => Self::open_index(dir, &path, json::typed(&value, &path)?),
            None => Err(pickle_in(dir).unwrap_or_else(|| Error::WeightsAbsent { dir: dir.into() })),
        }
    }

    fn open_index(dir: &Path, path: &Path, index: Index) -> Result<Self> {
        let mut names: Vec<&String> = index.weight_map.values().collect();
        names.sort();
        names.dedup();
        let (mut files, mut headers) = (vec![], BTreeMap::new());
        for name in names {
            if !is_plain(name) {
                return Err(Error::PathEscapes { path: path.into(), file: name.clone() });
            }
            let shard = dir.join(name);
            let Some(file) = open(&shard)? else {
                return Err(Error::ShardAbsent { path: path.into(), file: name.clone() });
            };
            headers.insert(name.clone(), (files.len(), header::read(&file, &shard)?));
            files.push((shard, file));
        }
        let mut tensors = BTreeMap::new();
        for (tensor, file) in index.weight_map {
            let found =
                headers.get_mut(&file).and_then(|(i, header)| Some((*i, header.remove(&tensor)?)));
            let Some(found) = found else {
                return Err(Error::IndexMismatch { path: path.into(), file, tensor });
            };
            tensors.insert(tensor, found);
        }
        Ok(Self { files, tensors })
    }

    /// All tensors, sorted by name.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, (_, info))| (name.as_str(), info))
    }

    /// The file that holds `tensor`, its path, and where it lies there.
    pub(super) fn find(&self, tensor: &str) -> Option<(&Path, &File, &TensorInfo)> {
        let (file, info) = self.tensors.get(tensor)?;
        let (path, file) = self.files.get(*file)?;
        Some((path, file, info))
    }

    /// The files, for whoever counts their bytes.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }
}

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { action: "open", path: path.into(), source }),
    }
}

/// Whether `name` names a file of the directory itself, on every platform.
fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.contains(['/', '\\', ':', '\0'])
        && !name.starts_with('.')
}

/// The refusal of a directory that holds pickles instead of safetensors.
fn pickle_in(dir: &Path) -> Option<Error> {
    let entries = std::fs::read_dir(dir).ok()?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let pickle = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        matches!(extension, Some("bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle"))
    };
    paths.into_iter().find(pickle).map(|path| Error::Pickle { path })
}
