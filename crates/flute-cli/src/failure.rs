//! How a failure reaches the user: what failed, what caused it, what to do next.
//!
//! The library's messages carry the numbers and the file, and its hints the next step.

use flute_burn::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// Prints `error`, its causes and a hint to stderr and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if reader_left(error) {
        return ExitCode::SUCCESS;
    }
    let mut lines = vec![format!("error: {error}")];
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // A wrapping error may already speak its cause's words.
        if !lines.iter().any(|line| line.contains(&cause)) {
            lines.push(format!("caused by: {cause}"));
        }
    }
    lines.extend(hint(error).map(|hint| format!("hint: {hint}")));
    print(&lines.join("\n"))
}

/// The code of a panic below us, whose message the panic hook has printed.
pub(crate) fn report_panic() -> ExitCode {
    print(
        "error: a runtime below this command failed; its message is above\n\
         hint: `flute doctor` shows what the devices lack; --device cpu needs none",
    )
}

/// Nobody is left to tell when stderr is closed too.
fn print(text: &str) -> ExitCode {
    let _ = writeln!(io::stderr().lock(), "{text}");
    ExitCode::FAILURE
}

/// Whether stdout's reader closed the pipe: it has what it wanted.
fn reader_left(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The library knows the next step of its own errors.
fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| cause.downcast_ref::<Error>()).and_then(Error::hint)
}
