//! A directory is written whole or not at all.

use crate::assert_refused;
use crate::model_dir::ModelDir;
use flute_burn::checkpoint::{
    ConvertOptions, Progress, Reader, TensorSpec, Writer, WriterOptions, convert,
};
use flute_burn::error::{Error, Result};
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Table};
use std::path::Path;

const NF4: fn() -> Method =
    || Method::Absmax { table: Table::nf(Bits::Four), group: Group::Size(64) };

/// Converts with other writer options.
fn convert_with(dir: &ModelDir, target: &Path, writer: WriterOptions) -> Result<()> {
    let progress = &mut |_: Progress<'_>| ();
    let mut options = ConvertOptions::new(dir.path(), target, NF4(), progress);
    options.writer = writer;
    convert(options).map(drop)
}

/// The names beside the model.
fn siblings(dir: &ModelDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path().parent().unwrap()).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn tensors_beyond_the_limit_go_to_shards_with_an_index() {
    let dir = ModelDir::new();
    let (whole, split) = (dir.path().with_file_name("whole"), dir.path().with_file_name("split"));
    convert_with(&dir, &whole, WriterOptions::default()).unwrap();
    convert_with(&dir, &split, WriterOptions { shard_limit: 8000, ..Default::default() }).unwrap();
    let (whole, split) = (Reader::open(whole).unwrap(), Reader::open(split).unwrap());
    let count = split.files().count();
    assert!(count >= 5, "{count} shards");
    for (index, path) in split.files().enumerate() {
        let name = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        assert_eq!(path.file_name().unwrap().to_str(), Some(name.as_str()));
        let bytes = std::fs::read(path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data: usize = tensors.iter().map(|(_, t)| t.data().len()).sum();
        assert!(data <= 8000 || tensors.len() == 1, "{name} holds {data} bytes");
    }
    assert_eq!(whole.tensor_names().collect::<Vec<_>>(), split.tensor_names().collect::<Vec<_>>());
    for name in whole.tensor_names() {
        assert_eq!(whole.raw(name).unwrap(), split.raw(name).unwrap());
    }
}

#[test]
fn other_readers_of_safetensors_read_what_is_written() {
    let dir = ModelDir::quantized(Bits::Four, Group::Size(64));
    let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let reader = dir.open().unwrap();
    assert_eq!(theirs.len(), reader.tensor_names().count());
    for (name, tensor) in theirs.iter() {
        let raw = reader.raw(name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (raw.dtype, raw.shape.as_slice()));
        assert_eq!(tensor.data(), raw.bytes);
        let offset = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert!((offset * 8).is_multiple_of(tensor.dtype().bitsize()), "{name} is not aligned");
    }
}

#[test]
fn an_existing_target_is_refused_unless_overwriting_is_asked_for() {
    let dir = ModelDir::new();
    let target = dir.path().with_file_name("out");
    convert_with(&dir, &target, WriterOptions::default()).unwrap();
    std::fs::write(target.join("mark"), "old").unwrap();
    let error = convert_with(&dir, &target, WriterOptions::default()).unwrap_err();
    assert_refused!(error, Error::TargetExists { .. }, "out exists already");
    assert!(target.join("mark").exists());
    convert_with(&dir, &target, WriterOptions { overwrite: true, ..Default::default() }).unwrap();
    assert!(!target.join("mark").exists());
    assert!(Reader::open(&target).unwrap().config().quantization.is_some());
    assert_eq!(siblings(&dir), ["model", "out"]);
}

#[test]
fn overwriting_replaces_nothing_that_flute_did_not_write() {
    let dir = ModelDir::new();
    let overwrite = WriterOptions { overwrite: true, ..Default::default() };
    let home = dir.path().with_file_name("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(home.join("thesis.tex"), "years").unwrap();
    let error = convert_with(&dir, &home, overwrite).unwrap_err();
    assert_refused!(error, Error::TargetForeign { .. }, "not overwritten");
    let error = convert_with(&dir, &dir.path(), overwrite).unwrap_err();
    assert_refused!(error, Error::TargetForeign { .. }, "model");
    let file = dir.path().with_file_name("file");
    std::fs::write(&file, "x").unwrap();
    let error = convert_with(&dir, &file, overwrite).unwrap_err();
    assert_refused!(error, Error::TargetForeign { .. }, "file");
    assert_eq!(std::fs::read(home.join("thesis.tex")).unwrap(), b"years");
    assert!(dir.open().is_ok());
}

#[test]
fn an_unfinished_directory_leaves_nothing_behind() {
    let dir = ModelDir::new();
    let target = dir.path().with_file_name("out");
    let spec = TensorSpec { name: "w".into(), dtype: safetensors::Dtype::U8, shape: vec![4, 2] };
    let mut writer = Writer::create(&target, vec![spec], WriterOptions::default()).unwrap();
    assert_eq!(siblings(&dir).len(), 2, "a hidden directory while writing");
    writer.append("w", &[1, 2, 3]).unwrap();
    let error = writer.append("w", &[0; 6]).unwrap_err();
    assert_refused!(error, Error::Unplanned { planned: 8, found: 9, .. }, "8", "9");
    let error = writer.append("v", &[0]).unwrap_err();
    assert_refused!(error, Error::Unplanned { planned: 0, found: 1, .. }, "v was planned");
    let error = writer.finish().unwrap_err();
    assert_refused!(error, Error::Unplanned { planned: 8, found: 3, .. }, "8", "3");
    assert_eq!(siblings(&dir), ["model"]);
}

#[test]
fn a_plan_that_cannot_be_is_refused() {
    let target = ModelDir::new().path().with_file_name("out");
    let spec = |shape| TensorSpec { name: "w".into(), dtype: safetensors::Dtype::F32, shape };
    let plan = |specs| Writer::create(&target, specs, WriterOptions::default()).unwrap_err();
    let error = plan(vec![spec(vec![usize::MAX, 2])]);
    assert_refused!(error, Error::ShapeOverflow { .. }, "tensor w");
    let error = plan(vec![spec(vec![1]), spec(vec![2])]);
    assert_refused!(error, Error::DuplicateTensor { .. }, "tensor w appears twice");
}

#[test]
fn a_target_without_parent_directory_is_refused() {
    let dir = ModelDir::new();
    let target = dir.path().with_file_name("absent").join("out");
    let error = convert_with(&dir, &target, WriterOptions::default()).unwrap_err();
    assert_refused!(error, Error::Io { .. }, "cannot create a directory in", "absent");
}

#[cfg(unix)]
#[test]
fn permissions_follow_the_umask() {
    use std::os::unix::fs::PermissionsExt;
    let dir = ModelDir::new();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    // What this process gives to anything it creates; the source's own bits are not copied.
    let (plain_dir, plain_file) = (dir.path().with_file_name("d"), dir.path().with_file_name("f"));
    std::fs::create_dir(&plain_dir).unwrap();
    std::fs::write(&plain_file, "").unwrap();
    dir.write("tokenizer.json", b"{}");
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(dir.path().join("tokenizer.json"), private).unwrap();
    let target = dir.path().with_file_name("out");
    convert_with(&dir, &target, WriterOptions::default()).unwrap();
    assert_eq!(mode(&target), mode(&plain_dir));
    for entry in std::fs::read_dir(&target).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), mode(&plain_file), "{}", path.display());
    }
}
