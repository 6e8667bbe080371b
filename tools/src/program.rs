//! What dipcrun must know before it becomes a program: where libdipc is, whether the loader will
//! preload it at all, and whether the keys that were given are keys.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The library's file.
const LIBRARY: &str = "libdipc.so";
/// What separates the names in `LD_PRELOAD` (ld.so(8)).
const SEPARATORS: &[u8] = b" :";
/// `PT_INTERP` of elf(5): the program wants a loader.
const PT_INTERP: u32 = 3;
/// Program headers that are looked at.
const HEADERS_MAX: u16 = 256;
/// Bytes of a 64-bit ELF header, and of one program header.
const ELF_BYTES: usize = 64;
const HEADER_BYTES: usize = 56;

/// Finds the library: the one that was named, or one beside this program, in `../lib`, or where
/// libraries are.
pub fn library(named: Option<&OsStr>) -> Result<PathBuf, String> {
    let found = match named {
        Some(path) => {
            let path = fs::canonicalize(path)
                .map_err(|error| format!("{}: {error}", path.to_string_lossy()))?;
            Some(path)
        }
        None => places().into_iter().map(|place| place.join(LIBRARY)).find(|path| path.is_file()),
    };
    let found = found.ok_or_else(|| {
        let places: Vec<_> = places().iter().map(|place| place.display().to_string()).collect();
        format!("{LIBRARY} is in none of {}; see --library", places.join(", "))
    })?;
    if found.as_os_str().as_bytes().iter().any(|byte| SEPARATORS.contains(byte)) {
        return Err(format!("{}: the loader takes no name with blanks or colons", found.display()));
    }
    Ok(found)
}

fn places() -> Vec<PathBuf> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let lib = beside.as_deref().and_then(Path::parent).map(|up| up.join("lib"));
    let multiarch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let usual = ["/usr/local/lib", "/usr/lib", "/usr/lib64", &multiarch].map(PathBuf::from);
    beside.into_iter().chain(lib).chain(usual).collect()
}

/// `LD_PRELOAD` with the library before what it held.
pub fn preload(library: &OsStr, before: Option<OsString>) -> OsString {
    let mut preload = library.to_owned();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        let named = before.as_bytes().split(|byte| SEPARATORS.contains(byte));
        if named.into_iter().any(|name| name == library.as_bytes()) {
            return before;
        }
        preload.push(":");
        preload.push(before);
    }
    preload
}

/// Why the library would not be loaded into a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreached {
    /// It has no loader.
    Static,
    /// It is set-user-ID or set-group-ID to another account.
    SetId,
}

/// Whether the loader passes a program by. A script is judged by nobody: its interpreter counts.
pub fn unreached(program: &OsStr) -> Option<Unreached> {
    let path = on_path(program)?;
    let metadata = fs::metadata(&path).ok()?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let changes_user = metadata.mode() & 0o4000 != 0 && metadata.uid() != uid;
    let changes_group = metadata.mode() & 0o2010 == 0o2010 && metadata.gid() != gid;
    if changes_user || changes_group {
        return Some(Unreached::SetId);
    }
    is_static(&path).then_some(Unreached::Static)
}

/// The file that execvp(3) would start.
fn on_path(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|place| place.join(program)).find(|file| file.is_file())
}

/// A 64-bit ELF file of this machine's byte order in which no loader is named.
fn is_static(path: &Path) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut elf = [0; ELF_BYTES];
    if file.read_exact(&mut elf).is_err() || !elf.starts_with(b"\x7fELF\x02") {
        return false;
    }
    let offset = u64::from_ne_bytes(*elf[32..].first_chunk().expect("the header is longer"));
    let count = u16::from_ne_bytes(*elf[56..].first_chunk().expect("the header is longer"));
    let mut at = offset;
    for _ in 0..count.min(HEADERS_MAX) {
        let mut kind = [0; 4];
        if file.read_exact_at(&mut kind, at).is_err() || u32::from_ne_bytes(kind) == PT_INTERP {
            return false;
        }
        at += HEADER_BYTES as u64;
    }
    count > 0
}

/// Whether libdipc would take these keys; it passes over others in silence.
pub fn check_keys(text: &str) -> Result<(), String> {
    let whole = ["none", "all", "all,private"].contains(&text);
    if whole || text.split(',').all(is_range) {
        return Ok(());
    }
    let expected = "none of none, all, all,private, or keys and ranges such as 0x28,0x1000-0x1fff";
    Err(format!("--keys: {text:?} is {expected}"))
}

fn is_range(text: &str) -> bool {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    matches!((key(first), key(last)), (Some(first), Some(last)) if 0 < first && first <= last)
}

fn key(text: &str) -> Option<u32> {
    let text = text.trim();
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    if digits.starts_with('+') { None } else { u32::from_str_radix(digits, radix).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_what_is_none() {
        for good in ["none", "all", "all,private", "40", "0x28, 0x1000-0x1fff"] {
            assert_eq!(check_keys(good), Ok(()), "{good}");
        }
        for bad in ["", "0", "private", "9-8", "0x", "+3", "1,,2", "all,none"] {
            assert!(check_keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_preloaded_stays_behind_ours() {
        let library = OsStr::new("/lib/libdipc.so");
        assert_eq!(preload(library, None), library);
        assert_eq!(preload(library, Some("/a.so".into())), "/lib/libdipc.so:/a.so");
        let there = OsString::from("/a.so:/lib/libdipc.so");
        assert_eq!(preload(library, Some(there.clone())), there);
    }

    #[test]
    fn a_library_is_named_or_found_and_must_have_a_plain_name() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("a b.so");
        fs::write(&odd, "").unwrap();
        assert!(library(Some(odd.as_os_str())).unwrap_err().contains("blanks or colons"));
        let none = dir.path().join("none.so");
        assert!(library(Some(none.as_os_str())).unwrap_err().contains("none.so"));
    }

    #[test]
    fn this_test_has_a_loader_and_a_script_is_not_judged() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(unreached(own.as_os_str()), None);
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert_eq!(unreached(script.as_os_str()), None);
        assert_eq!(unreached(OsStr::new("no such program")), None);
    }
}
