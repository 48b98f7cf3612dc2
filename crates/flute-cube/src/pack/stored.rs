//! Whole weights in canonical rows to kernel order, and single rows of weights.

use super::{BLOCK_ROWS, PackedWeight, Packing};
use crate::{Error, Format, Result, Table};

/// A weight in canonical rows, unchecked: what a file holds.
#[derive(Clone, Debug)]
pub struct Canonical<'a> {
    /// Rows: output features.
    pub n: usize,
    /// Columns: input features.
    pub k: usize,
    /// Bits and group.
    pub format: Format,
    /// Rows of codes, each beginning at a byte.
    pub codes: &'a [u8],
    /// `[n, groups]`.
    pub scales: &'a [f32],
    /// What the codes name.
    pub table: &'a Table,
}

impl PackedWeight {
    /// Canonical rows to kernel order; all that [`crate::Quantized::new`] checks is checked.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BitsMismatch`], [`Error::WrongLength`], [`Error::DirtyPadding`],
    /// [`Error::NotFinite`].
    pub fn from_canonical(weight: &Canonical<'_>) -> Result<Self> {
        let Canonical { n, k, format, codes, scales, table } = *weight;
        let mut packing = Packing::new(n, k, format, table)?;
        let (found, expected) = (codes.len(), n * packing.row_bytes());
        if found != expected {
            let what = "the canonical code matrix (bytes)";
            return Err(Error::WrongLength { what, found, expected });
        }
        let row_bytes = packing.row_bytes();
        packing.add(n, scales, |row, bytes| {
            bytes.copy_from_slice(&codes[row * row_bytes..][..bytes.len()]);
            Ok::<_, Error>(())
        })?;
        packing.finish()
    }

    /// Rows `ids` of the weight, in f32.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn rows(&self, ids: &[usize]) -> Vec<f32> {
        let tiles = self.n.div_ceil(BLOCK_ROWS);
        let (words, scales) = (self.words.len() / tiles, self.scales.len() / tiles);
        let row = |id: &usize| {
            let (tile, row) = (id / BLOCK_ROWS, id % BLOCK_ROWS);
            let tile = Self {
                n: BLOCK_ROWS,
                words: self.words[tile * words..][..words].to_vec(),
                scales: self.scales[tile * scales..][..scales].to_vec(),
                pairs: self.pairs.clone(),
                ..*self
            };
            tile.dequantize()[row * self.k..][..self.k].to_vec()
        };
        ids.iter().flat_map(row).collect()
    }
}
