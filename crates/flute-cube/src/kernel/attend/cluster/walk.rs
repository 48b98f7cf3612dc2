//! The kernels themselves: what a plane does from its first table entry to its last tile.

// What is known when the kernel is compiled stays apart from what is not: one condition would be compiled in.
#![allow(clippy::collapsible_if)]

use super::{
    CHUNK, Form, ROWS, STREAMS, Seen, Shape,
    fold::fold,
    hand::{expect, hand_in, open},
    seen,
    tile::{bring, gather, score, source},
    token::{New, asked, loaded, put, rotate, store},
    weights::{Running, begin_anew, weigh},
};
use crate::kernel::{
    blocks::block_at,
    overlap::{follow, lead},
    ptx::{F4, U4, await_groups, commit_copies, load_word, shared_address},
};
use cubecl::{ir::ElemType, prelude::*};

/// A chunk beyond that of every position, and the last of eight, so that no stream follows.
const NOWHERE: usize = 0x03ff_fff7;

/// Where a plane goes: to 16 positions of each chunk of a stream of its cube, and then to the next stream's. Chunks count
/// from the first that is seen.
#[derive(CubeType)]
pub(super) struct Walk {
    /// Of the table, before that of the first chunk.
    entries: usize,
    /// Of the table, from there on.
    last: usize,
    pub(super) seen: Seen,
    /// The position behind the last that is copied: what the kernel itself rotates is not.
    pub(super) copied: usize,
    pub(super) chunks: usize,
    /// The chunk of the plane's tile, or one that there is not.
    chunk: usize,
    /// That of the tile which is asked for next.
    ahead: usize,
    /// The new token's position, or the last place of the cache if it has none.
    pub(super) position: usize,
    /// Whether the new token's position lies in the plane's tile of the last chunk, and is the kernel's to fill.
    pub(super) owns: bool,
    /// The vector of shared memory at which the plane's tiles begin.
    pub(super) ring: usize,
    /// The block of the tile that is asked for next.
    pub(super) block: usize,
    /// A bit for each tile on its way, the first of them lowest: whether it lies in a block.
    pub(super) present: u32,
}

/// See [`super::AttendBuffers`]; halves in words of two.
#[cube(launch_unchecked, cluster_dim = (form.cubes as u32, 1, 1))]
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
    lead(true);
    follow(true);
    let (mut walk, blocks) = walk(start, table, &shape, form);
    let heads = CUBE_COUNT_Y as usize * comptime!(form.group);
    let queries = loaded(query, heads, form);
    // What was asked for so far is not to be asked for later.
    sync_plane();
    open(base, form);
    set_out(keys, values, table, &blocks, base, &mut walk, &shape, form);
    expect(base, &walk, form);
    let new = New { low: U4::new(0u32), high: U4::new(0u32) };
    go(keys, values, table, &queries, &new, &mut shared, y, &mut walk, &shape, form);
}

/// See [`super::NextBuffers`].
#[cube(launch_unchecked, cluster_dim = (form.cubes as u32, 1, 1))]
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
    lead(true);
    let (mut walk, blocks) = walk(start, table, &shape, form);
    open(base, form);
    set_out(&*keys, &*values, table, &blocks, base, &mut walk, &shape, form);
    // Of what is needed, only q, k and v come from the kernel before this one: see `NextBuffers`.
    follow(true);
    let heads = CUBE_COUNT_Y as usize * comptime!(form.group + 2);
    let mut queries = loaded(qkv, heads, form);
    let raw = asked(qkv, cos, sin, table, &walk, form);
    rotate::<F>(&mut queries, cos, sin, walk.position, form);
    let new = store::<F>(&raw, keys, values, &walk, &shape, form);
    expect(base, &walk, form);
    go(&*keys, &*values, table, &queries, &new, &mut shared, y, &mut walk, &shape, form);
}

#[cube]
pub(super) fn address_of(shared: &Shared<[U4]>) -> u32 {
    // SAFETY: the address of shared memory that lives as long as the kernel.
    shared_address::<U4>(unsafe { shared.as_ptr_unchecked() })
}

/// The way of this plane, and the blocks of its first tiles, if they are of one stream.
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
        let entry = min(first + rank + comptime!(i * STREAMS), shape.entries - 1usize);
        blocks[i] = load_word::<i32>(table, entries + entry);
    }
    let chunks = seen.end.div_ceil(CHUNK) - first;
    let position = u32::cast_from(begin) as usize;
    let within = begin >= 0 && position < shape.capacity;
    let fills = within && comptime!(form.rotates);
    let place = position % CHUNK;
    let chunk = position / CHUNK - select(within, first, 0usize);
    let walk = Walk {
        entries: entries + first,
        last: shape.entries - 1usize - first,
        copied: seen.end - select(fills, 1usize, 0usize),
        chunks,
        chunk: rank,
        ahead: rank,
        position: select(within, position, shape.capacity - 1usize),
        owns: fills && chunk % comptime!(form.cubes) == rank && place / ROWS == plane,
        ring: plane * comptime!(form.ring()),
        block: 0usize.runtime(),
        present: 0u32.runtime(),
        seen,
    };
    (walk, blocks)
}

/// The chunk to which a plane goes from `chunk`: the next one of the stream, or the first of its cube's next stream. Whence
/// there is none it goes beyond the last.
#[cube]
fn next_of(chunk: usize, chunks: usize, #[comptime] form: Form) -> usize {
    let next = chunk + STREAMS;
    if comptime!(form.cubes < STREAMS) {
        let stream = chunk % STREAMS + comptime!(form.cubes);
        let other = select(stream < STREAMS, stream, NOWHERE);
        select(next < chunks, next, other)
    } else {
        next
    }
}

/// The block in which a chunk lies.
#[cube]
pub(super) fn block_of(table: &[i32], walk: &Walk, chunk: usize) -> usize {
    // Beyond the last chunk there may be no entry.
    block_at(table, walk.entries + min(chunk, walk.last))
}

/// The first position of the plane's tile of a chunk.
#[cube]
fn begin_of(walk: &Walk, chunk: usize) -> usize {
    (walk.seen.first / CHUNK + chunk) * CHUNK + UNIT_POS_Y as usize * ROWS
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
    table: &[i32],
    blocks: &Array<u32>,
    base: u32,
    walk: &mut Walk,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let mut present = 0u32;
    let mut chunk = walk.chunk;
    #[unroll]
    for i in 0..comptime!(form.stages) {
        let block = first_block(table, blocks, &*walk, chunk, i, form);
        present |= is_there(block, shape) << comptime!(i as u32);
        if chunk < walk.chunks {
            let target =
                base + (walk.ring as u32 + comptime!((2 * i * form.side()) as u32)) * 16u32;
            let source = source(begin_of(&*walk, chunk), block, &*walk, shape, form);
            bring(keys, &source, target, form);
            commit_copies();
            bring(values, &source, target + comptime!(form.side() as u32 * 16), form);
            commit_copies();
        } else {
            commit_copies();
            commit_copies();
        }
        chunk = next_of(chunk, walk.chunks, form);
    }
    walk.present = present;
    walk.ahead = chunk;
    walk.block = first_block(table, blocks, &*walk, chunk, form.stages, form);
}

/// The block of the plane's tile `i`: the one that was looked up, unless its stream has ended before.
#[cube]
fn first_block(
    table: &[i32],
    blocks: &Array<u32>,
    walk: &Walk,
    chunk: usize,
    #[comptime] i: usize,
    #[comptime] form: Form,
) -> usize {
    let mut block = blocks[i] as usize;
    if comptime!(form.cubes < STREAMS && i > 0) {
        if chunk != CUBE_POS_X as usize + comptime!(i * STREAMS) {
            block = block_of(table, walk, chunk);
        }
    }
    block
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
    let mut running = Running {
        tops: Array::<f32>::new(comptime!(2 * form.columns())),
        totals: Array::<f32>::new(comptime!(2 * form.columns())),
    };
    begin_anew(&mut sums, &mut running, form);
    // Of every tile keys and values are a group of copies each: what is waited for has as many behind it.
    let newest = comptime!((2 * form.stages - 1) as u32);
    let mut stage = walk.ring;
    while walk.chunk < walk.chunks {
        let begin = begin_of(&*walk, walk.chunk);
        let source = source(begin_of(&*walk, walk.ahead), walk.block, &*walk, shape, form);
        let at = (stage * 16) as u32;
        let ends_here = walk.owns && walk.chunk + 1 == walk.chunks;
        await_groups(newest);
        if comptime!(form.rotates) {
            if ends_here {
                put(shared, new, stage, &*walk, 0usize, form);
            }
        }
        sync_plane();
        let mut scores = score(queries, key_lane + at, form);
        sync_plane();
        if walk.ahead < walk.chunks {
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
        if walk.ahead < walk.chunks {
            bring(values, &source, base + at + comptime!(form.side() as u32 * 16), form);
        }
        commit_copies();
        if walk.chunk + STREAMS >= walk.chunks {
            hand_in(&sums, &running, walk.chunk % STREAMS, shared, base, form);
            if comptime!(form.cubes < STREAMS) {
                begin_anew(&mut sums, &mut running, form);
            }
        }
        walk.present =
            walk.present >> 1u32 | is_there(walk.block, shape) << comptime!(form.stages as u32 - 1);
        walk.chunk = next_of(walk.chunk, walk.chunks, form);
        walk.ahead = next_of(walk.ahead, walk.chunks, form);
        walk.block = block_of(table, &*walk, walk.ahead);
        stage += comptime!(2 * form.side());
        if stage == walk.ring + comptime!(form.ring()) {
            stage = walk.ring;
        }
    }
    fold(shared, y, &*walk, form);
}
