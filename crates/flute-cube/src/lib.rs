//! FLUTE's lookup-table matrix product in CubeCL: `y = x · Wᵀ` with `W = table[code] · scale`.
//!
//! Weights are 2-, 3- or 4-bit codes into any table, with one scale a group. A table may be integers, small floats,
//! Normal Float, learned values or a two-dimensional codebook: all are served by the same kernels.
//!
//! Four nouns, in the order of use: a [`Problem`] says what is asked, a [`Plan`] how it will be done (plain data: it
//! can be validated, hashed, forced by a test, tuned), [`qgemm`] is the only way to the device, and `kernel` holds
//! what runs there. [`Quantized`] is a weight as files hold it, [`PackedWeight`] as kernels read it, and
//! [`mod@reference`] defines what is correct. Beside the product stand the kernels that a model around it needs:
//! [`fn@hadamard`] for rotated weights, and [`fn@norm`], [`fn@gate`], [`fn@rotate`], [`fn@attend`] and [`fn@attend_next`] for
//! decoding.
//! [`mod@measure`] times launches, and [`mod@tune`] keeps the fastest plans.
//!
//! ```
//! use flute_cube::{Format, Group, PackedWeight, Quantized, QuantizedParts, Table};
//!
//! let format = Format::new(4, 32)?;
//! let weight = Quantized::new(QuantizedParts {
//!     n: 2,
//!     k: 32,
//!     format,
//!     codes: (0..64).map(|i| i % 16).collect(),
//!     scales: vec![0.5, 2.0],
//!     table: Table::nf(format.bits),
//! })?;
//! let packed = PackedWeight::pack(&weight);
//! assert_eq!(packed.dequantize(), weight.dequantize());
//! assert_eq!(weight.dequantize()[47], 2.0 * Table::nf(format.bits).values()[15]);
//! # Ok::<(), flute_cube::Error>(())
//! ```

mod attend;
mod choose;
mod dense;
mod error;
mod format;
mod gate;
mod gemv;
mod hadamard;
mod kernel;
mod launch;
mod limits;
pub mod measure;
mod next;
mod norm;
pub mod pack;
mod plan;
mod problem;
mod quantized;
pub mod reference;
mod rotate;
mod rows;
mod table;
pub mod tune;

pub use attend::{Attend, AttendBuffers, attend};
pub use choose::{Choose, ChooseBuffers, choose};
pub use error::{Error, Result};
pub use format::{Bits, Dtype, Format, Group};
pub use gate::{Activation, Gate, gate};
pub use gemv::{Gemv, gemv};
pub use hadamard::{Hadamard, hadamard};
pub use kernel::blocks::CACHE_BLOCK;
pub use launch::{Operands, decode, qgemm, qgemm_with};
pub use limits::Limits;
pub use next::{Cluster, NextBuffers, attend_next, attend_next_with};
pub use norm::{Norm, NormBuffers, Residual, norm};
pub use pack::PackedWeight;
pub use plan::{CooperativePlan, DensePlan, MmaPlan, Plan, PortablePlan, StreamPlan};
pub use problem::Problem;
pub use quantized::{MAX_DIM, Quantized, QuantizedParts};
pub use rotate::{Rotate, RotateBuffers, rotate};
pub use rows::{RowOperands, rows};
pub use table::{Table, TableKind};
