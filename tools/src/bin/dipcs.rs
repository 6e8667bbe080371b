//! `dipcs`: the queues, segments, sets and nodes of the whole cluster, laid out as ipcs(1) does.
//! Whoever may call dipcd may use it; it shows no more than ipcs shows to everybody.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

use dipc_tools::cluster::{self, Cluster};
use dipc_tools::dipcd::Dipcd;
use dipc_tools::listing::{self, Detail};
use dipc_tools::{complain, detail, misused, print, printed, report};
use dipc_wire::ids::{Kind, ObjectId};
use lexopt::Arg::{Long, Short, Value};

const TOOL: &str = "dipcs";
const PAGE: &str = include_str!("../../../conf/man/dipcs.1");
const VERSION: &str = concat!("dipcs ", env!("CARGO_PKG_VERSION"), "\n");

/// What the command line asks for.
enum Request {
    Show(View),
    Help,
    Version,
}

/// What is shown, and how.
struct View {
    kinds: Vec<Kind>,
    nodes: Nodes,
    only: Option<i32>,
    detail: Detail,
    form: Form,
    socket: Option<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nodes {
    Shown,
    Hidden,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Table,
    Json,
}

fn main() -> ExitCode {
    match parse() {
        Ok(Request::Show(view)) => show(&view),
        Ok(Request::Help) => printed(TOOL, &dipc_tools::help::help(PAGE)),
        Ok(Request::Version) => printed(TOOL, VERSION),
        Err(error) => misused(TOOL, &error),
    }
}

fn parse() -> Result<Request, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let mut view = View {
        kinds: Vec::new(),
        nodes: Nodes::Hidden,
        only: None,
        detail: Detail::Usual,
        form: Form::Table,
        socket: None,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Short('q') | Long("queues") => view.kinds.push(Kind::Queue),
            Short('m') | Long("shmems") => view.kinds.push(Kind::Segment),
            Short('s') | Long("semaphores") => view.kinds.push(Kind::Set),
            Short('n') | Long("nodes") => view.nodes = Nodes::Shown,
            Short('a') | Long("all") => {
                view.kinds.extend(Kind::ALL);
                view.nodes = Nodes::Shown;
            }
            Short('i') | Long("id") => {
                let id = parser.value()?.to_string_lossy().into_owned();
                view.only = Some(id.parse().map_err(|_| format!("invalid id ({id})"))?);
            }
            Short('v') | Long("verbose") => view.detail = Detail::Verbose,
            Long("json") => view.form = Form::Json,
            Long("socket") => view.socket = Some(parser.value()?),
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected()),
        }
    }
    if view.kinds.is_empty() && (view.nodes == Nodes::Hidden || view.only.is_some()) {
        view.kinds.extend(Kind::ALL);
    }
    Ok(Request::Show(view))
}

fn show(view: &View) -> ExitCode {
    let dipcd = Dipcd::at(view.socket.clone());
    let cluster = match Cluster::ask(&dipcd, &view.kinds) {
        Ok(cluster) => cluster,
        Err(trouble) => {
            complain(TOOL, &trouble);
            return ExitCode::FAILURE;
        }
    };
    let shown = match view.only {
        Some(id) => one(&dipcd, &cluster, id, view.form),
        None => Ok(all(&cluster, view)),
    };
    let mut status = ExitCode::SUCCESS;
    match shown {
        Ok(text) => {
            if let Err(error) = print(&text) {
                complain(TOOL, &format_args!("standard output: {error}"));
                status = ExitCode::FAILURE;
            }
        }
        Err(why) => {
            complain(TOOL, &why);
            status = ExitCode::FAILURE;
        }
    }
    for node in cluster.silent() {
        let (number, address) = (node.row.node, node.row.address);
        // Before its first admission a node knows of the referee nothing but its address.
        let name =
            if number.is_admitted() { format!("node {number}") } else { "the referee".to_owned() };
        complain(TOOL, &format_args!("{name} ({address}) did not answer"));
        status = ExitCode::FAILURE;
    }
    status
}

fn all(cluster: &Cluster, view: &View) -> String {
    if view.form == Form::Json {
        return format!("{}\n", report::cluster(cluster, &view.kinds));
    }
    let mut text = listing::objects(cluster, &view.kinds, view.detail);
    if view.nodes == Nodes::Shown {
        text += &listing::nodes(cluster, view.detail);
    }
    text + "\n"
}

/// The object with this id.
fn one(dipcd: &Dipcd, cluster: &Cluster, id: i32, form: Form) -> Result<String, String> {
    let object = ObjectId::from_raw(id)
        .and_then(|id| cluster.objects.iter().find(|object| object.id == id))
        .ok_or_else(|| format!("id {id} not found"))?;
    let Some(row) = &object.row else {
        return Err(format!("id {id}: its home, node {}, did not answer", object.home));
    };
    let semaphores = match object.kind {
        Kind::Set => cluster::semaphores(dipcd, object.home, object.id),
        Kind::Queue | Kind::Segment => Ok(Vec::new()),
    };
    if form == Form::Json {
        let shown = match (&semaphores, object.kind) {
            (Ok(semaphores), Kind::Set) => Some(semaphores.as_slice()),
            _ => None,
        };
        return Ok(format!("{}\n", report::object(object, shown)));
    }
    Ok(detail::show(object, row, semaphores) + "\n")
}
