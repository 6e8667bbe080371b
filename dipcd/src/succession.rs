//! Another referee in the place of one that is gone for good (`dipcctl become-referee`).
//!
//! ```text
//! in good times:  referee ── Record ──▶ every node, which keeps a copy in lib_dir
//! candidate ── Succeed{Proposed} ──▶ every node it reaches ── its copy, or why not ──▶
//! candidate ── Succeed{Decided}  ──▶ the same, which keep reign and referee ── agreed ──▶
//! candidate: more than half of the others have agreed: begins the reign; they link to it
//! ```
//!
//! - A node agrees if it does not hear the old referee and has accepted no reign as high. So of two
//!   candidates for one reign at most one has more than half.
//! - What a node has agreed to overrides its entry `referee` until the two are the same. It refuses
//!   any other referee then: links check whom the other end calls referee.
//! - The newest of the copies says who has which number. The numbers of ids go on after the highest
//!   that any of them names: whoever was given one of a later block had been told of that block.
#![forbid(unsafe_code)]

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use dipc_core::referee::Record;
use dipc_wire::ids::{Epoch, NodeId};
use dipc_wire::peer::{Dissent, Member, PeerFrame, RecordCopy, Stage, Standing};

use crate::allow::AllowList;
use crate::clock::Deadline;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::disk::LibDir;
use crate::start;

/// How long a node may take to agree: it writes to its disk.
const AGREEMENT_WAIT: Duration = Duration::from_secs(5);
/// How often a higher reign is proposed when nodes have accepted this one from others.
const ROUNDS_MAX: usize = 4;

/// Why this node does not become the referee.
#[derive(Debug)]
pub enum Failure {
    /// It is already.
    IsReferee,
    /// It has no number: no referee has ever admitted it.
    NoNumber,
    /// The old one was heard of, or this dipcd has not listened long enough to know.
    Lives(SocketAddr),
    /// So another node says.
    HeardBy(NodeId),
    /// Fewer than more than half of the others agreed.
    TooFew {
        /// How many did.
        agreed: usize,
        /// How many there are.
        others: usize,
        /// Who gave no answer.
        silent: Vec<NodeId>,
    },
    /// Its allow list, its disk or its threads.
    Local(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::IsReferee => f.write_str("this node is the referee"),
            Failure::NoNumber => f.write_str("this node was never a member of the cluster"),
            Failure::Lives(address) => {
                write!(f, "the referee at {address} was heard of less than node_timeout ago")
            }
            Failure::HeardBy(node) => write!(f, "node {node} still hears the referee"),
            Failure::TooFew { agreed, others, silent } => {
                write!(f, "{agreed} of {others} other nodes agree, more than half must")?;
                if !silent.is_empty() {
                    let silent: Vec<_> = silent.iter().map(ToString::to_string).collect();
                    write!(f, "; no answer from {}", silent.join(", "))?;
                }
                Ok(())
            }
            Failure::Local(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Local(error.to_string())
    }
}

/// The configuration with the referee that this node has agreed to. When its file says the same,
/// the agreement has served its turn.
pub fn elected(config: Config) -> io::Result<Config> {
    let lib = LibDir::existing(&config.lib_dir);
    match lib.succession()? {
        Some(referee) if referee == config.referee => lib.end_succession().map(|()| config),
        Some(referee) => Ok(Config { referee, ..config }),
        None => Ok(config),
    }
}

/// A line for the log, for as long as there is an agreement.
pub fn notice(lib: &LibDir) -> io::Result<()> {
    if let Some(referee) = lib.succession()? {
        tracing::warn!(op = "referee", %referee, "dipc.conf names a referee that was replaced");
    }
    Ok(())
}

/// Serves the frames of a succession, and the copies that make one possible.
pub fn serve(daemon: &Arc<Daemon>, from: NodeId, frame: PeerFrame) {
    match frame {
        PeerFrame::Record(copy) => {
            if let Err(error) = daemon.lib.set_record_copy(&copy) {
                tracing::error!(op = "record", %error, "the referee's record cannot be kept");
            }
        }
        PeerFrame::Succeed { req, epoch, stage } => {
            let outcome = agree(daemon, from, epoch, stage);
            tracing::warn!(op = "succeed", peer = %from, epoch = epoch.0, ?stage,
                agreed = outcome.is_ok());
            daemon.links.post(from, PeerFrame::Succession { req, outcome });
        }
        _ => {}
    }
}

/// Whether `from` may begin this reign, as far as this node is concerned.
fn agree(daemon: &Daemon, from: NodeId, epoch: Epoch, stage: Stage) -> Result<RecordCopy, Dissent> {
    let address = daemon.links.address(from).ok_or(Dissent::NotKept)?;
    let agreed_before = daemon.config().referee == address && daemon.epoch() == epoch;
    if !agreed_before {
        if daemon.names().is_some() || daemon.links.hears(daemon.config().referee) {
            return Err(Dissent::RefereeLives);
        }
        if daemon.epoch() >= epoch {
            return Err(Dissent::Accepted(daemon.epoch()));
        }
    }
    let copy = known(daemon).map_err(|error| {
        tracing::error!(op = "succeed", %error);
        Dissent::NotKept
    })?;
    if stage == Stage::Decided && !agreed_before {
        accept(daemon, epoch, address).map_err(|error| {
            tracing::error!(op = "succeed", %error);
            Dissent::NotKept
        })?;
    }
    Ok(copy)
}

/// From now on the referee of this node is there.
fn accept(daemon: &Daemon, epoch: Epoch, referee: SocketAddr) -> io::Result<()> {
    daemon.lib.set_succession(referee)?;
    daemon.lib.set_epoch(epoch)?;
    daemon.epoch.store(epoch.0, Ordering::Release);
    {
        let mut config = daemon.config.write();
        *config = Arc::new(Config { referee, ..Config::clone(&config) });
    }
    daemon.links.set_referee(NodeId::NONE);
    Ok(())
}

/// What this node knows of the record: its copy, and whom it has met besides.
fn known(daemon: &Daemon) -> io::Result<RecordCopy> {
    let mut copy = daemon.lib.record_copy()?;
    let me = (daemon.links.me(), daemon.config().this_machine);
    for (node, address) in daemon.links.others().into_iter().chain([me]) {
        if node.is_admitted() && copy.members.iter().all(|member| member.node != node) {
            copy.members.push(Member { node, address, standing: Standing::Member });
        }
    }
    Ok(copy)
}

/// Makes this node the referee, if enough agree; says what has come of it.
pub fn become_referee(daemon: &Arc<Daemon>) -> Result<String, Failure> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock();
    let old = daemon.config().referee;
    may_begin(daemon, old)?;
    let this_machine = daemon.config().this_machine;
    let reigning = Config { referee: this_machine, ..Config::clone(&daemon.config()) };
    let allow = AllowList::of_node(&reigning, daemon.settings.options.admission)
        .map_err(|errors| Failure::Local(errors.iter().map(|e| format!("{e}")).collect()))?;
    let own = known(daemon)?;
    let (epoch, mut copies) = propose(daemon, &own, old)?;
    let votes = Votes::ask(daemon, &own, old, epoch, Stage::Decided)?;
    copies.extend(votes.enough()?);
    copies.push(own);
    let record = merged(copies, epoch, old);
    daemon.lib.set_referee_record(&record)?;
    accept(daemon, epoch, this_machine)?;
    *daemon.allow.write() = allow;
    start::start_names(daemon)?;
    // They link again, now as to their referee.
    daemon.links.close_all();
    tracing::warn!(op = "referee", epoch = epoch.0, replaced = %old, "this node is the referee");
    Ok(format!("node {} is the referee of reign {}", daemon.links.me(), epoch.0))
}

/// Whether it is time: the old referee must have been silent for long enough.
fn may_begin(daemon: &Daemon, old: SocketAddr) -> Result<(), Failure> {
    if daemon.names().is_some() {
        return Err(Failure::IsReferee);
    }
    if !daemon.links.me().is_admitted() {
        return Err(Failure::NoNumber);
    }
    let listened = daemon.started.elapsed() >= daemon.config().liveness.node_timeout;
    if daemon.links.hears(old) || !listened {
        return Err(Failure::Lives(old));
    }
    Ok(())
}

/// Finds a reign to which more than half of the others would agree, and takes their copies.
fn propose(
    daemon: &Arc<Daemon>,
    own: &RecordCopy,
    old: SocketAddr,
) -> Result<(Epoch, Vec<RecordCopy>), Failure> {
    let mut epoch = Epoch(daemon.epoch().0.max(own.epoch.0) + 1);
    for _ in 0..ROUNDS_MAX {
        let votes = Votes::ask(daemon, own, old, epoch, Stage::Proposed)?;
        match votes.accepted() {
            Some(higher) => epoch = Epoch(higher.0 + 1),
            None => return Ok((epoch, votes.enough()?)),
        }
    }
    Err(Failure::Local("other nodes keep accepting other referees".into()))
}

/// What the others say to a proposal.
struct Votes {
    said: BTreeMap<NodeId, Option<Result<RecordCopy, Dissent>>>,
}

impl Votes {
    /// Asks every member at once but the old referee and ourselves.
    fn ask(
        daemon: &Arc<Daemon>,
        own: &RecordCopy,
        old: SocketAddr,
        epoch: Epoch,
        stage: Stage,
    ) -> Result<Votes, Failure> {
        let me = daemon.links.me();
        let others = own.members.iter().filter(|member| member.address != old);
        let others: Vec<_> = others.map(|member| member.node).filter(|node| *node != me).collect();
        let said: BTreeMap<_, _> = thread::scope(|scope| {
            let vote = |node: NodeId| move || ask(daemon, node, epoch, stage);
            let asked: Vec<_> =
                others.iter().map(|node| (*node, scope.spawn(vote(*node)))).collect();
            asked.into_iter().map(|(node, vote)| (node, vote.join().ok().flatten())).collect()
        });
        let hears = |vote: &Option<_>| matches!(vote, Some(Err(Dissent::RefereeLives)));
        match said.iter().find(|(_, vote)| hears(vote)) {
            Some((node, _)) => Err(Failure::HeardBy(*node)),
            None => Ok(Votes { said }),
        }
    }

    /// The highest reign that somebody has accepted instead.
    fn accepted(&self) -> Option<Epoch> {
        let accepted = self.said.values().filter_map(|vote| match vote {
            Some(Err(Dissent::Accepted(epoch))) => Some(*epoch),
            _ => None,
        });
        accepted.max()
    }

    /// The copies of those who agree, if they are more than half.
    fn enough(self) -> Result<Vec<RecordCopy>, Failure> {
        let (others, mut silent, mut copies) = (self.said.len(), Vec::new(), Vec::new());
        for (node, vote) in self.said {
            match vote {
                Some(Ok(copy)) => copies.push(copy),
                Some(Err(_)) => {}
                None => silent.push(node),
            }
        }
        if others == 0 || copies.len() * 2 > others {
            return Ok(copies);
        }
        Err(Failure::TooFew { agreed: copies.len(), others, silent })
    }
}

/// One node's vote; `None`: it does not answer. One that is not linked is not waited for.
fn ask(
    daemon: &Daemon,
    node: NodeId,
    epoch: Epoch,
    stage: Stage,
) -> Option<Result<RecordCopy, Dissent>> {
    if !daemon.links.linked().contains(&node) {
        return None;
    }
    let deadline = Deadline::after(Some(AGREEMENT_WAIT));
    match daemon.links.ask(node, deadline, |req| PeerFrame::Succeed { req, epoch, stage }) {
        Ok(PeerFrame::Succession { outcome, .. }) => Some(outcome),
        _ => None,
    }
}

/// The record to begin with: the newest copy's members, the old referee among the lost, and numbers
/// for ids that nobody was given.
fn merged(copies: Vec<RecordCopy>, epoch: Epoch, old: SocketAddr) -> Record {
    let ids_taken = copies.iter().map(|copy| copy.ids_taken).max().unwrap_or(0);
    let newest = copies.iter().max_by_key(|copy| (copy.epoch, copy.ids_taken));
    let mut members = newest.map(|copy| copy.members.clone()).unwrap_or_default();
    // Who was met by somebody and is in no copy.
    for member in copies.into_iter().flat_map(|copy| copy.members) {
        let known = |other: &Member| other.node == member.node || other.address == member.address;
        if !members.iter().any(known) {
            members.push(member);
        }
    }
    for member in members.iter_mut().filter(|member| member.address == old) {
        member.standing = Standing::Lost;
    }
    members.sort_by_key(|member| member.node);
    // A reign begins with the next epoch.
    Record { epoch: Epoch(epoch.0 - 1), members, ids_taken }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 4750))
    }

    fn member(number: u8, standing: Standing) -> Member {
        Member { node: NodeId::new(number).unwrap(), address: address(number), standing }
    }

    fn copy(epoch: u64, members: &[u8], ids_taken: u64) -> RecordCopy {
        let members = members.iter().map(|number| member(*number, Standing::Member)).collect();
        RecordCopy { epoch: Epoch(epoch), members, ids_taken }
    }

    #[test]
    fn the_newest_copy_counts_and_no_id_is_given_twice() {
        let copies = vec![copy(3, &[1, 2], 4096), copy(3, &[1, 2, 3], 8192), copy(2, &[4], 0)];
        let record = merged(copies, Epoch(4), address(1));
        assert_eq!((record.epoch, record.ids_taken), (Epoch(3), 8192));
        let (lost, here) = (Standing::Lost, Standing::Member);
        let expected = [member(1, lost), member(2, here), member(3, here), member(4, here)];
        assert_eq!(record.members, expected);
    }

    #[test]
    fn more_than_half_must_agree() {
        let votes = |agree: usize, silent: usize| {
            let nodes = (1..=64).filter_map(NodeId::new);
            let vote = |index| (index < agree).then(|| Ok(copy(1, &[], 0)));
            let said = nodes.zip((0..agree + silent).map(vote)).collect();
            Votes { said }.enough().map(|copies| copies.len())
        };
        assert_eq!(votes(0, 0).unwrap(), 0, "there is nobody else");
        assert_eq!(votes(2, 1).unwrap(), 2);
        let refused = votes(1, 1).unwrap_err().to_string();
        assert_eq!(refused, "1 of 2 other nodes agree, more than half must; no answer from 2");
    }
}
