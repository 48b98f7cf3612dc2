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
//! m, n and k are run-time values. Compiled in are the plan, the bits, the type, where in a block sums are scaled
//! (every 32, 64 or 128 of k) and whether k is whole blocks: if so, x is read in pairs and never compared with k.

use crate::{
    Operands, PackedWeight, PortablePlan, Problem,
    pack::{BLOCK_K, BLOCK_ROWS, padded_groups},
};
use cubecl::{ir::ElemType, prelude::*};

pub(super) type Words = Vector<u32, Const<4>>;
type Pair = Vector<f32, Const<2>>;

/// Cubes of one launch. More than any device runs at once, so what remains is better served by cubes that have
/// filled their table already.
const MAX_CUBES: usize = 8192;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) bits: usize,
    /// Columns after which a sum is scaled.
    pub(super) fold: usize,
    /// Whether k is a multiple of a block.
    pub(super) whole: bool,
    pub(super) planes: usize,
    pub(super) tokens: usize,
    pub(super) copies: usize,
}

impl Form {
    pub(super) fn entries(self) -> usize {
        1 << (2 * self.bits)
    }

    /// Rows of x that are folded at once.
    fn folded(self) -> usize {
        self.tokens.min(PortablePlan::FOLDED as usize)
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
    /// Blocks that share a scale; read only if groups are not shorter than blocks.
    group_blocks: usize,
    /// 1 if there is a bias.
    biased: u32,
}

/// Launches `plan`, which must have been validated for `problem`, on `operands`, likewise.
pub(crate) fn launch(client: &Client, problem: &Problem, plan: &PortablePlan, operands: &Operands) {
    let Problem { m, n, k, format, dtype, bias, .. } = *problem;
    let whole = k.is_multiple_of(BLOCK_K);
    let form = Form {
        bits: format.bits.get().into(),
        fold: format.group.len(k.next_multiple_of(BLOCK_K)).min(BLOCK_K),
        whole,
        planes: plan.planes as usize,
        tokens: plan.tokens as usize,
        copies: plan.copies as usize,
    };
    let width = if whole { 2 } else { 1 };
    let tiles = n.div_ceil(BLOCK_ROWS) * m.div_ceil(form.tokens);
    let cubes = tiles.min(MAX_CUBES).min(client.properties().hardware.max_cube_count.0 as usize);
    let shape = ShapeLaunch::new(
        m,
        n,
        k,
        padded_groups(k, format),
        format.group.len(k.next_multiple_of(BLOCK_K)) / BLOCK_K,
        u32::from(bias),
    );
    let words = PackedWeight::words_len(n, k, format) / 4;
    let scales = PackedWeight::scales_len(n, k, format) / 2;
    // Never read without a bias, but a binding wants a buffer.
    let bias = operands.bias.as_ref().unwrap_or(&operands.scales);
    let arg = |handle: &cubecl::server::Handle, len| {
        // SAFETY: whoever called `qgemm` had every buffer checked against these lengths.
        unsafe { BufferArg::from_raw_parts(handle.clone(), len) }
    };
    // SAFETY: what the kernel indexes is bounded by the lengths above: rows of x beyond m read the last one, columns
    // beyond k read nothing, rows of y beyond n are not written, and words and scales are padded to whole blocks.
    unsafe {
        qgemm::launch_unchecked(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
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
            dtype.elem(),
        );
    }
}

#[cube(launch_unchecked)]
fn qgemm<F: Float, N: Size>(
    x: &[Vector<F, N>],
    words: &[Words],
    scales: &[Vector<F, Const<2>>],
    pairs: &[Vector<F, Const<2>>],
    bias: &[F],
    y: &mut [F],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F)] _dtype: ElemType,
) {
    let tokens = comptime!(form.tokens);
    let planes = comptime!(form.planes);
    let units = comptime!(32 * form.planes);
    let copies = comptime!(form.copies);
    let parts = comptime!(128 / form.fold);
    let unit = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let (g, t) = (unit / 4, unit % 4);

    let entries = comptime!(form.entries() * form.copies);
    let mut table = Shared::<[Vector<F, Const<2>>]>::new_slice(entries);
    let mut at = UNIT_POS as usize;
    while at < entries {
        table[at] = pairs[at / copies];
        at += units;
    }
    let folded = comptime!(form.folded());
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(form.folded() * form.planes * 64));
    sync_cube();

    let blocks = shape.k.div_ceil(128);
    let row_len = shape.k / N::value();
    let token_tiles = shape.m.div_ceil(tokens);
    let tiles = shape.n.div_ceil(16) * token_tiles;
    let mut tile = CUBE_POS_X as usize;
    while tile < tiles {
        let row_tile = tile / token_tiles;
        let token = tile % token_tiles * tokens;
        let mut rows = Array::<usize>::new(tokens);
        let mut totals = Array::<f32>::new(comptime!(2 * tokens));
        #[unroll]
        for i in 0..tokens {
            let row = select(token + i < shape.m, token + i, shape.m - 1);
            rows[i] = row * row_len;
            totals[2 * i] = 0.0;
            totals[2 * i + 1] = 0.0;
        }
        let first = row_tile * blocks;
        let mut head = Words::new(0u32);
        let mut tail = Words::new(0u32);
        if plane < blocks {
            head = load_head(words, first + plane, unit, form);
            tail = load_tail(words, first + plane, unit, form);
        }
        let mut block = plane;
        while block < blocks {
            // On their way while this block is computed.
            let mut next_head = Words::new(0u32);
            let mut next_tail = Words::new(0u32);
            if block + planes < blocks {
                next_head = load_head(words, first + block + planes, unit, form);
                next_tail = load_tail(words, first + block + planes, unit, form);
            }
            let mut factors = Array::<Pair>::new(parts);
            #[unroll]
            for part in 0..parts {
                let group =
                    row_tile * shape.groups + group_of(block, shape.group_blocks, part, form);
                factors[part] = Pair::cast_from(scales[group * 8 + g]);
            }
            #[unroll]
            for part in 0..parts {
                let mut sums = Array::<f32>::new(comptime!(2 * tokens));
                #[unroll]
                for i in 0..comptime!(2 * tokens) {
                    sums[i] = 0.0;
                }
                #[unroll]
                for f in comptime!(part * form.fold / 16)..comptime!((part + 1) * form.fold / 16) {
                    let w0 = look_up(&table, head, tail, unit % copies, f, 0usize, form);
                    let w1 = look_up(&table, head, tail, unit % copies, f, 1usize, form);
                    let w2 = look_up(&table, head, tail, unit % copies, f, 2usize, form);
                    let w3 = look_up(&table, head, tail, unit % copies, f, 3usize, form);
                    let pair = block * 64 + t + comptime!(f * 8);
                    #[unroll]
                    for i in 0..tokens {
                        let a = load_x(x, rows[i], pair, shape.k, form);
                        let b = load_x(x, rows[i], pair + 4, shape.k, form);
                        sums[2 * i] = mad(w2, b, mad(w0, a, sums[2 * i]));
                        sums[2 * i + 1] = mad(w3, b, mad(w1, a, sums[2 * i + 1]));
                    }
                }
                #[unroll]
                for i in 0..tokens {
                    totals[2 * i] += sums[2 * i] * factors[part].extract(0usize);
                    totals[2 * i + 1] += sums[2 * i + 1] * factors[part].extract(1usize);
                }
            }
            head = next_head;
            tail = next_tail;
            block += planes;
        }
        #[unroll]
        for turn in 0..comptime!(tokens / folded) {
            sync_cube();
            #[unroll]
            for i in 0..folded {
                let at = ((i * planes + plane) * 4 + t) * 16 + g;
                scratch[at] = totals[(turn * folded + i) * 2];
                scratch[at + 8] = totals[(turn * folded + i) * 2 + 1];
            }
            sync_cube();
            let mut out = UNIT_POS as usize;
            while out < comptime!(folded * 16) {
                let row = row_tile * 16 + out % 16;
                let token = token + turn * folded + out / 16;
                if token < shape.m && row < shape.n {
                    let mut sum = 0.0f32;
                    for part in 0..comptime!(planes * 4) {
                        sum += scratch[(out / 16 * comptime!(planes * 4) + part) * 16 + out % 16];
                    }
                    if shape.biased == 1 {
                        sum += f32::cast_from(bias[row]);
                    }
                    y[token * shape.n + row] = F::cast_from(sum);
                }
                out += units;
            }
        }
        tile += CUBE_COUNT_X as usize;
    }
}

/// Words 0–3 of a lane.
#[cube]
pub(super) fn load_head(
    words: &[Words],
    block: usize,
    unit: usize,
    #[comptime] form: Form,
) -> Words {
    words[block * comptime!(16 * form.bits) + unit]
}

/// Words 4 and up of a lane: four, two (then twice the same) or none.
#[cube]
pub(super) fn load_tail(
    words: &[Words],
    block: usize,
    unit: usize,
    #[comptime] form: Form,
) -> Words {
    let start = block * comptime!(16 * form.bits) + 32;
    if comptime!(form.bits == 4) {
        words[start + unit]
    } else if comptime!(form.bits == 3) {
        let both = words[start + unit / 2];
        let odd = unit % 2 == 1;
        let mut own = both;
        own.insert(0usize, select(odd, both.extract(2usize), both.extract(0usize)));
        own.insert(1usize, select(odd, both.extract(3usize), both.extract(1usize)));
        own
    } else {
        Words::new(0u32)
    }
}

#[cube]
fn word(head: Words, tail: Words, #[comptime] index: usize) -> u32 {
    if comptime!(index < 4) { head.extract(index) } else { tail.extract(comptime!(index - 4)) }
}

/// The pair of slot `j` of fragment `f`: the table in [`crate::pack`] says where its index lies.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn look_up<F: Float>(
    table: &Shared<[Vector<F, Const<2>>]>,
    head: Words,
    tail: Words,
    copy: usize,
    #[comptime] f: usize,
    #[comptime] j: usize,
    #[comptime] form: Form,
) -> Pair {
    let index = if comptime!(form.bits == 4) {
        word(head, tail, f) >> comptime!(8 * j as u32) & 255
    } else if comptime!(form.bits == 2) {
        let shift = comptime!((16 * (f % 2) + 8 * (j % 2) + 4 * (j / 2)) as u32);
        word(head, tail, comptime!(f / 2)) >> shift & 15
    } else if comptime!(f % 4 < 3) {
        word(head, tail, comptime!(f / 4 * 3 + f % 4)) >> comptime!(8 * j as u32) & 63
    } else {
        let shift = comptime!(8 * j as u32 + 6);
        let low = word(head, tail, comptime!(f / 4 * 3)) >> shift & 3;
        let middle = word(head, tail, comptime!(f / 4 * 3 + 1)) >> shift & 3;
        let high = word(head, tail, comptime!(f / 4 * 3 + 2)) >> shift & 3;
        low | middle << 2 | high << 4
    };
    Pair::cast_from(table[index as usize * comptime!(form.copies) + copy])
}

/// The two values of x at `2·pair` of the row that starts at vector `row`, zero beyond k.
#[cube]
fn load_x<F: Float, N: Size>(
    x: &[Vector<F, N>],
    row: usize,
    pair: usize,
    k: usize,
    #[comptime] form: Form,
) -> Pair {
    let mut values = Pair::new(0.0);
    if comptime!(form.whole) {
        let both = x[row + pair];
        values.insert(0usize, f32::cast_from(both.extract(0usize)));
        values.insert(1usize, f32::cast_from(both.extract(1usize)));
    } else {
        let col = 2 * pair;
        if col < k {
            values.insert(0usize, f32::cast_from(x[row + col].extract(0usize)));
        }
        if col + 1 < k {
            values.insert(1usize, f32::cast_from(x[row + col + 1].extract(0usize)));
        }
    }
    values
}

#[cube]
fn mad(a: Pair, b: Pair, sum: f32) -> f32 {
    sum + a.extract(0usize) * b.extract(0usize) + a.extract(1usize) * b.extract(1usize)
}

/// The group of the columns that `part` of `block` sums.
#[cube]
pub(super) fn group_of(
    block: usize,
    group_blocks: usize,
    #[comptime] part: usize,
    #[comptime] form: Form,
) -> usize {
    if comptime!(form.fold == 128) {
        block / group_blocks
    } else {
        block * comptime!(128 / form.fold) + part
    }
}
