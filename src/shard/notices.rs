//! How many lines about peers a shard may write: a peer that misbehaves fast must not fill the operator's disk.

/// Lines in one second.
const LINES_PER_SECOND_MAX: u32 = 10;

/// Counts lines by the second.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    second: u64,
    written: u32,
    suppressed: u64,
}

impl Notices {
    /// Whether a line may be written now. `Some`: yes, after so many that were not.
    pub(crate) fn allow(&mut self, now_ms: u64) -> Option<u64> {
        let second = now_ms / 1000;
        if second != self.second {
            self.second = second;
            self.written = 0;
        }
        if self.written >= LINES_PER_SECOND_MAX {
            self.suppressed += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_and_then_the_number_of_those_left_out() {
        let mut notices = Notices::default();
        let written = (0..1000).filter(|_| notices.allow(5_000).is_some()).count();
        assert_eq!(written, 10);
        assert_eq!(notices.allow(6_000), Some(990));
        assert_eq!(notices.allow(6_001), Some(0));
    }
}
