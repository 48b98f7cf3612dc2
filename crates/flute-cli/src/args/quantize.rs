//! What `flute quantize` and `flute grid` take.

use super::learn::LearnArgs;
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use flute_burn::checkpoint::ScaleDtype;
use flute_cube::{Bits, Group, TableKind};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// Directory with config.json and safetensors
    pub(crate) model: PathBuf,

    /// Directory to write; it appears when it is complete
    #[arg(short, long, env = "FLUTE_OUTPUT")]
    pub(crate) output: PathBuf,

    /// Bits a weight: 2, 3 or 4
    #[arg(long, default_value = "4", value_parser = bits, env = "FLUTE_BITS")]
    pub(crate) bits: Bits,

    /// Weights that share a scale: 32, 64, 128, 256, or `row` for a whole row; 64 if not given, and
    /// for higgs 256 or the whole block
    #[arg(long, value_parser = group, env = "FLUTE_GROUP_SIZE")]
    pub(crate) group_size: Option<Group>,

    /// Values that the codes name: nf, nf-symmetric, int, fp, or higgs, which rotates weights and
    /// names points of a grid for the normal distribution
    #[arg(long, default_value = "nf", value_parser = table, env = "FLUTE_TABLE")]
    pub(crate) table: TableArg,

    /// With --table higgs: weights that one code names, 1 or 2
    #[arg(
        short = 'p',
        long,
        default_value_t = 2,
        value_name = "P",
        value_parser = clap::value_parser!(u8).range(1..=2),
        env = "FLUTE_DIMENSION"
    )]
    pub(crate) dimension: u8,

    /// With --table higgs: weights that are rotated together, a power of two; layers of other
    /// widths are padded to whole blocks
    #[arg(long, default_value = "512", value_name = "SIZE", env = "FLUTE_HADAMARD_SIZE")]
    pub(crate) hadamard_size: usize,

    /// With --table higgs or --budget-bits: give weights random signs of this seed before they are
    /// rotated, which helps where they are too regular for the plain rotation
    #[arg(long, value_name = "SEED", env = "FLUTE_HADAMARD_SEED")]
    pub(crate) hadamard_seed: Option<u32>,

    /// Bits a weight at most over all layers, such as 3.25: gives each of them 2, 3 or 4 bits in
    /// higgs grids, or leaves it dense, by how much it matters
    #[arg(
        long,
        value_name = "BITS",
        conflicts_with_all = ["bits", "table", "dimension"],
        env = "FLUTE_BUDGET_BITS"
    )]
    pub(crate) budget_bits: Option<f64>,

    /// UTF-8 text to learn from, or to measure what layers matter on (random tokens if none is given)
    #[arg(long, value_name = "FILE", env = "FLUTE_TEXT")]
    pub(crate) text: Option<PathBuf>,

    /// Where the model runs while it is measured or learns: auto, cuda:N, vulkan:N, wgpu:N or cpu
    #[arg(long, default_value = "auto", env = "FLUTE_DEVICE")]
    pub(crate) device: String,

    /// Quantize lm_head too, in so many bits; it is read for every token
    #[arg(long, value_name = "BITS", value_parser = bits, env = "FLUTE_LM_HEAD")]
    pub(crate) lm_head: Option<Bits>,

    /// Quantize the embedding too, in so many bits; where it serves as lm_head, one copy of the
    /// codes serves both
    #[arg(long, value_name = "BITS", value_parser = bits, env = "FLUTE_EMBEDDINGS")]
    pub(crate) embeddings: Option<Bits>,

    /// Layers to leave dense beside embeddings and lm_head, such as down_proj, layers.0 or
    /// model.*.self_attn.*; may be repeated
    #[arg(long, value_delimiter = ',', value_name = "LAYERS", env = "FLUTE_SKIP")]
    pub(crate) skip: Vec<String>,

    /// Type of the stored scales
    #[arg(
        long,
        visible_alias = "dtype",
        default_value = "f16",
        value_name = "TYPE",
        env = "FLUTE_SCALE_DTYPE"
    )]
    pub(crate) scale_dtype: ScaleArg,

    /// Replace the output directory if it exists
    #[arg(long, env = "FLUTE_FORCE", value_parser = FalseyValueParser::new())]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) learn: LearnArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GridArgs {
    /// Bits a weight: 2, 3 or 4
    #[arg(long, default_value = "4", value_parser = bits, env = "FLUTE_BITS")]
    pub(crate) bits: Bits,

    /// Weights that one code names: 1, or 2, which takes some seconds
    #[arg(
        short = 'p',
        long,
        default_value_t = 2,
        value_name = "P",
        value_parser = clap::value_parser!(u8).range(1..=2),
        env = "FLUTE_DIMENSION"
    )]
    pub(crate) dimension: u8,
}

/// Type of stored scales.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ScaleArg {
    F16,
    Bf16,
    F32,
    /// The type that the model stores each weight in
    Model,
}

impl From<ScaleArg> for ScaleDtype {
    fn from(scale: ScaleArg) -> Self {
        match scale {
            ScaleArg::F16 => Self::Float16,
            ScaleArg::Bf16 => Self::BFloat16,
            ScaleArg::F32 => Self::Float32,
            ScaleArg::Model => Self::Model,
        }
    }
}

pub(super) fn bits(text: &str) -> Result<Bits, String> {
    let bits: u8 = text.parse().map_err(|_| "choose 2, 3 or 4".to_owned())?;
    Bits::new(bits).map_err(|error| error.to_string())
}

pub(super) fn group(text: &str) -> Result<Group, String> {
    if text == "row" {
        return Ok(Group::Whole);
    }
    let size: usize = text.parse().map_err(|_| "choose 32, 64, 128, 256 or row".to_owned())?;
    Group::new(size).map_err(|error| error.to_string())
}

/// Where the values of a table come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableArg {
    /// Values that the name alone gives.
    Named(TableKind),
    /// The grids of HIGGS.
    Higgs,
}

fn table(text: &str) -> Result<TableArg, String> {
    const KNOWN: &str = "choose nf, nf-symmetric, int, fp or higgs";
    if text == "higgs" {
        return Ok(TableArg::Higgs);
    }
    match text.parse().map_err(|error: flute_cube::Error| error.to_string())? {
        TableKind::Custom | TableKind::Pairs => {
            Err(format!("the name '{text}' gives no values; {KNOWN}"))
        }
        kind => Ok(TableArg::Named(kind)),
    }
}
