//! Weights back to what they stand for: `W[n, k] = round(table[code] · scale)`, for every runtime.
//!
//! From some hundred rows of x on, a dense product is bound by arithmetic, and a kernel that decodes a weight again for
//! every tile of tokens loses to one that decodes it once: the dense product of whoever calls does the rest. The price
//! is memory for the dense weight and one rounding of every weight.
//!
//! A plane decodes a block of 16 rows by 128 of k at a time. m plays no part; n and k are run-time values. On CUDA the
//! four lanes of a row turn what they hold of two fragments, so that each writes 16 bytes and all of them 64 in a row.

use super::{
    portable::{
        Form,
        weight::{Words, fill, load_head, load_scales, load_tail, look_up, own_copy, own_tail},
    },
    ptx::U4,
};
use crate::{
    Dtype, Operands, PackedWeight, Problem, launch,
    pack::{BLOCK_K, BLOCK_ROWS, padded_groups},
};
use cubecl::{ir::ElemType, prelude::*, server::Handle};

/// Planes of a cube.
const PLANES: usize = 8;
/// Cubes of one launch: those that run at once have filled their table, and take the other blocks too.
const MAX_CUBES: usize = 2048;

/// Writes the weight of `operands`, whose lengths were checked for `problem`, into `dense`.
pub(crate) fn launch(client: &Client, problem: &Problem, operands: &Operands, dense: &Handle) {
    let Problem { n, k, format, dtype, .. } = *problem;
    let hardware = &client.properties().hardware;
    let planes = PLANES.min(hardware.max_units_per_cube as usize / 32).max(1);
    let turned = client.name() == "cuda"
        && dtype != Dtype::F32
        && k.is_multiple_of(8)
        && dense.offset_start.unwrap_or(0).is_multiple_of(16);
    let (fold, span) = Form::scaling(format.group, k);
    let form = Form {
        bits: format.bits.get().into(),
        fold,
        span,
        whole: k.is_multiple_of(2),
        planes,
        tokens: 1,
        copies: if turned { 32 } else { 8 },
        rounds: 1,
        tiles: 1,
    };
    let blocks = n.div_ceil(BLOCK_ROWS) * k.div_ceil(BLOCK_K);
    // Where a table of a copy for every lane is filled, as many as run at once.
    let most = if turned { 4 * launch::limits(client).processors } else { MAX_CUBES };
    let cubes = blocks.div_ceil(planes).min(most).min(hardware.max_cube_count.0 as usize);
    let width = if form.whole { 2 } else { 1 };
    // SAFETY: words, scales and pairs were measured against the problem and so was `dense`; blocks beyond the last
    // are not read, and rows beyond n and columns beyond k are not written.
    unsafe {
        decode::launch_unchecked(
            client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_2d(32, planes as u32),
            width,
            BufferArg::from_raw_parts(
                operands.words.clone(),
                PackedWeight::words_len(n, k, format) / 4,
            ),
            BufferArg::from_raw_parts(
                operands.scales.clone(),
                PackedWeight::scales_len(n, k, format) / 2,
            ),
            BufferArg::from_raw_parts(operands.pairs.clone(), format.bits.pairs()),
            BufferArg::from_raw_parts(dense.clone(), n * k / width),
            n,
            k,
            padded_groups(k, format),
            form,
            turned,
            dtype.elem(),
        );
    }
}

#[cube(launch_unchecked)]
fn decode<F: Float, W: Size>(
    words: &[Words],
    scales: &[Vector<F, Const<2>>],
    pairs: &[Vector<F, Const<2>>],
    dense: &mut [Vector<F, W>],
    n: usize,
    k: usize,
    groups: usize,
    #[comptime] form: Form,
    #[comptime] turned: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut table =
        Shared::<[Vector<F, Const<2>>]>::new_slice(comptime!(form.entries() * form.copies));
    fill(&mut table, pairs, form);
    sync_cube();

    let unit = UNIT_POS_X as usize;
    let (g, t) = (unit / 4, unit % 4);
    let copy = own_copy(form);
    let k_blocks = k.div_ceil(BLOCK_K);
    let blocks = n.div_ceil(BLOCK_ROWS) * k_blocks;
    let mut block = CUBE_POS_X as usize * form.planes + UNIT_POS_Y as usize;
    while block < blocks {
        let (tile, kb) = (block / k_blocks, block % k_blocks);
        let mut pieces = Array::<u32>::new(8usize);
        let head = load_head(words, block, unit, form);
        let tail = own_tail(load_tail(words, block, unit, form), unit, form);
        let mut factors = Array::<Vector<F, Const<2>>>::new(comptime!(128 / form.fold));
        load_scales(scales, &mut factors, tile * groups, kb, 0usize, form);
        #[unroll]
        for part in 0..comptime!(128 / form.fold) {
            let scale = Vector::<f32, Const<2>>::cast_from(factors[part]);
            #[unroll]
            for f in comptime!(part * form.fold / 16)..comptime!((part + 1) * form.fold / 16) {
                #[unroll]
                for j in 0..4usize {
                    let pair = look_up(&table, head, tail, copy, f, j, form);
                    let row = tile * BLOCK_ROWS + g + comptime!(8 * (j % 2));
                    let col = kb * BLOCK_K + 2 * t + comptime!(16 * f + 8 * (j / 2));
                    let factor = scale.extract(comptime!(j % 2));
                    let (even, odd) =
                        (pair.extract(0usize) * factor, pair.extract(1usize) * factor);
                    if comptime!(turned) {
                        let mut both = Vector::<F, Const<2>>::new(F::cast_from(even));
                        both.insert(1usize, F::cast_from(odd));
                        pieces[comptime!(f % 2 * 4 + j)] = u32::reinterpret(both);
                    } else if row < n && col < k {
                        if comptime!(form.whole) {
                            let mut both = Vector::<F, W>::new(F::cast_from(even));
                            both.insert(1usize, F::cast_from(odd));
                            dense[(row * k + col) / 2] = both;
                        } else {
                            dense[row * k + col] = Vector::<F, W>::new(F::cast_from(even));
                            if col + 1 < k {
                                dense[row * k + col + 1] = Vector::<F, W>::new(F::cast_from(odd));
                            }
                        }
                    }
                }
                if comptime!(turned && f % 2 == 1) {
                    let col = kb * BLOCK_K + 8 * t + comptime!(16 * (f - 1));
                    #[unroll]
                    for half in 0..2usize {
                        let row = tile * BLOCK_ROWS + g + comptime!(8 * half);
                        let vector = turn(&pieces, t as u32, half);
                        if row < n && col < k {
                            // SAFETY: below n and k, whose rows are whole vectors.
                            let to =
                                unsafe { dense[(row * k + col) / W::value()..].as_ptr_unchecked() };
                            gpu_asm!("st.global.v4.b32 [{p}], {v};", p = in(_) to, v = in(_) U4::reinterpret(vector));
                        }
                    }
                }
            }
        }
        block += CUBE_COUNT_X as usize * form.planes;
    }
}

/// Of four eights of columns of a row, of which each of four lanes holds two columns, the one that is lane `t`'s. `pieces`
/// are the pairs of two fragments; `half` says whose row.
#[cube]
fn turn(pieces: &Array<u32>, t: u32, #[comptime] half: usize) -> U4 {
    let mut own = Array::<u32>::new(4usize);
    #[unroll]
    for eight in 0..4usize {
        own[eight] = pieces[comptime!(2 * eight + half)];
    }
    // What belongs to the other lane of a pair is traded, then the same among pairs.
    #[unroll]
    for bit in 0..2usize {
        let upper = (t >> comptime!(bit as u32)) & 1u32 == 1u32;
        #[unroll]
        for pair in 0..2usize {
            let low = comptime!(if bit == 0 { 2 * pair } else { pair });
            let high = comptime!(low + (1 << bit));
            let got = plane_shuffle_xor(select(upper, own[low], own[high]), comptime!(1u32 << bit));
            own[low] = select(upper, got, own[low]);
            own[high] = select(upper, own[high], got);
        }
    }
    let mut vector = U4::new(own[0]);
    #[unroll]
    for piece in 1..4usize {
        vector.insert(piece, own[piece]);
    }
    vector
}
