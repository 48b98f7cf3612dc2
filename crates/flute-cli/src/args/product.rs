//! Which products are meant: `flute doctor` shows their plans, `flute tune` measures them.

use super::quantize::{bits, group};
use super::{ActivationArg, JsonArg};
use burn::tensor::DType;
use clap::Args;
use clap::builder::FalseyValueParser;
use flute_burn::checkpoint::{ModelConfig, shapes};
use flute_burn::device;
use flute_cube::{Bits, Dtype, Format, Group, Limits, MAX_DIM, Problem};
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) products: ProductArgs,

    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    /// Quantized model directory whose products are measured
    pub(crate) model: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) products: ProductArgs,

    /// First forget everything that was measured on this device
    #[arg(long, env = "FLUTE_FORGET", value_parser = FalseyValueParser::new())]
    pub(crate) forget: bool,

    /// auto, cuda:N, vulkan:N or wgpu:N (N may be left out)
    #[arg(long, default_value = "auto", env = "FLUTE_DEVICE")]
    pub(crate) device: String,

    #[command(flatten)]
    pub(crate) json: JsonArg,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Products")]
pub(crate) struct ProductArgs {
    /// A weight of N rows and K columns, such as 4096x14336, or those of a known model, such as
    /// llama-3.1-8b; may be repeated
    #[arg(long, value_name = "NxK", value_parser = weights, env = "FLUTE_SHAPE")]
    shape: Vec<Weights>,

    /// Rows of activations: the sequences that are decoded together
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = rows, env = "FLUTE_M")]
    m: Vec<usize>,

    /// Bits a weight: 2, 3 or 4
    #[arg(long, default_value = "4", value_parser = bits, env = "FLUTE_BITS")]
    bits: Bits,

    /// Weights that share a scale: 32, 64, 128, 256 or row
    #[arg(long, default_value = "128", value_parser = group, env = "FLUTE_GROUP_SIZE")]
    group_size: Group,

    /// Type of activations: auto is f16 on a GPU that has it, else f32
    #[arg(long, default_value = "auto", value_name = "TYPE", env = "FLUTE_DTYPE")]
    dtype: ActivationArg,
}

/// `[n, k]` of the weights that one name means.
#[derive(Clone, Debug)]
struct Weights(Vec<[usize; 2]>);

impl ProductArgs {
    /// The products that were named, on a device of `limits`.
    pub(crate) fn problems(&self, limits: &Limits) -> anyhow::Result<Vec<Problem>> {
        let format = Format { bits: self.bits, group: self.group_size };
        let shapes = self.shape.iter().flat_map(|weights| &weights.0);
        self.expand(shapes.map(|shape| (*shape, format)), limits)
    }

    /// The products of the quantized model in `dir`, as they run: with query, key and value in one, and gate and up.
    pub(crate) fn problems_of(&self, dir: &Path, limits: &Limits) -> anyhow::Result<Vec<Problem>> {
        let (config, _) = ModelConfig::read(dir)?;
        let Some(quantization) = &config.quantization else {
            anyhow::bail!("{} is not quantized: none of our kernels run in it", dir.display());
        };
        let mut schemes = vec![quantization.scheme];
        schemes.extend(quantization.modules.values().filter_map(|module| module.scheme));
        let mut shapes = stacked(&config);
        if schemes.len() > 1 {
            // Where parts differ, they are not stacked.
            shapes.extend(apart(&config));
        }
        let weights = schemes.iter().flat_map(|scheme| {
            let format = Format { bits: scheme.bits, group: scheme.group };
            let stored = |k: usize| scheme.hadamard_size.map_or(k, |b| k.next_multiple_of(b));
            shapes.iter().map(move |[n, k]| ([*n, stored(*k)], format))
        });
        self.expand(weights, limits)
    }

    fn expand(
        &self,
        weights: impl Iterator<Item = ([usize; 2], Format)>,
        limits: &Limits,
    ) -> anyhow::Result<Vec<Problem>> {
        let dtype = match Option::<DType>::from(self.dtype) {
            Some(dtype) => device::kernel_dtype(dtype)?,
            None if limits.dtypes.contains(&Dtype::F16) => Dtype::F16,
            None => Dtype::F32,
        };
        let mut problems: Vec<Problem> = vec![];
        for ([n, k], format) in weights {
            for &m in &self.m {
                let problem = Problem { m, n, k, format, dtype, bias: false, gate: None };
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
        }
        Ok(problems)
    }
}

fn weights(text: &str) -> Result<Weights, String> {
    let size = |text: &str| {
        text.parse().ok().filter(|size| (1..=MAX_DIM).contains(size)).ok_or_else(|| {
            format!(
                "'{text}' is no size; write rows x columns, such as 4096x14336, up to {MAX_DIM}"
            )
        })
    };
    match text.split_once('x') {
        Some((n, k)) if n.starts_with(|c: char| c.is_ascii_digit()) => {
            Ok(Weights(vec![[size(n)?, size(k)?]]))
        }
        _ => {
            let config = shapes::named(text).map_err(|error| error.to_string())?;
            Ok(Weights(stacked(&config)))
        }
    }
}

fn rows(text: &str) -> Result<usize, String> {
    let rows = text.parse().ok().filter(|rows| (1..=MAX_DIM).contains(rows));
    rows.ok_or_else(|| format!("choose 1 to {MAX_DIM} rows"))
}

/// `[n, k]` of the four products of a block.
fn stacked(config: &ModelConfig) -> Vec<[usize; 2]> {
    let hidden = config.hidden_size;
    let [queries, keys, inner] = widths(config);
    vec![[queries + 2 * keys, hidden], [hidden, queries], [2 * inner, hidden], [hidden, inner]]
}

/// `[n, k]` of the parts that are stacked where they are alike.
fn apart(config: &ModelConfig) -> Vec<[usize; 2]> {
    widths(config).map(|n| [n, config.hidden_size]).to_vec()
}

/// Of queries, of keys and of the MLP.
fn widths(config: &ModelConfig) -> [usize; 3] {
    let heads = [config.num_attention_heads, config.num_key_value_heads];
    let [queries, keys] = heads.map(|heads| heads * config.head_dim);
    [queries, keys, config.intermediate_size]
}
