//! Addresses, numeric or symbolic. Names are asked for in threads of their own and waited for
//! with a bound, because a resolver may take minutes and cannot be interrupted.
//!
//! A name stands for all addresses it has; where one is needed it is the first of IPv4, or else
//! the first.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How long all names of one question may take together.
pub const RESOLVE_WAIT: Duration = Duration::from_secs(5);
/// Names of one question.
pub const NAMES_MAX: usize = 256;
/// The longest name (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// A machine as somebody wrote it down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// `w.x.y.z`, or an IPv6 address.
    Numeric(IpAddr),
    /// A name to be asked for.
    Symbolic(String),
}

impl Host {
    /// An address or a name, without a port.
    pub fn parse(text: &str) -> Option<Host> {
        if let Ok(address) = text.parse() {
            return Some(Host::Numeric(address));
        }
        let letter = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        // What ends in a number is a mistyped address, not a name (RFC 3696, section 2).
        let last = text.rsplit('.').next().unwrap_or("");
        let numeric = last.chars().all(|c| c.is_ascii_digit());
        let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.starts_with('-');
        (fits && !numeric && text.chars().all(letter)).then(|| Host::Symbolic(text.to_owned()))
    }

    /// `host`, `host:port` or `[address]:port`.
    pub fn parse_with_port(text: &str) -> Option<(Host, Option<u16>)> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return (address.port() != 0)
                .then_some((Host::Numeric(address.ip()), Some(address.port())));
        }
        if let Some(host) = Host::parse(text) {
            return Some((host, None));
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return inner.parse().ok().map(|v6: Ipv6Addr| (Host::Numeric(v6.into()), None));
        }
        let (name, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port != 0)?;
        Some((Host::parse(name)?, Some(port)))
    }
}

/// The addresses of each host, in order, or why there are none. All names are asked for at once,
/// and what is not known after [`RESOLVE_WAIT`] is not waited for.
pub fn resolve_all(hosts: &[Host]) -> Vec<Result<Vec<IpAddr>, String>> {
    resolve_within(hosts, RESOLVE_WAIT)
}

fn resolve_within(hosts: &[Host], wait: Duration) -> Vec<Result<Vec<IpAddr>, String>> {
    let deadline = Instant::now() + wait;
    let mut names = 0;
    let asked: Vec<_> = hosts
        .iter()
        .map(|host| match host {
            Host::Numeric(address) => Question::Answered(Ok(vec![*address])),
            Host::Symbolic(_) if names == NAMES_MAX => {
                Question::Answered(Err(format!("more than {NAMES_MAX} names")))
            }
            Host::Symbolic(name) => {
                names += 1;
                Question::ask(name)
            }
        })
        .collect();
    asked.into_iter().map(|question| question.wait(deadline)).collect()
}

/// One address of a host.
pub fn resolve(host: &Host) -> Result<IpAddr, String> {
    let addresses = resolve_all(std::slice::from_ref(host)).remove(0)?;
    let preferred = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    Ok(*preferred.expect("a host that was resolved has an address"))
}

/// The address that this machine's name has (`dipc_auto_find`): one that others can reach, if
/// there is one.
pub fn of_this_machine() -> Result<IpAddr, String> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    let host = Host::parse(&name).ok_or_else(|| format!("the host name is {name:?}"))?;
    let addresses = resolve_all(&[host]).remove(0).map_err(|why| format!("{name}: {why}"))?;
    let far = |address: &&IpAddr| !address.is_loopback();
    let preferred = addresses.iter().filter(far).find(|address| address.is_ipv4());
    let preferred = preferred.or(addresses.iter().find(far)).or(addresses.first());
    Ok(*preferred.expect("a host that was resolved has an address"))
}

enum Question {
    Answered(Result<Vec<IpAddr>, String>),
    Asked(mpsc::Receiver<Result<Vec<IpAddr>, String>>),
}

impl Question {
    fn ask(name: &str) -> Question {
        let (sender, receiver) = mpsc::channel();
        let name = name.to_owned();
        let started = thread::Builder::new().name("resolve".into()).spawn(move || {
            // Nobody listens any more when the answer comes too late.
            let _ = sender.send(look_up(&name));
        });
        match started {
            Ok(_) => Question::Asked(receiver),
            Err(error) => Question::Answered(Err(error.to_string())),
        }
    }

    fn wait(self, deadline: Instant) -> Result<Vec<IpAddr>, String> {
        let receiver = match self {
            Question::Answered(answer) => return answer,
            Question::Asked(receiver) => receiver,
        };
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err("it took too long to find".into()),
            Err(RecvTimeoutError::Disconnected) => Err("the resolver failed".into()),
        }
    }
}

fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    let found = (name, 0).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|address| address.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() { Err("it has no address".into()) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_by_example() {
        let numeric = |text: &str| Host::Numeric(text.parse().unwrap());
        let symbolic = |text: &str| Host::Symbolic(text.to_owned());
        let rows = [
            ("127.0.0.1", Some((numeric("127.0.0.1"), None))),
            ("127.0.0.1:80", Some((numeric("127.0.0.1"), Some(80)))),
            ("::1", Some((numeric("::1"), None))),
            ("[::1]", Some((numeric("::1"), None))),
            ("[::1]:9", Some((numeric("::1"), Some(9)))),
            ("sun.iust.ac.ir", Some((symbolic("sun.iust.ac.ir"), None))),
            ("sun:4750", Some((symbolic("sun"), Some(4750)))),
            ("127.0.0.1:0", None),
            ("sun:0", None),
            ("sun:65536", None),
            ("127.0.0.256", None),
            ("127.0.1", None),
            ("-sun", None),
            ("a b", None),
            ("", None),
            ("[sun]", None),
        ];
        for (text, expected) in rows {
            assert_eq!(Host::parse_with_port(text), expected, "{text:?}");
        }
        assert_eq!(Host::parse(&"a".repeat(254)), None);
    }

    #[test]
    fn many_names_share_one_bound() {
        let hosts = vec![Host::Symbolic("no-such-host.invalid".into()); NAMES_MAX + 1];
        let (begun, wait) = (Instant::now(), Duration::from_millis(500));
        let answers = resolve_within(&hosts, wait);
        // Asked for one after the other, with a bound for each, they might take two minutes.
        assert!(begun.elapsed() < wait * 100);
        assert_eq!(answers.len(), hosts.len());
        assert!(answers.iter().all(Result::is_err));
        assert_eq!(answers[NAMES_MAX], Err(format!("more than {NAMES_MAX} names")));
    }

    #[test]
    fn numbers_need_no_resolver() {
        let host = Host::Numeric("192.0.2.7".parse().unwrap());
        assert_eq!(resolve(&host), Ok("192.0.2.7".parse().unwrap()));
    }
}
