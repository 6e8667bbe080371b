//! `--json`: the same as the tables and more, for programs. One object on one line, its members in
//! a fixed order; what is not known is null.
#![forbid(unsafe_code)]

use dipc_wire::ids::{Kind, NodeId};
use dipc_wire::survey::{NodeStatus, ObjectRow, Semaphore, State, Tracing, User};

use crate::cluster::{Cluster, Node, Object};
use crate::detail::deed;
use crate::json::Json;
use crate::listing::{contact, permissions, role};

/// Everything, and who did not answer.
pub fn cluster(cluster: &Cluster, kinds: &[Kind]) -> Json {
    let of_kind = |object: &&Object| kinds.contains(&object.kind);
    let silent = cluster.silent().map(|node| node.row.node.number());
    Json::Object(vec![
        ("nodes", Json::list(&cluster.nodes, node)),
        ("objects", Json::list(cluster.objects.iter().filter(of_kind), |it| object(it, None))),
        ("unanswered", Json::list(silent, Json::number)),
    ])
}

/// One node.
pub fn node(node: &Node) -> Json {
    let row = &node.row;
    Json::Object(vec![
        ("node", Json::number(row.node.number())),
        ("address", Json::text(row.address)),
        ("contact", Json::text(contact(row.contact))),
        ("role", Json::text(role(row.role))),
        ("heard_ms", Json::number(row.heard_ms)),
        ("status", node.status.as_ref().map_or(Json::Null, status)),
    ])
}

/// What a node says of itself.
pub fn status(status: &NodeStatus) -> Json {
    let tracing = match status.tracing {
        Tracing::On => "on",
        Tracing::Off => "off",
    };
    let count = |count: &dipc_wire::survey::Count| {
        Json::Object(vec![("name", Json::text(&count.name)), ("value", Json::number(count.value))])
    };
    Json::Object(vec![
        ("node", Json::number(status.node.number())),
        ("address", Json::text(status.address)),
        ("referee", Json::number(status.referee.number())),
        ("referee_address", Json::text(status.referee_address)),
        ("epoch", Json::number(status.epoch.0)),
        ("incarnation", Json::number(status.incarnation.0)),
        ("version", Json::text(&status.version)),
        ("up_ms", Json::number(status.up_ms)),
        ("trace", Json::text(tracing)),
        ("counts", Json::list(&status.counts, count)),
    ])
}

/// One object; `semaphores` for a set whose values are shown.
pub fn object(object: &Object, semaphores: Option<&[Semaphore]>) -> Json {
    let mut members = vec![
        ("kind", Json::text(object.kind.name())),
        ("id", Json::number(object.id.raw())),
        ("key", Json::number(object.key.0)),
        ("home", Json::number(object.home.number())),
        ("state", object.row.as_ref().map_or(Json::Null, |row| state(object, row))),
    ];
    if let Some(semaphores) = semaphores {
        members.push(("semaphores", Json::list(semaphores, semaphore)));
    }
    Json::Object(members)
}

fn state(object: &Object, row: &ObjectRow) -> Json {
    let perm = permissions(&row.state);
    let mut members = vec![
        ("owner", Json::text(&row.owner)),
        ("uid", Json::number(perm.uid)),
        ("gid", Json::number(perm.gid)),
        ("creator", Json::text(&row.creator)),
        ("cuid", Json::number(perm.cuid)),
        ("cgid", Json::number(perm.cgid)),
        ("mode", Json::number(perm.mode)),
    ];
    let numbers: Vec<(&'static str, i128)> = match row.state {
        State::Queue(stat) => vec![
            ("used_bytes", stat.cbytes.into()),
            ("messages", stat.qnum.into()),
            ("qbytes", stat.qbytes.into()),
            ("lspid", stat.lspid.into()),
            ("lrpid", stat.lrpid.into()),
            ("stime", stat.stime.into()),
            ("rtime", stat.rtime.into()),
            ("ctime", stat.ctime.into()),
        ],
        State::Set(stat) => vec![
            ("nsems", stat.nsems.into()),
            ("otime", stat.otime.into()),
            ("ctime", stat.ctime.into()),
        ],
        State::Segment(stat) => vec![
            ("bytes", stat.bytes.into()),
            ("nattch", object.attachments().into()),
            ("cpid", stat.cpid.into()),
            ("lpid", stat.lpid.into()),
            ("atime", stat.atime.into()),
            ("dtime", stat.dtime.into()),
            ("ctime", stat.ctime.into()),
        ],
    };
    members.extend(numbers.into_iter().map(|(name, number)| (name, Json::Number(number))));
    members.push(match object.kind {
        Kind::Segment => ("attached", Json::list(&object.attached, attached)),
        Kind::Queue | Kind::Set => ("users", Json::list(&row.users, user)),
    });
    Json::Object(members)
}

fn attached((node, count): &(NodeId, u64)) -> Json {
    Json::Object(vec![("node", Json::number(node.number())), ("count", Json::number(*count))])
}

fn user(user: &User) -> Json {
    Json::Object(vec![
        ("node", Json::number(user.node.number())),
        ("pid", Json::number(user.pid)),
        ("did", Json::text(deed(user.deed))),
    ])
}

fn semaphore(semaphore: &Semaphore) -> Json {
    Json::Object(vec![
        ("value", Json::number(semaphore.value)),
        ("ncount", Json::number(semaphore.waiting_for_more)),
        ("zcount", Json::number(semaphore.waiting_for_zero)),
        ("last", semaphore.last.as_ref().map_or(Json::Null, user)),
    ])
}
