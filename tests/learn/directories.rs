//! Model directories whose scales are learned: what is written, and what is interrupted.

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{self, ConvertOptions, Reader, StoredWeight};
use flute_burn::error::Error;
use flute_burn::learn::What;
use flute_burn::learn::directory::{DirectoryOptions, Learned, quantize_and_learn, state_file};
use flute_burn::learn::text::TextOptions;
use flute_burn::{quantize::Method, text::Tokenizer};
use flute_cube::{Bits, Format, Group, Quantized, Table, TableKind};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Normal Float of a format, and how it learns.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) format: Format,
    pub(crate) text: TextOptions,
    /// After so many steps it is interrupted.
    pub(crate) until: usize,
}

impl Run {
    /// A few steps on short windows.
    fn short(bits: Bits, what: What) -> Result<Self> {
        let format = Format { bits, group: Group::new(64)? };
        let text = TextOptions { what, samples: 4, seq_len: 48, epochs: 2, ..Default::default() };
        Ok(Self { format, text, until: usize::MAX })
    }

    pub(crate) fn method(&self) -> Method {
        Method::Absmax { table: Table::nf(self.format.bits), group: self.format.group }
    }

    pub(crate) fn learn(&self, target: &Path) -> flute_burn::error::Result<Option<Learned>> {
        let tokenizer = Tokenizer::open(llama())?;
        let path = llama().join("../calibration.txt");
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", path))?;
        let ids = tokenizer.encode(&text, false)?;
        let begin = tokenizer.encode("", true)?.first().copied();
        quantize_and_learn(DirectoryOptions {
            convert: ConvertOptions::new(llama(), target, self.method(), &mut |_| {}),
            device: Device::flex(),
            dtype: Some(DType::F32),
            ids: &ids,
            text: TextOptions { begin, ..self.text },
            watch: &mut |step| match step.step >= self.until {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            },
        })
    }
}

pub(crate) fn llama() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama")
}

/// The stored weight of one layer.
fn weight(dir: &Path) -> Result<Quantized> {
    match Reader::open(dir)?.linear("model.layers.2.mlp.down_proj")?.weight {
        StoredWeight::Quantized(weight) => Ok(weight),
        StoredWeight::Dense { .. } => anyhow::bail!("it is dense"),
    }
}

/// The names of what lies in `dir`, sorted.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name()));
    let mut names = entries
        .map(|name| name.map(|name: std::ffi::OsString| name.to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

#[test]
fn learned_scales_are_written_and_everything_else_is_what_it_was() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (plain, target) = (scratch.path().join("plain"), scratch.path().join("learned"));
    let run = Run::short(Bits::Three, What::Scales)?;
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    checkpoint::convert(ConvertOptions::new(llama(), &plain, run.method(), &mut quiet))?;
    let learned = run.learn(&target)?.context("it was not interrupted")?;
    assert_eq!((learned.steps, learned.resumed), (8, 0));
    assert_eq!(names(scratch.path())?, ["learned", "plain"], "nothing is left beside them");
    assert_eq!(names(&plain)?, names(&target)?);

    let (was, is) = (weight(&plain)?, weight(&target)?);
    assert_eq!((was.codes(), was.table()), (is.codes(), is.table()));
    let changed = was.scales().iter().zip(is.scales()).filter(|(a, b)| a != b).count();
    ensure!(changed * 2 > was.scales().len(), "{changed} of {}", was.scales().len());
    let (old, new) = (Reader::open(&plain)?, Reader::open(&target)?);
    assert_eq!(old.config_source(), new.config_source());
    for name in old.tensor_names().filter(|name| !name.ends_with(".scales")) {
        assert_eq!(old.raw(name)?, new.raw(name)?, "{name}");
    }
    let card = std::fs::read_to_string(target.join("README.md"))?;
    ensure!(card.contains("## Learned") && card.contains("8 steps"), "{card}");
    Ok(())
}

#[test]
fn learned_tables_are_tables_of_single_values_still() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("learned");
    Run::short(Bits::Three, What::ScalesAndTables)?.learn(&target)?;
    let table = weight(&target)?.table().clone();
    assert_eq!((table.kind(), table.dim()), (TableKind::Custom, 1));
    let nf = Table::nf(Bits::Three);
    let far = |(a, b): (&f32, &f32)| a == b || (a - b).abs() > 0.1;
    ensure!(!table.values().iter().zip(nf.values()).any(far), "{:?}", table.values());
    Ok(())
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_scales() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (whole, parts) = (scratch.path().join("whole"), scratch.path().join("parts"));
    let run = Run::short(Bits::Four, What::ScalesAndTables)?;
    run.learn(&whole)?.context("it was not interrupted")?;

    assert!(Run { until: 3, ..run }.learn(&parts)?.is_none());
    assert_eq!(names(scratch.path())?, ["parts.learning", "whole"]);
    let other = TextOptions { rate: 1e-3, ..run.text };
    let error = Run { text: other, ..run }.learn(&parts).unwrap_err();
    ensure!(matches!(error, Error::LearnState { .. }), "{error}");
    ensure!(error.to_string().contains("its rate is"), "{error}");

    assert!(Run { until: 5, ..run }.learn(&parts)?.is_none());
    let learned = run.learn(&parts)?.context("it was not interrupted")?;
    assert_eq!((learned.steps, learned.resumed), (8, 5));
    assert_eq!(names(scratch.path())?, ["parts", "whole"]);
    assert_eq!(weight(&parts)?, weight(&whole)?);
    Ok(())
}

#[test]
fn a_state_that_is_damaged_is_refused_by_name() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("model");
    let run = Run { until: 1, ..Run::short(Bits::Four, What::Scales)? };
    assert!(run.learn(&target)?.is_none());
    let state = state_file(&target);
    let bytes = std::fs::read(&state)?;
    for damaged in [&bytes[..bytes.len() / 2], &bytes[..4], b"{}"] {
        std::fs::write(&state, damaged)?;
        let error = run.learn(&target).unwrap_err();
        ensure!(matches!(error, Error::LearnState { .. }), "{error}");
        ensure!(error.to_string().contains("model.learning"), "{error}");
        assert_eq!(std::fs::read(&state)?, damaged, "it is left for whoever looks at it");
    }
    Ok(())
}

#[test]
fn what_cannot_be_learned_is_refused_before_anything_is_written() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("model");
    let run = Run::short(Bits::Four, What::Scales)?;
    let short = Run { text: TextOptions { samples: 0, ..run.text }, ..run };
    let error = short.learn(&target).unwrap_err();
    ensure!(matches!(error, Error::InvalidOption { .. }), "{error}");
    std::fs::create_dir(&target)?;
    let error = run.learn(&target).unwrap_err();
    ensure!(matches!(error, Error::TargetExists { .. }), "{error}");
    assert_eq!(names(scratch.path())?, ["model"]);
    Ok(())
}
