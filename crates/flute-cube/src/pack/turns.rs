//! Several weights of one input as one: rows of each below the other, or of two by turns.
//!
//! Rows do not depend on each other, so any order of them is a weight again. By turns of eight, a lane that holds rows g
//! and g + 8 of a tile in its sums ([`super`] has the layout) holds the same feature of both weights: what a gate needs,
//! and what no other lane has to tell it. In kernel order a turn is every other byte of a word, and with two bits every
//! other nibble.
//!
//! Refused: weights that are not alike, rows that end within a tile or a turn.

use super::{BLOCK_ROWS, PackedWeight};
use crate::Bits;
use rayon::prelude::*;

/// How rows of several weights lie in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Those of the first above those of the second and so on.
    Stacked,
    /// Of two weights: eight of the first, eight of the second and so on, as [`crate::Problem::gate`] takes them.
    ByTurns,
}

/// Rows of a turn.
pub const TURN: usize = BLOCK_ROWS / 2;

/// What of a word is row g of its tile, and how far from it what is row g + 8.
fn upper(bits: Bits) -> (u32, u32) {
    if bits == Bits::Two { (0x0f0f_0f0f, 4) } else { (0x00ff_00ff, 8) }
}

/// Which of two weights row `row` of both by turns is of, 0 or 1, and which of its rows it is.
pub fn turn_of(row: usize) -> (usize, usize) {
    let (turn, within) = (row / TURN, row % TURN);
    (turn % 2, turn / 2 * TURN + within)
}

/// The rows of `first` and `second`, of `width` values each, by turns.
///
/// # Panics
/// If `width` is 0.
pub fn by_turns<T: Copy>(first: &[T], second: &[T], width: usize) -> Vec<T> {
    let turns = first.chunks(TURN * width).zip(second.chunks(TURN * width));
    turns.flat_map(|(first, second)| first.iter().chain(second)).copied().collect()
}

impl PackedWeight {
    /// Weights of one input as one, with their rows in `order`: what those rows pack to.
    ///
    /// # Errors
    /// The weights again if they cannot be one: formats, k or tables differ; stacked, if one but the last ends within a
    /// block of 16 rows; by turns, unless there are two, of the same multiple of [`TURN`] rows.
    pub fn stack(weights: Vec<Self>, order: Order) -> Result<Self, Vec<Self>> {
        if !weights.windows(2).all(|two| two[0].is_like(&two[1])) {
            return Err(weights);
        }
        match (order, weights.as_slice()) {
            (Order::Stacked, [above @ .., _])
                if above.iter().all(|w| w.n.is_multiple_of(BLOCK_ROWS)) =>
            {
                stacked(weights)
            }
            (Order::ByTurns, [first, second])
                if first.n == second.n && first.n.is_multiple_of(TURN) =>
            {
                Ok(turned(first, second))
            }
            _ => Err(weights),
        }
    }

    /// Whether rows of `other` may be rows of this weight.
    fn is_like(&self, other: &Self) -> bool {
        let bits =
            |w: &Self| w.pairs.as_flattened().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        self.k == other.k && self.format == other.format && bits(self) == bits(other)
    }
}

fn stacked(weights: Vec<PackedWeight>) -> Result<PackedWeight, Vec<PackedWeight>> {
    let mut weights = weights.into_iter();
    let Some(mut all) = weights.next() else { return Err(vec![]) };
    for weight in weights {
        all.n += weight.n;
        all.words.extend(weight.words);
        all.scales.extend(weight.scales);
    }
    Ok(all)
}

fn turned(first: &PackedWeight, second: &PackedWeight) -> PackedWeight {
    let PackedWeight { n, k, format, .. } = *first;
    let (tiles, (mask, distance)) = (n.div_ceil(BLOCK_ROWS), upper(format.bits));
    let mut words = vec![0; PackedWeight::words_len(2 * n, k, format)];
    let len = first.words.len() / tiles;
    // A tile of both is two tiles, or one where their last one is half empty.
    let parts = first.words.par_chunks(len).zip(second.words.par_chunks(len));
    words.par_chunks_mut(2 * len).zip(parts).for_each(|(out, (first, second))| {
        let (upper, lower) = out.split_at_mut(len);
        for (i, (first, second)) in first.iter().zip(second).enumerate() {
            upper[i] = first & mask | (second & mask) << distance;
            if let Some(lower) = lower.get_mut(i) {
                *lower = first >> distance & mask | second & !mask;
            }
        }
    });
    let mut scales = vec![0.0; PackedWeight::scales_len(2 * n, k, format)];
    let len = first.scales.len() / tiles;
    let parts = first.scales.par_chunks(len).zip(second.scales.par_chunks(len));
    scales.par_chunks_mut(2 * len).zip(parts).for_each(|(out, (first, second))| {
        for (half, out) in out.chunks_mut(len).enumerate() {
            for (i, scale) in out.iter_mut().enumerate() {
                let part = if i % 2 == 0 { first } else { second };
                *scale = part[i / 2 * 2 + half];
            }
        }
    });
    PackedWeight { n: 2 * n, k, format, words, scales, pairs: first.pairs.clone() }
}
