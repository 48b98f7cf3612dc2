//! The memory that this process holds, as Linux tells it; elsewhere nothing is known.

use std::fs;

/// From here on, the most that the process holds.
pub(crate) struct Peak {
    /// Resident bytes at the start; none if they, or the peak since, cannot be had.
    before: Option<u64>,
}

impl Peak {
    pub(crate) fn start() -> Self {
        // 5 makes the peak what the process holds now.
        let reset = fs::write("/proc/self/clear_refs", "5");
        Self { before: reset.ok().and_then(|()| status("VmRSS:")) }
    }

    /// Bytes beyond those of the start: at most, and still held.
    pub(crate) fn end(self) -> Option<(u64, u64)> {
        let before = self.before?;
        let beyond = |field| Some(status(field)?.saturating_sub(before));
        Some((beyond("VmHWM:")?, beyond("VmRSS:")?))
    }
}

/// A field of the process's status, in bytes.
fn status(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}
