//! `flute chat`: a conversation, one line of stdin a turn, until its end.

use crate::args::ChatArgs;
use crate::session::Session;
use flute_burn::text::{ChatTemplate, Message};
use std::io::{self, BufRead, IsTerminal, Write};

pub(crate) fn run(args: &ChatArgs, quiet: bool) -> anyhow::Result<()> {
    let template = ChatTemplate::open(&args.model)?;
    let session = Session::open(&args.model, &args.runtime, quiet)?;
    let mut messages: Vec<Message> =
        args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut lines = io::stdin().lock().lines();
    loop {
        ask()?;
        let Some(line) = lines.next().transpose()? else { return Ok(()) };
        if line.trim().is_empty() {
            continue;
        }
        messages.push(Message::new("user", line));
        let tokens = session.tokenizer.encode_chat(&template, &messages, true)?;
        let answer = session.reply(&tokens, &args.sampling)?;
        messages.push(Message::new("assistant", answer));
    }
}

/// Asks a person for a line; a pipe needs no asking.
fn ask() -> io::Result<()> {
    if io::stdin().is_terminal() {
        let mut err = io::stderr().lock();
        write!(err, "> ")?;
        err.flush()?;
    }
    Ok(())
}
