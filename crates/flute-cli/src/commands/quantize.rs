//! `flute quantize`: a dense model directory into one of ours, whole or not at all.

use crate::args::{QuantizeArgs, TableArg};
use crate::{output, progress};
use flute_burn::checkpoint::{ConvertOptions, Progress, Summary, convert};
use flute_burn::quantize::{Higgs, Method};
use flute_cube::{Group, Table};
use indicatif::DecimalBytes;

pub(crate) fn run(args: &QuantizeArgs, quiet: bool) -> anyhow::Result<()> {
    let method = method(args)?;
    let heading = match args.table {
        TableArg::Named(kind) => format!("{} {kind}", method.format()),
        TableArg::Higgs => format!("{} higgs, p = {}", method.format(), args.dimension),
    };
    let bar = progress::bytes(quiet);
    let mut show = |progress: Progress<'_>| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(progress.tensor.to_owned());
    };
    let mut options = ConvertOptions::new(&args.model, &args.output, method, &mut show);
    options.skip.clone_from(&args.skip);
    options.scale_dtype = args.scale_dtype.into();
    options.writer.overwrite = args.force;
    let summary = convert(options)?;
    bar.finish_and_clear();
    print(args, &heading, &summary)
}

fn method(args: &QuantizeArgs) -> anyhow::Result<Method> {
    Ok(match args.table {
        TableArg::Named(kind) => Method::Absmax {
            table: Table::named(kind, args.bits)?,
            group: args.group_size.unwrap_or(Group::Size(64)),
        },
        TableArg::Higgs => {
            let size = args.hadamard_size;
            let widest = if size < 256 { Group::new(size) } else { Ok(Group::Size(256)) };
            // `Higgs::new` refuses blocks that are less than every group.
            let group = args.group_size.or(widest.ok()).unwrap_or(Group::Size(32));
            Method::Higgs(Higgs::new(args.bits, args.dimension.into(), group, size)?)
        }
    })
}

fn print(args: &QuantizeArgs, heading: &str, summary: &Summary) -> anyhow::Result<()> {
    let Summary { quantized, copied, bytes_before, bytes_after, bits_per_weight, classes, .. } =
        summary;
    let (before, after) = (DecimalBytes(*bytes_before), DecimalBytes(*bytes_after));
    let ratio = *bytes_before as f64 / (*bytes_after).max(1) as f64;
    output::line(format_args!("{heading}: {quantized} layers, {copied} tensors kept"))?;
    output::line(format_args!(
        "{before} -> {after} ({ratio:.2}x), {bits_per_weight:.2} bits a quantized weight"
    ))?;
    for class in classes {
        let (name, relative) = (&class.class, class.relative_error());
        let (layers, largest) = (class.layers, class.max_error);
        output::line(format_args!(
            "  {name:<12} {layers:>4} layers  relative error {relative:.2e}  largest {largest:.2e}"
        ))?;
    }
    let target = args.output.display();
    output::line(format_args!("written to {target}"))?;
    output::line(format_args!("next: flute generate {target} -p \"Once upon a time\""))?;
    Ok(())
}
