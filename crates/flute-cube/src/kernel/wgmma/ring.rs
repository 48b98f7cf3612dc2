//! The ring of stages through which x comes to the warpgroups, ahead of its use.
//!
//! A stage holds a block of 128 of k of all tokens of the cube: two panels of 64, a token's 128 bytes after another's,
//! in each of which the 16 bytes at place c lie at place `c ^ (token % 8)`: what the matrix unit calls a 128-byte
//! swizzle. Two barriers a stage: *full* waits for the copies of all units, *empty* for the planes that read them.
//!
//! The warpgroups copy themselves: a plane more would cost the registers of a whole warpgroup, which their sums need.
//! What is copied lies two stages less ahead than the ring is long, so that no warpgroup waits for another that is not
//! two blocks behind.

use super::Shape;
use crate::kernel::ptx::U4;
use cubecl::prelude::*;

/// Where a unit is in the ring.
#[derive(CubeType)]
pub(super) struct Place {
    pub(super) slot: u32,
    /// Of the *full* barrier of the slot when its next stage has come.
    pub(super) parity: u32,
}

#[cube]
impl Place {
    pub(super) fn start() -> Place {
        Place { slot: 0u32, parity: 0u32 }
    }
}

#[cube]
pub(super) fn advance(place: &mut Place, #[comptime] shape: Shape) {
    place.slot += 1u32;
    if place.slot == comptime!(shape.plan.stages) {
        place.slot = 0u32;
        place.parity ^= 1u32;
    }
}

/// One unit's work, before a barrier of the cube.
#[cube]
pub(super) fn init_barriers(barriers: u32, #[comptime] shape: Shape) {
    #[unroll]
    for slot in 0..comptime!(shape.plan.stages) {
        let full = barriers + comptime!(slot * 8);
        let empty = barriers + comptime!((shape.plan.stages + slot) * 8);
        gpu_asm!(
            "mbarrier.init.shared::cta.b64 [{b}], {n};",
            b = in(_) full, n = const shape.plan.units(),
        );
        gpu_asm!(
            "mbarrier.init.shared::cta.b64 [{b}], {n};",
            b = in(_) empty, n = const shape.plan.units() / 32,
        );
    }
}

/// Waits until the phase of `parity` of a barrier is over.
#[cube]
fn wait(barrier: u32, parity: u32) {
    gpu_asm!(
        "{{ .reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [{b}], {p}; @p bra DONE; bra WAIT; DONE: }}",
        b = in(_) u32::reinterpret(barrier), p = in(_) u32::reinterpret(parity),
    );
}

/// Until the stage of `place` is there; the matrix unit reads by another way than the copies wrote.
#[cube]
pub(super) fn wait_full(barriers: u32, place: &Place) {
    wait(barriers + place.slot * 8u32, place.parity);
    gpu_asm!("fence.proxy.async.shared::cta;");
}

/// A plane has read the stage of `place`.
#[cube]
pub(super) fn release(barriers: u32, place: &Place, #[comptime] shape: Shape) {
    let empty = barriers + (place.slot + comptime!(shape.plan.stages)) * 8u32;
    if UNIT_POS & 31u32 == 0u32 {
        gpu_asm!("mbarrier.arrive.shared::cta.b64 _, [{b}];", b = in(_) empty);
    }
}

/// What is brought next: a block of k of the tokens of an item.
#[derive(CubeType)]
pub(super) struct Ahead {
    pub(super) place: Place,
    pub(super) item: usize,
    pub(super) kb: usize,
}

/// What a cube brings in all.
#[derive(CubeType)]
pub(super) struct Source {
    pub(super) stages: u32,
    pub(super) barriers: u32,
    pub(super) m: usize,
    /// Vectors of 16 bytes of a row of x.
    pub(super) row: usize,
    pub(super) items: usize,
    pub(super) token_tiles: usize,
    pub(super) k_first: usize,
    pub(super) k_end: usize,
}

/// Copies one stage, if there is one more, and goes on to the next. Tokens and columns that do not exist become 0.
#[cube]
pub(super) fn bring(x: &[U4], source: &Source, ahead: &mut Ahead, #[comptime] shape: Shape) {
    if ahead.item < source.items && ahead.kb < source.k_end {
        let tokens = comptime!(shape.plan.tokens as usize);
        // Sixteen units take a row; a multiple of eight rows goes at once, so that the swizzle of a unit is one.
        let rows = comptime!(shape.plan.units() / 16);
        let (vector, row) = ((UNIT_POS % 16) as usize, (UNIT_POS / 16) as usize);
        let barrier = source.barriers + ahead.place.slot * 8u32;
        wait(barrier + comptime!(shape.plan.stages * 8), ahead.place.parity ^ 1u32);
        let column = ahead.kb * 16 + vector;
        let token = ahead.item % source.token_tiles * tokens + row;
        let stage = source.stages + ahead.place.slot * comptime!(2 * shape.plan.tokens * 128);
        let own =
            vector / 8 * comptime!(tokens * 128) + row * 128 + ((vector % 8) ^ (row % 8)) * 16;
        let to = stage + own as u32;
        #[unroll]
        for round in 0..comptime!(tokens.div_ceil(rows)) {
            let token = token + comptime!(round * rows);
            let there = token < source.m && column < source.row;
            let at = select(there, token * source.row + column, 0usize);
            let bytes = select(there, 16u32, 0u32);
            // SAFETY: the first vector, or one of a row below m: the buffer was measured.
            let from = unsafe { x[at..].as_ptr_unchecked() };
            let to = to + comptime!((round * rows * 128) as u32);
            if comptime!((round + 1) * rows <= tokens) || row + comptime!(round * rows) < tokens {
                gpu_asm!(
                    "cp.async.cg.shared::cta.global [{t}], [{f}], 16, {n};",
                    t = in(_) to, f = in(_) from, n = in(_) bytes,
                );
            }
        }
        gpu_asm!("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [{b}];", b = in(_) barrier);
        advance(&mut ahead.place, shape);
        ahead.kb += 1;
        if ahead.kb == source.k_end {
            ahead.kb = source.k_first;
            ahead.item += CUBE_COUNT_X as usize;
        }
    }
}
