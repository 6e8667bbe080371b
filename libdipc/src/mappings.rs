//! What the program itself does to memory in which attachments lie: munmap, mmap over them, mremap,
//! mprotect, madvise. The kernel does it; here it is noted, and dipcd told.
//!
//! Refused is what would let a page escape from who serves it, with an errno that the manual pages
//! know: a second mapping of the same pages (mremap from size 0 or with `MREMAP_DONTUNMAP`),
//! remap_file_pages, and growing into pages that were unmapped before.
#![forbid(unsafe_code)]

use std::ffi::c_int;
use std::ops::Range;

use dipc_wire::sysv::SysvError;

use crate::attachments::{tell_moved, tell_unmapped};
use crate::boundary::{CReturn, attempt, fail};
use crate::kernel::memory as kernel;
use crate::pieces::{self, Piece, Table};
use crate::sys::memory::{self, PAGE_BYTES, Protection, whole_pages};
use crate::{sys, trap};

/// An errno, which need not be one of System V.
type Errno = i32;

/// `MADV_COLLAPSE` of madvise(2).
const MADV_COLLAPSE: c_int = 25;

/// Serves one such call: what it returns is the kernel's word, or ours in its place.
fn serve<T: CReturn + Copy>(ours: impl FnOnce() -> Result<T, Errno>) -> T {
    match attempt(|_| Ok(ours())) {
        Ok(Ok(result)) => result,
        Ok(Err(errno)) => {
            sys::set_errno(errno);
            T::FAILED
        }
        Err(error) => fail(error),
    }
}

/// The pages from `address` on; none if there are none.
fn pages(address: usize, bytes: usize) -> Option<Range<usize>> {
    let end = address.checked_add(whole_pages(bytes)?)?;
    (address.is_multiple_of(PAGE_BYTES) && address < end).then_some(address..end)
}

/// munmap(2) of a range in which attachments may lie.
pub fn unmap(address: usize, bytes: usize) -> c_int {
    serve(|| {
        let arguments = [address, bytes, 0, 0, 0, 0];
        replace(address, bytes, || memory::pass(libc::SYS_munmap, arguments)).map(|_| 0)
    })
}

/// mmap(2) with `MAP_FIXED` over a range in which attachments may lie.
pub fn map_over(arguments: [usize; 6]) -> usize {
    serve(|| {
        let [address, bytes, ..] = arguments;
        replace(address, bytes, || memory::pass(libc::SYS_mmap, arguments))
    })
}

/// shmat(2) of a segment of the kernel's with `SHM_REMAP`, where attachments may lie.
pub fn attach_over(id: c_int, address: usize, bytes: usize, flags: c_int) -> usize {
    serve(|| {
        replace(address, bytes, || match kernel::shmat(id, address, flags) {
            usize::MAX => Err(sys::errno()),
            address => Ok(address),
        })
    })
}

/// A call that takes the place of whatever is mapped in a range.
fn replace(
    address: usize,
    bytes: usize,
    call: impl FnOnce() -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let Some(range) = pages(address, bytes) else { return call() };
    let change = pieces::change();
    let table = pieces::table();
    if table.first_within(&range).is_none() {
        return call();
    }
    if !table.has_room(1) {
        return Err(libc::ENOMEM);
    }
    let result = call()?;
    table.cut(&range);
    drop(table);
    tell_unmapped(&change, None, &range);
    Ok(result)
}

/// mremap(2) of, or onto, a range in which attachments may lie.
pub fn remap(arguments: [usize; 5]) -> usize {
    serve(|| remap_ours(arguments))
}

fn remap_ours([from, from_bytes, to_bytes, flags, to]: [usize; 5]) -> Result<usize, Errno> {
    let pass = || memory::pass(libc::SYS_mremap, [from, from_bytes, to_bytes, flags, to, 0]);
    let is_fixed = flags & libc::MREMAP_FIXED as usize != 0;
    let change = pieces::change();
    if from_bytes == 0 && pieces::table().first_within(&(from..from.saturating_add(1))).is_some() {
        return Err(libc::EINVAL); // a second mapping
    }
    let (Some(old), Some(new)) = (pages(from, from_bytes), pages(0, to_bytes)) else {
        return pass();
    };
    if is_fixed && let Some(target) = pages(to, new.len()) {
        let is_apart = target.end <= old.start || old.end <= target.start;
        if is_apart && pieces::table().first_within(&target).is_some() {
            make_way(&target)?;
            tell_unmapped(&change, None, &target);
        }
    }
    let table = pieces::table();
    let Some(first) = table.first_within(&old) else { return pass() };
    if flags & libc::MREMAP_DONTUNMAP as usize != 0 {
        return Err(libc::EINVAL); // as before Linux 5.13
    }
    if new.len() > old.len() {
        may_grow(&table, &first, &old)?;
    }
    if !table.has_room(2) {
        return Err(libc::ENOMEM);
    }
    // What dipcd closes meanwhile at its old place must be closed at the new one.
    trap::close(&table, &old);
    let start = pass()?;
    let moved = start..start + new.len();
    note_moved(&table, &old, &moved);
    drop(table);
    tell_moved(&change, &old, &moved);
    Ok(start)
}

/// Unmaps what attachments there are, before something else is moved there.
fn make_way(range: &Range<usize>) -> Result<(), Errno> {
    let table = pieces::table();
    if !table.has_room(1) {
        return Err(libc::ENOMEM);
    }
    memory::unmap(range.start, range.len())?;
    table.cut(range);
    Ok(())
}

/// A mapping may grow beyond its segment's end, where nothing is, but not into pages that others
/// may hold by now. Like the kernel we let it grow only whole.
fn may_grow(table: &Table, first: &Piece, old: &Range<usize>) -> Result<(), Errno> {
    if first.range() != *old {
        return Err(libc::EFAULT);
    }
    let attached = table.pieces().find(|piece| piece.range().contains(&old.start));
    let is_to_end = attached.is_some_and(|piece| piece.offset_of(old.end) >= piece.whole);
    if is_to_end { Ok(()) } else { Err(libc::ENOMEM) }
}

/// Notes what a remap has done: the pieces that lay in `old` lie in `new`, as far as it reaches.
fn note_moved(table: &Table, old: &Range<usize>, new: &Range<usize>) {
    let kept = old.start..old.start + old.len().min(new.len());
    table.cut(&(kept.end..old.end));
    if old.start != new.start {
        while let Some(piece) = table.first_within(&kept) {
            table.cut(&piece.range());
            table.add(piece.moved_to(new.start + (piece.start - old.start)));
        }
    }
    let kept_end = new.start + kept.len();
    if kept_end < new.end
        && let Some(last) = table.pieces().find(|piece| piece.end == kept_end)
    {
        table.cut(&last.range());
        table.add(Piece { end: new.end, ..last });
    }
}

/// mprotect(2) or pkey_mprotect(2) of a range in which attachments may lie.
pub fn protect(address: usize, bytes: usize, protection: c_int, key: Option<c_int>) -> c_int {
    let number = key.map_or(libc::SYS_mprotect, |_| libc::SYS_pkey_mprotect);
    let key = key.unwrap_or(0) as usize;
    let pass = |range: &Range<usize>| {
        let arguments = [range.start, range.len(), protection as usize, key, 0, 0];
        memory::pass(number, arguments).map(|_| ())
    };
    serve(|| match pages(address, bytes) {
        Some(range) => protect_ours(range, Protection(protection as u32), pass).map(|()| 0),
        None => {
            let arguments = [address, bytes, protection as usize, key, 0, 0];
            memory::pass(number, arguments).map(|_| 0)
        }
    })
}

fn protect_ours(
    range: Range<usize>,
    wanted: Protection,
    pass: impl Fn(&Range<usize>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let table = pieces::table();
    if !table.has_room(2) {
        return Err(libc::ENOMEM);
    }
    let refused = table.within(&range).filter(|_| wanted.has(Protection::WRITE));
    let refused = refused.filter(|piece| !piece.may_write).map(|piece| piece.start).min();
    // As the kernel does: what lies before is changed.
    let mut rest = range.start..refused.unwrap_or(range.end);
    while !rest.is_empty() {
        let Some(piece) = table.first_within(&rest) else {
            pass(&rest)?;
            break;
        };
        if rest.start < piece.start {
            pass(&(rest.start..piece.start))?;
        }
        if !wanted.is_known() || !trap::close(&table, &piece.range()) {
            pass(&piece.range())?;
        }
        table.revise(&piece.range(), |piece| piece.wanted = wanted);
        rest.start = piece.end;
    }
    if refused.is_some() { Err(libc::EACCES) } else { Ok(()) }
}

/// madvise(2) about a range in which attachments may lie.
pub fn advise(address: usize, bytes: usize, advice: c_int) -> c_int {
    let Some(range) = pages(address, bytes) else { return kernel::madvise(address, bytes, advice) };
    match advice {
        libc::MADV_REMOVE => remove(range),
        libc::MADV_DONTFORK | libc::MADV_DOFORK => serve(|| inherit(&range, advice)),
        // A huge page would make zeros of pages that are elsewhere.
        libc::MADV_HUGEPAGE => 0,
        MADV_COLLAPSE => fail(SysvError::EINVAL),
        _ => kernel::madvise(address, bytes, advice),
    }
}

/// remap_file_pages(2) of a range in which attachments lie.
pub fn refuse() -> c_int {
    fail(SysvError::EINVAL)
}

fn inherit(range: &Range<usize>, advice: c_int) -> Result<c_int, Errno> {
    let table = pieces::table();
    if !table.has_room(2) {
        return Err(libc::ENOMEM);
    }
    memory::pass(libc::SYS_madvise, [range.start, range.len(), advice as usize, 0, 0, 0])?;
    table.revise(range, |piece| piece.is_inherited = advice == libc::MADV_DOFORK);
    Ok(0)
}

/// `MADV_REMOVE`: the pages read as zeros, for everybody. A hole would be this node's alone, so
/// zeros are stored. What the kernel would refuse - locked pages, and such as are not writable -
/// is refused.
fn remove(range: Range<usize>) -> c_int {
    let mut rest = range;
    while !rest.is_empty() {
        let piece = match attempt(|_| Ok(pieces::table().first_within(&rest))) {
            Ok(piece) => piece,
            Err(error) => return fail(error),
        };
        let start = piece.map_or(rest.end, |piece| piece.start);
        if rest.start < start {
            let result = kernel::madvise(rest.start, start - rest.start, libc::MADV_REMOVE);
            if result != 0 {
                return result;
            }
        }
        let Some(piece) = piece else { return 0 };
        let bytes = piece.end - piece.start;
        if !piece.wanted.has(Protection::WRITE) {
            return fail(SysvError::EACCES);
        }
        let result = kernel::madvise(piece.start, bytes, libc::MADV_DONTNEED);
        if result != 0 {
            return result;
        }
        memory::zero(piece.start, bytes);
        rest.start = piece.end;
    }
    0
}
