//! What learned scales win back on a real text that was not learned from.

use crate::directories::{Run, llama};
use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device};
use flute_burn::eval::{self, EvalOptions};
use flute_burn::learn::text::{Objective, TextOptions};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::text::Tokenizer;
use flute_cube::{Bits, Format, Group};
use std::path::Path;
use std::time::Instant;

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

/// The share of the gap between Normal Float and the dense model that learning closes; both ends are the reference's,
/// which tests/model meets.
fn recovered(run: &Run) -> Result<f64> {
    let reference = std::fs::read_to_string(llama().join("reference.json"))?;
    let reference: serde_json::Value = serde_json::from_str(&reference)?;
    let of = |row: &str| reference["ppl"][row].as_f64().context("the row");
    let (bits, group) = (run.format.bits, run.format.group.len(usize::MAX));
    let (dense, before) = (of("dense")?, of(&format!("nf{bits}_g{group}"))?);
    let scratch = tempfile::tempdir()?;
    let target = scratch.path().join("learned");
    let start = Instant::now();
    let learned = run.learn(&target)?.context("it was not interrupted")?;
    let (seconds, steps) = (start.elapsed().as_secs_f64(), learned.steps);
    let after = perplexity(&target)?;
    let share = (before - after) / (before - dense);
    println!(
        "{}: {before:.4} to {after:.4}, dense {dense:.4}: {:.1} % in {seconds:.0} s, {steps} steps, loss {:?}",
        run.format,
        100.0 * share,
        learned.loss
    );
    Ok(share)
}

/// `FLUTE_LEARN` asks for figures instead: `bits group objective samples seq_len rate`, separated by commas.
#[test]
fn learned_scales_of_three_bits_win_back_two_fifths_of_what_rounding_lost() -> Result<()> {
    // A little less than half of the text.
    let text = TextOptions { samples: 200, seq_len: 512, rate: 1e-2, ..TextOptions::default() };
    let format = Format { bits: Bits::Three, group: Group::new(64)? };
    let run = Run { format, text, until: usize::MAX };
    let wanted = std::env::var("FLUTE_LEARN").unwrap_or_default();
    for figure in wanted.split_terminator(',') {
        let [bits, group, objective, samples, seq_len, rate] =
            figure.split(' ').collect::<Vec<_>>().try_into().ok().context("six words")?;
        let format = Format::new(bits.parse()?, group.parse()?)?;
        let objective = if objective == "text" { Objective::Text } else { Objective::Dense };
        let (samples, seq_len, rate) = (samples.parse()?, seq_len.parse()?, rate.parse()?);
        let text = TextOptions { objective, samples, seq_len, rate, ..text };
        recovered(&Run { format, text, ..run })?;
    }
    if wanted.is_empty() {
        let share = recovered(&run)?;
        ensure!(share >= 0.4, "{share}");
    }
    Ok(())
}
