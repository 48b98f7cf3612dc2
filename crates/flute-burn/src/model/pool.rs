//! The blocks of a cache, and which of them nobody has.
//!
//! A sequence takes the blocks of all tokens that it may get when it is admitted, not while it grows: it cannot run out
//! of them half-way, and the table of blocks does not change while it is decoded.

use crate::error::{Error, Result};
use flute_cube::CACHE_BLOCK;

/// Blocks of a cache, each with room for [`CACHE_BLOCK`] tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Those that nobody has, the next to be taken last.
    free: Vec<u32>,
    blocks: usize,
}

impl Pool {
    /// Of `blocks`, all of them free; they are taken in order.
    pub(super) fn new(blocks: usize) -> Self {
        Self { free: (0..blocks as u32).rev().collect(), blocks }
    }

    /// One that is as large and has nothing to give.
    pub(super) fn emptied(&self) -> Self {
        Self { free: vec![], blocks: self.blocks }
    }

    /// Blocks that a sequence of at most `tokens` takes.
    pub fn needed(tokens: usize) -> usize {
        tokens.div_ceil(CACHE_BLOCK)
    }

    /// All of them.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Those that nobody has.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Those that sequences have.
    pub fn used(&self) -> usize {
        self.blocks - self.free.len()
    }

    /// Takes those for `tokens` out.
    pub(super) fn take(&mut self, tokens: usize) -> Result<Vec<u32>> {
        let needed = Self::needed(tokens);
        let Some(left) = self.free().checked_sub(needed) else {
            return Err(Error::PoolFull { needed, free: self.free(), blocks: self.blocks });
        };
        Ok(self.free.drain(left..).rev().collect())
    }

    /// Puts back what [`Pool::take`] gave.
    pub(super) fn put(&mut self, blocks: Vec<u32>) {
        self.free.extend(blocks.into_iter().rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_one_owner_and_is_free_again_when_it_is_put_back() {
        let mut pool = Pool::new(6);
        let (first, second) = (pool.take(65).unwrap(), pool.take(64).unwrap());
        assert_eq!((first.as_slice(), second.as_slice()), ([0, 1].as_slice(), [2].as_slice()));
        assert_eq!((pool.free(), pool.used(), pool.blocks()), (3, 3, 6));
        let refused = pool.take(4 * 64).unwrap_err();
        assert!(matches!(refused, Error::PoolFull { needed: 4, free: 3, blocks: 6 }), "{refused}");
        assert_eq!(pool.used(), 3, "a refusal takes nothing");
        pool.put(first);
        assert_eq!(pool.take(4 * 64 + 1).unwrap(), [0, 1, 3, 4, 5]);
        pool.put(second);
        assert_eq!((pool.take(1).unwrap(), pool.free()), (vec![2], 0));
    }
}
