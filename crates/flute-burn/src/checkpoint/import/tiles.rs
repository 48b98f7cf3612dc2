//! The order in which FLUTE's own files hold codes.
//!
//! The int16 matrix `[n·bits/16, k]` is one of 32-bit words, each covering two neighbouring k: a row of words belongs
//! to columns of the weight that lie `tile` apart, so that a thread finds all of its columns in the words it loads.
//! With `P` the tile (32 or 64) and a *bundle* of words (one for 2 and 4 bits, three for 3 bits) holding `J` pairs of
//! codes (8, 16 and 4 for 2, 3 and 4 bits), the pair `c` of bundle `(block, p)` is that of output feature
//! `block·J·P + c·P + p`; its index is `even << bits | odd`.
//!
//! - 2 and 4 bits: pair `c` takes the bits from `2·bits·c` on.
//! - 3 bits: word `w` of a bundle holds pairs `w, w + 3, …, w + 12`, six bits each, and in its top two bits a third of
//!   pair 15. The first words of all bundles form the first `n/16` rows; the other two follow, a tile of each in turn.
//!
//! FLUTE 0.0.1 to 0.4.2 write nothing else (arXiv 2407.10960 describes a split into bits that no release has). Refused:
//! shapes that its tiles do not divide, 3 bits in tiles of 64 (no release packs them), codes out of range.

use crate::error::{Error, Result};
use flute_cube::Bits;
use rayon::prelude::*;

/// How FLUTE's own files order the codes of one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FluteTiles {
    bits: Bits,
    tile: usize,
}

impl FluteTiles {
    /// The order of every published checkpoint: tiles of 32.
    pub fn new(bits: Bits) -> Self {
        Self { bits, tile: 32 }
    }

    /// The order of another tile, which some templates of FLUTE 0.4 use.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] unless `tile` is 32, or 64 with 2 or 4 bits.
    pub fn with_tile(bits: Bits, tile: usize) -> Result<Self> {
        match (bits, tile) {
            (_, 32) | (Bits::Two | Bits::Four, 64) => Ok(Self { bits, tile }),
            _ => Err(Error::InvalidOption {
                name: "the tile of FLUTE's own order",
                found: format!("{tile} with {bits} bits"),
                needed: "32, or 64 with 2 or 4 bits".into(),
            }),
        }
    }

    /// Pairs of codes in a bundle.
    fn pairs(self) -> usize {
        match self.bits {
            Bits::Two => 8,
            Bits::Three => 16,
            Bits::Four => 4,
        }
    }

    /// Words in a bundle.
    fn words(self) -> usize {
        if self.bits == Bits::Three { 3 } else { 1 }
    }

    /// What n must be a multiple of.
    pub fn n_multiple(self) -> usize {
        self.pairs() * self.tile
    }

    /// What k must be a multiple of: FLUTE's kernels take 64 at a time.
    pub const K_MULTIPLE: usize = 64;

    /// Rows of the int16 matrix.
    pub fn rows(self, n: usize) -> usize {
        n / 16 * usize::from(self.bits.get())
    }

    /// Refuses an `[n, k]` that the tiles do not divide; `module` is for the message.
    ///
    /// # Errors
    /// [`Error::PackedShape`].
    pub fn check(self, module: &str, n: usize, k: usize) -> Result<()> {
        let rows = ("n (out_features)", n, self.n_multiple());
        for (what, found, multiple) in [rows, ("k (in_features)", k, Self::K_MULTIPLE)] {
            if found == 0 || !found.is_multiple_of(multiple) {
                let module = module.into();
                return Err(Error::PackedShape { module, what, found, multiple });
            }
        }
        Ok(())
    }

    /// Codes `[n, k]`, one a byte, to the bytes of the int16 matrix.
    ///
    /// # Errors
    /// [`Error::PackedShape`]; [`flute_cube::Error::WrongLength`] and [`flute_cube::Error::CodeOutOfRange`].
    pub fn pack(self, codes: &[u8], n: usize, k: usize) -> Result<Vec<u8>> {
        self.check("a weight", n, k)?;
        wrong_length("the code matrix", codes.len(), n.saturating_mul(k))?;
        let entries = self.bits.codes();
        if let Some(index) = codes.iter().position(|code| usize::from(*code) >= entries) {
            let code = codes[index];
            return Err(flute_cube::Error::CodeOutOfRange { index, code, entries }.into());
        }
        let index = |feature: usize, pair: usize| {
            let at = feature * k + 2 * pair;
            u32::from(codes[at]) << self.bits.get() | u32::from(codes[at + 1])
        };
        let mut out = vec![0; self.rows(n) * k * 2];
        out.par_chunks_mut(2 * k).enumerate().for_each(|(row, out)| {
            let (bundle, word) = self.place(row, n);
            for (pair, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                let index = |c: usize| index(self.feature(bundle, c), pair);
                *out = self.join(word, index).to_le_bytes();
            }
        });
        Ok(out)
    }

    /// The bytes of the int16 matrix to codes `[n, k]`, one a byte.
    ///
    /// # Errors
    /// [`Error::PackedShape`]; [`flute_cube::Error::WrongLength`].
    pub fn unpack(self, packed: &[u8], n: usize, k: usize) -> Result<Vec<u8>> {
        self.check("a weight", n, k)?;
        let expected = self.rows(n).saturating_mul(k).saturating_mul(2);
        wrong_length("FLUTE's packed matrix (bytes)", packed.len(), expected)?;
        let words = packed.as_chunks::<4>().0;
        let (mask, bits) = ((1 << self.bits.get()) - 1, self.bits.get());
        let mut codes = vec![0; n * k];
        codes.par_chunks_mut(k).enumerate().for_each(|(feature, codes)| {
            let (c, bundle) = self.bundle(feature);
            let rows = [0, 1, 2].map(|word| self.row(bundle, word % self.words(), n) * (k / 2));
            for (pair, codes) in codes.as_chunks_mut().0.iter_mut().enumerate() {
                let word = |w: usize| u32::from_le_bytes(words[rows[w] + pair]);
                let index = self.split(c, word);
                *codes = [(index >> bits & mask) as u8, (index & mask) as u8];
            }
        });
        Ok(codes)
    }

    /// The output feature of pair `c` in bundle `(block, p)`.
    fn feature(self, (block, p): (usize, usize), c: usize) -> usize {
        (block * self.pairs() + c) * self.tile + p
    }

    /// The inverse of [`Self::feature`]: pair and bundle.
    fn bundle(self, feature: usize) -> (usize, (usize, usize)) {
        let (of_tile, p) = (feature / self.tile, feature % self.tile);
        (of_tile % self.pairs(), (of_tile / self.pairs(), p))
    }

    /// The row of the matrix that holds word `word` of a bundle.
    fn row(self, (block, p): (usize, usize), word: usize, n: usize) -> usize {
        match word {
            0 => block * self.tile + p,
            _ => n / 16 + (2 * block + word - 1) * self.tile + p,
        }
    }

    /// The inverse of [`Self::row`]: bundle and word.
    fn place(self, row: usize, n: usize) -> ((usize, usize), usize) {
        let (tile, p) = (row / self.tile, row % self.tile);
        if self.words() == 1 || row < n / 16 {
            return ((tile, p), 0);
        }
        let after = tile - n / 16 / self.tile;
        ((after / 2, p), 1 + after % 2)
    }

    /// The index of pair `c` from the words of its bundle.
    fn split(self, c: usize, word: impl Fn(usize) -> u32) -> u32 {
        match (self.bits, c) {
            (Bits::Two, _) => word(0) >> (4 * c) & 0xf,
            (Bits::Four, _) => word(0) >> (8 * c) & 0xff,
            (Bits::Three, 15) => word(0) >> 30 | word(1) >> 30 << 2 | word(2) >> 30 << 4,
            (Bits::Three, _) => word(c % 3) >> (6 * (c / 3)) & 0x3f,
        }
    }

    /// Word `word` of a bundle from the indices of its pairs.
    fn join(self, word: usize, index: impl Fn(usize) -> u32) -> u32 {
        match self.bits {
            Bits::Two => (0..8).map(|c| index(c) << (4 * c)).sum(),
            Bits::Four => (0..4).map(|c| index(c) << (8 * c)).sum(),
            Bits::Three => {
                let own: u32 = (0..5).map(|t| index(3 * t + word) << (6 * t)).sum();
                own | (index(15) >> (2 * word) & 3) << 30
            }
        }
    }
}

fn wrong_length(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(flute_cube::Error::WrongLength { what, found, expected }.into())
}
