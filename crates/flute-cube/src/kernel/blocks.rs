//! Where the positions of a sequence lie in a cache: in blocks anywhere, which a table names in order.
//!
//! A chunk of decoding attention is a block, and tiles of a prompt divide it: a cube looks a block up once before it
//! reads keys. What the table holds is never trusted: an entry that names no block (−1 above all) stands for positions
//! that are neither stored nor seen.

use cubecl::prelude::*;

/// Positions of a block of a cache. Shorter ones would cut the chunks of decoding attention, whose sums they begin and
/// end; longer ones leave more of them unused behind a sequence's last token.
pub const CACHE_BLOCK: usize = 64;

/// Entries that the table has for a sequence of `capacity` positions.
pub(crate) fn entries(capacity: usize) -> usize {
    capacity.div_ceil(CACHE_BLOCK)
}

/// The block that an entry names; as many as there are blocks or more if it names none.
#[cube]
pub(super) fn block_at(table: &[i32], entry: usize) -> usize {
    u32::cast_from(table[entry]) as usize
}

/// The row of a cache `[blocks, heads, 64]` that holds `position` of a head, which lies in `block`.
#[cube]
pub(super) fn row_of(block: usize, heads: usize, head: usize, position: usize) -> usize {
    (block * heads + head) * CACHE_BLOCK + position % CACHE_BLOCK
}
