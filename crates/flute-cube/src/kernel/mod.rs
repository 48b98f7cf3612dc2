//! What runs on the device: one file a family, each with its launch.

pub(crate) mod attend;
pub(crate) mod decode;
pub(crate) mod gate;
pub(crate) mod hadamard;
pub(crate) mod mma;
pub(crate) mod norm;
pub(crate) mod portable;
mod ptx;
pub(crate) mod rotate;
pub(crate) mod rows;
mod sum;
pub(crate) mod wgmma;
pub(crate) mod width;
