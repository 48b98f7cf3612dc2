//! Rows of codes to blocks in kernel order, eight pairs at a time: what loading a model spends its arithmetic on.
//!
//! A row of canonical codes is a row of pair indices already, `2·bits` bits each, least significant first: the first
//! weight of a pair is its low half, and a code of a pair table is an index. So packing moves bits and looks at none.

use super::{BLOCK_ROWS, FRAGMENTS};
use crate::Bits;

/// Every other byte of eight.
const EVEN: u64 = 0x00ff_00ff_00ff_00ff;

/// Writes the blocks of a tile: `rows` are its canonical rows of `row_bytes` each, at most 16; what they do not reach
/// is 0.
pub(super) fn tile(rows: &[u8], row_bytes: usize, bits: Bits, words: &mut [u32]) {
    match bits {
        Bits::Four => blocks(rows, row_bytes, words, four),
        Bits::Three => blocks(rows, row_bytes, words, three),
        Bits::Two => blocks(rows, row_bytes, words, two),
    }
}

/// Calls `put(g, rows, block)` for the rows g and g + 8 of every block: `BYTES` of each row, `WORDS` of a block.
fn blocks<const BYTES: usize, const WORDS: usize>(
    rows: &[u8],
    row_bytes: usize,
    words: &mut [u32],
    put: impl Fn(usize, [&[u8; BYTES]; 2], &mut [u32; WORDS]),
) {
    let row = |row: usize| rows.get(row * row_bytes..(row + 1) * row_bytes).unwrap_or_default();
    for (index, block) in words.as_chunks_mut().0.iter_mut().enumerate() {
        for g in 0..BLOCK_ROWS / 2 {
            let (mut upper, mut lower) = ([0; BYTES], [0; BYTES]);
            let upper = piece(row(g), index, &mut upper);
            put(g, [upper, piece(row(g + BLOCK_ROWS / 2), index, &mut lower)], block);
        }
    }
}

/// The bytes of `row` that belong to a block, in `zeros` where the row ends within it.
fn piece<'a, const BYTES: usize>(
    row: &'a [u8],
    block: usize,
    zeros: &'a mut [u8; BYTES],
) -> &'a [u8; BYTES] {
    let rest = row.get(block * BYTES..).unwrap_or_default();
    if let Some(whole) = rest.first_chunk() {
        return whole;
    }
    zeros[..rest.len()].copy_from_slice(rest);
    zeros
}

fn four(g: usize, [upper, lower]: [&[u8; 64]; 2], words: &mut [u32; 256]) {
    let (upper, lower) = (upper.as_chunks().0, lower.as_chunks().0);
    let lanes = words.as_chunks_mut::<16>().0;
    for f in 0..FRAGMENTS {
        let pairs = [u64::from_le_bytes(upper[f]), u64::from_le_bytes(lower[f])];
        let out = &mut lanes[f / 4 * (BLOCK_ROWS / 2) + g];
        fragment(pairs).into_iter().enumerate().for_each(|(t, word)| out[4 * t + f % 4] = word);
    }
}

fn three(g: usize, [upper, lower]: [&[u8; 48]; 2], words: &mut [u32; 192]) {
    let (upper, lower) = (upper.as_chunks().0, lower.as_chunks().0);
    let pairs = |f: usize| fragment([sextets(upper[f]), sextets(lower[f])]);
    let mut all = [[0; 4]; 6];
    for (half, three) in all.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let last = pairs(4 * half + 3);
        for (i, out) in three.iter_mut().enumerate() {
            let first = pairs(4 * half + i);
            *out = std::array::from_fn(|t| first[t] | (last[t] >> (2 * i) & 0x0303_0303) << 6);
        }
    }
    let (first, rest) = words.split_at_mut(128);
    let (first, rest) =
        (&mut first.as_chunks_mut::<16>().0[g], &mut rest.as_chunks_mut::<8>().0[g]);
    for t in 0..4 {
        (0..4).for_each(|w| first[4 * t + w] = all[w][t]);
        (0..2).for_each(|w| rest[2 * t + w] = all[4 + w][t]);
    }
}

fn two(g: usize, [upper, lower]: [&[u8; 32]; 2], words: &mut [u32; 128]) {
    let (upper, lower) = (upper.as_chunks().0, lower.as_chunks().0);
    let half = |f: usize| {
        let slots = fragment([nibbles(upper[f]), nibbles(lower[f])]);
        let nibbles = |slots: u32| slots | slots >> 4;
        slots.map(|slots| nibbles(slots) & 0xff | nibbles(slots) >> 8 & 0xff00)
    };
    let out = &mut words.as_chunks_mut::<16>().0[g];
    for w in 0..4 {
        let (first, second) = (half(2 * w), half(2 * w + 1));
        (0..4).for_each(|t| out[4 * t + w] = first[t] | second[t] << 16);
    }
}

/// The words of four lanes, a byte a slot, of eight pairs of the upper row and eight of the lower.
#[inline(always)]
fn fragment([upper, lower]: [u64; 2]) -> [u32; 4] {
    // Sixteen bits hold a pair of the upper row and, above it, that of the lower one.
    let (even, odd) = (upper & EVEN | (lower & EVEN) << 8, upper >> 8 & EVEN | lower & !EVEN);
    let first = |x: u64| x as u32 & 0xffff | (x >> 16) as u32 & 0xffff_0000;
    [first(even), first(odd), first(even >> 16), first(odd >> 16)]
}

/// Eight numbers of six bits, a byte each.
#[inline(always)]
fn sextets([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    let x = u64::from_le_bytes([a, b, c, 0, d, e, f, 0]);
    let x = x & 0x0000_0fff_0000_0fff | (x & 0x00ff_f000_00ff_f000) << 4;
    x & 0x003f_003f_003f_003f | (x & 0x0fc0_0fc0_0fc0_0fc0) << 2
}

/// Eight numbers of four bits, a byte each.
#[inline(always)]
fn nibbles(bytes: [u8; 4]) -> u64 {
    let x = u64::from(u32::from_le_bytes(bytes));
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & EVEN;
    (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f
}
