//! Tables: the values that codes name.
//!
//! Every weight format of the family is a table: integers and small floats, Normal Float (QLoRA, arXiv 2305.14314;
//! FLUTE, arXiv 2407.10960), tables learned or made by the user, and two-dimensional codebooks (HIGGS, arXiv
//! 2411.17525), where one code names two neighbouring weights. Kernels see all of them as one *pair table*.
//! Refused: a wrong number of entries, and entries that are not finite.

use crate::{Bits, Error, Result};
use core::{fmt, str::FromStr};

/// Which table it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableKind {
    /// `(−2^(b−1) … 2^(b−1)−1) / 2^(b−1)`.
    Int,
    /// Small floats: e2m1 in 4 bits, e2m0 in 3, e1m0 in 2; both zeros kept, scaled to ±1.
    Fp,
    /// Normal Float with an exact zero (asymmetric); in 4 bits the literals of bitsandbytes.
    Nf,
    /// Normal Float without a zero, symmetric around it.
    NfSymmetric,
    /// Any values.
    Custom,
    /// Any pairs: a codebook of dimension 2.
    Pairs,
}

impl TableKind {
    const NAMES: [(Self, &'static str); 6] = [
        (Self::Int, "int"),
        (Self::Fp, "fp"),
        (Self::Nf, "nf"),
        (Self::NfSymmetric, "nf-symmetric"),
        (Self::Custom, "custom"),
        (Self::Pairs, "pairs"),
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TableKind {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        let known = Self::NAMES.iter().find(|(_, n)| *n == name);
        known.map(|(kind, _)| *kind).ok_or_else(|| Error::UnknownTable { found: name.into() })
    }
}

/// `2^bits` values (dimension 1) or `2^(2·bits)` pairs (dimension 2).
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    kind: TableKind,
    bits: Bits,
    values: Vec<f32>,
    /// Codes in ascending order of their values, and the midpoints between neighbours; dimension 1 only.
    order: Vec<u8>,
    midpoints: Vec<f32>,
}

/// The literals of bitsandbytes, which the formula meets only to about 1e-7.
#[expect(clippy::excessive_precision, reason = "digit for digit as bitsandbytes has them")]
#[rustfmt::skip]
const NF4: [f32; 16] = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
];
// The others by the formula of the NF definition with δ = (1/32 + 1/30) / 2; a test derives them anew.
const NF3: [f32; 8] =
    [-1.0, -0.478_629_08, -0.217_141_78, 0.0, 0.160_930_14, 0.337_915_12, 0.562_616_9, 1.0];
const NF2: [f32; 4] = [-1.0, 0.0, 0.337_915_12, 1.0];
/// The positive halves of the symmetric tables, ascending.
#[rustfmt::skip]
const NF4_SYMMETRIC: [f32; 8] = [
    0.042_333_465, 0.128_056_39, 0.217_141_78, 0.312_581_54, 0.418_966_83, 0.544_769_94, 0.710_250_5, 1.0,
];
const NF3_SYMMETRIC: [f32; 4] = [0.091_049_98, 0.284_441_32, 0.525_072_93, 1.0];
const NF2_SYMMETRIC: [f32; 2] = [0.217_141_78, 1.0];

impl Table {
    /// Integers scaled to [−1, 1).
    pub fn int(bits: Bits) -> Self {
        let half = (bits.codes() / 2) as f32;
        Self::build(
            TableKind::Int,
            bits,
            (0..bits.codes()).map(|c| (c as f32 - half) / half).collect(),
        )
    }

    /// Small floats scaled to [−1, 1], ascending, both zeros kept.
    pub fn fp(bits: Bits) -> Self {
        let positive: &[f32] = match bits {
            Bits::Four => &[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
            Bits::Three => &[0.0, 1.0, 2.0, 4.0],
            Bits::Two => &[0.0, 1.0],
        };
        let top = positive[positive.len() - 1];
        let negative = positive.iter().rev().map(|v| -v / top);
        Self::build(TableKind::Fp, bits, negative.chain(positive.iter().map(|v| v / top)).collect())
    }

    /// Normal Float.
    pub fn nf(bits: Bits) -> Self {
        let values: &[f32] = match bits {
            Bits::Four => &NF4,
            Bits::Three => &NF3,
            Bits::Two => &NF2,
        };
        Self::build(TableKind::Nf, bits, values.to_vec())
    }

    /// Symmetric Normal Float: `Φ⁻¹(linspace(δ, 1−δ, 2^bits)) / max`.
    pub fn nf_symmetric(bits: Bits) -> Self {
        let half: &[f32] = match bits {
            Bits::Four => &NF4_SYMMETRIC,
            Bits::Three => &NF3_SYMMETRIC,
            Bits::Two => &NF2_SYMMETRIC,
        };
        let values = half.iter().rev().map(|v| -v).chain(half.iter().copied()).collect();
        Self::build(TableKind::NfSymmetric, bits, values)
    }

    /// Any `2^bits` values, in any order.
    ///
    /// # Errors
    /// [`Error::WrongLength`], [`Error::NotFinite`].
    pub fn custom(bits: Bits, values: &[f32]) -> Result<Self> {
        check(values, bits.codes())?;
        Ok(Self::build(TableKind::Custom, bits, values.to_vec()))
    }

    /// A codebook of `2^(2·bits)` pairs: code `c` names the weights `pairs[c]` at an even k and the k after it.
    ///
    /// # Errors
    /// [`Error::WrongLength`], [`Error::NotFinite`].
    pub fn pairs(bits: Bits, pairs: &[[f32; 2]]) -> Result<Self> {
        let values = pairs.as_flattened();
        check(values, 2 * bits.pairs())?;
        Ok(Self {
            kind: TableKind::Pairs,
            bits,
            values: values.to_vec(),
            order: vec![],
            midpoints: vec![],
        })
    }

    /// The table that `kind` names, where the name says it all.
    ///
    /// # Errors
    /// [`Error::WrongLength`] for [`TableKind::Custom`] and [`TableKind::Pairs`], whose values no name gives.
    pub fn named(kind: TableKind, bits: Bits) -> Result<Self> {
        match kind {
            TableKind::Int => Ok(Self::int(bits)),
            TableKind::Fp => Ok(Self::fp(bits)),
            TableKind::Nf => Ok(Self::nf(bits)),
            TableKind::NfSymmetric => Ok(Self::nf_symmetric(bits)),
            TableKind::Custom => Self::custom(bits, &[]),
            TableKind::Pairs => Self::pairs(bits, &[]),
        }
    }

    fn build(kind: TableKind, bits: Bits, values: Vec<f32>) -> Self {
        let mut order: Vec<u8> = (0..values.len() as u8).collect();
        order.sort_by(|a, b| values[*a as usize].total_cmp(&values[*b as usize]));
        let mid = |w: &[u8]| (values[w[0] as usize] + values[w[1] as usize]) / 2.0;
        let midpoints = order.windows(2).map(mid).collect();
        Self { kind, bits, values, order, midpoints }
    }

    /// Which table it is.
    pub fn kind(&self) -> TableKind {
        self.kind
    }

    /// Bits of the codes, per weight.
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// Weights that one code names: 1 or 2.
    pub fn dim(&self) -> usize {
        if self.kind == TableKind::Pairs { 2 } else { 1 }
    }

    /// Codes that exist: `2^(bits·dim)`.
    pub fn entries(&self) -> usize {
        self.values.len() / self.dim()
    }

    /// The values; with dimension 2 flattened pairs.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Midpoints between neighbouring values, ascending (dimension 1; empty otherwise).
    pub fn midpoints(&self) -> &[f32] {
        &self.midpoints
    }

    /// The code of the value nearest to `w` (dimension 1): decided by midpoints, a tie takes the lower value. NaN
    /// takes the lowest.
    pub fn nearest(&self, w: f32) -> u8 {
        let rank: usize = self.midpoints.iter().map(|m| usize::from(w > *m)).sum();
        self.order.get(rank).copied().unwrap_or(0)
    }

    /// The pair table: `2^(2·bits)` pairs of the weights at an even k and the k after it. A pair's index is its code
    /// (dimension 2) or `even | odd << bits` of the two codes (dimension 1).
    pub fn pair_table(&self) -> Vec<[f32; 2]> {
        if self.dim() == 2 {
            return self.values.as_chunks().0.to_vec();
        }
        let codes = self.bits.codes();
        (0..self.bits.pairs()).map(|i| [self.values[i % codes], self.values[i / codes]]).collect()
    }
}

fn check(values: &[f32], expected: usize) -> Result<()> {
    if values.len() != expected {
        return Err(Error::WrongLength { what: "the table", found: values.len(), expected });
    }
    match values.iter().position(|v| !v.is_finite()) {
        Some(index) => Err(Error::NotFinite { what: "the table", index, value: values[index] }),
        None => Ok(()),
    }
}
