//! What is asked of a device: shape, format and types. Nothing of how.

use crate::{Activation, Dtype, Error, Format, Limits, MAX_DIM, PackedWeight, Result, pack};
use serde::{Deserialize, Serialize};

/// `y[m,n] = x[m,k] · W[n,k]ᵀ (+ bias[n])`, or what a gate makes of it.
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
    /// f, if y is gated: rows of W and elements of the bias are those of gate and up by turns, eight and eight
    /// ([`pack::Order::ByTurns`]), and y is `[m, n/2]` with `y[8i + g] = f(row 16i + g) · row 16i + 8 + g`. A plan that
    /// gates ([`crate::Plan::gates`]) does it on sums in f32, before the one rounding; behind others a kernel gates rounded ones.
    #[serde(default)]
    pub gate: Option<Activation>,
}

impl Problem {
    /// Columns of y.
    pub fn columns(&self) -> usize {
        if self.gate.is_some() { self.n / 2 } else { self.n }
    }

    /// Whether the shape can be addressed and `limits` knows the type.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::UnsupportedDtype`]; [`Error::InvalidGate`] for rows that are no whole turns.
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        for (what, found, min) in [("m", self.m, 0), ("n", self.n, 1), ("k", self.k, 1)] {
            if !(min..=MAX_DIM).contains(&found) {
                return Err(Error::OutOfRange { what, found, min, max: MAX_DIM });
            }
        }
        if self.gate.is_some() && !self.n.is_multiple_of(pack::BLOCK_ROWS) {
            return Err(Error::InvalidGate { found: self.n, needed: pack::BLOCK_ROWS });
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
        let values = PackedWeight::scales_len(self.n, self.k, self.format)
            + self.m * (self.columns() + self.k);
        4 * words + values * self.dtype.size()
    }
}
