//! The kernel itself: what a cube does from its first load to its last sum.

use super::{
    Shape,
    chain::{finish, issue},
    ring::{
        self, Ahead, Source, Tokens, advance, barriers_at, bring, init_barriers, release, wait_full,
    },
    store::store,
    weight::{Place, Walk, decode, load_scales, load_words, next, place_of},
};
use crate::{
    kernel::ptx::{U4, after_barrier, shared_address},
    pack,
};
use cubecl::prelude::{barrier::Barrier, *};

/// `y[m, n]`, or with a split the share of cube y at `y[share, m, n]`.
#[cube(launch_unchecked)]
pub(super) fn warpgroup_gemm<F: Float, Y: Float, A: Size, D: Size>(
    x: &Tokens,
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
    let plan = comptime!(shape.plan);
    let rows = comptime!(plan.rows());
    let tokens = comptime!(plan.tokens as usize);
    let lane = (UNIT_POS % 32) as usize;
    let plane = (UNIT_POS / 32) as usize;
    let (m, n, k) = (m as usize, n as usize, k as usize);
    let k_blocks = k.div_ceil(pack::BLOCK_K);
    let share = k_blocks.div_ceil(CUBE_COUNT_Y as usize);
    let k_first = min(CUBE_POS_Y as usize * share, k_blocks);
    let k_end = min(k_first + share, k_blocks);
    let token_tiles = m.div_ceil(tokens);
    let items = n.div_ceil(rows) * token_tiles;
    let cubes = CUBE_COUNT_X as usize;

    // One array, since mostly addresses of its parts are used: stages, table, barriers of planes.
    let mut shared =
        Shared::<[U4]>::new_aligned_slice(comptime!(shape.shared_vectors()), 1024usize);
    // SAFETY: the address of shared memory that lives as long as the kernel.
    let start = shared_address::<U4>(unsafe { shared.as_ptr_unchecked() });
    let table = comptime!(shape.stages_bytes());
    let full = Shared::<[Barrier]>::new_slice(comptime!(plan.stages as usize));
    let empty = start + comptime!((shape.stages_bytes() + shape.table_bytes()) as u32);
    let barriers = barriers_at(&full, empty);
    if UNIT_POS == 0 {
        init_barriers(&barriers, shape);
    }
    sync_cube();

    let item = CUBE_POS_X as usize;
    let source = Source { items, token_tiles, k_first, k_end };
    let mut ahead = Ahead { place: ring::Place::start(), item, kb: k_first };
    let walk = Walk {
        items,
        token_tiles,
        // Its tile of 16 rows in each of its 64, which lie one after another.
        own: plane / 4 * comptime!(4 * plan.row_tiles as usize) + plane % 4,
        tiles: n.div_ceil(pack::BLOCK_ROWS),
        k_first,
        k_end,
        k_blocks,
        lane,
    };
    let mut now = Array::<u32>::new(comptime!(shape.row_tiles() * shape.words()));
    let mut scale = Array::<u32>::new(comptime!(shape.row_tiles() * shape.groups()));
    let (first, rest) = (place_of(item, &walk, shape), place_of(item, &walk, shape));
    let mut load = Load { walk, first, rest };
    #[unroll]
    for i in 0..comptime!(shape.row_tiles()) {
        load_words(words, &mut now, &load.rest, lane, i, shape);
        load_scales::<F>(scales, &mut scale, &load.rest, i, shape);
    }
    next(&mut load.first, &load.walk, shape);
    next(&mut load.rest, &load.walk, shape);
    for _stage in 0..comptime!(plan.stages - 2) {
        bring(x, &mut shared, &full, &barriers, &source, &mut ahead, shape);
    }
    fill_table(pairs, &mut shared, comptime!(table / 16), shape);
    sync_cube();
    let copy =
        if comptime!(shape.bits == 2) { UNIT_POS % 16u32 * 8u32 } else { UNIT_POS % 32u32 * 4u32 };
    let lane_table = after_barrier(start + comptime!(table as u32) + copy);

    let mut at = ring::Place::start();
    let mut item = item;
    let mut weights = Array::<Vector<u32, A>>::new(1usize);
    weights[0] = decode::<A>(&now, lane_table, comptime!((0, 0)), shape);
    if comptime!(shape.groups() == 1) {
        load_words(words, &mut now, &load.first, lane, 0usize, shape);
        next(&mut load.first, &load.walk, shape);
    }
    while item < items {
        let mut sums = Array::<Vector<f32, D>>::new(comptime!(shape.row_tiles() * shape.chunks()));
        #[unroll]
        for i in 0..comptime!(shape.row_tiles() * shape.chunks()) {
            sums[i] = Vector::<f32, D>::new(0.0f32);
        }
        for _kb in k_first..k_end {
            let stage = start + at.slot * comptime!(2 * plan.tokens * 128);
            // Start address in units of 16 bytes; the distance along k within a swizzled row means nothing.
            let descriptor = ((stage & 0x3_ffffu32) >> 4u32) | (1u32 << 16u32);
            wait_full(&barriers, &at);
            #[unroll]
            for unit in 0..comptime!(shape.row_tiles() * shape.groups()) {
                let (i, group) = comptime!((unit / shape.groups(), unit % shape.groups()));
                let own = comptime!(i * shape.chunks());
                let unit_after = comptime!(shape.after(unit));
                let pair = Vector::<F, Const<2>>::reinterpret(scale[unit]);
                let low = f32::cast_from(pair.extract(0usize));
                let high = f32::cast_from(pair.extract(1usize));
                let chain = comptime!(shape.chain(group));
                #[unroll]
                for c in 0..comptime!(shape.chunks()) {
                    let products = issue::<A, D>(
                        weights[0],
                        descriptor + comptime!(c as u32 * plan.chunk * 8),
                        chain,
                    );
                    // What follows is done while the matrix unit works.
                    if comptime!(unit == 0 && c == 0) {
                        bring(x, &mut shared, &full, &barriers, &source, &mut ahead, shape);
                    }
                    let decodes = comptime!(c + 1 == shape.chunks());
                    if comptime!(decodes && shape.ahead()) {
                        weights[0] = decode::<A>(&now, lane_table, unit_after, shape);
                        reload(words, &mut now, &mut load, unit, shape);
                    }
                    let at = comptime!(own + c);
                    sums[at] = finish::<D>(products, sums[at], low, high, chain);
                    if comptime!(decodes && !shape.ahead()) {
                        weights[0] = decode::<A>(&now, lane_table, unit_after, shape);
                        reload(words, &mut now, &mut load, unit, shape);
                    }
                }
                if comptime!(group + 1 == shape.groups()) {
                    load_scales::<F>(scales, &mut scale, &load.rest, i, shape);
                }
            }
            next(&mut load.rest, &load.walk, shape);
            release(&barriers, &at);
            advance(&mut at, shape);
        }
        let row_first = item / token_tiles * rows + load.walk.own * 16;
        let token_first = item % token_tiles * tokens;
        #[unroll]
        for i in 0..comptime!(shape.row_tiles()) {
            #[unroll]
            for c in 0..comptime!(shape.chunks()) {
                store::<F, Y, D>(
                    y,
                    bias,
                    sums[comptime!(i * shape.chunks() + c)],
                    row_first + comptime!(64 * i),
                    token_first + comptime!(c * plan.chunk as usize),
                    m,
                    n,
                    shape,
                );
            }
        }
        item += cubes;
    }
}

/// What is loaded next. The first row tile is decoded in the block before its own, so its words are one block further.
#[derive(CubeType)]
struct Load {
    walk: Walk,
    first: Place,
    rest: Place,
}

/// Asks for the words that take the place of those that what follows `unit` used up.
#[cube]
fn reload(
    words: &[u32],
    now: &mut Array<u32>,
    load: &mut Load,
    #[comptime] unit: usize,
    #[comptime] shape: Shape,
) {
    let (i, group) = comptime!(shape.after(unit));
    if comptime!(group + 1 == shape.groups()) {
        if comptime!(i == 0) {
            load_words(words, now, &load.first, load.walk.lane, i, shape);
            next(&mut load.first, &load.walk, shape);
        } else {
            load_words(words, now, &load.rest, load.walk.lane, i, shape);
        }
    }
}

/// The pair table, a copy for every lane (two bits: a table of quads, a copy for two).
#[cube]
fn fill_table(
    pairs: &[u32],
    shared: &mut Shared<[U4]>,
    #[comptime] first: usize,
    #[comptime] shape: Shape,
) {
    let vectors = comptime!(shape.table_bytes() / 16);
    let units = comptime!(shape.plan.units());
    #[unroll]
    for i in 0..comptime!(vectors.div_ceil(units)) {
        let at = UNIT_POS as usize + i * units;
        if at < vectors {
            let index = at / 8;
            let vector = if comptime!(shape.bits == 2) {
                let (low, high) = (pairs[index % 16], pairs[index / 16]);
                let mut vector = U4::new(low);
                vector.insert(1usize, high);
                vector.insert(3usize, high);
                vector
            } else {
                U4::new(pairs[index])
            };
            shared[first + at] = vector;
        }
    }
}
