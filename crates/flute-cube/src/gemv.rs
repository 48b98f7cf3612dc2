//! Few rows times a dense weight, `y = x · Wᵀ`, at the speed of reading the weight: the head of a model that decodes.
//!
//! Libraries tile such a product for many rows of x, and read slowly then. Sums are f32, with one rounding at the end. Refused are more rows than reading hides, which on a device
//! with a matrix unit are more, sizes that 32 bits do not address, and types that the device does not have.

use crate::{
    Dtype, Error, Limits, Result,
    kernel::gemv as kernel,
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gemv {
    /// Rows of x; 0 asks for nothing and gets it.
    pub m: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Elements of a row of either.
    pub k: usize,
    /// Elements from one row of the weight to the next, at least k: devices pad rows.
    pub stride: usize,
    /// Of everything.
    pub dtype: Dtype,
}

impl Gemv {
    /// Rows of x that some device serves.
    pub const MAX_ROWS: usize = 64;

    /// Whether a device of `limits` serves this.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for sizes of zero, or more elements than 32 bits address; [`Error::UnsupportedDtype`];
    /// [`Error::UnsupportedShape`] for too many rows: [`Gemv::MAX_ROWS`] of f16 or bf16 where there are tensor cores and
    /// the weight is large, else 8.
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let Self { m, n, k, stride, dtype } = *self;
        let max = u32::MAX as usize;
        for (what, found, min, max) in [
            ("the number of rows", m, 0, max / n.max(k).max(1)),
            ("the length of a row", k, 1, max),
            ("the elements between rows of the weight", stride, k, max),
            ("the rows of the weight", n, 1, max / stride.max(1)),
        ] {
            if !(min..=max).contains(&found) {
                return Err(Error::OutOfRange { what, found, min, max });
            }
        }
        limits.require(dtype)?;
        let offered = kernel::most_rows(self, limits);
        if m > offered {
            let (what, device) = ("rows of x", limits.name.clone());
            return Err(Error::UnsupportedShape { what, needed: m, offered, device });
        }
        Ok(())
    }
}

/// Writes the product of `x` `[m, k]` and the transposed `weight` `[n, k]`, its rows apart as the problem says, to `y`
/// `[m, n]`.
///
/// # Errors
/// What [`Gemv::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn gemv(client: &Client, problem: &Gemv, [x, weight, y]: [&Handle; 3]) -> Result<()> {
    let limits = limits(client);
    problem.validate(&limits)?;
    let Gemv { m, n, k, stride, dtype } = *problem;
    measured(&[
        ("the buffer of x (bytes)", x, m * k * dtype.size()),
        ("the buffer of the weight (bytes)", weight, ((n - 1) * stride + k) * dtype.size()),
        ("the buffer of y (bytes)", y, m * n * dtype.size()),
    ])?;
    if m == 0 {
        return Ok(());
    }
    let form = kernel::launch(client, problem, [x, weight, y], &limits);
    accepted(client, Kernel::Gemv(form), y)
}
