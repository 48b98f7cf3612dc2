//! The walk along k, and the sums on their way to memory.

use super::{
    Form, Shape,
    stage::{decode, fetch, store},
};
use crate::{
    CooperativePlan,
    kernel::portable::weight::{
        Words, fill, load_head, load_scales, load_tail, own_copy, own_tail,
    },
};
use cubecl::{
    cmma::{self, Matrix, MatrixIdent, MatrixLayout},
    ir::ElemType,
    prelude::*,
};

#[cube(launch_unchecked)]
pub(super) fn product<F: Float, Y: Float, N: Size>(
    x: &[Vector<F, N>],
    words: &[Words],
    scales: &[Vector<F, Const<2>>],
    pairs: &[Vector<F, Const<2>>],
    bias: &[F],
    y: &mut [Y],
    shape: Shape,
    #[comptime] form: Form,
    #[define(F, Y)] _dtypes: [ElemType; 2],
) {
    let w = comptime!(form.weight);
    let unit = UNIT_POS_X as usize;
    let copy = own_copy(w);
    let blocks = shape.k.div_ceil(128);
    let token = CUBE_POS_X as usize * comptime!(form.tokens);
    let own = CUBE_POS_Y as usize * comptime!(form.planes()) + UNIT_POS_Y as usize;
    let tile = min(own, shape.n.div_ceil(16) - 1);
    let first = CUBE_POS_Z as usize * shape.share;
    let end = min(first + shape.share, blocks);

    let mut head = load_head(words, tile * blocks + first, unit, w);
    let mut tail = load_tail(words, tile * blocks + first, unit, w);
    let mut factors = Array::<Vector<F, Const<2>>>::new(comptime!(128 / form.weight.fold));
    load_scales(scales, &mut factors, tile * shape.groups, first, 0usize, w);
    let mut values = Array::<Vector<F, N>>::new(comptime!(form.own_pieces() * form.loads()));
    fetch(x, &mut values, token, first * 128, &shape, form);

    let mut table = Shared::<[Vector<F, Const<2>>]>::new_slice(comptime!(w.entries() * w.copies));
    let mut weights = Shared::<[Vector<F, Const<2>>]>::new_aligned_slice(
        comptime!(form.stages * form.rows() * form.stride()),
        32usize,
    );
    let mut rows = Shared::<[Vector<F, Const<2>>]>::new_aligned_slice(
        comptime!(form.stages * form.tokens * form.stride()),
        32usize,
    );
    fill(&mut table, pairs, w);
    let mut sums = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(form.across * form.columns()) {
        sums.push(Matrix::<f32>::from_value(
            MatrixIdent::Accumulator,
            16usize,
            16usize,
            16usize,
            MatrixLayout::Undefined,
            0.0,
        ));
    }
    sync_cube();

    let mut block = first;
    while block < end {
        let next = min(block + 1, end - 1);
        let next_head = load_head(words, tile * blocks + next, unit, w);
        let next_tail = load_tail(words, tile * blocks + next, unit, w);
        let mut next_factors = Array::<Vector<F, Const<2>>>::new(comptime!(128 / form.weight.fold));
        load_scales(scales, &mut next_factors, tile * shape.groups, next, 0usize, w);
        let lane = (head, own_tail(tail, unit, w));
        #[unroll]
        for part in 0..comptime!(form.parts()) {
            let buffer = comptime!(part % form.stages);
            decode(&mut weights, &table, lane, &factors, copy, part, buffer, form);
            store(&mut rows, &values, buffer, form);
            let last = comptime!(part + 1 == form.parts());
            let mut column = block * 128 + comptime!((part + 1) * form.depth);
            if comptime!(last) {
                column = next * 128;
            }
            fetch(x, &mut values, token, column, &shape, form);
            sync_cube();
            multiply(&weights, &rows, &sums, buffer, form);
            // With two stages, whoever comes to write this one again has met all others behind the stage between.
            if comptime!(form.stages == 1) {
                sync_cube();
            }
        }
        head = next_head;
        tail = next_tail;
        #[unroll]
        for i in 0..comptime!(128 / form.weight.fold) {
            factors[i] = next_factors[i];
        }
        block += 1;
    }
    write(&sums, bias, y, token, &shape, form);
}

/// Of a plane: the tile of 16 rows of W that its first matrix has, and of 16 rows of x.
#[cube]
fn corner(#[comptime] form: Form) -> (usize, usize) {
    let side = comptime!(form.planes() / form.across);
    let plane = UNIT_POS_Y as usize;
    (plane % side * comptime!(form.across), plane / side * comptime!(form.columns()))
}

/// Adds the products of stage `buffer` to this plane's sums, columns ascending.
#[cube]
fn multiply<F: Float>(
    weights: &Shared<[Vector<F, Const<2>>]>,
    rows: &Shared<[Vector<F, Const<2>>]>,
    sums: &Sequence<Matrix<f32>>,
    #[comptime] buffer: usize,
    #[comptime] form: Form,
) {
    let (tile, tokens) = corner(form);
    let stride = comptime!((form.depth + CooperativePlan::PADDING) as u32);
    let of_tile = comptime!(16 * form.stride());
    // From the first pair of a matrix to behind its last.
    let extent = comptime!(15 * form.stride() + 8);
    #[unroll]
    for step in 0..comptime!(form.steps()) {
        let mut right = Sequence::<Matrix<Vector<F, Const<2>>>>::new();
        #[unroll]
        for i in 0..comptime!(form.across) {
            let from =
                (tile + i) * of_tile + comptime!(buffer * form.rows() * form.stride() + 8 * step);
            right.push(Matrix::<Vector<F, Const<2>>>::from_slice(
                MatrixIdent::B,
                16usize,
                16usize,
                16usize,
                MatrixLayout::ColMajor,
                &weights[from..from + extent],
                stride,
            ));
        }
        #[unroll]
        for j in 0..comptime!(form.columns()) {
            let from =
                (tokens + j) * of_tile + comptime!(buffer * form.tokens * form.stride() + 8 * step);
            let left = Matrix::<Vector<F, Const<2>>>::from_slice(
                MatrixIdent::A,
                16usize,
                16usize,
                16usize,
                MatrixLayout::RowMajor,
                &rows[from..from + extent],
                stride,
            );
            #[unroll]
            for i in 0..comptime!(form.across) {
                let sum = sums.index(comptime!(j * form.across + i));
                cmma::execute(&left, right.index(i), sum, sum);
            }
        }
    }
}

/// Writes what exists of this plane's sums, a matrix at a time, with the bias.
#[cube]
fn write<F: Float, Y: Float>(
    sums: &Sequence<Matrix<f32>>,
    bias: &[F],
    y: &mut [Y],
    token: usize,
    shape: &Shape,
    #[comptime] form: Form,
) {
    let (tile, tokens) = corner(form);
    let stride = comptime!(CooperativePlan::SUMS_ROW);
    let mut scratch =
        Shared::<[f32]>::new_aligned_slice(comptime!(form.planes() * 16 * stride), 32usize);
    let from = UNIT_POS_Y as usize * comptime!(16 * stride);
    #[unroll]
    for j in 0..comptime!(form.columns()) {
        #[unroll]
        for i in 0..comptime!(form.across) {
            cmma::store(
                &mut scratch[from..from + comptime!(16 * stride)],
                sums.index(comptime!(j * form.across + i)),
                comptime!(stride as u32),
                MatrixLayout::RowMajor,
            );
            sync_cube();
            let first_row = (CUBE_POS_Y as usize * comptime!(form.planes()) + tile + i) * 16;
            let first_token = token + (tokens + j) * 16;
            #[unroll]
            for few in 0..8usize {
                let at = UNIT_POS_X as usize + comptime!(32 * few);
                let (row, token) = (first_row + at % 16, first_token + at / 16);
                if row < shape.n && token < shape.m {
                    let mut sum = scratch[from + at / 16 * stride + at % 16];
                    if shape.biased == 1 {
                        sum += f32::cast_from(bias[row]);
                    }
                    let share = CUBE_POS_Z as usize * shape.m;
                    y[(share + token) * shape.n + row] = Y::cast_from(sum);
                }
            }
            sync_cube();
        }
    }
}
