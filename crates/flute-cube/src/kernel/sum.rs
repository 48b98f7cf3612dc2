//! Sums over a cube, in an order that the form of the cube alone decides.

use crate::Limits;
use cubecl::prelude::*;

/// The units that sum: as many as a cube has, a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Team {
    pub(crate) units: usize,
    /// Units that exchange values by shuffles, or 1.
    lanes: usize,
}

impl Team {
    /// A team of the largest power of two of units that is neither above `most` nor above a cube of the device.
    pub(crate) fn new(most: usize, limits: &Limits) -> Self {
        let units = 1usize << most.min(limits.cube_units).max(1).ilog2();
        Self { units, lanes: limits.lanes.min(units) }
    }

    /// Values that cross shared memory.
    fn parts(self) -> usize {
        self.units / self.lanes
    }
}

/// The sum of every unit's `value`, in every unit. All units of the cube must come here, and the cube must be the team.
#[cube]
pub(crate) fn cube_sum(value: f32, #[comptime] team: Team) -> f32 {
    let unit = UNIT_POS as usize;
    let mut sums = Array::<f32>::new(1usize);
    sums[0] = value;
    #[unroll]
    for bit in 0..comptime!(team.lanes.ilog2() as usize) {
        sums[0] = sums[0] + plane_shuffle_xor(sums[0], comptime!(1u32 << bit));
    }
    if comptime!(team.parts() > 1) {
        let mut shared = Shared::<[f32]>::new_slice(comptime!(team.parts()));
        if unit & comptime!(team.lanes - 1) == 0 {
            shared[unit / team.lanes] = sums[0];
        }
        sync_cube();
        if comptime!(team.parts() <= team.lanes) {
            // Every plane sums them, so nobody waits again.
            sums[0] = shared[unit % team.parts()];
            #[unroll]
            for step in 0..comptime!(team.parts().ilog2() as usize) {
                let half = comptime!((team.parts() >> (step + 1)) as u32);
                sums[0] = sums[0] + plane_shuffle_xor(sums[0], half);
            }
        } else {
            #[unroll]
            for step in 0..comptime!(team.parts().ilog2() as usize) {
                let half = comptime!(team.parts() >> (step + 1));
                if unit < half {
                    shared[unit] += shared[unit + half];
                }
                sync_cube();
            }
            sums[0] = shared[0];
        }
        // Whoever sums again must not overtake those who still read.
        sync_cube();
    }
    sums[0]
}
