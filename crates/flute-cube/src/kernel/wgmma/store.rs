//! From the sums of a warpgroup to y.

use super::Shape;
use cubecl::prelude::*;

/// The sums of a plane: 16 rows from `row_first` on, tokens from `token_first` on ([`super::chain::multiply`] has
/// their order). Where two rows make a word, they are turned so that eight lanes write 32 bytes of a token: the lane
/// of row g and tokens 2t, 2t + 1 takes token g and rows 2t, 2t + 1.
#[cube]
pub(super) fn store<F: Float, Y: Float, D: Size>(
    y: &mut [Y],
    bias: &[F],
    sums: Vector<f32, D>,
    row_first: usize,
    token_first: usize,
    m: usize,
    n: usize,
    #[comptime] shape: Shape,
) {
    let lane = (UNIT_POS % 32) as usize;
    let (g, t) = (lane / 4, lane % 4);
    let base = CUBE_POS_Y as usize * m * n;
    #[unroll]
    for half in 0..2usize {
        let row = row_first + g + comptime!(8 * half);
        let mut add = Array::<f32>::new(1usize);
        add[0] = 0.0f32;
        if comptime!(shape.bias) {
            add[0] = f32::cast_from(bias[min(row, n - 1)]);
        }
        #[unroll]
        for j in 0..comptime!(shape.plan.chunk as usize / 8) {
            let even = sums.extract(comptime!(4 * j + 2 * half)) + add[0];
            let odd = sums.extract(comptime!(4 * j + 2 * half + 1)) + add[0];
            if comptime!(shape.y_pairs) {
                let turned = pack_transposed(even, odd, comptime!(shape.ty()));
                let token = token_first + comptime!(8 * j) + g;
                let row = row_first + comptime!(8 * half) + 2 * t;
                if token < m && row < n {
                    // SAFETY: below m and n, and n is even.
                    let to = unsafe { y[token * n + row..].as_ptr_unchecked() };
                    gpu_asm!("st.global.b32 [{p}], {v};", p = in(_) to, v = in(_) u32::reinterpret(turned));
                }
            } else {
                let token = token_first + comptime!(8 * j) + 2 * t;
                if row < n {
                    if token < m {
                        y[base + token * n + row] = Y::cast_from(even);
                    }
                    if token + 1 < m {
                        y[base + (token + 1) * n + row] = Y::cast_from(odd);
                    }
                }
            }
        }
    }
}

/// Eight by eight sums of a plane, rounded to pairs and turned.
#[cube]
fn pack_transposed(even: f32, odd: f32, #[comptime] ty: &str) -> u32 {
    let turned: u32;
    gpu_asm!(
        "{{ .reg .b32 t; cvt.rn.{ty}x2.f32 t, {o}, {e}; movmatrix.sync.aligned.m8n8.trans.b16 {d}, t; }}",
        d = out(_) turned, o = in(_) f32::reinterpret(odd), e = in(_) f32::reinterpret(even),
        options(nomem),
    );
    turned
}
