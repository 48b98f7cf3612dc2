//! RMS norms (arXiv 1910.07467), with the residual that decoders add before them.
//!
//! One read of every input and one write of every output; sums in f32, one rounding of each result. Refused are rows
//! that a cube cannot hold in its registers, and types that the device does not have.

use crate::{
    Dtype, Error, Limits, Result,
    kernel::norm::{self as kernel, Form},
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};

/// `y = x / √(mean(x²) + ε) · (gain + offset)` of each row of `x`, or of `x + branch` where there is a residual.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Rows; 0 asks for nothing and gets it.
    pub rows: usize,
    /// Elements of a row.
    pub len: usize,
    /// ε.
    pub epsilon: f64,
    /// Added to the gain: 1 for Gemma's gains as files hold them, else 0.
    pub offset: f64,
    /// Of x, and of its sum with the branch.
    pub dtype: Dtype,
    /// Of y.
    pub out: Dtype,
}

/// The buffers of a norm, all on the client's device.
#[derive(Clone, Debug)]
pub struct NormBuffers {
    /// `[rows, len]`.
    pub x: Handle,
    /// `[len]`, f32.
    pub gain: Handle,
    /// `[rows, len]`: every element is written.
    pub y: Handle,
    /// What is added to x first, if anything.
    pub residual: Option<Residual>,
}

/// What is added to x, and where the sum goes.
#[derive(Clone, Debug)]
pub struct Residual {
    /// `[rows, len]`.
    pub branch: Handle,
    /// Of the branch.
    pub dtype: Dtype,
    /// `[rows, len]` in the type of x, each element rounded once: every element is written. The norm is that of the
    /// sum before it is rounded.
    pub sum: Handle,
}

impl Norm {
    /// Whether a device of `limits` serves this.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for rows without elements or more elements than 32 bits address,
    /// [`Error::UnsupportedDtype`], [`Error::UnsupportedShape`].
    pub fn validate(&self, limits: &Limits) -> Result<()> {
        let Self { rows, len, dtype, out, .. } = *self;
        let max = u32::MAX as usize;
        if !(1..=max).contains(&len) {
            return Err(Error::OutOfRange { what: "the length of a row", found: len, min: 1, max });
        }
        if rows > max / len {
            let max = max / len;
            return Err(Error::OutOfRange { what: "the number of rows", found: rows, min: 0, max });
        }
        limits.require(dtype)?;
        limits.require(out)?;
        let offered = Form::widest(limits);
        if len > offered {
            return Err(Error::UnsupportedShape {
                what: "elements of a row",
                needed: len,
                offered,
                device: limits.name.clone(),
            });
        }
        Ok(())
    }
}

/// Computes the norm, and the sum where there is a residual.
///
/// # Errors
/// What [`Norm::validate`] refuses; [`Error::WrongLength`] for buffers that are too short; [`Error::Device`].
pub fn norm(client: &Client, problem: &Norm, buffers: &NormBuffers) -> Result<()> {
    let limits = limits(client);
    problem.validate(&limits)?;
    let Norm { rows, len, dtype, out, .. } = *problem;
    measured(&[
        ("the buffer of x (bytes)", &buffers.x, rows * len * dtype.size()),
        ("the buffer of the gain (bytes)", &buffers.gain, len * Dtype::F32.size()),
        ("the buffer of y (bytes)", &buffers.y, rows * len * out.size()),
    ])?;
    if let Some(Residual { branch, dtype: added, sum }) = &buffers.residual {
        limits.require(*added)?;
        measured(&[
            ("the buffer of the branch (bytes)", branch, rows * len * added.size()),
            ("the buffer of the sum (bytes)", sum, rows * len * dtype.size()),
        ])?;
    }
    if rows == 0 {
        return Ok(());
    }
    let form = kernel::launch(client, problem, buffers, &limits);
    accepted(client, Kernel::Norm(form), &buffers.y)
}
