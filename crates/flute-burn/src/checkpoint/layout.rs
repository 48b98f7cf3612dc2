//! What a quantized module is, told by its headers: shape, format and table, whatever program wrote it.

use super::quantization::Scheme;
use super::writer::TensorSpec;
use crate::error::{Error, Result};
use crate::quantize::Method;
use flute_cube::{Dtype as Float, Format, Quantized, TableKind, pack};
use safetensors::Dtype;

/// Shape and format of a quantized module, its tensors' shapes checked against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) n: usize,
    pub(super) k: usize,
    /// Weights that one code names.
    pub(super) dim: usize,
    pub(super) format: Format,
    pub(super) table: TableKind,
    /// The narrowest type that holds its scales exactly.
    pub(super) scale: Float,
    /// Weights that were rotated together, if they were.
    pub(super) hadamard_size: Option<usize>,
    /// The seed of their signs, if the rotation is random.
    pub(super) hadamard_seed: Option<u32>,
}

impl Layout {
    /// What `method` makes of a weight `[n, k]`, its scales stored in `scale`.
    pub(super) fn of(method: &Method, n: usize, k: usize, scale: Float) -> Self {
        let (table, format) = (method.table(), method.format());
        let (hadamard_size, hadamard_seed) = (method.hadamard_size(), method.hadamard_seed());
        let (k, dim, table) = (method.stored_k(k), table.dim(), table.kind());
        Self { n, k, dim, format, table, scale, hadamard_size, hadamard_seed }
    }

    /// Bits of one stored code.
    pub(super) fn code_bits(&self) -> u8 {
        self.format.bits.get() * self.dim as u8
    }

    /// Bytes of a row of codes in our format.
    pub(super) fn row_bytes(&self) -> usize {
        pack::canonical_row_bytes(self.k.div_ceil(self.dim), self.code_bits())
    }

    /// Bytes of its tensors in our format.
    pub(super) fn bytes(&self) -> u64 {
        let scales = self.format.group.count(self.k) * self.scale.size();
        let values = self.format.bits.codes().pow(self.dim as u32) * self.dim;
        (self.n * (self.row_bytes() + scales) + values * Float::F32.size()) as u64
    }

    /// The k that a reader takes such a row to have.
    pub(super) fn told_k(&self) -> usize {
        self.row_bytes() * 8 / usize::from(self.code_bits()) * self.dim
    }

    /// The module's entry in a `quantization_config`.
    pub(super) fn scheme(&self) -> Scheme {
        let Self { format, table, hadamard_size, hadamard_seed, .. } = *self;
        Scheme { bits: format.bits, group: format.group, table, hadamard_size, hadamard_seed }
    }

    /// The tensors of `module` in our format.
    pub(super) fn specs(&self, module: &str) -> Vec<TensorSpec> {
        let bits = self.format.bits;
        let values = if self.dim == 1 { vec![bits.codes()] } else { vec![bits.pairs(), self.dim] };
        let groups = self.format.group.count(self.k);
        let spec = |part: &str, dtype, shape| {
            let name = format!("{module}.{part}");
            TensorSpec { name, dtype, shape }
        };
        vec![
            spec("codes", Dtype::U8, vec![self.n, self.row_bytes()]),
            spec("scales", stored_dtype(self.scale), vec![self.n, groups]),
            spec("table", Dtype::F32, values),
        ]
    }

    /// The bytes of those tensors.
    pub(super) fn parts(&self, weight: &Quantized) -> [(&'static str, Vec<u8>); 3] {
        let width = self.k.div_ceil(self.dim);
        [
            ("codes", pack::to_canonical(weight.codes(), width, self.code_bits())),
            ("scales", self.scale.encode(weight.scales())),
            ("table", Float::F32.encode(weight.table().values())),
        ]
    }
}

/// The name that safetensors gives a float type.
pub(super) fn stored_dtype(dtype: Float) -> Dtype {
    match dtype {
        Float::F32 => Dtype::F32,
        Float::F16 => Dtype::F16,
        Float::BF16 => Dtype::BF16,
    }
}

/// Refuses methods that rotate by different seeds, or some at random and some not: a directory has one seed.
pub(super) fn one_seed<'a>(methods: impl Iterator<Item = &'a Method>) -> Result<()> {
    let rotating = methods.filter(|method| method.hadamard_size().is_some());
    let mut seeds = rotating.map(Method::hadamard_seed);
    let first = seeds.next().flatten();
    let words = |seed: Option<u32>| seed.map_or("none".to_owned(), |seed| seed.to_string());
    match seeds.find(|seed| *seed != first) {
        None => Ok(()),
        Some(other) => Err(Error::InvalidOption {
            name: "the seed of the rotations",
            found: format!("{} for one layer and {} for another", words(first), words(other)),
            needed: "the same for all layers of a directory".into(),
        }),
    }
}
