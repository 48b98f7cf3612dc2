//! Two orders of the same codes: canonical (files) and kernel (devices), each with its inverse.
//!
//! **Canonical**: each row starts at a byte; code `i` of a row takes the bits `[i·b, (i+1)·b)` of it, least
//! significant first; the bits after the last code are zero.
//!
//! **Kernel**: blocks of 16 rows by 128 of k, all blocks of a row of blocks one after another. In a block, lane
//! `4g + t` of 32 holds what the matrix unit wants from it (PTX ISA, the A operand of `mma.m16n8k16`, which is also
//! that of `wgmma` for the 16 rows of a warp): of fragment `f`, covering k `16f..16f+16`, the pairs
//!
//! | slot | row | k |
//! |---|---|---|
//! | 0 | g | 16f + 2t |
//! | 1 | g + 8 | 16f + 2t |
//! | 2 | g | 16f + 2t + 8 |
//! | 3 | g + 8 | 16f + 2t + 8 |
//!
//! A pair's index (4, 6 or 8 bits) is an address in the pair table. A lane's indices fill `2·bits` words:
//!
//! - 4 bits: word `f`, byte `j` is slot `j` of fragment `f`.
//! - 3 bits: fragments come in fours, three words for each: word `i`, byte `j`, low six bits are slot `j` of fragment
//!   `i`; the top two bits of the three words' bytes are bits 0–1, 2–3 and 4–5 of slot `j` of the fourth fragment.
//! - 2 bits: fragments come in twos, a word for both: nibble `j` of its low half is slot `j` of the first, and of its
//!   high half of the second. So a byte names four weights that follow each other in a lane's registers.
//!
//! The words of a block lie so that a lane loads four at a time and a warp 512 contiguous bytes: `[lane][4]` for the
//! words 0–3, then `[lane][4]` (4 bits) or `[lane][2]` (3 bits) for the rest. Scales lie `[tile][group][g][2]`: the
//! two rows of a lane side by side; groups fill whole blocks, so that the scales of a block have its number for an
//! address. Rows and columns that do not exist have code 0 and scale 0.

mod blocks;
mod packing;
mod stored;
mod turns;

pub use packing::Packing;
pub use stored::Canonical;
pub use turns::{Order, TURN, by_turns, turn_of};

use crate::{Bits, Error, Format, Quantized, Result};
use packing::Part;
use rayon::prelude::*;
use std::convert::Infallible;

/// Rows of a block.
pub const BLOCK_ROWS: usize = 16;
/// Columns of a block.
pub const BLOCK_K: usize = 128;
const LANES: usize = 32;
const FRAGMENTS: usize = BLOCK_K / 16;

/// Bytes of one canonical row.
pub fn canonical_row_bytes(codes_per_row: usize, bits_per_code: u8) -> usize {
    (codes_per_row * usize::from(bits_per_code)).div_ceil(8)
}

/// Codes, one a byte, to canonical rows.
pub fn to_canonical(codes: &[u8], codes_per_row: usize, bits_per_code: u8) -> Vec<u8> {
    let row_bytes = canonical_row_bytes(codes_per_row, bits_per_code);
    let mut out = vec![0; codes.len() / codes_per_row.max(1) * row_bytes];
    let rows = out.par_chunks_mut(row_bytes.max(1)).zip(codes.par_chunks(codes_per_row.max(1)));
    rows.for_each(|(out, codes)| to_canonical_row(codes, bits_per_code, out));
    out
}

fn to_canonical_row(codes: &[u8], bits_per_code: u8, out: &mut [u8]) {
    let (mut word, mut held, mut at) = (0u32, 0, 0);
    for code in codes {
        word |= u32::from(*code) << held;
        held += bits_per_code;
        while held >= 8 {
            out[at] = word as u8;
            (word, held, at) = (word >> 8, held - 8, at + 1);
        }
    }
    if held > 0 {
        out[at] = word as u8;
    }
}

/// Canonical rows to codes, one a byte.
///
/// # Errors
/// [`Error::WrongLength`] unless `bytes` holds exactly `rows` rows; [`Error::DirtyPadding`].
pub fn from_canonical(
    bytes: &[u8],
    rows: usize,
    codes_per_row: usize,
    bits_per_code: u8,
) -> Result<Vec<u8>> {
    let row_bytes = canonical_row_bytes(codes_per_row, bits_per_code);
    let expected = rows.saturating_mul(row_bytes);
    if bytes.len() != expected || codes_per_row == 0 {
        return Err(Error::WrongLength {
            what: "the canonical code matrix (bytes)",
            found: bytes.len(),
            expected,
        });
    }
    let mut codes = vec![0; rows * codes_per_row];
    let dirty = codes
        .par_chunks_mut(codes_per_row)
        .zip(bytes.par_chunks(row_bytes))
        .position_first(|(codes, bytes)| {
            let (mut word, mut held, mut at) = (0u32, 0, 0);
            for code in codes {
                if held < bits_per_code {
                    word |= u32::from(bytes[at]) << held;
                    (held, at) = (held + 8, at + 1);
                }
                *code = (word & ((1 << bits_per_code) - 1)) as u8;
                (word, held) = (word >> bits_per_code, held - bits_per_code);
            }
            word != 0
        });
    match dirty {
        Some(row) => Err(Error::DirtyPadding { row }),
        None => Ok(codes),
    }
}

/// A weight matrix in kernel order, on the host: what a device is given.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedWeight {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Bits and group.
    pub format: Format,
    /// Pair indices, [`PackedWeight::words_len`] of them.
    pub words: Vec<u32>,
    /// Scales, [`PackedWeight::scales_len`] of them.
    pub scales: Vec<f32>,
    /// The pair table: `2^(2·bits)` entries.
    pub pairs: Vec<[f32; 2]>,
}

impl PackedWeight {
    /// Words of a weight of this shape.
    pub fn words_len(n: usize, k: usize, format: Format) -> usize {
        n.div_ceil(BLOCK_ROWS) * k.div_ceil(BLOCK_K) * block_words(format.bits)
    }

    /// Scales of a weight of this shape.
    pub fn scales_len(n: usize, k: usize, format: Format) -> usize {
        n.div_ceil(BLOCK_ROWS) * BLOCK_ROWS * padded_groups(k, format)
    }

    /// Canonical to kernel order.
    pub fn pack(weight: &Quantized) -> Self {
        let (n, k, format, table) = (weight.n(), weight.k(), weight.format(), weight.table());
        let (width, code_bits) = (k.div_ceil(table.dim()), format.bits.get() * table.dim() as u8);
        let row_bytes = canonical_row_bytes(width, code_bits);
        let mut words = vec![0; Self::words_len(n, k, format)];
        let part = Part { rows: n, k, bits: format.bits, row_bytes };
        let Ok(()) = part.fill(&mut words, |row, bytes| {
            let codes = weight.codes()[row * width..].chunks_exact(width);
            for (out, codes) in bytes.chunks_exact_mut(row_bytes).zip(codes) {
                to_canonical_row(codes, code_bits, out);
            }
            Ok::<_, Infallible>(())
        });
        let (groups, padded) = (format.group.count(k), padded_groups(k, format));
        let mut scales = vec![0.0; Self::scales_len(n, k, format)];
        put_scales(&mut scales, weight.scales(), groups, padded);
        Self { n, k, format, words, scales, pairs: table.pair_table() }
    }

    /// Kernel order to pair indices `[n, ceil(k/2)]` and scales `[n, groups]`.
    ///
    /// # Panics
    /// If `words` or `scales` have another length than the shape says.
    pub fn unpack(&self) -> (Vec<u8>, Vec<f32>) {
        let (per_row, groups) = (self.k.div_ceil(2), self.format.group.count(self.k));
        let (block, k_blocks) = (block_words(self.format.bits), self.k.div_ceil(BLOCK_K));
        let mut indices = vec![0; self.n * per_row];
        indices.par_chunks_mut(BLOCK_ROWS * per_row).enumerate().for_each(|(tile, out)| {
            for kb in 0..k_blocks {
                let words = &self.words[(tile * k_blocks + kb) * block..][..block];
                for_each_slot(self.format.bits, |slot| {
                    let pair = kb * (BLOCK_K / 2) + slot.pair;
                    if slot.row * per_row < out.len() && pair < per_row {
                        out[slot.row * per_row + pair] = slot.take(words);
                    }
                });
            }
        });
        let padded = padded_groups(self.k, self.format);
        let scale = |i: usize| self.scales[scale_index(i / groups, i % groups, padded)];
        (indices, (0..self.n * groups).map(scale).collect())
    }

    /// The weights `[n, k]` in f32.
    ///
    /// # Panics
    /// As [`PackedWeight::unpack`].
    pub fn dequantize(&self) -> Vec<f32> {
        let (indices, scales) = self.unpack();
        let (per_row, group) = (self.k.div_ceil(2), self.format.group.len(self.k));
        let groups = self.format.group.count(self.k);
        let mut out = vec![0.0; self.n * self.k];
        out.par_chunks_mut(self.k).enumerate().for_each(|(row, out)| {
            for (col, w) in out.iter_mut().enumerate() {
                let pair = self.pairs[usize::from(indices[row * per_row + col / 2])];
                *w = pair[col % 2] * scales[row * groups + col / group];
            }
        });
        out
    }
}

/// Words of a block: `2·bits` a lane.
pub const fn block_words(bits: Bits) -> usize {
    LANES * 2 * bits.get() as usize
}

/// Groups of a row whose k is a whole number of blocks.
pub(crate) fn padded_groups(k: usize, format: Format) -> usize {
    format.group.count(k.next_multiple_of(BLOCK_K))
}

/// Writes scales `[n, groups]` to the beginning of `out` in kernel order, in which a row has `padded` groups; leaves
/// what has no row or group as it is.
fn put_scales(out: &mut [f32], scales: &[f32], groups: usize, padded: usize) {
    let tiles = out.par_chunks_mut(BLOCK_ROWS * padded).zip(scales.par_chunks(BLOCK_ROWS * groups));
    tiles.for_each(|(out, scales)| {
        for (row, values) in scales.chunks_exact(groups).enumerate() {
            for (group, value) in values.iter().enumerate() {
                out[scale_index(row, group, padded)] = *value;
            }
        }
    });
}

/// Row and group of the scale at `index` in kernel order.
pub fn scale_place(index: usize, k: usize, format: Format) -> (usize, usize) {
    let (groups, r) = (padded_groups(k, format), index % BLOCK_ROWS);
    let (tile, group) = (index / BLOCK_ROWS / groups, index / BLOCK_ROWS % groups);
    (tile * BLOCK_ROWS + r / 2 + r % 2 * 8, group)
}

fn scale_index(row: usize, group: usize, groups: usize) -> usize {
    let (tile, r) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
    (tile * groups + group) * BLOCK_ROWS + (r % 8) * 2 + r / 8
}

/// Where one pair index of a block lies: up to three pieces of words.
struct Slot {
    row: usize,
    pair: usize,
    pieces: [Piece; 3],
}

/// `bits` bits at `shift` of `word`; they are the index's next lowest ones.
#[derive(Clone, Copy)]
struct Piece {
    word: usize,
    shift: u32,
    bits: u32,
}

impl Slot {
    fn take(&self, words: &[u32]) -> u8 {
        let (mut index, mut at) = (0, 0);
        for p in self.pieces {
            index |= (words[p.word] >> p.shift & ((1 << p.bits) - 1)) << at;
            at += p.bits;
        }
        index as u8
    }
}

/// Where word `w` of `lane` lies in a block.
fn word_at(bits: Bits, lane: usize, w: usize) -> usize {
    let tail = 2 * usize::from(bits.get()) - 4;
    if w < 4 { lane * 4 + w } else { LANES * 4 + lane * tail + w - 4 }
}

fn for_each_slot(bits: Bits, mut visit: impl FnMut(Slot)) {
    let at = |lane: usize, w: usize| word_at(bits, lane, w);
    let none = Piece { word: 0, shift: 0, bits: 0 };
    for lane in 0..LANES {
        for f in 0..FRAGMENTS {
            for j in 0..4 {
                let byte = 8 * j as u32;
                let pieces = match bits {
                    Bits::Four => [Piece { word: at(lane, f), shift: byte, bits: 8 }, none, none],
                    Bits::Three if f % 4 < 3 => [
                        Piece { word: at(lane, f / 4 * 3 + f % 4), shift: byte, bits: 6 },
                        none,
                        none,
                    ],
                    Bits::Three => [0, 1, 2].map(|i| Piece {
                        word: at(lane, f / 4 * 3 + i),
                        shift: byte + 6,
                        bits: 2,
                    }),
                    Bits::Two => {
                        let shift = 16 * (f % 2) as u32 + 4 * j as u32;
                        [Piece { word: at(lane, f / 2), shift, bits: 4 }, none, none]
                    }
                };
                let row = lane / 4 + 8 * (j % 2);
                let pair = f * 8 + lane % 4 + 4 * (j / 2);
                visit(Slot { row, pair, pieces });
            }
        }
    }
}
