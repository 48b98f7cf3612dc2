//! Writes a model directory whole or not at all.
//!
//! Everything goes to a hidden directory beside the target, is flushed to the disk, and takes the target's name in
//! one rename at the end; a process that dies before leaves the target as it was (and a `.flute-*` directory to
//! delete). The tensors are planned before any is written, so headers come first and tensors may come in any order,
//! in pieces, one at a time in memory. Two runs of one plan write the same bytes. Permissions follow the umask
//! (`safetensors::serialize_to_file` leaves 0600 and does not flush, so it is not used).

use super::config::ModelConfig;
use super::import::{flute_legacy, higgs};
use super::positioned::write_all_at;
use crate::error::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
}

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterOptions {
    /// Replace a directory that flute wrote.
    pub overwrite: bool,
    /// Bytes of tensors in one file; a larger tensor gets a file of its own.
    pub shard_limit: u64,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { overwrite: false, shard_limit: 5_000_000_000 }
    }
}

/// A directory being written. Dropped before [`Writer::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    temp: TempDir,
    target: PathBuf,
    overwrite: bool,
    shards: Vec<(PathBuf, File)>,
    slots: BTreeMap<String, Slot>,
}

/// Where a tensor goes and how much of it has arrived.
#[derive(Debug)]
struct Slot {
    shard: usize,
    offset: u64,
    bytes: u64,
    written: u64,
}

impl Writer {
    /// Plans `tensors` and creates the files beside `target`.
    ///
    /// # Errors
    /// [`Error::TargetExists`], [`Error::TargetForeign`], [`Error::DuplicateTensor`], [`Error::ShapeOverflow`],
    /// [`Error::Io`].
    pub fn create(target: &Path, tensors: Vec<TensorSpec>, options: WriterOptions) -> Result<Self> {
        let target = std::path::absolute(target).map_err(Error::io("resolve", target))?;
        check_target(&target, options.overwrite)?;
        let plan = plan(tensors, options.shard_limit, &target)?;
        let parent = parent_of(&target);
        let temp = temp_dir(&parent).map_err(Error::io("create a directory in", &parent))?;
        let (mut shards, mut slots) = (vec![], BTreeMap::new());
        let count = plan.len();
        for (index, specs) in plan.into_iter().enumerate() {
            let path = temp.path().join(shard_name(index, count));
            let file = File::create_new(&path).map_err(Error::io("create", &path))?;
            let start = write_header(&file, &path, &specs)?;
            for (spec, begin, bytes) in specs {
                let slot = Slot { shard: index, offset: start + begin, bytes, written: 0 };
                slots.insert(spec.name, slot);
            }
            shards.push((path, file));
        }
        Ok(Self { temp, target, overwrite: options.overwrite, shards, slots })
    }

    /// Appends `bytes` to the tensor `name`.
    ///
    /// # Errors
    /// [`Error::Unplanned`] beyond what was planned; [`Error::Io`].
    pub fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let unplanned = |planned, found| Error::Unplanned { tensor: name.into(), planned, found };
        let slot = self.slots.get_mut(name).ok_or_else(|| unplanned(0, bytes.len() as u64))?;
        let after = slot.written + bytes.len() as u64;
        if after > slot.bytes {
            return Err(unplanned(slot.bytes, after));
        }
        let (path, file) = &self.shards[slot.shard];
        write_all_at(file, bytes, slot.offset + slot.written).map_err(Error::io("write", path))?;
        slot.written = after;
        Ok(())
    }

    /// Writes a file beside the tensors.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(&self, name: &str, contents: &[u8]) -> Result<()> {
        self.copy(name, &mut io::Cursor::new(contents))
    }

    /// Copies the file `name` of `source` byte for byte, if it is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn copy_from(&self, source: &Path, name: &str) -> Result<bool> {
        let path = source.join(name);
        match File::open(&path) {
            Ok(mut file) => self.copy(name, &mut file).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(Error::Io { action: "open", path, source }),
        }
    }

    /// Flushes everything to the disk and gives the directory its name; returns the bytes of the weight files.
    ///
    /// # Errors
    /// [`Error::Unplanned`] if a tensor is not complete; [`Error::TargetExists`] if the target appeared meanwhile;
    /// [`Error::Io`].
    pub fn finish(self) -> Result<u64> {
        if let Some((name, slot)) = self.slots.iter().find(|(_, slot)| slot.written < slot.bytes) {
            let (tensor, planned, found) = (name.clone(), slot.bytes, slot.written);
            return Err(Error::Unplanned { tensor, planned, found });
        }
        if self.shards.len() > 1 {
            self.file("model.safetensors.index.json", &self.index())?;
        }
        let mut bytes = 0;
        for (path, file) in &self.shards {
            file.sync_all().map_err(Error::io("flush", path))?;
            bytes += file.metadata().map_err(Error::io("examine", path))?.len();
        }
        drop(self.shards);
        sync_dir(self.temp.path())?;
        // It may have appeared since `create`.
        check_target(&self.target, self.overwrite)?;
        move_into_place(self.temp, &self.target)?;
        sync_dir(&parent_of(&self.target))?;
        Ok(bytes)
    }

    fn index(&self) -> Vec<u8> {
        let total: u64 = self.slots.values().map(|slot| slot.bytes).sum();
        let count = self.shards.len();
        let file = |(name, slot): (&String, &Slot)| (name.clone(), shard_name(slot.shard, count));
        let map: BTreeMap<String, String> = self.slots.iter().map(file).collect();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        format!("{index:#}\n").into_bytes()
    }

    fn copy(&self, name: &str, contents: &mut dyn io::Read) -> Result<()> {
        let path = self.temp.path().join(name);
        let mut write = || {
            let mut file = File::create_new(&path)?;
            io::copy(contents, &mut file)?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &path))
    }
}

/// A tensor, its first byte in the data of its shard, and its bytes.
type Placed = (TensorSpec, u64, u64);

/// Splits tensors into shards in the order of the layers; within a shard, wide types come first (what safetensors
/// does, so that every tensor is aligned), then names.
fn plan(mut tensors: Vec<TensorSpec>, limit: u64, target: &Path) -> Result<Vec<Vec<Placed>>> {
    tensors.sort_by_cached_key(|spec| natural_key(&spec.name));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let (path, tensor) = (target.into(), pair[0].name.clone());
        return Err(Error::DuplicateTensor { path, tensor });
    }
    let mut shards: Vec<Vec<Placed>> = vec![vec![]];
    let mut used = 0u64;
    for spec in tensors {
        let bytes = byte_len(&spec, target)?;
        if used > 0 && used.saturating_add(bytes) > limit {
            shards.push(vec![]);
            used = 0;
        }
        used += bytes;
        if let Some(shard) = shards.last_mut() {
            shard.push((spec, 0, bytes));
        }
    }
    for shard in &mut shards {
        shard.sort_by(|(a, ..), (b, ..)| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut at = 0;
        for (_, begin, bytes) in shard {
            *begin = at;
            at += *bytes;
        }
    }
    Ok(shards)
}

/// Sorts layer 2 before layer 10.
pub(super) fn natural_key(name: &str) -> Vec<(u64, String)> {
    let part = |part: &str| match part.parse() {
        Ok(number) => (number, String::new()),
        Err(_) => (u64::MAX, part.to_owned()),
    };
    name.split('.').map(part).collect()
}

fn byte_len(spec: &TensorSpec, target: &Path) -> Result<u64> {
    let size = (spec.dtype.bitsize() / 8) as u64;
    let bytes = spec.shape.iter().try_fold(size, |bytes, dim| bytes.checked_mul(*dim as u64));
    bytes.filter(|bytes| *bytes < 1 << 62).ok_or_else(|| Error::ShapeOverflow {
        path: target.into(),
        tensor: spec.name.clone(),
        shape: spec.shape.iter().map(|dim| *dim as u64).collect(),
    })
}

fn shard_name(index: usize, count: usize) -> String {
    match count {
        1 => "model.safetensors".into(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
    }
}

/// Writes length and JSON; returns where the data begins.
fn write_header(file: &File, path: &Path, specs: &[Placed]) -> Result<u64> {
    let entry = |(spec, begin, bytes): &Placed| {
        let data_offsets = (*begin as usize, (*begin + *bytes) as usize);
        let info = TensorInfo { dtype: spec.dtype, shape: spec.shape.clone(), data_offsets };
        (spec.name.clone(), info)
    };
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let invalid = |e: safetensors::SafeTensorError| io::Error::new(io::ErrorKind::InvalidInput, e);
    let metadata = Metadata::new(Some(about), specs.iter().map(entry).collect())
        .map_err(|e| Error::io("plan", path)(invalid(e)))?;
    let json = serde_json::to_string(&metadata).map_err(|e| Error::io("plan", path)(e.into()))?;
    // Spaces up to a multiple of 8 keep every tensor aligned in the file.
    let len = json.len().next_multiple_of(8);
    let mut header = (len as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    header.resize(8 + len, b' ');
    let mut file = file;
    file.write_all(&header).map_err(Error::io("write", path))?;
    Ok(header.len() as u64)
}

fn check_target(target: &Path, overwrite: bool) -> Result<()> {
    match fs::symlink_metadata(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { action: "examine", path: target.into(), source }),
        Ok(_) if !overwrite => Err(Error::TargetExists { path: target.into() }),
        // A home directory typed by mistake must not be replaced.
        Ok(meta) => match ModelConfig::read(target) {
            Ok((config, _)) if meta.is_dir() && config.quantization.is_some() => Ok(()),
            Ok(_) if target.join(flute_legacy::CONFIG).is_file() => Ok(()),
            Ok((_, source)) if source["quantization_config"]["quant_method"] == higgs::METHOD => {
                Ok(())
            }
            _ => Err(Error::TargetForeign { path: target.into() }),
        },
    }
}

fn parent_of(target: &Path) -> PathBuf {
    target.parent().unwrap_or(target).to_owned()
}

/// A hidden directory with the permissions that the umask gives (the crate's default is 0700).
fn temp_dir(parent: &Path) -> io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".flute-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(parent)
}

/// Renames `temp` to `target`; a directory that is there is set aside first and put back if that fails.
fn move_into_place(temp: TempDir, target: &Path) -> Result<()> {
    let failed = Error::io("rename the finished directory to", target);
    if !target.exists() {
        fs::rename(temp.path(), target).map_err(failed)?;
        // Its name is gone, so there is nothing left to remove.
        let _ = temp.keep();
        return Ok(());
    }
    let aside = temp_dir(&parent_of(target)).map_err(Error::io("set aside", target))?;
    let old = aside.path().join("replaced");
    fs::rename(target, &old).map_err(Error::io("set aside", target))?;
    if let Err(source) = fs::rename(temp.path(), target) {
        if fs::rename(&old, target).is_err() {
            // Better a stray directory than a lost one.
            let _ = aside.keep();
        }
        return Err(failed(source));
    }
    let _ = temp.keep();
    Ok(())
}

/// Flushes the directory's entries; only Unix opens directories.
fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("flush", dir))?;
    }
    Ok(())
}
