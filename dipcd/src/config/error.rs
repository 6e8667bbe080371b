//! What is wrong with a configuration file, in words for its author: which line, which entry,
//! what would have been right.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};

/// The longest piece of a file that a message repeats, in characters.
const FOUND_CHARS_MAX: usize = 80;

/// One error of one file: `dipc.conf:12: heartbeat: expected seconds from 0.05 to 60, found "x"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The file, as it was named to us.
    pub file: PathBuf,
    /// The line, from 1; `None` when what is wrong is that something is not there.
    pub line: Option<usize>,
    /// The entry; empty when the line names none.
    pub entry: String,
    /// What would have been right.
    pub expected: String,
    /// What was there instead, in words or in quotes.
    pub found: String,
}

impl Error {
    /// An error of the file itself.
    pub(crate) fn of_file(file: &Path, expected: &str, found: String) -> Error {
        Error {
            file: file.to_owned(),
            line: None,
            entry: String::new(),
            expected: expected.to_owned(),
            found,
        }
    }
}

/// A piece of a file for a message: quoted, printable, and not long.
pub(crate) fn quoted(text: &str) -> String {
    let mut piece: String = text.chars().take(FOUND_CHARS_MAX).collect();
    if piece.len() < text.len() {
        piece.push_str("...");
    }
    format!("{piece:?}")
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        if !self.entry.is_empty() {
            write!(f, " {}:", self.entry)?;
        }
        write!(f, " expected {}, found {}", self.expected, self.found)
    }
}

impl std::error::Error for Error {}
