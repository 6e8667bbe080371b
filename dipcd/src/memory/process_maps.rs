//! Who maps which file where: /proc/PID/maps (proc(5)), the one place that is right after
//! anything a program may have done, without having been told of it.
//!
//! An attachment is a run of mappings of one file that goes on in address, offset and permission,
//! as the kernel counts its own: a hole or another permission in the middle makes two of it, our
//! own registering does not.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dipc_wire::trap::Pages;

use crate::memory::files::{FileId, NAME_PREFIX, Span};
use crate::sys::credentials::open_as_its_owner;

/// The letters of a mapping: read, write, execute, shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission([u8; 4]);

impl Permission {
    /// Shared, and closed to every access.
    pub const CLOSED: Permission = Permission(*b"---s");
}

/// A mapping of one of our files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Which file.
    pub file: FileId,
    /// Where in the process.
    pub pages: Pages,
    /// Which part of the file.
    pub span: Span,
    /// What its program may do with it.
    pub permission: Permission,
}

/// What tells two attachments apart that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permissions {
    /// They count, as for the kernel's own segments.
    Count,
    /// They change with every page that is opened or closed (the mprotect trap).
    Ignore,
}

/// What /proc/PID/maps says of one process.
#[derive(Debug, Default)]
pub struct Maps {
    /// The mappings of our files, in order of address.
    pub ours: Vec<Mapping>,
    /// Where private memory of no file begins and ends, in order.
    anonymous: Vec<(u64, u64)>,
}

impl Maps {
    /// Of one process. One that has ended has none.
    pub fn of(pid: u32) -> io::Result<Maps> {
        let text = read_maps(&format!("/proc/{pid}/maps"))?;
        if !text.is_empty() {
            return Ok(Maps::parse(&text));
        }
        // The first thread of a process may have ended before the others.
        for thread in other_threads(pid) {
            let text = read_maps(&format!("/proc/{pid}/task/{thread}/maps"))?;
            if !text.is_empty() {
                return Ok(Maps::parse(&text));
            }
        }
        Ok(Maps::default())
    }

    fn parse(text: &[u8]) -> Maps {
        let mut maps = Maps::default();
        // Only the names of strange files are no text.
        let lines = text.split(|byte| *byte == b'\n').filter_map(|line| str::from_utf8(line).ok());
        for line in lines {
            maps.ours.extend(parse_ours(line));
            maps.anonymous.extend(parse_anonymous(line));
        }
        maps
    }

    /// Whether there is nothing: the process has ended.
    pub fn is_of_nobody(&self) -> bool {
        self.ours.is_empty() && self.anonymous.is_empty()
    }

    /// Whether private memory of no file is mapped at an address.
    pub fn is_anonymous(&self, address: u64) -> bool {
        let behind = self.anonymous.partition_point(|(start, _)| *start <= address);
        behind > 0 && address < self.anonymous[behind - 1].1
    }
}

/// Nothing of a thread that has ended: before its file was opened, or while it was read.
fn read_maps(path: &str) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

/// The threads of a process but its first.
fn other_threads(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let numbers = threads.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter(|thread| *thread != pid).collect()
}

/// `7f..-7f.. rw-p 00000000 00:00 0`
fn parse_anonymous(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_private = words.next()?.ends_with('p');
    let is_of_no_file = words.nth(2)? == "0";
    let range = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    (is_private && is_of_no_file).then_some(range)
}

/// `7f..-7f.. rw-s 00029000 00:01 1382      /memfd:dipc-... (deleted)`
fn parse_ours(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permission = words.next()?.as_bytes().try_into().ok()?;
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let inode = words.next()?.parse().ok()?;
    // The kernel's own segments live in the same file system, under numbers that are their ids.
    words.next()?.strip_prefix("/memfd:")?.strip_prefix(NAME_PREFIX)?;
    let address = u64::from_str_radix(start, 16).ok()?;
    let bytes = u64::from_str_radix(end, 16).ok()?.checked_sub(address)?;
    let major = u32::from_str_radix(major, 16).ok()?;
    let minor = u32::from_str_radix(minor, 16).ok()?;
    Some(Mapping {
        file: FileId { device: rustix::fs::makedev(major, minor), inode },
        pages: Pages { address, bytes },
        span: Span { offset, bytes },
        permission: Permission(permission),
    })
}

/// How many attachments of a file there are among the mappings of one process.
pub fn count(mappings: &[Mapping], file: FileId, permissions: Permissions) -> u64 {
    let mut before: Option<&Mapping> = None;
    let mut count = 0;
    for mapping in mappings.iter().filter(|mapping| mapping.file == file) {
        let goes_on = before.is_some_and(|before| {
            before.pages.address + before.pages.bytes == mapping.pages.address
                && before.span.end() == mapping.span.offset
                && (permissions == Permissions::Ignore || before.permission == mapping.permission)
        });
        count += u64::from(!goes_on);
        before = Some(mapping);
    }
    count
}

/// Whether a file is mapped at an address from its first byte to its last, closed to access.
pub fn is_closed_whole(mappings: &[Mapping], file: FileId, address: u64, bytes: u64) -> bool {
    let mut at = 0;
    for mapping in mappings.iter().filter(|mapping| mapping.file == file) {
        let begins_there = mapping.pages.address == address + at && mapping.span.offset == at;
        if begins_there && mapping.permission == Permission::CLOSED {
            at += mapping.span.bytes;
        }
    }
    // A longer mapping than the file cannot be told from the next one; it is none of ours.
    at == bytes
}

/// All processes there are now.
pub fn processes() -> io::Result<Vec<u32>> {
    let names =
        fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// The children of all threads of a process, if the kernel keeps such a list.
pub fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.filter_map(|thread| {
        let thread = thread.ok()?.path();
        fs::read_to_string(thread.join("children")).ok()
    });
    let numbers = |list: String| -> Vec<u32> {
        list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    lists.flat_map(numbers).collect()
}

/// Eight bytes of a process's memory, in the machine's order. Read through /proc/PID/mem, which,
/// unlike process_vm_readv(2), does not wait for a page that userfaultfd has to bring.
pub fn word_at(pid: u32, address: u64) -> io::Result<u64> {
    let word = word_in(&format!("/proc/{pid}/mem"), address);
    let of_another = |thread: u32| word_in(&format!("/proc/{pid}/task/{thread}/mem"), address).ok();
    // The first thread may have ended before the others, and has no memory then.
    word.or_else(|error| other_threads(pid).into_iter().find_map(of_another).ok_or(error))
}

fn word_in(path: &str, address: u64) -> io::Result<u64> {
    let mut word = [0; 8];
    open_as_its_owner(Path::new(path))?.read_exact_at(&mut word, address)?;
    Ok(u64::from_ne_bytes(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
        55d0-55d1 r--p 00000000 fe:00 1382    /bin/a\n\
        7f00-7f02 rw-s 00000000 00:01 1382    /memfd:dipc-7d00-0 (deleted)\n\
        7f02-7f03 rw-s 00000002 00:01 1382    /memfd:dipc-7d00-0 (deleted)\n\
        7f03-7f04 r--s 00000003 00:01 1382    /memfd:dipc-7d00-0 (deleted)\n\
        7f04-7f05 r--s 00000004 00:01 1382    /SYSV00000000 (deleted)\n\
        7f05-7f06 r--s 00000004 00:01 1382    /memfd:dipc-7d00-0 (deleted)\n\
        7f06-7f07 r--s 00000000 00:01 1383    /memfd:dipc-7d01-0 (deleted)\n\
        7f08-7f09 ---s 00000000 00:01 1384    /memfd:dipc-7d02-0 (deleted)\n\
        7f09-7f0a ---s 00000001 00:01 1384    /memfd:dipc-7d02-0 (deleted)\n\
        7f10-7f11 rw-p 00000000 00:00 0 \n\
        7fff-8000 r-xp 00000000 00:00 0       [vdso]\n";

    fn id(inode: u64) -> FileId {
        FileId { device: rustix::fs::makedev(0, 1), inode }
    }

    #[test]
    fn only_mappings_of_our_files_are_found() {
        let found = Maps::parse(TEXT.as_bytes()).ours;
        assert_eq!(found.len(), 7);
        let (pages, span) = (Pages { address: 0x7f02, bytes: 1 }, Span { offset: 2, bytes: 1 });
        let second = Mapping { file: id(1382), pages, span, permission: Permission(*b"rw-s") };
        assert_eq!(found[1], second);
    }

    #[test]
    fn private_memory_of_no_file_is_told_from_other() {
        let maps = Maps::parse(TEXT.as_bytes());
        assert!(maps.is_anonymous(0x7f10));
        for other in [0x55d0, 0x7f00, 0x7f08, 0x7f11, 0x7f0f] {
            assert!(!maps.is_anonymous(other), "{other:x}");
        }
    }

    #[test]
    fn attachments_are_runs() {
        let found = Maps::parse(TEXT.as_bytes()).ours;
        assert_eq!(count(&found, id(1382), Permissions::Count), 3);
        assert_eq!(count(&found, id(1382), Permissions::Ignore), 2);
        assert_eq!(count(&found, id(1384), Permissions::Count), 1);
        assert_eq!(count(&found, id(1), Permissions::Count), 0);
    }

    #[test]
    fn an_attachment_is_believed_when_it_is_closed_and_whole() {
        let found = Maps::parse(TEXT.as_bytes()).ours;
        assert!(is_closed_whole(&found, id(1384), 0x7f08, 2));
        assert!(!is_closed_whole(&found, id(1384), 0x7f08, 3), "the file is longer");
        assert!(!is_closed_whole(&found, id(1384), 0x7f09, 1), "it begins in the middle");
        assert!(!is_closed_whole(&found, id(1383), 0x7f06, 1), "it is open");
        assert!(!is_closed_whole(&found, id(1383), 0x7f00, 1), "it is another file");
    }

    #[test]
    fn this_process_is_seen() {
        assert!(processes().unwrap().contains(&std::process::id()));
        let word = 0x0123_4567_89ab_cdef_u64;
        let address = std::ptr::from_ref(&word).expose_provenance() as u64;
        assert_eq!(word_at(std::process::id(), address).unwrap(), word);
    }
}
