//! Quantizers: a weight `[n, k]` to codes, scales and table.
//!
//! The methods are a closed set, not a trait: each is one file here and one variant of [`Method`]. All refuse weights
//! that are not finite, naming the tensor and the place, since one NaN would turn into plausible codes.

mod absmax;
mod allocate;
pub mod grid;
mod higgs;
mod lloyd;
mod planes;

pub use allocate::{Choice, allocate};
pub use higgs::Higgs;

use crate::error::{Error, Result};
use flute_cube::{Format, Group, Quantized, QuantizedParts, Table};

/// How to choose codes and scales.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Method {
    /// Round to nearest: a group's scale is its largest magnitude, a weight's code that of the nearest table entry.
    /// With the Normal Float table this is QLoRA's and FLUTE's quantizer.
    Absmax {
        /// What codes name; single values.
        table: Table,
        /// Weights that share a scale.
        group: Group,
    },
    /// Rotated blocks, norm scales and a grid for the normal distribution. What it makes is the *rotated* weight, with
    /// k padded to whole blocks: a layer rotates its activations too.
    Higgs(Higgs),
}

impl Method {
    /// What the codes name.
    pub fn table(&self) -> &Table {
        match self {
            Self::Absmax { table, .. } => table,
            Self::Higgs(higgs) => higgs.table(),
        }
    }

    /// Bits and group of what it makes.
    pub fn format(&self) -> Format {
        match self {
            Self::Absmax { table, group } => Format { bits: table.bits(), group: *group },
            Self::Higgs(higgs) => Format { bits: higgs.table().bits(), group: higgs.group() },
        }
    }

    /// Weights that are rotated together, if it rotates.
    pub fn hadamard_size(&self) -> Option<usize> {
        match self {
            Self::Absmax { .. } => None,
            Self::Higgs(higgs) => Some(higgs.hadamard_size()),
        }
    }

    /// The seed of the signs of a random rotation, if it is one.
    pub fn hadamard_seed(&self) -> Option<u32> {
        match self {
            Self::Absmax { .. } => None,
            Self::Higgs(higgs) => higgs.seed(),
        }
    }

    /// The k of what it makes of a weight of `k` columns: whole blocks where it rotates.
    pub fn stored_k(&self, k: usize) -> usize {
        self.hadamard_size().map_or(k, |block| k.next_multiple_of(block))
    }

    /// The name in messages and model cards.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Absmax { .. } => "absmax",
            Self::Higgs(_) => "higgs",
        }
    }
}

/// Quantizes `weight` `[n, k]`, row-major, rows being output features; `name` is for messages. Scales are not yet
/// rounded to the type they will be stored in. The result has [`Method::stored_k`] columns. Parallel over rows.
///
/// # Errors
/// [`Error::WeightLength`], [`Error::NotFinite`] naming the first such weight, [`Error::TableDimension`], and
/// [`flute_cube::Error`] for a shape that no kernel addresses.
///
/// ```
/// use flute_burn::quantize::{self, Method};
/// use flute_cube::{Bits, Group, Table};
///
/// let method = Method::Absmax { table: Table::int(Bits::Four), group: Group::new(32)? };
/// let weight = quantize::quantize("w", &[-0.5, 0.25, 0.125, 0.0], 1, 4, &method)?;
/// assert_eq!(weight.scales(), [0.5]);
/// assert_eq!(weight.codes(), [0, 12, 10, 8]);
/// # Ok::<(), flute_burn::error::Error>(())
/// ```
pub fn quantize(
    name: &str,
    weight: &[f32],
    n: usize,
    k: usize,
    method: &Method,
) -> Result<Quantized> {
    let needed = n.checked_mul(k).filter(|needed| *needed == weight.len() && *needed > 0);
    if needed.is_none() {
        let (tensor, needed) = (name.into(), n.saturating_mul(k));
        return Err(Error::WeightLength { tensor, n, k, found: weight.len(), needed });
    }
    let format = method.format();
    let not_finite = |(row, col): (usize, usize)| {
        let (tensor, value) = (name.into(), weight[row * k + col]);
        Error::NotFinite { tensor, row, col, value }
    };
    let (codes, scales) = match method {
        Method::Absmax { table, group } => {
            if table.dim() != 1 {
                return Err(Error::TableDimension { found: table.kind(), dim: table.dim() });
            }
            absmax::quantize(weight, k, *group, table).map_err(not_finite)?
        }
        Method::Higgs(higgs) => higgs.quantize(weight, k).map_err(not_finite)?,
    };
    let (table, k) = (method.table().clone(), method.stored_k(k));
    Ok(Quantized::new(QuantizedParts { n, k, format, codes, scales, table })?)
}
