//! `flute quantize --learn-scales`: scales that are trained before they are written.

use crate::args::QuantizeArgs;
use crate::progress;
use anyhow::Context;
use flute_burn::checkpoint::ConvertOptions;
use flute_burn::device;
use flute_burn::learn::directory::{DirectoryOptions, Learned, quantize_and_learn};
use flute_burn::learn::text::{Progress, TextOptions};
use flute_burn::text::Tokenizer;
use std::ops::ControlFlow;

/// Quantizes as `conversion` says and trains on the text of `args`.
pub(crate) fn run(
    args: &QuantizeArgs,
    conversion: ConvertOptions<'_>,
    quiet: bool,
) -> anyhow::Result<Learned> {
    let path = args.text.as_deref().context("--learn-scales needs a --text")?;
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let tokenizer = Tokenizer::open(&args.model)?;
    let ids = tokenizer.encode(&text, false)?;
    let learn = &args.learn;
    let text = TextOptions {
        what: learn.what(),
        objective: learn.objective.into(),
        samples: learn.samples,
        seq_len: learn.seq_len,
        rate: learn.lr,
        epochs: learn.epochs,
        begin: tokenizer.encode("", true)?.first().copied(),
    };
    let bar = progress::steps(quiet, "steps");
    let mut watch = |step: Progress| {
        // Steps of an interrupted run would count as done in no time.
        if bar.length() == Some(0) {
            bar.set_position(step.step as u64 - 1);
            bar.reset_eta();
        }
        bar.set_length(step.steps as u64);
        bar.set_position(step.step as u64);
        bar.set_message(format!("loss {:.4}", step.loss));
        ControlFlow::Continue(())
    };
    let device = device::parse(&args.device)?;
    let options = DirectoryOptions {
        convert: conversion,
        device,
        dtype: None,
        ids: &ids,
        text,
        watch: &mut watch,
    };
    let learned = quantize_and_learn(options)?;
    bar.finish_and_clear();
    learned.context("nothing ends a run here, and yet it ended")
}
