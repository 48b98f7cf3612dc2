//! The one error of this crate.
//!
//! Three families that a caller treats differently: *invalid* input (ask differently), *unsupported* here (another
//! device or another format serves it) and a *device* that failed (the result of the launch is not to be trusted).
//! Every message carries what was found and what is needed.

use crate::{Bits, Dtype};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused or failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A bit-width that no kernel serves.
    #[error("{found} bits per weight are not served; choose 2, 3 or 4")]
    InvalidBits {
        /// The bits asked for.
        found: u32,
    },
    /// A group size that no kernel serves.
    #[error("a group of {found} weights is not served; choose 32, 64, 128, 256 or the whole row")]
    InvalidGroup {
        /// The group asked for.
        found: usize,
    },
    /// A buffer, table or list of another length than its shape says.
    #[error("{what} has {found} elements and needs {expected}")]
    WrongLength {
        /// What was measured.
        what: &'static str,
        /// Elements found.
        found: usize,
        /// Elements needed.
        expected: usize,
    },
    /// A buffer that begins where a kernel's loads cannot.
    #[error(
        "{what} begins at byte {found} of its allocation; it must begin at a multiple of {needed}"
    )]
    Misaligned {
        /// The buffer.
        what: &'static str,
        /// Where it begins.
        found: usize,
        /// What its beginning must be a multiple of.
        needed: usize,
    },
    /// A matrix without rows or columns, or one too large to address.
    #[error("{what} is {found}; it must lie in {min}..={max}")]
    OutOfRange {
        /// The quantity.
        what: &'static str,
        /// Its value.
        found: usize,
        /// The least allowed value.
        min: usize,
        /// The greatest allowed value.
        max: usize,
    },
    /// A code that names no table entry.
    #[error(
        "code {code} at index {index} names no entry of a table of {entries}; codes are 0..{entries}"
    )]
    CodeOutOfRange {
        /// Position in the code array.
        index: usize,
        /// The code found.
        code: u8,
        /// Entries of the table.
        entries: usize,
    },
    /// A NaN or an infinity where a finite number is needed.
    #[error("{what} holds {value} at index {index}; every value must be finite")]
    NotFinite {
        /// The array.
        what: &'static str,
        /// Position in it.
        index: usize,
        /// The value found.
        value: f32,
    },
    /// Bits that the format says are zero.
    #[error(
        "row {row} of the packed codes has set bits after its last code; the file is corrupt or of another width"
    )]
    DirtyPadding {
        /// The row.
        row: usize,
    },
    /// A table of another width than the codes.
    #[error("the table is for {table} bits and the format for {format}")]
    BitsMismatch {
        /// Bits of the table.
        table: Bits,
        /// Bits of the format.
        format: Bits,
    },
    /// A name that no table bears.
    #[error("no table is called '{found}'; known are int, fp, nf, nf-symmetric, custom and pairs")]
    UnknownTable {
        /// The name asked for.
        found: String,
    },
    /// The activation type does not exist on this device.
    #[error("{dtype} is not available on {device}; use {instead} activations there")]
    UnsupportedDtype {
        /// The type asked for.
        dtype: Dtype,
        /// The device.
        device: String,
        /// A type that the device has.
        instead: Dtype,
    },
    /// The plan needs more of something than the device has, or names a kernel that the device cannot run.
    #[error(
        "this plan needs {needed} {what} and {device} offers {offered}; let Plan::select choose another"
    )]
    UnsupportedPlan {
        /// The resource.
        what: &'static str,
        /// How much the plan needs.
        needed: usize,
        /// How much there is.
        offered: usize,
        /// The device.
        device: String,
    },
    /// A plan that does not fit its problem, whatever the device.
    #[error("the plan does not fit the problem: {reason}")]
    InvalidPlan {
        /// What contradicts what.
        reason: String,
    },
    /// A block that no Hadamard transform rotates.
    #[error("blocks of {found} cannot be rotated; choose a power of two from 2 to {max}")]
    InvalidBlock {
        /// The block asked for.
        found: usize,
        /// The largest block.
        max: usize,
    },
    /// A weight of gate and up by turns with a turn that is not whole.
    #[error(
        "a gate and what it gates have {found} rows together; they lie by turns, whose rows are a multiple of {needed}"
    )]
    InvalidGate {
        /// Rows of the weight.
        found: usize,
        /// Rows of a turn of both.
        needed: usize,
    },
    /// A shape that needs more of something than the device has.
    #[error(
        "this shape needs {needed} {what} and {device} offers {offered}; ordinary tensor operations serve it there"
    )]
    UnsupportedShape {
        /// The resource.
        what: &'static str,
        /// How much the shape needs.
        needed: usize,
        /// How much there is.
        offered: usize,
        /// The device.
        device: String,
    },
    /// Plans would be measured inside a graph capture, which would record the measurement.
    #[error(
        "plans are not measured while a graph is being captured; tune before the capture begins"
    )]
    Capturing,
    /// The device refused to compile or to run a kernel, or was lost.
    #[error("the device failed while it {during}: {reason}")]
    Device {
        /// The operation.
        during: &'static str,
        /// What the runtime reported.
        reason: String,
    },
}

impl Error {
    /// Whether another device or format would serve the same request.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::UnsupportedDtype { .. }
                | Self::UnsupportedPlan { .. }
                | Self::UnsupportedShape { .. }
        )
    }

    /// Whether the device failed, so that nothing it returned can be trusted.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::Device { .. })
    }
}
