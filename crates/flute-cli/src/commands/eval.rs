//! `flute eval`: the perplexity of a model over a text, in windows that share nothing.

use crate::args::EvalArgs;
use crate::session::Session;
use crate::{output, progress};
use anyhow::Context;
use flute_burn::eval::{EvalOptions, perplexity};
use serde_json::json;
use std::time::Instant;

pub(crate) fn run(args: &EvalArgs, quiet: bool) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.text)
        .with_context(|| format!("cannot read {}", args.text.display()))?;
    let session = Session::open(&args.model, &args.runtime, quiet)?;
    let tokens = session.tokenizer.encode(&text, false)?;
    let options = EvalOptions { window: args.window, ..EvalOptions::default() };
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
        return Ok(output::json(&json!({
            "model": args.model,
            "text": args.text,
            "device": flute_burn::device::name(session.model.device()),
            "dtype": session.model.dtype().name(),
            "perplexity": value,
            "mean_nll": result.mean_nll,
            "predicted": predicted,
            "windows": windows,
            "window": args.window,
            "seconds": start.elapsed().as_secs_f64(),
        }))?);
    }
    output::line(format_args!(
        "perplexity {value:.4} over {predicted} tokens in {windows} windows, {}",
        session.place()
    ))?;
    Ok(())
}
