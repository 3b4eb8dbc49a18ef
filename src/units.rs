//! Numbers that must not mix, as types, and sizes as people write them.
//!
//! A leaf that every module may use.

use std::fmt;

/// A logical block address (SBC-4 clause 4.4): an index of logical blocks on one logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lba(pub u64);

/// A logical unit number as the flat or peripheral address of SAM-5 clause 4.7, decoded: 0..=16383.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lun(pub u16);

/// A disk of this server, for as long as the process lives. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId(pub u32);

/// A target of this server, for as long as the process lives. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u32);

/// A listening portal of this server, for as long as the process lives. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortalId(pub u32);

/// A shard: one pinned thread with its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Why a size was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not digits with an optional suffix.
    #[error("'{0}' is not a size; write bytes, or a number with K, M, G or T (powers of two), for example 10G")]
    NotASize(String),
    /// More than 2^64 - 1 bytes.
    #[error("'{0}' is larger than any disk can be")]
    TooLarge(String),
}

/// Parse a size as bytes, or as a whole number with `K`, `M`, `G` or `T` (powers of two, either case).
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError::NotASize(text.to_owned()));
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge(text.to_owned()))?;
    number.checked_mul(1 << shift).ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// A byte count as people read it: the largest power-of-two unit that keeps it exact, else one decimal.
#[derive(Clone, Copy, Debug)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
        for (unit, shift) in UNITS {
            let one = 1u64 << shift;
            if self.0 >= one {
                return if self.0.is_multiple_of(one) {
                    write!(f, "{}{unit}", self.0 >> shift)
                } else {
                    write!(f, "{:.1}{unit}", self.0 as f64 / one as f64)
                };
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A moment as people read it, in UTC: `2026-11-21 10:44:01`. With `{:#}` as part of a name: `2026-11-21_10-44-01`.
#[derive(Clone, Copy, Debug)]
pub struct UtcTime(
    /// Seconds since 1970.
    pub u64,
);

impl fmt::Display for UtcTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        // Years that begin in March end with the day that leap years add. 719 468 days lie before 1970-03-01 less a
        // few weeks: the first of March of the year 0. Eras of 400 years have 146 097 days.
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = era * 400 + year + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        match f.alternate() {
            true => write!(f, "{year:04}-{month:02}-{day:02}_{hour:02}-{minute:02}-{second:02}"),
            false => write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_and_nothing_else_is_taken() {
        assert_eq!(parse_size("10G"), Ok(10 << 30));
        assert_eq!(parse_size("512"), Ok(512));
        assert_eq!(parse_size("64t"), Ok(64 << 40));
        for bad in ["", "G", "1.5G", "-1", "10GB", "0x10", " 1", "1 G", "+1"] {
            assert_eq!(parse_size(bad), Err(SizeError::NotASize(bad.into())), "{bad:?}");
        }
        assert!(matches!(parse_size("99999999999999999999"), Err(SizeError::TooLarge(_))));
        assert!(matches!(parse_size("16777216T"), Err(SizeError::TooLarge(_))));
    }

    #[test]
    fn human_sizes_round_trip_when_exact() {
        for bytes in [0, 512, 1 << 20, 10 << 30, 64 << 40] {
            assert_eq!(parse_size(&HumanBytes(bytes).to_string()), Ok(bytes));
        }
        assert_eq!(HumanBytes(1536).to_string(), "1.5K");
    }

    #[test]
    fn moments_are_dates_and_times() {
        for (seconds, shown) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_795_257_841, "2026-11-21 10:44:01"),
            (4_107_542_399, "2100-02-28 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(UtcTime(seconds).to_string(), shown);
        }
        assert_eq!(format!("{:#}", UtcTime(951_782_400)), "2000-02-29_00-00-00");
    }
}
