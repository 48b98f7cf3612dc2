//! From words to what a lane gives the matrix unit: the pair table as it lies in shared memory, and its lookups.
//!
//! A copy of the table for every lane, entries 128 bytes apart, so that no two lanes meet in a bank. Two bits look up
//! four weights at a time, in a table of quads with a copy for two lanes.

use super::ptx::{U4, lookup, lookup_quad};
use cubecl::prelude::*;

/// Entry `index` of the table: a pair four times over, or a quad twice.
#[cube]
pub(in crate::kernel) fn table_vector(pairs: &[u32], index: usize, #[comptime] bits: u8) -> U4 {
    if comptime!(bits == 2) {
        let (low, high) = (pairs[index % 16], pairs[index / 16]);
        let mut vector = U4::new(low);
        vector.insert(1usize, high);
        vector.insert(3usize, high);
        vector
    } else {
        U4::new(pairs[index])
    }
}

/// Where a lane's copy of the table begins, in bytes from the table's start.
#[cube]
pub(in crate::kernel) fn copy_of(lane: u32, #[comptime] bits: u8) -> u32 {
    if comptime!(bits == 2) { lane % 16u32 * 8u32 } else { lane * 4u32 }
}

/// Fragment `f` of the A operand: what its four indices name ([`crate::pack`] has the layout). The lane's words of the
/// block begin at `own`.
#[cube]
pub(in crate::kernel) fn fragment(
    words: &Array<u32>,
    table: u32,
    #[comptime] own: usize,
    #[comptime] f: usize,
    #[comptime] bits: u8,
) -> Array<u32> {
    let mut a = Array::<u32>::new(4usize);
    if comptime!(bits == 2) {
        #[unroll]
        for half in 0..2usize {
            let byte = comptime!((f % 2 * 2 + half) as u32);
            let quad = lookup_quad(words[comptime!(own + f / 2)], table, byte);
            a[comptime!(2 * half)] = quad.extract(0usize);
            a[comptime!(2 * half + 1)] = quad.extract(1usize);
        }
    } else {
        let mut indices = Array::<u32>::new(1usize);
        if comptime!(bits == 4) {
            indices[0] = words[comptime!(own + f)];
        } else {
            let first = comptime!(own + f / 4 * 3);
            if comptime!(f % 4 < 3) {
                indices[0] = words[comptime!(first + f % 4)] & 0x3f3f_3f3fu32;
            } else {
                indices[0] = ((words[first] >> 6u32) & 0x0303_0303u32)
                    | ((words[first + 1] >> 4u32) & 0x0c0c_0c0cu32)
                    | ((words[first + 2] >> 2u32) & 0x3030_3030u32);
            }
        }
        #[unroll]
        for slot in 0..4usize {
            a[slot] = lookup(indices[0], table, comptime!(slot as u32));
        }
    }
    a
}
