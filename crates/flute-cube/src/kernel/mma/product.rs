//! The kernel itself: what a cube does from its first load to its last sum.

use super::{
    Shape,
    ptx::{F4, U4, after_barrier, await_copies, commit_copies, mma, shared_address},
    ring::{Ring, await_stage, fill, ring, take},
    sums::{Rows, fold_planes, meet, pair, store, sum_columns},
    tokens::{Part, Tokens, hold, operands, spread, stage},
    weight::{Place, factors, load},
};
use crate::{
    kernel::{
        fragment::{copy_of, fragment, table_vector},
        overlap::{follow, lead},
    },
    pack,
};
use cubecl::prelude::*;

/// `y[m, n]`, or with a split the share of cube z at `y[z, m, n]`.
#[cube(launch_unchecked)]
pub(super) fn lut_gemm<F: Float, Y: Float, W: Size>(
    x: &[Vector<F, W>],
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    pairs: &[u32],
    bias: &[F],
    y: &mut [Y],
    m: u32,
    n: u32,
    k: u32,
    #[comptime] shape: Shape,
) {
    product::<F, Y, W>(x, words, scales, pairs, bias, y, m, n, k, shape);
}

/// `y[m, n]`, where the cubes that split k are a cluster.
#[cube(launch_unchecked, cluster_dim = (1, 1, shape.plan.split))]
pub(super) fn lut_gemm_cluster<F: Float, W: Size>(
    x: &[Vector<F, W>],
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    pairs: &[u32],
    bias: &[F],
    y: &mut [F],
    m: u32,
    n: u32,
    k: u32,
    #[comptime] shape: Shape,
) {
    product::<F, F, W>(x, words, scales, pairs, bias, y, m, n, k, shape);
}

#[cube]
fn product<F: Float, Y: Float, W: Size>(
    x: &[Vector<F, W>],
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    pairs: &[u32],
    bias: &[F],
    y: &mut [Y],
    m: u32,
    n: u32,
    k: u32,
    #[comptime] shape: Shape,
) {
    lead(shape.overlaps);
    let plan = comptime!(shape.plan);
    let row_tiles = comptime!(shape.row_tiles());
    let planes_k = comptime!(shape.planes_k());
    let tokens = comptime!(plan.tokens as usize);
    let stage_blocks = comptime!(plan.k_stage as usize / pack::BLOCK_K);
    let split = CUBE_COUNT_Z as usize;

    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let plane_n = plane % comptime!(shape.planes_n());
    let plane_k = plane / comptime!(shape.planes_n());
    let (m, n, k) = (m as usize, n as usize, k as usize);
    let tiles = n.div_ceil(pack::BLOCK_ROWS);
    let k_blocks = k.div_ceil(pack::BLOCK_K);
    // This cube's share of k, in blocks: a whole number of steps of its planes.
    let steps = k_blocks.div_ceil(split * planes_k);
    let k_first = CUBE_POS_Z as usize * steps * planes_k;
    let token_first = CUBE_POS_Y as usize * tokens;
    // This cube's share of the row tiles: one behind the other, so that what a cube reads is one stretch of memory, and
    // as even as single tiles make it.
    let (share, extra) = (tiles / CUBE_COUNT_X as usize, tiles % CUBE_COUNT_X as usize);
    let first = CUBE_POS_X as usize * share + min(CUBE_POS_X as usize, extra);
    let next = CUBE_POS_X as usize + 1usize;
    let end = next * share + min(next, extra);
    let block_tiles = comptime!(shape.row_tiles() * shape.planes_n());
    let mut row_tile = first;

    let mut table = Shared::<[U4]>::new_aligned_slice(comptime!(shape.table()), 128usize);
    let mut staged =
        Shared::<[U4]>::new_aligned_slice(comptime!(tokens * shape.x_stride()), 128usize);
    let mut sums = Shared::<[F4]>::new_aligned_slice(comptime!(plan.sums().max(1)), 128usize);

    let stages = Shared::<[U4]>::new_aligned_slice(
        comptime!((plan.ring as usize * shape.stage_bytes() / 16).max(1) + shape.apart),
        128usize,
    );

    let mut now = Array::<u32>::new(comptime!(shape.row_tiles() * shape.words()));
    let mut scale = Array::<u32>::new(comptime!(shape.row_tiles() * shape.scale_words()));
    let mut place = Place {
        tile: first + plane_n * row_tiles,
        end,
        kb: k_first + plane_k,
        k_first: k_first + plane_k,
        k_end: k_first + steps * planes_k,
        k_blocks,
        lane,
    };
    // All loads before the first store: the first words, the table and x arrive in one latency.
    // SAFETY: addresses of shared memory that lives as long as the kernel.
    let stages_start = unsafe { stages.as_ptr_unchecked() };
    let mut ring = ring(shared_address::<U4>(stages_start), shape);
    if comptime!(plan.ring > 0) {
        #[unroll]
        for _stage in 1..comptime!(plan.ring) {
            fill::<F>(&mut ring, words, scales, &mut place, shape);
        }
    } else {
        load::<F>(words, scales, &mut now, &mut scale, &mut place, shape);
    }

    let fills = comptime!(shape.table().div_ceil(shape.units()));
    let mut entries = Array::<U4>::new(fills);
    #[unroll]
    for i in 0..fills {
        let at = UNIT_POS as usize + i * comptime!(shape.units());
        entries[i] =
            table_vector(pairs, min(at, comptime!(shape.table() - 1)) / 8, comptime!(shape.bits));
    }
    follow(shape.overlaps);
    let part = Part { m, k, token_first };
    stage::<F, W>(x, &mut staged, &part, k_first, shape);
    commit_copies();
    #[unroll]
    for i in 0..fills {
        let at = UNIT_POS as usize + i * comptime!(shape.units());
        if at < comptime!(shape.table()) {
            table[at] = entries[i];
        }
    }
    await_copies();
    sync_cube();
    let copy = copy_of(UNIT_POS_X, comptime!(shape.bits));
    // SAFETY: addresses of shared memory that lives as long as the kernel.
    let (table_start, x_start) = unsafe { (table.as_ptr_unchecked(), staged.as_ptr_unchecked()) };
    let lane_table = after_barrier(shared_address::<U4>(table_start) + copy);
    let tokens = hold(shared_address::<U4>(x_start), plane_k, lane, shape);
    let mut slot = 0usize;

    while row_tile < end {
        let next_tile = row_tile + block_tiles;
        let mut acc = zeros(comptime!(shape.row_tiles() * shape.token_tiles()));
        if comptime!(plan.held > 0) {
            #[unroll]
            for step in 0..comptime!(plan.held as usize) {
                let own = comptime!(step * 4 * shape.token_tiles());
                let kb = k_first + plane_k + comptime!(step * planes_k);
                next_stage::<F>(&mut ring, &mut place, words, scales, &mut now, &mut scale, shape);
                if kb < k_blocks {
                    multiply::<F>(
                        &now, &scale, &mut acc, lane_table, &tokens, tokens.row, own, shape,
                    );
                }
                next_words::<F>(&mut place, words, scales, &mut now, &mut scale, shape);
            }
        } else {
            for step in 0..steps {
                let in_stage = step * planes_k % stage_blocks;
                // More of k than the stage holds: the next part, anew for every block of rows.
                if in_stage == 0 && steps * planes_k > stage_blocks {
                    sync_cube();
                    stage::<F, W>(x, &mut staged, &part, k_first + step * planes_k, shape);
                    await_copies();
                    sync_cube();
                }
                let kb = k_first + plane_k + step * planes_k;
                next_stage::<F>(&mut ring, &mut place, words, scales, &mut now, &mut scale, shape);
                if kb < k_blocks {
                    let row = tokens.row + (in_stage * 256) as u32;
                    multiply::<F>(&now, &scale, &mut acc, lane_table, &tokens, row, 0usize, shape);
                }
                next_words::<F>(&mut place, words, scales, &mut now, &mut scale, shape);
            }
        }
        if comptime!(shape.token_columns() > 1) {
            #[unroll]
            for i in 0..row_tiles {
                acc[i] = sum_columns(acc[i], shape);
            }
        }
        if comptime!(plan.sums() == 0) {
            let own = Rows { tile: row_tile + plane_n * row_tiles, end: min(n, end * 16), m, n };
            #[unroll]
            for i in 0..row_tiles {
                #[unroll]
                for j in 0..comptime!(shape.token_tiles()) {
                    let at = comptime!(i * shape.token_tiles() + j);
                    store::<F, Y>(y, bias, acc[at], &own, i, token_first + j * 8, lane, shape);
                }
            }
        } else {
            if lane % 4 < comptime!(shape.live()) {
                let live = lane / 4 * comptime!(shape.live()) + lane % 4;
                let paired = comptime!(plan.paired());
                #[unroll]
                for i in 0..comptime!(shape.row_tiles() / paired * shape.token_tiles()) {
                    let at = (slot * comptime!((plan.planes_n * plan.planes_k) as usize) + plane)
                        * comptime!(shape.plane_sums());
                    let mut own = acc[comptime!(paired * i)];
                    if comptime!(paired == 2) {
                        own = pair(own, acc[comptime!(2 * i + 1)]);
                    }
                    sums[at + i * comptime!(plan.live_lanes()) + live] = own;
                }
            }
            slot += 1;
            if slot == comptime!(plan.slots as usize) || next_tile >= end {
                meet(shape);
                let rows =
                    Rows { tile: row_tile - (slot - 1) * block_tiles, end: min(n, end * 16), m, n };
                fold_planes::<F, Y>(&sums, y, bias, slot, &rows, token_first, shape);
                // Also before the end: others may still read this cube's sums.
                meet(shape);
                slot = 0usize;
            }
        }
        row_tile = next_tile;
    }
}

/// With a ring: takes the oldest stage, and asks for one in the place of the stage before it.
#[cube]
fn next_stage<F: Float>(
    ring: &mut Ring,
    place: &mut Place,
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    now: &mut Array<u32>,
    scale: &mut Array<u32>,
    #[comptime] shape: Shape,
) {
    if comptime!(shape.plan.ring > 0) {
        await_stage(&*ring, shape);
        take(ring, now, scale, shape);
        fill::<F>(ring, words, scales, place, shape);
    }
}

/// Without: asks for the next words in the place of those that are used up.
#[cube]
fn next_words<F: Float>(
    place: &mut Place,
    words: &[u32],
    scales: &[Vector<F, Const<2>>],
    now: &mut Array<u32>,
    scale: &mut Array<u32>,
    #[comptime] shape: Shape,
) {
    if comptime!(shape.plan.ring == 0) {
        load::<F>(words, scales, now, scale, place, shape);
    }
}

/// One step: a block of k in all row tiles of the plane, with every token of the cube: x at `row`, or of what the plane
/// holds of it, from `own` on.
#[cube]
fn multiply<F: Float>(
    words: &Array<u32>,
    scale: &Array<u32>,
    acc: &mut Array<F4>,
    table: u32,
    tokens: &Tokens,
    row: u32,
    #[comptime] own: usize,
    #[comptime] shape: Shape,
) {
    let token_tiles = comptime!(shape.token_tiles());
    // Steps of the matrix unit between two foldings of a block.
    let fold = comptime!(8 / shape.parts());
    let block = spread(row, shape);
    #[unroll]
    for group in 0..comptime!(shape.parts()) {
        let mut part = zeros(comptime!(shape.row_tiles() * shape.token_tiles()));
        #[unroll]
        for half in 0..comptime!(fold / 2) {
            let first = comptime!(group * fold + 2 * half);
            let xs = operands(tokens, row, block, own, first, shape);
            #[unroll]
            for i in 0..comptime!(shape.row_tiles()) {
                #[unroll]
                for odd in 0..2usize {
                    let a = fragment(
                        words,
                        table,
                        comptime!(i * shape.words()),
                        comptime!(first + odd),
                        comptime!(shape.bits),
                    );
                    #[unroll]
                    for j in 0..token_tiles {
                        let b0 = xs[j].extract(comptime!(2 * odd));
                        let b1 = xs[j].extract(comptime!(2 * odd + 1));
                        let at = comptime!(i * token_tiles + j);
                        part[at] =
                            mma(a[0], a[1], a[2], a[3], b0, b1, part[at], comptime!(shape.ty()));
                    }
                }
            }
        }
        #[unroll]
        for i in 0..comptime!(shape.row_tiles()) {
            let scale = factors::<F>(scale, comptime!(i * shape.scale_words() + group), shape);
            #[unroll]
            for j in 0..token_tiles {
                let at = comptime!(i * token_tiles + j);
                acc[at] += part[at] * scale;
            }
        }
    }
}

#[cube]
fn zeros(#[comptime] len: usize) -> Array<F4> {
    let mut array = Array::<F4>::new(len);
    #[unroll]
    for i in 0..len {
        array[i] = F4::new(0.0f32);
    }
    array
}
