//! One line on standard error that says how far something is, where somebody looks.

use std::io::{IsTerminal, Write};

use crate::units::HumanBytes;

/// The line; gone when dropped.
#[derive(Debug)]
pub struct ProgressLine {
    what: String,
    shown: bool,
    terminal: bool,
}

impl ProgressLine {
    /// Nothing is shown yet.
    pub fn new(what: impl Into<String>) -> ProgressLine {
        ProgressLine { what: what.into(), shown: false, terminal: std::io::stderr().is_terminal() }
    }

    /// Show this instead of what was shown.
    pub fn show(&mut self, done_bytes: u64, total_bytes: u64) {
        if self.terminal {
            self.shown = true;
            // Nobody reads a progress line that cannot be written.
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", line(&self.what, done_bytes, total_bytes));
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(what: &str, done_bytes: u64, total_bytes: u64) -> String {
    let done = HumanBytes(done_bytes & !0xfffff);
    match total_bytes {
        0 => format!("{what}: {done}"),
        total => {
            let percent = u128::from(done_bytes.min(total)) * 100 / u128::from(total);
            format!("{what}: {percent} % of {}", HumanBytes(total))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        assert_eq!(line("converting", 512 << 20, 2 << 30), "converting: 25 % of 2G");
        assert_eq!(line("merging", (3 << 20) + 5, 0), "merging: 3M");
        assert_eq!(line("merging", 9, 3), "merging: 100 % of 3");
    }
}
