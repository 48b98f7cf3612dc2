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

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use std::io;
    use std::sync::{Arc, Mutex};

    /// A terminal of 120 columns that keeps what is written to it.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, line: &str) -> io::Result<()> {
            self.write_str(line)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_bar_shows_steps_rate_time_left_and_what_it_is_told() {
        let screen = Screen::default();
        let bar = steps(true, "steps");
        bar.set_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        bar.set_length(128);
        bar.set_position(32);
        bar.set_message("loss 0.1234");
        bar.tick();
        let shown = screen.0.lock().unwrap().clone();
        for part in ["32/128 steps", "/s", " left", "loss 0.1234"] {
            assert!(shown.contains(part), "{part} is missing: {shown}");
        }
    }
}
