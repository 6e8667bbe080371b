//! A file of a segment on this node: the content that programs map, and beside it the copies of
//! pages that are kept aside until somebody else has them.
//!
//! Both are memfds, sealed against growing and shrinking, so that no program can pull the ground
//! from under another. A page that is not here is a hole; so nothing here may fill one but a
//! grant, and one written page must be one page: see [`check_holes`]. Programs get descriptors of
//! their own making ([`ReplicaFile::for_program`]), because flags belong to the open file.
#![forbid(unsafe_code)]

use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use dipc_wire::keeper::SegmentFile;

use crate::sys::buffer::LockedBuffer;
use crate::sys::populate::populate;

/// What the names of our memfds begin with, as /proc/PID/maps shows them.
pub const NAME_PREFIX: &str = "dipc-";
/// Pages that are punched at a time: a large hole takes the kernel 0.1 s a gigabyte.
const PUNCH_BYTES_MAX: u64 = 16 << 20;

/// A part of a file in whole pages of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

impl Span {
    /// The first byte behind it.
    pub fn end(self) -> u64 {
        self.offset + self.bytes
    }

    /// What belongs to both; `None` if nothing does.
    pub fn and(self, other: Span) -> Option<Span> {
        let offset = self.offset.max(other.offset);
        let end = self.end().min(other.end());
        (offset < end).then(|| Span { offset, bytes: end - offset })
    }

    /// The same in pieces that begin at multiples of `bytes_max`.
    pub fn pieces(self, bytes_max: u64) -> impl Iterator<Item = Span> {
        let first = self.offset / bytes_max;
        let last = self.end().div_ceil(bytes_max);
        (first..last)
            .filter_map(move |piece| self.and(Span { offset: piece * bytes_max, bytes: bytes_max }))
    }
}

/// A file as /proc/PID/maps and fstat(2) name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

/// One file of a segment on this node.
#[derive(Debug)]
pub struct ReplicaFile {
    name: SegmentFile,
    id: FileId,
    bytes: u64,
    content: Arc<OwnedFd>,
    aside: Arc<OwnedFd>,
}

impl ReplicaFile {
    /// A new file of holes; `bytes` is a multiple of the system's page.
    pub fn create(name: SegmentFile, bytes: u64) -> io::Result<ReplicaFile> {
        let content = format!("{NAME_PREFIX}{:x}-{}", name.id.raw(), name.replica.0);
        let aside = format!("{content}-aside");
        let content = sealed(&content, bytes)?;
        ReplicaFile::adopt(name, Arc::new(content), Arc::new(sealed(&aside, bytes)?))
    }

    /// Goes on with what a predecessor made.
    pub fn adopt(
        name: SegmentFile,
        content: Arc<OwnedFd>,
        aside: Arc<OwnedFd>,
    ) -> io::Result<ReplicaFile> {
        let stat = rustix::fs::fstat(&content)?;
        let id = FileId { device: stat.st_dev, inode: stat.st_ino };
        let bytes = u64::try_from(stat.st_size).map_err(io::Error::other)?;
        Ok(ReplicaFile { name, id, bytes, content, aside })
    }

    /// What it is called in the keeper.
    pub fn name(&self) -> SegmentFile {
        self.name
    }

    /// How processes that map it show it.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// All of it.
    pub fn span(&self) -> Span {
        Span { offset: 0, bytes: self.bytes }
    }

    /// The content, for the keeper.
    pub fn content(&self) -> &Arc<OwnedFd> {
        &self.content
    }

    /// The copies kept aside, for the keeper.
    pub fn aside(&self) -> &Arc<OwnedFd> {
        &self.aside
    }

    /// A descriptor of the content to give away.
    pub fn for_program(&self) -> io::Result<OwnedFd> {
        let link = format!("/proc/self/fd/{}", self.content.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::open(link, flags, rustix::fs::Mode::empty())?)
    }

    /// Reads content; a hole is zeros, and stays one.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        read_whole(self.content.as_fd(), offset, into)
    }

    /// Writes content. A reader sees a page before or after, but only because the buffer is
    /// locked: `from` is a part of a [`LockedBuffer`].
    pub fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        write_whole(self.content.as_fd(), offset, from)
    }

    /// Makes pages of zeros where there are holes; what is there, or comes meanwhile, stays.
    pub fn make_pages(&self, span: Span) -> io::Result<()> {
        populate(self.content.as_fd(), span.offset, span.bytes)
    }

    /// Makes a hole: whoever maps it has nothing there any more.
    pub fn punch(&self, span: Span) -> io::Result<()> {
        punch(self.content.as_fd(), span)
    }

    /// The pages that are there, in runs.
    pub fn present(&self, span: Span) -> io::Result<Vec<Span>> {
        present(self.content.as_fd(), span)
    }

    /// The pieces in which some page is there; those side by side as one.
    pub fn used(&self, span: Span, bytes_max: u64) -> io::Result<Vec<Span>> {
        let mut used: Vec<Span> = Vec::new();
        for piece in span.pieces(bytes_max) {
            let known = used.last_mut().filter(|last| last.end() == piece.offset);
            match (next_data(self.content.as_fd(), piece.offset)?, known) {
                // Nothing behind it.
                (None, _) => break,
                (Some(data), _) if data >= piece.end() => {}
                (Some(_), Some(last)) => last.bytes += piece.bytes,
                (Some(_), None) => used.push(piece),
            }
        }
        Ok(used)
    }

    /// Copies what there is of a part to the file aside, which has nothing else there then.
    pub fn keep_aside(&self, span: Span) -> io::Result<()> {
        self.drop_aside(span)?;
        for run in self.present(span)? {
            copy(self.content.as_fd(), self.aside.as_fd(), run)?;
        }
        Ok(())
    }

    /// Puts content aside that is at hand already.
    pub fn write_aside(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        write_whole(self.aside.as_fd(), offset, from)
    }

    /// Reads what was kept.
    pub fn read_aside(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        read_whole(self.aside.as_fd(), offset, into)
    }

    /// Frees what was kept.
    pub fn drop_aside(&self, span: Span) -> io::Result<()> {
        punch(self.aside.as_fd(), span)
    }

    /// The pages that are kept aside, in runs.
    pub fn present_aside(&self, span: Span) -> io::Result<Vec<Span>> {
        present(self.aside.as_fd(), span)
    }
}

/// Whether a page is all zeros, and need not travel.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// At start: a write into a hole makes one page, and its neighbours stay holes. With huge pages
/// forced upon memfds a program would read zeros there instead of faulting.
pub fn check_holes() -> io::Result<()> {
    let page = rustix::param::page_size();
    let file = sealed("dipc-check", 4 << 20)?;
    let buffer = LockedBuffer::new(page)?;
    write_whole(file.as_fd(), 0, &buffer[..page])?;
    let stat = rustix::fs::fstat(&file)?;
    // Of 512 bytes, whatever the file system (stat(2)).
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
    if allocated == page as u64 {
        return Ok(());
    }
    let why = format!(
        "a page written to a memfd takes {allocated} bytes instead of {page}; \
         /sys/kernel/mm/transparent_hugepage/shmem_enabled must not be \"force\" or \"always\""
    );
    Err(io::Error::other(why))
}

fn sealed(name: &str, bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        file => file?,
    };
    rustix::fs::ftruncate(&file, bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

fn read_whole(file: BorrowedFd<'_>, mut offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut rest = into;
    while !rest.is_empty() {
        match rustix::io::pread(file, &mut *rest, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                rest = &mut rest[length..];
                offset += length as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write_whole(file: BorrowedFd<'_>, mut offset: u64, from: &[u8]) -> io::Result<()> {
    let mut rest = from;
    while !rest.is_empty() {
        match rustix::io::pwrite(file, rest, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => {
                rest = &rest[length..];
                offset += length as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn punch(file: BorrowedFd<'_>, span: Span) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for piece in span.pieces(PUNCH_BYTES_MAX) {
        while let Err(error) = rustix::fs::fallocate(file, flags, piece.offset, piece.bytes) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// Where the next page is that is there.
fn next_data(file: BorrowedFd<'_>, from: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Err(Errno::NXIO) => Ok(None),
        data => Ok(Some(data?)),
    }
}

fn present(file: BorrowedFd<'_>, span: Span) -> io::Result<Vec<Span>> {
    let mut runs = Vec::new();
    let mut at = span.offset;
    while at < span.end() {
        let Some(data) = next_data(file, at)? else { break };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?;
        runs.extend(Span { offset: data, bytes: hole - data }.and(span));
        at = hole;
    }
    Ok(runs)
}

/// Copies within the kernel, so that no buffer is needed.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, span: Span) -> io::Result<()> {
    let (mut source, mut target) = (span.offset, span.offset);
    while source < span.end() {
        let left = (span.end() - source) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dipc_wire::ids::{NodeId, ObjectId};
    use dipc_wire::memory::Replica;

    const PAGE: u64 = 4096;

    fn file(pages: u64) -> ReplicaFile {
        let name = SegmentFile {
            id: ObjectId::from_number(5),
            home: NodeId::new(1).unwrap(),
            replica: Replica::HOME,
        };
        ReplicaFile::create(name, pages * PAGE).unwrap()
    }

    fn pages(first: u64, count: u64) -> Span {
        Span { offset: first * PAGE, bytes: count * PAGE }
    }

    #[test]
    fn parts_meet_and_fall_into_pieces() {
        let span = pages(3, 6);
        assert_eq!(span.and(pages(0, 4)), Some(pages(3, 1)));
        assert_eq!(span.and(pages(0, 3)), None);
        assert_eq!(span.and(pages(9, 3)), None);
        let pieces: Vec<Span> = span.pieces(4 * PAGE).collect();
        assert_eq!(pieces, [pages(3, 1), pages(4, 4), pages(8, 1)]);
    }

    #[test]
    fn pages_are_written_kept_aside_and_punched() {
        check_holes().unwrap();
        let file = file(64);
        let mut buffer = LockedBuffer::new(PAGE as usize).unwrap();
        buffer.fill(7);
        for page in [1, 2, 9] {
            file.write(page * PAGE, &buffer).unwrap();
        }
        assert_eq!(file.present(file.span()).unwrap(), [pages(1, 2), pages(9, 1)]);
        assert_eq!(file.present(pages(2, 6)).unwrap(), [pages(2, 1)]);

        let used = |pieces: u64| file.used(pages(0, 12), pieces * PAGE).unwrap();
        assert_eq!(used(2), [pages(0, 4), pages(8, 2)]);
        assert_eq!(used(8), [pages(0, 12)]);

        file.write_aside(3 * PAGE, &buffer).unwrap();
        file.keep_aside(pages(2, 10)).unwrap();
        file.punch(pages(0, 10)).unwrap();
        assert_eq!(file.present(file.span()).unwrap(), []);
        assert_eq!(file.present_aside(file.span()).unwrap(), [pages(2, 1), pages(9, 1)]);
        let mut found = vec![0; PAGE as usize];
        file.read_aside(9 * PAGE, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 7) && !is_zero(&found));
        file.read(9 * PAGE, &mut found).unwrap();
        assert!(is_zero(&found), "a hole reads as zeros");
        assert_eq!(file.present(file.span()).unwrap(), [], "and is one still");
        file.drop_aside(file.span()).unwrap();
        assert_eq!(file.present_aside(file.span()).unwrap(), []);
    }

    #[test]
    fn pages_are_made_of_holes_alone() {
        let file = file(8);
        let mut buffer = LockedBuffer::new(PAGE as usize).unwrap();
        buffer.fill(7);
        file.write(2 * PAGE, &buffer).unwrap();
        file.make_pages(pages(1, 4)).unwrap();
        assert_eq!(file.present(file.span()).unwrap(), [pages(1, 4)]);
        let mut found = vec![1; 3 * PAGE as usize];
        file.read(PAGE, &mut found).unwrap();
        assert!(is_zero(&found[..PAGE as usize]) && is_zero(&found[2 * PAGE as usize..]));
        assert_eq!(found[PAGE as usize], 7, "what was there stays");
    }

    #[test]
    fn a_program_can_neither_cut_the_file_nor_change_how_we_write() {
        let file = file(4);
        let theirs = file.for_program().unwrap();
        assert_eq!(rustix::fs::ftruncate(&theirs, 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&theirs, 5 * PAGE), Err(Errno::PERM));
        rustix::fs::fcntl_setfl(&theirs, OFlags::APPEND).unwrap();
        file.write(PAGE, &[1; 16]).unwrap();
        let mut found = [0; 16];
        file.read(PAGE, &mut found).unwrap();
        assert_eq!(found, [1; 16]);
    }
}
