//! iSCSI node names: what is a legal name, and the one normal form in which names are compared.
//!
//! Names are `iqn.`, `eui.` or `naa.` names (RFC 7143 section 4.2.7). They compare after the stringprep profile of RFC
//! 3722; its effect on names made of ASCII letters, digits, `-`, `.` and `:` is to make letters lower case, and that is
//! what is done here (non-ASCII letters are made lower case too; compatibility forms are not folded).

#![forbid(unsafe_code)]

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The longest name, in bytes of UTF-8 (RFC 7143 section 4.2.7.2).
pub const NAME_BYTES_MAX: usize = 223;

/// The name of an iSCSI node in normal form. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IscsiName(Arc<str>);

/// Why a name was refused, in words for the person who typed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// More than 223 bytes.
    #[error("the iSCSI name is {0} bytes long; the longest that the protocol allows is {NAME_BYTES_MAX}")]
    TooLong(usize),
    /// Neither `iqn.`, `eui.` nor `naa.`.
    #[error(
        "'{0}' is not an iSCSI name; write iqn.YYYY-MM.REVERSED-DOMAIN:NAME, for example iqn.2026-11.com.example:disk1"
    )]
    UnknownType(String),
    /// `iqn.` is not followed by a year, a dash, a month and a dot.
    #[error("'{0}': after 'iqn.' write a year and month in which you owned the domain, as in iqn.2026-11.com.example")]
    Date(String),
    /// The reversed domain of an `iqn.` name is missing or has an empty part.
    #[error("'{0}': after the date write a domain name in reverse, for example iqn.2026-11.com.example:disk1")]
    NamingAuthority(String),
    /// `eui.` without exactly 16 hexadecimal digits.
    #[error("'{0}': 'eui.' must be followed by exactly 16 hexadecimal digits")]
    Eui(String),
    /// `naa.` without exactly 16 or 32 hexadecimal digits.
    #[error("'{0}': 'naa.' must be followed by exactly 16 or 32 hexadecimal digits")]
    Naa(String),
    /// A character that RFC 3722 does not allow in names.
    #[error(
        "'{name}': the character {character:?} is not allowed in an iSCSI name; use letters, digits, '-', '.' and ':'"
    )]
    Character {
        /// The name as it was written.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
}

impl IscsiName {
    /// A name that this server or its operator chooses: every rule of RFC 7143 section 4.2.7 holds.
    ///
    /// # Errors
    /// Which rule is broken.
    pub fn new(text: &str) -> Result<IscsiName, NameError> {
        let name = normal_form(text)?;
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c) || !c.is_ascii();
        if let Some(character) = name.chars().find(|&c| !allowed(c)) {
            return Err(NameError::Character { name: text.to_owned(), character });
        }
        if let Some(rest) = name.strip_prefix("iqn.") {
            check_iqn(rest, text)?;
        } else if let Some(digits) = name.strip_prefix("eui.") {
            if digits.len() != 16 || !all_hex(digits) {
                return Err(NameError::Eui(text.to_owned()));
            }
        } else if let Some(digits) = name.strip_prefix("naa.") {
            if !matches!(digits.len(), 16 | 32) || !all_hex(digits) {
                return Err(NameError::Naa(text.to_owned()));
            }
        } else {
            return Err(NameError::UnknownType(text.to_owned()));
        }
        Ok(IscsiName(name.into()))
    }

    /// A name that someone else chose, an initiator above all: only its length, its type prefix and the absence of
    /// spaces and control characters are checked, because names with underscores or without a date are in use and the
    /// name serves as an identifier only.
    ///
    /// # Errors
    /// Which rule is broken.
    pub fn foreign(text: &str) -> Result<IscsiName, NameError> {
        let name = normal_form(text)?;
        if let Some(character) = name.chars().find(|&c| c.is_control() || c.is_whitespace() || c == ',') {
            return Err(NameError::Character { name: text.to_owned(), character });
        }
        let typed = ["iqn.", "eui.", "naa."].iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix));
        if !typed {
            return Err(NameError::UnknownType(text.to_owned()));
        }
        Ok(IscsiName(name.into()))
    }

    /// The name in normal form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for IscsiName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for IscsiName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<IscsiName, NameError> {
        IscsiName::new(text)
    }
}

/// Lower case, and short enough before and after that.
fn normal_form(text: &str) -> Result<String, NameError> {
    if text.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    let name = text.to_lowercase();
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong(name.len()));
    }
    Ok(name)
}

/// Check what follows `iqn.`: `yyyy-mm.` and a reversed domain, then anything after a colon.
fn check_iqn(rest: &str, text: &str) -> Result<(), NameError> {
    let date_ok = match rest.as_bytes() {
        [y1, y2, y3, y4, b'-', m1, m2, b'.', ..] => {
            let digits = [y1, y2, y3, y4, m1, m2].iter().all(|d| d.is_ascii_digit());
            digits && matches!((m1, m2), (b'0', b'1'..=b'9') | (b'1', b'0'..=b'2'))
        }
        _ => false,
    };
    if !date_ok {
        return Err(NameError::Date(text.to_owned()));
    }
    let (_, after_date) = rest.split_at(8);
    let authority = after_date.split_once(':').map_or(after_date, |(authority, _)| authority);
    if authority.is_empty() || authority.split('.').any(str::is_empty) {
        return Err(NameError::NamingAuthority(text.to_owned()));
    }
    Ok(())
}

fn all_hex(digits: &str) -> bool {
    digits.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_standard_are_taken_and_compare_without_case() {
        for name in [
            "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309",
            "iqn.2001-04.com.example",
            "iqn.1991-05.com.microsoft:win-8q3r2",
            "eui.02004567a425678d",
            "naa.52004567ba64678d",
            "naa.62004567ba64678d0123456789abcdef",
        ] {
            assert_eq!(IscsiName::new(name).unwrap().as_str(), name);
            assert_eq!(IscsiName::new(&name.to_uppercase()).unwrap().as_str(), name);
        }
    }

    #[test]
    fn each_broken_rule_has_its_own_answer() {
        let error = |name: &str| IscsiName::new(name).unwrap_err();
        assert!(matches!(error("disk1"), NameError::UnknownType(_)));
        assert!(matches!(error(""), NameError::UnknownType(_)));
        assert!(matches!(error("iqn."), NameError::Date(_)));
        assert!(matches!(error("iqn.2001-13.com.example"), NameError::Date(_)));
        assert!(matches!(error("iqn.2001-04"), NameError::Date(_)));
        assert!(matches!(error("iqn.2001-04."), NameError::NamingAuthority(_)));
        assert!(matches!(error("iqn.2001-04.:disk"), NameError::NamingAuthority(_)));
        assert!(matches!(error("iqn.2001-04.com..example"), NameError::NamingAuthority(_)));
        assert!(matches!(error("eui.123"), NameError::Eui(_)));
        assert!(matches!(error("naa.52004567ba64678g"), NameError::Naa(_)));
        assert!(matches!(error("iqn.2001-04.com.example:a_b"), NameError::Character { character: '_', .. }));
        assert!(matches!(error("iqn.2001-04.com.example:a b"), NameError::Character { character: ' ', .. }));
        let long = format!("iqn.2001-04.com.example:{}", "x".repeat(NAME_BYTES_MAX - 24));
        assert_eq!(IscsiName::new(&long).unwrap().as_str().len(), NAME_BYTES_MAX);
        assert_eq!(error(&format!("{long}x")), NameError::TooLong(NAME_BYTES_MAX + 1));
    }

    #[test]
    fn a_date_cut_inside_a_wide_character_is_an_error_and_not_a_panic() {
        for name in ["iqn.2001-0é.com", "iqn.ééééééé", "iqn.2001-04é"] {
            assert!(IscsiName::new(name).is_err(), "{name}");
        }
    }

    #[test]
    fn foreign_names_are_taken_as_they_are_in_use() {
        assert_eq!(
            IscsiName::foreign("iqn.2016-04.com.Open-iSCSI:host_1").unwrap().as_str(),
            "iqn.2016-04.com.open-iscsi:host_1"
        );
        assert!(IscsiName::foreign("iqn.a b").is_err());
        assert!(IscsiName::foreign("iqn.a\u{7f}").is_err());
        assert!(IscsiName::foreign("host").is_err());
        assert!(IscsiName::foreign("iqn.").is_err());
    }
}
