//! Which account here a program elsewhere acts as: by login name, by number, or as ourselves.
//!
//! A node is trusted with every account it vouches for but root's: root elsewhere is root here
//! only if `root` names its node, else the account `squash`. Rights beyond an account's
//! (capabilities) are believed of such nodes alone.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use dipc_wire::keeper::Account;
use dipc_wire::peer::Caller;
use dipc_wire::sysv::{Rights, SysvError};

use crate::config::{Config, Identity};
use crate::sys::credentials;

/// The account of a caller on another node, whose address is `node`. `EACCES`: none.
pub fn account_of(
    config: &Config,
    node: Option<IpAddr>,
    caller: &Caller,
) -> Result<Account, SysvError> {
    let root_is_root = node.is_some_and(|node| config.root.contains(&node));
    let account = match config.identity {
        Identity::Own => Some(ourselves()),
        _ if caller.uid == 0 && root_is_root => Some(Account { uid: 0, ..by_number(caller) }),
        _ if caller.uid == 0 => return squashed(config),
        Identity::Uid => Some(by_number(caller)),
        Identity::Name => by_name(caller),
    };
    match account {
        Some(account)
            if account.uid == 0 && caller.uid != 0 && config.identity != Identity::Own =>
        {
            squashed(config)
        }
        Some(account) if root_is_root => Ok(Account { rights: caller.rights, ..account }),
        Some(account) => Ok(Account { rights: Rights::default(), ..account }),
        None => Err(SysvError::EACCES),
    }
}

/// The account of a caller on this node: the numbers are ours.
pub fn own_account(caller: &Caller) -> Account {
    Account { rights: caller.rights, ..by_number(caller) }
}

fn ourselves() -> Account {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    Account { uid, gid, groups: Vec::new(), rights: Rights::default() }
}

fn squashed(config: &Config) -> Result<Account, SysvError> {
    let user = credentials::user_by_name(config.squash.as_str()).ok_or(SysvError::EACCES)?;
    if user.uid == 0 {
        return Err(SysvError::EACCES);
    }
    let groups = Vec::new();
    Ok(Account { uid: user.uid, gid: user.gid, groups, rights: Rights::default() })
}

fn by_number(caller: &Caller) -> Account {
    let Caller { uid, gid, .. } = *caller;
    Account { uid, gid, groups: caller.groups.clone(), rights: Rights::default() }
}

/// The user must exist here under its name; a group that does not is left out, and the effective
/// group is then the user's own.
fn by_name(caller: &Caller) -> Option<Account> {
    let user = credentials::user_by_name(caller.user_name.as_deref()?)?;
    let mut names = caller.group_names.iter();
    let group = |name: &String| credentials::group_by_name(name);
    let gid = names.next().and_then(group).unwrap_or(user.gid);
    let groups = names.filter_map(group).collect();
    Some(Account { uid: user.uid, gid, groups, rights: Rights::default() })
}
