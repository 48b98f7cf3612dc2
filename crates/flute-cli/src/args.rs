//! What can be typed: commands, flags, their environment variables and their help.
//!
//! Every flag can be set by `FLUTE_<NAME>` too; a flag typed wins over its variable. Values are
//! checked here by the library's own constructors, so that a width or a group that no kernel serves
//! is a usage error (exit code 2) before any file is opened.

#![expect(clippy::doc_markdown, reason = "these comments are the help texts, printed as they are")]

mod bench;
mod learn;
mod product;
mod quantize;

pub(crate) use bench::BenchArgs;
pub(crate) use product::{DoctorArgs, ProductArgs, TuneArgs};
pub(crate) use quantize::{GridArgs, QuantizeArgs, TableArg};

use burn::tensor::DType;
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use flute_burn::checkpoint::Target;
use std::path::PathBuf;

/// Run and make LUT-quantized language models: 2, 3 and 4 bits a weight, any table.
#[derive(Debug, Parser)]
#[command(name = "flute", version, arg_required_else_help = true)]
pub(crate) struct Flute {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Say on stderr what is done and chosen; RUST_LOG, where set, decides instead
    #[arg(
        short,
        long,
        global = true,
        env = "FLUTE_VERBOSE",
        value_parser = FalseyValueParser::new()
    )]
    pub(crate) verbose: bool,

    /// No progress bars and no statistics on stderr, errors alone
    #[arg(short, long, global = true, env = "FLUTE_QUIET", value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Quantize a Hugging Face model directory into a new one
    Quantize(QuantizeArgs),
    /// Make a HIGGS grid anew and print it as JSON
    Grid(GridArgs),
    /// Write a quantized model directory in another format, without quantizing anew
    Convert(ConvertArgs),
    /// Show what a model directory holds
    Inspect(InspectArgs),
    /// Continue one prompt
    Generate(GenerateArgs),
    /// Talk to a model, one line a turn; end with Ctrl-D
    Chat(ChatArgs),
    /// Measure the perplexity of a model over a text
    Eval(EvalArgs),
    /// Measure how fast a model decodes here, beside what memory allows
    Bench(BenchArgs),
    /// Measure the plans of products on this device and keep the fastest for every later run
    Tune(TuneArgs),
    /// Show the devices found, what each can do and what is missing
    Doctor(DoctorArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Quantized model directory: ours, of the Python package FLUTE, HIGGS of transformers, or of
    /// bitsandbytes in 4 bits
    pub(crate) model: PathBuf,

    /// Directory to write; it appears when it is complete
    #[arg(short, long, env = "FLUTE_OUTPUT")]
    pub(crate) output: PathBuf,

    /// Format to write
    #[arg(long, default_value = "flute", value_name = "FORMAT", env = "FLUTE_TO")]
    pub(crate) to: FormatArg,

    /// Replace the output directory if it exists
    #[arg(long, env = "FLUTE_FORCE", value_parser = FalseyValueParser::new())]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Model directory, dense or quantized
    pub(crate) model: PathBuf,

    /// Decode every tensor and check every code, scale and table
    #[arg(long, env = "FLUTE_VERIFY", value_parser = FalseyValueParser::new())]
    pub(crate) verify: bool,

    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// Model directory, dense or quantized
    pub(crate) model: PathBuf,

    /// Text to continue; `-` reads it from stdin
    #[arg(short, long, env = "FLUTE_PROMPT")]
    pub(crate) prompt: String,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Model directory with a chat template
    pub(crate) model: PathBuf,

    /// What the model is told before the first turn
    #[arg(long, env = "FLUTE_SYSTEM")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,

    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// Model directories, dense or quantized
    #[arg(required = true, value_name = "MODEL")]
    pub(crate) models: Vec<PathBuf>,

    /// Text to predict, UTF-8
    #[arg(long, value_name = "FILE", env = "FLUTE_TEXT")]
    pub(crate) text: PathBuf,

    /// Predictions a window; windows share nothing
    #[arg(long, default_value_t = 512, value_name = "TOKENS", env = "FLUTE_WINDOW")]
    pub(crate) window: usize,

    /// Windows at most, from the beginning of the text; all if not given
    #[arg(long, value_name = "WINDOWS", env = "FLUTE_LIMIT")]
    pub(crate) limit: Option<usize>,

    /// Quantize each model, which must be dense, in every way there is, and write tables and plots
    /// of perplexity against bits a weight to this directory
    #[arg(long, value_name = "DIR", env = "FLUTE_COMPARE")]
    pub(crate) compare: Option<PathBuf>,

    /// With --compare: UTF-8 text to measure on what layers matter; random tokens if not given
    #[arg(long, value_name = "FILE", env = "FLUTE_CALIBRATION")]
    pub(crate) calibration: Option<PathBuf>,

    /// With --compare and --calibration: windows of that text to learn the scales of nf on; 0 leaves
    /// them as they are
    #[arg(long, default_value_t = 0, value_name = "WINDOWS", env = "FLUTE_SAMPLES")]
    pub(crate) samples: usize,

    /// With --compare: weights that higgs rotates together, a power of two
    #[arg(long, default_value = "512", value_name = "SIZE", env = "FLUTE_HADAMARD_SIZE")]
    pub(crate) hadamard_size: usize,

    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,

    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for
    pub(crate) shell: clap_complete::Shell,
}

/// Where and in what precision a model runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device")]
pub(crate) struct RuntimeArgs {
    /// auto, cuda:N, vulkan:N, wgpu:N (N may be left out) or cpu
    #[arg(long, default_value = "auto", env = "FLUTE_DEVICE")]
    pub(crate) device: String,

    /// Type of activations: auto is f16 on a GPU that has it, else f32
    #[arg(long, default_value = "auto", value_name = "TYPE", env = "FLUTE_DTYPE")]
    pub(crate) dtype: ActivationArg,

    /// Decode quantized layers when loading and keep them dense: more memory, and much faster on
    /// a CPU
    #[arg(long, env = "FLUTE_DEQUANTIZE", value_parser = FalseyValueParser::new())]
    pub(crate) dequantize: bool,
}

/// How the next token is chosen and when to stop.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Tokens to generate at most
    #[arg(short = 'n', long, default_value_t = 256, env = "FLUTE_MAX_TOKENS")]
    pub(crate) max_tokens: usize,

    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.0, env = "FLUTE_TEMPERATURE")]
    pub(crate) temperature: f32,

    /// Keep the K likeliest tokens
    #[arg(long, value_name = "K", env = "FLUTE_TOP_K")]
    pub(crate) top_k: Option<usize>,

    /// Keep the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", env = "FLUTE_TOP_P")]
    pub(crate) top_p: Option<f32>,

    /// Keep tokens at least this likely in proportion to the likeliest
    #[arg(long, value_name = "P", env = "FLUTE_MIN_P")]
    pub(crate) min_p: Option<f32>,

    /// The same seed gives the same text
    #[arg(long, default_value_t = 0, env = "FLUTE_SEED")]
    pub(crate) seed: u64,

    /// Text at which to stop, not printed; may be repeated
    #[arg(long, value_name = "TEXT", env = "FLUTE_STOP")]
    pub(crate) stop: Vec<String>,

    #[command(flatten)]
    pub(crate) graph: GraphArg,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct GraphArg {
    /// Launch every kernel of every step instead of recording a step and replaying it: slower,
    /// the same tokens
    #[arg(long = "no-graph", env = "FLUTE_NO_GRAPH", value_parser = FalseyValueParser::new())]
    pub(crate) off: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JsonArg {
    /// Print JSON
    #[arg(long = "json", env = "FLUTE_JSON", value_parser = FalseyValueParser::new())]
    pub(crate) wanted: bool,
}

/// A format that quantized models are written in.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum FormatArg {
    /// That of this program: any table, layers that differ, no device
    Flute,
    /// That of the Python package FLUTE up to 0.4.2
    FluteLegacy,
    /// HIGGS of transformers: rotated weights, all layers alike
    Higgs,
}

impl From<FormatArg> for Target {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Flute => Self::Flute,
            FormatArg::FluteLegacy => Self::FluteLegacy,
            FormatArg::Higgs => Self::Higgs,
        }
    }
}

/// Type of activations.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ActivationArg {
    Auto,
    F32,
    F16,
    Bf16,
}

impl From<ActivationArg> for Option<DType> {
    fn from(dtype: ActivationArg) -> Self {
        match dtype {
            ActivationArg::Auto => None,
            ActivationArg::F32 => Some(DType::F32),
            ActivationArg::F16 => Some(DType::F16),
            ActivationArg::Bf16 => Some(DType::BF16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Flute;
    use clap::CommandFactory;

    #[test]
    fn every_flag_can_be_set_by_its_variable() {
        let flute = Flute::command();
        flute.clone().debug_assert();
        let mut flags = 0;
        for command in flute.get_subcommands().chain([&flute]) {
            for flag in command.get_arguments().filter(|flag| flag.get_long().is_some()) {
                let long = flag.get_long().unwrap_or_default();
                let expected = format!("FLUTE_{}", long.to_uppercase().replace('-', "_"));
                assert_eq!(
                    flag.get_env().and_then(|name| name.to_str()),
                    Some(&*expected),
                    "--{long}"
                );
                flags += 1;
            }
        }
        assert!(flags > 20, "only {flags} flags were looked at");
    }
}
