//! Nodes gone bad, and the page protocol: a peer with the cluster's key that speaks for pages it
//! has not, sends what nobody asked for or what is too short, as a replica and as a home. Its
//! link is closed with one line in the log, or it is ignored; nobody else notices.
#![forbid(unsafe_code)]

use std::path::Path;

use dipc_tests::stranger::{Peer, is_closed, serves, with_known_key};
use dipc_tests::{Builder, Cluster, Node, Puppet};
use dipc_wire::ids::{ClientId, Key, Kind, NodeId, ObjectId, Req};
use dipc_wire::limits::{PAGES_MAX, PART_BYTES};
use dipc_wire::memory::{
    Access, Content, GrantNo, Granted, Holds, PageNo, PageReport, Refusal, Replica, ToHome,
    ToReplica,
};
use dipc_wire::peer::{Asked, Attachment, Caller, Claimed, Intent, PeerFrame, Piece, Reported};
use dipc_wire::sysv::Rights;

use crate::memory::{PAGE, agree, owner, refused, user};

/// The number that the referee gives the first new node beside node 1.
const BAD: u8 = 2;
/// The key of a bad home's segment.
const THEIRS: i32 = 0x5e6_0007;
/// Pages of the segments of these tests.
const PAGES: usize = 8;

/// One node, which takes another that says nothing for a living one.
fn patient(keys: &Path) -> Cluster {
    let builder: Builder = with_known_key(Cluster::of(1), keys);
    builder.entry("node_timeout", "120").entry("lease", "60").start()
}

fn bad() -> NodeId {
    NodeId::new(BAD).expect("a number of a node")
}

fn caller() -> Caller {
    Caller {
        client: ClientId { node: bad(), pid: 77, started: 1 },
        uid: 1,
        gid: 1,
        groups: Vec::new(),
        user_name: Some("daemon".into()),
        group_names: vec!["daemon".into()],
        rights: Rights { ipc_owner: true, ..Rights::default() },
    }
}

fn granted(page: usize, number: u64, content: Content) -> Granted {
    Granted { page: PageNo(page as u32), number: GrantNo(number), content }
}

/// The next frame that `wanted` wants; what else dipcd says meanwhile is passed over.
#[track_caller]
fn hear<T>(peer: &mut Peer, wanted: impl Fn(&PeerFrame) -> Option<T>) -> T {
    for _ in 0..10_000 {
        let frame = peer.hear();
        if let PeerFrame::Heartbeat { sent_ms } = frame {
            peer.say(&PeerFrame::HeartbeatEcho { sent_ms });
        }
        if let Some(found) = wanted(&frame) {
            return found;
        }
    }
    panic!("dipcd never says it");
}

/// A puppet that has made the tests' segment, which everybody may use.
#[track_caller]
fn open_owner(node: &Node) -> Puppet {
    let mut puppet = owner(node, PAGES * PAGE);
    puppet.must("chmod 666");
    puppet
}

/// A node gone bad, with a replica of the segment of a good home.
struct BadReplica {
    peer: Peer,
    id: ObjectId,
    replica: Replica,
}

impl BadReplica {
    fn attach(home: &Node, id: ObjectId) -> BadReplica {
        let mut peer = Peer::admitted(home);
        hear(&mut peer, |frame| matches!(frame, PeerFrame::Admitted { .. }).then_some(()));
        peer.say(&PeerFrame::Attach { req: Req(1), caller: caller(), id, flags: 0 });
        let outcome = hear(&mut peer, |frame| match frame {
            PeerFrame::Attached { req: Req(1), outcome } => Some(*outcome),
            _ => None,
        });
        let Attachment { replica, bytes, .. } = outcome.expect("it may attach");
        assert_eq!(bytes, (PAGES * PAGE) as u64);
        let mut bad = BadReplica { peer, id, replica };
        bad.say(ToHome::Report { pages: Vec::new(), piece: Piece::Last }, &[]);
        bad
    }

    fn say(&mut self, frame: ToHome, raw: &[u8]) {
        let (id, replica) = (self.id, self.replica);
        self.peer.say_with(&PeerFrame::ToHome { id, replica, frame }, raw);
    }

    fn fault(&mut self, page: usize, access: Access) {
        self.say(ToHome::Fault { first: PageNo(page as u32), ahead: 0, access }, &[]);
    }

    #[track_caller]
    fn hear(&mut self, wanted: impl Fn(&ToReplica) -> bool) -> ToReplica {
        hear(&mut self.peer, |frame| match frame {
            PeerFrame::ToReplica { frame, .. } if wanted(frame) => Some(frame.clone()),
            _ => None,
        })
    }

    /// The number under which it is granted a page.
    #[track_caller]
    fn grant(&mut self, page: usize, access: Access) -> GrantNo {
        self.fault(page, access);
        let grant = self.hear(|frame| matches!(frame, ToReplica::Grant { .. }));
        let ToReplica::Grant { pages, access: given } = grant else { unreachable!("it is one") };
        assert_eq!((pages[0].page, given), (PageNo(page as u32), access));
        pages[0].number
    }
}

/// What a bad replica says; the home closes its link.
type Misdeed = fn(&mut BadReplica);

/// Frames that no dipcd sends: the link is closed.
const UNBELIEVABLE: [(&str, Misdeed); 8] = [
    ("a page out of range", |bad| {
        let granted = granted(PAGES, 1, Content::Zero);
        bad.say(ToHome::Released { granted }, &[]);
    }),
    ("a short page", |bad| {
        let number = bad.grant(7, Access::Write);
        bad.say(ToHome::Ack { pages: vec![(PageNo(7), number)] }, &[]);
        let granted = granted(7, number.0, Content::Raw);
        bad.say(ToHome::Released { granted }, &[1; 100]);
    }),
    ("a long page", |bad| {
        let granted = granted(1, 1, Content::Raw);
        bad.say(ToHome::Released { granted }, &vec![1; 2 * PAGE]);
    }),
    ("bytes that belong to nothing", |bad| {
        bad.say(ToHome::Invalidated { page: PageNo(0), number: GrantNo(1) }, &[1; 8]);
    }),
    ("a part where units are short", |bad| {
        bad.say(ToHome::Part { page: PageNo(0), offset: 0 }, &[1; PAGE]);
    }),
    ("a report in disorder", |bad| {
        let report = |page| PageReport {
            granted: granted(page, 1, Content::None),
            holds: Holds::Nothing,
            fault: Some(Access::Read),
        };
        let pages = vec![report(3), report(2)];
        bad.say(ToHome::Report { pages, piece: Piece::Last }, &[]);
    }),
    ("a report of what it has not", |bad| {
        let page =
            PageReport { granted: granted(2, 9, Content::Raw), holds: Holds::Owned, fault: None };
        bad.say(ToHome::Report { pages: vec![page], piece: Piece::Last }, &[0xee; PAGE]);
    }),
    ("a part far away", |bad| {
        bad.say(ToHome::Part { page: PageNo(u32::MAX), offset: u64::MAX - 5 }, &[1; PART_BYTES]);
    }),
];

/// Frames of a replica that has lost its way: they change nothing.
const OUT_OF_PLACE: [(&str, Misdeed); 8] = [
    ("an ack of nothing", |bad| {
        bad.say(
            ToHome::Ack { pages: vec![(PageNo(0), GrantNo(99)), (PageNo(5), GrantNo(0))] },
            &[],
        );
    }),
    ("an ack twice", |bad| {
        let number = bad.grant(6, Access::Read);
        for _ in 0..3 {
            bad.say(ToHome::Ack { pages: vec![(PageNo(6), number)] }, &[]);
        }
    }),
    ("content that nobody has recalled", |bad| {
        let granted = granted(2, 5, Content::Raw);
        let recalled = ToHome::Recalled { granted, of: GrantNo(5), keeps: None };
        bad.say(recalled, &[0xee; PAGE]);
    }),
    ("a release of what it has not", |bad| {
        let granted = granted(2, 5, Content::Raw);
        bad.say(ToHome::Released { granted }, &[0xee; PAGE]);
    }),
    ("an invalidation that nobody wanted", |bad| {
        bad.say(ToHome::Invalidated { page: PageNo(2), number: GrantNo(5) }, &[]);
    }),
    // Behind those that the test uses afterwards: what it was given it has until it is lost.
    ("pages ahead without end", |bad| {
        for _ in 0..50 {
            bad.say(ToHome::Ahead { first: PageNo(4), count: u16::MAX }, &[]);
            bad.say(ToHome::Fault { first: PageNo(5), ahead: u16::MAX, access: Access::Read }, &[]);
        }
    }),
    ("another node's replica", |bad| {
        let own = std::mem::replace(&mut bad.replica, Replica::HOME);
        bad.say(ToHome::Released { granted: granted(0, 1, Content::Raw) }, &[0xee; PAGE]);
        bad.say(ToHome::Leave, &[]);
        bad.replica = Replica(200);
        bad.fault(0, Access::Write);
        bad.replica = own;
    }),
    ("what a home says", |bad| {
        let (id, replica) = (bad.id, Replica::HOME);
        let pages = vec![granted(0, 1, Content::Raw)];
        for frame in [
            ToReplica::Grant { access: Access::Write, pages },
            ToReplica::Recall { page: PageNo(0), number: GrantNo(9), wanted: Access::Write },
            ToReplica::Invalidate { page: PageNo(0), number: GrantNo(9) },
            ToReplica::Left,
        ] {
            let raw = if matches!(frame, ToReplica::Grant { .. }) { PAGE } else { 0 };
            bad.peer.say_with(&PeerFrame::ToReplica { id, replica, frame }, &vec![0xee; raw]);
        }
    }),
];

fn id_of(puppet: &mut Puppet) -> ObjectId {
    let id = puppet.must(&format!("shmget {} 0 010600", crate::memory::KEY));
    ObjectId::from_raw(id.parse().expect("a number")).expect("an id of ours")
}

#[test]
fn frames_that_cannot_be_believed_end_the_link() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    for (what, misdeed) in UNBELIEVABLE {
        eprintln!("---- {what}");
        let cluster = patient(keys.path());
        let node = cluster.node(1);
        let (mut home, mut other) = (open_owner(node), user(node));
        let mut bad = BadReplica::attach(node, id_of(&mut home));
        misdeed(&mut bad);
        is_closed(bad.peer.stream, what);
        node.wait_for_log("its link is closed");
        assert_eq!(node.log().matches("its link is closed").count(), 1, "{what}: {}", node.log());
        agree(&mut home, &mut other, 6 * PAGE, 1);
        serves(node);
    }
}

#[test]
fn frames_that_are_out_of_place_change_nothing() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    for (what, misdeed) in OUT_OF_PLACE {
        eprintln!("---- {what}");
        let cluster = patient(keys.path());
        let node = cluster.node(1);
        let (mut home, mut other) = (open_owner(node), user(node));
        home.must(&format!("fill 0 {} 1", PAGES * PAGE));
        let mut bad = BadReplica::attach(node, id_of(&mut home));
        misdeed(&mut bad);
        // Home has seen it when it answers this.
        bad.peer.say(&PeerFrame::Attach { req: Req(9), caller: caller(), id: bad.id, flags: 0 });
        hear(&mut bad.peer, |frame| {
            matches!(frame, PeerFrame::Attached { req: Req(9), .. }).then_some(())
        });
        assert_eq!(home.must(&format!("check 0 {} 1", PAGES * PAGE)), "0", "{what}");
        drop(bad);
        agree(&mut other, &mut home, 2 * PAGE, 2);
        serves(node);
    }
}

/// Questions about segments that are not there, or by nobody.
#[test]
fn questions_about_nothing_are_answered_or_ignored() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let cluster = patient(keys.path());
    let node = cluster.node(1);
    let (mut home, mut other) = (open_owner(node), user(node));
    let id = id_of(&mut home);
    let mut bad = BadReplica::attach(node, id);
    let nothing = ObjectId::from_number(4_711);
    let client = ClientId { node: NodeId::new(1).expect("a node"), pid: 1, started: 1 };
    for id in [nothing, id] {
        bad.peer.say(&PeerFrame::Detached { id, client });
        bad.peer.say(&PeerFrame::Count { req: Req(3), id });
    }
    let impostor = Caller { client, ..caller() };
    bad.peer.say(&PeerFrame::Attach { req: Req(4), caller: impostor, id, flags: 0 });
    bad.peer.say(&PeerFrame::Attach { req: Req(5), caller: caller(), id: nothing, flags: 0 });
    let refusal = hear(&mut bad.peer, |frame| match frame {
        PeerFrame::Attached { req: Req(5), outcome } => Some(outcome.is_err()),
        _ => None,
    });
    assert!(refusal, "it has attached nothing");
    agree(&mut home, &mut other, PAGES * PAGE, 1);
    serves(node);
}

/// A node gone bad that is home to a segment.
struct BadHome {
    peer: Peer,
    id: ObjectId,
    replica: Replica,
}

impl BadHome {
    /// Claims a key as an honest node does.
    fn claim(referee: &Node) -> BadHome {
        let mut peer = Peer::admitted(referee);
        hear(&mut peer, |frame| matches!(frame, PeerFrame::Admitted { .. }).then_some(()));
        let report = PeerFrame::Report { objects: Vec::new(), piece: Piece::Last };
        peer.say(&report);
        let (kind, key) = (Kind::Segment, Key(THEIRS));
        peer.say(&PeerFrame::Claim { req: Req(1), kind, key, intent: Intent::Create });
        let (claim, id) = hear(&mut peer, |frame| match frame {
            PeerFrame::Claimed { outcome: Claimed::Granted { claim, id }, .. } => {
                Some((*claim, *id))
            }
            _ => None,
        });
        peer.say(&PeerFrame::Made { claim, object: Reported { id, kind, key } });
        hear(&mut peer, |frame| matches!(frame, PeerFrame::Confirmed { .. }).then_some(()));
        BadHome { peer, id, replica: Replica(1) }
    }

    /// Lets a program in.
    #[track_caller]
    fn admit(&mut self, puppet: &mut Puppet, attachment: Attachment) {
        puppet.begin(&format!("shmget {THEIRS} 0 010600"));
        let req = hear(&mut self.peer, |frame| match frame {
            PeerFrame::Ask { req, .. } => Some(*req),
            _ => None,
        });
        self.peer.say(&PeerFrame::Asked { req, outcome: Asked::Granted });
        puppet.answer().expect("it is granted");
        puppet.begin("attach 0");
        let req = hear(&mut self.peer, |frame| match frame {
            PeerFrame::Attach { req, .. } => Some(*req),
            _ => None,
        });
        self.peer.say(&PeerFrame::Attached { req, outcome: Ok(attachment) });
    }

    fn say(&mut self, frame: ToReplica, raw: &[u8]) {
        let (id, replica) = (self.id, self.replica);
        self.peer.say_with(&PeerFrame::ToReplica { id, replica, frame }, raw);
    }

    /// Answers the replica's report, and its first fault with these bytes.
    #[track_caller]
    fn serve_first_fault(&mut self, raw: &[u8]) {
        hear(&mut self.peer, |frame| {
            let frame = as_to_home(frame)?;
            matches!(frame, ToHome::Report { piece: Piece::Last, .. }).then_some(())
        });
        self.say(ToReplica::Resumed, &[]);
        let first = hear(&mut self.peer, |frame| match as_to_home(frame)? {
            ToHome::Fault { first, .. } => Some(*first),
            _ => None,
        });
        let page = Granted { page: first, number: GrantNo(1), content: Content::Raw };
        self.say(ToReplica::Grant { access: Access::Read, pages: vec![page] }, raw);
    }
}

fn as_to_home(frame: &PeerFrame) -> Option<&ToHome> {
    match frame {
        PeerFrame::ToHome { frame, .. } => Some(frame),
        _ => None,
    }
}

fn honest() -> Attachment {
    Attachment {
        replica: Replica(1),
        bytes: (PAGES * PAGE) as u64,
        unit_bytes: PAGE as u64,
        may_write: true,
    }
}

/// What a bad home says to a replica that has one page; and whether the link is closed for it.
type HomesMisdeed = fn(&mut BadHome);

const OF_A_HOME: [(&str, bool, HomesMisdeed); 9] = [
    ("a page out of range", true, |home| {
        let pages = vec![granted(PAGES, 2, Content::Zero)];
        home.say(ToReplica::Grant { access: Access::Read, pages }, &[]);
    }),
    ("a short page", true, |home| {
        let pages = vec![granted(1, 2, Content::Raw)];
        home.say(ToReplica::Grant { access: Access::Read, pages }, &[1; 100]);
    }),
    ("one page for two", true, |home| {
        let pages = vec![granted(1, 2, Content::Raw), granted(2, 2, Content::Raw)];
        home.say(ToReplica::Grant { access: Access::Read, pages }, &[1; PAGE]);
    }),
    ("a page twice", true, |home| {
        let pages = vec![granted(1, 2, Content::Zero), granted(1, 3, Content::Zero)];
        home.say(ToReplica::Grant { access: Access::Write, pages }, &[]);
    }),
    ("a grant that nobody asked for", false, |home| {
        let pages = vec![granted(5, 2, Content::Raw)];
        home.say(ToReplica::Grant { access: Access::Write, pages }, &[7; PAGE]);
    }),
    ("a grant again", false, |home| {
        let pages = vec![granted(0, 1, Content::Raw)];
        home.say(ToReplica::Grant { access: Access::Read, pages }, &[9; PAGE]);
    }),
    ("a recall of what is not there", false, |home| {
        let (page, number) = (PageNo(3), GrantNo(8));
        home.say(ToReplica::Recall { page, number, wanted: Access::Write }, &[]);
        home.say(ToReplica::Recall { page, number, wanted: Access::Read }, &[]);
        home.say(ToReplica::Invalidate { page, number }, &[]);
    }),
    ("a confirmation of nothing", false, |home| {
        home.say(ToReplica::Confirm { page: PageNo(3), number: GrantNo(8) }, &[]);
        home.say(ToReplica::Confirm { page: PageNo(0), number: GrantNo(1) }, &[]);
    }),
    ("a refusal of what nobody wants", false, |home| {
        home.say(ToReplica::Refused { page: PageNo(3), refusal: Refusal::Gone }, &[]);
    }),
];

#[test]
fn a_bad_home_harms_nobody_but_who_uses_it() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    for (what, closes, misdeed) in OF_A_HOME {
        eprintln!("---- {what}");
        let cluster = patient(keys.path());
        let node = cluster.node(1);
        let (mut good, mut other) = (open_owner(node), user(node));
        let mut home = BadHome::claim(node);
        let mut puppet = Puppet::of_pages(node);
        home.admit(&mut puppet, honest());
        puppet.answer().expect("it has attached");
        puppet.begin("peek 0");
        home.serve_first_fault(&[5; PAGE]);
        let word = u64::from_ne_bytes([5; 8]).to_string();
        assert_eq!(puppet.answer(), Ok(word.clone()));
        misdeed(&mut home);
        if closes {
            is_closed(home.peer.stream, what);
            node.wait_for_log("its link is closed");
        } else {
            assert_eq!(puppet.must("peek 0"), word, "{what}");
        }
        agree(&mut good, &mut other, PAGES * PAGE, 1);
        serves(node);
    }
}

#[test]
fn segments_of_impossible_sizes_are_not_attached() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let rows = [
        Attachment { bytes: 0, ..honest() },
        Attachment { bytes: u64::MAX, ..honest() },
        Attachment { bytes: 1 << 50, ..honest() },
        Attachment { unit_bytes: 0, ..honest() },
        Attachment { unit_bytes: 3, ..honest() },
        Attachment { unit_bytes: u64::MAX, ..honest() },
        Attachment { replica: Replica::HOME, ..honest() },
        Attachment { replica: Replica(255), ..honest() },
    ];
    for attachment in rows {
        eprintln!("---- {attachment:?}");
        let cluster = patient(keys.path());
        let node = cluster.node(1);
        let (mut good, mut other) = (open_owner(node), user(node));
        let mut home = BadHome::claim(node);
        let mut puppet = Puppet::of_pages(node);
        home.admit(&mut puppet, attachment);
        let outcome = puppet.answer();
        assert!(outcome.is_err(), "{attachment:?} was attached");
        agree(&mut good, &mut other, PAGES * PAGE, 1);
        assert_eq!(refused(&mut puppet, "detach"), "EINVAL");
        serves(node);
    }
}

#[test]
fn a_report_has_a_bound() {
    let keys = tempfile::tempdir().expect("a temporary directory");
    let cluster = patient(keys.path());
    let node = cluster.node(1);
    let (mut home, mut other) = (open_owner(node), user(node));
    let mut bad = BadReplica::attach(node, id_of(&mut home));
    let report = |page: usize| PageReport {
        granted: granted(page % PAGES, 1, Content::None),
        holds: Holds::Nothing,
        fault: None,
    };
    // More pages than a report may have; the same ones again and again, never the last piece.
    bad.say(
        ToHome::Report { pages: (0..PAGES_MAX * 2).map(report).collect(), piece: Piece::More },
        &[],
    );
    is_closed(bad.peer.stream, "a long report");
    agree(&mut home, &mut other, PAGES * PAGE, 1);
    serves(node);
}
