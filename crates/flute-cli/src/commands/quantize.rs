//! `flute quantize`: a dense model directory into one of ours, whole or not at all.

use super::learn;
use crate::args::{QuantizeArgs, TableArg};
use crate::{output, progress};
use anyhow::Context;
use flute_burn::checkpoint::{
    Assignment, BudgetOptions, ConvertOptions, Progress, Summary, assign, convert,
};
use flute_burn::device;
use flute_burn::error::Error;
use flute_burn::model::LoadOptions;
use flute_burn::quantize::{Higgs, Method};
use flute_burn::sensitivity::{self, SensitivityOptions};
use flute_burn::text::Tokenizer;
use flute_cube::{Bits, Group, Table};
use indicatif::DecimalBytes;

pub(crate) fn run(args: &QuantizeArgs, quiet: bool) -> anyhow::Result<()> {
    let assignment = args.budget_bits.map(|bits| assignment(args, bits, quiet)).transpose()?;
    let method = method(args, args.bits)?;
    let heading = match (&assignment, args.table) {
        (Some(found), _) => dynamic_heading(found),
        (None, TableArg::Named(kind)) => format!("{} {kind}", method.format()),
        (None, TableArg::Higgs) => format!("{} higgs, p = {}", method.format(), args.dimension),
    };
    let bar = progress::bytes(quiet);
    let mut show = |progress: Progress<'_>| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
        bar.set_message(progress.tensor.to_owned());
        if progress.bytes == progress.bytes_total {
            bar.finish_and_clear();
        }
    };
    let mut options = ConvertOptions::new(&args.model, &args.output, method, &mut show);
    options.skip.clone_from(&args.skip);
    options.scale_dtype = args.scale_dtype.into();
    options.head = args.lm_head.map(|bits| self::method(args, bits)).transpose()?;
    options.embedding = args.embeddings.map(|bits| self::method(args, bits)).transpose()?;
    options.writer.overwrite = args.force;
    if let Some(assignment) = &assignment {
        assignment.apply(&mut options);
    }
    if !args.learn.learn_scales {
        let summary = convert(options)?;
        return print(args, &heading, &summary);
    }
    let learned = learn::run(args, options, quiet)?;
    print(args, &format!("{heading}, learned"), &learned.summary)?;
    let ([first, last], speed) = (learned.loss, learned.tokens_per_second);
    let steps = learned.steps;
    let resumed = match learned.resumed {
        0 => String::new(),
        done => format!(" ({done} of them before this run)"),
    };
    output::line(format_args!(
        "learned in {steps} steps{resumed} at {speed:.0} tokens/s: loss {first:.4} -> {last:.4}"
    ))?;
    Ok(())
}

/// Measures what layers matter, and assigns `bits` a weight to them.
fn assignment(args: &QuantizeArgs, bits: f64, quiet: bool) -> anyhow::Result<Assignment> {
    let mut options = BudgetOptions::new(bits, wide_group(args), args.hadamard_size)?;
    options.scale_dtype = args.scale_dtype.into();
    options.skip.clone_from(&args.skip);
    options.candidates = options.candidates.into_iter().map(|higgs| seeded(args, higgs)).collect();
    // What can be refused is refused before minutes of measuring.
    options.check(&args.model)?;
    if args.output.exists() && !args.force {
        return Err(Error::TargetExists { path: args.output.clone() }.into());
    }
    let text = match &args.text {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Some(Tokenizer::open(&args.model)?.encode(&text, false)?)
        }
    };
    let load = LoadOptions::new(device::parse(&args.device)?);
    let bar = progress::steps(quiet, "layers").with_message("what they matter");
    let measured = sensitivity::measure(
        &args.model,
        &load,
        text.as_deref(),
        &SensitivityOptions::default(),
        &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    )?;
    bar.finish_and_clear();
    Ok(assign(&args.model, &measured, &options)?)
}

fn dynamic_heading(found: &Assignment) -> String {
    let counts = found.counts().into_iter();
    let counts: Vec<String> = counts.map(|c| format!("{} of {}", c.layers, c.choice)).collect();
    let (bits, loss) = (found.bits_per_weight, found.loss);
    format!(
        "higgs, {bits:.3} bits a weight ({}), {loss:.4} nats a token to be lost",
        counts.join("; ")
    )
}

fn method(args: &QuantizeArgs, bits: Bits) -> anyhow::Result<Method> {
    Ok(match args.table {
        TableArg::Named(kind) if args.budget_bits.is_none() => Method::Absmax {
            table: Table::named(kind, bits)?,
            group: args.group_size.unwrap_or(Group::Size(64)),
        },
        // Under a budget an assignment replaces it.
        _ => {
            let (group, size) = (wide_group(args), args.hadamard_size);
            Method::Higgs(seeded(args, Higgs::new(bits, args.dimension.into(), group, size)?))
        }
    })
}

/// `higgs` with the random rotation that was asked for, if one was.
fn seeded(args: &QuantizeArgs, higgs: Higgs) -> Higgs {
    match args.hadamard_seed {
        Some(seed) => higgs.with_seed(seed),
        None => higgs,
    }
}

/// The group that was typed, or the widest that divides the Hadamard block.
fn wide_group(args: &QuantizeArgs) -> Group {
    let size = args.hadamard_size;
    let widest = if size < 256 { Group::new(size) } else { Ok(Group::Size(256)) };
    // `Higgs::new` refuses blocks that are less than every group.
    args.group_size.or(widest.ok()).unwrap_or(Group::Size(32))
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
