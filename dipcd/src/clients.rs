//! The local processes that have remote sessions: their pidfds, `done` pages and wires; and, when
//! they end, the reports of it, repeated until each home has buried its part.
//!
//! A process without a remote session is not here: it costs nothing. Everything a client has is
//! also in the keeper under a name, so a restarted dipcd begins with [`Clients::recover`].
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::Shutdown;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use dipc_wire::ids::{ClientId, Image, NodeId, Seq, Slot};
use dipc_wire::keeper::Held;
use dipc_wire::limits::{ENDS_MAX, SESSIONS_MAX};
use dipc_wire::peer::{End, PeerFrame, Piece};

use crate::sys::credentials::user_of;

/// Bytes of one `done` number.
const DONE_BYTES: usize = 8;
/// How much of a `done` page is read at a time; one piece without a number ends the reading,
/// because slots are given out from the lowest.
const DONE_PIECE: usize = 4096;

/// The image under which the keeper holds the `done` page of a process that has ended.
const ENDED: Image = Image(u32::MAX);

/// One wire of a client, as dipcd holds it.
struct Wire {
    home: NodeId,
    /// A copy of the client's socket, to break it when home is lost.
    socket: Arc<OwnedFd>,
}

/// A living client.
struct Client {
    /// Whose share of this dipcd it takes.
    user: u32,
    image: Image,
    done: Arc<OwnedFd>,
    wires: HashMap<Slot, Wire>,
    /// Homes with a session of this process, in this image or an earlier one.
    homes: BTreeSet<NodeId>,
}

/// An end that some home has not buried yet.
struct Ending {
    ends: Vec<End>,
    unburied: BTreeSet<NodeId>,
}

/// What the caller has to tell the keeper, after the lock.
#[derive(Default)]
pub struct Kept {
    /// Descriptors to hold.
    pub hold: Vec<(Held, Arc<OwnedFd>)>,
    /// Names to release.
    pub release: Vec<Held>,
}

/// Frames to post, after the lock.
pub type Posts = Vec<(NodeId, PeerFrame)>;

#[derive(Default)]
struct Table {
    living: HashMap<ClientId, Client>,
    /// By client and image; `None` is the process.
    ending: BTreeMap<(ClientId, Option<Image>), Ending>,
}

/// The clients of this node.
#[derive(Default)]
pub struct Clients {
    table: Mutex<Table>,
}

impl Clients {
    /// How many processes of a user have joined, and how many wires they have open.
    pub fn share_of(&self, user: u32) -> (usize, usize) {
        let table = self.table.lock();
        let of_user = table.living.values().filter(|living| living.user == user);
        of_user.fold((0, 0), |(clients, wires), living| (clients + 1, wires + living.wires.len()))
    }

    /// Whether a session of a client has a wire.
    pub fn has_wire(&self, client: ClientId, slot: Slot) -> bool {
        let table = self.table.lock();
        table.living.get(&client).is_some_and(|living| living.wires.contains_key(&slot))
    }

    /// A process image joins: its number and `done` page. An image that was there before has
    /// ended by exec.
    pub fn join(
        &self,
        client: ClientId,
        user: u32,
    ) -> io::Result<(Image, Arc<OwnedFd>, Kept, Posts)> {
        let done = Arc::new(done_page()?);
        let mut table = self.table.lock();
        let before = table.living.remove(&client);
        let image = before.as_ref().map_or(Image(0), |before| Image(before.image.0 + 1));
        let mut kept = Kept::default();
        let mut posts = Posts::new();
        let mut homes = BTreeSet::new();
        if let Some(before) = before {
            homes.clone_from(&before.homes);
            posts = table.end(client, Some(before.image), before, &mut kept);
        }
        let living = Client { user, image, done: done.clone(), wires: HashMap::new(), homes };
        table.living.insert(client, living);
        kept.hold.push((Held::Done(client, image), done.clone()));
        Ok((image, done, kept, posts))
    }

    /// The image of a client that has joined.
    pub fn image(&self, client: ClientId) -> Option<Image> {
        self.table.lock().living.get(&client).map(|living| living.image)
    }

    /// A client is about to have a session at `home`: from now on its end is reported there.
    pub fn meets(&self, client: ClientId, home: NodeId) {
        if let Some(living) = self.table.lock().living.get_mut(&client) {
            living.homes.insert(home);
        }
    }

    /// A wire is handed to a client; dipcd keeps a copy, and says its name in the keeper. `None` if
    /// that image of the client is not there any more.
    pub fn add_wire(
        &self,
        client: ClientId,
        image: Image,
        slot: Slot,
        home: NodeId,
        socket: &OwnedFd,
    ) -> io::Result<Option<(Held, Arc<OwnedFd>)>> {
        let socket = Arc::new(socket.try_clone()?);
        let mut table = self.table.lock();
        match table.living.get_mut(&client) {
            Some(living) if living.image == image => {
                living.wires.insert(slot, Wire { home, socket: socket.clone() });
                Ok(Some((Held::Wire { client, image, slot, home }, socket)))
            }
            _ => Ok(None),
        }
    }

    /// A wire's other side is closed: our copy goes too, unless another has its place already.
    pub fn drop_wire(&self, client: ClientId, slot: Slot, socket: &Arc<OwnedFd>) -> Kept {
        let mut kept = Kept::default();
        let mut table = self.table.lock();
        if let Some(living) = table.living.get_mut(&client)
            && living.wires.get(&slot).is_some_and(|wire| Arc::ptr_eq(&wire.socket, socket))
            && let Some(Wire { home, .. }) = living.wires.remove(&slot)
        {
            kept.release.push(Held::Wire { client, image: living.image, slot, home });
        }
        kept
    }

    /// A home may have heard of a client after it heard of its end: it is told again.
    pub fn end_again(&self, client: ClientId, home: NodeId) -> Posts {
        let mut table = self.table.lock();
        if table.living.contains_key(&client) {
            // The process lives: only its image has ended, and another image's join says so.
            return Posts::new();
        }
        let ending = table
            .ending
            .entry((client, None))
            .or_insert_with(|| Ending { ends: Vec::new(), unburied: BTreeSet::new() });
        ending.unburied.insert(home);
        ended(client, None, &ending.ends).map(|frame| (home, frame)).collect()
    }

    /// Breaks the wires to every home for which `ends` says so: their clients open others if they
    /// can.
    pub fn break_wires(&self, ends: impl Fn(NodeId) -> bool) -> Kept {
        self.table.lock().break_wires(ends)
    }

    /// A home is lost: the wires to it are broken, and ends need not be reported there.
    pub fn lose_home(&self, home: NodeId) -> Kept {
        let mut table = self.table.lock();
        let mut kept = table.break_wires(|of| of == home);
        let ends: Vec<_> = table.ending.keys().copied().collect();
        for (client, image) in ends {
            table.buried(home, client, image, &mut kept);
        }
        kept
    }

    /// The referee has said who there is: nobody else has anything to bury. A restarted dipcd
    /// begins with all that might be.
    pub fn only_members(&self, members: &BTreeSet<NodeId>) -> Kept {
        let mut table = self.table.lock();
        let mut kept = Kept::default();
        for living in table.living.values_mut() {
            living.homes.retain(|home| members.contains(home));
        }
        let unburied = table.ending.iter().flat_map(|(&(client, image), ending)| {
            let strangers = ending.unburied.difference(members);
            strangers.map(move |home| (*home, client, image))
        });
        for (home, client, image) in unburied.collect::<Vec<_>>() {
            table.buried(home, client, image, &mut kept);
        }
        kept
    }

    /// A client's pidfd says that the process has ended.
    pub fn process_ended(&self, client: ClientId) -> (Kept, Posts) {
        let mut table = self.table.lock();
        let mut kept = Kept::default();
        let Some(living) = table.living.remove(&client) else {
            if !table.ending.contains_key(&(client, None)) {
                kept.release.push(Held::Client(client));
            }
            return (kept, Posts::new());
        };
        let posts = table.end(client, None, living, &mut kept);
        (kept, posts)
    }

    /// A home has buried its part.
    pub fn buried(&self, home: NodeId, client: ClientId, image: Option<Image>) -> Kept {
        let mut kept = Kept::default();
        self.table.lock().buried(home, client, image, &mut kept);
        kept
    }

    /// What `home` must hear after a Hello: the ends it has not buried, then who lives. `post`
    /// must not wait: until it has all of it nobody joins, so that nobody's ticket is before a
    /// census that does not name him.
    pub fn census(&self, home: NodeId, post: impl FnMut(PeerFrame)) {
        let table = self.table.lock();
        let mut frames = Vec::new();
        let unburied = table.ending.iter().filter(|(_, ending)| ending.unburied.contains(&home));
        let mut clients: BTreeSet<ClientId> = table.living.keys().copied().collect();
        for ((client, image), ending) in unburied {
            frames.extend(ended(*client, *image, &ending.ends));
            clients.insert(*client);
        }
        let clients: Vec<_> = clients.into_iter().collect();
        let pieces = pieces(&clients, ENDS_MAX);
        frames.extend(pieces.map(|(clients, piece)| PeerFrame::Census { clients, piece }));
        frames.into_iter().for_each(post);
    }

    /// Everyone who has joined, for the log at the end.
    pub fn living(&self) -> Vec<ClientId> {
        self.table.lock().living.keys().copied().collect()
    }

    /// Whether some home has yet to bury something.
    pub fn has_unburied(&self) -> bool {
        !self.table.lock().ending.is_empty()
    }

    /// Takes over what an earlier dipcd left in the keeper: pages and wires by client. A client of
    /// whom only the pidfd is left has ended an image or never opened a wire. `homes` are all that
    /// might hold something of them.
    pub fn recover(&self, held: &[(Held, Arc<OwnedFd>)], homes: &BTreeSet<NodeId>) -> Kept {
        let mut table = self.table.lock();
        let mut kept = Kept::default();
        let mut wires = Vec::new();
        for (name, fd) in held {
            let fd = fd.clone();
            match *name {
                Held::Done(client, image) => {
                    table.recover_done(client, image, fd, homes, &mut kept)
                }
                Held::Wire { client, image, slot, home } => {
                    wires.push((client, image, slot, Wire { home, socket: fd }));
                }
                _ => {}
            }
        }
        for (client, image, slot, wire) in wires {
            match table.living.get_mut(&client) {
                Some(living) if living.image == image => {
                    living.wires.insert(slot, wire);
                }
                _ => kept.release.push(Held::Wire { client, image, slot, home: wire.home }),
            }
        }
        kept
    }
}

impl Table {
    fn break_wires(&mut self, ends: impl Fn(NodeId) -> bool) -> Kept {
        let mut kept = Kept::default();
        for (client, living) in &mut self.living {
            let image = living.image;
            for (slot, Wire { home, socket }) in living.wires.extract_if(|_, wire| ends(wire.home))
            {
                // An error says that the wire is broken already.
                let _ = rustix::net::shutdown(&socket, Shutdown::Both);
                kept.release.push(Held::Wire { client: *client, image, slot, home });
            }
        }
        kept
    }

    /// Turns a living image into an end to be reported: the reports to post now.
    fn end(
        &mut self,
        client: ClientId,
        image: Option<Image>,
        living: Client,
        kept: &mut Kept,
    ) -> Posts {
        for (slot, wire) in &living.wires {
            let (image, slot, home) = (living.image, *slot, wire.home);
            kept.release.push(Held::Wire { client, image, slot, home });
        }
        let ends = read_ends(&living.done);
        let posts = living.homes.iter().flat_map(|home| {
            ended(client, image, &ends).map(|frame| (*home, frame)).collect::<Vec<_>>()
        });
        let posts = posts.collect();
        if living.homes.is_empty() {
            release_page(client, image.unwrap_or(living.image), image.is_none(), kept);
        } else {
            self.ending.insert((client, image), Ending { ends, unburied: living.homes });
            if image.is_none() {
                kept.release.push(Held::Done(client, living.image));
                kept.hold.push((Held::Done(client, ENDED), living.done));
            }
        }
        posts
    }

    fn buried(&mut self, home: NodeId, client: ClientId, image: Option<Image>, kept: &mut Kept) {
        let Some(ending) = self.ending.get_mut(&(client, image)) else { return };
        ending.unburied.remove(&home);
        if ending.unburied.is_empty() {
            self.ending.remove(&(client, image));
            release_page(client, image.unwrap_or(ENDED), image.is_none(), kept);
        }
    }

    /// The newest image of a client lives; those before it, and a process whose end was being
    /// reported, are reported again to everyone.
    fn recover_done(
        &mut self,
        client: ClientId,
        image: Image,
        done: Arc<OwnedFd>,
        homes: &BTreeSet<NodeId>,
        kept: &mut Kept,
    ) {
        if image == ENDED {
            let ending = Ending { ends: read_ends(&done), unburied: homes.clone() };
            self.ending.insert((client, None), ending);
            return;
        }
        let user = user_of(client.pid).unwrap_or(u32::MAX);
        let found = Client { user, image, done, wires: HashMap::new(), homes: homes.clone() };
        let older = match self.living.remove(&client) {
            Some(other) if other.image > image => {
                self.living.insert(client, other);
                Some(found)
            }
            other => {
                self.living.insert(client, found);
                other
            }
        };
        if let Some(older) = older {
            // The links are not up yet: the census will carry the report.
            let _ = self.end(client, Some(older.image), older, kept);
        }
    }
}

/// The page and, for a process, its pidfd need not be kept any more.
fn release_page(client: ClientId, image: Image, whole_process: bool, kept: &mut Kept) {
    kept.release.push(Held::Done(client, image));
    if whole_process {
        kept.release.push(Held::Client(client));
    }
}

/// A new `done` page: all zero, of fixed size.
fn done_page() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let page = rustix::fs::memfd_create("dipc-done", flags)?;
    rustix::fs::ftruncate(&page, u64::from(SESSIONS_MAX) * DONE_BYTES as u64)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&page, seals)?;
    Ok(page)
}

/// The numbers in a `done` page. A page that cannot be read has none: what its program had not
/// acknowledged otherwise is delivered again rather than lost.
fn read_ends(done: &impl AsFd) -> Vec<End> {
    let mut ends = Vec::new();
    let mut piece = [0; DONE_PIECE];
    let per_piece = (DONE_PIECE / DONE_BYTES) as u32;
    for start in (0..SESSIONS_MAX).step_by(per_piece as usize) {
        let offset = u64::from(start) * DONE_BYTES as u64;
        let Ok(DONE_PIECE) = rustix::io::pread(done, &mut piece, offset) else { break };
        let numbers = piece.chunks_exact(DONE_BYTES).zip(start..);
        let before = ends.len();
        for (bytes, slot) in numbers {
            let done = u64::from_ne_bytes(*bytes.first_chunk().expect("eight bytes"));
            if done != 0 {
                ends.push(End { slot: Slot(slot), done: Seq(done) });
            }
        }
        if ends.len() == before {
            break;
        }
    }
    ends
}

/// The report of one end, in pieces.
fn ended(client: ClientId, image: Option<Image>, ends: &[End]) -> impl Iterator<Item = PeerFrame> {
    pieces(ends, ENDS_MAX).map(move |(ends, piece)| PeerFrame::Ended { client, image, ends, piece })
}

/// Cuts a list into pieces of at most `most`, of which only the last says so; there is always one.
pub fn pieces<T: Clone>(list: &[T], most: usize) -> impl Iterator<Item = (Vec<T>, Piece)> {
    let count = list.len().div_ceil(most).max(1);
    (0..count).map(move |at| {
        let piece = list.iter().skip(at * most).take(most).cloned().collect();
        (piece, if at + 1 == count { Piece::Last } else { Piece::More })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(pid: u32) -> ClientId {
        ClientId { node: NodeId::new(1).unwrap(), pid, started: 9 }
    }

    #[test]
    fn an_end_is_reported_with_its_numbers_until_buried() {
        let clients = Clients::default();
        let home = NodeId::new(2).unwrap();
        let (_, page, _, _) = clients.join(client(7), 1000).unwrap();
        clients.meets(client(7), home);
        rustix::io::pwrite(&page, &5u64.to_ne_bytes(), 8).unwrap();

        let (_, posts) = clients.process_ended(client(7));
        let ends = vec![End { slot: Slot(1), done: Seq(5) }];
        let report = PeerFrame::Ended { client: client(7), image: None, ends, piece: Piece::Last };
        assert_eq!(posts, vec![(home, report.clone())]);
        let mut census = Vec::new();
        clients.census(home, |frame| census.push(frame));
        assert_eq!(census[0], report, "repeated at the next Hello");

        assert!(clients.has_unburied());
        let kept = clients.buried(home, client(7), None);
        assert!(kept.release.contains(&Held::Client(client(7))));
        assert!(!clients.has_unburied());
    }

    #[test]
    fn a_second_join_of_a_process_ends_the_first_image() {
        let clients = Clients::default();
        let home = NodeId::new(2).unwrap();
        let (first, ..) = clients.join(client(7), 1000).unwrap();
        clients.meets(client(7), home);
        let (second, _, _, posts) = clients.join(client(7), 1000).unwrap();
        assert!(second > first);
        let (to, frame) = &posts[0];
        assert_eq!(*to, home);
        assert!(matches!(frame, PeerFrame::Ended { image: Some(image), .. } if *image == first));
        assert_eq!(clients.image(client(7)), Some(second));
    }

    #[test]
    fn a_users_share_is_his_processes_and_their_wires() {
        let clients = Clients::default();
        let home = NodeId::new(2).unwrap();
        let (image, page, ..) = clients.join(client(7), 1000).unwrap();
        clients.join(client(8), 1000).unwrap();
        clients.join(client(9), 1001).unwrap();
        for slot in 0..3 {
            clients.add_wire(client(7), image, Slot(slot), home, &page).unwrap().unwrap();
        }
        assert_eq!((clients.share_of(1000), clients.share_of(1001)), ((2, 3), (1, 0)));
        clients.process_ended(client(7));
        assert_eq!(clients.share_of(1000), (1, 0));
    }

    #[test]
    fn nobody_but_a_member_is_waited_for_after_a_restart() {
        let (clients, home) = (Clients::default(), NodeId::new(2).unwrap());
        let everyone = (1..=64).filter_map(NodeId::new).collect();
        let page = |pid, image| (Held::Done(client(pid), image), Arc::new(done_page().unwrap()));
        clients.recover(&[page(7, ENDED), page(8, Image(0))], &everyone);
        let kept = clients.only_members(&BTreeSet::from([home]));
        assert!(kept.release.is_empty(), "the member has not buried it");
        let (_, posts) = clients.process_ended(client(8));
        assert_eq!(posts.len(), 1, "the member alone hears of it");
        clients.buried(home, client(7), None);
        clients.buried(home, client(8), None);
        assert!(!clients.has_unburied());
    }

    #[test]
    fn lists_are_cut_into_pieces_and_the_last_says_so() {
        let cut: Vec<_> = pieces(&[1, 2, 3], 2).collect();
        assert_eq!(cut, vec![(vec![1, 2], Piece::More), (vec![3], Piece::Last)]);
        assert_eq!(pieces::<u8>(&[], 2).count(), 1);
    }
}
