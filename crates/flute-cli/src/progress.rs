//! Progress bars on stderr: rate and time left. Hidden when quiet and where stderr is no terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const BYTES: &str = "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left  {wide_msg}";
const STEPS: &str = "{bar:30} {pos}/{len} {prefix}, {per_sec}, {eta} left  {wide_msg}";

/// A bar over bytes.
pub(crate) fn bytes(quiet: bool) -> ProgressBar {
    bar(quiet, BYTES)
}

/// A bar over `unit`s, such as windows.
pub(crate) fn steps(quiet: bool, unit: &'static str) -> ProgressBar {
    bar(quiet, STEPS).with_prefix(unit)
}

fn bar(quiet: bool, template: &str) -> ProgressBar {
    let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(0), target).with_style(style)
}
