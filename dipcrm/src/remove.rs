//! `dipcrm -q ID` and its like: removes queues, sets and segments of the cluster, by id or by key,
//! wherever they live. dipcd makes the system call at home by the caller's own rights; the words
//! and the order of work are those of ipcrm(1).
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;

use dipc_tools::dipcd::{Dipcd, Trouble};
use dipc_wire::client::{Answer, Call};
use dipc_wire::ids::{Key, Kind, Nonce, ObjectId};
use dipc_wire::sysv::{SegmentControl, SysvError};

/// How long a removal may take: names wait for their referee.
const WAIT: std::time::Duration = std::time::Duration::from_secs(20);

/// What is to be removed.
#[derive(Debug, PartialEq, Eq)]
pub struct Removal {
    /// Of which kind.
    pub kind: Kind,
    /// Which one.
    pub which: Which,
}

/// How an object is named.
#[derive(Debug, PartialEq, Eq)]
pub enum Which {
    /// By its id.
    Id(i32),
    /// By its key; the text is how it was given.
    Key(Key, String),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Id(id) => write!(f, "id ({id})"),
            Which::Key(_, given) => write!(f, "key ({given})"),
        }
    }
}

/// Whether each removal is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// It is not.
    No,
    /// On standard output.
    Each,
}

impl Which {
    /// An id as ipcrm takes it: decimal.
    pub fn id(text: &str) -> Result<Which, String> {
        text.parse().map(Which::Id).map_err(|_| unparsed(text))
    }

    /// A key as ipcrm takes it: decimal, octal after 0, hexadecimal after 0x; not `IPC_PRIVATE`.
    pub fn key(text: &str) -> Result<Which, String> {
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (digits, radix) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
            Some(digits) => (digits, 16),
            None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
            None => (digits, 10),
        };
        let number = u32::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'));
        let number = number.ok_or_else(|| unparsed(text))? as i32;
        match if negative { number.wrapping_neg() } else { number } {
            0 => Err(format!("illegal key ({text})")),
            key => Ok(Which::Key(Key(key), text.to_owned())),
        }
    }
}

fn unparsed(text: &str) -> String {
    format!("failed to parse argument: '{text}'")
}

/// Removes each; a line on standard error for each that is not. `true`: all are gone.
pub fn remove(socket: Option<OsString>, removals: &[Removal], announce: Announce) -> bool {
    let dipcd = Dipcd::at(socket);
    let mut all = true;
    for removal in removals {
        if let Err(why) = remove_one(&dipcd, removal, announce) {
            dipc_tools::complain("dipcrm", &why);
            all = false;
        }
    }
    all
}

fn remove_one(dipcd: &Dipcd, removal: &Removal, announce: Announce) -> Result<(), String> {
    let Removal { kind, which } = removal;
    let refused = |trouble| match trouble {
        Trouble::Refused(SysvError::EACCES | SysvError::EPERM) => {
            format!("permission denied for {which}")
        }
        Trouble::Refused(SysvError::EINVAL | SysvError::ENOENT) => format!("invalid {which}"),
        Trouble::Refused(SysvError::EIDRM) => format!("already removed {which}"),
        trouble => format!("{which}: {trouble}"),
    };
    let id = match which {
        Which::Id(id) => {
            ObjectId::from_raw(*id).ok_or(Trouble::Refused(SysvError::EINVAL)).map_err(refused)?
        }
        Which::Key(key, _) => find(dipcd, *kind, *key).map_err(refused)?,
    };
    if announce == Announce::Each {
        println!("removing {} id `{id}'", name(*kind));
    }
    let call = match kind {
        Kind::Queue | Kind::Set => Call::Remove { kind: *kind, id },
        Kind::Segment => Call::Control { id, control: SegmentControl::Remove },
    };
    match dipcd.call(call, WAIT) {
        Ok(Answer::Done | Answer::Segment(_)) => Ok(()),
        Ok(_) => Err(dipcd.not_understood().to_string()),
        Err(trouble) => Err(refused(trouble)),
    }
}

/// `*get` of a key that exists, with no wish to use the object.
fn find(dipcd: &Dipcd, kind: Kind, key: Key) -> Result<ObjectId, Trouble> {
    let call = Call::Get { kind, key, flags: 0, size: 0, nonce: Nonce(0) };
    match dipcd.call(call, WAIT)? {
        Answer::Object { id, .. } => Ok(id),
        _ => Err(dipcd.not_understood()),
    }
}

/// The words of ipcrm.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Queue => "message queue",
        Kind::Set => "semaphore",
        Kind::Segment => "shared memory segment",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_keys_as_ipcrm_takes_them() {
        let key = |number, text: &str| Ok(Which::Key(Key(number), text.to_owned()));
        assert_eq!(Which::id("-7"), Ok(Which::Id(-7)));
        for (text, number) in
            [("40", 40), ("0x28", 40), ("050", 40), ("-1", -1), ("0xffffffff", -1)]
        {
            assert_eq!(Which::key(text), key(number, text), "{text}");
        }
        for text in ["", "x", "0x", "08", "4294967296", "+3", "--3"] {
            assert_eq!(Which::key(text), Err(format!("failed to parse argument: '{text}'")));
        }
        assert_eq!(Which::key("0"), Err("illegal key (0)".to_owned()));
        assert_eq!(Which::id("0x10"), Err("failed to parse argument: '0x10'".to_owned()));
    }
}
