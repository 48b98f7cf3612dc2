//! What is exported: the bytes of FLUTE, and our format without loss.

use crate::{BITSANDBYTES, LEGACY, golden};
use anyhow::{Result, ensure};
use flute_burn::checkpoint::{self, ExportOptions, Reader, Target, export};
use std::path::Path;

fn write(source: &Path, target: &Path, to: Target) -> Result<checkpoint::Exported> {
    let mut tensors = 0;
    let mut count = |progress: checkpoint::Progress<'_>| tensors = progress.tensors;
    let mut options = ExportOptions::new(source, target, &mut count);
    options.to = to;
    let summary = export(options)?;
    assert_eq!(tensors, summary.modules + summary.copied);
    Ok(summary)
}

/// Every linear layer, bit for bit.
fn same_layers(a: &Path, b: &Path) -> Result<usize> {
    let (a, b) = (Reader::open(a)?, Reader::open(b)?);
    let modules: Vec<&str> = a.quantized_modules().collect();
    assert_eq!(modules, b.quantized_modules().collect::<Vec<_>>());
    for module in &modules {
        ensure!(a.linear(module)? == b.linear(module)?, "{module} differs");
    }
    Ok(modules.len())
}

#[test]
fn the_legacy_writer_writes_the_bytes_of_flute() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (ours, again) = (scratch.path().join("ours"), scratch.path().join("again"));
    let summary = write(&golden(LEGACY), &ours, Target::Flute)?;
    assert_eq!((summary.modules, same_layers(&golden(LEGACY), &ours)?), (42, 42));
    write(&ours, &again, Target::FluteLegacy)?;
    for file in ["model.safetensors", "flute_config.json", "tokenizer.json"] {
        let (found, expected) =
            (std::fs::read(again.join(file))?, std::fs::read(golden(LEGACY).join(file))?);
        ensure!(found == expected, "{file} differs");
    }
    // Whoever loads such a directory is told by flute_config.json alone.
    let config = std::fs::read_to_string(again.join("config.json"))?;
    ensure!(!config.contains("quantization_config"), "{config}");
    Ok(())
}

#[test]
fn bitsandbytes_becomes_ours_without_loss_and_is_written_the_same_twice() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (once, twice) = (scratch.path().join("once"), scratch.path().join("twice"));
    write(&golden(BITSANDBYTES), &once, Target::Flute)?;
    assert_eq!(same_layers(&golden(BITSANDBYTES), &once)?, 42);
    let config = Reader::open(&once)?.config().quantization.clone();
    let scheme = config.as_ref().map(|config| (config.scheme, config.modules.len()));
    println!("{scheme:?}");
    write(&once, &twice, Target::Flute)?;
    for file in ["model.safetensors", "config.json"] {
        ensure!(std::fs::read(once.join(file))? == std::fs::read(twice.join(file))?, "{file}");
    }
    Ok(())
}

#[test]
fn bitsandbytes_becomes_legacy_with_factors_rounded_to_the_model_s_type() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("legacy");
    write(&golden(BITSANDBYTES), &target, Target::FluteLegacy)?;
    let (a, b) = (Reader::open(golden(BITSANDBYTES))?, Reader::open(&target)?);
    for module in a.quantized_modules() {
        let (before, after) = (a.linear(module)?.weight, b.linear(module)?.weight);
        let (
            checkpoint::StoredWeight::Quantized(before),
            checkpoint::StoredWeight::Quantized(after),
        ) = (before, after)
        else {
            anyhow::bail!("{module} is dense");
        };
        ensure!(before.codes() == after.codes(), "{module}: codes");
        let rounded = |values: &[f32]| -> Vec<f32> {
            values.iter().map(|value| half::bf16::from_f32(*value).to_f32()).collect()
        };
        assert_eq!(rounded(before.scales()), after.scales(), "{module}");
        assert_eq!(rounded(before.table().values()), after.table().values(), "{module}");
    }
    Ok(())
}
