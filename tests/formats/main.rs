//! Formats of other programs: what they wrote is read to the last bit, and what is written they would read.
//!
//! `fixtures/golden` holds files made by the programs themselves (see `fixtures/README.md`).

mod bitsandbytes;
mod edit;
mod export;
mod models;
#[path = "../model/oracle.rs"]
mod oracle;
mod packing;
mod refusals;

use std::path::{Path, PathBuf};

/// The file or directory `name` that another program wrote.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden").join(name)
}

const LEGACY: &str = "tiny-llama-flute-nf4-g64";
const BITSANDBYTES: &str = "tiny-llama-bnb-nf4";
