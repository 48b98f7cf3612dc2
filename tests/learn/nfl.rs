//! What learned scales win back on a real text that was not learned from.
//!
//! Groups of 64 learn here. For groups of 128 two passes over the whole calibration text are what it takes, many minutes
//! on two cores: `fixtures/learned` has the scales that such a run wrote (and, in its header, the command). They are
//! evaluated here, and a short run must set out where the long one went.

use crate::directories::{Run, llama};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::checkpoint::{self, ConvertOptions};
use flute_burn::eval::{self, EvalOptions};
use flute_burn::learn::text::{Objective, TextOptions};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::text::Tokenizer;
use flute_cube::{Bits, Dtype, Format, Group};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Scales by the name of their tensor.
type Scales = BTreeMap<String, Vec<f32>>;

/// The perplexity of the model in `dir` over eval.txt.
fn perplexity(dir: &Path) -> Result<f64> {
    let load = LoadOptions {
        dtype: Some(DType::F32),
        dequantize: true,
        ..LoadOptions::new(Device::flex())
    };
    let text = std::fs::read_to_string(llama().join("eval.txt"))?;
    let ids = Tokenizer::open(llama())?.encode(&text, false)?;
    Ok(eval::perplexity(&Model::load(dir, &load)?, &ids, &EvalOptions::default(), &mut |_| {})?
        .value)
}

/// The share of the gap between Normal Float and the dense model that `dir` closes; both ends are the reference's, which
/// tests/model meets.
fn closed(dir: &Path, format: Format) -> Result<f64> {
    let reference = std::fs::read_to_string(llama().join("reference.json"))?;
    let reference: serde_json::Value = serde_json::from_str(&reference)?;
    let of = |row: &str| reference["ppl"][row].as_f64().context("the row");
    let (bits, group) = (format.bits, format.group.len(usize::MAX));
    let (dense, before) = (of("dense")?, of(&format!("nf{bits}_g{group}"))?);
    let after = perplexity(dir)?;
    let share = (before - after) / (before - dense);
    println!(
        "{format}: {before:.4} to {after:.4}, dense {dense:.4}: {:.1} % won back",
        100.0 * share
    );
    Ok(share)
}

/// [`closed`] by what `run` writes to `target`.
fn learned(run: &Run, target: &Path) -> Result<f64> {
    let start = Instant::now();
    let learned = run.learn(target)?.context("it was not interrupted")?;
    let (seconds, steps) = (start.elapsed().as_secs_f64(), learned.steps);
    println!("{}: {steps} steps in {seconds:.0} s, loss {:?}", run.format, learned.loss);
    closed(target, run.format)
}

fn run(bits: Bits, group: usize, text: TextOptions) -> Result<Run> {
    let format = Format { bits, group: Group::new(group)? };
    Ok(Run { format, text: TextOptions { seq_len: 512, ..text }, until: usize::MAX })
}

fn scales(path: &Path) -> Result<Scales> {
    let bytes = std::fs::read(path)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let scales = tensors.iter().filter(|(name, _)| name.ends_with(".scales"));
    Ok(scales.map(|(name, view)| (name.to_owned(), Dtype::F16.decode(view.data()))).collect())
}

/// Writes `scales` into the one file of weights in `dir`, whose tensors are of the same shape.
fn replace(dir: &Path, scales: &Scales) -> Result<()> {
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path)?;
    let (header, metadata) = SafeTensors::read_metadata(&bytes)?;
    for (name, values) in scales {
        let info = metadata.info(name).context("a tensor of that name")?;
        let (start, end) = info.data_offsets;
        bytes[8 + header..][start..end].copy_from_slice(&Dtype::F16.encode(values));
    }
    Ok(std::fs::write(path, bytes)?)
}

/// How alike two changes of `before` are: the cosine between the logarithms of the factors that scales took.
fn alike(before: &Scales, one: &Scales, other: &Scales) -> Result<f64> {
    let (mut dot, mut squares) = (0.0, [0.0; 2]);
    for (name, before) in before {
        let (one, other) = (&one[name], &other[name]);
        ensure!(before.len() == one.len() && before.len() == other.len(), "{name}");
        for ((before, one), other) in before.iter().zip(one).zip(other) {
            let [one, other] = [one, other].map(|after| f64::from(after / before).ln());
            dot += one * other;
            squares = [squares[0] + one * one, squares[1] + other * other];
        }
    }
    Ok(dot / (squares[0] * squares[1]).sqrt())
}

/// `FLUTE_LEARN` asks for figures instead: `bits group objective samples seq_len rate epochs`, separated by commas.
#[test]
fn at_three_bits_learned_scales_win_back_two_fifths_of_what_rounding_lost() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let wanted = std::env::var("FLUTE_LEARN").unwrap_or_default();
    for (at, figure) in wanted.split_terminator(',').enumerate() {
        let words = figure.split(' ').collect::<Vec<_>>().try_into().ok();
        let [bits, group, objective, samples, seq_len, rate, epochs] =
            words.context("seven words")?;
        let format = Format::new(bits.parse()?, group.parse()?)?;
        let objective = if objective == "text" { Objective::Text } else { Objective::Dense };
        let (samples, seq_len) = (samples.parse()?, seq_len.parse()?);
        let (rate, epochs) = (rate.parse()?, epochs.parse()?);
        let text =
            TextOptions { objective, samples, seq_len, rate, epochs, ..TextOptions::default() };
        learned(&Run { format, text, until: usize::MAX }, &scratch.path().join(at.to_string()))?;
    }
    if wanted.is_empty() {
        // A little less than half of the text.
        let text = TextOptions { samples: 200, rate: 1e-2, ..TextOptions::default() };
        let share = learned(&run(Bits::Three, 64, text)?, &scratch.path().join("learned"))?;
        ensure!(share >= 0.4, "{share}");
    }
    Ok(())
}

#[test]
fn at_four_bits_learned_scales_win_back_a_quarter() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let text = TextOptions { samples: 100, ..TextOptions::default() };
    let share = learned(&run(Bits::Four, 64, text)?, &scratch.path().join("learned"))?;
    ensure!(share >= 0.25, "{share}");
    Ok(())
}

#[test]
fn in_groups_of_128_two_passes_over_the_text_won_back_two_fifths() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (plain, short) = (scratch.path().join("plain"), scratch.path().join("short"));
    let text = TextOptions { samples: 64, rate: 1e-2, ..TextOptions::default() };
    let run = run(Bits::Three, 128, text)?;
    let mut quiet = |_: checkpoint::Progress<'_>| {};
    checkpoint::convert(ConvertOptions::new(llama(), &plain, run.method(), &mut quiet))?;
    let before = scales(&plain.join("model.safetensors"))?;

    let long = scales(&llama().join("../learned/nf3-g128-scales.safetensors"))?;
    ensure!(before.keys().eq(long.keys()), "the layers of this model");
    replace(&plain, &long)?;
    let share = closed(&plain, run.format)?;
    ensure!(share >= 0.4, "{share}");

    let share = learned(&run, &short)?;
    let short = scales(&short.join("model.safetensors"))?;
    let alike = alike(&before, &short, &long)?;
    println!("the changes of the short run and of the long one have a cosine of {alike:.3}");
    ensure!(share >= 0.2 && alike >= 0.4, "{share}, {alike}");
    Ok(())
}
