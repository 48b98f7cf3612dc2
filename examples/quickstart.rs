//! Quantizes the small LLaMA in `fixtures/` to 4 and 3 bits, lets each model write, and compares their perplexities.
//!
//! `cargo run --example quickstart [-- --device auto|cuda:0|vulkan|wgpu|cpu]`

use anyhow::{Context, Result};
use flute_burn::checkpoint::{self, ConvertOptions};
use flute_burn::eval::{self, EvalOptions};
use flute_burn::generate::{self, GenerateOptions};
use flute_burn::model::{LoadOptions, Model};
use flute_burn::{device, quantize::Method, text::Tokenizer};
use flute_cube::{Bits, Group, Table};
use std::path::Path;

const PROMPT: &str = "# Installation\n\nAdd this to your";
/// Of 112 windows of the held-out text: enough to tell the models apart, and a matter of seconds on two cores.
const WINDOWS: usize = 24;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let flag = args.iter().position(|arg| arg == "--device");
    let name = flag.and_then(|at| args.get(at + 1)).map_or("auto", String::as_str);
    let device = device::parse(name)?;
    println!("device: {}\n", device::name(&device));

    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-llama");
    let tokenizer = Tokenizer::open(&source)?;
    let text = std::fs::read_to_string(source.join("eval.txt")).context("reading the text")?;
    let (prompt, ids) = (tokenizer.encode(PROMPT, true)?, tokenizer.encode(&text, false)?);
    let scratch = tempfile::tempdir()?;
    let mut table = "model    weight bytes bits a weight  perplexity\n".to_owned();

    for bits in [None, Some(Bits::Four), Some(Bits::Three)] {
        let (label, dir, bytes, width) = match bits {
            None => {
                let bytes = std::fs::metadata(source.join("model.safetensors"))?.len();
                ("dense".into(), source.clone(), bytes, 16.0)
            }
            Some(bits) => {
                let (label, group) = (format!("W{bits} NF"), Group::Size(64));
                let target = scratch.path().join(&label);
                let method = Method::Absmax { table: Table::nf(bits), group };
                let mut quiet = |_: checkpoint::Progress<'_>| {};
                let summary =
                    checkpoint::convert(ConvertOptions::new(&source, &target, method, &mut quiet))?;
                (label, target, summary.bytes_after, summary.bits_per_weight)
            }
        };
        let model = Model::load(&dir, &LoadOptions::new(device.clone()))?;
        let options = GenerateOptions { max_new_tokens: 40, ..Default::default() };
        let tokens = generate::generate(&model, &prompt, &options)?.map(|token| Ok(token?.id));
        let tokens = tokens.collect::<Result<Vec<u32>>>()?;
        println!("--- {label}\n{PROMPT}{}\n", tokenizer.decode(&tokens, true)?);
        let options = EvalOptions { limit: Some(WINDOWS), ..Default::default() };
        let result = eval::perplexity(&model, &ids, &options, &mut |_| {})?;
        table += &format!("{label:8} {bytes:12} {width:13.2} {:11.3}\n", result.value);
    }
    println!("{table}\nPerplexity over {WINDOWS} windows of 512 tokens of its eval.txt.");
    Ok(())
}
