//! The commands, one a file: each calls the library with what was typed and prints the result.

mod bench;
mod chat;
mod compare;
mod completions;
mod convert;
mod doctor;
mod eval;
mod generate;
mod grid;
mod inspect;
mod learn;
mod quantize;
mod tune;

use crate::args::{Command, Flute};

/// Runs what was typed.
pub(crate) fn run(flute: &Flute) -> anyhow::Result<()> {
    match &flute.command {
        Command::Quantize(args) => quantize::run(args, flute.quiet),
        Command::Grid(args) => grid::run(args),
        Command::Convert(args) => convert::run(args, flute.quiet),
        Command::Inspect(args) => inspect::run(args),
        Command::Generate(args) => generate::run(args, flute.quiet),
        Command::Chat(args) => chat::run(args, flute.quiet),
        Command::Eval(args) => eval::run(args, flute.quiet),
        Command::Bench(args) => bench::run(args, flute.quiet),
        Command::Tune(args) => tune::run(args, flute.quiet),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args),
    }
}
