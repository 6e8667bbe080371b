//! Who a process is, as the kernel says, and acting as somebody else.
//!
//! Accounts are switched by raw per-thread calls, the effective ids and groups only: with real and
//! saved ids still root's, the account can neither kill, stop nor limit the process
//! (credentials(7), kill(2)). The C library's wrappers would change every thread.

use rustix::process::{
    DumpableBehavior, Gid, Pid, PidfdFlags, Uid, getegid, geteuid, getgroups, set_dumpable_behavior,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use dipc_wire::keeper::Account;
use dipc_wire::limits::GROUPS_MAX;
use dipc_wire::sysv::Rights;

/// `SO_PEERGROUPS` and `SO_PEERPIDFD` of asm-generic/socket.h, which crate libc lacks.
const SO_PEERGROUPS: c_int = 59;
const SO_PEERPIDFD: c_int = 77;
/// The longest record of a user or group that is read: groups have many members.
const NAME_BYTES_MAX: usize = 4 << 20;

/// The process at the other end of a UNIX socket, as it was when it connected.
#[derive(Debug)]
pub struct Peer {
    /// Its pid.
    pub pid: u32,
    /// Its effective user then.
    pub uid: u32,
    /// Its effective group then.
    pub gid: u32,
    /// Its supplementary groups then, the first [`GROUPS_MAX`].
    pub groups: Vec<u32>,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Its start time, field 22 of /proc/PID/stat.
    pub started: u64,
    /// As whom it counts.
    pub counts: Counts,
}

/// As whom a program counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// As whom the kernel shows.
    AsItself,
    /// As the account that programs in containers share, with no rights beyond it.
    AsContained,
}

/// Which namespaces of a process are ours; one that cannot be seen is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// System V objects are the same.
    pub ipc_is_ours: bool,
    /// User and group numbers mean the same.
    pub user_is_ours: bool,
    /// Pids mean the same.
    pub pid_is_ours: bool,
}

impl Peer {
    /// Asks the kernel. A process that has ended already is an error, and one whose pid is none of
    /// ours, for it lives in a pid namespace that we do not see, `PermissionDenied`.
    pub fn of(socket: impl AsFd) -> io::Result<Peer> {
        let socket = socket.as_fd();
        let credentials = peer_credentials(socket)?;
        let pid = Pid::from_raw(credentials.pid).ok_or(io::ErrorKind::PermissionDenied)?;
        let pidfd = match peer_pidfd(socket) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                rustix::process::pidfd_open(pid, PidfdFlags::empty())?
            }
            pidfd => pidfd?,
        };
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        let peer = Peer {
            pid,
            uid: credentials.uid,
            gid: credentials.gid,
            groups: peer_groups(socket)?,
            pidfd,
            started: start_time(pid).ok_or_else(ended)?,
            counts: Counts::AsItself,
        };
        if peer.has_ended()? { Err(ended()) } else { Ok(peer) }
    }

    /// The same process, as the account that programs in containers share.
    pub fn contained_as(&self, user: User) -> io::Result<Peer> {
        let (pidfd, groups) = (self.pidfd.try_clone()?, Vec::new());
        let User { uid, gid } = user;
        let (pid, started) = (self.pid, self.started);
        Ok(Peer { pid, uid, gid, groups, pidfd, started, counts: Counts::AsContained })
    }

    /// Whether the process has ended; its pid may be another's then.
    pub fn has_ended(&self) -> io::Result<bool> {
        let mut watched = [rustix::event::PollFd::new(&self.pidfd, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        Ok(rustix::event::poll(&mut watched, Some(&now))? != 0)
    }

    /// What its thread `tid` may do beyond its account: nothing, if it is not its thread or the
    /// process lives in another user namespace, where capabilities mean less.
    pub fn rights(&self, tid: u32) -> Rights {
        if self.counts == Counts::AsContained {
            return Rights::default();
        }
        let path = format!("/proc/{}/task/{tid}/status", self.pid);
        let status = fs::read_to_string(path).unwrap_or_default();
        if !self.namespaces().user_is_ours || self.has_ended().unwrap_or(true) {
            return Rights::default();
        }
        rights_in(&status)
    }

    /// Which of its namespaces are ours.
    pub fn namespaces(&self) -> Namespaces {
        let is_ours = |name: &str| {
            let place = |process: &str| {
                let metadata = fs::metadata(format!("/proc/{process}/ns/{name}")).ok()?;
                Some((metadata.dev(), metadata.ino()))
            };
            let theirs = place(&self.pid.to_string());
            theirs.is_some() && theirs == place("self")
        };
        Namespaces {
            ipc_is_ours: is_ours("ipc"),
            user_is_ours: is_ours("user"),
            pid_is_ours: is_ours("pid"),
        }
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the process has ended")
}

fn rights_in(status: &str) -> Rights {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = field.and_then(|field| u64::from_str_radix(field.trim(), 16).ok()).unwrap_or(0);
    let held = CapabilitySet::from_bits_retain(bits);
    Rights {
        ipc_owner: held.contains(CapabilitySet::IPC_OWNER),
        sys_admin: held.contains(CapabilitySet::SYS_ADMIN),
        sys_resource: held.contains(CapabilitySet::SYS_RESOURCE),
        ipc_lock: held.contains(CapabilitySet::IPC_LOCK),
    }
}

/// By hand: rustix knows no pid 0, which the kernel names when it cannot name the pid.
fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both outlive the call, and `length` is the size of `credentials`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    if rc == 0 { Ok(credentials) } else { Err(io::Error::last_os_error()) }
}

fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd: RawFd = -1;
    let mut length = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: `fd` and `length` outlive the call, and `length` is the size of `fd`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut length,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<u32> = vec![0; GROUPS_MAX];
    loop {
        let bytes = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: `groups` has `length` bytes of initialised memory and outlives the call.
        let rc = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<u32>();
        if rc == 0 {
            groups.truncate(count.min(GROUPS_MAX));
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how long the list is, at most NGROUPS_MAX (65,536).
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}

/// The effective user of a process; `None` if there is none (proc(5)).
pub fn user_of(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// When a process was started, in clock ticks since boot; `None` if there is none (proc(5)).
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name in parentheses, may contain anything.
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Runs `work` in this thread with the effective ids and groups of an account. Without root it is
/// possible for our own account alone. A thread that cannot get back ends the process.
pub fn with_effective<T>(account: &Account, work: impl FnOnce() -> T) -> io::Result<T> {
    if !geteuid().is_root() {
        own_account_only(account)?;
        return Ok(work());
    }
    let _back = Back { gid: getegid(), groups: getgroups()? };
    switch_ids(account)?;
    Ok(work())
}

/// Opens a file of /proc that belongs to the user of its process and to nobody else, not even to a
/// root without CAP_DAC_OVERRIDE. Whether that process may be looked at is for CAP_SYS_PTRACE.
pub fn open_as_its_owner(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        opened => return opened,
    }
    let owner = std::fs::metadata(path)?.uid();
    // SAFETY: changes this thread's own id for files, and says what it was; it cannot fail harder.
    let own = unsafe { libc::setfsuid(owner) };
    let opened = File::open(path);
    // SAFETY: as above; back to an id that is always allowed, our effective one.
    unsafe { libc::setfsuid(own as libc::uid_t) };
    opened
}

/// Brings a thread back to root, also when its work panics.
struct Back {
    gid: Gid,
    groups: Vec<Gid>,
}

impl Drop for Back {
    fn drop(&mut self) {
        let back = set_thread_res_uid(None, Uid::ROOT, None)
            .and_then(|()| set_thread_res_gid(None, self.gid, None))
            .and_then(|()| set_thread_groups(&self.groups));
        if let Err(error) = back {
            tracing::error!(%error, "a thread cannot get back its own rights");
            std::process::abort();
        }
    }
}

/// Makes this process act as an account from now on, with real and saved ids kept, and with the
/// account's rights and no others. Called before the process has a second thread.
pub fn become_account(account: &Account) -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    if !geteuid().is_root() {
        return own_account_only(account);
    }
    let own = capabilities(None)?.permitted;
    switch_ids(account)?;
    let rights = own & capability_set(account.rights);
    // What a message is put back with, and what an administrator acts with; see `with_ipc_owner`
    // and `with_user`.
    let act = if account.rights.sys_admin { CapabilitySet::SETUID } else { CapabilitySet::empty() };
    let permitted = rights | (own & (CapabilitySet::IPC_OWNER | act));
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: rights, permitted, inheritable })?;
    // Changing ids may have changed it (prctl(2)).
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Runs `work` in this thread with `CAP_IPC_OWNER`, if the process may have it at all.
pub fn with_ipc_owner<T>(work: impl FnOnce() -> T) -> T {
    let Ok(own) = capabilities(None) else { return work() };
    let raised = own.effective | (own.permitted & CapabilitySet::IPC_OWNER);
    if raised == own.effective || set_capabilities(None, sets(own, raised)).is_err() {
        return work();
    }
    let result = work();
    if set_capabilities(None, own).is_err() {
        std::process::abort();
    }
    result
}

/// Runs `work` in this thread as another user, with the rights it has: for who may act on objects
/// of others as an administrator, and for it has kept `CAP_SETUID`.
pub fn with_user<T>(uid: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    let (own, back) = (capabilities(None)?, geteuid());
    let raised = sets(own, own.effective | (own.permitted & CapabilitySet::SETUID));
    let become_user = |uid| {
        set_capabilities(None, raised)?;
        let became = set_thread_res_uid(None, uid, None);
        // The kernel takes effective ones away from who is root no more, and gives them to who is.
        set_capabilities(None, own).and(became)
    };
    become_user(Uid::from_raw(uid))?;
    let result = work();
    if become_user(back).is_err() {
        std::process::abort();
    }
    Ok(result)
}

fn sets(own: CapabilitySets, effective: CapabilitySet) -> CapabilitySets {
    CapabilitySets { effective, ..own }
}

fn capability_set(rights: Rights) -> CapabilitySet {
    let when = |held, capability| if held { capability } else { CapabilitySet::empty() };
    when(rights.ipc_owner, CapabilitySet::IPC_OWNER)
        | when(rights.sys_admin, CapabilitySet::SYS_ADMIN)
        | when(rights.sys_resource, CapabilitySet::SYS_RESOURCE)
        | when(rights.ipc_lock, CapabilitySet::IPC_LOCK)
}

fn own_account_only(account: &Account) -> io::Result<()> {
    if account.uid == geteuid().as_raw() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Groups first: changing them needs the rights that the last step takes away.
fn switch_ids(account: &Account) -> io::Result<()> {
    let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    set_thread_res_gid(None, Gid::from_raw(account.gid), None)?;
    set_thread_res_uid(None, Uid::from_raw(account.uid), None)?;
    Ok(())
}

/// A user of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its login group.
    pub gid: u32,
}

/// The login name of a user, if it has one.
pub fn user_name(uid: u32) -> Option<String> {
    let get = |record: *mut libc::passwd, buffer: &mut [c_char], found: *mut *mut libc::passwd| {
        // SAFETY: all three outlive the call, and the length is the buffer's (getpwnam(3)).
        unsafe { libc::getpwuid_r(uid, record, buffer.as_mut_ptr(), buffer.len(), found) }
    };
    look_up(get, |user| copied(user.pw_name))
}

/// The user with a login name.
pub fn user_by_name(name: &str) -> Option<User> {
    let name = CString::new(name).ok()?;
    let get = |record: *mut libc::passwd, buffer: &mut [c_char], found: *mut *mut libc::passwd| {
        let (name, length) = (name.as_ptr(), buffer.len());
        // SAFETY: name, record, buffer and result outlive the call (getpwnam(3)).
        unsafe { libc::getpwnam_r(name, record, buffer.as_mut_ptr(), length, found) }
    };
    look_up(get, |user| Some(User { uid: user.pw_uid, gid: user.pw_gid }))
}

/// The name of a group, if it has one.
pub fn group_name(gid: u32) -> Option<String> {
    let get = |record: *mut libc::group, buffer: &mut [c_char], found: *mut *mut libc::group| {
        // SAFETY: all three outlive the call, and the length is the buffer's (getgrnam(3)).
        unsafe { libc::getgrgid_r(gid, record, buffer.as_mut_ptr(), buffer.len(), found) }
    };
    look_up(get, |group| copied(group.gr_name))
}

/// The group with a name.
pub fn group_by_name(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    let get = |record: *mut libc::group, buffer: &mut [c_char], found: *mut *mut libc::group| {
        let (name, length) = (name.as_ptr(), buffer.len());
        // SAFETY: name, record, buffer and result outlive the call (getgrnam(3)).
        unsafe { libc::getgrnam_r(name, record, buffer.as_mut_ptr(), length, found) }
    };
    look_up(get, |group| Some(group.gr_gid))
}

/// Calls one of the `*_r` functions with a buffer that is long enough.
fn look_up<Record, T>(
    get: impl Fn(*mut Record, &mut [c_char], *mut *mut Record) -> c_int,
    read: impl Fn(&Record) -> Option<T>,
) -> Option<T> {
    let mut buffer: Vec<c_char> = vec![0; 1024];
    while buffer.len() <= NAME_BYTES_MAX {
        let mut record = MaybeUninit::uninit();
        let mut found = std::ptr::null_mut();
        match get(record.as_mut_ptr(), &mut buffer, &raw mut found) {
            0 if found.is_null() => return None,
            0 => {
                // SAFETY: the function has filled `record`, to which `found` points, and the
                // strings it names lie in `buffer`, which is still here.
                return read(unsafe { record.assume_init_ref() });
            }
            libc::ERANGE => buffer.resize(buffer.len() * 4, 0),
            libc::EINTR => {}
            _ => return None,
        }
    }
    None
}

fn copied(name: *const c_char) -> Option<String> {
    // SAFETY: it is a string in a record that `look_up` has just had filled.
    unsafe { CStr::from_ptr(name) }.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::packets;

    #[test]
    fn the_kernel_says_who_is_at_the_other_end() {
        let (near, _far) = packets::pair().unwrap();
        let peer = Peer::of(&near).unwrap();
        assert_eq!((peer.pid, peer.uid), (std::process::id(), geteuid().as_raw()));
        assert_eq!(peer.started, start_time(peer.pid).unwrap());
        let ours = Namespaces { ipc_is_ours: true, user_is_ours: true, pid_is_ours: true };
        assert_eq!(peer.namespaces(), ours);
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert_eq!(peer.rights(tid).ipc_owner, geteuid().is_root());
        assert_eq!(peer.rights(1), Rights::default(), "thread 1 is not one of ours");
        let contained = peer.contained_as(User { uid: 7, gid: 8 }).unwrap();
        assert_eq!((contained.pid, contained.uid, contained.gid), (peer.pid, 7, 8));
        assert_eq!((contained.rights(tid), contained.groups), (Rights::default(), Vec::new()));
    }

    #[test]
    fn names_and_numbers_agree() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(user_by_name("root"), Some(User { uid: 0, gid: 0 }));
        assert_eq!(group_by_name(&group_name(0).unwrap()), Some(0));
        assert_eq!(user_by_name("no such user"), None);
        assert_eq!(group_by_name("no such group"), None);
        assert_eq!(user_name(u32::MAX - 7), None);
    }

    #[test]
    fn a_thread_acts_as_another_account_and_comes_back() {
        let other =
            Account { uid: 65_534, gid: 65_533, groups: vec![65_532], rights: Rights::default() };
        if !geteuid().is_root() {
            assert!(with_effective(&other, || ()).is_err());
            return;
        }
        let before = getgroups().unwrap();
        let inside = with_effective(&other, || (geteuid(), getegid(), getgroups().unwrap()));
        let (uid, gid, groups) = inside.unwrap();
        assert_eq!((uid.as_raw(), gid.as_raw()), (65_534, 65_533));
        assert_eq!(groups, [Gid::from_raw(65_532)]);
        assert_eq!((geteuid().as_raw(), getgroups().unwrap()), (0, before));
    }
}
