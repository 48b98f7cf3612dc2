//! Kernels of a recording that begin while the one before them ends: CUDA of compute capability 9.0 on. Before that, and
//! where launches are not recorded, they run one behind the other, and neither of these does anything.
//!
//! A kernel is over only after the one that it waited for, so each knows of its neighbour alone. Ahead of [`follow`] it reads
//! what no kernel of its recording writes, weights, tables and gains, and writes nothing.

use cubecl::prelude::*;

/// Lets the next kernel begin, as soon as all cubes of this one have come here. First of all: it takes the room that this
/// one leaves, brings what it can, and waits in [`follow`].
#[cube]
pub(in crate::kernel) fn lead(#[comptime] overlaps: bool) {
    if comptime!(overlaps) {
        gpu_asm!("griddepcontrol.launch_dependents;");
    }
}

/// Waits until the kernel before this one is over, and so all before that, and what they wrote is seen.
#[cube]
pub(in crate::kernel) fn follow(#[comptime] overlaps: bool) {
    if comptime!(overlaps) {
        gpu_asm!("griddepcontrol.wait;");
    }
}
