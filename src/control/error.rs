//! Why a command was refused: a kind for machines, one line for people.

use std::fmt;

/// What kind of refusal it is; each has its HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request makes no sense: 400.
    Invalid,
    /// What it names does not exist: 404.
    NotFound,
    /// It contradicts what exists: 409.
    Conflict,
    /// The host refused (file system, network, memory): 500.
    Failed,
}

/// A refusal: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What kind.
    pub kind: ErrorKind,
    /// What is wrong and what to do, in one line.
    pub message: String,
}

impl Refused {
    /// The request makes no sense.
    pub fn invalid(message: impl fmt::Display) -> Refused {
        Refused::new(ErrorKind::Invalid, message)
    }

    /// What it names does not exist.
    pub fn not_found(message: impl fmt::Display) -> Refused {
        Refused::new(ErrorKind::NotFound, message)
    }

    /// It contradicts what exists.
    pub fn conflict(message: impl fmt::Display) -> Refused {
        Refused::new(ErrorKind::Conflict, message)
    }

    /// The host refused.
    pub fn failed(message: impl fmt::Display) -> Refused {
        Refused::new(ErrorKind::Failed, message)
    }

    fn new(kind: ErrorKind, message: impl fmt::Display) -> Refused {
        // One line, whatever a file name or an operating system put into it.
        let message = message.to_string().replace(['\n', '\r'], " ");
        Refused { kind, message }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}
