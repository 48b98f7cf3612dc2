//! The PTX that CubeCL has no word for. CUDA only: whoever calls these is compiled for nothing else.

mod barrier;

pub(in crate::kernel) use barrier::{
    await_bytes, await_phase, expect_bytes, init_barrier, init_counter, show_barriers,
};
use cubecl::prelude::*;

pub(in crate::kernel) type U4 = Vector<u32, Const<4>>;
pub(in crate::kernel) type U2 = Vector<u32, Const<2>>;
pub(in crate::kernel) type F2 = Vector<f32, Const<2>>;
pub(in crate::kernel) type F4 = Vector<f32, Const<4>>;

/// The 32-bit shared-memory address of a generic pointer.
#[cube]
pub(in crate::kernel) fn shared_address<T: CubePrimitive>(pointer: *const T) -> u32 {
    let address: u32;
    gpu_asm!(
        "{{ .reg .u64 t; cvta.to.shared.u64 t, {p}; cvt.u32.u64 {a}, t; }}",
        a = out(_) address, p = in(_) pointer, options(nomem),
    );
    address
}

/// `value`, computed after the last barrier: what depends on it cannot be moved before.
#[cube]
pub(in crate::kernel) fn after_barrier(value: u32) -> u32 {
    let same: u32;
    gpu_asm!("mov.b32 {s}, {v};", s = out(_) same, v = in(_) u32::reinterpret(value));
    same
}

/// Four words that nobody reads again soon, and that nobody writes while the kernel runs: past L1, with the next half
/// line fetched into L2. About 5 % over a plain load on an H200, on every shape tried. Neither pure nor `.nc`: such
/// loads the compilers move below the next barrier, where their latency begins anew.
#[cube]
pub(in crate::kernel) fn load_stream_x4(source: &[u32], at: usize) -> U4 {
    let words: U4;
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    gpu_asm!(
        "ld.global.L1::no_allocate.L2::128B.v4.u32 {w}, [{p}];",
        w = out(_) words, p = in(_) pointer, options(nomem),
    );
    words
}

/// Two floats, asked for where it stands, as [`load_stream_x4`].
#[cube]
pub(in crate::kernel) fn load_floats(source: &[F2], at: usize) -> F2 {
    let floats: F2;
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    gpu_asm!(
        "ld.global.v2.f32 {w}, [{p}];",
        w = out(_) floats, p = in(_) pointer, options(nomem),
    );
    floats
}

/// Four words, asked for where it stands, as [`load_stream_x4`].
#[cube]
pub(in crate::kernel) fn load_x4<T: CubePrimitive>(source: &[T], at: usize) -> U4 {
    let words: U4;
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    gpu_asm!("ld.global.v4.b32 {w}, [{p}];", w = out(_) words, p = in(_) pointer, options(nomem));
    words
}

/// Two words, as [`load_stream_x4`].
#[cube]
pub(in crate::kernel) fn load_stream_x2(source: &[u32], at: usize) -> U2 {
    let words: U2;
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    gpu_asm!(
        "ld.global.L1::no_allocate.L2::128B.v2.u32 {w}, [{p}];",
        w = out(_) words, p = in(_) pointer, options(nomem),
    );
    words
}

/// Two halves, asked for where it stands, as [`load_stream_x4`].
#[cube]
pub(in crate::kernel) fn load_pair<F: Float>(source: &[Vector<F, Const<2>>], at: usize) -> u32 {
    let pair: u32;
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    gpu_asm!("ld.global.b32 {w}, [{p}];", w = out(_) pair, p = in(_) pointer, options(nomem));
    pair
}

/// A word, asked for where it stands, as [`load_stream_x4`].
#[cube]
pub(in crate::kernel) fn load_word<T: CubePrimitive>(source: &[T], at: usize) -> u32 {
    let word: u32;
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    gpu_asm!("ld.global.b32 {w}, [{p}];", w = out(_) word, p = in(_) pointer, options(nomem));
    word
}

/// The pair that byte `slot` of `indices` names. `table` is the lane's own copy, entries 128 bytes apart, so that no
/// two lanes ever meet in a bank.
///
/// `dp4a` against one byte of 128 takes the byte, scales it and adds the base in one instruction, where `prmt` and
/// `mad` are two: the eight fragments of a block went from about 140 to 78 instructions (SASS of a Hopper GPU).
#[cube]
pub(in crate::kernel) fn lookup(indices: u32, table: u32, #[comptime] slot: u32) -> u32 {
    let pair: u32;
    gpu_asm!(
        "{{ .reg .b32 a; dp4a.u32.u32 a, {i}, {s}, {t}; ld.shared.b32 {p}, [a]; }}",
        i = in(_) u32::reinterpret(indices), t = in(_) u32::reinterpret(table), s = const 128u32 << (8 * slot),
        p = out(_) pair, options(pure, nomem),
    );
    pair
}

/// The two pairs that byte `slot` of `indices` names in a table of quads, entries 128 bytes apart.
#[cube]
pub(in crate::kernel) fn lookup_quad(indices: u32, table: u32, #[comptime] slot: u32) -> U2 {
    let pairs: U2;
    gpu_asm!(
        "{{ .reg .b32 a; dp4a.u32.u32 a, {i}, {s}, {t}; ld.shared.v2.b32 {p}, [a]; }}",
        i = in(_) u32::reinterpret(indices), t = in(_) u32::reinterpret(table), s = const 128u32 << (8 * slot),
        p = out(_) pairs, options(pure, nomem),
    );
    pairs
}

/// A pair of halves times half `which` of `scales`, rounded once. `ty` is `f16` or `bf16`.
#[cube]
pub(in crate::kernel) fn scale_pair(
    pair: u32,
    scales: u32,
    #[comptime] which: u32,
    #[comptime] ty: &str,
) -> u32 {
    let scaled: u32;
    gpu_asm!(
        "{{ .reg .b32 s; prmt.b32 s, {s}, {s}, {which}; mul.rn.{ty}x2 {d}, {p}, s; }}",
        p = in(_) u32::reinterpret(pair), s = in(_) u32::reinterpret(scales), d = out(_) scaled,
        which = const if which == 0 { 0x1010 } else { 0x3232 }, options(pure, nomem),
    );
    scaled
}

/// Four 8×8 matrices of halves, whose rows of 16 bytes lie `distance` from the lanes' addresses. Not pure: what lies
/// there changes between barriers.
#[cube]
pub(in crate::kernel) fn load_matrices(address: u32, #[comptime] distance: u32) -> U4 {
    let words: U4;
    gpu_asm!(
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {w}, [{a} + {d}];",
        w = out(_) words, a = in(_) u32::reinterpret(address), d = const distance, options(nomem),
    );
    words
}

/// Two of them, at the addresses of the first 16 lanes.
#[cube]
pub(in crate::kernel) fn load_two_matrices(address: u32) -> U2 {
    let words: U2;
    gpu_asm!("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {w}, [{a}];", w = out(_) words, a = in(_) u32::reinterpret(address), options(nomem));
    words
}

/// 16 bytes from memory to the shared address `target` without passing through registers: the first `bytes` of them,
/// the others are 0. There after [`await_copies`].
#[cube]
pub(in crate::kernel) fn copy_async<T: CubePrimitive>(
    source: &[T],
    at: usize,
    target: u32,
    bytes: u32,
) {
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    gpu_asm!(
        "cp.async.cg.shared.global [{t}], [{p}], 16, {b};",
        t = in(_) u32::reinterpret(target), p = in(_) pointer, b = in(_) u32::reinterpret(bytes),
    );
}

/// 16, 8 or 4 bytes that nobody reads again soon, as [`copy_async`] copies them.
#[cube]
pub(in crate::kernel) fn copy_stream<T: CubePrimitive>(
    source: &[T],
    at: usize,
    target: u32,
    #[comptime] distance: u32,
    exists: bool,
    #[comptime] bytes: u32,
) {
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    let kept = if exists { bytes } else { 0u32 };
    gpu_asm!(
        "cp.async.{how} [{t} + {d}], [{p}], {b}, {kept};",
        how = const if bytes == 16 { "cg.shared.global.L2::128B" } else { "ca.shared.global" },
        t = in(_) u32::reinterpret(target), d = const distance, p = in(_) pointer, b = const bytes,
        kept = in(_) u32::reinterpret(kept),
    );
}

/// 16 bytes as [`copy_stream`] copies them, from `ahead` bytes behind the place `at`.
#[cube]
pub(in crate::kernel) fn copy_stream_ahead<T: CubePrimitive>(
    source: &[T],
    at: usize,
    #[comptime] ahead: u32,
    target: u32,
    #[comptime] distance: u32,
    exists: bool,
) {
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    let kept = if exists { 16u32 } else { 0u32 };
    gpu_asm!(
        "cp.async.cg.shared.global.L2::128B [{t} + {d}], [{p} + {o}], 16, {kept};",
        t = in(_) u32::reinterpret(target), d = const distance, p = in(_) pointer, o = const ahead,
        kept = in(_) u32::reinterpret(kept),
    );
}

/// Ends a group of the unit's copies.
#[cube]
pub(in crate::kernel) fn commit_copies() {
    gpu_asm!("cp.async.commit_group;");
}

/// Whether this is the one lane of its plane, always the same, that does what one lane is enough for. The compiler knows that it is
/// one, and so keeps what bulk copies want in registers of the plane.
#[cube]
pub(in crate::kernel) fn elect() -> bool {
    let elected: u32;
    gpu_asm!(
        "{{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 {e}, 1, 0, p; }}",
        e = out(_) elected,
    );
    elected == 1u32
}

/// `bytes` from memory to a distance from the shared address `target`, one unit's work. The barrier counts them.
#[cube]
pub(in crate::kernel) fn copy_bulk<T: CubePrimitive>(
    source: &[T],
    at: usize,
    target: u32,
    #[comptime] distance: u32,
    #[comptime] bytes: u32,
    barrier: u32,
) {
    // SAFETY: the caller's index; the kernel's launch measured the buffer.
    let pointer = unsafe { source[at..].as_ptr_unchecked() };
    gpu_asm!(
        "{{ .reg .b32 t; add.u32 t, {t}, {d}; cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [t], [{p}], {n}, [{b}]; }}",
        t = in(_) u32::reinterpret(target), d = const distance, p = in(_) pointer, n = const bytes,
        b = in(_) u32::reinterpret(barrier),
    );
}

/// Waits for the unit's own groups of copies but the `newest`.
#[cube]
pub(in crate::kernel) fn await_groups(#[comptime] newest: u32) {
    gpu_asm!("cp.async.wait_group {n};", n = const newest);
}

/// Four words at a distance from a shared address. Not pure, as [`load_matrices`].
#[cube]
pub(in crate::kernel) fn load_shared_x4(address: u32, #[comptime] distance: u32) -> U4 {
    let words: U4;
    gpu_asm!(
        "ld.shared.v4.u32 {w}, [{a} + {d}];",
        w = out(_) words, a = in(_) u32::reinterpret(address), d = const distance, options(nomem),
    );
    words
}

/// Four sums, as [`load_shared_x4`].
#[cube]
pub(in crate::kernel) fn load_shared_f4(address: u32, #[comptime] distance: u32) -> F4 {
    F4::reinterpret(load_shared_x4(address, distance))
}

/// Two words, as [`load_shared_x4`].
#[cube]
pub(in crate::kernel) fn load_shared_x2(address: u32, #[comptime] distance: u32) -> U2 {
    let words: U2;
    gpu_asm!(
        "ld.shared.v2.u32 {w}, [{a} + {d}];",
        w = out(_) words, a = in(_) u32::reinterpret(address), d = const distance, options(nomem),
    );
    words
}

/// A word, as [`load_shared_x4`].
#[cube]
pub(in crate::kernel) fn load_shared(address: u32, #[comptime] distance: u32) -> u32 {
    let word: u32;
    gpu_asm!(
        "ld.shared.u32 {w}, [{a} + {d}];",
        w = out(_) word, a = in(_) u32::reinterpret(address), d = const distance, options(nomem),
    );
    word
}

/// Waits for the unit's own copies; those of others take a barrier.
#[cube]
pub(in crate::kernel) fn await_copies() {
    gpu_asm!("cp.async.wait_all;");
}

/// A barrier of all cubes of the cluster, which makes their shared memory seen.
#[cube]
pub(in crate::kernel) fn sync_cluster() {
    gpu_asm!("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;");
}

/// Says to all cubes of the cluster that this one has begun, or come so far; what it has written is not seen by that.
#[cube]
pub(in crate::kernel) fn arrive_cluster() {
    gpu_asm!("barrier.cluster.arrive.relaxed.aligned;");
}

/// Waits until all cubes of the cluster have said so.
#[cube]
pub(in crate::kernel) fn await_cluster() {
    gpu_asm!("barrier.cluster.wait.acquire.aligned;");
}

/// Pushes four words to the shared address `address` of the cluster's cube `rank`, whose counter lies at `counter` and counts
/// them.
#[cube]
pub(in crate::kernel) fn push_cluster_x4(words: U4, address: u32, rank: u32, counter: u32) {
    gpu_asm!(
        "{{ .reg .b32 a, c; mapa.shared::cluster.u32 a, {p}, {r}; mapa.shared::cluster.u32 c, {b}, {r}; st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [a], {v}, [c]; }}",
        p = in(_) u32::reinterpret(address), r = in(_) u32::reinterpret(rank),
        b = in(_) u32::reinterpret(counter), v = in(_) U4::reinterpret(words),
    );
}

/// A barrier of the first `units` units of the cube, beside that of them all.
#[cube]
pub(in crate::kernel) fn sync_some(#[comptime] units: u32) {
    gpu_asm!("bar.sync 1, {n};", n = const units);
}

/// Four sums at a distance from the shared address `address` of the cluster's cube `rank`.
#[cube]
pub(in crate::kernel) fn load_cluster_x4(
    address: u32,
    #[comptime] rank: u32,
    #[comptime] distance: u32,
) -> F4 {
    let sums: F4;
    gpu_asm!(
        "{{ .reg .b32 a; mapa.shared::cluster.u32 a, {p}, {r}; ld.shared::cluster.v4.f32 {v}, [a + {d}]; }}",
        v = out(_) sums, p = in(_) u32::reinterpret(address), r = const rank, d = const distance,
    );
    sums
}

/// `a · b + c` of one 16×8×16 tile, sums in f32. `ty` is `f16` or `bf16`.
#[cube]
pub(in crate::kernel) fn mma(
    a0: u32,
    a1: u32,
    a2: u32,
    a3: u32,
    b0: u32,
    b1: u32,
    c: F4,
    #[comptime] ty: &str,
) -> F4 {
    let d: F4;
    gpu_asm!(
        "mma.sync.aligned.m16n8k16.row.col.f32.{ty}.{ty}.f32 {d}, {{{a0}, {a1}, {a2}, {a3}}}, {{{b0}, {b1}}}, {c};",
        a0 = in(_) u32::reinterpret(a0), a1 = in(_) u32::reinterpret(a1), a2 = in(_) u32::reinterpret(a2), a3 = in(_) u32::reinterpret(a3), b0 = in(_) u32::reinterpret(b0), b1 = in(_) u32::reinterpret(b1), c = in(_) c, d = out(_) d, options(pure, nomem),
    );
    d
}

/// Eight by eight sums of a plane, rounded and turned: a lane gives elements 2t and 2t + 1 of row g, and gets those rows of
/// column g.
#[cube]
pub(in crate::kernel) fn pack_transposed(even: f32, odd: f32, #[comptime] ty: &str) -> u32 {
    let turned: u32;
    gpu_asm!(
        "{{ .reg .b32 t; cvt.rn.{ty}x2.f32 t, {o}, {e}; movmatrix.sync.aligned.m8n8.trans.b16 {d}, t; }}",
        d = out(_) turned, o = in(_) f32::reinterpret(odd), e = in(_) f32::reinterpret(even),
        options(nomem),
    );
    turned
}
