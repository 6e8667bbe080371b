//! The house rules that a machine can see: sizes, headers, where unsafe may be, who depends on
//! whom, and that every flag, command and errno of the manual pages has a differential case.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dipc_tests::programs::source_tree;

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_COLUMNS_MAX: usize = 100;
/// Of prose, without diagrams.
const HEADER_LINES: std::ops::RangeInclusive<usize> = 2..=10;

/// Where unsafe may be: these files, and those under the ones that end with a slash.
const UNSAFE_PLACES: &[&str] = &[
    "libdipc/src/abi.rs",
    "libdipc/src/abi/",
    "libdipc/src/sys.rs",
    "libdipc/src/sys/",
    "libdipc/src/kernel.rs",
    "libdipc/src/kernel/",
    "dipcd/src/sys/",
    "dipc-server/src/sys.rs",
    "dipcrm/src/sys.rs",
    "bench/src/sys.rs",
    "tests/it/sys.rs",
];

/// Our crates that each package may depend on.
const DEPENDENCIES: &[(&str, &[&str])] = &[
    ("dipcd/wire", &[]),
    ("dipcd/core", &["dipc-wire"]),
    ("dipcd", &["dipc-core", "dipc-wire"]),
    ("libdipc", &["dipc-wire"]),
    ("dipc-server", &["dipc-wire"]),
    ("dipcrm", &["dipc-wire", "dipc-server", "dipc-tools"]),
    ("tools", &["dipc-wire"]),
    ("tests", &["dipc-core", "dipc-wire"]),
    ("bench", &["dipc-tests"]),
    ("xtask", &[]),
];

/// What the manual pages name, call by call: `ipc(2)`, `msgget(2)`, `msgop(2)`, `msgctl(2)`,
/// `semget(2)`, `semop(2)`, `semctl(2)`, `shmget(2)`, `shmop(2)`, `shmctl(2)`. ENOMEM of queues and
/// sets cannot be provoked without harm, nor ENFILE; EIDRM of segments is a race in the kernel.
const MANUAL: &[(&str, &[&str])] = &[
    ("msgget", &["IPC_CREAT", "IPC_EXCL", "IPC_PRIVATE", "mode"]),
    ("msgget", &["EACCES", "EEXIST", "ENOENT", "ENOSPC"]),
    ("msgsnd", &["IPC_NOWAIT", "EACCES", "EAGAIN", "EFAULT", "EIDRM", "EINTR", "EINVAL"]),
    ("msgrcv", &["IPC_NOWAIT", "MSG_COPY", "MSG_EXCEPT", "MSG_NOERROR"]),
    ("msgrcv", &["type>0", "type=0", "type<0"]),
    ("msgrcv", &["E2BIG", "EACCES", "EFAULT", "EIDRM", "EINTR", "EINVAL", "ENOMSG"]),
    ("msgctl", &["IPC_STAT", "IPC_SET", "IPC_RMID", "IPC_INFO", "MSG_INFO", "MSG_STAT"]),
    ("msgctl", &["MSG_STAT_ANY", "EACCES", "EFAULT", "EINVAL", "EPERM"]),
    ("semget", &["IPC_CREAT", "IPC_EXCL", "IPC_PRIVATE", "mode"]),
    ("semget", &["EACCES", "EEXIST", "EINVAL", "ENOENT", "ENOSPC"]),
    ("semop", &["IPC_NOWAIT", "SEM_UNDO", "sem_op>0", "sem_op<0", "sem_op=0", "several"]),
    ("semop", &["E2BIG", "EACCES", "EAGAIN", "EFAULT", "EFBIG", "EIDRM", "EINTR", "EINVAL"]),
    ("semop", &["ERANGE"]),
    ("semtimedop", &["EAGAIN", "EINVAL", "EFAULT"]),
    ("semctl", &["IPC_STAT", "IPC_SET", "IPC_RMID", "IPC_INFO", "SEM_INFO", "SEM_STAT"]),
    ("semctl", &["SEM_STAT_ANY", "GETALL", "GETNCNT", "GETPID", "GETVAL", "GETZCNT"]),
    ("semctl", &["SETALL", "SETVAL", "EACCES", "EFAULT", "EINVAL", "EPERM", "ERANGE"]),
    ("shmget", &["IPC_CREAT", "IPC_EXCL", "IPC_PRIVATE", "mode"]),
    ("shmget", &["EACCES", "EEXIST", "EINVAL", "ENOENT", "ENOMEM", "ENOSPC"]),
    ("shmat", &["SHM_EXEC", "SHM_RDONLY", "SHM_REMAP", "SHM_RND", "shmaddr", "several"]),
    ("shmat", &["EACCES", "EINVAL", "ENOMEM"]),
    ("shmdt", &["EINVAL", "deletion"]),
    ("shmctl", &["IPC_STAT", "IPC_SET", "IPC_RMID", "IPC_INFO", "SHM_INFO", "SHM_STAT"]),
    ("shmctl", &["SHM_STAT_ANY", "SHM_LOCK", "SHM_UNLOCK"]),
    ("shmctl", &["EACCES", "EFAULT", "EINVAL", "ENOMEM", "EPERM"]),
];

fn files_below(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).expect("the source tree can be read");
    for entry in entries {
        let path = entry.expect("the source tree can be read").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files_below(&path, extension, found);
        } else if path.extension().is_some_and(|of| of == extension) {
            found.push(path);
        }
    }
}

/// Every source file with that extension: its path in the tree, and its text.
fn sources(extension: &str) -> Vec<(String, String)> {
    let (root, mut found) = (source_tree(), Vec::new());
    files_below(&root, extension, &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file is text");
        let short = path.strip_prefix(&root).expect("it lies below the root");
        (short.to_string_lossy().into_owned(), text)
    };
    found.into_iter().map(read).collect()
}

#[track_caller]
fn assert_none(what: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{what}:\n{}", offences.join("\n"));
}

#[test]
fn files_and_lines_are_short() {
    let mut offences = Vec::new();
    for (path, text) in sources("rs").into_iter().chain(sources("c")) {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            offences.push(format!("{path}: {lines} lines"));
        }
        for (index, line) in text.lines().enumerate() {
            if line.chars().count() > LINE_COLUMNS_MAX {
                offences.push(format!("{path}:{}: {} columns", index + 1, line.chars().count()));
            }
        }
    }
    assert_none("too long", &offences);
}

/// Functions by the indentation of their first line and of the brace that ends them, as rustfmt
/// leaves them: name's line, and how many lines.
fn functions(text: &str) -> Vec<(usize, usize)> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let begins = |line: &str| {
        let words = line.trim_start();
        let name = words.find("fn ").filter(|at| {
            let before = words[..*at].split_whitespace();
            let known = ["pub", "pub(crate)", "pub(super)", "const", "unsafe", "extern", "\"C\""];
            before.into_iter().all(|word| known.contains(&word))
        });
        name.is_some()
    };
    let (mut found, mut open) = (Vec::new(), None);
    for (index, line) in text.lines().enumerate() {
        if begins(line) {
            open = Some((index, indent(line)));
        }
        if let Some((start, depth)) = open
            && line.trim_end() == format!("{:depth$}}}", "")
        {
            found.push((start + 1, index + 1 - start));
            open = None;
        }
    }
    found
}

#[test]
fn functions_are_short() {
    let mut offences = Vec::new();
    for (path, text) in sources("rs") {
        for (line, lines) in functions(&text) {
            if lines > FUNCTION_LINES_MAX {
                offences.push(format!("{path}:{line}: {lines} lines"));
            }
        }
    }
    assert_none("too long", &offences);
}

#[test]
fn every_file_says_what_it_is() {
    let offences: Vec<String> = sources("rs")
        .into_iter()
        .map(|(path, text)| (path, prose_lines(&text)))
        .filter(|(_, lines)| !HEADER_LINES.contains(lines))
        .map(|(path, lines)| format!("{path}: {lines} lines of header"))
        .collect();
    assert_none("headers", &offences);
}

/// Lines of prose that a file opens with; diagrams do not count.
fn prose_lines(text: &str) -> usize {
    let header = text.lines().map_while(|line| line.strip_prefix("//!"));
    let mut in_diagram = false;
    let prose = header.filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_diagram ^= fence;
        !fence && !in_diagram && !line.trim().is_empty()
    });
    prose.count()
}

#[test]
fn unsafe_is_where_it_may_be() {
    let forbids = concat!("#![forbid(", "unsafe_code)]");
    let allowed = |path: &str| {
        UNSAFE_PLACES
            .iter()
            .any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
    };
    // A crate root that forbids does so for all its modules; one that has such a place cannot.
    let crate_forbids = |path: &str| {
        let directory = Path::new(path).parent().expect("a file lies in a directory");
        let package = Path::new(path.split("/src/").next().expect("split gives something"));
        let roots = [package.join("src/lib.rs"), directory.join("main.rs")];
        roots.iter().any(|root| {
            let text = fs::read_to_string(source_tree().join(root));
            text.is_ok_and(|text| text.contains(forbids))
        })
    };
    let is_root = |path: &str| path.ends_with("src/lib.rs");
    let has_none = |path: &str, text: &str| {
        text.contains(forbids) || crate_forbids(path) || is_root(path) && !text.contains("unsafe {")
    };
    let offences: Vec<String> = sources("rs")
        .into_iter()
        .filter(|(path, text)| !allowed(path) && !has_none(path, text))
        .map(|(path, _)| format!("{path} does not forbid it"))
        .collect();
    assert_none("unsafe", &offences);
}

#[test]
fn crates_depend_on_whom_they_may() {
    let daemons = ["dipcd", "libdipc", "dipc-server", "dipcrm"];
    let libraries = ["dipc-wire", "dipc-core", "dipc-tests", "dipc-tools"];
    let ours: BTreeSet<&str> = daemons.into_iter().chain(libraries).collect();
    let mut offences = Vec::new();
    for (package, allowed) in DEPENDENCIES {
        let file = source_tree().join(package).join("Cargo.toml");
        let text = fs::read_to_string(file).expect("a package has a Cargo.toml");
        let names = text.lines().skip_while(|line| !line.starts_with("[dependencies]"));
        let names = names.map(|line| line.split(['.', ' ', '=']).next().unwrap_or(""));
        for name in names.filter(|name| ours.contains(name)) {
            if !allowed.contains(&name) {
                offences.push(format!("{package} depends on {name}"));
            }
        }
    }
    assert_none("dependencies", &offences);
}

#[test]
fn every_word_of_the_manual_pages_has_a_case() {
    let mut covered = BTreeSet::new();
    let cases = sources("c");
    for (_, text) in cases.iter().filter(|(path, _)| path.ends_with("_cases.c")) {
        for row in text.lines().filter(|line| line.starts_with("    { \"")) {
            let covers = row.split('"').nth(3).expect("a row says what it covers");
            let (calls, words): (Vec<&str>, Vec<&str>) = covers.split(' ').partition(|word| {
                ["msg", "sem", "shm"].iter().any(|kind| word.starts_with(kind))
                    && !word.contains("_op")
                    && *word != "shmaddr"
            });
            for call in calls {
                covered.extend(words.iter().map(|word| format!("{call} {word}")));
            }
        }
    }
    let missing: Vec<String> = MANUAL
        .iter()
        .flat_map(|(call, words)| words.iter().map(move |word| format!("{call} {word}")))
        .filter(|pair| !covered.contains(pair))
        .collect();
    assert_none("no case", &missing);
}

#[test]
fn every_row_has_a_name_of_its_own() {
    for (path, text) in sources("c").iter().filter(|(path, _)| path.ends_with("_cases.c")) {
        let names: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("    { \""))
            .filter_map(|row| row.split('"').nth(1))
            .collect();
        let different: BTreeSet<&&str> = names.iter().collect();
        assert_eq!(names.len(), different.len(), "{path} has a name twice");
    }
}
