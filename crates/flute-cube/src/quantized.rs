//! A weight matrix in its canonical form: what quantizers make and files hold, whatever the device.
//!
//! Refused: lengths that contradict the shape, codes that name no entry, scales that are not finite, a table of
//! another width. What a [`Quantized`] holds needs no further check anywhere.

use crate::{Error, Format, Result, Table};
use rayon::prelude::*;

/// The parts of a [`Quantized`], unchecked.
#[derive(Clone, Debug)]
pub struct QuantizedParts {
    /// Rows: output features.
    pub n: usize,
    /// Columns: input features.
    pub k: usize,
    /// Bits and group.
    pub format: Format,
    /// `[n, ceil(k / dim)]`, one code a byte.
    pub codes: Vec<u8>,
    /// `[n, groups]`.
    pub scales: Vec<f32>,
    /// What the codes name.
    pub table: Table,
}

/// `W[n,k] = table[codes] · scales`, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    n: usize,
    k: usize,
    format: Format,
    codes: Vec<u8>,
    scales: Vec<f32>,
    table: Table,
}

/// Rows and columns beyond this are refused: indices inside kernels are 32 bits wide.
pub const MAX_DIM: usize = 1 << 24;

impl Quantized {
    /// Checks `parts` and takes them.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BitsMismatch`], [`Error::WrongLength`], [`Error::CodeOutOfRange`],
    /// [`Error::NotFinite`].
    pub fn new(parts: QuantizedParts) -> Result<Self> {
        let QuantizedParts { n, k, format, codes, scales, table } = parts;
        check_shape(n, k, format, &table)?;
        let (found, expected) = (codes.len(), n * k.div_ceil(table.dim()));
        if found != expected {
            return Err(Error::WrongLength { what: "the code matrix", found, expected });
        }
        let entries = table.entries();
        if let Some(index) = first_index(&codes, |c| usize::from(*c) >= entries) {
            return Err(Error::CodeOutOfRange { index, code: codes[index], entries });
        }
        check_scales(&scales, n, format.group.count(k))?;
        Ok(Self { n, k, format, codes, scales, table })
    }

    /// Output features.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Bits and group.
    pub fn format(&self) -> Format {
        self.format
    }

    /// `[n, ceil(k / dim)]`.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// `[n, groups]`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// What the codes name.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The index into the pair table of the weights at `2·pair` and `2·pair + 1` of row `row`; the partner that an
    /// odd k lacks counts as code 0.
    pub fn pair_index(&self, row: usize, pair: usize) -> u8 {
        let width = self.k.div_ceil(self.table.dim());
        let row = &self.codes[row * width..][..width];
        if self.table.dim() == 2 {
            return row[pair];
        }
        let odd = row.get(2 * pair + 1).copied().unwrap_or(0);
        row[2 * pair] | odd << self.format.bits.get()
    }

    /// The weights `[n, k]` in f32: each product rounded once.
    pub fn dequantize(&self) -> Vec<f32> {
        let (pairs, group) = (self.table.pair_table(), self.format.group.len(self.k));
        let mut out = vec![0.0; self.n * self.k];
        out.par_chunks_mut(self.k).enumerate().for_each(|(row, out)| {
            let scales = &self.scales[row * self.format.group.count(self.k)..];
            for (col, w) in out.iter_mut().enumerate() {
                *w = pairs[usize::from(self.pair_index(row, col / 2))][col % 2]
                    * scales[col / group];
            }
        });
        out
    }
}

/// Checks n, k and the width of the table.
pub(crate) fn check_shape(n: usize, k: usize, format: Format, table: &Table) -> Result<()> {
    for (what, found) in [("n", n), ("k", k)] {
        if !(1..=MAX_DIM).contains(&found) {
            return Err(Error::OutOfRange { what, found, min: 1, max: MAX_DIM });
        }
    }
    if table.bits() != format.bits {
        return Err(Error::BitsMismatch { table: table.bits(), format: format.bits });
    }
    Ok(())
}

/// Checks the number of scales, and that all are finite.
pub(crate) fn check_scales(scales: &[f32], n: usize, groups: usize) -> Result<()> {
    let (what, found, expected) = ("the scale matrix", scales.len(), n * groups);
    if found != expected {
        return Err(Error::WrongLength { what, found, expected });
    }
    match first_index(scales, |scale| !scale.is_finite()) {
        Some(index) => Err(Error::NotFinite { what, index, value: scales[index] }),
        None => Ok(()),
    }
}

/// Where `values` first satisfies `wrong`. By chunks: a parallel search that compares one by one asks a shared counter
/// for each, and took 640 ms for the codes of a 4096 × 14336 weight.
fn first_index<T: Sync>(values: &[T], wrong: impl Fn(&T) -> bool + Sync) -> Option<usize> {
    const CHUNK: usize = 1 << 16;
    let chunk = values.par_chunks(CHUNK).position_first(|chunk| chunk.iter().any(&wrong))?;
    let within = values[chunk * CHUNK..].iter().position(&wrong)?;
    Some(chunk * CHUNK + within)
}
