//! The rings of stages through which everything comes to the warpgroups, ahead of its use.
//!
//! Warpgroups that share blocks of k have a ring of their own. A stage holds one or two blocks of 128 of k, of each: of
//! all tokens of the cube two panels of 64, a token's 128 bytes after another's, in each of which the 16 bytes at place c
//! lie at place `c ^ (token % 8)`, which the matrix unit calls a 128-byte swizzle; then the words of the item's row
//! tiles, then their scales, both in kernel order. Tensor copies write it, four a block, and of k and n what does not exist
//! becomes 0; of fewer tokens than a tile has only those that exist are written, and nobody stores what is computed of the others. Two barriers a stage: *full* waits for the bytes, *empty* for the planes that read them.
//!
//! One unit of a ring asks for the copies. It belongs to a plane that does nothing else, since as the work of a plane
//! that multiplies it costs every stage some hundred cycles in which three others wait. With many tokens the registers
//! of such a plane are not to be had: then the warpgroups take turns, two stages less ahead than the ring is long, so
//! that nobody need wait for those that are not two blocks behind.
//!
//! Weights are there before the kernel is, x is what the kernel before it computes: so the first stages get their words
//! and scales while that one still runs.

use super::Shape;
use crate::{
    kernel::{
        overlap::follow,
        ptx::{U4, await_phase, expect_bytes, init_barrier, shared_address, show_barriers},
    },
    pack,
};
use cubecl::prelude::{barrier::Barrier, *};

/// Rows of words, as tensor copies see x (two elements a word), words, and scales (two rows a word).
pub(super) type Map = TensorMap<u32, Tiled>;

/// Words of a row of a panel.
pub(super) const PANEL: usize = 32;

/// Where a unit is in its ring.
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

/// A ring.
#[derive(CubeType)]
pub(super) struct Ring {
    /// Its number among the cube's.
    pub(super) number: usize,
    /// Shared addresses of its first stage, of that one's scales, its first *full* and its first *empty* barrier.
    pub(super) stages: u32,
    pub(super) scales: u32,
    pub(super) full: u32,
    pub(super) empty: u32,
}

/// One unit's work, before it asks for anything and others use the barriers.
#[cube]
pub(super) fn init_barriers(ring: &Ring, #[comptime] shape: Shape) {
    #[unroll]
    for slot in 0..comptime!(shape.plan.stages) {
        let distance = comptime!(slot * 8);
        init_barrier(ring.full, distance, 1u32);
        init_barrier(ring.empty, distance, comptime!(4 * shape.plan.warpgroups));
    }
    show_barriers();
}

/// A stage: the shared addresses of its first block and of that one's scales.
#[derive(CubeType)]
pub(super) struct Stage {
    pub(super) block: u32,
    pub(super) scales: u32,
}

#[cube]
pub(super) fn stage_of(ring: &Ring, place: &Place, #[comptime] shape: Shape) -> Stage {
    let scales = comptime!(shape.plan.blocks as usize * shape.block_scales());
    Stage {
        block: ring.stages + place.slot * comptime!(shape.stage_bytes() as u32),
        scales: ring.scales + place.slot * comptime!(scales as u32),
    }
}

/// The stage's block `block`.
#[cube]
pub(super) fn block_of(stage: &Stage, #[comptime] block: usize, #[comptime] shape: Shape) -> Stage {
    Stage {
        block: stage.block + comptime!((block * shape.block_bytes()) as u32),
        scales: stage.scales + comptime!((block * shape.block_scales()) as u32),
    }
}

/// Until the stage of `place` is there.
#[cube]
pub(super) fn wait_full(ring: &Ring, place: &Place) {
    await_phase(ring.full + place.slot * 8u32, place.parity);
}

/// A plane has read the stage whose *empty* barrier is at `empty`.
#[cube]
pub(super) fn release(empty: u32) {
    if UNIT_POS & 31u32 == 0u32 {
        gpu_asm!("mbarrier.arrive.shared::cta.b64 _, [{b}];", b = in(_) u32::reinterpret(empty));
    }
}

/// What a ring brings in all.
#[derive(CubeType)]
pub(super) struct Source {
    pub(super) items: usize,
    pub(super) token_tiles: usize,
    /// Rows of x, and as many of them as a tensor copy brings: those of a tile of tokens, or all.
    pub(super) m: usize,
    pub(super) brought: usize,
    /// Blocks of rows for all warpgroups, and those that the blocks behind them are for.
    pub(super) wide: usize,
    pub(super) narrow: usize,
    /// The ring's first step along k, a stage each, and where the cube's share of them ends.
    pub(super) first: usize,
    pub(super) end: usize,
}

/// What is brought next: a step of an item.
#[derive(CubeType)]
pub(super) struct Ahead {
    place: Place,
    item: usize,
    step: usize,
    /// The first row tile and the first token of the item.
    tile: i32,
    token: i32,
}

#[cube]
pub(super) fn begin(source: &Source, #[comptime] shape: Shape) -> Ahead {
    let mut ahead = Ahead {
        place: Place { slot: 0u32, parity: 1u32 },
        item: CUBE_POS_X as usize,
        step: source.first,
        tile: 0i32,
        token: 0i32,
    };
    seek(&mut ahead, source, shape);
    ahead
}

#[cube]
fn seek(ahead: &mut Ahead, source: &Source, #[comptime] shape: Shape) {
    let rows = ahead.item / source.token_tiles;
    ahead.tile = first_tile(rows, source, shape) as i32;
    let tile = ahead.item - rows * source.token_tiles;
    ahead.token = first_token(tile, source, shape) as i32;
}

/// The first token that is brought for a tile of tokens. The last tile begins so early that it ends with x: tokens of the tile
/// before it are computed again, which costs nothing, where rows that do not exist would be copied at twice the cost.
#[cube]
pub(super) fn first_token(tile: usize, source: &Source, #[comptime] shape: Shape) -> usize {
    min(tile * comptime!(shape.plan.tokens as usize), source.m - source.brought)
}

/// The first row tile of block `rows` of rows.
#[cube]
pub(super) fn first_tile(rows: usize, source: &Source, #[comptime] shape: Shape) -> usize {
    let wide = comptime!(shape.plan.tiles as usize);
    if comptime!(shape.narrows) {
        let behind = rows - min(rows, source.wide);
        min(rows, source.wide) * wide + behind * source.narrow * 4
    } else {
        rows * wide
    }
}

/// Whether there is one more.
#[cube]
pub(super) fn more(ahead: &mut Ahead, source: &Source) -> bool {
    ahead.item < source.items && ahead.step < source.end
}

/// Brings the next stage as soon as its place is free: the work of one unit.
#[cube]
pub(super) fn bring(
    x: &Map,
    words: &Map,
    scales: &Map,
    shared: &mut Shared<[U4]>,
    full: &Shared<[Barrier]>,
    ring: &Ring,
    source: &Source,
    ahead: &Ahead,
    #[comptime] shape: Shape,
) {
    bring_weights(words, scales, shared, full, ring, source, ahead, shape);
    bring_tokens(x, shared, full, ring, ahead, shape);
}

/// The first half of it, which waits for the place, and can be done before x is there.
#[cube]
fn bring_weights(
    words: &Map,
    scales: &Map,
    shared: &mut Shared<[U4]>,
    full: &Shared<[Barrier]>,
    ring: &Ring,
    source: &Source,
    ahead: &Ahead,
    #[comptime] shape: Shape,
) {
    let plan = comptime!(shape.plan);
    let slot = ahead.place.slot;
    await_phase(ring.empty + slot * 8u32, ahead.place.parity);
    let bytes = comptime!(shape.weight_bytes() as u32)
        + source.brought as u32 * comptime!(2 * pack::BLOCK_K as u32 * plan.blocks);
    expect_bytes(ring.full + slot * 8u32, bytes);
    let number = ring.number * comptime!(plan.stages as usize) + slot as usize;
    let barrier = &full[number];
    let stage = number * comptime!(shape.stage_bytes() / 16);
    #[unroll]
    for block in 0..comptime!(plan.blocks as usize) {
        let first = stage + comptime!(block * shape.block_bytes() / 16);
        let kb = ahead.step * comptime!(plan.blocks as usize) + block;
        let at = first + comptime!(shape.words_at() / 16);
        let end = at + comptime!(plan.tiles as usize * shape.block_words() / 4);
        let column = (kb * comptime!(shape.block_words())) as i32;
        barrier.tma_load_2d(words, &mut shared[at..end], ahead.tile, column);
        let apart = (number * comptime!(plan.blocks as usize) + block)
            * comptime!(shape.block_scales() / 16);
        let at = comptime!(shape.scales_at() / 16) + apart;
        let end = at + comptime!(plan.tiles as usize * shape.groups() * 2);
        let column = scale_column(kb, shape) as i32;
        barrier.tma_load_2d(scales, &mut shared[at..end], ahead.tile, column);
    }
}

/// The second half.
#[cube]
fn bring_tokens(
    x: &Map,
    shared: &mut Shared<[U4]>,
    full: &Shared<[Barrier]>,
    ring: &Ring,
    ahead: &Ahead,
    #[comptime] shape: Shape,
) {
    let plan = comptime!(shape.plan);
    let number = ring.number * comptime!(plan.stages as usize) + ahead.place.slot as usize;
    let barrier = &full[number];
    let stage = number * comptime!(shape.stage_bytes() / 16);
    #[unroll]
    for block in 0..comptime!(plan.blocks as usize) {
        let first = stage + comptime!(block * shape.block_bytes() / 16);
        let kb = ahead.step * comptime!(plan.blocks as usize) + block;
        // 128 bytes of a token are eight vectors.
        let panel = comptime!(plan.tokens as usize * 8);
        let (other, end) = (first + panel, first + comptime!(2 * panel));
        let column = (kb * comptime!(2 * PANEL)) as i32;
        barrier.tma_load_2d(x, &mut shared[first..other], ahead.token, column);
        let column = column + comptime!(PANEL as i32);
        barrier.tma_load_2d(x, &mut shared[other..end], ahead.token, column);
    }
}

/// Brings the first `stages` stages, or all there are, if the unit `brings`: weights while the kernel before this one
/// runs, x once it is over. Whoever calls this has waited for that.
#[cube]
pub(super) fn bring_first(
    x: &Map,
    words: &Map,
    scales: &Map,
    shared: &mut Shared<[U4]>,
    full: &Shared<[Barrier]>,
    ring: &Ring,
    source: &Source,
    ahead: &mut Ahead,
    brings: bool,
    #[comptime] stages: u32,
    #[comptime] shape: Shape,
) {
    let mut early = begin(source, shape);
    for _stage in 0..stages {
        if more(&mut early, source) {
            if brings {
                bring_weights(words, scales, shared, full, ring, source, &early, shape);
            }
            go_on(&mut early, source, shape);
        }
    }
    follow(true);
    for _stage in 0..stages {
        if more(ahead, source) {
            if brings {
                bring_tokens(x, shared, full, ring, &*ahead, shape);
            }
            go_on(ahead, source, shape);
        }
    }
}

/// Goes on to the next stage.
#[cube]
pub(super) fn go_on(ahead: &mut Ahead, source: &Source, #[comptime] shape: Shape) {
    let plan = comptime!(shape.plan);
    advance(&mut ahead.place, shape);
    ahead.step += comptime!(plan.warpgroups_k as usize);
    if ahead.step >= source.end {
        ahead.step = source.first;
        ahead.item += CUBE_COUNT_X as usize;
        seek(ahead, source, shape);
    }
}

/// The first word of the scales of a block in a row of them.
#[cube]
fn scale_column(kb: usize, #[comptime] shape: Shape) -> usize {
    if comptime!(shape.group == 0) {
        0usize.runtime()
    } else if comptime!(shape.group as usize > pack::BLOCK_K) {
        kb / comptime!((shape.group as usize).div_ceil(pack::BLOCK_K)) * 8
    } else {
        kb * comptime!(8 * shape.groups())
    }
}

/// The address of the first of `barriers`.
#[cube]
pub(super) fn address_of(barriers: &Shared<[Barrier]>) -> u32 {
    // SAFETY: the address of shared memory that lives as long as the kernel.
    shared_address::<Barrier>(unsafe { barriers.as_ptr_unchecked() })
}
