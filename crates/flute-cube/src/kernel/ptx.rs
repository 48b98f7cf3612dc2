//! The PTX that CubeCL has no word for. CUDA only: whoever calls these is compiled for nothing else.

use cubecl::prelude::*;

pub(super) type U4 = Vector<u32, Const<4>>;
pub(super) type U2 = Vector<u32, Const<2>>;
pub(super) type F4 = Vector<f32, Const<4>>;

/// The 32-bit shared-memory address of a generic pointer.
#[cube]
pub(super) fn shared_address(pointer: *const U4) -> u32 {
    let address: u32;
    gpu_asm!(
        "{{ .reg .u64 t; cvta.to.shared.u64 t, {p}; cvt.u32.u64 {a}, t; }}",
        a = out(_) address, p = in(_) pointer, options(nomem),
    );
    address
}

/// `value`, computed after the last barrier: what depends on it cannot be moved before.
#[cube]
pub(super) fn after_barrier(value: u32) -> u32 {
    let same: u32;
    gpu_asm!("mov.b32 {s}, {v};", s = out(_) same, v = in(_) u32::reinterpret(value));
    same
}

/// Four words that nobody reads again soon, and that nobody writes while the kernel runs: past L1, with the next half
/// line fetched into L2. About 5 % over a plain load on an H200, on every shape tried.
#[cube]
pub(super) fn load_stream_x4(pointer: *const u32) -> U4 {
    let words: U4;
    gpu_asm!(
        "ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {w}, [{p}];",
        w = out(_) words, p = in(_) pointer, options(pure, nomem),
    );
    words
}

/// Two words, as [`load_stream_x4`].
#[cube]
pub(super) fn load_stream_x2(pointer: *const u32) -> U2 {
    let words: U2;
    gpu_asm!(
        "ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {w}, [{p}];",
        w = out(_) words, p = in(_) pointer, options(pure, nomem),
    );
    words
}

/// The pair that byte `slot` of `indices` names. `table` is the lane's own copy, entries 128 bytes apart, so that no
/// two lanes ever meet in a bank. `prmt` takes the byte (the integer unit) and `mad` makes the address (the
/// multiplier): shift and mask would both be the integer unit's.
#[cube]
pub(super) fn lookup(indices: u32, table: u32, #[comptime] slot: u32) -> u32 {
    let pair: u32;
    gpu_asm!(
        "{{ .reg .b32 a; prmt.b32 a, {i}, 0, {s}; mad.lo.u32 a, a, 128, {t}; ld.shared.b32 {p}, [a]; }}",
        i = in(_) u32::reinterpret(indices), t = in(_) u32::reinterpret(table), s = const 0x4440 + slot, p = out(_) pair, options(pure, nomem),
    );
    pair
}

/// Bytes of `low` and `high` in the order that the nibbles of `selector` name.
#[cube]
pub(super) fn permute(low: u32, high: u32, #[comptime] selector: u32) -> u32 {
    let bytes: u32;
    gpu_asm!(
        "prmt.b32 {d}, {l}, {h}, {s};",
        d = out(_) bytes, l = in(_) u32::reinterpret(low), h = in(_) u32::reinterpret(high), s = const selector, options(pure, nomem),
    );
    bytes
}

/// `a · b + c` of one 16×8×16 tile, sums in f32. `ty` is `f16` or `bf16`.
#[cube]
pub(super) fn mma(a0: u32, a1: u32, a2: u32, a3: u32, b0: u32, b1: u32, c: F4, #[comptime] ty: &str) -> F4 {
    let d: F4;
    gpu_asm!(
        "mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {d}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {c};",
        a0 = in(_) u32::reinterpret(a0), a1 = in(_) u32::reinterpret(a1), a2 = in(_) u32::reinterpret(a2), a3 = in(_) u32::reinterpret(a3), b0 = in(_) u32::reinterpret(b0), b1 = in(_) u32::reinterpret(b1), c = in(_) c, d = out(_) d, options(pure, nomem),
    );
    d
}
