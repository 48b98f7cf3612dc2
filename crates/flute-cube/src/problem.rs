//! What is asked of a device: shape, format and types. Nothing of how.

use crate::{Dtype, Error, Format, Limits, MAX_DIM, PackedWeight, Result};
use serde::{Deserialize, Serialize};

/// `y[m,n] = x[m,k] · W[n,k]ᵀ (+ bias[n])`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// Rows of activations; 0 asks for nothing and gets it.
    pub m: usize,
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// Of the weight.
    pub format: Format,
    /// Of activations, scales, table, bias and result.
    pub dtype: Dtype,
    /// Whether a bias is added before the one rounding at the end.
    pub bias: bool,
}

impl Problem {
    /// Whether the shape can be addressed and `limits` knows the type.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::UnsupportedDtype`].
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        for (what, found, min) in [("m", self.m, 0), ("n", self.n, 1), ("k", self.k, 1)] {
            if !(min..=MAX_DIM).contains(&found) {
                return Err(Error::OutOfRange { what, found, min, max: MAX_DIM });
            }
        }
        let words = PackedWeight::words_len(self.n, self.k, self.format);
        for (what, found) in
            [("m·k", self.m * self.k), ("m·n", self.m * self.n), ("the words of the weight", words)]
        {
            if found > u32::MAX as usize {
                return Err(Error::OutOfRange { what, found, min: 0, max: u32::MAX as usize });
            }
        }
        limits.require(self.dtype)
    }

    /// Bytes that any kernel must move: codes, scales, activations and result.
    pub fn bytes(&self) -> usize {
        let words = PackedWeight::words_len(self.n, self.k, self.format);
        let values =
            PackedWeight::scales_len(self.n, self.k, self.format) + self.m * (self.n + self.k);
        4 * words + values * self.dtype.size()
    }
}
