//! `flute completions`: a shell's completion script.

use crate::args::{CompletionsArgs, Flute};
use crate::output;
use clap::CommandFactory;

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    // Into memory first: the generator itself panics when the pipe closes.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Flute::command(), "flute", &mut script);
    Ok(output::piece(&String::from_utf8_lossy(&script))?)
}
