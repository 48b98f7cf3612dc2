//! What the command line asks for. Refused: unknown options, values that do not parse, and numbers that no kernel
//! serves; the message names the option.

use anyhow::{Context, Result, bail, ensure};
use flute_cube::{Dtype, Format};
use std::{path::PathBuf, str::FromStr, time::Duration};

pub(crate) const USAGE: &str = "\
usage: cargo bench --bench qgemm -- [OPTIONS]

  --device NAME,…   auto, cuda[:i], rocm[:i], wgpu[:i], vulkan[:i], metal[:i], wgpu:cpu, cpu   [auto]
  --shape NxK,…     output x input features  [4096x4096,28672x4096,4096x14336,57344x8192,8192x28672]
  --m M,…           rows of activations      [1,16,256,4096; 4096 where n is at most 30000]
  --bits B,…        4, 3, 2                  [all three]
  --group G,…       32, 64, 128, 256         [128]
  --dtype T         f16, bf16, f32           [f16]
  --tune            measure every plan, report the best beside the selected one
  --burn            measure Burn's own f16 matmul too (its first run of a shape tunes itself for seconds)
  --layer           measure the operation as a model calls it, on GPUs too: with many rows it may decode the weight and
                    let Burn multiply, where otherwise the selected plan is measured
  --sweep FOLDER    instead, times over rows from 1 to 8192: every plan, dense products and the floor, for each shape as
                    JSON and drawn as SVG; for GPUs
  --quick           4 bits alone, unless --bits says more
  --pause MS        idle time before each group of figures, against heat  [300]
  --json FILE       write the figures there too, as an array of objects

The CPU, and a device that reads less than 50 GB/s, get 4096x4096 and m = 1 and 16 unless told otherwise.";

/// The command line.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) devices: Vec<String>,
    shapes: Option<Vec<(usize, usize)>>,
    m: Option<Vec<usize>>,
    pub(crate) formats: Vec<Format>,
    pub(crate) dtype: Dtype,
    pub(crate) tune: bool,
    pub(crate) burn: bool,
    /// Measure the operation instead of a plan.
    pub(crate) layer: bool,
    pub(crate) pause: Duration,
    pub(crate) json: Option<PathBuf>,
    /// Where a sweep over rows goes, if one is asked for.
    pub(crate) sweep: Option<PathBuf>,
}

const SHAPES: [(usize, usize); 5] =
    [(4096, 4096), (28672, 4096), (4096, 14336), (57344, 8192), (8192, 28672)];
const M: [usize; 4] = [1, 16, 256, 4096];

impl Options {
    /// Of these arguments; none if they ask for help.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            devices: vec!["auto".into()],
            shapes: None,
            m: None,
            formats: vec![],
            dtype: Dtype::F16,
            tune: false,
            burn: false,
            layer: false,
            pause: Duration::from_millis(300),
            json: None,
            sweep: None,
        };
        let (mut bits, mut groups, mut quick) = (None, vec![128], false);
        let mut args = args.peekable();
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
                "--tune" => options.tune = true,
                "--burn" => options.burn = true,
                "--layer" => options.layer = true,
                "--quick" => quick = true,
                "--device" => options.devices = list(&name, &value()?)?,
                "--shape" => options.shapes = Some(shapes(&value()?)?),
                "--m" => options.m = Some(positive(&name, &value()?)?),
                "--bits" => bits = Some(list(&name, &value()?)?),
                "--group" => groups = list(&name, &value()?)?,
                "--dtype" => options.dtype = dtype(&value()?)?,
                "--pause" => {
                    let all = list(&name, &value()?)?;
                    options.pause = Duration::from_millis(all[0]);
                }
                "--sweep" => options.sweep = Some(value()?.into()),
                "--json" => options.json = Some(value()?.into()),
                _ => bail!("{name} is not an option"),
            }
        }
        let bits = bits.unwrap_or_else(|| if quick { vec![4] } else { vec![4, 3, 2] });
        for bits in &bits {
            for group in &groups {
                options.formats.push(Format::new(*bits, *group)?);
            }
        }
        Ok(Some(options))
    }

    /// The shapes `(n, k)` for a device that is `slow` or not, each with its rows of activations.
    pub(crate) fn cases(&self, slow: bool) -> Vec<((usize, usize), Vec<usize>)> {
        let shapes = self.shapes.clone().unwrap_or_else(|| match slow {
            true => SHAPES[..1].to_vec(),
            false => SHAPES.to_vec(),
        });
        let rows = |n: usize| {
            let most = match slow {
                true => 16,
                false if n <= 30_000 => 4096,
                false => 256,
            };
            self.m.clone().unwrap_or_else(|| M.into_iter().filter(|m| *m <= most).collect())
        };
        shapes.into_iter().map(|(n, k)| ((n, k), rows(n))).collect()
    }
}

fn list<T: FromStr>(name: &str, value: &str) -> Result<Vec<T>> {
    let parse =
        |v: &str| v.parse().ok().with_context(|| format!("{name}: '{v}' is no value of it"));
    value.split(',').map(parse).collect()
}

fn positive(name: &str, value: &str) -> Result<Vec<usize>> {
    let all: Vec<usize> = list(name, value)?;
    ensure!(all.iter().all(|v| *v > 0), "{name}: 0 rows take no time");
    Ok(all)
}

fn shapes(value: &str) -> Result<Vec<(usize, usize)>> {
    let shape = |v: &str| {
        let pair = v.split_once('x').and_then(|(n, k)| Some((n.parse().ok()?, k.parse().ok()?)));
        pair.filter(|(n, k)| *n > 0 && *k > 0)
            .with_context(|| format!("--shape: '{v}' is not NxK, such as 4096x14336"))
    };
    value.split(',').map(shape).collect()
}

fn dtype(value: &str) -> Result<Dtype> {
    let found = Dtype::ALL.into_iter().find(|dtype| dtype.to_string() == value);
    found.with_context(|| format!("--dtype: '{value}' is none of f16, bf16, f32"))
}
