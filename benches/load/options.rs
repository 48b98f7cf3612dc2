//! What the command line asks for. Refused: unknown options and values that do not parse; the message names the option.

use anyhow::{Context, Result, bail, ensure};
use flute_cube::Format;
use std::{path::PathBuf, str::FromStr};

pub(crate) const USAGE: &str = "\
usage: cargo bench --bench load -- [OPTIONS]

  --shape NAME    a model whose shape is known, as in `flute bench --shape`  [llama-3.1-8b]
  --layers N      blocks written, fewer than the model has  [all]
  --bits B        4, 3, 2  [4]
  --group G       32, 64, 128, 256  [128]
  --device NAME   auto, cuda[:i], rocm[:i], wgpu[:i], vulkan[:i], metal[:i], wgpu:cpu, cpu  [auto]
  --runs N        loads  [4]
  --dir DIR       where the checkpoint is written, and deleted  [the system's temporary directory]
  --json          one JSON object on stdout";

/// The command line.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) shape: String,
    pub(crate) layers: Option<usize>,
    pub(crate) format: Format,
    pub(crate) device: String,
    pub(crate) runs: usize,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) json: bool,
}

impl Options {
    /// Of these arguments; none if they ask for help.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let (mut bits, mut group) = (4, 128);
        let mut options = Self {
            shape: "llama-3.1-8b".into(),
            layers: None,
            format: Format::new(bits, group)?,
            device: "auto".into(),
            runs: 4,
            dir: None,
            json: false,
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            let (name, inline) = match arg.split_once('=') {
                Some((name, value)) => (name.to_string(), Some(value.to_string())),
                None => (arg, None),
            };
            let mut value = || {
                inline.clone().or_else(|| args.next()).with_context(|| format!("{name}: no value"))
            };
            match name.as_str() {
                "--help" | "-h" => return Ok(None),
                // What cargo itself adds.
                "--bench" => {}
                "--shape" => options.shape = value()?,
                "--layers" => options.layers = Some(count(&name, &value()?)?),
                "--bits" => bits = parsed(&name, &value()?)?,
                "--group" => group = parsed(&name, &value()?)?,
                "--device" => options.device = value()?,
                "--runs" => options.runs = count(&name, &value()?)?,
                "--dir" => options.dir = Some(value()?.into()),
                "--json" => options.json = true,
                _ => bail!("{name} is not an option"),
            }
        }
        options.format = Format::new(bits, group)?;
        Ok(Some(options))
    }
}

fn parsed<T: FromStr>(name: &str, value: &str) -> Result<T> {
    value.parse().ok().with_context(|| format!("{name}: '{value}' is no value of it"))
}

fn count(name: &str, value: &str) -> Result<usize> {
    let count = parsed(name, value)?;
    ensure!(count > 0, "{name}: 0 leaves nothing to measure");
    Ok(count)
}
