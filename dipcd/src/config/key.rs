//! Files of keys: 32 bytes, plain or as 64 hexadecimal digits. The cluster's secret and the private
//! half of a node's own key nobody but the owner may read; what others may know of a node's key,
//! nobody but the owner may change.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use dipc_wire::ids::Secret;
use dipc_wire::noise::PublicKey;

const KEY_BYTES: usize = 32;

/// Reads a secret key; the error says what is wrong with the file.
pub fn read(file: &Path) -> Result<Secret, String> {
    read_checked(file, 0o077, "lets others use it; it must be 0600").map(Secret)
}

/// Reads the public half of a node's key, of the same form.
pub fn read_public(file: &Path) -> Result<PublicKey, String> {
    read_checked(file, 0o022, "lets others change it; 0644 will do").map(PublicKey)
}

/// Reads a key whose file has none of these permissions.
fn read_checked(file: &Path, not: u32, then: &str) -> Result<[u8; KEY_BYTES], String> {
    let wrong = |error: io::Error| format!("{}: {error}", file.display());
    // A FIFO must not hold us up.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(file).map_err(wrong)?;
    let metadata = opened.metadata().map_err(wrong)?;
    check(&metadata, not, then).map_err(|why| format!("{}: {why}", file.display()))?;
    let mut bytes = Vec::new();
    opened.take(KEY_BYTES as u64 * 2 + 2).read_to_end(&mut bytes).map_err(wrong)?;
    decode(&bytes)
        .ok_or_else(|| format!("{}: neither 32 bytes nor 64 hexadecimal digits", file.display()))
}

fn check(metadata: &fs::Metadata, not: u32, then: &str) -> Result<(), String> {
    if !metadata.is_file() {
        return Err("not a file".into());
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & not != 0 {
        return Err(format!("mode {mode:04o} {then}"));
    }
    let us = rustix::process::geteuid().as_raw();
    match metadata.uid() {
        owner if owner == us || owner == 0 => Ok(()),
        owner => Err(format!("it belongs to uid {owner}")),
    }
}

fn decode(bytes: &[u8]) -> Option<[u8; KEY_BYTES]> {
    if let Ok(plain) = <[u8; KEY_BYTES]>::try_from(bytes) {
        return Some(plain);
    }
    let digits = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if digits.len() != KEY_BYTES * 2 {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(key)
}

/// Makes a key (`--make-key`): 64 hexadecimal digits in a new file of mode 0600.
pub fn make(file: &Path) -> io::Result<()> {
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    write_new(file, &digits)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

fn write_new(file: &Path, digits: &str) -> io::Result<()> {
    let mut opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    opened.write_all(format!("{digits}\n").as_bytes())?;
    opened.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_can_be_read_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        make(&one).unwrap();
        make(&two).unwrap();
        let key = read(&one).unwrap();
        assert!(key != read(&two).unwrap());
        assert_eq!(make(&one).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(key == read(&one).unwrap());
        assert_eq!(fs::metadata(&one).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn what_a_key_file_may_hold() {
        let hex = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";
        let plain = [b'x'; 32];
        let rows: &[(&[u8], bool)] = &[
            (&plain, true),
            (&plain[1..], false),
            (hex.as_bytes(), true),
            (format!("{hex}\n").as_bytes().to_vec().leak(), true),
            (format!("{hex}\n\n").as_bytes().to_vec().leak(), false),
            (&hex.as_bytes()[1..], false),
            (b"", false),
            (&[b'g'; 64], false),
            (&[b'0'; 66], false),
        ];
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        for (bytes, good) in rows {
            fs::write(&file, bytes).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(read(&file).is_ok(), *good, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn others_must_not_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        make(&file).unwrap();
        for (mode, good) in [(0o400, true), (0o600, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&file).is_ok(), good, "{mode:o}");
        }
        for (mode, good) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_public(&file).is_ok(), good, "{mode:o}");
        }
        assert!(read(dir.path()).unwrap_err().ends_with("not a file"));
        assert!(read(&dir.path().join("none")).unwrap_err().contains("No such file"));
    }
}
