//! How a weight is stored: bits a code, weights a scale, and the type of the activations it meets.
//!
//! Served: 2, 3 and 4 bits; groups of 32, 64, 128, 256 or the whole row. Refused: every other width (no kernel reads
//! it) and every other group (kernels fold sums at these boundaries).

use crate::{Error, Result};
use core::fmt;
use cubecl::ir::{ElemType, FloatKind};
use serde::{Deserialize, Serialize};

/// Bits of one scalar code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Bits {
    /// Four values.
    Two,
    /// Eight values.
    Three,
    /// Sixteen values.
    Four,
}

impl Bits {
    /// All widths, narrow to wide.
    pub const ALL: [Self; 3] = [Self::Two, Self::Three, Self::Four];

    /// The width of `bits` bits.
    ///
    /// # Errors
    /// [`Error::InvalidBits`] unless `bits` is 2, 3 or 4.
    pub fn new(bits: u8) -> Result<Self> {
        match bits {
            2 => Ok(Self::Two),
            3 => Ok(Self::Three),
            4 => Ok(Self::Four),
            _ => Err(Error::InvalidBits { found: bits.into() }),
        }
    }

    /// The number of bits.
    pub const fn get(self) -> u8 {
        match self {
            Self::Two => 2,
            Self::Three => 3,
            Self::Four => 4,
        }
    }

    /// Values that one code can name: `2^bits`.
    pub const fn codes(self) -> usize {
        1 << self.get()
    }

    /// Pairs of values that two codes can name: `2^(2·bits)`, the entries of a pair table.
    pub const fn pairs(self) -> usize {
        1 << (2 * self.get())
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl TryFrom<u8> for Bits {
    type Error = Error;
    fn try_from(bits: u8) -> Result<Self> {
        Self::new(bits)
    }
}

impl From<Bits> for u8 {
    fn from(bits: Bits) -> u8 {
        bits.get()
    }
}

/// Weights along k that share one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Group {
    /// 32, 64, 128 or 256 weights; the last group of a row may be shorter.
    Size(u32),
    /// One scale a row.
    Whole,
}

impl Group {
    /// The sizes that [`Group::Size`] may hold.
    pub const SIZES: [usize; 4] = [32, 64, 128, 256];

    /// The group of `size` weights.
    ///
    /// # Errors
    /// [`Error::InvalidGroup`] unless `size` is one of [`Group::SIZES`].
    pub fn new(size: usize) -> Result<Self> {
        if Self::SIZES.contains(&size) {
            Ok(Self::Size(size as u32))
        } else {
            Err(Error::InvalidGroup { found: size })
        }
    }

    /// Weights in a full group of a row of `k`.
    pub fn len(self, k: usize) -> usize {
        match self {
            Self::Size(size) => size as usize,
            Self::Whole => k.max(1),
        }
    }

    /// Groups, so scales, of a row of `k`.
    pub fn count(self, k: usize) -> usize {
        k.div_ceil(self.len(k))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => size.fmt(f),
            Self::Whole => f.write_str("row"),
        }
    }
}

/// Bits and group: what decides the bytes of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Format {
    /// Bits of a code.
    pub bits: Bits,
    /// Weights of a scale.
    pub group: Group,
}

impl Format {
    /// The format of `bits` bits and groups of `group` weights.
    ///
    /// # Errors
    /// [`Error::InvalidBits`] or [`Error::InvalidGroup`].
    pub fn new(bits: u8, group: usize) -> Result<Self> {
        Ok(Self { bits: Bits::new(bits)?, group: Group::new(group)? })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "W{}G{}", self.bits, self.group)
    }
}

/// Type of activations, scales, table and result. Sums are f32 whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    BF16,
}

impl Dtype {
    /// All types.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The type as kernels name it.
    pub(crate) fn elem(self) -> ElemType {
        ElemType::Float(match self {
            Self::F32 => FloatKind::F32,
            Self::F16 => FloatKind::F16,
            Self::BF16 => FloatKind::BF16,
        })
    }

    /// `value` rounded to this type.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => half::f16::from_f32(value).to_f32(),
            Self::BF16 => half::bf16::from_f32(value).to_f32(),
        }
    }

    /// `values` as this type's little-endian bytes.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => bytemuck::cast_slice(values).to_vec(),
            Self::F16 => {
                values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect()
            }
            Self::BF16 => {
                values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
            }
        }
    }

    /// The inverse of [`Dtype::encode`]; a tail shorter than one element is dropped.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => {
                bytes.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
            }
            Self::BF16 => {
                bytes.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        })
    }
}
