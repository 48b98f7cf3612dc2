//! The `flute` command.
//!
//! Results go to stdout; progress, statistics and logs to stderr. Exit codes: 0 done, 1 refused or
//! failed, 2 usage. A reader that closes the pipe early is no failure.

#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod output;
mod product;
mod progress;
mod report;
mod session;
mod stop;

use clap::Parser;
use std::io::IsTerminal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let flute = args::Flute::parse();
    start_logs(&flute);
    // Drivers and runtimes below us may panic; that ends the command like any failure.
    match catch_unwind(AssertUnwindSafe(|| commands::run(&flute))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => failure::report(&error),
        Err(_) => failure::report_panic(),
    }
}

fn start_logs(flute: &args::Flute) {
    let level = match (flute.verbose, flute.quiet) {
        (true, _) => "warn,flute=debug,flute_burn=debug,flute_cube=debug",
        (false, true) => "error",
        (false, false) => "error,flute=warn,flute_burn=warn,flute_cube=warn",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
}
