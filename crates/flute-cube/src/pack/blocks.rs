//! Blocks in kernel order, written word by word: what loading a model spends its time on.
//!
//! A row of canonical codes is a row of pair indices already, `2·bits` bits each, least significant first: the first
//! weight of a pair is its low half, and a code of a pair table is an index. So packing moves bits and looks at none.

use super::{BLOCK_K, BLOCK_ROWS, LANES, word_at};
use crate::Bits;

/// The pair indices of a block.
pub(super) type Indices = [[u8; BLOCK_K / 2]; BLOCK_ROWS];

/// The indices that `bytes` of a canonical row hold; what they do not reach is 0.
pub(super) fn read_row(bytes: &[u8], bits: Bits, out: &mut [u8; BLOCK_K / 2]) {
    if bytes.len() < BLOCK_K / 8 * usize::from(bits.get()) {
        out.fill(0);
    }
    match bits {
        Bits::Four => out[..bytes.len()].copy_from_slice(bytes),
        Bits::Three => {
            for (out, bytes) in out.chunks_exact_mut(4).zip(bytes.chunks(3)) {
                let byte = |i: usize| u32::from(bytes.get(i).copied().unwrap_or(0)) << (8 * i);
                let four = byte(0) | byte(1) | byte(2);
                out.iter_mut().enumerate().for_each(|(i, out)| *out = (four >> (6 * i) & 63) as u8);
            }
        }
        Bits::Two => {
            for (out, byte) in out.chunks_exact_mut(2).zip(bytes) {
                (out[0], out[1]) = (byte & 15, byte >> 4);
            }
        }
    }
}

/// Writes the words of a block.
pub(super) fn write(indices: &Indices, bits: Bits, words: &mut [u32]) {
    for lane in 0..LANES {
        let (upper, lower, t) = (&indices[lane / 4], &indices[lane / 4 + 8], lane % 4);
        // The four slots of a fragment, a byte each.
        let fragment = |f: usize| {
            let pair = 8 * f + t;
            u32::from_le_bytes([upper[pair], lower[pair], upper[pair + 4], lower[pair + 4]])
        };
        let mut put = |w: usize, word: u32| words[word_at(bits, lane, w)] = word;
        match bits {
            Bits::Four => (0..8).for_each(|f| put(f, fragment(f))),
            Bits::Three => {
                for four in 0..2 {
                    let last = fragment(4 * four + 3);
                    for i in 0..3 {
                        let top = (last >> (2 * i) & 0x0303_0303) << 6;
                        put(3 * four + i, fragment(4 * four + i) | top);
                    }
                }
            }
            Bits::Two => {
                let half = |f: usize| {
                    let slots = fragment(f);
                    (slots | slots >> 12) & 0xffff
                };
                (0..4).for_each(|two| put(two, half(2 * two) | half(2 * two + 1) << 16));
            }
        }
    }
}
