//! The gate of a decoder's MLP, behind a product that gives gate and up at once and does not gate itself
//! ([`crate::Problem::gate`]).
//!
//! Gate and up lie side by side in a row of x; where they lie by turns, a turn of both is a row.
//! One read of x and one write of y, f32 in between, one rounding. Refused are types that the device does not have.

use crate::{
    Dtype, Error, Limits, Result,
    kernel::gate as kernel,
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};
use serde::{Deserialize, Serialize};

/// The function of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Activation {
    /// `x / (1 + e⁻ˣ)`.
    Silu,
    /// The Gaussian error linear unit by its approximation with tanh.
    GeluTanh,
}

/// `y[r, i] = f(x[r, i]) · x[r, len + i]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gate {
    /// Rows; 0 asks for nothing and gets it.
    pub rows: usize,
    /// Elements of a row of y, half of those of x.
    pub len: usize,
    /// f.
    pub activation: Activation,
    /// Of x and y.
    pub dtype: Dtype,
}

impl Gate {
    /// Whether a device of `limits` serves this.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for rows without elements or more elements than 32 bits address,
    /// [`Error::UnsupportedDtype`].
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let Self { rows, len, dtype, .. } = *self;
        let max = u32::MAX as usize / 2;
        if !(1..=max).contains(&len) {
            return Err(Error::OutOfRange { what: "the length of a row", found: len, min: 1, max });
        }
        if rows > max / len {
            let max = max / len;
            return Err(Error::OutOfRange { what: "the number of rows", found: rows, min: 0, max });
        }
        limits.require(dtype)
    }
}

/// Writes the gated rows of `x` `[rows, 2·len]` to `y` `[rows, len]`.
///
/// # Errors
/// What [`Gate::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn gate(client: &Client, problem: &Gate, x: &Handle, y: &Handle) -> Result<()> {
    problem.validate(&limits(client))?;
    let bytes = problem.rows * problem.len * problem.dtype.size();
    measured(&[("the buffer of x (bytes)", x, 2 * bytes), ("the buffer of y (bytes)", y, bytes)])?;
    if problem.rows == 0 {
        return Ok(());
    }
    let form = kernel::launch(client, problem, x, y);
    accepted(client, Kernel::Gate(form), y)
}
