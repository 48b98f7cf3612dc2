//! Writes a quantized directory anew, with other scales and tables: codes, and all that is not quantized, are copied.
//!
//! For what was learned. Refused: scales beyond the range of the type they are stored in, and layers of another shape
//! than the directory's.

use super::companions::write_companions;
use super::layout::Layout;
use super::reader::Reader;
use super::writer::{TensorSpec, Writer, WriterOptions};
use crate::error::{Error, Result};
use crate::learn::LearnedWeight;
use flute_cube::{Dtype as Float, TableKind};
use std::collections::BTreeMap;
use std::path::Path;

/// What is written in place of what.
pub(crate) struct Revision<'a> {
    /// Weights by module.
    pub(crate) weights: &'a BTreeMap<String, LearnedWeight>,
    /// Whether their tables are written too.
    pub(crate) tables: bool,
    /// Appended to the model card.
    pub(crate) note: &'a str,
}

/// Writes `source`, a directory of ours, as `target`.
///
/// # Errors
/// What [`Reader::open`] and [`Writer::create`] refuse; [`Error::ScaleOverflow`], [`Error::TensorShape`],
/// [`Error::TensorAbsent`] for a module that the source lacks.
pub(crate) fn revise(
    source: &Path,
    target: &Path,
    revision: &Revision<'_>,
    options: WriterOptions,
) -> Result<()> {
    let reader = Reader::open(source)?;
    let mut replaced: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (module, weight) in revision.weights {
        let layout = reader.layout(module)?;
        replaced.insert(format!("{module}.scales"), scales(module, &layout, weight)?);
        if revision.tables {
            let table = Float::F32.encode(&weight.table(layout.dim));
            replaced.insert(format!("{module}.table"), table);
        }
    }
    let specs = reader.tensors().map(|(name, info)| {
        let (name, shape) = (name.to_owned(), info.shape.clone());
        TensorSpec { name, dtype: info.dtype, shape }
    });
    let mut writer = Writer::create(target, specs.collect(), options)?;
    for name in reader.tensor_names() {
        match replaced.get(name) {
            Some(bytes) => writer.append(name, bytes)?,
            None => reader.stream(name, |piece| writer.append(name, piece))?,
        }
    }
    write_companions(&reader, &writer)?;
    let mut config = reader.config_source().clone();
    if let (true, Some(quantization)) = (revision.tables, &reader.config().quantization) {
        let mut quantization = quantization.clone();
        let own = quantization.modules.values_mut().filter_map(|module| module.scheme.as_mut());
        for scheme in own.chain([&mut quantization.scheme]) {
            if scheme.table != TableKind::Pairs {
                scheme.table = TableKind::Custom;
            }
        }
        config["quantization_config"] = quantization.to_json();
    }
    writer.file("config.json", format!("{config:#}\n").as_bytes())?;
    let card = reader.dir().join("README.md");
    let mut text = std::fs::read_to_string(&card).map_err(Error::io("read", &card))?;
    text.push_str(revision.note);
    writer.file("README.md", text.as_bytes())?;
    writer.finish()?;
    Ok(())
}

/// The scales as they are stored.
fn scales(module: &str, layout: &Layout, weight: &LearnedWeight) -> Result<Vec<u8>> {
    let groups = layout.format.group.count(layout.k);
    if weight.scales.len() != layout.n * groups {
        return Err(Error::TensorShape {
            tensor: format!("{module}.scales"),
            found: vec![weight.scales.len()],
            needed: format!("[{}, {groups}]", layout.n),
        });
    }
    let (dtype, tensor) = (layout.scale, format!("{module}.scales"));
    match weight.scales.iter().position(|scale| !dtype.round(*scale).is_finite()) {
        None => Ok(dtype.encode(&weight.scales)),
        Some(at) => {
            let (row, group, value) = (at / groups, at % groups, weight.scales[at]);
            Err(Error::ScaleOverflow { tensor, row, group, value, dtype })
        }
    }
}
