//! `flute bench`: how fast a model decodes and reads a prompt here, beside what memory allows.

use crate::args::BenchArgs;
use crate::{output, progress};
use anyhow::Context;
use flute_burn::bench::{BenchOptions, PromptSpeed, Speed, bench};
use flute_burn::checkpoint::{Reader, shapes};
use flute_burn::device;
use flute_burn::model::{LoadOptions, Model, SyntheticOptions};
use flute_cube::Format;
use indicatif::DecimalBytes;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    model: String,
    /// Of the layers of a shape; what a directory holds, `flute inspect` says.
    format: Option<String>,
    /// Bits of its head; none if it is dense.
    lm_head: Option<u8>,
    device: String,
    dtype: &'static str,
    batch: usize,
    context: usize,
    tokens: usize,
    prompt: usize,
    /// None for a shape, which is made and not read.
    load: Option<Load>,
    /// From opening the directory to the first token of a prompt: loading, compiling and reading. None for a shape, or
    /// if no prompt is measured.
    first_token_seconds: Option<f64>,
    speed: Speed,
}

#[derive(Clone, Copy, Serialize)]
struct Load {
    seconds: f64,
    bytes: u64,
    bytes_per_second: f64,
}

pub(crate) fn run(args: &BenchArgs, quiet: bool) -> anyhow::Result<()> {
    let (model, load) = match (&args.shape, &args.model) {
        (Some(shape), _) => (synthetic(shape, args)?, None),
        (None, Some(dir)) => {
            let (model, load) = timed_load(dir, args)?;
            (model, Some(load))
        }
        (None, None) => anyhow::bail!("name a model directory, or a shape with --shape"),
    };
    let BenchArgs { batch, context, tokens, prompt, .. } = *args;
    let options = BenchOptions { batch, context, tokens, prompt, graph: !args.graph.off };
    let bar = progress::steps(quiet, "stages");
    bar.set_length(3);
    let speed = bench(&model, &options, &mut |stage| {
        bar.inc(1);
        bar.set_message(stage.to_owned());
    })?;
    bar.finish_and_clear();
    let directory = args.model.as_ref().map(|dir| dir.display().to_string());
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        model: args.shape.clone().or(directory).unwrap_or_default(),
        format: format(args).filter(|_| args.shape.is_some()).map(|format| format.to_string()),
        lm_head: args.lm_head.filter(|_| args.shape.is_some()).map(|bits| bits.get()),
        device: device::name(model.device()),
        dtype: model.dtype().name(),
        batch,
        context,
        tokens,
        prompt,
        load,
        first_token_seconds: load
            .zip(speed.prompt)
            .map(|(load, prompt)| load.seconds + prompt.first_token_seconds_cold),
        speed,
    };
    if args.json.wanted {
        return Ok(output::json(&report)?);
    }
    print(&report)
}

fn format(args: &BenchArgs) -> Option<Format> {
    (!args.dense).then_some(Format { bits: args.bits, group: args.group_size })
}

fn synthetic(shape: &str, args: &BenchArgs) -> anyhow::Result<Model> {
    let options = SyntheticOptions {
        device: device::parse(&args.device)?,
        dtype: args.dtype.into(),
        format: format(args),
        head: args.lm_head.map(|bits| Format { bits, group: args.group_size }),
    };
    Ok(Model::synthetic(shapes::named(shape)?, &options)?)
}

fn timed_load(dir: &Path, args: &BenchArgs) -> anyhow::Result<(Model, Load)> {
    let bytes = Reader::open(dir)?.tensors().map(|(_, info)| info.bytes).sum();
    let options =
        LoadOptions { dtype: args.dtype.into(), ..LoadOptions::new(device::parse(&args.device)?) };
    let start = Instant::now();
    let model = Model::load(dir, &options)?;
    model.device().sync().context("the device failed while the model was loaded")?;
    let seconds = start.elapsed().as_secs_f64();
    Ok((model, Load { seconds, bytes, bytes_per_second: bytes as f64 / seconds }))
}

fn print(report: &Report) -> anyhow::Result<()> {
    let Report { model, device, dtype, batch, context, speed, .. } = report;
    let format = report.format.as_deref().map(|format| format!(" {format}")).unwrap_or_default();
    output::line(format_args!("{model}{format} on {device} in {dtype}"))?;
    if let Some(Load { seconds, bytes, bytes_per_second }) = report.load {
        let (bytes, rate) = (DecimalBytes(bytes), DecimalBytes(bytes_per_second as u64));
        output::line(format_args!("load     {seconds:.2} s, {bytes}, {rate}/s"))?;
    }
    if let Some(seconds) = report.first_token_seconds {
        let prompt = report.prompt;
        output::line(format_args!(
            "start    {seconds:.2} s from the files to the first token behind a prompt of {prompt}"
        ))?;
    }
    let (rate, step) = (speed.tokens_per_second, milliseconds(speed.step_seconds));
    output::line(format_args!(
        "decode   {rate:.1} tokens/s, {step} a step (batch {batch}, context {context})"
    ))?;
    if let Some(launched) = speed.step_seconds_launched {
        let launched = milliseconds(launched);
        output::line(format_args!(
            "graph    replayed; launched by the host a step takes {launched}"
        ))?;
    }
    let total = DecimalBytes(speed.step_bytes.total() as u64);
    let part = |bytes: usize| DecimalBytes(bytes as u64);
    let (linears, head) = (part(speed.step_bytes.linears), part(speed.step_bytes.head));
    let cache = part(speed.step_bytes.cache);
    output::line(format_args!(
        "reads    {total} a step: linears {linears}, head {head}, cache {cache}"
    ))?;
    if let (Some(read), Some(floor), Some(of)) =
        (speed.read_rate, speed.floor_seconds, speed.of_floor)
    {
        let (read, floor) = (DecimalBytes(read as u64), milliseconds(floor));
        output::line(format_args!("floor    {floor} at {read}/s: {:.1} % of it", of * 100.0))?;
    }
    if let Some(PromptSpeed { prefill_seconds, first_token_seconds, first_token_seconds_cold }) =
        speed.prompt
    {
        let (prompt, prefill) = (report.prompt, milliseconds(prefill_seconds));
        let first = milliseconds(first_token_seconds);
        output::line(format_args!(
            "prompt   {prompt} tokens in {prefill}; first token after {first}, the first time {first_token_seconds_cold:.1} s"
        ))?;
    }
    Ok(())
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.3} ms", seconds * 1e3)
}
