//! Barriers in shared memory (`mbarrier`) that count arrivals and bytes, Hopper and later: what copies without lanes are
//! waited for by.

use cubecl::prelude::*;

/// Makes a barrier at a distance from a shared address, for `arrivals` a phase; seen by nobody but its maker before
/// [`show_barriers`].
#[cube]
pub(in crate::kernel) fn init_barrier(
    barrier: u32,
    #[comptime] distance: u32,
    #[comptime] arrivals: u32,
) {
    gpu_asm!(
        "mbarrier.init.shared::cta.b64 [{b} + {d}], {n};",
        b = in(_) u32::reinterpret(barrier), d = const distance, n = const arrivals,
    );
}

/// Shows the barriers that the unit made to copies and, behind a barrier of units, to others.
#[cube]
pub(in crate::kernel) fn show_barriers() {
    gpu_asm!("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;");
}

/// Waits until the phase of `parity` of a barrier is over.
#[cube]
pub(in crate::kernel) fn await_phase(barrier: u32, parity: u32) {
    gpu_asm!(
        "{{ .reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [{b}], {p}; @p bra DONE; bra WAIT; DONE: }}",
        b = in(_) u32::reinterpret(barrier), p = in(_) u32::reinterpret(parity),
    );
}

/// Makes a counter of bytes that the cluster's cubes push, at a shared address; one unit's work, seen by the others of the
/// cluster after [`arrive_cluster`] and [`await_cluster`].
#[cube]
pub(in crate::kernel) fn init_counter(counter: u32) {
    gpu_asm!(
        "mbarrier.init.shared::cta.b64 [{b}], 1; fence.mbarrier_init.release.cluster;",
        b = in(_) u32::reinterpret(counter),
    );
}

/// Says how many bytes a counter waits for; once, by one unit. Some may have come before.
#[cube]
pub(in crate::kernel) fn expect_bytes(counter: u32, bytes: u32) {
    gpu_asm!(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [{b}], {n};",
        b = in(_) u32::reinterpret(counter), n = in(_) u32::reinterpret(bytes),
    );
}

/// Waits until a counter has got what it waits for the first time, which is seen then.
#[cube]
pub(in crate::kernel) fn await_bytes(counter: u32) {
    gpu_asm!(
        "{{ .reg .pred p; WAIT: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [{b}], 0; @p bra DONE; bra WAIT; DONE: }}",
        b = in(_) u32::reinterpret(counter),
    );
}
