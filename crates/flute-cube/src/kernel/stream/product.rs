//! The kernel itself: what a cube does from its first load to its last sum.

// What is known when the kernel is compiled stays apart from what is not: one condition would be compiled in.
#![allow(clippy::collapsible_if)]

use super::{
    Shape,
    chain::{accumulate, finish, issue, settle},
    ring::{
        self, Ahead, Map, Place, Ring, Source, advance, begin, block_of, bring, bring_first,
        first_tile, first_token, go_on, init_barriers, more, release, stage_of, wait_full,
    },
    sums::{Rows, attend_folds, fold},
    weight::{address_of, decode, fill_table, load_codes, load_scales, no_codes},
};
use crate::{
    kernel::{
        fragment::copy_of,
        overlap::{follow, lead},
        ptx::{U4, after_barrier, sync_cluster, sync_some},
    },
    pack,
};
use cubecl::prelude::{barrier::Barrier, *};

/// `y[m, n]`.
#[cube(launch_unchecked)]
pub(super) fn stream_gemm<F: Float, A: Size, P: Size, S: Size, D: Size>(
    x: &Map,
    words: &Map,
    scales: &Map,
    pairs: &[u32],
    bias: &[F],
    y: &mut [F],
    m: u32,
    n: u32,
    k: u32,
    wide: u32,
    narrow: u32,
    #[comptime] shape: Shape,
) {
    product::<F, A, P, S, D>(x, words, scales, pairs, bias, y, m, n, k, wide, narrow, shape);
}

/// `y[m, n]`, where the cubes that split k are a cluster.
#[cube(launch_unchecked, cluster_dim = (1, shape.plan.split, 1))]
pub(super) fn stream_gemm_cluster<F: Float, A: Size, P: Size, S: Size, D: Size>(
    x: &Map,
    words: &Map,
    scales: &Map,
    pairs: &[u32],
    bias: &[F],
    y: &mut [F],
    m: u32,
    n: u32,
    k: u32,
    wide: u32,
    narrow: u32,
    #[comptime] shape: Shape,
) {
    product::<F, A, P, S, D>(x, words, scales, pairs, bias, y, m, n, k, wide, narrow, shape);
}

#[cube]
fn product<F: Float, A: Size, P: Size, S: Size, D: Size>(
    x: &Map,
    words: &Map,
    scales: &Map,
    pairs: &[u32],
    bias: &[F],
    y: &mut [F],
    m: u32,
    n: u32,
    k: u32,
    wide: u32,
    narrow: u32,
    #[comptime] shape: Shape,
) {
    lead(true);
    let plan = comptime!(shape.plan);
    let (m, n, k) = (m as usize, n as usize, k as usize);
    let steps = k.div_ceil(comptime!(pack::BLOCK_K * plan.blocks as usize));
    let share = steps.div_ceil(comptime!(plan.split as usize));
    let first = min(CUBE_POS_Y as usize * share, steps);
    let end = min(first + share, steps);
    let token_tiles = m.div_ceil(comptime!(plan.tokens as usize));
    let (wide, narrow) = (wide as usize, narrow as usize);
    let blocks = if comptime!(shape.narrows) {
        let rest = n.div_ceil(pack::BLOCK_ROWS) - wide * comptime!(plan.tiles as usize);
        wide + rest.div_ceil(4 * narrow)
    } else {
        n.div_ceil(comptime!(plan.rows()))
    };
    let items = blocks * token_tiles;

    // One array, since mostly addresses of its parts are used: rings, table, sums, *empty* barriers.
    let mut shared =
        Shared::<[U4]>::new_aligned_slice(comptime!(shape.shared_bytes() / 16), 1024usize);
    let full =
        Shared::<[Barrier]>::new_slice(comptime!((plan.warpgroups_k * plan.stages) as usize));
    let start = address_of(&shared);
    // Planes that multiply come first, ring by ring; then one a ring that brings, if there are such.
    let plane = (UNIT_POS / 32u32) as usize;
    let workers = comptime!(plan.workers() / 32);
    let works = plane < workers;
    let planes = comptime!(4 * plan.warpgroups as usize);
    let number = if comptime!(plan.warpgroups_k == 1) {
        0usize.runtime()
    } else {
        let number = if works { plane / planes } else { plane - workers };
        // The same for all lanes, and known to be: so descriptors stay in registers of the whole plane.
        plane_broadcast(number, 0u32)
    };
    let tile = plane - number * planes;
    let barriers = (number * comptime!(8 * plan.stages as usize)) as u32;
    let ring = Ring {
        number,
        stages: start + (number * comptime!(plan.stages as usize * shape.stage_bytes())) as u32,
        scales: start
            + comptime!(shape.scales_at() as u32)
            + (number * comptime!((plan.stages * plan.blocks) as usize * shape.block_scales()))
                as u32,
        full: ring::address_of(&full) + barriers,
        empty: start + comptime!(shape.barriers_at() as u32) + barriers,
    };
    let brought = min(m, comptime!(plan.tokens as usize));
    let first = first + number;
    let source = Source { items, token_tiles, m, brought, wide, narrow, first, end };
    let mut ahead = begin(&source, shape);
    let brings = UNIT_POS & 31u32 == 0u32
        && if comptime!(plan.brings_beside()) { !works } else { tile == 0 };
    if brings {
        init_barriers(&ring, shape);
    }
    // A first copy waits for its descriptor, so nobody waits for one but who brings as a side job, and has to.
    if comptime!(!plan.brings_beside()) {
        bring_first(
            x,
            words,
            scales,
            &mut shared,
            &full,
            &ring,
            &source,
            &mut ahead,
            brings,
            comptime!(plan.stages - 2),
            shape,
        );
    }
    if comptime!(plan.split > 1) {
        sync_cluster();
    } else {
        sync_cube();
    }
    if comptime!(plan.brings_beside()) {
        if brings {
            bring_first(
                x,
                words,
                scales,
                &mut shared,
                &full,
                &ring,
                &source,
                &mut ahead,
                true,
                plan.stages,
                shape,
            );
            while more(&mut ahead, &source) {
                bring(x, words, scales, &mut shared, &full, &ring, &source, &ahead, shape);
                go_on(&mut ahead, &source, shape);
            }
        }
        if !works {
            attend_folds(shape);
        }
    }
    if works {
        fill_table(pairs, &mut shared, comptime!(shape.table_at() / 16), shape);
        sync_some(comptime!(plan.workers() as u32));
        // Whoever writes has waited itself.
        follow(comptime!(plan.brings_beside()));
        multiply::<F, A, P, S, D>(
            x,
            words,
            scales,
            &mut shared,
            &full,
            start,
            y,
            bias,
            m,
            n,
            tile,
            &ring,
            &source,
            &mut ahead,
            shape,
        );
    }
}

/// What a plane does with what is brought.
///
/// A block goes through the matrix unit in halves, each a chain of its own whose weights are decoded while the chain
/// before it runs. So a plane decodes all the time, and what a chain takes, however few tokens it has, is not seen.
#[cube]
fn multiply<F: Float, A: Size, P: Size, S: Size, D: Size>(
    x: &Map,
    words: &Map,
    scales: &Map,
    shared: &mut Shared<[U4]>,
    full: &Shared<[Barrier]>,
    start: u32,
    y: &mut [F],
    bias: &[F],
    m: usize,
    n: usize,
    tile: usize,
    ring: &Ring,
    source: &Source,
    ahead: &mut Ahead,
    #[comptime] shape: Shape,
) {
    let plan = comptime!(shape.plan);
    let lane = UNIT_POS % 32u32;
    let copy = copy_of(lane, comptime!(shape.bits));
    let table = after_barrier(start + comptime!(shape.table_at() as u32) + copy);
    let exist = if comptime!(plan.tiles == 4 * plan.warpgroups) {
        true.runtime()
    } else {
        tile < comptime!(plan.tiles as usize)
    };
    let own = min(tile, comptime!(plan.tiles as usize - 1)) as u32;
    let asks = lane == 0u32 && tile & 3usize == 0;
    // How many stages other warpgroups bring before it is this one's turn.
    let mut turn = tile / 4;

    let blocks = comptime!(plan.blocks as usize);

    let mut codes = no_codes(shape);
    let mut even = Vector::<u32, A>::new(0u32);
    let mut odd = Vector::<u32, A>::new(0u32);
    let mut at = Place::start();
    let mut item = CUBE_POS_X as usize;
    if item < source.items && source.first < source.end {
        wait_full(ring, &at);
        load_codes(&mut codes, &stage_of(ring, &at, shape), own, lane, shape);
        if exist {
            even = decode::<A>(&codes, table, 0usize, shape);
        }
    }
    // A warpgroup that a narrow block has no rows for is done with it before it begins: narrow blocks come last.
    let mut working = item < source.items;
    if comptime!(shape.narrows) {
        working = working && has_rows(item, tile, source);
    }
    while working {
        let mut sums = Vector::<f32, D>::new(0.0f32);
        let mut step = source.first;
        while step < source.end {
            let stage = stage_of(ring, &at, shape);
            let used = ring.empty + at.slot * 8u32;
            advance(&mut at, shape);
            step += comptime!(plan.warpgroups_k as usize);
            let last = step >= source.end && item + CUBE_COUNT_X as usize >= source.items;
            #[unroll]
            for part in 0..comptime!(2 * blocks) {
                let (block, half) = comptime!((part / 2, part % 2));
                let base = block_of(&stage, block, shape);
                // Start address in units of 16 bytes; the distance along k within a swizzled row means nothing.
                let descriptor = ((base.block & 0x3_ffffu32) >> 4u32) | (1u32 << 16u32);
                let chains = comptime!(shape.chains(half));
                let weights = if comptime!(half == 0) { even } else { odd };
                let mut factors = Vector::<f32, S>::new(0.0f32);
                if comptime!(!plan.scales_weights()) {
                    factors = load_scales::<F, S>(&base, own, lane, half, shape);
                }
                let products = if comptime!(plan.scales_weights()) {
                    accumulate::<A, D, P>(weights, descriptor, sums, chains)
                } else {
                    issue::<A, P>(weights, descriptor, chains)
                };
                // What follows is done while the matrix unit works.
                if comptime!(half == 0) {
                    if comptime!(block == 0 && !plan.brings_beside()) {
                        turn = take_turn(
                            x, words, scales, shared, full, ring, source, ahead, turn, asks, shape,
                        );
                    }
                    if exist {
                        odd = decode::<A>(&codes, table, 1usize, shape);
                    }
                    if comptime!(block + 1 < blocks) {
                        load_codes(&mut codes, &block_of(&base, 1usize, shape), own, lane, shape);
                    } else if !last {
                        wait_full(ring, &at);
                        load_codes(&mut codes, &stage_of(ring, &at, shape), own, lane, shape);
                    }
                } else if exist {
                    even = decode::<A>(&codes, table, 0usize, shape);
                }
                sums = if comptime!(plan.scales_weights()) {
                    settle::<P, D>(products, chains)
                } else {
                    finish::<P, S, D>(products, factors, sums, chains)
                };
            }
            release(used);
        }
        let block = item / source.token_tiles;
        let token_tile = item % source.token_tiles;
        let rows = Rows {
            row: (first_tile(block, source, shape) + tile) * pack::BLOCK_ROWS,
            token: first_token(token_tile, source, shape),
            own: token_tile * comptime!(plan.tokens as usize),
            m,
            n,
            exist,
        };
        fold::<F, D>(sums, shared, start, y, bias, &rows, shape);
        item += CUBE_COUNT_X as usize;
        working = item < source.items;
        if comptime!(shape.narrows) {
            working = working && has_rows(item, tile, source);
        }
    }
    if comptime!(shape.narrows) {
        // Others wait for this warpgroup to leave each stage, and for what it brings.
        while item < source.items {
            let mut step = source.first;
            while step < source.end {
                if comptime!(!plan.brings_beside()) {
                    turn = take_turn(
                        x, words, scales, shared, full, ring, source, ahead, turn, asks, shape,
                    );
                }
                wait_full(ring, &at);
                release(ring.empty + at.slot * 8u32);
                advance(&mut at, shape);
                step += comptime!(plan.warpgroups_k as usize);
            }
            item += CUBE_COUNT_X as usize;
        }
    }
}

/// Whether the block of rows of `item` has rows for the warpgroup of row tile `tile`.
#[cube]
fn has_rows(item: usize, tile: usize, source: &Source) -> bool {
    item / source.token_tiles < source.wide || tile / 4 < source.narrow
}

/// Where no plane brings beside: `turn` warpgroups later it is this one's turn to bring the next stage. Returns what it is
/// then.
#[cube]
fn take_turn(
    x: &Map,
    words: &Map,
    scales: &Map,
    shared: &mut Shared<[U4]>,
    full: &Shared<[Barrier]>,
    ring: &Ring,
    source: &Source,
    ahead: &mut Ahead,
    turn: usize,
    asks: bool,
    #[comptime] shape: Shape,
) -> usize {
    if more(ahead, source) {
        if asks && turn == 0 {
            bring(x, words, scales, shared, full, ring, source, &*ahead, shape);
        }
        go_on(ahead, source, shape);
    }
    if turn == 0 { comptime!(shape.plan.warpgroups as usize - 1).runtime() } else { turn - 1 }
}
