//! The orthonormal Hadamard transform of blocks of activations: what a weight in a rotated basis asks of them.
//!
//! H is Sylvester's matrix of ±1 divided by the square root of its size: symmetric, and its own inverse. Served are
//! blocks of powers of two up to [`Hadamard::MAX_BLOCK`], in every type that the device has; refused are other blocks,
//! and those that would take more units than a cube has there.

use crate::{
    Dtype, Error, Limits, Result,
    kernel::{
        hadamard::{self as kernel, Form},
        width::width,
    },
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};

/// What is asked: `rows` blocks of `block` elements, each to its transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hadamard {
    /// Blocks; 0 asks for nothing and gets it.
    pub rows: usize,
    /// Elements that are rotated together.
    pub block: usize,
    /// Of input and result; sums are f32.
    pub dtype: Dtype,
}

impl Hadamard {
    /// The largest block.
    pub const MAX_BLOCK: usize = 1 << 15;

    /// Whether a device of `limits` serves this.
    ///
    /// # Errors
    /// [`Error::InvalidBlock`], [`Error::OutOfRange`] for more elements than 32 bits address,
    /// [`Error::UnsupportedDtype`], [`Error::UnsupportedShape`].
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let Self { rows, block, dtype } = *self;
        if !block.is_power_of_two() || !(2..=Self::MAX_BLOCK).contains(&block) {
            return Err(Error::InvalidBlock { found: block, max: Self::MAX_BLOCK });
        }
        let max = u32::MAX as usize / block;
        if rows > max {
            return Err(Error::OutOfRange {
                what: "the number of blocks",
                found: rows,
                min: 0,
                max,
            });
        }
        limits.require(dtype)?;
        let (held, most) = Form::new(self, 1, limits).held();
        if held > most {
            return Err(Error::UnsupportedShape {
                what: "units a cube",
                needed: block / most,
                offered: limits.cube_units,
                device: limits.name.clone(),
            });
        }
        Ok(())
    }
}

/// Writes the transform of each block of `x` to `y`, another buffer of as many elements, rounding each once.
///
/// # Errors
/// What [`Hadamard::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn hadamard(client: &Client, problem: &Hadamard, x: &Handle, y: &Handle) -> Result<()> {
    let limits = limits(client);
    problem.validate(&limits)?;
    let Hadamard { rows, block, dtype } = *problem;
    let expected = rows * block * dtype.size();
    measured(&[
        ("the buffer of x (bytes)", x, expected),
        ("the buffer of y (bytes)", y, expected),
    ])?;
    if rows == 0 {
        return Ok(());
    }
    let width = width(client, block, &[(x, dtype.size()), (y, dtype.size())]);
    let form = Form::new(problem, width, &limits);
    kernel::launch(client, problem, form, x, y);
    accepted(client, Kernel::Hadamard(form, dtype), y)
}
