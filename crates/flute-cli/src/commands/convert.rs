//! `flute convert`: a quantized model directory into another format, weight for weight.

use crate::args::{ConvertArgs, FormatArg};
use crate::{output, progress};
use flute_burn::checkpoint::{ExportOptions, Progress, export};
use indicatif::DecimalBytes;

pub(crate) fn run(args: &ConvertArgs, quiet: bool) -> anyhow::Result<()> {
    let bar = progress::bytes(quiet);
    let mut show = |progress: Progress<'_>| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(progress.tensor.to_owned());
    };
    let mut options = ExportOptions::new(&args.model, &args.output, &mut show);
    options.to = args.to.into();
    options.writer.overwrite = args.force;
    let done = export(options)?;
    bar.finish_and_clear();
    let (before, after) = (DecimalBytes(done.bytes_before), DecimalBytes(done.bytes_after));
    output::line(format_args!(
        "{} layers, {} tensors kept; {before} -> {after}",
        done.modules, done.copied
    ))?;
    let target = args.output.display();
    let format = match args.to {
        FormatArg::Flute => "flute's format",
        FormatArg::FluteLegacy => "the format of the Python package FLUTE",
        FormatArg::Higgs => "the HIGGS format of transformers",
    };
    output::line(format_args!("written to {target} in {format}"))?;
    Ok(())
}
