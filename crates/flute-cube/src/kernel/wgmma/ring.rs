//! The ring of stages through which x comes to the warpgroups, ahead of its use.
//!
//! A stage holds a block of 128 of k of all tokens of the cube: two panels of 64, a token's 128 bytes after another's,
//! in each of which the 16 bytes at place c lie at place `c ^ (token % 8)`: what the matrix unit calls a 128-byte
//! swizzle. Tensor copies write it so; tokens and columns that do not exist become 0. Two barriers a stage: *full*
//! waits for the bytes, *empty* for the planes that read them.
//!
//! One unit of a warpgroup asks for the copies: a plane more would cost the registers of a whole warpgroup, which their
//! sums need. What is copied lies two stages less ahead than the ring is long, so that its warpgroup does not wait for
//! another that is not two blocks behind.

use super::Shape;
use crate::kernel::ptx::{U4, shared_address};
use cubecl::prelude::{barrier::Barrier, *};

/// x as tensor copies see it: rows of words of two elements.
pub(super) type Tokens = TensorMap<u32, Tiled>;

/// Words of a row of a panel.
pub(super) const PANEL: usize = 32;

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

/// The barriers of a ring, by their shared addresses.
#[derive(CubeType)]
pub(super) struct Barriers {
    /// The first *full* barrier.
    pub(super) full: u32,
    /// The first *empty* barrier.
    pub(super) empty: u32,
}

/// One unit's work, before a barrier of the cube.
#[cube]
pub(super) fn init_barriers(barriers: &Barriers, #[comptime] shape: Shape) {
    #[unroll]
    for slot in 0..comptime!(shape.plan.stages) {
        let full = barriers.full + comptime!(slot * 8);
        let empty = barriers.empty + comptime!(slot * 8);
        gpu_asm!("mbarrier.init.shared::cta.b64 [{b}], 1;", b = in(_) full);
        gpu_asm!(
            "mbarrier.init.shared::cta.b64 [{b}], {n};",
            b = in(_) empty, n = const shape.plan.units() / 32,
        );
    }
    gpu_asm!("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;");
}

/// Waits until the phase of `parity` of a barrier is over.
#[cube]
fn wait(barrier: u32, parity: u32) {
    gpu_asm!(
        "{{ .reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [{b}], {p}; @p bra DONE; bra WAIT; DONE: }}",
        b = in(_) u32::reinterpret(barrier), p = in(_) u32::reinterpret(parity),
    );
}

/// Until the stage of `place` is there.
#[cube]
pub(super) fn wait_full(barriers: &Barriers, place: &Place) {
    wait(barriers.full + place.slot * 8u32, place.parity);
}

/// A plane has read the stage of `place`.
#[cube]
pub(super) fn release(barriers: &Barriers, place: &Place) {
    let empty = barriers.empty + place.slot * 8u32;
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
    pub(super) items: usize,
    pub(super) token_tiles: usize,
    pub(super) k_first: usize,
    pub(super) k_end: usize,
}

/// Asks for one stage, if there is one more, and goes on to the next.
#[cube]
pub(super) fn bring(
    x: &Tokens,
    shared: &mut Shared<[U4]>,
    full: &Shared<[Barrier]>,
    barriers: &Barriers,
    source: &Source,
    ahead: &mut Ahead,
    #[comptime] shape: Shape,
) {
    let tokens = comptime!(shape.plan.tokens as usize);
    if UNIT_POS == 0u32 && ahead.item < source.items && ahead.kb < source.k_end {
        let slot = ahead.place.slot;
        wait(barriers.empty + slot * 8u32, ahead.place.parity ^ 1u32);
        gpu_asm!(
            "mbarrier.arrive.expect_tx.shared::cta.b64 _, [{b}], {n};",
            b = in(_) barriers.full + slot * 8u32, n = const tokens * 256,
        );
        let token = (ahead.item % source.token_tiles * tokens) as i32;
        let column = (ahead.kb * comptime!(2 * PANEL)) as i32;
        // 128 bytes of a token are eight vectors.
        let panel = comptime!(tokens * 8);
        let stage = slot as usize * comptime!(2 * panel);
        let barrier = &full[slot as usize];
        barrier.tma_load_2d(x, &mut shared[stage..stage + panel], token, column);
        let other = stage + panel;
        barrier.tma_load_2d(
            x,
            &mut shared[other..other + panel],
            token,
            column + comptime!(PANEL as i32),
        );
        advance(&mut ahead.place, shape);
        ahead.kb += 1;
        if ahead.kb == source.k_end {
            ahead.kb = source.k_first;
            ahead.item += CUBE_COUNT_X as usize;
        }
    }
}

/// The addresses of the barriers: those of `full`, and those that begin at `empty` in the memory at `start`.
#[cube]
pub(super) fn barriers_at(full: &Shared<[Barrier]>, empty: u32) -> Barriers {
    // SAFETY: the address of shared memory that lives as long as the kernel.
    let full = shared_address::<Barrier>(unsafe { full.as_ptr_unchecked() });
    Barriers { full, empty }
}
