//! What runs on the device: one file a family, each with its launch.

pub(crate) mod attend;
pub(crate) mod blocks;
pub(crate) mod choose;
pub(crate) mod cooperative;
pub(crate) mod decode;
pub(crate) mod dense;
mod fold;
mod fragment;
pub(crate) mod gate;
pub(crate) mod gemv;
pub(crate) mod hadamard;
pub(crate) mod mma;
pub(crate) mod norm;
mod overlap;
mod padded;
pub(crate) mod portable;
pub(crate) mod prompt;
mod ptx;
pub(crate) mod rotate;
pub(crate) mod rows;
pub(crate) mod stream;
mod sum;
pub(crate) mod width;
