//! `flute generate`: one prompt, one continuation.

use crate::args::GenerateArgs;
use crate::session::Session;
use anyhow::Context;
use flute_burn::error::Error;

pub(crate) fn run(args: &GenerateArgs, quiet: bool) -> anyhow::Result<()> {
    let prompt = match args.prompt.as_str() {
        "-" => std::io::read_to_string(std::io::stdin())
            .context("cannot read the prompt from stdin")?,
        text => text.to_owned(),
    };
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt.into());
    }
    let session = Session::open(&args.model, &args.runtime, quiet)?;
    let tokens = session.tokenizer.encode(&prompt, true)?;
    session.reply(&tokens, &args.sampling)?;
    Ok(())
}
