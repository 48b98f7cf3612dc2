//! HIGGS (arXiv 2411.17525): rotated blocks, their norm as scale, the nearest point of a normal grid.
//!
//! Per row and block of `hadamard_size` weights (the last one padded with zeros): `s = ‖w‖₂ / √size`, the weights over
//! s are rotated ([`hadamard::rotate`]), which leaves them with mean square 1 and close to normal whatever they were,
//! and every p of them take the nearest point of the [`grid`]. No data is needed. A tie takes the lower code; a block
//! of zeros has scale 0. A seed makes the rotation a random one ([`hadamard::signs`]). Scales are repeated for every group of a block, since groups are what kernels read. Refused:
//! blocks that are no power of two, and groups that do not divide them.

use super::grid;
use crate::error::{Error, Result};
use crate::hadamard;
use flute_cube::{Bits, Group, Table};
use rayon::prelude::*;

/// Bits, dimension of the grid, group and block of [`Method::Higgs`](super::Method::Higgs), checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Higgs {
    table: Table,
    group: Group,
    block: usize,
    seed: Option<u32>,
}

impl Higgs {
    /// Grids of `bits` a weight and `p` dimensions; `hadamard_size` weights are rotated together.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] unless p is 1 or 2, `hadamard_size` a power of two up to [`hadamard::MAX_BLOCK`], and
    /// the group a divisor of it.
    pub fn new(bits: Bits, p: usize, group: Group, hadamard_size: usize) -> Result<Self> {
        let table = grid::table(bits, p)?;
        hadamard::check_block(hadamard_size)?;
        match group {
            Group::Size(size) if hadamard_size.is_multiple_of(size as usize) => {
                Ok(Self { table, group, block: hadamard_size, seed: None })
            }
            _ => Err(Error::InvalidOption {
                name: "the group of HIGGS",
                found: group.to_string(),
                needed: format!("a divisor of the Hadamard block of {hadamard_size}"),
            }),
        }
    }

    /// The same with a random rotation, of this seed.
    pub fn with_seed(self, seed: u32) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The seed of a random rotation.
    pub fn seed(&self) -> Option<u32> {
        self.seed
    }

    /// The grid.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Weights that share a stored scale.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Weights that are rotated together.
    pub fn hadamard_size(&self) -> usize {
        self.block
    }

    /// Codes `[n, stored / p]` and scales `[n, groups]` of `weight` `[n, k]`, with `stored` the next multiple of the
    /// block from k on.
    ///
    /// # Errors
    /// Row and column of the first weight that is not finite.
    pub(super) fn quantize(
        &self,
        weight: &[f32],
        k: usize,
    ) -> Result<(Vec<u8>, Vec<f32>), (usize, usize)> {
        let (n, stored, p) = (weight.len() / k, k.next_multiple_of(self.block), self.table.dim());
        let (width, groups) = (stored / p, self.group.count(stored));
        let mut codes = vec![0; n * width];
        let mut scales = vec![0.0; n * groups];
        let signs = match self.seed {
            Some(seed) => hadamard::signs(seed, self.block),
            None => vec![1.0; self.block],
        };
        let rows = codes.par_chunks_mut(width).zip(scales.par_chunks_mut(groups));
        let rows = rows.zip(weight.par_chunks(k)).enumerate();
        let broken = rows.filter_map(|(row, ((codes, scales), weight))| {
            if let Some(col) = weight.iter().position(|w| !w.is_finite()) {
                return Some((row, col));
            }
            let mut block = vec![0.0; self.block];
            let parts = codes.chunks_mut(self.block / p);
            let parts = parts.zip(scales.chunks_mut(self.group.count(self.block)));
            for ((codes, scales), weight) in parts.zip(weight.chunks(self.block)) {
                block.fill(0.0);
                block.iter_mut().zip(weight.iter().zip(&signs)).for_each(|(b, (w, s))| *b = w * s);
                scales.fill(self.block(&mut block, codes));
            }
            None
        });
        match broken.min() {
            Some(place) => Err(place),
            None => Ok((codes, scales)),
        }
    }

    /// Quantizes one block, which it rotates. Returns its scale.
    fn block(&self, block: &mut [f32], codes: &mut [u8]) -> f32 {
        let square: f64 = block.iter().map(|w| f64::from(*w) * f64::from(*w)).sum();
        let scale = (square / self.block as f64).sqrt() as f32;
        if scale > 0.0 {
            block.iter_mut().for_each(|w| *w /= scale);
            hadamard::rotate(block, self.block);
        } else {
            block.fill(0.0);
        }
        match self.table.dim() {
            1 => codes.iter_mut().zip(&*block).for_each(|(c, w)| *c = self.table.nearest(*w)),
            _ => {
                let points = self.table.values().as_chunks().0;
                let pairs = block.as_chunks().0.iter();
                codes.iter_mut().zip(pairs).for_each(|(c, pair)| *c = nearest(points, *pair));
            }
        }
        scale
    }
}

/// The index of the point nearest to `pair`; the lower one on a tie. Distances to all points, then the least of them:
/// both loops without branches, in vector registers.
fn nearest(points: &[[f32; 2]], pair: [f32; 2]) -> u8 {
    let mut distances = [f32::INFINITY; 256];
    for (distance, point) in distances.iter_mut().zip(points) {
        let (dx, dy) = (point[0] - pair[0], point[1] - pair[1]);
        *distance = dx * dx + dy * dy;
    }
    let mut least = [f32::INFINITY; 8];
    for distances in distances.as_chunks::<8>().0 {
        for (least, distance) in least.iter_mut().zip(distances) {
            *least = if distance < least { *distance } else { *least };
        }
    }
    let least = least.into_iter().fold(f32::INFINITY, f32::min);
    distances.iter().position(|distance| *distance == least).unwrap_or(0) as u8
}
