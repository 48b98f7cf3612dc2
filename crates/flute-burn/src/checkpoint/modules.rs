//! The quantized layers of a directory, whatever program's format they have; see [`super::import`] for the others.

use super::import::Foreign;
use super::import::flute_legacy::FluteConfig;
use super::layout::Layout;
use super::quantization::Scheme;
use super::reader::{Reader, float_dtype, shape_error};
use crate::error::{Error, Result};
use flute_cube::pack::{self, Canonical};
use flute_cube::{Format, PackedWeight, Quantized, QuantizedParts, Table};
use safetensors::Dtype;

impl Reader {
    /// Bits of the codes of its quantized layers, where they do not differ from the rule.
    pub(crate) fn bits(&self) -> Option<u8> {
        let ours = self.config().quantization.as_ref().map(|config| config.scheme.bits);
        ours.or(self.foreign.as_ref().map(Foreign::bits)).map(|bits| bits.get())
    }

    /// The `flute_config.json` of a directory that has one.
    pub(super) fn flute_config(&self) -> Option<FluteConfig> {
        match &self.foreign {
            Some(Foreign::FluteLegacy(config)) => Some(*config),
            _ => None,
        }
    }

    /// Whether the linear layer `module` is stored quantized.
    pub fn is_quantized(&self, module: &str) -> bool {
        match &self.foreign {
            Some(foreign) => foreign.holds(self, module),
            None => self.contains(&format!("{module}.codes")),
        }
    }

    /// The linear layers that are stored quantized, sorted by name.
    pub fn quantized_modules(&self) -> impl Iterator<Item = &str> {
        let stem = if self.foreign.is_some() { ".weight" } else { ".codes" };
        let modules = self.tensor_names().filter_map(move |name| name.strip_suffix(stem));
        modules.filter(|module| self.is_quantized(module))
    }

    /// The module that `tensor` would be a part of, were it quantized.
    pub(super) fn module_of<'a>(&self, tensor: &'a str) -> Option<&'a str> {
        if let Some(foreign) = &self.foreign {
            return foreign.module_of(tensor);
        }
        let (module, part) = tensor.rsplit_once('.')?;
        ["codes", "scales", "table"].contains(&part).then_some(module)
    }

    /// The quantized weight of `module`.
    pub(super) fn quantized(&self, module: &str) -> Result<Quantized> {
        if let Some(foreign) = &self.foreign {
            return foreign.weight(self, module);
        }
        let Parts { layout, table, scales, codes: bytes } = self.parts(module)?;
        let (n, k, format) = (layout.n, layout.k, layout.format);
        let in_module = |source| Error::Module { module: module.into(), source };
        let width = k.div_ceil(layout.dim);
        let codes =
            pack::from_canonical(&bytes, n, width, layout.code_bits()).map_err(in_module)?;
        Quantized::new(QuantizedParts { n, k, format, codes, scales, table }).map_err(in_module)
    }

    /// The same in kernel order; of our format, without a byte for every code between.
    pub(super) fn packed_weight(&self, module: &str) -> Result<PackedWeight> {
        if self.foreign.is_some() {
            return Ok(PackedWeight::pack(&self.quantized(module)?));
        }
        let Parts { layout, table, scales, codes } = self.parts(module)?;
        let Layout { n, k, format, .. } = layout;
        let weight = Canonical { n, k, format, codes: &codes, scales: &scales, table: &table };
        let in_module = |source| Error::Module { module: module.into(), source };
        PackedWeight::from_canonical(&weight).map_err(in_module)
    }

    /// The tensors of a module in our format.
    fn parts(&self, module: &str) -> Result<Parts> {
        let layout = self.layout(module)?;
        let bits = layout.format.bits;
        let values = self.finite(&format!("{module}.table"))?;
        let table = match layout.dim {
            1 => named_or_custom(&layout, &values),
            _ => Table::pairs(bits, values.as_chunks().0),
        }
        .map_err(|source| Error::Module { module: module.into(), source })?;
        let scales = self.finite(&format!("{module}.scales"))?;
        let codes = self.raw(&format!("{module}.codes"))?.bytes;
        Ok(Parts { layout, table, scales, codes })
    }

    /// The shapes of a quantized module, checked against each other.
    pub(super) fn layout(&self, module: &str) -> Result<Layout> {
        if let Some(foreign) = &self.foreign {
            return foreign.layout(self, module);
        }
        let absent = || Error::QuantizationAbsent { dir: self.dir().into(), tensor: module.into() };
        let config = self.config().quantization.as_ref().ok_or_else(absent)?;
        let scheme = config.scheme_of(module);
        let format = Format { bits: scheme.bits, group: scheme.group };
        let (codes, table) = (format!("{module}.codes"), format!("{module}.table"));
        let (scales, values) = (format!("{module}.scales"), self.info(&table)?);
        let dim = match values.shape.as_slice() {
            [len] if *len == format.bits.codes() => 1,
            [len, 2] if *len == format.bits.pairs() => 2,
            found => {
                let (values, pairs) = (format.bits.codes(), format.bits.pairs());
                return Err(shape_error(&table, found, format!("[{values}] or [{pairs}, 2]")));
            }
        };
        for (name, needed, what) in [(&codes, Dtype::U8, "U8"), (&table, Dtype::F32, "F32")] {
            dtype_is(name, self.info(name)?.dtype, needed, what)?;
        }
        let [n, row_bytes] = self.dims(&codes, "[n, row bytes]")?;
        let scale = float_dtype(&scales, self.info(&scales)?.dtype)?;
        let Scheme { table, hadamard_size, hadamard_seed, .. } = scheme;
        let mut layout =
            Layout { n, k: 0, dim, format, table, scale, hadamard_size, hadamard_seed };
        let told = row_bytes.saturating_mul(8) / usize::from(layout.code_bits()) * dim;
        let k = config.in_features_of(module).unwrap_or(told);
        layout.k = k.min(flute_cube::MAX_DIM);
        let row = layout.row_bytes();
        if row != row_bytes || n == 0 || k == 0 || k > flute_cube::MAX_DIM {
            return Err(shape_error(&codes, &[n, row_bytes], format!("[n, {row}] for k = {k}")));
        }
        if let Some(block) = hadamard_size.filter(|block| !k.is_multiple_of(*block)) {
            let needed = format!("whole blocks of hadamard_size {block} wide, and k = {k}");
            return Err(shape_error(&codes, &[n, row_bytes], needed));
        }
        let [rows, groups] = self.dims(&scales, "[n, groups]")?;
        let needed = format.group.count(k);
        if (rows, groups) != (n, needed) {
            return Err(shape_error(
                &scales,
                &[rows, groups],
                format!("[{n}, {needed}] for k = {k}"),
            ));
        }
        Ok(layout)
    }
}

/// A module in our format as it is stored, its codes unchecked.
struct Parts {
    layout: Layout,
    table: Table,
    scales: Vec<f32>,
    codes: Vec<u8>,
}

/// The table of stored `values`. They rule; the configuration's name for them is kept where it fits.
fn named_or_custom(layout: &Layout, values: &[f32]) -> flute_cube::Result<Table> {
    match Table::named(layout.table, layout.format.bits) {
        Ok(named) if named.values() == values => Ok(named),
        _ => Table::custom(layout.format.bits, values),
    }
}

fn dtype_is(name: &str, found: Dtype, needed: Dtype, what: &'static str) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    Err(Error::TensorDtype { tensor: name.into(), found: found.to_string(), needed: what })
}
