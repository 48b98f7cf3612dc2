//! What all layers of one step share: where sequences stand, and which blocks they have.

use super::cache::Cache;
use super::rope::Rotations;
use burn::tensor::{Int, Tensor};

/// A step: new tokens behind those that the cache has.
pub(super) struct Step {
    /// Tokens of each sequence seen before, on the device.
    pub(super) position: Tensor<1, Int>,
    /// The blocks of each sequence, on the device.
    pub(super) table: Tensor<2, Int>,
    /// Of every position.
    pub(super) rotations: Rotations,
    /// That of sliding layers.
    pub(super) window: Option<usize>,
}

impl Step {
    /// One behind what `cache` has; `window` is that of sliding layers.
    pub(super) fn new(cache: &Cache, window: Option<usize>) -> Self {
        let (position, table) = (cache.position.clone(), cache.table.clone());
        Self { position, table, rotations: cache.rotations.clone(), window }
    }
}
