//! What this process holds and has computed, as Linux tells it; elsewhere nothing is known.

use serde::Serialize;
use std::fs;

/// Ticks a second of the times in `/proc`, whatever the kernel's own are.
const TICKS: f64 = 100.0;

/// From here on, what the process uses.
pub(crate) struct Watch {
    /// Resident bytes.
    resident: u64,
    /// Seconds of all threads.
    computed: f64,
}

/// What it used.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Used {
    /// Bytes beyond those of the start, at most.
    pub(crate) peak_bytes: u64,
    /// Bytes beyond those of the start that are still held.
    pub(crate) kept_bytes: u64,
    /// Seconds of all threads together.
    pub(crate) cpu_seconds: f64,
}

impl Watch {
    /// None where nothing is known.
    pub(crate) fn start() -> Option<Self> {
        // 5 makes the peak what the process holds now.
        fs::write("/proc/self/clear_refs", "5").ok()?;
        Some(Self { resident: status("VmRSS:")?, computed: computed()? })
    }

    pub(crate) fn end(self) -> Option<Used> {
        let beyond = |field| Some(status(field)?.saturating_sub(self.resident));
        Some(Used {
            peak_bytes: beyond("VmHWM:")?,
            kept_bytes: beyond("VmRSS:")?,
            cpu_seconds: computed()? - self.computed,
        })
    }
}

/// A field of the process's status, in bytes.
fn status(field: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// Seconds in user and system code of all threads that there are or were.
fn computed() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, which may hold blanks.
    let fields = stat.rsplit_once(')')?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Some(ticks.sum::<Result<f64, _>>().ok()? / TICKS)
}
