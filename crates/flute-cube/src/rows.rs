//! Rows of a weight by their numbers, decoded: the lookup of an embedding that is stored in codes.
//!
//! The same codes serve as the head of a model whose embedding is its head ([`crate::qgemm`]). Every runtime serves it;
//! a number beyond the last row gives the last row, since only the device knows the numbers.

use crate::{
    Operands, Problem, Result, kernel,
    launch::{Kernel, accepted, limits, measured},
};
use cubecl::{prelude::Client, server::Handle};

/// The buffers of a lookup, all on the client's device.
#[derive(Clone, Debug)]
pub struct RowOperands {
    /// As [`Operands::words`].
    pub words: Handle,
    /// As [`Operands::scales`].
    pub scales: Handle,
    /// As [`Operands::pairs`].
    pub pairs: Handle,
    /// Numbers of rows, i32, `[m]`.
    pub ids: Handle,
}

/// Writes the rows of `operands.ids` to `y`, `[m, k]` in the activation type, each element rounded once. The problem's
/// m is the number of ids; its bias and gate play no part.
///
/// # Errors
/// What [`Problem::validate`] refuses; [`crate::Error::WrongLength`] for buffers that are too short;
/// [`crate::Error::Device`].
pub fn rows(client: &Client, problem: &Problem, operands: &RowOperands, y: &Handle) -> Result<()> {
    let problem = Problem { bias: false, gate: None, ..*problem };
    problem.validate(&limits(client))?;
    let RowOperands { words, scales, pairs, ids } = operands.clone();
    let weight = Operands { x: ids.clone(), words, scales, pairs, bias: None, y: y.clone() };
    weight.validate(&Problem { m: 0, ..problem })?;
    let Problem { m, k, dtype, .. } = problem;
    measured(&[
        ("the buffer of row numbers (bytes)", &ids, 4 * m),
        ("the buffer of rows (bytes)", y, m * k * dtype.size()),
    ])?;
    if m == 0 {
        return Ok(());
    }
    kernel::rows::launch(client, &problem, operands, y);
    accepted(client, Kernel::Rows(problem.format, dtype), y)
}
