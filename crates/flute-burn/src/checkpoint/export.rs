//! Writes a quantized model in another format: ours, FLUTE's own, or HIGGS of transformers. No weight is quantized
//! anew.
//!
//! Every format that [`Reader`] reads can be the source. To ours every weight keeps its codes, scales and table to
//! the last bit. The others keep codes and round scales and tables to the model's 16-bit type, in which they compute.
//! Everything else is copied as it is stored. Refused: sources that are not quantized, and what the target cannot
//! hold; all of it before anything is written, but for scales beyond the range of the type.

use super::companions::write_companions;
use super::convert::{Progress, is_end, linear};
use super::import::flute_legacy::{self, FluteConfig};
use super::import::higgs_writer::HiggsWriter;
use super::layout::Layout;
use super::quantization::{ModuleOverride, QuantizationConfig};
use super::reader::{Reader, StoredWeight};
use super::writer::{TensorSpec, Writer, WriterOptions, natural_key};
use crate::error::{Error, Result};
use flute_cube::Dtype as Float;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A format that can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// Ours: independent of devices, any table, layers that differ.
    #[default]
    Flute,
    /// That of the Python package FLUTE up to 0.4.2: one width and one group for all layers.
    FluteLegacy,
    /// HIGGS of transformers: rotated weights, all layers alike.
    Higgs,
}

/// What to export, and where to.
pub struct ExportOptions<'a> {
    /// A quantized model directory of any format that is read.
    pub source: PathBuf,
    /// The directory to write; it must not exist.
    pub target: PathBuf,
    /// The format to write.
    pub to: Target,
    /// Overwriting and the size of files.
    pub writer: WriterOptions,
    /// Called after every module and every tensor that is copied.
    pub progress: &'a mut dyn FnMut(Progress<'_>),
}

impl<'a> ExportOptions<'a> {
    /// Into our format, files of 5 GB, nothing overwritten.
    pub fn new(
        source: impl Into<PathBuf>,
        target: impl Into<PathBuf>,
        progress: &'a mut dyn FnMut(Progress<'_>),
    ) -> Self {
        let (source, target) = (source.into(), target.into());
        Self { source, target, to: Target::Flute, writer: WriterOptions::default(), progress }
    }
}

/// What an export did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Exported {
    /// Linear layers written in the other format.
    pub modules: usize,
    /// Tensors copied as they were.
    pub copied: usize,
    /// Bytes of tensors in the source.
    pub bytes_before: u64,
    /// Bytes of tensors in the target.
    pub bytes_after: u64,
}

/// Writes `options.source` as `options.target` in the format `options.to`, whole or not at all.
///
/// # Errors
/// What [`Reader::open`], [`Reader::linear`] and [`Writer::create`] refuse; [`Error::NotQuantized`];
/// [`Error::Unsupported`] and [`Error::PackedShape`] for layers that the target cannot hold;
/// [`Error::ScaleOverflow`].
pub fn export(options: ExportOptions<'_>) -> Result<Exported> {
    let ExportOptions { source, target, to, writer, progress } = options;
    let reader = Reader::open(&source)?;
    let mut layouts = BTreeMap::new();
    for module in reader.quantized_modules() {
        layouts.insert(module, reader.layout(module)?);
    }
    let Some(encoder) = Encoder::choose(to, &reader, &layouts) else {
        return Err(Error::NotQuantized { dir: source });
    };
    let mut specs = vec![];
    for (module, layout) in &layouts {
        specs.extend(encoder.specs(module, layout)?);
    }
    let (parts, copies): (Vec<_>, Vec<_>) = reader.tensors().partition(|(name, _)| {
        reader.module_of(name).is_some_and(|module| layouts.contains_key(module))
    });
    specs.extend(copies.iter().map(|(name, info)| {
        let (dtype, shape) = (info.dtype, info.shape.clone());
        TensorSpec { name: (*name).into(), dtype, shape }
    }));
    let mut weights: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, info) in parts {
        *weights.entry(reader.module_of(name).unwrap_or_default()).or_default() += info.bytes;
    }
    let mut steps: Vec<(&str, u64)> = weights.into_iter().collect();
    steps.extend(copies.iter().map(|(name, info)| (*name, info.bytes)));
    steps.sort_by_cached_key(|(name, _)| natural_key(name));

    let mut writer = Writer::create(&target, specs, writer)?;
    let mut summary = Exported {
        modules: layouts.len(),
        copied: copies.len(),
        bytes_before: steps.iter().map(|(_, bytes)| bytes).sum(),
        bytes_after: 0,
    };
    let mut done = 0;
    for (index, (name, bytes)) in steps.iter().enumerate() {
        summary.bytes_after += match layouts.get(name) {
            Some(layout) => encoder.write(&reader, &mut writer, name, layout)?,
            None => {
                reader.stream(name, |piece| writer.append(name, piece))?;
                *bytes
            }
        };
        done += bytes;
        progress(Progress {
            tensor: name,
            tensors: index + 1,
            tensors_total: steps.len(),
            bytes: done,
            bytes_total: summary.bytes_before,
        });
    }
    write_companions(&reader, &writer)?;
    writer.copy_from(reader.dir(), "README.md")?;
    let mut config = reader.config_source().clone();
    encoder.configure(&mut config, &writer)?;
    writer.file("config.json", format!("{config:#}\n").as_bytes())?;
    writer.finish()?;
    Ok(summary)
}

/// The format to write, with what all modules share in it.
enum Encoder {
    Flute(QuantizationConfig),
    Legacy { config: FluteConfig, dtype: Float },
    Higgs { writer: HiggsWriter, config: Value },
}

impl Encoder {
    /// That of `to`; none if there is no module.
    fn choose(to: Target, reader: &Reader, layouts: &BTreeMap<&str, Layout>) -> Option<Self> {
        let first = layouts.values().next()?;
        // That in which the model computes elsewhere.
        let dtype = match (reader.config().dtype, first.scale) {
            (Some(dtype @ (Float::F16 | Float::BF16)), _) => dtype,
            (_, Float::BF16) => Float::BF16,
            _ => Float::F16,
        };
        Some(match to {
            Target::Flute => Self::Flute(quantization(reader, first, layouts)),
            Target::FluteLegacy => {
                let config =
                    reader.flute_config().unwrap_or_else(|| FluteConfig::new(first.format));
                Self::Legacy { config, dtype }
            }
            Target::Higgs => {
                let writer = HiggsWriter::new(first, dtype);
                Self::Higgs { writer, config: writer.config(layouts, &dense_linears(reader)) }
            }
        })
    }

    fn specs(&self, module: &str, layout: &Layout) -> Result<Vec<TensorSpec>> {
        if is_end(module) && !matches!(self, Self::Flute(_)) {
            return Err(Error::Unsupported {
                what: format!("{module} in codes"),
                reason: "the programs that read this format keep embedding and head dense".into(),
            });
        }
        match self {
            Self::Flute(_) => Ok(layout.specs(module)),
            Self::Legacy { config, dtype } => {
                config.check(module, layout)?;
                Ok(config.specs(module, layout, *dtype))
            }
            Self::Higgs { writer, .. } => {
                writer.check(module, layout)?;
                Ok(writer.specs(module, layout))
            }
        }
    }

    /// Writes one module and returns its bytes.
    fn write(
        &self,
        reader: &Reader,
        writer: &mut Writer,
        module: &str,
        layout: &Layout,
    ) -> Result<u64> {
        let StoredWeight::Quantized(weight) = reader.linear(module)?.weight else {
            return Err(Error::NotQuantized { dir: reader.dir().into() });
        };
        let parts = match self {
            Self::Flute(_) => layout.parts(&weight).to_vec(),
            Self::Legacy { config, dtype } => config.parts(module, &weight, *dtype)?.to_vec(),
            Self::Higgs { writer, .. } => writer.parts(module, &weight)?,
        };
        let mut written = 0;
        for (part, bytes) in parts {
            writer.append(&format!("{module}.{part}"), &bytes)?;
            written += bytes.len() as u64;
        }
        Ok(written)
    }

    /// Says in the configuration files what the tensors are.
    fn configure(&self, config: &mut Value, writer: &Writer) -> Result<()> {
        match self {
            Self::Flute(quantization) => {
                config["quantization_config"] = quantization.to_json();
                Ok(())
            }
            Self::Legacy { config: flute, .. } => {
                if let Some(fields) = config.as_object_mut() {
                    fields.remove("quantization_config");
                }
                writer.file(flute_legacy::CONFIG, flute.render().as_bytes())
            }
            Self::Higgs { config: higgs, .. } => {
                config["quantization_config"] = higgs.clone();
                Ok(())
            }
        }
    }
}

/// The linear layers that are not quantized, the output projection among them even where it is the embedding.
fn dense_linears(reader: &Reader) -> Vec<String> {
    let dense = reader.tensors().filter_map(|(name, info)| linear(name, info));
    let dense = std::iter::once("lm_head").chain(dense);
    dense.filter(|module| !reader.is_quantized(module)).map(str::to_owned).collect()
}

/// The `quantization_config` of `layouts`, of which `first` is the rule and the others may differ.
fn quantization(
    reader: &Reader,
    first: &Layout,
    layouts: &BTreeMap<&str, Layout>,
) -> QuantizationConfig {
    if let Some(config) = &reader.config().quantization {
        return config.clone();
    }
    let (scheme, mut modules) = (first.scheme(), BTreeMap::new());
    for (module, layout) in layouts {
        let own = Some(layout.scheme()).filter(|own| *own != scheme);
        let in_features = Some(layout.k).filter(|k| layout.told_k() != *k);
        if own.is_some() || in_features.is_some() {
            modules.insert((*module).to_owned(), ModuleOverride { scheme: own, in_features });
        }
    }
    let head = Some("lm_head").filter(|head| reader.contains(&format!("{head}.weight")));
    QuantizationConfig {
        scheme,
        scale_dtype: first.scale,
        modules_to_not_convert: head.map(str::to_owned).into_iter().collect(),
        modules,
    }
}
