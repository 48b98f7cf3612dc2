//! Some rows of a weight, decoded: a unit looks up a pair of neighbours of one row.

use crate::{
    PackedWeight, Problem,
    pack::{BLOCK_K, BLOCK_ROWS, padded_groups},
    rows::RowOperands,
};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

const UNITS: usize = 256;
/// Cubes of one launch; those that run at once take the other pairs too.
const MAX_CUBES: usize = 8192;

/// Writes the rows that `operands.ids` names, `problem.m` of them, to `y`; all buffers were measured for `problem`.
pub(crate) fn launch(client: &Client, problem: &Problem, operands: &RowOperands, y: &Handle) {
    let Problem { m, n, k, format, dtype, .. } = *problem;
    let hardware = &client.properties().hardware;
    let units = UNITS.min(hardware.max_units_per_cube as usize);
    let pairs = m * k.div_ceil(2);
    let cubes = pairs.div_ceil(units).min(MAX_CUBES).min(hardware.max_cube_count.0 as usize);
    // SAFETY: the buffers hold what the problem says; ids beyond the last row are taken for the last row, and columns
    // beyond k are not written.
    unsafe {
        rows::launch_unchecked(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_1d(units as u32),
            BufferArg::from_raw_parts(
                operands.words.clone(),
                PackedWeight::words_len(n, k, format),
            ),
            BufferArg::from_raw_parts(
                operands.scales.clone(),
                PackedWeight::scales_len(n, k, format),
            ),
            BufferArg::from_raw_parts(operands.pairs.clone(), 2 * format.bits.pairs()),
            BufferArg::from_raw_parts(operands.ids.clone(), m),
            BufferArg::from_raw_parts(y.clone(), m * k),
            m,
            n,
            k,
            padded_groups(k, format),
            format.group.len(k.next_multiple_of(BLOCK_K)),
            usize::from(format.bits.get()),
            dtype.elem(),
        );
    }
}

#[cube(launch_unchecked)]
fn rows<F: Float>(
    words: &[u32],
    scales: &[F],
    pairs: &[F],
    ids: &[i32],
    y: &mut [F],
    tokens: usize,
    n: usize,
    k: usize,
    groups: usize,
    group: usize,
    #[comptime] bits: usize,
    #[define(F)] _dtype: ElemType,
) {
    let per_row = k.div_ceil(2);
    let k_blocks = k.div_ceil(BLOCK_K);
    let mut at = ABSOLUTE_POS;
    while at < tokens * per_row {
        let (token, pair) = (at / per_row, at % per_row);
        let row = (ids[token] as usize).min(n - 1);
        let (tile, in_tile) = (row / BLOCK_ROWS, row % BLOCK_ROWS);
        let (g, lower) = (in_tile % 8, in_tile / 8);
        // A fragment covers eight pairs; the slots of a lane are two rows of two pairs.
        let in_block = pair % (BLOCK_K / 2);
        let (f, t, right) = (in_block / 8, in_block % 4, in_block % 8 / 4);
        let slot = lower + 2 * right;
        let block = (tile * k_blocks + pair / (BLOCK_K / 2)) * comptime!(64 * bits);
        let lane = 4 * g + t;
        let index = if comptime!(bits == 4) {
            words[block + word_at(lane, f, bits)] >> (8 * slot) as u32 & 255
        } else if comptime!(bits == 2) {
            let shift = 16 * (f % 2) + 4 * slot;
            words[block + word_at(lane, f / 2, bits)] >> shift as u32 & 15
        } else {
            let first = f / 4 * 3;
            if f % 4 < 3 {
                words[block + word_at(lane, first + f % 4, bits)] >> (8 * slot) as u32 & 63
            } else {
                let shift = (8 * slot + 6) as u32;
                let low = words[block + word_at(lane, first, bits)] >> shift & 3;
                let middle = words[block + word_at(lane, first + 1, bits)] >> shift & 3;
                let high = words[block + word_at(lane, first + 2, bits)] >> shift & 3;
                low | middle << 2 | high << 4
            }
        };
        let column = 2 * pair;
        let scale = (tile * groups + column / group) * BLOCK_ROWS + 2 * g + lower;
        let scale = f32::cast_from(scales[scale]);
        let (index, out) = (2 * index as usize, token * k + column);
        y[out] = F::cast_from(f32::cast_from(pairs[index]) * scale);
        if column + 1 < k {
            y[out + 1] = F::cast_from(f32::cast_from(pairs[index + 1]) * scale);
        }
        at += CUBE_COUNT * CUBE_DIM as usize;
    }
}

/// Where word `w` of `lane` lies in a block.
#[cube]
fn word_at(lane: usize, w: usize, #[comptime] bits: usize) -> usize {
    let mut at = lane * 4 + w;
    if comptime!(bits > 2) && w >= 4 {
        at = 128 + lane * comptime!(2 * bits - 4) + w - 4;
    }
    at
}
