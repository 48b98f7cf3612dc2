//! `flute eval --compare`: what quantizing a model costs, in every way there is.

use super::eval::read;
use crate::args::EvalArgs;
use crate::report::{Compared, Report};
use crate::{output, progress};
use flute_burn::compare::{CompareOptions, Progress, compare};
use flute_burn::device;
use flute_burn::eval::EvalOptions;
use flute_burn::learn::text::TextOptions;
use flute_burn::model::LoadOptions;
use flute_burn::sensitivity::SensitivityOptions;
use flute_burn::text::Tokenizer;
use std::path::Path;

/// As many windows as the comparison itself reads, where these are few.
fn sensitivity(args: &EvalArgs) -> SensitivityOptions {
    let SensitivityOptions { window, windows, .. } = SensitivityOptions::default();
    SensitivityOptions {
        window: window.min(args.window),
        windows: windows.min(args.limit.unwrap_or(windows)),
        ..SensitivityOptions::default()
    }
}

/// How scales are learned, if they are.
fn learn(args: &EvalArgs, tokenizer: &Tokenizer) -> anyhow::Result<Option<TextOptions>> {
    if args.samples == 0 {
        return Ok(None);
    }
    let begin = tokenizer.encode("", true)?.first().copied();
    let (samples, seq_len) = (args.samples, args.window);
    Ok(Some(TextOptions { samples, seq_len, begin, ..TextOptions::default() }))
}

pub(crate) fn run(args: &EvalArgs, dir: &Path, quiet: bool) -> anyhow::Result<()> {
    let text = read(&args.text)?;
    let calibration = args.calibration.as_deref().map(read).transpose()?;
    let mut load = LoadOptions::new(device::parse(&args.runtime.device)?);
    load.dtype = args.runtime.dtype.into();
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut report = Report {
        text: name(&args.text).unwrap_or_default(),
        window: args.window,
        limit: args.limit,
        calibration: match &args.calibration {
            Some(path) => name(path).unwrap_or_default(),
            None => "random tokens".into(),
        },
        samples: if args.calibration.is_some() { args.samples } else { 0 },
        models: vec![],
    };
    for model in &args.models {
        let tokenizer = Tokenizer::open(model)?;
        let ids = tokenizer.encode(&text, false)?;
        let calibration =
            calibration.as_ref().map(|text| tokenizer.encode(text, false)).transpose()?;
        let options = CompareOptions {
            load: load.clone(),
            eval: EvalOptions { window: args.window, limit: args.limit, ..EvalOptions::default() },
            calibration: calibration.as_deref(),
            sensitivity: sensitivity(args),
            learn: learn(args, &tokenizer)?,
            hadamard_size: args.hadamard_size,
        };
        let bar = progress::steps(quiet, "steps");
        let mut done = 0;
        let ways = compare(model, &ids, &options, &mut |progress| match progress {
            Progress::Sensitivity(layers, total) => {
                bar.set_length(total as u64);
                bar.set_position(layers as u64);
                bar.set_message("what layers matter");
            }
            Progress::Measured(way, total) => {
                done += 1;
                bar.set_length(total as u64);
                bar.set_position(done);
                bar.set_message(format!("{} {}", way.series.name(), way.format));
            }
        })?;
        bar.finish_and_clear();
        let full = model.canonicalize().unwrap_or_else(|_| model.clone());
        let compared = Compared { model: name(&full).unwrap_or_else(|| "model".into()), ways };
        if !args.json.wanted {
            output::line(compared.table())?;
        }
        report.models.push(compared);
    }
    report.write(dir)?;
    if args.json.wanted {
        return Ok(output::json(&report)?);
    }
    output::line(format_args!("written to {}", dir.join("report.html").display()))?;
    Ok(())
}
