//! The kernels themselves: what a plane does from its first table entry to its last tile.

// What is known when the kernel is compiled stays apart from what is not: one condition would be compiled in.
#![allow(clippy::collapsible_if)]

use super::{
    CHUNK, CUBES, Form, ROWS, Seen, Shape,
    fold::fold,
    seen,
    tile::{bring, gather, score, source},
    token::{New, loaded, put, rotate, store},
    weights::{begin_running, weigh},
};
use crate::kernel::{
    blocks::block_at,
    ptx::{F4, U4, await_groups, commit_copies, load_word, shared_address},
};
use cubecl::{ir::ElemType, prelude::*};

/// Where a plane goes. Its tile i is 16 positions of chunk `chunk` + 8i.
#[derive(CubeType)]
pub(super) struct Walk {
    /// Of the table, before those of the sequence.
    pub(super) entries: usize,
    pub(super) seen: Seen,
    /// The position behind the last that is copied: what the kernel itself rotates is not.
    pub(super) copied: usize,
    pub(super) chunk: usize,
    pub(super) tiles: usize,
    /// The new token's position, or the last place of the cache if it has none.
    pub(super) position: usize,
    /// Whether the new token's position lies in the plane's last tile, and is the kernel's to fill.
    pub(super) owns: bool,
    /// The vector of shared memory at which the plane's tiles begin.
    pub(super) ring: usize,
    /// The block of the tile that is asked for next.
    pub(super) block: usize,
    /// A bit for each tile on its way, the first of them lowest: whether it lies in a block.
    pub(super) present: u32,
}

/// See [`super::AttendBuffers`]; halves in words of two.
#[cube(launch_unchecked, cluster_dim = (CUBES as u32, 1, 1))]
pub(super) fn attend(
    query: &[u32],
    keys: &[U4],
    values: &[U4],
    start: &[i32],
    table: &[i32],
    y: &mut [u32],
    shape: Shape,
    #[comptime] form: Form,
) {
    let mut shared = Shared::<[U4]>::new_aligned_slice(comptime!(form.vectors()), 128usize);
    let base = address_of(&shared);
    let (mut walk, blocks) = walk(start, table, &shape, form);
    let heads = CUBE_COUNT_Y as usize * comptime!(form.group);
    let queries = loaded(query, heads, form);
    // What was asked for so far is not to be asked for later.
    sync_plane();
    set_out(keys, values, &blocks, base, &mut walk, &shape, form);
    let new = New { low: U4::new(0u32), high: U4::new(0u32) };
    go(keys, values, table, &queries, &new, &mut shared, y, &mut walk, &shape, form);
}

/// See [`super::NextBuffers`].
#[cube(launch_unchecked, cluster_dim = (CUBES as u32, 1, 1))]
pub(super) fn next<F: Float>(
    qkv: &[u32],
    cos: &[Vector<f32, Const<2>>],
    sin: &[Vector<f32, Const<2>>],
    start: &[i32],
    table: &[i32],
    keys: &mut [U4],
    values: &mut [U4],
    y: &mut [u32],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let mut shared = Shared::<[U4]>::new_aligned_slice(comptime!(form.vectors()), 128usize);
    let base = address_of(&shared);
    let (mut walk, blocks) = walk(start, table, &shape, form);
    let heads = CUBE_COUNT_Y as usize * comptime!(form.group + 2);
    let mut queries = loaded(qkv, heads, form);
    // As above.
    sync_plane();
    set_out(&*keys, &*values, &blocks, base, &mut walk, &shape, form);
    rotate::<F>(&mut queries, cos, sin, walk.position, form);
    let new = store::<F>(qkv, cos, sin, table, keys, values, &walk, &shape, form);
    go(&*keys, &*values, table, &queries, &new, &mut shared, y, &mut walk, &shape, form);
}

#[cube]
pub(super) fn address_of(shared: &Shared<[U4]>) -> u32 {
    // SAFETY: the address of shared memory that lives as long as the kernel.
    shared_address::<U4>(unsafe { shared.as_ptr_unchecked() })
}

/// The way of this plane, and the blocks of its first tiles.
#[cube]
fn walk(start: &[i32], table: &[i32], shape: &Shape, #[comptime] form: Form) -> (Walk, Array<u32>) {
    let (rank, batch) = (CUBE_POS_X as usize, CUBE_POS_Z as usize);
    let plane = UNIT_POS_Y as usize;
    let begin = i32::reinterpret(load_word::<i32>(start, batch));
    let seen = seen(begin, shape.capacity, shape.window, form.windowed);
    let first = seen.first / CHUNK;
    let entries = batch * shape.entries;
    let mut blocks = Array::<u32>::new(comptime!(form.stages + 1));
    // Without a window these loads wait for no other.
    #[unroll]
    for i in 0..comptime!(form.stages + 1) {
        let entry = min(first + rank + comptime!(i * CUBES), shape.entries - 1usize);
        blocks[i] = load_word::<i32>(table, entries + entry);
    }
    let chunks = seen.end.div_ceil(CHUNK) - first;
    let position = u32::cast_from(begin) as usize;
    let within = begin >= 0 && position < shape.capacity;
    let fills = within && comptime!(form.rotates);
    let place = position % CHUNK;
    let chunk = position / CHUNK - select(within, first, 0usize);
    let walk = Walk {
        entries,
        copied: seen.end - select(fills, 1usize, 0usize),
        chunk: first + rank,
        tiles: (chunks + comptime!(CUBES - 1) - rank) / CUBES,
        position: select(within, position, shape.capacity - 1usize),
        owns: fills && chunk % CUBES == rank && place / ROWS == plane,
        ring: plane * comptime!(form.ring()),
        block: 0usize.runtime(),
        present: 0u32.runtime(),
        seen,
    };
    (walk, blocks)
}

/// The block in which tile `i` lies.
#[cube]
pub(super) fn block_of(table: &[i32], walk: &Walk, i: usize, shape: &Shape) -> usize {
    // Beyond the last tile there may be no entry.
    block_at(table, walk.entries + min(walk.chunk + i * CUBES, shape.entries - 1usize))
}

/// The first position of tile `i`.
#[cube]
fn begin_of(walk: &Walk, i: usize) -> usize {
    (walk.chunk + i * CUBES) * CHUNK + UNIT_POS_Y as usize * ROWS
}

#[cube]
fn is_there(block: usize, shape: &Shape) -> u32 {
    select(block < shape.blocks, 1u32, 0u32)
}

/// Asks for the first tiles: one group of copies for the keys of each, and one for the values.
#[cube]
fn set_out(
    keys: &[U4],
    values: &[U4],
    blocks: &Array<u32>,
    base: u32,
    walk: &mut Walk,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let mut present = 0u32;
    #[unroll]
    for i in 0..comptime!(form.stages) {
        let block = blocks[i] as usize;
        present |= is_there(block, shape) << comptime!(i as u32);
        if i < walk.tiles {
            let target =
                base + (walk.ring as u32 + comptime!((2 * i * form.side()) as u32)) * 16u32;
            let source = source(begin_of(&*walk, i), block, &*walk, shape, form);
            bring(keys, &source, target, form);
            commit_copies();
            bring(values, &source, target + comptime!(form.side() as u32 * 16), form);
            commit_copies();
        } else {
            commit_copies();
            commit_copies();
        }
    }
    walk.present = present;
    walk.block = blocks[comptime!(form.stages)] as usize;
}

/// Takes tile after tile, and folds what the cluster's planes have into y.
#[cube]
fn go(
    keys: &[U4],
    values: &[U4],
    table: &[i32],
    queries: &Array<u32>,
    new: &New,
    shared: &mut Shared<[U4]>,
    y: &mut [u32],
    walk: &mut Walk,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let lane = (UNIT_POS_X & 31u32) as usize;
    let stride = comptime!(form.stride());
    let base = address_of(&*shared);
    // Where a lane's row of matrices begins: keys are the left operand as they lie, values transposed.
    let key_lane = base + ((lane % 16 * stride + lane / 16) * 16) as u32;
    let value_row = (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2;
    let value_lane = base + ((comptime!(form.side()) + value_row) * 16) as u32;
    let mut sums = Array::<F4>::new(comptime!(form.sums()));
    #[unroll]
    for i in 0..comptime!(form.sums()) {
        sums[i] = F4::new(0.0f32);
    }
    let mut running = begin_running(form);
    // Of every tile keys and values are a group of copies each: what is waited for has as many behind it.
    let newest = comptime!((2 * form.stages - 1) as u32);
    let mut stage = walk.ring;
    let mut i = 0usize;
    while i < walk.tiles {
        let ahead = i + comptime!(form.stages);
        let begin = begin_of(&*walk, i);
        let source = source(begin_of(&*walk, ahead), walk.block, &*walk, shape, form);
        let at = (stage * 16) as u32;
        let ends_here = walk.owns && i + 1 == walk.tiles;
        await_groups(newest);
        if comptime!(form.rotates) {
            if ends_here {
                put(shared, new, stage, &*walk, 0usize, form);
            }
        }
        sync_plane();
        let mut scores = score(queries, key_lane + at, form);
        sync_plane();
        if ahead < walk.tiles {
            bring(keys, &source, base + at, form);
        }
        commit_copies();
        // What lies in no block is not seen.
        let end = select(walk.present & 1u32 == 1u32, walk.seen.end, 0usize);
        let weights = weigh(
            &mut scores,
            &mut sums,
            &mut running,
            begin + lane / 4,
            walk.seen.first,
            end,
            shape,
            form,
        );
        await_groups(newest);
        if comptime!(form.rotates) {
            if ends_here {
                put(shared, new, stage, &*walk, 1usize, form);
            }
        }
        sync_plane();
        gather(&weights, &mut sums, value_lane + at, form);
        sync_plane();
        if ahead < walk.tiles {
            bring(values, &source, base + at + comptime!(form.side() as u32 * 16), form);
        }
        commit_copies();
        walk.present =
            walk.present >> 1u32 | is_there(walk.block, shape) << comptime!(form.stages as u32 - 1);
        walk.block = block_of(table, &*walk, ahead + 1usize, shape);
        stage += comptime!(2 * form.side());
        if stage == walk.ring + comptime!(form.ring()) {
            stage = walk.ring;
        }
        i += 1;
    }
    fold(&sums, &running, shared, y, form);
}
