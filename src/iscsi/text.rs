//! The text format of login and text negotiation (RFC 7143 section 6.1): `key=value` pairs that each end with a zero
//! byte.
//!
//! Knows how pairs and values are written, not what any key means. Nothing here panics on any bytes.

#![forbid(unsafe_code)]

use crate::limits::NEGOTIATION_BYTES_MAX;

/// The longest key name (RFC 7143 section 6.1).
pub const KEY_BYTES_MAX: usize = 63;

/// Why bytes are not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A part between zero bytes has no `=`.
    #[error("text without '='")]
    NoEqualsSign,
    /// A key that is empty, longer than 63 bytes, does not begin with a letter, or has characters that keys cannot
    /// have.
    #[error("malformed key name")]
    Key,
    /// A value that is not UTF-8.
    #[error("a value that is not UTF-8")]
    Value,
    /// One negotiation is longer than [`NEGOTIATION_BYTES_MAX`].
    #[error("more than {NEGOTIATION_BYTES_MAX} bytes in one negotiation")]
    TooLong,
}

/// One `key=value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The key's name; legal.
    pub key: &'a str,
    /// The value, as it was written; may be empty.
    pub value: &'a str,
}

/// The pairs of a complete text. Surplus zero bytes are passed over, and the last pair's zero byte may be missing:
/// initiators are seen to do both.
pub fn pairs(text: &[u8]) -> impl Iterator<Item = Result<Pair<'_>, TextError>> {
    text.split(|&byte| byte == 0).filter(|part| !part.is_empty()).map(pair)
}

fn pair(part: &[u8]) -> Result<Pair<'_>, TextError> {
    let equals = part.iter().position(|&byte| byte == b'=').ok_or(TextError::NoEqualsSign)?;
    let (key, value) = part.split_at(equals);
    if !is_key(key) {
        return Err(TextError::Key);
    }
    let key = str::from_utf8(key).map_err(|_| TextError::Key)?;
    let value = str::from_utf8(&value[1..]).map_err(|_| TextError::Value)?;
    Ok(Pair { key, value })
}

/// Whether the bytes are a standard-label: a letter (a capital one says the standard, which then names
/// `iSCSIProtocolLevel`), then letters, digits and `.-+@_`. `#` is the mark of public extension keys (`X#name`).
fn is_key(key: &[u8]) -> bool {
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+@_#".contains(byte);
    key.len() <= KEY_BYTES_MAX && key.first().is_some_and(u8::is_ascii_alphabetic) && key.iter().all(inner)
}

/// The items of a list.
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',')
}

/// `Yes` or `No`; nothing else.
#[must_use]
pub fn parse_boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// A number: decimal without leading zeros, or hexadecimal after `0x`.
#[must_use]
pub fn parse_number(value: &str) -> Option<u64> {
    if let Some(digits) = hex_digits(value) {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
        return plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten();
    }
    let plain =
        !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) && (value == "0" || !value.starts_with('0'));
    plain.then(|| value.parse().ok()).flatten()
}

/// A range of numbers `low~high` with low ≤ high.
#[must_use]
pub fn parse_range(value: &str) -> Option<(u64, u64)> {
    let (low, high) = value.split_once('~')?;
    let (low, high) = (parse_number(low)?, parse_number(high)?);
    (low <= high).then_some((low, high))
}

/// A binary value: hexadecimal after `0x`, base64 after `0b`, or a decimal number; `None` when malformed or longer than
/// `bytes_max`.
#[must_use]
pub fn parse_binary(value: &str, bytes_max: usize) -> Option<Vec<u8>> {
    let bytes = if let Some(digits) = hex_digits(value) {
        decode_hex(digits, bytes_max)?
    } else if let Some(digits) = value.strip_prefix("0b").or_else(|| value.strip_prefix("0B")) {
        decode_base64(digits, bytes_max)?
    } else {
        // A decimal number stands for its bytes, the most significant first.
        let number = parse_number(value)?.to_be_bytes();
        let zeros = number.iter().take_while(|&&byte| byte == 0).count().min(7);
        number.get(zeros..)?.to_vec()
    };
    (bytes.len() <= bytes_max).then_some(bytes)
}

/// A binary value as text.
#[must_use]
pub fn encode_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

fn hex_digits(value: &str) -> Option<&str> {
    value.strip_prefix("0x").or_else(|| value.strip_prefix("0X"))
}

/// An odd number of digits has a zero in front (RFC 7143 section 6.1: the digits are those of a number).
fn decode_hex(digits: &str, bytes_max: usize) -> Option<Vec<u8>> {
    if digits.is_empty() || digits.len().div_ceil(2) > bytes_max {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    let mut high = (!digits.len().is_multiple_of(2)).then_some(0);
    for digit in digits.chars() {
        let digit = u8::try_from(digit.to_digit(16)?).ok()?;
        match high.take() {
            None => high = Some(digit),
            Some(high) => bytes.push(high << 4 | digit),
        }
    }
    Some(bytes)
}

fn decode_base64(digits: &str, bytes_max: usize) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    if digits.is_empty() || !digits.len().is_multiple_of(4) || digits.len() / 4 > bytes_max.div_ceil(3) {
        return None;
    }
    let padding = digits.iter().rev().take_while(|&&digit| digit == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    let mut bits = 0u32;
    for (index, &digit) in digits.iter().enumerate() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' if index >= digits.len() - padding => 0,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        if index % 4 == 3 {
            bytes.extend_from_slice(&bits.to_be_bytes()[1..]);
        }
    }
    bytes.truncate(bytes.len() - padding);
    Some(bytes)
}

/// Collects the text of one negotiation step over its continued PDUs.
#[derive(Clone, Debug, Default)]
pub struct TextCollector {
    bytes: Vec<u8>,
    /// Bytes of the whole negotiation, over all its steps.
    total: usize,
}

impl TextCollector {
    /// Take one PDU's data segment.
    ///
    /// # Errors
    /// [`TextError::TooLong`], when the negotiation becomes longer than the bound.
    pub fn push(&mut self, data: &[u8]) -> Result<(), TextError> {
        self.total = self.total.saturating_add(data.len());
        if self.total > NEGOTIATION_BYTES_MAX {
            return Err(TextError::TooLong);
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// Whether an unfinished text is waiting for its continuation.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The complete text of this step; the next step starts empty.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Builds an answer's text. Its length is bounded: what is written beyond is dropped, and remembered.
#[derive(Clone, Debug, Default)]
pub struct TextBuilder {
    bytes: Vec<u8>,
    overflow: bool,
}

impl TextBuilder {
    /// Append `key=value` and its zero byte.
    pub fn pair(&mut self, key: &str, value: &str) {
        debug_assert!(!value.as_bytes().contains(&0));
        if self.bytes.len() + key.len() + value.len() + 2 > NEGOTIATION_BYTES_MAX {
            self.overflow = true;
            return;
        }
        self.bytes.extend_from_slice(key.as_bytes());
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    /// Append pairs that are written already, each with its zero byte.
    pub fn pairs(&mut self, text: &[u8]) {
        debug_assert!(text.last().is_none_or(|&byte| byte == 0));
        if self.bytes.len() + text.len() > NEGOTIATION_BYTES_MAX {
            self.overflow = true;
        } else {
            self.bytes.extend_from_slice(text);
        }
    }

    /// The text.
    ///
    /// # Errors
    /// [`TextError::TooLong`], when it did not all fit.
    pub fn finish(self) -> Result<Vec<u8>, TextError> {
        if self.overflow { Err(TextError::TooLong) } else { Ok(self.bytes) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
        pairs(text).map(|pair| pair.map(|pair| (pair.key, pair.value))).collect()
    }

    #[test]
    fn pairs_end_with_a_zero_byte() {
        assert_eq!(read(b"A=1\0B=\0C=x=y\0"), Ok(vec![("A", "1"), ("B", ""), ("C", "x=y")]));
        assert_eq!(read(b""), Ok(vec![]));
        assert_eq!(read(b"\0\0A=1\0\0\0B=2"), Ok(vec![("A", "1"), ("B", "2")]));
        assert_eq!(read("A=\u{e9}\0".as_bytes()), Ok(vec![("A", "\u{e9}")]));
    }

    #[test]
    fn what_is_not_a_pair_is_named() {
        assert_eq!(read(b"A\0"), Err(TextError::NoEqualsSign));
        assert_eq!(read(b"=1\0"), Err(TextError::Key));
        assert_eq!(read(b"9=1\0"), Err(TextError::Key));
        assert_eq!(read(b"A b=1\0"), Err(TextError::Key));
        assert_eq!(read(b"A\xff=1\0"), Err(TextError::Key));
        assert_eq!(read(b"A=\xff\0"), Err(TextError::Value));
        let mut long = vec![b'K'; KEY_BYTES_MAX];
        long.push(b'=');
        assert!(read(&long).is_ok());
        long.insert(0, b'K');
        assert_eq!(read(&long), Err(TextError::Key));
    }

    #[test]
    fn numbers_are_written_in_one_way_in_each_base() {
        for (text, number) in [
            ("0", 0),
            ("7", 7),
            ("18446744073709551615", u64::MAX),
            ("0x0", 0),
            ("0X1f", 31),
            ("0x00ff", 255),
            ("0xFFFFffffFFFFffff", u64::MAX),
        ] {
            assert_eq!(parse_number(text), Some(number), "{text}");
        }
        for text in [
            "",
            "00",
            "07",
            "+7",
            "-7",
            " 7",
            "7 ",
            "7a",
            "0x",
            "0x+1",
            "0xg",
            "x1",
            "18446744073709551616",
            "0x10000000000000000",
            "\u{664}",
        ] {
            assert_eq!(parse_number(text), None, "{text}");
        }
    }

    #[test]
    fn ranges_rise() {
        assert_eq!(parse_range("1~5"), Some((1, 5)));
        assert_eq!(parse_range("0x10~16"), Some((16, 16)));
        for text in ["5~1", "1~", "~1", "1", "1~2~3", ""] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }

    #[test]
    fn booleans_are_yes_and_no() {
        assert_eq!((parse_boolean("Yes"), parse_boolean("No")), (Some(true), Some(false)));
        for text in ["", "yes", "NO", "Yes ", "True"] {
            assert_eq!(parse_boolean(text), None);
        }
    }

    #[test]
    fn binary_values_come_in_three_writings() {
        let binary = |text: &str| parse_binary(text, 8);
        assert_eq!(binary("0x0aFF"), Some(vec![0x0a, 0xff]));
        assert_eq!(binary("0Xabc"), Some(vec![0x0a, 0xbc]));
        assert_eq!(binary("0x0000"), Some(vec![0, 0]));
        assert_eq!(binary("0bAAEC"), Some(vec![0, 1, 2]));
        assert_eq!(binary("0BAAE="), Some(vec![0, 1]));
        assert_eq!(binary("0b+/8="), Some(vec![0xfb, 0xff]));
        assert_eq!(binary("0bAA=="), Some(vec![0]));
        assert_eq!(binary("258"), Some(vec![1, 2]));
        assert_eq!(binary("0"), Some(vec![0]));
        assert_eq!(binary("0x1122334455667788"), Some(vec![0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]));
        for text in [
            "",
            "0x",
            "0b",
            "0xg0",
            "0x112233445566778899",
            "0bA",
            "0bAAA",
            "0bA===",
            "0b====",
            "0bAA=A",
            "0b=AAA",
            "0bAAAA=",
            "0bAA-_",
            "0bAAAAAAAAAAAAAAAA",
            "x",
            "0x1 ",
        ] {
            assert_eq!(binary(text), None, "{text}");
        }
    }

    #[test]
    fn hexadecimal_round_trips() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(parse_binary(&encode_hex(&bytes), 256), Some(bytes.clone()));
        assert_eq!(parse_binary(&encode_hex(&bytes), 255), None);
    }

    #[test]
    fn a_collector_takes_one_negotiation_and_no_more() {
        let mut collector = TextCollector::default();
        collector.push(b"A=").unwrap();
        collector.push(b"1\0").unwrap();
        assert_eq!(collector.take(), b"A=1\0");
        assert!(collector.is_empty());
        // What was taken counts on: the bound is the whole negotiation's.
        collector.push(&vec![0; NEGOTIATION_BYTES_MAX - 4]).unwrap();
        assert_eq!(collector.push(b"x"), Err(TextError::TooLong));
    }

    #[test]
    fn a_builder_never_grows_beyond_its_bound() {
        let mut builder = TextBuilder::default();
        builder.pair("A", &"x".repeat(NEGOTIATION_BYTES_MAX - 3));
        assert_eq!(builder.clone().finish().map(|text| text.len()), Ok(NEGOTIATION_BYTES_MAX));
        builder.pair("B", "");
        assert_eq!(builder.finish(), Err(TextError::TooLong));
    }
}
