//! Directories of the Python package FLUTE, releases 0.0.1 to 0.4.2, published as `*-FLUTE`.
//!
//! `flute_config.json` holds `num_bits` and `group_size` of all layers, and may hold `num_sms` (of the GPU whose
//! kernels were tuned; it does not affect the files) and `version`. Release 0.4 writes no `num_sms`, may pack in tiles
//! of 64, and does not say so: such a directory is read in tiles of 32 with a warning. A quantized module has
//!
//! | tensor | type | shape | holds |
//! |---|---|---|---|
//! | `X.weight` | I16 | `[n·bits/16, k]` | codes in the order of [`FluteTiles`], tiles of 32 |
//! | `X.scales` | F16 or BF16 | `[n, k/group]` | one factor a group |
//! | `X.tables` | F16 or BF16 | `[2^bits]` | what codes name |
//! | `X.tables2` | F32 | `[2^bits, 2^bits, 1]` | pairs of 16-bit table values, their bits cast |
//!
//! `X.tables2` says what `X.tables` says. It is written and never read: programs that convert a model's type corrupt
//! bits that are no float. Refused: shapes that FLUTE's kernels do not serve, and, when writing, models whose layers
//! differ in bits or group, since one file names both for all.

use super::tiles::FluteTiles;
use super::{check_range, in_module, pairs_of, table};
use crate::checkpoint::json;
use crate::checkpoint::layout::{Layout, stored_dtype};
use crate::checkpoint::reader::{Reader, float_dtype};
use crate::checkpoint::writer::TensorSpec;
use crate::error::{Error, Result};
use flute_cube::{Bits, Dtype as Float, Format, Group, Quantized, QuantizedParts};
use safetensors::Dtype;
use serde::Deserialize;
use std::path::Path;

/// The file that marks such a directory.
pub(in crate::checkpoint) const CONFIG: &str = "flute_config.json";
const LIMIT: u64 = 1 << 16;
const PARTS: [&str; 4] = ["weight", "scales", "tables", "tables2"];
/// What is written where no source says it: the A100, for which all published models were made.
const NUM_SMS: u32 = 108;

/// `flute_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::checkpoint) struct FluteConfig {
    pub(in crate::checkpoint) format: Format,
    pub(in crate::checkpoint) num_sms: u32,
}

#[derive(Deserialize)]
struct Raw {
    num_bits: u8,
    group_size: usize,
    num_sms: Option<u32>,
}

impl FluteConfig {
    /// One for `format`, whatever the GPU.
    pub(in crate::checkpoint) fn new(format: Format) -> Self {
        Self { format, num_sms: NUM_SMS }
    }

    /// Reads that of `dir`, if there is one.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(CONFIG);
        let Some(value) = json::read_value(&path, LIMIT)? else { return Ok(None) };
        let raw: Raw = json::typed(&value, &path)?;
        let range = |field, found: usize, needed: &str| {
            let (path, found, needed) = (path.clone(), found.to_string(), needed.to_owned());
            Error::ConfigRange { path, field, found, needed }
        };
        let bits = Bits::new(raw.num_bits)
            .map_err(|_| range("num_bits", raw.num_bits.into(), "2, 3 or 4"))?;
        let group = Group::new(raw.group_size)
            .map_err(|_| range("group_size", raw.group_size, "32, 64, 128 or 256"))?;
        if raw.num_sms.is_none() {
            let path = path.display();
            tracing::warn!(
                "{path} has no num_sms and may be of FLUTE 0.4: tiles of 32 are assumed"
            );
        }
        let num_sms = raw.num_sms.unwrap_or(NUM_SMS);
        Ok(Some(Self { format: Format { bits, group }, num_sms }))
    }

    /// The file, byte for byte as FLUTE 0.3 writes it.
    pub(in crate::checkpoint) fn render(&self) -> String {
        let (sms, bits, group) = (self.num_sms, self.format.bits, self.format.group);
        format!(
            "{{\n    \"num_sms\": {sms},\n    \"num_bits\": {bits},\n    \"group_size\": {group}\n}}"
        )
    }

    /// Shapes and types of `module`, checked; reads the table alone.
    pub(super) fn layout(&self, reader: &Reader, module: &str) -> Result<Layout> {
        let [weight, scales, tables, _] = PARTS.map(|part| format!("{module}.{part}"));
        let (Format { bits, group }, tiles) = (self.format, FluteTiles::new(self.format.bits));
        let [rows, k] = reader.dims(&weight, "[n * bits / 16, k]")?;
        let n = rows.saturating_mul(16) / usize::from(bits.get());
        tiles.check(module, n, k)?;
        let len = group.len(k);
        if !k.is_multiple_of(len) {
            let (module, what) = (module.into(), "k (in_features)");
            return Err(Error::PackedShape { module, what, found: k, multiple: len });
        }
        if rows != tiles.rows(n) {
            let needed = format!("[{}, {k}] for n = {n} and {bits} bits", tiles.rows(n));
            return Err(Error::TensorShape { tensor: weight, found: vec![rows, k], needed });
        }
        let (found, groups) = (&reader.info(&scales)?.shape, group.count(k));
        if found[..] != [n, groups] {
            let (found, needed) = (found.clone(), format!("[{n}, {groups}] for k = {k}"));
            return Err(Error::TensorShape { tensor: scales, found, needed });
        }
        let scale = float_dtype(&scales, reader.info(&scales)?.dtype)?;
        let values = &reader.info(&tables)?.shape;
        if values[..] != [bits.codes()] {
            let (found, needed) = (values.clone(), format!("[{}]", bits.codes()));
            return Err(Error::TensorShape { tensor: tables, found, needed });
        }
        let table = table(bits, &reader.finite(&tables)?).map_err(in_module(module))?.kind();
        Ok(Layout {
            n,
            k,
            dim: 1,
            format: self.format,
            table,
            scale,
            hadamard_size: None,
            hadamard_seed: None,
        })
    }

    pub(super) fn weight(&self, reader: &Reader, module: &str) -> Result<Quantized> {
        let Layout { n, k, format, .. } = self.layout(reader, module)?;
        let [weight, scales, tables, _] = PARTS.map(|part| format!("{module}.{part}"));
        let table = table(format.bits, &reader.finite(&tables)?).map_err(in_module(module))?;
        let scales = reader.finite(&scales)?;
        let codes = FluteTiles::new(format.bits).unpack(&reader.raw(&weight)?.bytes, n, k)?;
        Quantized::new(QuantizedParts { n, k, format, codes, scales, table })
            .map_err(in_module(module))
    }

    /// Refuses a module that FLUTE could not read from a directory of this configuration.
    pub(in crate::checkpoint) fn check(&self, module: &str, layout: &Layout) -> Result<()> {
        let refuse = |reason: String| {
            let what = format!("{module} in FLUTE's own format");
            Err(Error::Unsupported { what, reason })
        };
        if layout.dim != 1 {
            return refuse(format!("it has single codes; these name {} weights each", layout.dim));
        }
        if let Some(size) = layout.hadamard_size {
            return refuse(format!("it has no rotation; this is rotated in blocks of {size}"));
        }
        if layout.format != self.format {
            return refuse(format!(
                "all its layers are alike; this is {} and the first is {}",
                layout.format, self.format
            ));
        }
        let Group::Size(group) = layout.format.group else {
            return refuse("its groups are 32, 64, 128 or 256; this has one a row".into());
        };
        FluteTiles::new(layout.format.bits).check(module, layout.n, layout.k)?;
        if !layout.k.is_multiple_of(group as usize) {
            let (found, multiple) = (layout.k, group as usize);
            let (module, what) = (module.into(), "k (in_features)");
            return Err(Error::PackedShape { module, what, found, multiple });
        }
        Ok(())
    }

    /// The tensors of `module`, in `dtype`.
    pub(in crate::checkpoint) fn specs(
        &self,
        module: &str,
        layout: &Layout,
        dtype: Float,
    ) -> Vec<TensorSpec> {
        let (bits, dtype) = (self.format.bits, stored_dtype(dtype));
        let (n, k, codes) = (layout.n, layout.k, bits.codes());
        let shapes = [
            (Dtype::I16, vec![FluteTiles::new(bits).rows(n), k]),
            (dtype, vec![n, self.format.group.count(k)]),
            (dtype, vec![codes]),
            (Dtype::F32, vec![codes, codes, 1]),
        ];
        let spec = |(part, (dtype, shape))| {
            let name = format!("{module}.{part}");
            TensorSpec { name, dtype, shape }
        };
        PARTS.into_iter().zip(shapes).map(spec).collect()
    }

    /// The bytes of those tensors. Scales and table are rounded to `dtype`, which FLUTE computes in.
    pub(in crate::checkpoint) fn parts(
        &self,
        module: &str,
        weight: &Quantized,
        dtype: Float,
    ) -> Result<[(&'static str, Vec<u8>); 4]> {
        check_range(module, weight, dtype)?;
        let packed = FluteTiles::new(self.format.bits);
        let packed = packed.pack(weight.codes(), weight.n(), weight.k())?;
        let tables = dtype.encode(weight.table().values());
        let pairs = pairs_of(&tables);
        let bytes = [packed, dtype.encode(weight.scales()), tables, pairs];
        let mut bytes = bytes.into_iter();
        Ok(PARTS.map(|part| (part, bytes.next().unwrap_or_default())))
    }
}

/// The module that `tensor` would be a part of.
pub(super) fn module_of(tensor: &str) -> Option<&str> {
    let (module, part) = tensor.rsplit_once('.')?;
    PARTS.contains(&part).then_some(module)
}
