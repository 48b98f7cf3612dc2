//! `flute inspect`: what a model directory holds, and with `--verify` whether all of it is sound.

use crate::args::InspectArgs;
use crate::output;
use flute_burn::checkpoint::{InspectedLinear, inspect};
use indicatif::DecimalBytes;
use std::collections::BTreeMap;

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let found = inspect(&args.model, args.verify)?;
    if args.json.wanted {
        return Ok(output::json(&found)?);
    }
    let (parameters, bits) = (found.parameters, found.bits_per_parameter);
    output::line(format_args!("{}, {parameters} parameters", found.architecture))?;
    output::line(format_args!(
        "{} tensors in {} file(s), {}, {bits:.2} bits a parameter",
        found.tensors.len(),
        found.files,
        DecimalBytes(found.bytes),
    ))?;
    let mut kinds: BTreeMap<String, Vec<&InspectedLinear>> = BTreeMap::new();
    for linear in &found.linears {
        let InspectedLinear { bits, group, table, scales, .. } = linear;
        let kind = format!("W{bits}G{group} {table}, {scales} scales");
        kinds.entry(kind).or_default().push(linear);
    }
    for (kind, linears) in &kinds {
        let bytes = linears.iter().map(|linear| linear.bytes).sum();
        output::line(format_args!("{kind}: {} layers, {}", linears.len(), DecimalBytes(bytes)))?;
    }
    if kinds.is_empty() {
        output::line("no quantized layer")?;
    }
    if found.verified {
        output::line("verified: every tensor was read and is sound")?;
    }
    Ok(())
}
