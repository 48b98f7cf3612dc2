//! What runs on the device: one file a family, each with its launch.

pub(crate) mod decode;
pub(crate) mod mma;
pub(crate) mod portable;
mod ptx;
