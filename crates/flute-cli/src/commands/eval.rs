//! `flute eval`: the perplexity of models over a text, in windows that share nothing.

use crate::args::EvalArgs;
use crate::session::Session;
use crate::{output, progress};
use anyhow::Context;
use flute_burn::eval::{EvalOptions, perplexity};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

pub(crate) fn run(args: &EvalArgs, quiet: bool) -> anyhow::Result<()> {
    if let Some(dir) = &args.compare {
        return super::compare::run(args, dir, quiet);
    }
    let text = read(&args.text)?;
    let mut found = vec![];
    for model in &args.models {
        found.extend(evaluate(model, &text, args, quiet)?);
    }
    match found.as_slice() {
        [] => Ok(()),
        [one] => Ok(output::json(one)?),
        many => Ok(output::json(&many)?),
    }
}

/// A text, whole.
pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Evaluates one model; what was found is printed, or returned where JSON is wanted.
fn evaluate(
    model: &Path,
    text: &str,
    args: &EvalArgs,
    quiet: bool,
) -> anyhow::Result<Option<Value>> {
    let session = Session::open(model, &args.runtime, quiet)?;
    let tokens = session.tokenizer.encode(text, false)?;
    let options = EvalOptions { window: args.window, limit: args.limit, ..EvalOptions::default() };
    let bar = progress::steps(quiet, "windows");
    let start = Instant::now();
    let result = perplexity(&session.model, &tokens, &options, &mut |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.windows as u64);
        bar.set_message(format!("perplexity {:.4}", progress.perplexity));
    })?;
    bar.finish_and_clear();
    let (value, predicted, windows) = (result.value, result.predicted, result.windows);
    if args.json.wanted {
        return Ok(Some(json!({
            "model": model,
            "text": args.text,
            "device": flute_burn::device::name(session.model.device()),
            "dtype": session.model.dtype().name(),
            "perplexity": value,
            "mean_nll": result.mean_nll,
            "predicted": predicted,
            "windows": windows,
            "window": args.window,
            "seconds": start.elapsed().as_secs_f64(),
        })));
    }
    let of = if args.models.len() > 1 { format!("{}: ", model.display()) } else { String::new() };
    output::line(format_args!(
        "{of}perplexity {value:.4} over {predicted} tokens in {windows} windows, {}",
        session.place()
    ))?;
    Ok(None)
}
