//! The PTX of attention alone, that of prompts and that of decoding.

use crate::kernel::ptx::U4;
use cubecl::prelude::*;

/// Four 8×8 matrices of halves as [`crate::kernel::ptx::load_matrices`] takes them, each transposed.
#[cube]
pub(in crate::kernel) fn load_transposed(address: u32, #[comptime] distance: u32) -> U4 {
    let words: U4;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {w}, [{a} + {d}];",
        w = out(_) words, a = in(_) u32::reinterpret(address), d = const distance, options(nomem),
    );
    words
}

/// `2^x` within two units of the last place and 2^-22, relatively; 0 far below.
#[cube]
pub(in crate::kernel) fn exp2(x: f32) -> f32 {
    let y: f32;
    gpu_asm!(
        "ex2.approx.ftz.f32 {y}, {x};",
        y = out(_) y, x = in(_) f32::reinterpret(x), options(pure, nomem),
    );
    y
}

/// `1 / x` within a unit of the last place; 0 of infinity.
#[cube]
pub(in crate::kernel) fn reciprocal(x: f32) -> f32 {
    let y: f32;
    gpu_asm!(
        "rcp.approx.ftz.f32 {y}, {x};",
        y = out(_) y, x = in(_) f32::reinterpret(x), options(pure, nomem),
    );
    y
}

/// What the lane holds whose number differs in the bits of `mask`; all 32 lanes take part.
#[cube]
pub(in crate::kernel) fn exchange(value: f32, #[comptime] mask: u32) -> f32 {
    let other: f32;
    gpu_asm!(
        "shfl.sync.bfly.b32 {o}, {v}, {m}, 0x1f, 0xffffffff;",
        o = out(_) other, v = in(_) f32::reinterpret(value), m = const mask, options(nomem),
    );
    other
}

/// Two sums as a pair of halves, `low` in the low bits. `ty` is `f16` or `bf16`.
#[cube]
pub(in crate::kernel) fn pack(low: f32, high: f32, #[comptime] ty: &str) -> u32 {
    let pair: u32;
    gpu_asm!(
        "cvt.rn.{ty}x2.f32 {p}, {h}, {l};",
        p = out(_) pair, h = in(_) f32::reinterpret(high), l = in(_) f32::reinterpret(low),
        options(pure, nomem),
    );
    pair
}

/// Whether some lane has `value`; all 32 take part.
#[cube]
pub(in crate::kernel) fn any(value: bool) -> bool {
    let some: u32;
    let own = select(value, 1u32, 0u32);
    gpu_asm!(
        "{{ .reg .pred p; setp.ne.u32 p, {v}, 0; vote.sync.any.pred p, p, 0xffffffff; selp.u32 {s}, 1, 0, p; }}",
        s = out(_) some, v = in(_) own, options(nomem),
    );
    some == 1u32
}
