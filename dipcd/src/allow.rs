//! dipc.allow: the machines that may take part, one address a line, numeric or symbolic, perhaps
//! with a file behind it: the public half of that node's key.
//!
//! It says who may try; a peer must prove the cluster key besides, and the node key where the list
//! names one. The referee always has a list;
//! another node has one with `-s`. Reading the file again on SIGHUP, and closing what is allowed
//! no more, is main's: a list that could not be read whole never replaces one that could.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;
use std::path::Path;

use dipc_wire::noise::PublicKey;

use crate::config::address::{Host, resolve_all};
use crate::config::{Config, Error, key, quoted, read_text};

/// Lines of a list that hold an address.
const HOSTS_MAX: usize = 4096;

/// Which addresses may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowList {
    /// Any: this node is not the referee, and `-s` was not given.
    Everybody,
    /// Only this machine: there is no file, and this node listens on loopback alone.
    Loopback,
    /// Those of the file, each with the key that it must prove besides the cluster's.
    Listed(BTreeMap<IpAddr, Option<PublicKey>>),
}

/// One line: an address, and the file with its key.
struct Line {
    number: usize,
    host: Host,
    key: Option<PublicKey>,
}

/// Who needs a list (`-s`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// The referee alone.
    #[default]
    Open,
    /// Every node.
    Secure,
}

impl AllowList {
    /// The list that this node goes by.
    pub fn of_node(config: &Config, admission: Admission) -> Result<AllowList, Vec<Error>> {
        if !config.is_referee() && admission == Admission::Open {
            return Ok(AllowList::Everybody);
        }
        let missing = !config.allow_file.exists();
        let unasked = admission == Admission::Open && config.this_machine.ip().is_loopback();
        if missing && unasked {
            return Ok(AllowList::Loopback);
        }
        AllowList::load(&config.allow_file)
    }

    /// Reads a file, and asks for its names.
    pub fn load(file: &Path) -> Result<AllowList, Vec<Error>> {
        match read_text(file) {
            Ok(text) => AllowList::parse(file, &text),
            Err(error) => {
                let expected = "a readable file with the addresses of the cluster";
                Err(vec![Error::of_file(file, expected, error.to_string())])
            }
        }
    }

    /// Takes the text of a file; `file` is only for messages.
    pub fn parse(file: &Path, text: &str) -> Result<AllowList, Vec<Error>> {
        let wrong = |line: usize, expected: &str, found: String| Error {
            line: Some(line),
            ..Error::of_file(file, expected, found)
        };
        let (mut lines, mut errors) = (Vec::new(), Vec::new());
        for (index, line) in text.lines().enumerate() {
            let (number, text) = (index + 1, line.split('#').next().unwrap_or("").trim());
            match parse_line(number, text) {
                _ if text.is_empty() => {}
                Ok(_) if lines.len() == HOSTS_MAX => {
                    let expected = format!("at most {HOSTS_MAX} addresses");
                    errors.push(wrong(number, &expected, "more".into()));
                    return Err(errors);
                }
                Ok(line) => lines.push(line),
                Err((expected, found)) => errors.push(wrong(number, expected, found)),
            }
        }
        let hosts: Vec<Host> = lines.iter().map(|line| line.host.clone()).collect();
        let mut listed = BTreeMap::new();
        for (line, resolved) in lines.iter().zip(resolve_all(&hosts)) {
            match (resolved, &line.host) {
                (Ok(found), _) => {
                    for address in found.iter().map(IpAddr::to_canonical) {
                        if !list(&mut listed, address, line.key) {
                            let found = format!("two for {address}");
                            errors.push(wrong(line.number, "one key for an address", found));
                        }
                    }
                }
                (Err(why), Host::Symbolic(name)) => {
                    let found = format!("{} ({why})", quoted(name));
                    errors.push(wrong(line.number, "an address that can be found", found));
                }
                (Err(_), Host::Numeric(_)) => unreachable!("a number is its own address"),
            }
        }
        errors.sort_by_key(|error| error.line);
        if errors.is_empty() { Ok(AllowList::Listed(listed)) } else { Err(errors) }
    }

    /// Whether this address may connect.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self {
            AllowList::Everybody => true,
            AllowList::Loopback => address.is_loopback(),
            AllowList::Listed(listed) => listed.contains_key(&address),
        }
    }

    /// The key that a peer at this address has to prove besides the cluster's.
    pub fn node_key(&self, address: IpAddr) -> Option<PublicKey> {
        match self {
            AllowList::Everybody | AllowList::Loopback => None,
            AllowList::Listed(listed) => listed.get(&address.to_canonical()).copied().flatten(),
        }
    }

    /// A line for the log when the referee's own address is missing: then other nodes that use
    /// the same list would refuse it.
    pub fn notice(&self, referee: IpAddr) -> Option<String> {
        (!self.permits(referee)).then(|| format!("the referee's own address {referee} is missing"))
    }
}

/// One line that is not empty; else what was expected and what was found.
fn parse_line(number: usize, text: &str) -> Result<Line, (&'static str, String)> {
    let (address, file) = match text.split_once(char::is_whitespace) {
        Some((address, file)) => (address, Some(file.trim_start())),
        None => (text, None),
    };
    let host = Host::parse(address).ok_or_else(|| ("one address", quoted(address)))?;
    let key = match file.map(Path::new) {
        None => None,
        Some(file) if !file.is_absolute() => {
            let expected = "the absolute path of a node's public key behind the address";
            return Err((expected, quoted(&file.to_string_lossy())));
        }
        Some(file) => {
            let key = key::read_public(file).map_err(|why| ("a node's public key", why))?;
            Some(key)
        }
    };
    Ok(Line { number, host, key })
}

/// Takes an address; `false` if it stands there already with another key.
fn list(
    listed: &mut BTreeMap<IpAddr, Option<PublicKey>>,
    address: IpAddr,
    key: Option<PublicKey>,
) -> bool {
    match listed.entry(address) {
        Entry::Vacant(vacant) => {
            vacant.insert(key);
            true
        }
        Entry::Occupied(occupied) => *occupied.get() == key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<AllowList, Vec<String>> {
        let parsed = AllowList::parse(Path::new("dipc.allow"), text);
        parsed.map_err(|errors| errors.iter().map(Error::to_string).collect())
    }

    #[test]
    fn lines_comments_and_forms() {
        let list = parse("# all\n 192.0.2.1 # sun\n\n2001:db8::1\r\n::ffff:192.0.2.2\nlocalhost\n");
        let list = list.unwrap();
        for (address, allowed) in [
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("192.0.2.2", true),
            ("192.0.2.3", false),
            ("2001:db8::1", true),
            ("2001:db8::2", false),
            ("127.0.0.1", true),
            ("127.0.0.2", false),
        ] {
            assert_eq!(list.permits(address.parse().unwrap()), allowed, "{address}");
        }
        assert_eq!(list.notice("192.0.2.1".parse().unwrap()), None);
        let notice = list.notice("192.0.2.9".parse().unwrap()).unwrap();
        assert_eq!(notice, "the referee's own address 192.0.2.9 is missing");
    }

    #[test]
    fn every_error_has_its_line() {
        let errors =
            parse("192.0.2.1\n192.0.2.256\n192.0.2.1 192.0.2.2\n127.0.0.1:80").unwrap_err();
        assert_eq!(
            errors,
            [
                "dipc.allow:2: expected one address, found \"192.0.2.256\"",
                "dipc.allow:3: expected the absolute path of a node's public key behind the \
                 address, found \"192.0.2.2\"",
                "dipc.allow:4: expected one address, found \"127.0.0.1:80\"",
            ]
        );
        let errors = parse("\nno-such-host.invalid\n").unwrap_err();
        let start = "dipc.allow:2: expected an address that can be found, \
                     found \"no-such-host.invalid\" (";
        assert!(errors.len() == 1 && errors[0].starts_with(start), "{errors:?}");
    }

    #[test]
    fn a_key_stands_behind_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("moon.pub");
        std::fs::write(&file, "2b".repeat(32)).unwrap();
        let (file, moon) = (file.display(), "192.0.2.2".parse().unwrap());
        let list = parse(&format!("192.0.2.1\n192.0.2.2 \t{file} # of moon\n")).unwrap();
        assert_eq!(list.node_key(moon), Some(PublicKey([0x2b; 32])));
        assert_eq!(list.node_key("192.0.2.1".parse().unwrap()), None);
        assert!(list.permits(moon));
        let errors = parse(&format!("192.0.2.2 {file}\n192.0.2.2\n192.0.2.3 /no/key")).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].ends_with("expected one key for an address, found two for 192.0.2.2"));
        assert!(errors[1].contains("dipc.allow:3: expected a node's public key, found /no/key"));
    }

    #[test]
    fn an_unreadable_file_and_too_many_lines() {
        let dir = tempfile::tempdir().unwrap();
        let errors = AllowList::load(&dir.path().join("none")).unwrap_err();
        let text = errors[0].to_string();
        assert!(text.contains("none: expected a readable file"), "{text}");
        assert!(parse(&"192.0.2.1\n".repeat(HOSTS_MAX)).is_ok());
        assert_eq!(parse(&"192.0.2.1\n".repeat(HOSTS_MAX + 2)).unwrap_err().len(), 1);
    }

    #[test]
    fn who_needs_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::single_in(dir.path(), dir.path());
        let of_node = |config: &Config, admission| AllowList::of_node(config, admission);
        assert_eq!(of_node(&config, Admission::Open), Ok(AllowList::Loopback));
        assert!(of_node(&config, Admission::Secure).is_err(), "-s is to be taken at its word");
        std::fs::write(&config.allow_file, "192.0.2.1").unwrap();
        let listed = AllowList::Listed([("192.0.2.1".parse().unwrap(), None)].into());
        assert_eq!(of_node(&config, Admission::Open), Ok(listed.clone()));

        config.referee = "192.0.2.1:4750".parse().unwrap();
        assert_eq!(of_node(&config, Admission::Open), Ok(AllowList::Everybody));
        assert_eq!(of_node(&config, Admission::Secure), Ok(listed));

        config.this_machine = config.referee;
        std::fs::remove_file(&config.allow_file).unwrap();
        assert!(of_node(&config, Admission::Open).is_err(), "a referee needs its list");
    }

    proptest! {
        #![proptest_config(crate::config::tests::many())]

        #[test]
        fn any_text_is_answered(text in crate::config::tests::bytes_as_text(80)) {
            let _ = parse(&text);
        }
    }
}
