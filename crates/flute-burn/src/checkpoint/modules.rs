//! The quantized layers of a directory, whatever program's format they have; see [`super::import`] for the others.

use super::import::Foreign;
use super::import::flute_legacy::FluteConfig;
use super::layout::Layout;
use super::positioned::read_exact_at;
use super::quantization::Scheme;
use super::reader::{Reader, float_dtype, shape_error};
use crate::error::{Error, Result};
use flute_cube::pack::{self, Order, Packing};
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
        let Parts { layout, table, .. } = self.parts(module)?;
        let scales = self.finite(&format!("{module}.scales"))?;
        let bytes = self.raw(&format!("{module}.codes"))?.bytes;
        let (n, k, format) = (layout.n, layout.k, layout.format);
        let in_module = |source| Error::Module { module: module.into(), source };
        let width = k.div_ceil(layout.dim);
        let codes =
            pack::from_canonical(&bytes, n, width, layout.code_bits()).map_err(in_module)?;
        Quantized::new(QuantizedParts { n, k, format, codes, scales, table }).map_err(in_module)
    }

    /// The same in kernel order; of our format, without a byte for every code between.
    pub(super) fn packed_weight(&self, module: &str) -> Result<PackedWeight> {
        match self.foreign {
            Some(_) => Ok(PackedWeight::pack(&self.quantized(module)?)),
            None => self.pack(&self.parts(module)?, &[]),
        }
    }

    /// The weights of `modules` as one, in kernel order, their rows in `order`; none if they cannot be one.
    pub(super) fn packed_stack_weight(
        &self,
        modules: &[String],
        order: Order,
    ) -> Result<Option<PackedWeight>> {
        if self.foreign.is_some() {
            let weights = modules.iter().map(|module| self.packed_weight(module));
            return Ok(PackedWeight::stack(weights.collect::<Result<_>>()?, order).ok());
        }
        let parts = modules.iter().map(|module| self.parts(module)).collect::<Result<Vec<_>>>()?;
        if !parts.windows(2).all(|two| two[0].is_like(&two[1])) {
            return Ok(None);
        }
        let n = |part: &Parts<'_>| part.layout.n;
        let whole = |part: &Parts<'_>| n(part).is_multiple_of(pack::BLOCK_ROWS);
        match (order, parts.as_slice()) {
            (Order::Stacked, [above @ .., _]) if !above.iter().all(whole) => Ok(None),
            (Order::Stacked, [first, rest @ ..]) => self.pack(first, rest).map(Some),
            (Order::ByTurns, [first, second])
                if n(first) == n(second) && n(first).is_multiple_of(pack::TURN) =>
            {
                self.pack_by_turns([first, second]).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Modules that are alike as one weight. Codes go from the file through pieces that a cache holds to their place.
    fn pack(&self, first: &Parts<'_>, rest: &[Parts<'_>]) -> Result<PackedWeight> {
        let Layout { k, format, .. } = first.layout;
        let all = || std::iter::once(first).chain(rest);
        let n = all().map(|part| part.layout.n).sum();
        let packing = Packing::new(n, k, format, &first.table);
        let mut packing = packing.map_err(in_module(first.module))?;
        let row_bytes = packing.row_bytes() as u64;
        for Parts { module, layout, .. } in all() {
            let scales = self.finite(&format!("{module}.scales"))?;
            let (path, file, info) = self.find(&format!("{module}.codes"))?;
            let read = |row, bytes: &mut [u8]| {
                let offset = info.offset + row as u64 * row_bytes;
                read_exact_at(file, bytes, offset).map_err(Error::io("read", path))
            };
            packing.add(layout.n, &scales, read).map_err(|error| match error {
                Error::Cube(source) => in_module(module)(source),
                error => error,
            })?;
        }
        packing.finish().map_err(in_module(first.module))
    }

    /// Two modules that are alike as one weight by turns, read from both files at once.
    fn pack_by_turns(&self, both: [&Parts<'_>; 2]) -> Result<PackedWeight> {
        let Layout { n, k, format, .. } = both[0].layout;
        let modules = both.map(|part| part.module);
        let mut packing =
            Packing::new(2 * n, k, format, &both[0].table).map_err(in_module(modules[0]))?;
        let scales = |module: &str| self.finite(&format!("{module}.scales"));
        let scales = [scales(modules[0])?, scales(modules[1])?];
        let scales = pack::by_turns(&scales[0], &scales[1], format.group.count(k));
        let codes = |module: &str| self.find(&format!("{module}.codes"));
        let codes = [codes(modules[0])?, codes(modules[1])?];
        let row_bytes = packing.row_bytes();
        let read = |first: usize, bytes: &mut [u8]| -> Result<()> {
            for (turn, bytes) in bytes.chunks_mut(pack::TURN * row_bytes).enumerate() {
                let (part, row) = pack::turn_of(first + turn * pack::TURN);
                let (path, file, info) = codes[part];
                let offset = info.offset + (row * row_bytes) as u64;
                read_exact_at(file, bytes, offset).map_err(Error::io("read", path))?;
            }
            Ok(())
        };
        packing.add(2 * n, &scales, read).map_err(|error| match error {
            Error::Cube(flute_cube::Error::DirtyPadding { row }) => {
                let (part, row) = pack::turn_of(row);
                in_module(modules[part])(flute_cube::Error::DirtyPadding { row })
            }
            Error::Cube(source) => in_module(modules[0])(source),
            error => error,
        })?;
        packing.finish().map_err(in_module(modules[0]))
    }

    /// Shapes and table of a module in our format.
    fn parts<'a>(&self, module: &'a str) -> Result<Parts<'a>> {
        let layout = self.layout(module)?;
        let bits = layout.format.bits;
        let values = self.finite(&format!("{module}.table"))?;
        let table = match layout.dim {
            1 => named_or_custom(&layout, &values),
            _ => Table::pairs(bits, values.as_chunks().0),
        }
        .map_err(|source| Error::Module { module: module.into(), source })?;
        Ok(Parts { module, layout, table })
    }

    /// `[n, k]` of the quantized module as it is stored, and the blocks of its rotation.
    pub(crate) fn quantized_shape(&self, module: &str) -> Result<([usize; 2], Option<usize>)> {
        self.layout(module).map(|layout| ([layout.n, layout.k], layout.hadamard_size))
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

/// What was refused, and of which module.
fn in_module(module: &str) -> impl FnOnce(flute_cube::Error) -> Error {
    let module = module.to_owned();
    |source| Error::Module { module, source }
}

/// A module in our format, its codes and scales unread.
struct Parts<'a> {
    module: &'a str,
    layout: Layout,
    table: Table,
}

impl Parts<'_> {
    /// Whether rows of `other` can lie below its own in one weight.
    fn is_like(&self, other: &Self) -> bool {
        let shape = |part: &Self| (part.layout.k, part.layout.dim, part.layout.format);
        let bits =
            |part: &Self| part.table.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        shape(self) == shape(other) && bits(self) == bits(other)
    }
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
