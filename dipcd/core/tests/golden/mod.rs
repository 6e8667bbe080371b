//! Golden files: text that a test makes, kept beside it and reviewed as a diff. They are written
//! anew, instead of compared, when `UPDATE_GOLDEN` is set.
#![forbid(unsafe_code)]

use std::path::Path;
use std::{env, fs};

/// Compares with the golden file of that name, or writes it when `UPDATE_GOLDEN` is set.
pub fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).expect("the golden file can be written");
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    let differing = expected.lines().zip(text.lines()).find(|(old, new)| old != new);
    assert!(expected == text, "{name} differs, first: {differing:#?}");
}
