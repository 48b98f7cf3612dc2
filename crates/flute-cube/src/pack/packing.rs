//! A weight in kernel order whose rows arrive in parts: from a file piece by piece, or from several files' tensors.
//!
//! Canonical rows exist only in pieces that a core's cache holds; what is allocated is the result. Refused: what
//! [`crate::Quantized::new`] refuses, and a part that begins within a block of 16 rows.

use super::{BLOCK_K, BLOCK_ROWS, PackedWeight, blocks, padded_groups, put_scales};
use super::{block_words, canonical_row_bytes};
use crate::{Bits, Error, Format, Result, Table, quantized};
use rayon::prelude::*;

/// Bytes of canonical rows that a thread holds at a time.
const PIECE: usize = 1 << 17;

/// A weight that is being packed.
#[derive(Clone, Debug)]
pub struct Packing {
    weight: PackedWeight,
    /// Rows that have arrived.
    rows: usize,
    row_bytes: usize,
    /// Bits of a row's last byte that hold codes; 0 if all do.
    used: usize,
}

impl Packing {
    /// For a weight `[n, k]` of codes into `table`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::BitsMismatch`].
    pub fn new(n: usize, k: usize, format: Format, table: &Table) -> Result<Self> {
        quantized::check_shape(n, k, format, table)?;
        let (width, code_bits) = (k.div_ceil(table.dim()), format.bits.get() * table.dim() as u8);
        let words = vec![0; PackedWeight::words_len(n, k, format)];
        let scales = vec![0.0; PackedWeight::scales_len(n, k, format)];
        let weight = PackedWeight { n, k, format, words, scales, pairs: table.pair_table() };
        let row_bytes = canonical_row_bytes(width, code_bits);
        Ok(Self { weight, rows: 0, row_bytes, used: width * usize::from(code_bits) % 8 })
    }

    /// Bytes of a canonical row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// Takes the next `rows` rows: `scales` are theirs, `[rows, groups]`, and `read(row, bytes)` puts canonical rows
    /// from `row` of this part on into `bytes`, which is whole rows long. Threads call it at once.
    ///
    /// # Errors
    /// [`Error::WrongLength`] for more rows than are missing, for another number of scales, and if the last part ended
    /// within a block; [`Error::NotFinite`], [`Error::DirtyPadding`]; what `read` returns.
    pub fn add<E: From<Error> + Send>(
        &mut self,
        rows: usize,
        scales: &[f32],
        read: impl Fn(usize, &mut [u8]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<(), E> {
        let PackedWeight { n, k, format, .. } = self.weight;
        let wrong = |what, found, expected| {
            let error = Error::WrongLength { what, found, expected };
            Err(E::from(error))
        };
        if rows > n - self.rows {
            return wrong("a part of a weight (rows)", rows, n - self.rows);
        }
        if !self.rows.is_multiple_of(BLOCK_ROWS) {
            let whole = self.rows.next_multiple_of(BLOCK_ROWS);
            return wrong("the part before another (rows)", self.rows, whole);
        }
        let groups = format.group.count(k);
        quantized::check_scales(scales, rows, groups)?;
        let (tile, padded) = (self.rows / BLOCK_ROWS, padded_groups(k, format));
        let out = &mut self.weight.scales[tile * BLOCK_ROWS * padded..];
        put_scales(out, scales, groups, padded);
        let (row_bytes, used) = (self.row_bytes, self.used);
        let dirty = |row: &[u8]| used > 0 && row[row_bytes - 1] >> used != 0;
        let part = Part { rows, k, bits: format.bits, row_bytes };
        let checked = |first: usize, bytes: &mut [u8]| -> std::result::Result<(), E> {
            read(first, bytes)?;
            match bytes.chunks_exact(row_bytes).position(dirty) {
                Some(row) => Err(Error::DirtyPadding { row: first + row }.into()),
                None => Ok(()),
            }
        };
        part.fill(&mut self.weight.words[tile * part.tile_words()..], checked)?;
        self.rows += rows;
        Ok(())
    }

    /// The weight.
    ///
    /// # Errors
    /// [`Error::WrongLength`] unless all rows have arrived.
    pub fn finish(self) -> Result<PackedWeight> {
        let (found, expected) = (self.rows, self.weight.n);
        if found < expected {
            return Err(Error::WrongLength { what: "a packed weight (rows)", found, expected });
        }
        Ok(self.weight)
    }
}

/// Canonical rows that go to blocks of their own.
pub(super) struct Part {
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) bits: Bits,
    pub(super) row_bytes: usize,
}

impl Part {
    /// Words of 16 rows.
    fn tile_words(&self) -> usize {
        self.k.div_ceil(BLOCK_K) * block_words(self.bits)
    }

    /// Fills the beginning of `words` with rows that `read(row, bytes)` gives.
    pub(super) fn fill<E: Send>(
        &self,
        words: &mut [u32],
        read: impl Fn(usize, &mut [u8]) -> std::result::Result<(), E> + Sync,
    ) -> std::result::Result<(), E> {
        let (words_a_tile, bytes_a_tile) = (self.tile_words(), BLOCK_ROWS * self.row_bytes);
        let tiles = (PIECE / bytes_a_tile).max(1);
        let pack = |bytes: &mut Vec<u8>, (index, words): (usize, &mut [u32])| {
            let first = index * tiles * BLOCK_ROWS;
            bytes.resize((tiles * BLOCK_ROWS).min(self.rows - first) * self.row_bytes, 0);
            read(first, bytes)?;
            let rows = bytes.chunks(bytes_a_tile);
            for (words, rows) in words.chunks_exact_mut(words_a_tile).zip(rows) {
                blocks::tile(rows, self.row_bytes, self.bits, words);
            }
            Ok(())
        };
        let words = &mut words[..self.rows.div_ceil(BLOCK_ROWS) * words_a_tile];
        words.par_chunks_mut(tiles * words_a_tile).enumerate().try_for_each_init(Vec::new, pack)
    }
}
