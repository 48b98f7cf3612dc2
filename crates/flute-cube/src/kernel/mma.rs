//! The tensor-core kernel: `mma.sync.m16n8k16` with the decoded weights as its A operand. CUDA, f16 and bf16.
//!
//! A cube holds a copy of the pair table for each lane in shared memory, so that the 32 lookups of a warp meet 32
//! banks. Words come from memory in fragment order: 16 bytes a lane, one block of 16 rows by 128 of k ahead of their
//! use. A byte of a word is the index of a pair of weights, one shared load brings the pair, and four of them are what
//! a lane gives the matrix unit; weights are its 16 rows, so that one token costs what eight do. Scales meet the f32
//! sums of a group, never the weights: products of two halves are exact in f32, and so is the sum's scaling as good in
//! bf16 as in f16.
//!
//! x is staged in shared memory in the order in which lanes take it: 16 bytes for two steps of the matrix unit. All of
//! k stays there when it fits, and then serves every block of rows that the cube takes.
//!
//! The order of every sum is fixed by the plan: k blocks of a plane ascending, then planes, then splits.

use super::ptx::{F4, U4, after_barrier, load_stream_x2, load_stream_x4, lookup, mma, permute, shared_address};
use crate::{Dtype, Format, Group, MmaPlan, Operands, Problem, launch, pack};
use cubecl::{prelude::*, server::Handle};
use half::{bf16, f16};

/// What is known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    plan: MmaPlan,
    bits: u8,
    /// Weights a scale; 0 for the whole row.
    group: u32,
    bf16: bool,
    bias: bool,
    /// Whether x is read in pairs, which takes an even k.
    x_pairs: bool,
}

impl Shape {
    fn ty(self) -> &'static str {
        if self.bf16 { "bf16" } else { "f16" }
    }
    fn pairs(self) -> usize {
        1 << (2 * self.bits)
    }
    fn words(self) -> usize {
        2 * self.bits as usize
    }
    /// Steps of the matrix unit between two foldings of a block: a group, or the block where groups are longer.
    fn fold(self) -> usize {
        if self.group == 0 { 8 } else { (self.group as usize).min(pack::BLOCK_K) / 16 }
    }
    fn planes(self) -> usize {
        (self.plan.planes_n * self.plan.planes_k) as usize
    }
    /// Rows of x in shared memory, in vectors of 16 bytes.
    fn x_stride(self) -> usize {
        self.plan.k_stage as usize / 8 + 4
    }
    fn sums(self) -> usize {
        if self.plan.planes_k == 1 { 1 } else { self.planes() * self.plan.row_tiles as usize * self.plan.token_tiles() * 32 }
    }
}

/// Computes `y`; with a split, its shares first and then their sum.
pub(crate) fn launch(client: &Client, problem: &Problem, plan: &MmaPlan, operands: &Operands) {
    match (problem.dtype, plan.split) {
        (Dtype::BF16, 1) => launch_product::<bf16, bf16>(client, problem, plan, operands, &operands.y),
        (_, 1) => launch_product::<f16, f16>(client, problem, plan, operands, &operands.y),
        (Dtype::BF16, _) => launch_split::<bf16>(client, problem, plan, operands),
        _ => launch_split::<f16>(client, problem, plan, operands),
    }
}

fn launch_split<F: Float + CubeElement>(client: &Client, problem: &Problem, plan: &MmaPlan, operands: &Operands) {
    let partials = client.empty(4 * plan.split as usize * problem.m * problem.n);
    launch_product::<F, f32>(client, problem, plan, operands, &partials);
    let len = problem.m * problem.n;
    let bias = operands.bias.clone().unwrap_or_else(|| operands.pairs.clone());
    let bias_len = if problem.bias { problem.n } else { 1 };
    // SAFETY: `partials` holds `split · m · n` sums and `y` and `bias` were measured; the kernel stays below `len`.
    unsafe {
        fold_splits::launch_unchecked::<F>(
            client,
            CubeCount::Static((len.div_ceil(256) as u32).min(1 << 20), 1, 1),
            CubeDim::new_1d(256),
            BufferArg::from_raw_parts(partials, plan.split as usize * len),
            BufferArg::from_raw_parts(bias, bias_len),
            BufferArg::from_raw_parts(operands.y.clone(), len),
            problem.n as u32,
            plan.split,
            problem.bias,
        );
    }
}

fn launch_product<F: Float + CubeElement, Y: Float + CubeElement>(
    client: &Client,
    problem: &Problem,
    plan: &MmaPlan,
    operands: &Operands,
    y: &Handle,
) {
    let Problem { m, n, k, format: Format { bits, group }, .. } = *problem;
    let shape = Shape {
        // Who stays is the grid's business, not the kernel's.
        plan: MmaPlan { resident: 0, ..*plan },
        bits: bits.get(),
        group: match group {
            Group::Size(size) => size,
            Group::Whole => 0,
        },
        bf16: problem.dtype == Dtype::BF16,
        bias: problem.bias && plan.split == 1,
        x_pairs: k.is_multiple_of(2) && operands.x.offset_start.unwrap_or(0).is_multiple_of(4),
    };
    let row_blocks = n.div_ceil(plan.rows()) as u32;
    let cubes = match plan.resident {
        0 => row_blocks,
        resident => {
            let share = (launch::limits(client).processors as u32 * resident)
                .div_ceil(plan.split * m.div_ceil(plan.tokens as usize) as u32);
            // Whole rounds: every cube takes the same number of blocks, or one less.
            row_blocks.div_ceil(row_blocks.div_ceil(share.max(1)))
        }
    };
    let x_width = if shape.x_pairs { 2 } else { 1 };
    let bias = operands.bias.clone().unwrap_or_else(|| operands.pairs.clone());
    // SAFETY: the operands were measured against the problem, and the kernel reads x below (m, k), words and scales
    // below their tiles (a tile that does not exist is replaced by the last one), and writes y below (m, n).
    unsafe {
        product::launch_unchecked::<F, Y>(
            client,
            CubeCount::Static(cubes, m.div_ceil(plan.tokens as usize) as u32, plan.split),
            CubeDim::new_2d(32, plan.planes_n * plan.planes_k),
            x_width,
            BufferArg::from_raw_parts(operands.x.clone(), m * k / x_width),
            BufferArg::from_raw_parts(operands.words.clone(), crate::PackedWeight::words_len(n, k, problem.format)),
            BufferArg::from_raw_parts(
                operands.scales.clone(),
                crate::PackedWeight::scales_len(n, k, problem.format) / 2,
            ),
            BufferArg::from_raw_parts(operands.pairs.clone(), bits.pairs()),
            BufferArg::from_raw_parts(bias, if problem.bias { n } else { 1 }),
            BufferArg::from_raw_parts(y.clone(), plan.split as usize * m * n),
            m as u32,
            n as u32,
            k as u32,
            shape,
        );
    }
}

/// `y[m, n]`, or with a split the share of cube z at `y[z, m, n]`.
#[cube(launch_unchecked)]
fn product<F: Float, Y: Float, X: Size>(
    x: &[Vector<F, X>],
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
    let row_tiles = comptime!(plan.row_tiles as usize);
    let token_tiles = comptime!(plan.token_tiles());
    let planes_n = comptime!(plan.planes_n as usize);
    let planes_k = comptime!(plan.planes_k as usize);
    let tokens = comptime!(plan.tokens as usize);
    let stage_blocks = comptime!(plan.k_stage as usize / pack::BLOCK_K);

    let lane = UNIT_POS_X as usize;
    let plane = UNIT_POS_Y as usize;
    let plane_n = plane % planes_n;
    let plane_k = plane / planes_n;
    let (m, n, k) = (m as usize, n as usize, k as usize);
    let tiles = (n + 15) / 16;
    let k_blocks = (k + comptime!(pack::BLOCK_K - 1)) / comptime!(pack::BLOCK_K);
    let groups = if comptime!(shape.group == 0) { 1usize.runtime() } else { (k + comptime!(shape.group.max(1) as usize - 1)) / comptime!(shape.group.max(1) as usize) };
    // This cube's share of k, in blocks: whole stages of its planes.
    let share = ((k_blocks + comptime!(plan.split as usize - 1)) / comptime!(plan.split as usize) + planes_k - 1) / planes_k * planes_k;
    let k_first = CUBE_POS_Z as usize * share;
    let k_end = min(k_first + share, k_blocks);
    let steps = share / planes_k;
    let token_first = CUBE_POS_Y as usize * tokens;

    let mut table = Shared::<[U4]>::new_aligned_slice(comptime!(shape.pairs() * 8), 128usize);
    let mut staged = Shared::<[U4]>::new_aligned_slice(comptime!(tokens * shape.x_stride()), 128usize);
    let mut sums = Shared::<[F4]>::new_aligned_slice(comptime!(shape.sums()), 128usize);

    let row_blocks = (tiles + comptime!(row_tiles * planes_n - 1)) / comptime!(row_tiles * planes_n);
    let row_block_first = CUBE_POS_X as usize;
    let cubes = CUBE_COUNT_X as usize;
    let mut row_block = row_block_first;

    let mut next = Array::<u32>::new(comptime!(row_tiles * shape.words()));
    load_blocks(words, &mut next, first_tile(row_block, plane_n, shape), tiles, k_first + plane_k, k_blocks, lane, shape);

    let mut i = UNIT_POS as usize;
    while i < comptime!(shape.pairs() * 8) {
        table[i] = U4::new(pairs[i / 8]);
        i += comptime!(shape.planes() * 32);
    }
    stage::<F, X>(x, &mut staged, m, k, token_first, k_first, shape);
    sync_cube();
    let lane_table = after_barrier(shared_address(unsafe { table.as_ptr_unchecked() }) + UNIT_POS_X * 4u32);

    while row_block < row_blocks {
        let tile = first_tile(row_block, plane_n, shape);
        let mut acc = Array::<F4>::new(comptime!(row_tiles * token_tiles));
        #[unroll]
        for i in 0..comptime!(row_tiles * token_tiles) {
            acc[i] = F4::new(0.0f32);
        }
        for step in 0..steps {
            let kb = k_first + step * planes_k + plane_k;
            let in_stage = (step * planes_k) % stage_blocks;
            // More k than fits the stage: the next part, for every block of rows anew.
            if in_stage == 0 && share > stage_blocks {
                if step > 0 || row_block != row_block_first {
                    sync_cube();
                    stage::<F, X>(x, &mut staged, m, k, token_first, k_first + step * planes_k, shape);
                    sync_cube();
                }
            }
            let mut now = Array::<u32>::new(comptime!(row_tiles * shape.words()));
            #[unroll]
            for i in 0..comptime!(row_tiles * shape.words()) {
                now[i] = next[i];
            }
            if step + 1 < steps {
                load_blocks(words, &mut next, tile, tiles, kb + planes_k, k_blocks, lane, shape);
            } else if row_block + cubes < row_blocks {
                let tile = first_tile(row_block + cubes, plane_n, shape);
                load_blocks(words, &mut next, tile, tiles, k_first + plane_k, k_blocks, lane, shape);
            }
            if kb < k_end {
                #[unroll]
                for segment in 0..comptime!(8 / shape.fold()) {
                    let mut part = Array::<F4>::new(comptime!(row_tiles * token_tiles));
                    #[unroll]
                    for i in 0..comptime!(row_tiles * token_tiles) {
                        part[i] = F4::new(0.0f32);
                    }
                    #[unroll]
                    for half in 0..comptime!(shape.fold() / 2) {
                        let fragment = comptime!(segment * shape.fold() + 2 * half);
                        let mut xs = Array::<U4>::new(token_tiles);
                        #[unroll]
                        for j in 0..token_tiles {
                            // With fewer than 8 tokens the spare columns repeat them, and nobody stores those.
                            let row = j * 8 + lane / 4 % comptime!(tokens.min(8));
                            let column = (in_stage + plane_k) * 16 + comptime!(fragment * 2) + lane % 4;
                            xs[j] = staged[row * comptime!(shape.x_stride()) + column];
                        }
                        #[unroll]
                        for i in 0..row_tiles {
                            #[unroll]
                            for odd in 0..2usize {
                                let indices = fragment_indices(&now, comptime!(i * shape.words()), comptime!(fragment + odd), shape);
                                let a0 = lookup(indices, lane_table, 0u32);
                                let a1 = lookup(indices, lane_table, 1u32);
                                let a2 = lookup(indices, lane_table, 2u32);
                                let a3 = lookup(indices, lane_table, 3u32);
                                #[unroll]
                                for j in 0..token_tiles {
                                    let b0 = xs[j].extract(comptime!(2 * odd));
                                    let b1 = xs[j].extract(comptime!(2 * odd + 1));
                                    let at = comptime!(i * token_tiles + j);
                                    part[at] = mma(a0, a1, a2, a3, b0, b1, part[at], comptime!(shape.ty()));
                                }
                            }
                        }
                    }
                    let group = if comptime!(shape.group == 0) { 0usize.runtime() } else { min((kb * pack::BLOCK_K + comptime!(segment * shape.fold() * 16)) / comptime!(shape.group.max(1) as usize), groups - 1) };
                    #[unroll]
                    for i in 0..row_tiles {
                        let own = min(tile + i, tiles - 1);
                        let pair = scales[(own * groups + group) * 8 + lane / 4];
                        let (low, high) = (f32::cast_from(pair.extract(0usize)), f32::cast_from(pair.extract(1usize)));
                        let mut scale = F4::new(low);
                        scale.insert(2usize, high);
                        scale.insert(3usize, high);
                        #[unroll]
                        for j in 0..token_tiles {
                            let at = comptime!(i * token_tiles + j);
                            acc[at] += part[at] * scale;
                        }
                    }
                }
            }
        }

        if comptime!(planes_k == 1) {
            #[unroll]
            for i in 0..row_tiles {
                #[unroll]
                for j in 0..token_tiles {
                    store::<F, Y>(y, bias, acc[comptime!(i * token_tiles + j)], tile + i, token_first + j * 8, lane, m, n, shape);
                }
            }
        } else {
            let items = comptime!(row_tiles * token_tiles * 32);
            sync_cube();
            #[unroll]
            for i in 0..comptime!(row_tiles * token_tiles) {
                sums[plane * items + i * 32 + lane] = acc[i];
            }
            sync_cube();
            let mut item = UNIT_POS as usize;
            while item < planes_n * items {
                let mut sum = sums[item];
                #[unroll]
                for p in 1..planes_k {
                    sum += sums[p * planes_n * items + item];
                }
                let (owner, rest) = (item / items, item % items);
                let (i, j) = (rest / 32 / token_tiles, rest / 32 % token_tiles);
                store::<F, Y>(y, bias, sum, first_tile(row_block, owner, shape) + i, token_first + j * 8, rest % 32, m, n, shape);
                item += comptime!(shape.planes() * 32);
            }
        }
        row_block += cubes;
    }
}

/// The first row tile of a plane.
#[cube]
fn first_tile(row_block: usize, plane_n: usize, #[comptime] shape: Shape) -> usize {
    (row_block * comptime!(shape.plan.planes_n as usize) + plane_n) * comptime!(shape.plan.row_tiles as usize)
}

/// A lane's words of one k block in all row tiles of its plane; what does not exist is replaced by what does.
#[cube]
fn load_blocks(
    words: &[u32],
    into: &mut Array<u32>,
    tile: usize,
    tiles: usize,
    k_block: usize,
    k_blocks: usize,
    lane: usize,
    #[comptime] shape: Shape,
) {
    let k_block = min(k_block, k_blocks - 1);
    #[unroll]
    for i in 0..comptime!(shape.plan.row_tiles as usize) {
        let block = (min(tile + i, tiles - 1) * k_blocks + k_block) * comptime!(32 * shape.words());
        let own = comptime!(i * shape.words());
        let head = load_stream_x4(unsafe { words[block + lane * 4..].as_ptr_unchecked() });
        #[unroll]
        for w in 0..4usize {
            into[own + w] = head.extract(w);
        }
        if comptime!(shape.bits == 4) {
            let tail = load_stream_x4(unsafe { words[block + 128 + lane * 4..].as_ptr_unchecked() });
            #[unroll]
            for w in 0..4usize {
                into[own + 4 + w] = tail.extract(w);
            }
        }
        if comptime!(shape.bits == 3) {
            let tail = load_stream_x2(unsafe { words[block + 128 + lane * 2..].as_ptr_unchecked() });
            into[own + 4] = tail.extract(0usize);
            into[own + 5] = tail.extract(1usize);
        }
    }
}

/// The four pair indices of a fragment, one a byte ([`crate::pack`] has the layout).
#[cube]
fn fragment_indices(words: &Array<u32>, #[comptime] own: usize, #[comptime] fragment: usize, #[comptime] shape: Shape) -> u32 {
    let mut indices = 0u32.runtime();
    if comptime!(shape.bits == 4) {
        indices = words[own + fragment];
    }
    if comptime!(shape.bits == 3) {
        let first = comptime!(own + fragment / 4 * 3);
        if comptime!(fragment % 4 < 3) {
            indices = words[comptime!(first + fragment % 4)] & 0x3f3f_3f3fu32;
        } else {
            indices = ((words[first] >> 6u32) & 0x0303_0303u32)
                | ((words[first + 1] >> 4u32) & 0x0c0c_0c0cu32)
                | ((words[first + 2] >> 2u32) & 0x3030_3030u32);
        }
    }
    if comptime!(shape.bits == 2) {
        let word = words[comptime!(own + fragment / 2)];
        let low = word & 0x0f0f_0f0fu32;
        let high = (word >> 4u32) & 0x0f0f_0f0fu32;
        indices = permute(low, high, comptime!(if fragment % 2 == 0 { 0x5410u32 } else { 0x7632u32 }));
    }
    indices
}

/// Rows `token_first..` and columns from block `k_block` on of x, in lane order; what does not exist is 0.
///
/// The 16 bytes of lane t for the steps `2p` and `2p + 1` are the pairs at `32p + 8q + 2t` for q = 0…3.
#[cube]
fn stage<F: Float, X: Size>(
    x: &[Vector<F, X>],
    staged: &mut Shared<[U4]>,
    m: usize,
    k: usize,
    token_first: usize,
    k_block: usize,
    #[comptime] shape: Shape,
) {
    let eighths = comptime!(shape.plan.k_stage as usize / 8);
    let mut i = UNIT_POS as usize;
    while i < comptime!(shape.plan.tokens as usize) * eighths {
        let (row, eighth) = (i / eighths, i % eighths);
        let token = token_first + row;
        let mut vector = U4::new(0u32);
        #[unroll]
        for q in 0..4usize {
            let column = k_block * pack::BLOCK_K + eighth / 4 * 32 + eighth % 4 * 2 + q * 8;
            if token < m && column < k {
                vector.insert(q, x_pair::<F, X>(x, token * k + column, column + 1 < k, shape));
            }
        }
        staged[row * comptime!(shape.x_stride()) + eighth] = vector;
        i += comptime!(shape.planes() * 32);
    }
}

/// The elements `at` and, if there is one, `at + 1`.
#[cube]
fn x_pair<F: Float, X: Size>(x: &[Vector<F, X>], at: usize, both: bool, #[comptime] shape: Shape) -> u32 {
    let mut pair = Vector::<F, Const<2>>::new(F::new(0.0));
    if comptime!(shape.x_pairs) {
        let vector = x[at / 2];
        pair.insert(0usize, vector.extract(0usize));
        pair.insert(1usize, vector.extract(1usize));
    } else {
        pair.insert(0usize, x[at].extract(0usize));
        if both {
            pair.insert(1usize, x[at + 1].extract(0usize));
        }
    }
    u32::reinterpret(pair)
}

/// One accumulator: rows g and g + 8 of the tile, columns 2t and 2t + 1 of the token tile.
#[cube]
fn store<F: Float, Y: Float>(
    y: &mut [Y],
    bias: &[F],
    sum: F4,
    tile: usize,
    token_first: usize,
    lane: usize,
    m: usize,
    n: usize,
    #[comptime] shape: Shape,
) {
    let base = CUBE_POS_Z as usize * m * n;
    #[unroll]
    for i in 0..4usize {
        let row = tile * 16 + lane / 4 + comptime!(i / 2 * 8);
        let token = token_first + lane % 4 * 2 + comptime!(i % 2);
        // Spare columns of a cube with fewer than 8 tokens repeat the first ones.
        let own = lane % 4 * 2 + comptime!(i % 2) < comptime!((shape.plan.tokens as usize).min(8));
        if own && row < n && token < m {
            let mut value = sum.extract(i);
            if comptime!(shape.bias) {
                value += f32::cast_from(bias[row]);
            }
            y[base + token * n + row] = Y::cast_from(value);
        }
    }
}

/// `y[i] = Σ_s partials[s][i] + bias`, s ascending.
#[cube(launch_unchecked)]
fn fold_splits<F: Float>(
    partials: &[f32],
    bias: &[F],
    y: &mut [F],
    n: u32,
    #[comptime] split: u32,
    #[comptime] with_bias: bool,
) {
    let len = y.len();
    let mut i = ABSOLUTE_POS;
    while i < len {
        let mut sum = partials[i];
        #[unroll]
        for s in 1..comptime!(split as usize) {
            sum += partials[s * len + i];
        }
        if comptime!(with_bias) {
            sum += f32::cast_from(bias[i % n as usize]);
        }
        y[i] = F::cast_from(sum);
        i += CUBE_COUNT * CUBE_DIM as usize;
    }
}
