//! Every entry with good and bad values and its bounds, the words of errors, and the agreement of
//! the table with conf/dipc.conf and dipc.conf(5).
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::entries::{Bounds, Change, PROGRAM_ENTRIES};
use super::*;
use crate::policy::{Ftok, KeySet, ShmNoreserve};

const BASE: &str = "this_machine = 127.0.0.1\nreferee = 127.0.0.1\n";

fn parse(text: &str) -> Result<Config, Vec<String>> {
    let parsed = Config::parse(Path::new("dipc.conf"), text);
    parsed.map_err(|errors| errors.iter().map(Error::to_string).collect())
}

fn with(line: &str) -> Result<Config, Vec<String>> {
    parse(&format!("{BASE}{line}\n"))
}

/// Values for each entry: those that are taken, with what they show as, and those that are not.
struct Row {
    name: &'static str,
    good: &'static [(&'static str, &'static str)],
    bad: &'static [&'static str],
}

const fn row(
    name: &'static str,
    good: &'static [(&'static str, &'static str)],
    bad: &'static [&'static str],
) -> Row {
    Row { name, good, bad }
}

const WAITS: &[(&str, &str)] =
    &[("20", "20"), ("16.5", "16.5"), ("86400", "86400"), ("0", "0"), ("-1", "0"), ("-0.5", "0")];
const NOT_WAITS: &[&str] =
    &["x", "", "0.01", "86401", "1e3", "inf", "nan", "NaN", "5 s", "1,5", "--1", "99999999999999"];
const PATHS: &[(&str, &str)] = &[("/a", "/a"), ("/a b/c", "/a b/c")];
const NOT_PATHS: &[&str] = &["", "a/b", "./a", "/a\u{1}b"];

const ROWS: &[Row] = &[
    row("transfer_mode", &[("Page", "page"), ("SEGMENT", "segment")], &["pages", ""]),
    row(
        "dipc_page_size",
        &[("4096", "4096"), ("8K", "8192"), ("16M", "16777216"), ("16777216", "16777216")],
        &["0", "4095", "4097", "16M1", "32M", "-4096", "System"],
    ),
    row("inhibit_shm_signal", &[("yes", "yes"), ("no", "no")], &["YES", "true", "1", ""]),
    row("employer_referee_timeout", WAITS, NOT_WAITS),
    row("employer_shm_timeout", WAITS, NOT_WAITS),
    row("employer_worker_timeout", WAITS, NOT_WAITS),
    row("shm_ak_timeout", WAITS, NOT_WAITS),
    row(
        "referee_timeout",
        &[("14.9", "14.9"), ("0.05", "0.05"), ("0", "0"), ("-3", "0")],
        &["15", "16", "0.049", "x"],
    ),
    row(
        "shm_hold_timeout",
        &[("adaptive", "adaptive"), ("0.001", "0.001"), ("10", "10")],
        &["0", "-1", "0.0009", "10.1", "none", ""],
    ),
    row("port", &[("1", "1"), ("65535", "65535")], &["0", "65536", "-1", "+7", "0x10", "http"]),
    row("socket", PATHS, &["", "a", "/\u{7f}"]),
    row(
        "socket_mode",
        &[("0660", "0660"), ("777", "0777"), ("0", "0000")],
        &["0778", "1777", "rw", "-1", "+7", ""],
    ),
    row(
        "socket_group",
        &[("none", "none"), ("dipc", "dipc"), ("a-b_c.9", "a-b_c.9")],
        &["", "-a", "a b", "a:b", "0123456789012345678901234567890123"],
    ),
    row("state_dir", PATHS, NOT_PATHS),
    row("lib_dir", PATHS, NOT_PATHS),
    row("allow_file", PATHS, NOT_PATHS),
    row("cluster_key", &[("none", "none")], &["/nonexistent/key", "/dev/null", "key", "/"]),
    row("cluster_key_next", &[("none", "none")], &["/nonexistent/key", ""]),
    row("cipher", &[("aes-gcm", "aes-gcm"), ("none", "none")], &["AES-GCM", "aes", ""]),
    row(
        "node_timeout",
        &[("3.26", "3.26"), ("3600", "3600")],
        &["3.25", "0.1", "0", "-1", "3601", "none"],
    ),
    row("lease", &[("1", "1"), ("4.7", "4.7")], &["4.8", "0.99", "0.05", "0", "x"]),
    row("heartbeat", &[("0.05", "0.05"), ("1.5", "1.5")], &["0.049", "1.51", "61", "0", "x"]),
    row(
        "keys",
        &[("none", "none"), ("all", "all"), ("all, private", "all,private"), ("40", "0x28")],
        &["", "private", "9-8", "0"],
    ),
    row("ftok", &[("native", "native"), ("path", "path")], &["", "inode"]),
    row("shm_noreserve", &[("dipc", "dipc"), ("local", "local")], &["", "yes"]),
    row(
        "home",
        &[("creator", "creator"), ("referee", "referee"), ("1", "1"), ("64", "64")],
        &["0", "65", "257", "-1", "node", ""],
    ),
    row(
        "send",
        &[("strict", "strict"), ("pipelined:0x28,50", "pipelined:0x28,0x32")],
        &["pipelined", "pipelined:", "pipelined:x", ""],
    ),
    row("queue_on_loss", &[("again", "again"), ("drop", "drop")], &["", "Again"]),
    row("identity", &[("self", "self")], &["", "user"]),
    row(
        "root",
        &[("none", "none"), ("127.0.0.1,192.0.2.1", "127.0.0.1, 192.0.2.1"), ("::1", "::1")],
        &["", "127.0.0.1:80", "127.0.0.256", "127.0.0.1,,::1", "no-such-host.invalid"],
    ),
    row("squash", &[("dipcd", "dipcd"), ("nobody", "nobody")], &["", "a b", "/a"]),
    row(
        "container_identity",
        &[("refuse", "refuse"), ("user:nobody", "user:nobody")],
        &["", "user:", "nobody", "user:a b"],
    ),
    row("user_clients_max", &[("1", "1"), ("1000000", "1000000")], &["0", "1000001", "1K", "x"]),
    row("user_objects_max", &[("1", "1"), ("25165824", "25165824")], &["0", "25165825", ""]),
    row(
        "user_segment_bytes_max",
        &[("4096", "4K"), ("4097", "4097"), ("1G", "1G"), ("1024T", "1024T")],
        &["4095", "1025T", "1g", "1.5G", "-1", "99999999999999999999T", "20000000T"],
    ),
    row(
        "trap",
        &[("auto", "auto"), ("userfaultfd", "userfaultfd"), ("mprotect", "mprotect")],
        &["", "none"],
    ),
    row("kernel_faults", &[("dipc-faults", "dipc-faults"), ("root", "root")], &["", "a b"]),
    row("lost_page", &[("sigbus", "sigbus"), ("stale", "stale")], &["", "SIGBUS"]),
    row(
        "metrics",
        &[("none", "none"), ("127.0.0.1:9000", "127.0.0.1:9000"), ("/run/m", "/run/m")],
        &["", "192.0.2.1:9000", "127.0.0.1", "127.0.0.1:0", "9000", "run/m"],
    ),
    row(
        "mailbox",
        &[("none", "none"), ("8  64 7777 4", "8 64 7777 4")],
        &["", "8 64 7777", "8 64 7777 4 1", "0 64 7777 4", "8 64 0 4", "8 64 65536 4", "a b c d"],
    ),
];

#[test]
fn every_entry_takes_the_good_and_refuses_the_bad() {
    for Row { name, good, bad } in ROWS {
        for (given, shown) in *good {
            let config = with(&format!("{name} = {given}"));
            let config = config.unwrap_or_else(|errors| panic!("{name} = {given}: {errors:?}"));
            assert_eq!(config.show(name), *shown, "{name} = {given}");
        }
        for given in *bad {
            let Err(errors) = with(&format!("{name} = {given}")) else {
                panic!("{name} = {given:?} should be refused");
            };
            let named = errors[0].split(": ").nth(1);
            let related = ["employer_referee_timeout", "node_timeout", "lease"];
            let names_it = named == Some(name) || related.contains(&named.unwrap_or(""));
            assert!(names_it && errors.len() == 1, "{name} = {given:?}: {errors:?}");
        }
    }
}

#[test]
fn every_entry_has_a_row_and_a_good_default() {
    let defaults = parse(BASE).unwrap();
    for entry in ENTRIES {
        if entry.default.is_empty() {
            assert!(["this_machine", "referee"].contains(&entry.name), "{}", entry.name);
            continue;
        }
        assert!(ROWS.iter().any(|row| row.name == entry.name), "{} has no row", entry.name);
        if entry.name == "identity" && !rustix::process::geteuid().is_root() {
            continue;
        }
        let config = with(&format!("{} = {}", entry.name, entry.default)).unwrap();
        assert_eq!(config, defaults, "{}", entry.name);
        if let Bounds::OneOf(words) = entry.bounds {
            for word in words {
                let taken = with(&format!("{} = {word}", entry.name)).unwrap();
                assert_eq!(taken.show(entry.name), *word);
            }
        }
    }
}

#[test]
fn what_is_shown_is_the_same_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("key");
    key::make(&key_file).unwrap();
    let mut texts = vec![format!(
        "this_machine = [::1]:80\nreferee = [::1]\nport = 81\nkeys = all\n\
         cluster_key = {key}\ncluster_key_next = {key}\n",
        key = key_file.display()
    )];
    for Row { name, good, .. } in ROWS {
        texts.extend(good.iter().map(|(given, _)| format!("{BASE}{name} = {given}\n")));
    }
    for text in texts {
        let config = parse(&text).unwrap();
        let shown: String =
            config.show_all().iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        assert_eq!(parse(&shown), Ok(config), "{text}");
    }
}

#[test]
fn addresses_take_their_port_or_the_common_one() {
    let config = parse("port = 99\nthis_machine = 127.0.0.1\nreferee = 127.0.0.2:98\n").unwrap();
    assert_eq!(config.this_machine.to_string(), "127.0.0.1:99");
    assert_eq!(config.referee.to_string(), "127.0.0.2:98");
    assert!(!config.is_referee());
    let config = parse("this_machine = localhost\nreferee = 127.0.0.1\n").unwrap();
    assert_eq!(config.this_machine.to_string(), "127.0.0.1:4750");
    assert!(config.is_referee());
}

#[test]
fn the_host_name_is_looked_up_only_for_this_machine() {
    let found = address::of_this_machine();
    let read = parse("this_machine = dipc_auto_find\nreferee = 127.0.0.1");
    match (found, read) {
        (Ok(found), Ok(config)) => assert_eq!(config.this_machine.ip(), found),
        (Ok(found), Err(errors)) => {
            assert!(!found.is_loopback(), "{errors:?}");
            assert!(errors.iter().all(|error| !error.contains(" this_machine: expected address")));
        }
        (Err(why), Err(errors)) => assert!(errors[0].contains(&why), "{errors:?}"),
        (Err(why), Ok(_)) => panic!("this machine has no address: {why}"),
    }
    assert_eq!(
        parse("this_machine = 127.0.0.1\nreferee = dipc_auto_find"),
        Err(vec![
            "dipc.conf:2: referee: expected address[:port], not dipc_auto_find, \
             found \"dipc_auto_find\""
                .into()
        ])
    );
}

#[test]
fn errors_say_file_line_entry_expected_and_found() {
    let rows: &[(&str, &str)] = &[
        ("heartbeat = x", "dipc.conf:3: heartbeat: expected seconds from 0.05 to 60, found \"x\""),
        ("hartbeat = 1", "dipc.conf:3: expected the name of an entry, found \"hartbeat\""),
        ("heartbeat", "dipc.conf:3: expected name = value, found \"heartbeat\""),
        (
            "cipher = none\ncipher = none",
            "dipc.conf:4: cipher: expected it once (first in line 3), found \"none\"",
        ),
        ("cipher = x # y", "dipc.conf:3: cipher: expected aes-gcm or none, found \"x\""),
        (
            "lease = 4.9",
            "dipc.conf: node_timeout: expected at least 1.02 x lease + 0.2 s = 5.198 s, \
             found the default, 5",
        ),
        (
            "heartbeat = 2",
            "dipc.conf: lease: expected at least 2 x heartbeat = 4 s, found the default, 3",
        ),
        (
            "employer_referee_timeout = 10",
            "dipc.conf:3: employer_referee_timeout: expected more than referee_timeout = 10 s, \
             found \"10\"",
        ),
        (
            "[program ls]",
            "dipc.conf:3: expected [program PATH], an absolute path, found \"[program ls]\"",
        ),
        (
            "[programs /ls]",
            "dipc.conf:3: expected [program PATH], an absolute path, found \"[programs /ls]\"",
        ),
        (
            "[program /ls]\ncipher = none",
            "dipc.conf:4: cipher: expected keys, ftok, shm_noreserve in a section, found \"none\"",
        ),
        (
            "[program /ls]\n[program /ls]",
            "dipc.conf:4: expected one section for a program, found \"[program /ls]\"",
        ),
    ];
    for (line, message) in rows {
        assert_eq!(with(line), Err(vec![message.to_string()]), "{line}");
    }
    assert_eq!(
        parse("referee = 127.0.0.1"),
        Err(vec![
            "dipc.conf: this_machine: expected address[:port], or dipc_auto_find, found nothing"
                .into()
        ])
    );
}

#[test]
fn all_errors_are_reported_in_order() {
    let errors = parse("lease = x\n\nport = 0\nfoo\nkeys = 9-8\n").unwrap_err();
    let places: Vec<_> = errors.iter().map(|error| error.split(" expected").next()).collect();
    let expected = [
        "dipc.conf: this_machine:",
        "dipc.conf: referee:",
        "dipc.conf:1: lease:",
        "dipc.conf:3: port:",
        "dipc.conf:4:",
        "dipc.conf:5: keys:",
    ];
    assert_eq!(places, expected.map(Some));
    let many = parse(&"x\n".repeat(100_000)).unwrap_err();
    assert!(many.len() <= 102, "{} errors", many.len());
}

#[test]
fn an_unreadable_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dipc.conf");
    let error = |file: &Path| Config::load(file).unwrap_err()[0].to_string();
    assert!(error(&file).ends_with("UTF-8 text, found No such file or directory (os error 2)"));
    assert!(error(dir.path()).contains("Is a directory"));
    fs::write(&file, b"cipher = \xff").unwrap();
    assert!(error(&file).contains("UTF-8"));
    fs::write(&file, vec![b'#'; FILE_BYTES_MAX as usize + 1]).unwrap();
    assert!(error(&file).contains("longer than 1 MiB"));
    fs::write(&file, BASE).unwrap();
    assert_eq!(Config::load(&file), Ok(parse(BASE).unwrap()));
}

#[test]
fn a_key_is_needed_off_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    key::make(&one).unwrap();
    key::make(&two).unwrap();
    let far = "this_machine = 192.0.2.1\nreferee = 192.0.2.2\n";
    let errors = parse(far).unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains("dipcd --make-key FILE"), "{errors:?}");

    let config = parse(&format!("{far}cluster_key = {}\n", one.display())).unwrap();
    assert_eq!(config.cluster_key.accepted(), [config.cluster_key.offered()]);
    let next = format!("cluster_key_next = {}\n", two.display());
    let both = parse(&format!("{far}cluster_key = {}\n{next}", one.display())).unwrap();
    assert_eq!(both.cluster_key.offered(), config.cluster_key.offered());
    assert_eq!(both.cluster_key.accepted().len(), 2);
    assert!(!format!("{both:?}").contains("Secret"), "keys are not printed");

    let errors = with(&next).unwrap_err();
    assert!(errors[0].contains("expected cluster_key beside it"), "{errors:?}");
    let errors = parse(&format!("{far}cluster_key = /nonexistent\n")).unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains("No such file"), "{errors:?}");
    assert_eq!(with("").unwrap().cluster_key.offered().0, [0; 32]);

    for (this, other) in [("127.0.0.1", "192.0.2.1"), ("192.0.2.1", "127.0.0.1")] {
        let text = format!("this_machine = {this}\nreferee = {other}\n");
        let errors = parse(&format!("{text}cluster_key = {}\n", one.display())).unwrap_err();
        assert!(errors[0].contains("expected both loopback or neither"), "{errors:?}");
    }
}

#[test]
fn sections_change_what_they_say_and_no_more() {
    let config = with(
        "keys = 40\nftok = path\n[program /usr/bin/a]\nkeys = all\n\
         [ program   /usr/bin/b c ]\nftok = native\nshm_noreserve = local\n[program /d]",
    );
    let programs = config.unwrap().programs;
    let keys: KeySet = "40".parse().unwrap();
    let expected = [
        ("/usr/bin/a", KeySet::All, Ftok::Path, ShmNoreserve::Dipc),
        ("/usr/bin/b c", keys.clone(), Ftok::Native, ShmNoreserve::Local),
        ("/d", keys, Ftok::Path, ShmNoreserve::Dipc),
    ];
    assert_eq!(programs.len(), expected.len());
    for (program, (path, keys, ftok, shm_noreserve)) in programs.iter().zip(expected) {
        assert_eq!(program.path, Path::new(path));
        assert_eq!(program.sharing, Sharing { keys, ftok, shm_noreserve });
    }
}

#[test]
fn t_lifts_every_bound_but_the_hold_time() {
    let config = with("shm_hold_timeout = 2\nemployer_worker_timeout = 3").unwrap();
    let lifted = config.clone().without_timeouts();
    for entry in ENTRIES.iter().filter(|entry| entry.name.ends_with("_timeout")) {
        let expected = match entry.name {
            "shm_hold_timeout" => "2",
            "node_timeout" => "5",
            _ => "0",
        };
        assert_eq!(lifted.show(entry.name), expected, "{}", entry.name);
    }
    assert_eq!(lifted.liveness, config.liveness);
}

#[test]
fn a_reload_changes_what_may_change() {
    let old = parse(BASE).unwrap();
    for Row { name, good, .. } in ROWS {
        let changed = with(&format!("{name} = {}", good.last().unwrap().0)).unwrap();
        let entry = entries::find(name).unwrap();
        let allowed = entry.change == Change::OnReload || changed == old;
        let expected = if allowed { Ok(changed.clone()) } else { Err(vec![*name]) };
        let mut answer = old.reload(changed);
        if let (Err(names), "port") = (&mut answer, *name) {
            // The common port is part of both addresses.
            names.retain(|name| *name == "port");
        }
        assert_eq!(answer, expected, "{name}");
    }
}

#[test]
fn a_single_node_is_its_own_referee_on_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::single_in(dir.path(), &dir.path().join("lib"));
    assert!(config.is_referee() && config.this_machine.ip().is_loopback());
    assert_eq!(config.socket, dir.path().join("dipcd.sock"));
    assert_eq!(config.cluster_key, ClusterKey::Loopback);

    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, config.this_machine.port()));
    if taken.is_ok() {
        let other = Config::single_in(dir.path(), dir.path());
        assert_ne!(other.this_machine.port(), config.this_machine.port());
    }
}

#[test]
fn what_is_not_there_yet_is_named() {
    let config = parse(BASE).unwrap();
    assert_eq!(not_yet(&config), [""; 0]);
    let config = with("send = pipelined:40").unwrap();
    assert_eq!(not_yet(&config), ["send"]);
}

/// The entry's paragraph in conf/dipc.conf: comment lines, then `#name = default`.
#[test]
fn the_example_file_agrees_with_the_table() {
    let text = include_str!("../../../conf/dipc.conf");
    let mut paragraphs = text.split("\n\n");
    for entry in ENTRIES {
        let commented = format!("#{} = {}", entry.name, entry.default);
        let given = format!("{} = ", entry.name);
        let names = |line: &str| match entry.default {
            "" => line.starts_with(&given),
            _ => line == commented,
        };
        let paragraph = paragraphs.find(|paragraph| paragraph.lines().any(names));
        let Some(paragraph) = paragraph else {
            panic!("conf/dipc.conf lacks {commented:?}, or it is out of order");
        };
        let flowing = paragraph.replace("\n# ", " ");
        let bounds = format!("({})", entry.bounds);
        assert!(flowing.contains(&bounds), "{}: {bounds} is not said", entry.name);
    }
    let active: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let active: Vec<_> = active.into_iter().filter(|line| !line.is_empty()).collect();
    assert_eq!(active, ["this_machine = 127.0.0.1", "referee = 127.0.0.1"]);
    assert_eq!(parse(text), parse(BASE), "as it stands it is one node on loopback");
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .filter(|line| !line.starts_with("[program") && !line.starts_with("keys = all"))
        .map(|line| format!("{line}\n"))
        .collect();
    if rustix::process::geteuid().is_root() {
        assert_eq!(parse(&uncommented), parse(BASE), "each default is as it is written");
    }
}

/// The entry's paragraph in dipc.conf(5): `.It name`, then default, bounds and when it changes.
#[test]
fn the_manual_page_agrees_with_the_table() {
    let text = include_str!("../../../conf/man/dipc.conf.5");
    for entry in ENTRIES {
        let tag = format!(".TP\n.B {}\n", entry.name);
        let Some(start) = text.find(&tag) else {
            panic!("dipc.conf.5 lacks {}", entry.name);
        };
        let paragraph = &text[start + tag.len()..];
        let paragraph = paragraph.split("\n.TP").next().unwrap().replace("\\-", "-");
        let default = match entry.default {
            "" => "Must be given".to_owned(),
            default => format!("Default: {default}"),
        };
        let change = match entry.change {
            Change::OnReload => "read again on SIGHUP",
            Change::AtStart => "read at start",
        };
        let flowing = paragraph.replace('\n', " ");
        let said = format!("{default}; {}; {change}.", entry.bounds);
        assert!(flowing.contains(&said), "{}: {said:?} is not said", entry.name);
    }
    assert_eq!(PROGRAM_ENTRIES.len(), 3);
}

/// How often files are spoilt; `DIPC_LONG=1` asks for a hundred times as many.
pub(crate) fn many() -> ProptestConfig {
    let cases = if std::env::var_os("DIPC_LONG").is_some() { 10_000_000 } else { 100_000 };
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

/// Any bytes, most of them such as stand in files of ours; as text, what is none replaced.
pub(crate) fn bytes_as_text(most: usize) -> impl Strategy<Value = String> {
    const USUAL: &[u8] = b"\n\n\n  ==##[],:./0123456789+'\"\\\t\r\0\x7f";
    proptest::collection::vec(any::<u8>(), 0..most).prop_map(|bytes| {
        // No letters: what looks like a name would be asked for, by the thousand.
        let usual = |byte: u8| match byte {
            0..=239 => USUAL[usize::from(byte) % USUAL.len()],
            rare => rare,
        };
        let bytes: Vec<u8> = bytes.into_iter().map(usual).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

proptest! {
    #![proptest_config(many())]

    #[test]
    fn any_text_is_answered(text in bytes_as_text(120)) {
        let _ = parse(&text);
    }

    #[test]
    fn a_good_file_that_is_spoilt_is_answered(
        index in 2..ENTRIES.len(),
        value in bytes_as_text(20),
        cut in any::<prop::sample::Index>(),
    ) {
        let text = format!("{BASE}{} = {value}\n[program /a]\nkeys = 1", ENTRIES[index].name);
        let mut end = cut.index(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let _ = parse(&text[..end]);
    }
}

proptest! {
    #[test]
    fn any_value_is_taken_and_shown_alike_or_refused(index in 2..ENTRIES.len(), value in value()) {
        let name = ENTRIES[index].name;
        if let Ok(config) = with(&format!("{name} = {value}")) {
            let shown = config.show(name);
            prop_assert_eq!(with(&format!("{name} = {shown}")), Ok(config));
        }
    }
}

/// Values near those of the table: no letters that would make a name to be asked for.
fn value() -> impl Strategy<Value = String> {
    prop_oneof!["[-+0-9.,x:/ ]{0,12}", "[0-9]{1,20}[KMGT]?", "(none|all|private|[,: ]){1,4}"]
}
