//! From the text of dipc.conf to typed values. The text is taken apart once; then each entry is
//! asked for by name and type. Whatever is wrong becomes an error in the list, and the default
//! stands in for it, so that one reading finds every error of a file.
//!
//! What is *together* wrong (a lease that is too long for its node_timeout) is found by config.rs
//! and reported by [`Reader::refuse`].
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dipc_wire::ids::NodeId;
use dipc_wire::limits::NODES_MAX;

use super::address::{self, Host};
use super::entries::{self, Bounds, Entry, PROGRAM_ENTRIES, SUFFIXES};
use super::error::{Error, quoted};
use super::key;
use super::types::*;
use crate::policy::{KeySet, Program, Sharing};

/// Errors of one file that are reported.
const ERRORS_MAX: usize = 100;
/// `[program PATH]` sections of one file.
const PROGRAMS_MAX: usize = 1024;
/// The longest path of a UNIX socket (unix(7): sun_path, without its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The longest unit of memory; it must fit into a frame.
const PAGE_BYTES_MAX: u64 = 16 << 20;
const _: () = assert!(PAGE_BYTES_MAX <= dipc_wire::limits::MESSAGE_BYTES_MAX as u64);

/// A value, or what the bounds of its entry do not say about why it is none.
type Parsed<T> = Result<T, String>;

/// A value as the file has it.
#[derive(Clone)]
struct Given {
    line: usize,
    text: String,
}

type Values = BTreeMap<&'static str, Given>;

struct Section {
    path: PathBuf,
    values: Values,
}

/// Where the entries of the following lines belong.
enum Place {
    Top,
    Program(usize),
    /// After a header that is itself an error: to nothing.
    Nowhere,
}

/// One file being read.
pub(super) struct Reader<'a> {
    file: &'a Path,
    top: Values,
    sections: Vec<Section>,
    errors: Vec<Error>,
}

impl<'a> Reader<'a> {
    /// Takes the text apart.
    pub(super) fn new(file: &'a Path, text: &str) -> Reader<'a> {
        let mut reader =
            Reader { file, top: Values::new(), sections: Vec::new(), errors: Vec::new() };
        let mut place = Place::Top;
        for (index, line) in text.lines().enumerate() {
            let text = line.split('#').next().unwrap_or("").trim();
            if text.starts_with('[') {
                place = reader.header(index + 1, text);
            } else if !text.is_empty() {
                reader.line(index + 1, text, &place);
            }
        }
        reader
    }

    /// All errors, in the order of the lines.
    pub(super) fn finish(mut self) -> Vec<Error> {
        self.errors.sort_by_key(|error| error.line);
        self.errors
    }

    /// Whether there is no error so far.
    pub(super) fn is_good(&self) -> bool {
        self.errors.is_empty()
    }

    /// Reports an entry whose value does not go with another's.
    pub(super) fn refuse(&mut self, name: &'static str, expected: String) {
        let (line, found) = match self.top.get(name) {
            Some(given) => (Some(given.line), quoted(&given.text)),
            None => match entries::find(name).map_or("", |entry| entry.default) {
                "" => (None, "nothing".to_owned()),
                default => (None, format!("the default, {default}")),
            },
        };
        self.error(line, name, expected, found);
    }

    fn error(&mut self, line: Option<usize>, entry: &str, expected: String, found: String) {
        if self.errors.len() < ERRORS_MAX {
            let file = self.file.to_owned();
            self.errors.push(Error { file, line, entry: entry.to_owned(), expected, found });
        }
    }

    fn header(&mut self, line: usize, text: &str) -> Place {
        let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let path = inner.and_then(|inner| inner.trim().strip_prefix("program"));
        let path = path.filter(|rest| rest.starts_with(char::is_whitespace) && !rest.contains(']'));
        let path = path.map(str::trim);
        let Some(path) = path.and_then(|path| absolute_path(path).ok()) else {
            self.error(Some(line), "", "[program PATH], an absolute path".into(), quoted(text));
            return Place::Nowhere;
        };
        if self.sections.iter().any(|section| section.path == path) {
            self.error(Some(line), "", "one section for a program".into(), quoted(text));
            return Place::Nowhere;
        }
        if self.sections.len() == PROGRAMS_MAX {
            let expected = format!("at most {PROGRAMS_MAX} sections");
            self.error(Some(line), "", expected, quoted(text));
            return Place::Nowhere;
        }
        self.sections.push(Section { path, values: Values::new() });
        Place::Program(self.sections.len() - 1)
    }

    fn line(&mut self, line: usize, text: &str, place: &Place) {
        let Some((name, value)) = text.split_once('=') else {
            return self.error(Some(line), "", "name = value".into(), quoted(text));
        };
        let (name, value) = (name.trim(), value.trim());
        let Some(entry) = entries::find(name) else {
            return self.error(Some(line), "", "the name of an entry".into(), quoted(name));
        };
        let values = match *place {
            Place::Top => &mut self.top,
            Place::Nowhere => return,
            Place::Program(index) if PROGRAM_ENTRIES.contains(&entry.name) => {
                &mut self.sections[index].values
            }
            Place::Program(_) => {
                let expected = format!("{} in a section", PROGRAM_ENTRIES.join(", "));
                return self.error(Some(line), name, expected, quoted(value));
            }
        };
        if let Some(first) = values.get(entry.name) {
            let expected = format!("it once (first in line {})", first.line);
            return self.error(Some(line), name, expected, quoted(value));
        }
        values.insert(entry.name, Given { line, text: value.to_owned() });
    }

    /// What an entry was given as, if it was given and is good.
    fn given<T>(
        &mut self,
        name: &'static str,
        given: Option<Given>,
        parse: impl Fn(&Entry, &str) -> Parsed<T>,
    ) -> Option<T> {
        let (given, entry) = (given?, entry(name));
        match parse(entry, &given.text) {
            Ok(value) => Some(value),
            Err(reason) => {
                let mut found = quoted(&given.text);
                if !reason.is_empty() {
                    found = format!("{found} ({reason})");
                }
                self.error(Some(given.line), name, entry.bounds.to_string(), found);
                None
            }
        }
    }

    /// An entry outside sections; its default when it is not given or not good.
    fn value<T>(&mut self, name: &'static str, parse: impl Fn(&Entry, &str) -> Parsed<T>) -> T {
        let given = self.top.get(name).cloned();
        if let Some(value) = self.given(name, given, &parse) {
            return value;
        }
        parse(entry(name), entry(name).default).expect("the default of an entry is good")
    }

    /// An entry that must be given.
    fn mandatory<T>(
        &mut self,
        name: &'static str,
        stand_in: T,
        parse: impl Fn(&Entry, &str) -> Parsed<T>,
    ) -> T {
        let given = self.top.get(name).cloned();
        if given.is_none() {
            self.refuse(name, entry(name).bounds.to_string());
        }
        self.given(name, given, parse).unwrap_or(stand_in)
    }

    pub(super) fn number(&mut self, name: &'static str) -> u64 {
        self.value(name, number)
    }

    pub(super) fn octal(&mut self, name: &'static str) -> u32 {
        self.value(name, |_, text| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
            mode.filter(|_| digits).ok_or_else(String::new)
        })
    }

    pub(super) fn seconds(&mut self, name: &'static str) -> Duration {
        self.value(name, |entry, text| seconds(entry, text)?.ok_or_else(String::new))
    }

    pub(super) fn seconds_or_none(&mut self, name: &'static str) -> Option<Duration> {
        self.value(name, seconds)
    }

    pub(super) fn hold(&mut self, name: &'static str) -> HoldTime {
        let bounded = Entry { bounds: Bounds::Seconds(1, 10_000), ..*entry(name) };
        self.value(name, |_, text| match text {
            "adaptive" => Ok(HoldTime::Adaptive),
            text => seconds(&bounded, text)?.map(HoldTime::AtLeast).ok_or_else(String::new),
        })
    }

    pub(super) fn word<T: Words>(&mut self, name: &'static str) -> T {
        self.value(name, |_, text| word(text))
    }

    pub(super) fn word_any_case<T: Words>(&mut self, name: &'static str) -> T {
        self.value(name, |_, text| word(&text.to_ascii_lowercase()))
    }

    pub(super) fn identity(&mut self, name: &'static str) -> Identity {
        let errors = self.errors.len();
        let identity = self.word(name);
        if identity == Identity::Own || rustix::process::geteuid().is_root() {
            return identity;
        }
        if self.top.contains_key(name) && self.errors.len() == errors {
            self.refuse(name, "self, for dipcd does not run as root".into());
        }
        Identity::Own
    }

    pub(super) fn path(&mut self, name: &'static str) -> PathBuf {
        self.value(name, |_, text| absolute_path(text))
    }

    pub(super) fn socket(&mut self, name: &'static str) -> PathBuf {
        self.value(name, |_, text| match text.len() {
            ..=SOCKET_PATH_BYTES_MAX => absolute_path(text),
            length => Err(format!("{length} bytes")),
        })
    }

    pub(super) fn account(&mut self, name: &'static str) -> AccountName {
        self.value(name, |_, text| account(text))
    }

    pub(super) fn account_or_none(&mut self, name: &'static str) -> Option<AccountName> {
        self.value(name, |_, text| or_none(text, account))
    }

    pub(super) fn container_identity(&mut self, name: &'static str) -> ContainerIdentity {
        self.value(name, |_, text| match text.strip_prefix("user:") {
            Some(user) => account(user.trim()).map(ContainerIdentity::User),
            None if text == "refuse" => Ok(ContainerIdentity::Refuse),
            None => Err(String::new()),
        })
    }

    pub(super) fn this_machine(&mut self, name: &'static str, port: u16) -> SocketAddr {
        self.mandatory(name, nowhere(port), |_, text| {
            if text == "dipc_auto_find" {
                return address::of_this_machine().map(|found| SocketAddr::new(found, port));
            }
            node(text, port)
        })
    }

    pub(super) fn node(&mut self, name: &'static str, port: u16) -> SocketAddr {
        self.mandatory(name, nowhere(port), |_, text| match text {
            "dipc_auto_find" => Err(String::new()),
            text => node(text, port),
        })
    }

    pub(super) fn addresses(&mut self, name: &'static str) -> Vec<IpAddr> {
        self.value(name, |_, text| Ok(or_none(text, addresses)?.unwrap_or_default()))
    }

    /// `cluster_key` and `cluster_key_next`; without the first only loopback will do.
    pub(super) fn cluster_key(&mut self, only_loopback: bool) -> ClusterKey {
        let errors = self.errors.len();
        let current = self.value("cluster_key", |_, text| or_none(text, key_file));
        let next = self.value("cluster_key_next", |_, text| or_none(text, key_file));
        let Some(current) = current else {
            if next.is_some() {
                self.refuse("cluster_key_next", "cluster_key beside it".into());
            }
            let bad_file_given = self.errors.len() > errors;
            if !only_loopback && !bad_file_given {
                let how = "a key file, for this_machine or referee is not a loopback address \
                           (make one: dipcd --make-key FILE)";
                self.refuse("cluster_key", how.into());
            }
            return ClusterKey::Loopback;
        };
        ClusterKey::Files { current, next }
    }

    pub(super) fn sharing(&mut self) -> Sharing {
        Sharing {
            keys: self.value("keys", |_, text| keys(text)),
            ftok: self.word("ftok"),
            shm_noreserve: self.word("shm_noreserve"),
        }
    }

    /// The sections; what one does not say is as outside it.
    pub(super) fn programs(&mut self, outside: &Sharing) -> Vec<Program> {
        let sections = std::mem::take(&mut self.sections);
        let program = |section: Section| {
            let take = |name| section.values.get(name).cloned();
            let (given, ftok, noreserve) = (take("keys"), take("ftok"), take("shm_noreserve"));
            let given = self.given("keys", given, |_, text| keys(text));
            let ftok = self.given("ftok", ftok, |_, text| word(text));
            let noreserve = self.given("shm_noreserve", noreserve, |_, text| word(text));
            let sharing = Sharing {
                keys: given.unwrap_or_else(|| outside.keys.clone()),
                ftok: ftok.unwrap_or(outside.ftok),
                shm_noreserve: noreserve.unwrap_or(outside.shm_noreserve),
            };
            Program { path: section.path, sharing }
        };
        sections.into_iter().map(program).collect()
    }

    pub(super) fn home(&mut self, name: &'static str) -> Home {
        self.value(name, |_, text| match text {
            "creator" => Ok(Home::Creator),
            "referee" => Ok(Home::Referee),
            number => {
                let node = digits(number).and_then(|n| u8::try_from(n).ok());
                let node = node.and_then(NodeId::new).filter(|node| node.is_admitted());
                node.map(Home::Node).ok_or_else(String::new)
            }
        })
    }

    pub(super) fn send(&mut self, name: &'static str) -> Sending {
        self.value(name, |_, text| match text.strip_prefix("pipelined:") {
            Some(text) => keys(text).map(Sending::Pipelined),
            None if text == "strict" => Ok(Sending::Strict),
            None => Err(String::new()),
        })
    }

    pub(super) fn page_bytes(&mut self, name: &'static str) -> u32 {
        let system = rustix::param::page_size() as u64;
        self.value(name, |_, text| {
            if text == "system" {
                return Ok(system as u32);
            }
            let given = bytes(text).filter(|given| (system..=PAGE_BYTES_MAX).contains(given));
            let multiple = given.filter(|given| given.is_multiple_of(system));
            multiple.map(|given| given as u32).ok_or_else(|| format!("a page is {system} bytes"))
        })
    }

    pub(super) fn metrics(&mut self, name: &'static str) -> Option<Metrics> {
        self.value(name, |_, text| {
            or_none(text, |text| match text.parse::<SocketAddr>() {
                Ok(at) if at.ip().is_loopback() && at.port() != 0 => Ok(Metrics::Address(at)),
                Ok(_) => Err(String::new()),
                Err(_) => absolute_path(text).map(Metrics::Path),
            })
        })
    }

    pub(super) fn mailbox(&mut self, name: &'static str) -> Option<Mailbox> {
        self.value(name, |_, text| or_none(text, |text| mailbox(text).ok_or_else(String::new)))
    }
}

fn entry(name: &str) -> &'static Entry {
    entries::find(name).expect("config.rs asks for entries of the table")
}

/// What stands for an address that is an error.
fn nowhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn or_none<T>(text: &str, parse: impl Fn(&str) -> Parsed<T>) -> Parsed<Option<T>> {
    if text == "none" { Ok(None) } else { parse(text).map(Some) }
}

fn digits(text: &str) -> Option<u64> {
    let all = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| all)
}

fn bytes(text: &str) -> Option<u64> {
    for (suffix, unit) in SUFFIXES {
        if let Some(number) = text.strip_suffix(suffix) {
            return digits(number)?.checked_mul(unit);
        }
    }
    digits(text)
}

fn number(entry: &Entry, text: &str) -> Parsed<u64> {
    let found = match entry.bounds {
        Bounds::Number(min, max) => digits(text).filter(|n| (min..=max).contains(n)),
        Bounds::Bytes(min, max) => bytes(text).filter(|n| (min..=max).contains(n)),
        other => unreachable!("{} is no number: {other}", entry.name),
    };
    found.ok_or_else(String::new)
}

/// `None` for 0 or less, where that is allowed.
fn seconds(entry: &Entry, text: &str) -> Parsed<Option<Duration>> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || b".-+".contains(&byte));
    let number = text.parse::<f64>().ok().filter(|_| plain).ok_or_else(String::new)?;
    let (min_ms, max_ms) = match entry.bounds {
        Bounds::SecondsOrNone(..) if number <= 0.0 => return Ok(None),
        Bounds::SecondsOrNone(min, max) | Bounds::Seconds(min, max) => (min, max),
        other => unreachable!("{} is no time: {other}", entry.name),
    };
    let wait = Duration::try_from_secs_f64(number).map_err(|_| String::new())?;
    let fits = wait >= Duration::from_millis(min_ms) && wait <= Duration::from_millis(max_ms);
    fits.then_some(Some(wait)).ok_or_else(String::new)
}

fn word<T: Words>(text: &str) -> Parsed<T> {
    T::from_word(text).ok_or_else(String::new)
}

fn keys(text: &str) -> Parsed<KeySet> {
    text.parse().map_err(|_| String::new())
}

fn account(text: &str) -> Parsed<AccountName> {
    AccountName::new(text).ok_or_else(String::new)
}

fn absolute_path(text: &str) -> Parsed<PathBuf> {
    let plain = text.starts_with('/') && !text.chars().any(char::is_control);
    plain.then(|| PathBuf::from(text)).ok_or_else(String::new)
}

fn node(text: &str, port: u16) -> Parsed<SocketAddr> {
    let (host, own_port) = Host::parse_with_port(text).ok_or_else(String::new)?;
    let found = address::resolve(&host)?;
    if found.is_unspecified() || found.is_multicast() {
        return Err("not the address of one machine".into());
    }
    Ok(SocketAddr::new(found, own_port.unwrap_or(port)))
}

fn addresses(text: &str) -> Parsed<Vec<IpAddr>> {
    let hosts: Option<Vec<_>> =
        text.split(',').take(NODES_MAX as usize + 1).map(|part| Host::parse(part.trim())).collect();
    let hosts = hosts.filter(|hosts| hosts.len() <= NODES_MAX as usize).ok_or_else(String::new)?;
    let resolved: Result<Vec<_>, _> = address::resolve_all(&hosts).into_iter().collect();
    Ok(resolved?.into_iter().flatten().map(|found| found.to_canonical()).collect())
}

fn key_file(text: &str) -> Parsed<KeyFile> {
    let path = absolute_path(text)?;
    let secret = key::read(&path)?;
    Ok(KeyFile { path, secret })
}

fn mailbox(text: &str) -> Option<Mailbox> {
    let numbers: Option<Vec<u64>> = text.split_whitespace().take(5).map(digits).collect();
    let &[count, kbytes, port, packet_kbytes] = numbers?.as_slice() else { return None };
    let small = |number: u64| u32::try_from(number).ok().filter(|number| *number > 0);
    let port = u16::try_from(port).ok().filter(|port| *port > 0)?;
    let (count, kbytes) = (small(count)?, small(kbytes)?);
    Some(Mailbox { count, kbytes, port, packet_kbytes: small(packet_kbytes)? })
}
