//! The kernel for every runtime: plain arithmetic, no planes, no matrix unit.
//!
//! It needs shared memory, 32-bit integers and barriers, and keeps to what WGSL has: vectors of at most four, one
//! element width a binding, no reinterpretation of words as halves. So sums are folded through shared memory, and
//! the pair table is bound as what it holds.
//!
//! A unit is a lane of [`crate::pack`]: of each block of 16 rows by 128 of k it reads its own `2·bits` words, looks
//! its pairs up, and multiplies them with all rows of x of the cube's tile. A group's sum is scaled before it joins
//! the unit's total. Then the four lanes that share two rows and all planes are added, in ascending order: the order
//! of every sum is a function of the plan and k alone.
//!
//! With few rows instructions are what bounds it, so what does not differ between rows of a tile is done once. x lies in
//! shared memory as f32, in the order in which lanes multiply by it, `rounds` blocks of every plane at a time: once a
//! cube if that is all of k. The table may be f32 too, so that what is looked up need not be converted. And words and
//! scales are asked for a block ahead, into the next tile too, those of the first block before the table is filled.
//!
//! m, n and k are run-time values. Compiled in are the plan, the bits, the type, which columns share a scale and
//! whether k is whole blocks: if so, x is read in pairs and never compared with k.

mod tokens;
pub(super) mod weight;

use crate::{
    Dtype, Group, Operands, PackedWeight, PortablePlan, Problem,
    pack::{BLOCK_K, BLOCK_ROWS, padded_groups},
};
use cubecl::{ir::ElemType, prelude::*};
use tokens::{fetch, store};
use weight::{Pair, Words, fill, load_head, load_scales, load_tail, look_up, own_copy, own_tail};

/// Planes of one launch: as many as a large device runs at once, or a few more. A cube that starts when others end runs
/// nearly alone, and one of a single tile has filled its table for that.
const MAX_PLANES: usize = 4096;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) bits: usize,
    /// Columns after which a sum is scaled.
    pub(super) fold: usize,
    /// Blocks of a row that share a scale, 0 if all of them do; read only if groups are not shorter than blocks.
    pub(super) span: usize,
    /// Whether k is a multiple of a block.
    pub(super) whole: bool,
    pub(super) planes: usize,
    pub(super) tokens: usize,
    pub(super) copies: usize,
    pub(super) rounds: usize,
    pub(super) tiles: usize,
}

impl Form {
    pub(super) fn entries(self) -> usize {
        1 << (2 * self.bits)
    }

    /// Units that write copies of the same pair.
    fn spread(self) -> usize {
        let shares = (32 * self.planes / self.entries()).max(1);
        (1 << shares.ilog2()).min(self.copies)
    }

    /// Rounds between two jumps back. With one, a compiler would have what is asked for ahead take the registers of what
    /// is computed, and so ask for it last.
    fn step(self) -> usize {
        self.rounds.min(2)
    }

    /// Rows of x that are folded at once.
    fn folded(self) -> usize {
        self.tokens.min(PortablePlan::FOLDED as usize)
    }

    /// Floats of what a fold adds up.
    fn slots(self) -> usize {
        self.folded() * self.tiles * self.planes * 64
    }

    /// Columns after which a sum of `group` is scaled, and the blocks that share a scale.
    pub(super) fn scaling(group: Group, k: usize) -> (usize, usize) {
        let len = group.len(k.next_multiple_of(BLOCK_K));
        let span = if group == Group::Whole { 0 } else { len.div_ceil(BLOCK_K) };
        (len.min(BLOCK_K), span)
    }
}

/// What is not.
#[derive(CubeLaunch, CubeType)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    /// Scales of a row, whole blocks of them.
    groups: usize,
    /// 1 if there is a bias.
    biased: u32,
}

/// Launches `plan`, which must have been validated for `problem`, on `operands`, likewise.
pub(crate) fn launch(client: &Client, problem: &Problem, plan: &PortablePlan, operands: &Operands) {
    let Problem { m, n, k, format, dtype, bias, .. } = *problem;
    let whole = k.is_multiple_of(BLOCK_K);
    let (fold, span) = Form::scaling(format.group, k);
    let form = Form {
        bits: format.bits.get().into(),
        fold,
        span,
        whole,
        planes: plan.planes as usize,
        tokens: plan.tokens as usize,
        copies: plan.copies as usize,
        rounds: plan.rounds as usize,
        tiles: plan.tiles as usize,
    };
    let width = if whole { 2 } else { 1 };
    let (row_tiles, token_tiles) = (n.div_ceil(BLOCK_ROWS * form.tiles), m.div_ceil(form.tokens));
    let (most_x, most_y, _) = client.properties().hardware.max_cube_count;
    let cubes_x = token_tiles.min(most_x as usize);
    // As many turns for each cube.
    let turns = (row_tiles * cubes_x).div_ceil(MAX_PLANES / form.planes);
    let cubes_y = row_tiles.div_ceil(turns).min(most_y as usize);
    let shape = ShapeLaunch::new(m, n, k, padded_groups(k, format), u32::from(bias));
    let words = PackedWeight::words_len(n, k, format) / 4;
    let scales = PackedWeight::scales_len(n, k, format) / 2;
    // Never read without a bias, but a binding wants a buffer.
    let bias = operands.bias.as_ref().unwrap_or(&operands.scales);
    let arg = |handle: &cubecl::server::Handle, len| {
        // SAFETY: whoever called `qgemm` had every buffer checked against these lengths.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    };
    // SAFETY: what the kernel indexes is bounded by the lengths above: rows of x beyond m read the last one, columns
    // beyond k read nothing, rows of y beyond n are not written, words and scales are padded to whole blocks, and
    // blocks beyond the last read the last one.
    unsafe {
        qgemm::launch_unchecked(
            client,
            CubeCount::Static(cubes_x as u32, cubes_y as u32, 1),
            CubeDim::new_2d(32, plan.planes),
            width,
            arg(&operands.x, m * k / width),
            arg(&operands.words, words),
            arg(&operands.scales, scales),
            arg(&operands.pairs, format.bits.pairs()),
            arg(bias, n),
            arg(&operands.y, m * n),
            shape,
            form,
            [dtype.elem(), if plan.wide { Dtype::F32.elem() } else { dtype.elem() }],
        );
    }
}

#[cube(launch_unchecked)]
fn qgemm<F: Float, T: Float, N: Size>(
    x: &[Vector<F, N>],
    words: &[Words],
    scales: &[Vector<F, Const<2>>],
    pairs: &[Vector<F, Const<2>>],
    bias: &[F],
    y: &mut [F],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F, T)] _dtypes: [ElemType; 2],
) {
    let tokens = comptime!(form.tokens);
    let planes = comptime!(form.planes);
    let units = comptime!(32 * form.planes);
    let tiles = comptime!(form.tiles);
    let parts = comptime!(128 / form.fold);
    let part_rounds = comptime!(form.rounds);
    let unit = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let (g, t) = (unit / 4, unit % 4);
    let copy = own_copy(form);

    let blocks = shape.k.div_ceil(128);
    let step = comptime!(form.step());
    let rounds = blocks.div_ceil(comptime!(form.planes * form.step())) * step;
    let token_tiles = shape.m.div_ceil(tokens);
    let row_tiles = shape.n.div_ceil(comptime!(16 * form.tiles));
    // A plane without a block of its own computes the last one with zeros for x.
    let first_block = min(plane, blocks - 1);
    let last_block = min((rounds - 1) * planes + plane, blocks - 1);

    let mut row_tile = CUBE_POS_Y as usize;
    let mut heads = Array::<Words>::new(tiles);
    let mut tails = Array::<Words>::new(tiles);
    let mut factors = Array::<Vector<F, Const<2>>>::new(comptime!(form.tiles * 128 / form.fold));
    #[unroll]
    for j in 0..tiles {
        let of = tile_of(row_tile, &shape, j, form);
        heads[j] = load_head(words, of * blocks + first_block, unit, form);
        tails[j] = load_tail(words, of * blocks + first_block, unit, form);
        load_scales(scales, &mut factors, of * shape.groups, first_block, j, form);
    }
    let mut token_tile = CUBE_POS_X as usize;
    let mut values = Array::<Vector<F, Const<2>>>::new(comptime!(2 * form.tokens * form.rounds));
    fetch(x, &mut values, token_tile * tokens, 0usize, &shape, form);

    let mut table =
        Shared::<[Vector<T, Const<2>>]>::new_slice(comptime!(form.entries() * form.copies));
    fill(&mut table, pairs, form);
    let mut staging = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(
        form.tokens * form.rounds * 32 * form.planes
    ));
    store(&mut staging, &values, 0usize, &shape, form);
    // Twice, so that a fold need not wait for the one before.
    let slots = comptime!(form.slots());
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(2 * form.slots()));
    let mut turn = 0usize;
    // Whether x of this tile lies there from its first round on.
    let mut staged = true;
    sync_cube();

    while token_tile < token_tiles {
        let token = token_tile * tokens;
        let next = row_tile + CUBE_COUNT_Y as usize;
        let more = next < row_tiles;
        let after = token_tile + CUBE_COUNT_X as usize;
        let again = select(after < token_tiles, CUBE_POS_Y as usize, row_tile);
        let next_row_tile = select(more, next, again);
        // Where nothing follows, what is asked for last is at hand.
        let next_block = select(more || after < token_tiles, first_block, last_block);
        let mut totals = Array::<f32>::new(comptime!(2 * form.tokens * form.tiles));
        #[unroll]
        for i in 0..comptime!(2 * form.tokens * form.tiles) {
            totals[i] = 0.0;
        }
        let mut round = 0usize;
        while round < rounds {
            if !staged {
                fetch(x, &mut values, token, round, &shape, form);
                sync_cube();
                store(&mut staging, &values, round, &shape, form);
                sync_cube();
            }
            staged = rounds <= part_rounds;
            let end = min(round + part_rounds, rounds);
            let mut own = UNIT_POS_Y * comptime!(32 * form.tokens as u32);
            while round < end {
                #[unroll]
                for _ in 0..step {
                    // On their way while this block is computed.
                    round += 1;
                    let ahead = round < rounds;
                    let block = select(ahead, min(round * planes + plane, blocks - 1), next_block);
                    let of_row_tile = select(ahead, row_tile, next_row_tile);
                    let mut next_heads = Array::<Words>::new(tiles);
                    let mut next_tails = Array::<Words>::new(tiles);
                    let mut next_factors =
                        Array::<Vector<F, Const<2>>>::new(comptime!(form.tiles * 128 / form.fold));
                    #[unroll]
                    for j in 0..tiles {
                        let of = tile_of(of_row_tile, &shape, j, form);
                        next_heads[j] = load_head(words, of * blocks + block, unit, form);
                        next_tails[j] = load_tail(words, of * blocks + block, unit, form);
                        load_scales(scales, &mut next_factors, of * shape.groups, block, j, form);
                        tails[j] = own_tail(tails[j], unit, form);
                    }
                    #[unroll]
                    for part in 0..parts {
                        let mut sums = Array::<f32>::new(comptime!(2 * form.tokens * form.tiles));
                        #[unroll]
                        for i in 0..comptime!(2 * form.tokens * form.tiles) {
                            sums[i] = 0.0;
                        }
                        let first = comptime!(part * form.fold / 16);
                        #[unroll]
                        for f in first..comptime!((part + 1) * form.fold / 16) {
                            let mut w = Array::<Pair>::new(comptime!(4 * form.tiles));
                            #[unroll]
                            for s in 0..comptime!(4 * form.tiles) {
                                let (head, tail) = (heads[s / 4], tails[s / 4]);
                                w[s] = look_up(&table, head, tail, copy, f, s % 4, form);
                            }
                            #[unroll]
                            for i in 0..tokens {
                                // Alternatives instead of sums, which a compiler leaves to the load's offset.
                                let at = own | t as u32 | comptime!((32 * i + 4 * f) as u32);
                                let v = staging[at as usize];
                                #[unroll]
                                for row in 0..comptime!(2 * form.tiles) {
                                    let slot = comptime!(row / 2 * 4 + row % 2);
                                    let at = comptime!(2 * form.tiles * i + row);
                                    let sum = mad(w[slot], v, 0usize, sums[at]);
                                    sums[at] = mad(w[slot + 2], v, 2usize, sum);
                                }
                            }
                        }
                        #[unroll]
                        for at in 0..comptime!(2 * form.tokens * form.tiles) {
                            let j = comptime!(at / 2 % form.tiles);
                            let factor = Pair::cast_from(factors[j * parts + part]);
                            totals[at] += sums[at] * factor.extract(at % 2);
                        }
                    }
                    #[unroll]
                    for j in 0..tiles {
                        heads[j] = next_heads[j];
                        tails[j] = next_tails[j];
                    }
                    #[unroll]
                    for at in 0..comptime!(form.tiles * 128 / form.fold) {
                        factors[at] = next_factors[at];
                    }
                    own += comptime!((32 * form.tokens * form.planes) as u32);
                }
            }
        }
        let sets = comptime!(form.folded() * form.tiles);
        #[unroll]
        for few in 0..comptime!(form.tokens / form.folded()) {
            let base = turn * slots;
            #[unroll]
            for set in 0..sets {
                let at = base + ((set * planes + plane) * 4 + t) * 16 + g;
                scratch[at] = totals[(few * sets + set) * 2];
                scratch[at + 8] = totals[(few * sets + set) * 2 + 1];
            }
            sync_cube();
            let mut out = UNIT_POS as usize;
            while out < comptime!(form.folded() * form.tiles * 16) {
                let (set, in_tile) = (out / 16, out % 16);
                let row = (row_tile * tiles + set % tiles) * 16 + in_tile;
                let token = token + few * comptime!(form.folded()) + set / tiles;
                if token < shape.m && row < shape.n {
                    let from = base + set * comptime!(form.planes * 64) + in_tile;
                    let mut sum = 0.0f32;
                    #[unroll]
                    for part in 0..comptime!(form.planes * 4) {
                        sum += scratch[from + part * 16];
                    }
                    if shape.biased == 1 {
                        sum += f32::cast_from(bias[row]);
                    }
                    y[token * shape.n + row] = F::cast_from(sum);
                }
                out += units;
            }
            turn = 1 - turn;
        }
        row_tile = next_row_tile;
        if !more {
            token_tile = after;
            staged = false;
        }
    }
}

/// The `j`th tile of 16 rows of a cube's; beyond the last one, that one.
#[cube]
fn tile_of(row_tile: usize, shape: &Shape, #[comptime] j: usize, #[comptime] form: Form) -> usize {
    let mut tile = row_tile;
    if comptime!(form.tiles > 1) {
        tile = min(row_tile * form.tiles + j, shape.n.div_ceil(16) - 1);
    }
    tile
}

/// `sum` and the products of a pair with the elements of `four` from `first` on.
#[cube]
fn mad(pair: Pair, four: Vector<f32, Const<4>>, #[comptime] first: usize, sum: f32) -> f32 {
    sum + pair.extract(0usize) * four.extract(first)
        + pair.extract(1usize) * four.extract(comptime!(first + 1))
}
