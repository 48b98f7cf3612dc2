//! Quantizes a model directory in Hugging Face layout into a new one.
//!
//! `cargo run --example quantize -- SOURCE TARGET [BITS [GROUP]]`

use anyhow::{Result, bail};
use flute_burn::checkpoint::{self, ConvertOptions};
use flute_burn::quantize::Method;
use flute_cube::{Bits, Group, Table};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [source, target, rest @ ..] = args.as_slice() else {
        bail!("usage: quantize SOURCE TARGET [BITS [GROUP]]");
    };
    let bits = Bits::new(rest.first().map_or(Ok(4), |bits| bits.parse())?)?;
    let group = Group::new(rest.get(1).map_or(Ok(64), |group| group.parse())?)?;

    let method = Method::Absmax { table: Table::nf(bits), group };
    let mut progress = |done: checkpoint::Progress<'_>| {
        eprint!("\r{:3} of {} tensors", done.tensors, done.tensors_total);
    };
    let options = ConvertOptions::new(source, target, method, &mut progress);
    let summary = checkpoint::convert(options)?;
    eprintln!();
    println!(
        "{} layers at {:.2} bits a weight; {:.1} MB became {:.1} MB",
        summary.quantized,
        summary.bits_per_weight,
        summary.bytes_before as f64 / 1e6,
        summary.bytes_after as f64 / 1e6,
    );
    Ok(())
}
