//! What `flute bench` takes.

use super::quantize::{bits, group};
use super::{ActivationArg, GraphArg, JsonArg};
use clap::Args;
use flute_cube::{Bits, Group};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Model directory, dense or quantized
    #[arg(required_unless_present = "shape")]
    pub(crate) model: Option<PathBuf>,

    /// Instead of a directory: a model of noise in the shape of a known one, such as
    /// llama-3.1-8b, gemma-2-9b, qwen2.5-7b or tiny
    #[arg(long, value_name = "NAME", conflicts_with = "model", env = "FLUTE_SHAPE")]
    pub(crate) shape: Option<String>,

    /// With --shape: bits a weight: 2, 3 or 4
    #[arg(long, default_value = "4", value_parser = bits, env = "FLUTE_BITS")]
    pub(crate) bits: Bits,

    /// With --shape: weights that share a scale: 32, 64, 128, 256 or row
    #[arg(long, default_value = "128", value_parser = group, env = "FLUTE_GROUP_SIZE")]
    pub(crate) group_size: Group,

    /// With --shape: bits a weight of the head; dense if not given
    #[arg(long, value_name = "BITS", value_parser = bits, env = "FLUTE_LM_HEAD")]
    pub(crate) lm_head: Option<Bits>,

    /// With --shape: dense weights instead of codes
    #[arg(long, env = "FLUTE_DENSE", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) dense: bool,

    /// Sequences decoded together
    #[arg(long, default_value_t = 1, env = "FLUTE_BATCH")]
    pub(crate) batch: usize,

    /// Tokens that each sequence has behind it
    #[arg(long, default_value_t = 1024, env = "FLUTE_CONTEXT")]
    pub(crate) context: usize,

    /// Steps to measure
    #[arg(short = 'n', long, default_value_t = 64, env = "FLUTE_TOKENS")]
    pub(crate) tokens: usize,

    /// Tokens of a prompt whose reading is measured; 0 leaves it out
    #[arg(long, default_value_t = 2048, value_name = "TOKENS", env = "FLUTE_PROMPT")]
    pub(crate) prompt: usize,

    #[command(flatten)]
    pub(crate) graph: GraphArg,

    /// auto, cuda:N, vulkan:N, wgpu:N (N may be left out) or cpu
    #[arg(long, default_value = "auto", env = "FLUTE_DEVICE")]
    pub(crate) device: String,

    /// Type of activations: auto is f16 on a GPU that has it, else f32
    #[arg(long, default_value = "auto", value_name = "TYPE", env = "FLUTE_DTYPE")]
    pub(crate) dtype: ActivationArg,

    #[command(flatten)]
    pub(crate) json: JsonArg,
}
