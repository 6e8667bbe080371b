//! One file of a segment on this node, as the machines of dipc-core see it: their steps become
//! reads, writes and protections here, for every attachment at once, under the segment's lock.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use dipc_core::copies::{CopyStep, Place, Run, Source};
use dipc_wire::limits::PART_BYTES;
use dipc_wire::memory::{Access, Content, Granted, PageNo};

use super::buffers::{Buffer, Buffers};
use super::content::Contents;
use super::staging::Staging;
use crate::memory::families::Mappings;
use crate::memory::files::{ReplicaFile, Span, is_zero};
use crate::memory::geometry::Geometry;
use crate::sys::process::send_signal_about;

/// Up to so much is copied by way of a buffer, which takes fewer system calls.
const SMALL_BYTES: u64 = 64 << 10;
/// linux/dipc.h.
const DIPC_SIG_READER: i32 = 50;
const DIPC_SIG_WRITER: i32 = 51;

/// A file and everybody who maps it here.
pub struct NodeFile {
    /// The file.
    pub file: Arc<ReplicaFile>,
    /// Who maps it.
    pub mappings: Arc<Mappings>,
    geometry: Geometry,
    /// Contents that come in parts.
    pub staging: HashMap<PageNo, Staging>,
    /// Pages that programs may use otherwise than before, if they want to hear of it
    /// (`inhibit_shm_signal = no`).
    pub became: Option<Vec<PageNo>>,
    /// What the step in hand has filled and not mapped yet, and what it has opened last: whoever
    /// waits there is woken by the mapping, or has been.
    filled: Vec<Run>,
    opened: Option<Run>,
}

impl NodeFile {
    /// A file that nobody waits for.
    pub fn new(file: Arc<ReplicaFile>, mappings: Arc<Mappings>, geometry: Geometry) -> NodeFile {
        let (staging, filled) = (HashMap::new(), Vec::new());
        NodeFile { file, mappings, geometry, staging, became: None, filled, opened: None }
    }

    /// How its segment is cut.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Does one step. `contents` is what came with the frame that is being stepped.
    pub fn carry_out(
        &mut self,
        step: &CopyStep,
        contents: &Contents<'_>,
        buffers: &Buffers,
    ) -> io::Result<()> {
        match *step {
            CopyStep::Protect(run) => {
                if run.count == 1 {
                    self.note(run.first);
                }
                self.mappings.protect(self.run(run))
            }
            CopyStep::Fill { page, from } => self.fill(page, from, contents, buffers),
            CopyStep::Keep { page, from } => self.keep(page, from, contents, buffers),
            CopyStep::Punch(run) => {
                self.show();
                self.mappings.punch(self.run(run))
            }
            CopyStep::FreeAside(run) => self.file.drop_aside(self.run(run)),
            CopyStep::Open(page) => {
                self.open(Run::one(page));
                Ok(())
            }
            CopyStep::Wake(page) => {
                let is_woken = |run: &Run| has(run, page);
                if !self.filled.iter().chain(&self.opened).any(is_woken) {
                    self.mappings.wake(self.run(Run::one(page)));
                }
                Ok(())
            }
            CopyStep::Fail { page, .. } => {
                self.show();
                self.mappings.poison(self.run(Run::one(page)))
            }
        }
    }

    /// The end of a step: what it has filled is mapped.
    pub fn show(&mut self) {
        for run in std::mem::take(&mut self.filled) {
            self.mappings.show(self.run(run));
        }
        self.opened = None;
    }

    /// Programs may write these pages, which are there.
    pub fn open(&mut self, run: Run) {
        pages_of(run).for_each(|page| self.note(page));
        let span = self.run(run);
        match self.filled.last() {
            Some(filled) if *filled == run => {
                self.filled.pop();
                self.mappings.show_open(span);
            }
            _ => self.mappings.open(span),
        }
        self.opened = Some(run);
    }

    /// Zeros where nothing is: pages that nobody has ever touched. What a program stores there
    /// meanwhile stays.
    pub fn fill_holes(&self, run: Run) -> io::Result<()> {
        self.file.make_pages(self.run(run))
    }

    /// SIGBUS for whoever touches any of it.
    pub fn fail_all(&mut self) -> io::Result<()> {
        self.empty()?;
        self.mappings.poison(self.geometry.all())
    }

    /// Nobody has access to anything, and nothing is left of the contents.
    pub fn empty(&mut self) -> io::Result<()> {
        let all = self.geometry.all();
        self.staging.clear();
        self.mappings.protect(all)?;
        self.mappings.punch(all)?;
        self.file.drop_aside(all)
    }

    fn run(&self, run: Run) -> Span {
        self.geometry.run(run).expect("dipc-core names pages of the segment only")
    }

    fn note(&mut self, page: PageNo) {
        if let Some(became) = &mut self.became
            && !became.contains(&page)
        {
            became.push(page);
        }
    }

    /// Tells whoever maps a page of which he is a reader or the writer now.
    pub fn tell(&mut self, access: impl Fn(PageNo) -> Option<Access>) {
        let Some(pages) = self.became.as_mut().filter(|pages| !pages.is_empty()) else { return };
        let pages = std::mem::take(pages);
        let attachments = self.mappings.attachments();
        for page in pages {
            let Some(access) = access(page) else { continue };
            let part = self.run(Run::one(page));
            for attachment in &attachments {
                let (Some(both), Some(process)) = (attachment.span.and(part), &attachment.process)
                else {
                    continue;
                };
                let address = attachment.pages.address + (both.offset - attachment.span.offset);
                let signal = match access {
                    Access::Read => DIPC_SIG_READER,
                    Access::Write => DIPC_SIG_WRITER,
                };
                send_signal_about(&process.pidfd, signal, address);
            }
        }
    }

    fn fill(
        &mut self,
        page: PageNo,
        from: Source,
        contents: &Contents<'_>,
        buffers: &Buffers,
    ) -> io::Result<()> {
        self.note(page);
        let span = self.run(Run::one(page));
        let fill = |piece: Span, content: &[u8]| self.mappings.fill(piece, content);
        self.each_piece(page, span, from, contents, buffers, fill)?;
        self.filled.push(Run::one(page));
        Ok(())
    }

    /// Fills pages side by side as one: all of them zeros, or all come raw with the frame.
    pub fn fill_run(
        &mut self,
        run: Run,
        content: Content,
        contents: &Contents<'_>,
        buffers: &Buffers,
    ) -> io::Result<()> {
        pages_of(run).for_each(|page| self.note(page));
        let span = self.run(run);
        match contents.pages_from(run.first, span.bytes as usize) {
            Some(raw) if content == Content::Raw => self.mappings.fill(span, raw)?,
            _ => {
                let mut buffer = buffers.take()?;
                let zeros = &mut buffer[..span.bytes as usize];
                zeros.fill(0);
                self.mappings.fill(span, zeros)?;
            }
        }
        self.filled.push(run);
        Ok(())
    }

    fn keep(
        &mut self,
        page: PageNo,
        from: Source,
        contents: &Contents<'_>,
        buffers: &Buffers,
    ) -> io::Result<()> {
        let span = self.run(Run::one(page));
        match from {
            // A hole is zeros.
            Source::Frame(Content::Zero) => self.file.drop_aside(span),
            Source::Node if span.bytes > SMALL_BYTES => self.file.keep_aside(span),
            Source::Node => {
                let mut buffer = buffers.take()?;
                let bytes = &mut buffer[..span.bytes as usize];
                self.file.read(span.offset, bytes)?;
                match is_zero(bytes) {
                    true => self.file.drop_aside(span),
                    false => self.file.write_aside(span.offset, bytes),
                }
            }
            Source::Frame(_) => {
                let write = |piece: Span, bytes: &[u8]| self.file.write_aside(piece.offset, bytes);
                self.each_piece(page, span, from, contents, buffers, write)
            }
        }
    }

    /// Hands out the content of a page in pieces of memory that does not fault. `Source::Node` is
    /// the aside.
    fn each_piece(
        &self,
        page: PageNo,
        span: Span,
        from: Source,
        contents: &Contents<'_>,
        buffers: &Buffers,
        mut take: impl FnMut(Span, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if from == Source::Frame(Content::Raw)
            && let Some(raw) = contents.pages_from(page, span.bytes as usize)
        {
            return take(span, raw);
        }
        let mut buffer = buffers.take()?;
        for piece in span.pieces(PART_BYTES as u64) {
            let bytes = &mut buffer[..piece.bytes as usize];
            match from {
                Source::Frame(Content::Parts) => match self.staging.get(&page) {
                    Some(staging) => staging.read(piece.offset - span.offset, bytes)?,
                    None => bytes.fill(0),
                },
                Source::Frame(Content::Zero) => bytes.fill(0),
                Source::Node => self.file.read_aside(piece.offset, bytes)?,
                Source::Frame(Content::Raw | Content::None) => {
                    return Err(io::Error::other("a step without the content it is about"));
                }
            }
            take(piece, bytes)?;
        }
        Ok(())
    }

    /// Reads from where a content lies.
    pub fn read(&self, offset: u64, from: Place, into: &mut [u8]) -> io::Result<()> {
        match from {
            Place::File => self.file.read(offset, into),
            Place::Aside => self.file.read_aside(offset, into),
        }
    }

    /// Reads the contents of pages that a frame is to carry behind the bytes `into` has already, or
    /// marks that they are zeros.
    pub fn gather(
        &self,
        granted: &mut [Granted],
        from: Place,
        into: &mut Gathered<'_>,
    ) -> io::Result<()> {
        let in_parts = self.geometry.in_parts();
        let go_together = |one: &Granted, next: &Granted| {
            !in_parts && one.content == next.content && one.page.0 + 1 == next.page.0
        };
        for run in granted.chunk_by_mut(go_together) {
            match run {
                [first, ..] if first.content != Content::Raw => {}
                [one] if in_parts => {
                    let span = self.run(Run::one(one.page));
                    self.gather_parts(one, span, from, into)?;
                }
                run => self.gather_run(run, from, into)?,
            }
        }
        Ok(())
    }

    /// The same for pages side by side, which are read as one.
    fn gather_run(
        &self,
        run: &mut [Granted],
        from: Place,
        into: &mut Gathered<'_>,
    ) -> io::Result<()> {
        let Some(first) = run.first() else { return Ok(()) };
        let span = self.run(Run { first: first.page, count: run.len() as u32 });
        let bytes = into.room(span.bytes as usize)?;
        self.read(span.offset, from, bytes)?;
        let (mut at, mut used) = (0, 0);
        for granted in run {
            let end = at + self.run(Run::one(granted.page)).bytes as usize;
            if is_zero(&bytes[at..end]) {
                granted.content = Content::Zero;
            } else {
                if at != used {
                    bytes.copy_within(at..end, used);
                }
                used += end - at;
            }
            at = end;
        }
        into.used += used;
        Ok(())
    }
}

fn has(run: &Run, page: PageNo) -> bool {
    page >= run.first && page.0 - run.first.0 < run.count
}

fn pages_of(run: Run) -> impl Iterator<Item = PageNo> {
    (run.first.0..run.first.0 + run.count).map(PageNo)
}

impl NodeFile {
    /// Hands out the content of a long unit in parts, but for those of zeros.
    fn gather_parts(
        &self,
        granted: &mut Granted,
        span: Span,
        from: Place,
        into: &mut Gathered<'_>,
    ) -> io::Result<()> {
        granted.content = Content::Zero;
        let mut buffer = into.buffers.take()?;
        for piece in span.pieces(PART_BYTES as u64) {
            let bytes = &mut buffer[..piece.bytes as usize];
            self.read(piece.offset, from, bytes)?;
            if !is_zero(bytes) {
                granted.content = Content::Parts;
                (into.part)(granted.page, piece.offset - span.offset, bytes);
            }
        }
        Ok(())
    }
}

/// The contents of one frame, one behind the other. Most frames have none, and take no buffer.
pub struct Gathered<'a> {
    buffers: &'a Buffers,
    buffer: Option<Buffer<'a>>,
    used: usize,
    part: &'a mut dyn FnMut(PageNo, u64, &[u8]),
}

impl<'a> Gathered<'a> {
    /// None yet. A unit that is too long for a frame goes to `part`, before it.
    pub fn new(buffers: &'a Buffers, part: &'a mut dyn FnMut(PageNo, u64, &[u8])) -> Gathered<'a> {
        Gathered { buffers, buffer: None, used: 0, part }
    }

    fn room(&mut self, bytes: usize) -> io::Result<&mut [u8]> {
        if self.buffer.is_none() {
            self.buffer = Some(self.buffers.take()?);
        }
        let buffer = self.buffer.as_mut().and_then(|buffer| buffer.get_mut(self.used..));
        let room = buffer.and_then(|buffer| buffer.get_mut(..bytes));
        room.ok_or_else(|| io::Error::other("more content than one frame takes"))
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[..self.used])
    }
}
