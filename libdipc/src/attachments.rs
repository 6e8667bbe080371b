//! shmat and shmdt of our segments.
//!
//! ```text
//! shmat   Attach ─▶ mmap, closed ─▶ Mapped ─▶ mprotect        dipcd registers before it opens
//! shmdt   munmap ─▶ Unmapped
//! ```
//!
//! The kernel would fill a page that is touched before dipcd serves it, so a mapping begins closed.
//! All signals are blocked meanwhile: nothing comes in between, and whatever fails is undone.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::os::fd::OwnedFd;

use dipc_wire::client::{Answer, AttachmentNo, Call, Trap};
use dipc_wire::ids::ObjectId;
use dipc_wire::sysv::{SHM_EXEC, SHM_RDONLY, SHM_REMAP, SHM_RND, SysvError};

use crate::client::NoAnswer;
use crate::pieces::{self, Change, Piece, Table};
use crate::sys::memory::{self, PAGE_BYTES, Protection, whole_pages};
use crate::{client, kernel, log, trap};

/// Where shmat is to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// Wherever there is room.
    Anywhere,
    /// At this address, if nothing is mapped there.
    Free(usize),
    /// At this address, whatever is mapped there.
    Over(usize),
}

impl Where {
    /// From the arguments of shmat, as ipc/shm.c takes them. An address that is rounded down to 0
    /// is one that nobody can be in the way of.
    pub fn new(address: usize, flags: i32) -> Result<Where, SysvError> {
        let (rounds, replaces) = (flags & SHM_RND != 0, flags & SHM_REMAP != 0);
        let below = address % PAGE_BYTES;
        match address - below {
            _ if address == 0 && replaces => Err(SysvError::EINVAL),
            _ if address == 0 => Ok(Where::Anywhere),
            _ if below != 0 && !rounds => Err(SysvError::EINVAL),
            0 if replaces => Err(SysvError::EINVAL),
            0 => Ok(Where::Over(0)),
            address if replaces => Ok(Where::Over(address)),
            address => Ok(Where::Free(address)),
        }
    }

    /// Maps the file there, closed.
    fn map(self, bytes: usize, file: &OwnedFd) -> Result<usize, SysvError> {
        let (address, flags) = match self {
            Where::Anywhere => (0, 0),
            Where::Over(address) => (address, libc::MAP_FIXED),
            Where::Free(address) => (address, libc::MAP_FIXED_NOREPLACE),
        };
        if matches!(self, Where::Free(_)) && address.checked_add(bytes).is_none() {
            return Err(SysvError::EINVAL);
        }
        match memory::map_closed(address, bytes, flags, file) {
            Ok(other) if address != 0 && other != address => {
                let _ = memory::unmap(other, bytes); // before Linux 4.17 it was only a wish
                Err(SysvError::EINVAL)
            }
            Err(libc::EEXIST) => Err(SysvError::EINVAL),
            mapped => mapped.map_err(SysvError::from_errno),
        }
    }
}

/// What the flags of shmat let the program do.
fn wanted(flags: i32) -> Protection {
    let writable = if flags & SHM_RDONLY == 0 { Protection::WRITE } else { Protection::NONE };
    let executable = if flags & SHM_EXEC != 0 { Protection::EXEC } else { Protection::NONE };
    Protection::READ.and(writable).and(executable)
}

/// shmat(2) of a segment of ours.
pub fn attach(id: ObjectId, place: Where, flags: i32) -> Result<usize, SysvError> {
    let change = pieces::change();
    for _ in 0..client::RESTARTS_MAX {
        match attach_once(&change, id, place, flags) {
            Err(SysvError::EPERM) => {}
            done => return done,
        }
    }
    attach_once(&change, id, place, flags)
}

/// `EPERM`: dipcd was restarted in the middle of it, and knows nothing of the attachment.
fn attach_once(
    change: &Change,
    id: ObjectId,
    place: Where,
    flags: i32,
) -> Result<usize, SysvError> {
    let mm = trap::ready(change)?;
    let answered = match client::call(Call::Attach { mm, id, flags }) {
        // This dipcd does not know us: the one that did was stopped for good.
        Err(NoAnswer::Refused(SysvError::EPERM)) => {
            let mm = trap::begin_anew(change)?;
            client::call(Call::Attach { mm, id, flags })
        }
        answered => answered,
    };
    let (answer, file) = answered?;
    let Answer::Attached { attachment, bytes, may_write } = answer else {
        return Err(SysvError::EIO);
    };
    let whole = usize::try_from(bytes).ok().and_then(whole_pages);
    let given_up = |error| {
        tell_unmapped(change, Some(attachment), &(0..0));
        error
    };
    let (Some(whole), Some(file)) = (whole, file) else {
        return Err(given_up(SysvError::ENOMEM)); // no descriptor was free for it
    };
    let wanted = wanted(flags);
    let piece = |start| Piece {
        attachment,
        start,
        end: start + whole,
        offset: 0,
        whole,
        wanted,
        may_write,
        is_inherited: true,
    };
    let (start, replaced) = map(place, &file, whole, piece).map_err(given_up)?;
    drop(file);
    let range = start..start + whole;
    if replaced {
        tell_unmapped(change, None, &range);
    }
    let mapped = client::call(Call::Mapped { attachment, address: start as u64 });
    let opened = mapped.map_err(SysvError::from).and_then(|_| match trap::current() {
        Some(Trap::Mprotect) => Ok(()), // opened by the helper, page by page
        _ => memory::protect(start, whole, wanted).map_err(SysvError::from_errno),
    });
    if opened.is_err() {
        unmap(&pieces::table(), &range);
        tell_unmapped(change, Some(attachment), &range);
    }
    opened.map(|()| start)
}

/// Maps the file and notes it. Returns where, and whether it is over other attachments.
fn map(
    place: Where,
    file: &OwnedFd,
    whole: usize,
    piece: impl Fn(usize) -> Piece,
) -> Result<(usize, bool), SysvError> {
    let table = pieces::table();
    if !table.has_room(2) {
        return Err(SysvError::ENOMEM);
    }
    let start = place.map(whole, file)?;
    let range = start..start + whole;
    let replaced = table.first_within(&range).is_some();
    if replaced {
        table.cut(&range);
    }
    table.add(piece(start));
    Ok((start, replaced))
}

fn unmap(table: &Table, range: &Range<usize>) {
    let unmapped = memory::unmap(range.start, range.len());
    if unmapped.is_ok() {
        table.cut(range);
    }
}

/// shmdt(2): detaches everything that lies as one attachment at `address` would, also when parts
/// of it were unmapped. `None` if that is none of ours.
pub fn detach(address: usize) -> Option<i32> {
    let change = pieces::change();
    let found = pieces::table().attached_at(address)?;
    if found.start != address && kernel::memory::shmdt(address) == 0 {
        return Some(0); // a segment of the kernel's lies before the rest of ours
    }
    // The first goes whatever its length; it may have grown. The others as far as the segment goes.
    let end = found.end.max(address.saturating_add(found.whole));
    let is_meant = |piece: &Piece| {
        piece.attachment == found.attachment && piece.is_attached_at(address) && piece.end <= end
    };
    loop {
        let table = pieces::table();
        let Some(piece) = table.pieces().find(is_meant) else { return Some(0) };
        unmap(&table, &piece.range());
        table.cut(&piece.range());
        drop(table);
        tell_unmapped(&change, Some(piece.attachment), &piece.range());
    }
}

/// Says that a range was unmapped, and waits until dipcd has noted it.
pub fn tell_unmapped(_: &Change, attachment: Option<AttachmentNo>, range: &Range<usize>) {
    let Some(mm) = trap::number() else { return };
    let (address, bytes) = (range.start as u64, range.len() as u64);
    tell(Call::Unmapped { mm, attachment, address, bytes });
}

/// Says that mappings were moved or resized.
pub fn tell_moved(_: &Change, from: &Range<usize>, to: &Range<usize>) {
    let Some(mm) = trap::number() else { return };
    tell(Call::Moved {
        mm,
        from: from.start as u64,
        from_bytes: from.len() as u64,
        to: to.start as u64,
        to_bytes: to.len() as u64,
    });
}

/// What cannot be told now, dipcd sees in /proc when it next looks.
fn tell(call: Call) {
    if let Err(reason) = client::call(call) {
        log::line(format_args!("op=unmapped errno={:?}", SysvError::from(reason)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_the_kernel_does() {
        let refused = Err(SysvError::EINVAL);
        let page = 0x10000;
        let rows = [
            (0, 0, Ok(Where::Anywhere)),
            (0, SHM_RND, Ok(Where::Anywhere)),
            (0, SHM_REMAP, refused),
            (page, 0, Ok(Where::Free(page))),
            (page, SHM_REMAP, Ok(Where::Over(page))),
            (page + 1, 0, refused),
            (page + 1, SHM_REMAP, refused),
            (page + 1, SHM_RND, Ok(Where::Free(page))),
            (page + 4095, SHM_RND | SHM_REMAP, Ok(Where::Over(page))),
            (1, SHM_RND, Ok(Where::Over(0))),
            (1, SHM_RND | SHM_REMAP, refused),
        ];
        for (address, flags, expected) in rows {
            assert_eq!(Where::new(address, flags), expected, "{address:#x} {flags:#o}");
        }
    }

    #[test]
    fn flags_say_what_is_wanted() {
        let read = Protection::READ;
        assert_eq!(wanted(0), read.and(Protection::WRITE));
        assert_eq!(wanted(SHM_RDONLY), read);
        assert_eq!(wanted(SHM_RDONLY | SHM_EXEC), read.and(Protection::EXEC));
    }
}
