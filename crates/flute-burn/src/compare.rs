//! What quantizing costs: one dense model in many ways, each with its size and its perplexity.
//!
//! Every way is what [`checkpoint::convert`](crate::checkpoint::convert()) writes, into a temporary directory that is
//! read, evaluated and deleted before the next one; so a model needs room for one quantized copy of itself. Layers are
//! decoded when they are loaded, which changes no weight and is as fast as the dense model. Sizes are bits of codes,
//! scales and tables (or dense weights) a weight of the linear layers; embeddings and output projection stay dense
//! everywhere and are not counted. Refused: models that are quantized already.

use crate::checkpoint::{self, BudgetOptions, ConvertOptions, Reader, assign};
use crate::error::{Error, Result};
use crate::eval::{self, EvalOptions};
use crate::learn::directory::{DirectoryOptions, quantize_and_learn};
use crate::learn::text::TextOptions;
use crate::model::{LoadOptions, Model};
use crate::quantize::{Higgs, Method};
use crate::sensitivity::{self, Sensitivity, SensitivityOptions};
use flute_cube::{Bits, Group, Table, TableKind};
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::Path;

/// Bits a weight that assignments are made for.
const BUDGETS: [f64; 6] = [2.5, 2.75, 3.0, 3.25, 3.5, 4.0];

/// What to compare, and how.
#[derive(Clone, Debug)]
pub struct CompareOptions<'a> {
    /// Where models run, and in which type.
    pub load: LoadOptions,
    /// How the text is cut, and how much of it is read.
    pub eval: EvalOptions,
    /// A text that sensitivities are measured on; random tokens without one.
    pub calibration: Option<&'a [u32]>,
    /// How they are measured.
    pub sensitivity: SensitivityOptions,
    /// How scales are learned from the calibration text; not at all without it or without a text.
    pub learn: Option<TextOptions>,
    /// Weights that HIGGS rotates together.
    pub hadamard_size: usize,
}

/// A family of ways that differ in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Series {
    /// As the source has it.
    Dense,
    /// Whole numbers, groups of 64.
    Int,
    /// Small floats, groups of 64.
    Fp,
    /// Normal Float, groups of 64.
    Nf,
    /// Normal Float, groups of 64, scales learned.
    Learned,
    /// Normal Float, groups as wide as those of HIGGS.
    NfWide,
    /// HIGGS, grids of the line.
    HiggsLine,
    /// HIGGS, grids of the plane.
    HiggsPlane,
    /// HIGGS, every layer in the bits that an assignment under a budget gives it.
    Dynamic,
}

impl Series {
    /// Its name in tables and plots.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Int => "int",
            Self::Fp => "fp",
            Self::Nf => "nf",
            Self::Learned => "nf, learned",
            Self::NfWide => "nf, wide groups",
            Self::HiggsLine => "higgs, p = 1",
            Self::HiggsPlane => "higgs, p = 2",
            Self::Dynamic => "higgs, dynamic",
        }
    }
}

/// One way, measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Its family.
    pub series: Series,
    /// What tells it from the others of its family, such as `W4G64`.
    pub format: String,
    /// Bits a weight of the linear layers.
    pub bits_per_weight: f64,
    /// The perplexity.
    pub perplexity: f64,
}

/// One way to store a model.
struct Way {
    series: Series,
    format: String,
    recipe: Recipe,
}

enum Recipe {
    Dense,
    Method(Method),
    Learned(Method),
    Budget(f64),
}

/// How far a comparison is.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// Layers whose sensitivity is known, and all of them.
    Sensitivity(usize, usize),
    /// Another way was measured; so many are to be measured in all.
    Measured(&'a Measured, usize),
}

/// Measures the dense model in `dir` over `ids`, a text without special tokens, in every way.
///
/// # Errors
/// [`Error::AlreadyQuantized`]; what [`sensitivity::measure`], [`assign`], [`Higgs::new`],
/// [`checkpoint::convert`](crate::checkpoint::convert()), [`Model::load`] and [`eval::perplexity`] refuse.
pub fn compare(
    dir: &Path,
    ids: &[u32],
    options: &CompareOptions<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<Measured>> {
    let reader = Reader::open(dir)?;
    if let Some(bits) = reader.bits() {
        return Err(Error::AlreadyQuantized { dir: dir.into(), bits });
    }
    let ways = ways(options)?;
    let sensitivities = sensitivity::measure(
        dir,
        &options.load,
        options.calibration,
        &options.sensitivity,
        &mut |done, total| progress(Progress::Sensitivity(done, total)),
    )?;
    let comparison = Comparison { reader: &reader, ids, options, sensitivities };
    let mut measured = Vec::with_capacity(ways.len());
    for way in &ways {
        let found = comparison.measure(way)?;
        progress(Progress::Measured(&found, ways.len()));
        measured.push(found);
    }
    Ok(measured)
}

fn ways(options: &CompareOptions<'_>) -> Result<Vec<Way>> {
    let hadamard_size = options.hadamard_size;
    let narrow = Group::Size(64);
    let wide = Group::new(hadamard_size.min(256))?;
    let way = |series, method: Method| {
        let format = method.format().to_string();
        Way { series, format, recipe: Recipe::Method(method) }
    };
    let mut ways =
        vec![Way { series: Series::Dense, format: String::new(), recipe: Recipe::Dense }];
    for (series, kind, group) in [
        (Series::Int, TableKind::Int, narrow),
        (Series::Fp, TableKind::Fp, narrow),
        (Series::Nf, TableKind::Nf, narrow),
        (Series::NfWide, TableKind::Nf, wide),
    ] {
        for bits in Bits::ALL {
            ways.push(way(series, Method::Absmax { table: Table::named(kind, bits)?, group }));
        }
    }
    if options.learn.is_some() && options.calibration.is_some() {
        for bits in Bits::ALL {
            let method = Method::Absmax { table: Table::nf(bits), group: narrow };
            let (series, format) = (Series::Learned, method.format().to_string());
            ways.push(Way { series, format, recipe: Recipe::Learned(method) });
        }
    }
    for (series, p) in [(Series::HiggsLine, 1), (Series::HiggsPlane, 2)] {
        for bits in Bits::ALL {
            ways.push(way(series, Method::Higgs(Higgs::new(bits, p, wide, hadamard_size)?)));
        }
    }
    ways.extend(BUDGETS.map(|bits| {
        let format = format!("at most {bits}");
        Way { series: Series::Dynamic, format, recipe: Recipe::Budget(bits) }
    }));
    Ok(ways)
}

/// A model and all that its ways share.
struct Comparison<'a> {
    reader: &'a Reader,
    ids: &'a [u32],
    options: &'a CompareOptions<'a>,
    sensitivities: Vec<Sensitivity>,
}

impl Comparison<'_> {
    fn measure(&self, way: &Way) -> Result<Measured> {
        let (bits_per_weight, perplexity) = match &way.recipe {
            Recipe::Dense => {
                let linears = self.reader.linears();
                let bytes: u64 = linears.iter().map(|linear| linear.bytes).sum();
                let weights: usize = linears.iter().map(|linear| linear.n * linear.k).sum();
                (bytes as f64 * 8.0 / weights as f64, self.perplexity(self.reader.dir())?)
            }
            Recipe::Method(method) => self.written(method.clone(), |options| {
                Ok(checkpoint::convert(options)?.bits_per_weight)
            })?,
            Recipe::Learned(method) => {
                self.written(method.clone(), |options| self.learned(options))?
            }
            Recipe::Budget(bits) => {
                let wide = Group::new(self.options.hadamard_size.min(256))?;
                let budget = BudgetOptions::new(*bits, wide, self.options.hadamard_size)?;
                let assignment = assign(self.reader.dir(), &self.sensitivities, &budget)?;
                let method = Method::Higgs(budget.candidates[0].clone());
                self.written(method, |mut options| {
                    assignment.apply(&mut options);
                    checkpoint::convert(options)?;
                    Ok(assignment.bits_per_weight)
                })?
            }
        };
        let (series, format) = (way.series, way.format.clone());
        Ok(Measured { series, format, bits_per_weight, perplexity })
    }

    /// Bits a weight and the perplexity of the model that `write` writes; it returns the former.
    fn written(
        &self,
        method: Method,
        write: impl FnOnce(ConvertOptions<'_>) -> Result<f64>,
    ) -> Result<(f64, f64)> {
        let scratch = tempfile::tempdir()
            .map_err(Error::io("create a directory in", std::env::temp_dir()))?;
        let target = scratch.path().join("model");
        let mut quiet = |_: checkpoint::Progress<'_>| {};
        let bits = write(ConvertOptions::new(self.reader.dir(), &target, method, &mut quiet))?;
        Ok((bits, self.perplexity(&target)?))
    }

    /// Bits a weight of the model that is quantized and learned as `options` say.
    fn learned(&self, options: ConvertOptions<'_>) -> Result<f64> {
        let learned = quantize_and_learn(DirectoryOptions {
            convert: options,
            device: self.options.load.device.clone(),
            dtype: self.options.load.dtype,
            ids: self.options.calibration.unwrap_or_default(),
            text: self.options.learn.unwrap_or_default(),
            watch: &mut |_| ControlFlow::Continue(()),
        })?;
        Ok(learned.map_or(f64::NAN, |learned| learned.summary.bits_per_weight))
    }

    fn perplexity(&self, dir: &Path) -> Result<f64> {
        let load = LoadOptions { dequantize: true, ..self.options.load.clone() };
        let model = Model::load(dir, &load)?;
        Ok(eval::perplexity(&model, self.ids, &self.options.eval, &mut |_| {})?.value)
    }
}
