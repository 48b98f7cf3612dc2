//! From files to kernel order without a byte for every code between them, and several weights as one.

use super::{
    BLOCK_K, BLOCK_ROWS, PackedWeight, blocks, canonical_row_bytes, scales_in_kernel_order,
};
use crate::{Error, Format, Result, Table, quantized};
use rayon::prelude::*;

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
        quantized::check_shape(n, k, format, table)?;
        quantized::check_scales(scales, n, format.group.count(k))?;
        let (width, code_bits) = (k.div_ceil(table.dim()), format.bits.get() * table.dim() as u8);
        let row_bytes = canonical_row_bytes(width, code_bits);
        if codes.len() != n * row_bytes {
            let what = "the canonical code matrix (bytes)";
            return Err(Error::WrongLength { what, found: codes.len(), expected: n * row_bytes });
        }
        let used = width * usize::from(code_bits) % 8;
        let dirty = |row: &[u8]| used > 0 && row[row_bytes - 1] >> used != 0;
        if let Some(row) = codes.chunks_exact(row_bytes).position(dirty) {
            return Err(Error::DirtyPadding { row });
        }
        let step = BLOCK_K / 8 * usize::from(format.bits.get());
        let words = Self::words_of(n, k, format, |row, block, out| {
            let row = &codes[row * row_bytes..][..row_bytes];
            let from = (block * step).min(row_bytes);
            blocks::read_row(&row[from..row_bytes.min(from + step)], format.bits, out);
        });
        let (scales, pairs) = (scales_in_kernel_order(scales, n, k, format), table.pair_table());
        Ok(Self { n, k, format, words, scales, pairs })
    }

    /// Weights of one input as one weight, the rows of the first above those of the second and so on. Rows do not
    /// depend on each other, so this is what their stacked rows pack to.
    ///
    /// # Errors
    /// The weights again if they cannot be one: formats, k or tables differ, or one but the last ends within a block of
    /// 16 rows.
    pub fn stack(weights: Vec<Self>) -> std::result::Result<Self, Vec<Self>> {
        let alike = |a: &Self, b: &Self| {
            let bits =
                |w: &Self| w.pairs.as_flattened().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            a.k == b.k && a.format == b.format && bits(a) == bits(b)
        };
        let whole = weights.iter().rev().skip(1).all(|w| w.n.is_multiple_of(BLOCK_ROWS));
        if weights.is_empty() || !whole || !weights.windows(2).all(|two| alike(&two[0], &two[1])) {
            return Err(weights);
        }
        let mut weights = weights.into_iter();
        let Some(mut all) = weights.next() else { return Err(vec![]) };
        for weight in weights {
            all.n += weight.n;
            all.words.extend(weight.words);
            all.scales.extend(weight.scales);
        }
        Ok(all)
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

    /// The words of a weight whose pair indices `read(row, block, out)` gives.
    pub(super) fn words_of(
        n: usize,
        k: usize,
        format: Format,
        read: impl Fn(usize, usize, &mut [u8; BLOCK_K / 2]) + Sync,
    ) -> Vec<u32> {
        let (k_blocks, block) = (k.div_ceil(BLOCK_K), super::block_words(format.bits));
        let mut words = vec![0; Self::words_len(n, k, format)];
        words.par_chunks_mut(block * k_blocks).enumerate().for_each(|(tile, words)| {
            let mut indices = [[0; BLOCK_K / 2]; BLOCK_ROWS];
            let rows = BLOCK_ROWS.min(n - tile * BLOCK_ROWS);
            for (kb, words) in words.chunks_exact_mut(block).enumerate() {
                for (row, out) in indices[..rows].iter_mut().enumerate() {
                    read(tile * BLOCK_ROWS + row, kb, out);
                }
                blocks::write(&indices, format.bits, words);
            }
        });
        words
    }
}
