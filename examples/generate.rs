//! Continues a prompt with a model directory, dense or quantized, and prints words as they come.
//!
//! `cargo run --example generate -- MODEL PROMPT [DEVICE]`

use anyhow::{Result, bail};
use flute_burn::generate::{self, GenerateOptions};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::{device, sample::Sampling, text::Tokenizer};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, prompt, rest @ ..] = args.as_slice() else {
        bail!("usage: generate MODEL PROMPT [DEVICE]");
    };
    let device = device::parse(rest.first().map_or("auto", String::as_str))?;
    let dir = Path::new(dir);
    let (model, tokenizer) = (Model::load(dir, &LoadOptions::new(device))?, Tokenizer::open(dir)?);

    let sampling = Sampling { temperature: 0.7, top_p: Some(0.9), seed: 1, ..Default::default() };
    let options = GenerateOptions { max_new_tokens: 128, sampling, ..Default::default() };
    let prompt_ids = tokenizer.encode(prompt, true)?;
    let mut generation = generate::generate(&model, &prompt_ids, &options)?;
    let mut text = tokenizer.stream();
    let (start, mut tokens) = (Instant::now(), 0);
    print!("{prompt}");
    for token in generation.by_ref() {
        // Characters come out when all their bytes are there.
        print!("{}", text.push(token?.id)?.unwrap_or_default());
        std::io::stdout().flush()?;
        tokens += 1;
    }
    println!("{}", text.finish()?.unwrap_or_default());
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("\n{tokens} tokens in {seconds:.1} s, ended by {:?}", generation.finish());
    Ok(())
}
