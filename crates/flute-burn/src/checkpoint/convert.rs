//! Quantizes a dense model directory into one of ours, one tensor in memory at a time.
//!
//! Quantized: every 2-D float `X.weight` but what the caller skips; embeddings and the output projection only where it
//! asks for them. Everything else is copied as it is stored, and so are tokenizer, generation settings, chat template and licences. Refused:
//! sources that are quantized already, skip patterns that match nothing, weights that are not finite, scales that
//! their type cannot hold; a refusal leaves no target behind.

use super::card::Card;
use super::companions::write_companions;
use super::header::TensorInfo;
use super::layout::{Layout, one_seed};
use super::measure::{ClassError, measure};
use super::pattern;
use super::quantization::{ModuleOverride, QuantizationConfig, Scheme};
use super::reader::{Reader, float_dtype};
use super::writer::{TensorSpec, Writer, WriterOptions, natural_key};
use crate::error::{Error, Result};
use crate::hadamard;
use crate::quantize::{self, Method};
use flute_cube::{Dtype as Float, Quantized, pack};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const HEAD: &str = "lm_head";
const EMBEDDING: &str = "embed_tokens";

/// What to convert, and how.
pub struct ConvertOptions<'a> {
    /// A dense model directory.
    pub source: PathBuf,
    /// The directory to write; it must not exist.
    pub target: PathBuf,
    /// How to quantize.
    pub method: Method,
    /// Patterns of modules to leave dense, beyond embeddings and output projection; see [`pattern::matches`].
    pub skip: Vec<String>,
    /// Modules to quantize differently: the first pattern that matches decides.
    pub overrides: Vec<(String, Method)>,
    /// How to quantize the output projection; left dense if it is not said.
    pub head: Option<Method>,
    /// How to quantize the embedding, which is the output projection too where that has no weight of its own; left
    /// dense if it is not said.
    pub embedding: Option<Method>,
    /// Type that scales are stored in.
    pub scale_dtype: ScaleDtype,
    /// Overwriting and the size of files.
    pub writer: WriterOptions,
    /// Called after every tensor.
    pub progress: &'a mut dyn FnMut(Progress<'_>),
}

impl<'a> ConvertOptions<'a> {
    /// `method` for every linear layer, float16 scales, files of 5 GB, nothing overwritten.
    pub fn new(
        source: impl Into<PathBuf>,
        target: impl Into<PathBuf>,
        method: Method,
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            method,
            skip: vec![],
            overrides: vec![],
            head: None,
            embedding: None,
            scale_dtype: ScaleDtype::Float16,
            writer: WriterOptions::default(),
            progress,
        }
    }
}

/// Type that scales are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleDtype {
    /// IEEE half precision.
    #[default]
    Float16,
    /// bfloat16.
    BFloat16,
    /// IEEE single precision.
    Float32,
    /// The type that the source stores each weight in.
    Model,
}

impl ScaleDtype {
    /// The type itself, for a weight that is stored in `weight`.
    pub(super) fn stored(self, weight: Float) -> Float {
        match self {
            Self::Float16 => Float::F16,
            Self::BFloat16 => Float::BF16,
            Self::Float32 => Float::F32,
            Self::Model => weight,
        }
    }
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor that was just written.
    pub tensor: &'a str,
    /// Tensors written.
    pub tensors: usize,
    /// Tensors in all.
    pub tensors_total: usize,
    /// Source bytes done.
    pub bytes: u64,
    /// Source bytes in all.
    pub bytes_total: u64,
}

/// What a conversion did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Summary {
    /// Linear layers quantized.
    pub quantized: usize,
    /// Weights in them.
    pub quantized_weights: u64,
    /// Tensors copied as they were.
    pub copied: usize,
    /// Bytes of tensors in the source.
    pub bytes_before: u64,
    /// Bytes of tensors in the target.
    pub bytes_after: u64,
    /// Bits of codes, scales and tables per quantized weight.
    pub bits_per_weight: f64,
    /// Error of the weights by class of layer (`q_proj`, …).
    pub classes: Vec<ClassError>,
}

/// One tensor of the source and what becomes of it.
struct Step<'a> {
    name: &'a str,
    info: &'a TensorInfo,
    quantize: Option<Task<'a>>,
}

/// A weight to quantize.
struct Task<'a> {
    module: &'a str,
    n: usize,
    k: usize,
    method: &'a Method,
    scale: Float,
}

/// Quantizes `options.source` into `options.target`.
///
/// # Errors
/// What [`Reader::open`], [`quantize::quantize`] and [`Writer::create`] refuse; [`Error::AlreadyQuantized`],
/// [`Error::PatternUnmatched`], [`Error::NothingToQuantize`], [`Error::TensorDtype`], [`Error::ScaleOverflow`].
pub fn convert(options: ConvertOptions<'_>) -> Result<Summary> {
    let ConvertOptions { source, target, method, skip, overrides, scale_dtype, .. } = options;
    let ConvertOptions { head, embedding, writer, progress, .. } = options;
    let reader = Reader::open(&source)?;
    if let Some(bits) = reader.bits() {
        return Err(Error::AlreadyQuantized { dir: source, bits });
    }
    let choice = Choice {
        method: &method,
        skip: &skip,
        overrides: &overrides,
        head: head.as_ref(),
        embedding: embedding.as_ref(),
        scale_dtype,
    };
    let steps = choice.steps(&reader)?;
    let config = choice.config(&reader, &steps);
    let specs = steps.iter().flat_map(Step::specs).collect();
    let mut writer = Writer::create(&target, specs, writer)?;
    let bytes_total = steps.iter().map(|step| step.info.bytes).sum();
    let mut summary = Summary {
        quantized: 0,
        quantized_weights: 0,
        copied: 0,
        bytes_before: bytes_total,
        bytes_after: 0,
        bits_per_weight: 0.0,
        classes: vec![],
    };
    let (mut classes, mut bytes, mut packed) = (BTreeMap::new(), 0, 0);
    for (index, step) in steps.iter().enumerate() {
        let written = match &step.quantize {
            Some(task) => {
                let (error, written) = task.run(&reader, &mut writer, step.name)?;
                let class = task.module.rsplit('.').next().unwrap_or_default();
                ClassError::add(&mut classes, class, error);
                summary.quantized += 1;
                summary.quantized_weights += (task.n * task.k) as u64;
                packed += written;
                written
            }
            None => {
                reader.stream(step.name, |piece| writer.append(step.name, piece))?;
                summary.copied += 1;
                step.info.bytes
            }
        };
        summary.bytes_after += written;
        bytes += step.info.bytes;
        let (tensors, tensors_total) = (index + 1, steps.len());
        progress(Progress { tensor: step.name, tensors, tensors_total, bytes, bytes_total });
    }
    summary.bits_per_weight = packed as f64 * 8.0 / summary.quantized_weights as f64;
    summary.classes = classes.into_values().collect();
    write_companions(&reader, &writer)?;
    let mut json = reader.config_source().clone();
    json["quantization_config"] = config.to_json();
    writer.file("config.json", format!("{json:#}\n").as_bytes())?;
    let base = base_name(&source);
    let card = Card { base: &base, method: method.name(), config: &config, summary: &summary };
    writer.file("README.md", card.render().as_bytes())?;
    writer.finish()?;
    Ok(summary)
}

/// What the caller chose.
struct Choice<'a> {
    method: &'a Method,
    skip: &'a [String],
    overrides: &'a [(String, Method)],
    head: Option<&'a Method>,
    embedding: Option<&'a Method>,
    scale_dtype: ScaleDtype,
}

impl<'a> Choice<'a> {
    /// Every tensor of the source in the order of the layers, and what becomes of it.
    fn steps(&self, reader: &'a Reader) -> Result<Vec<Step<'a>>> {
        let linears: Vec<&str> =
            reader.tensors().filter_map(|(name, info)| linear(name, info)).collect();
        let overridden = self.overrides.iter().map(|(pattern, _)| pattern);
        for pattern in self.skip.iter().chain(overridden) {
            if !linears.iter().any(|module| pattern::matches(pattern, module)) {
                let (pattern, modules) = (pattern.clone(), linears.len());
                return Err(Error::PatternUnmatched { pattern, modules });
            }
        }
        if self.head.is_some() && !reader.contains("lm_head.weight") {
            return Err(Error::InvalidOption {
                name: "the output projection to quantize",
                found: "none, since the embedding serves for it".into(),
                needed: "asked for as the embedding (--embeddings)".into(),
            });
        }
        let mut steps = vec![];
        for (name, info) in reader.tensors() {
            let method = self.method_of(name, info);
            let quantize = method.map(|(module, method)| self.task(module, method, (name, info)));
            steps.push(Step { name, info, quantize: quantize.transpose()? });
        }
        if steps.iter().all(|step| step.quantize.is_none()) {
            return Err(Error::NothingToQuantize { dir: reader.dir().into() });
        }
        one_seed(steps.iter().filter_map(|step| Some(step.quantize.as_ref()?.method)))?;
        steps.sort_by_cached_key(|step| natural_key(step.name));
        Ok(steps)
    }

    /// The module that `name` is the weight of and how to quantize it, if that is asked for.
    fn method_of(&self, name: &'a str, info: &TensorInfo) -> Option<(&'a str, &'a Method)> {
        let matches = |pattern: &str, module| pattern::matches(pattern, module);
        if let Some(module) = linear(name, info) {
            let skipped = self.skip.iter().any(|skip| matches(skip, module));
            let own = self.overrides.iter().find(|(pattern, _)| matches(pattern, module));
            return (!skipped).then_some((module, own.map_or(self.method, |(_, method)| method)));
        }
        let module = matrix(name, info)?;
        let method = if matches(HEAD, module) { self.head } else { self.embedding };
        method.map(|method| (module, method))
    }

    fn task(
        &self,
        module: &'a str,
        method: &'a Method,
        (name, info): (&str, &TensorInfo),
    ) -> Result<Task<'a>> {
        let stored = float_dtype(name, info.dtype)?;
        let scale = self.scale_dtype.stored(stored);
        Ok(Task { module, n: info.shape[0], k: info.shape[1], method, scale })
    }

    fn config(&self, reader: &Reader, steps: &[Step<'_>]) -> QuantizationConfig {
        let scheme = scheme_of(self.method);
        let mut modules = BTreeMap::new();
        for task in steps.iter().filter_map(|step| step.quantize.as_ref()) {
            let own = Some(scheme_of(task.method)).filter(|own| *own != scheme);
            let layout = task.layout();
            let in_features = Some(layout.k).filter(|k| layout.told_k() != *k);
            if own.is_some() || in_features.is_some() {
                let module = ModuleOverride { scheme: own, in_features };
                modules.insert(task.module.to_owned(), module);
            }
        }
        let stored = |step: &Step<'_>| step.quantize.as_ref().map(|task| task.scale);
        let tied = reader.config().tie_word_embeddings;
        let head = Some(HEAD).filter(|_| !tied && self.head.is_none());
        QuantizationConfig {
            scheme,
            scale_dtype: steps.iter().find_map(stored).unwrap_or(Float::F16),
            modules_to_not_convert: head
                .map(str::to_owned)
                .into_iter()
                .chain(self.skip.iter().cloned())
                .collect(),
            modules,
        }
    }
}

impl Step<'_> {
    /// The tensors it writes.
    fn specs(&self) -> Vec<TensorSpec> {
        let Some(task) = &self.quantize else {
            let (name, dtype, shape) = (self.name.into(), self.info.dtype, self.info.shape.clone());
            return vec![TensorSpec { name, dtype, shape }];
        };
        task.layout().specs(task.module)
    }
}

impl Task<'_> {
    /// What is written of the weight.
    fn layout(&self) -> Layout {
        Layout::of(self.method, self.n, self.k, self.scale)
    }

    /// Quantizes and writes the weight; returns its error and the bytes written.
    fn run(&self, reader: &Reader, writer: &mut Writer, name: &str) -> Result<(ClassError, u64)> {
        let mut dense = reader.tensor(name)?.data;
        let quantized = quantize::quantize(name, &dense, self.n, self.k, self.method)?;
        let scales = self.rounded(&quantized, name)?;
        if let Some(block) = self.method.hadamard_size() {
            dense = hadamard::rotated_rows(&dense, self.k, block, self.method.hadamard_seed());
        }
        let error = measure(&dense, &quantized, &scales);
        let layout = self.layout();
        let width = layout.k.div_ceil(layout.dim);
        let codes = pack::to_canonical(quantized.codes(), width, layout.code_bits());
        let scales = self.scale.encode(&scales);
        let table = Float::F32.encode(quantized.table().values());
        let mut written = 0;
        for (part, bytes) in [("codes", codes), ("scales", scales), ("table", table)] {
            writer.append(&format!("{}.{part}", self.module), &bytes)?;
            written += bytes.len() as u64;
        }
        Ok((error, written))
    }

    /// The scales that the file will hold.
    fn rounded(&self, weight: &Quantized, tensor: &str) -> Result<Vec<f32>> {
        let dtype = self.scale;
        let scales: Vec<f32> = weight.scales().iter().map(|scale| dtype.round(*scale)).collect();
        if let Some(index) = scales.iter().position(|scale| !scale.is_finite()) {
            let groups = weight.format().group.count(self.k);
            let (row, group, value) = (index / groups, index % groups, weight.scales()[index]);
            return Err(Error::ScaleOverflow { tensor: tensor.into(), row, group, value, dtype });
        }
        Ok(scales)
    }
}

/// The module of a tensor that can be quantized: a matrix `X.weight` that is neither embedding nor output projection.
pub(super) fn linear<'a>(name: &'a str, info: &TensorInfo) -> Option<&'a str> {
    matrix(name, info).filter(|module| !is_end(module))
}

/// Whether `module` is the embedding or the output projection.
pub(super) fn is_end(module: &str) -> bool {
    [HEAD, EMBEDDING].iter().any(|end| pattern::matches(end, module))
}

/// The module of a matrix `X.weight`.
fn matrix<'a>(name: &'a str, info: &TensorInfo) -> Option<&'a str> {
    let module = name.strip_suffix(".weight")?;
    matches!(info.shape.as_slice(), [n, k] if *n > 0 && *k > 0).then_some(module)
}

fn scheme_of(method: &Method) -> Scheme {
    let format = method.format();
    let (hadamard_size, hadamard_seed) = (method.hadamard_size(), method.hadamard_seed());
    let table = method.table().kind();
    Scheme { bits: format.bits, group: format.group, table, hadamard_size, hadamard_seed }
}

/// The name of the source directory, whatever way it was spelled.
fn base_name(source: &Path) -> String {
    let full = source.canonicalize().unwrap_or_else(|_| source.into());
    full.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}
