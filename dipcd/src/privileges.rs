//! What dipcd and its keeper may do beyond any other process of their user: six capabilities, from
//! the moment on that sockets and directories are theirs. The rest is dropped for good, also for
//! what they start, so that whoever breaks into them gains no more than what they need themselves.
#![forbid(unsafe_code)]

use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};
use std::io;

/// To act as other accounts, on their objects; to see their processes and signal them; to have more
/// descriptors than usual.
pub const NEEDED: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::IPC_OWNER)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_RESOURCE);

/// What dipcd cannot do without each, for the log.
const MISSED: &[(CapabilitySet, &str)] = &[
    (CapabilitySet::SETUID, "CAP_SETUID: it cannot act as other users"),
    (CapabilitySet::SETGID, "CAP_SETGID: it cannot act with other users' groups"),
    (CapabilitySet::IPC_OWNER, "CAP_IPC_OWNER: it cannot look at objects that it may not read"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE: it cannot see the namespaces of others' programs"),
    (CapabilitySet::KILL, "CAP_KILL: it cannot signal others' programs"),
    (CapabilitySet::SYS_RESOURCE, "CAP_SYS_RESOURCE: it cannot raise bounds"),
];

/// Drops everything but [`NEEDED`], in this thread and those it starts from now on.
pub fn keep_needed() -> io::Result<()> {
    // Without CAP_SETPCAP the bound stays; then no_new_privs alone keeps what we start from more.
    for capability in others() {
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            let _ = remove_capability_from_bounding_set(capability);
        }
    }
    clear_ambient_capability_set()?;
    set_no_new_privs(true)?;
    let kept = capabilities(None)?.permitted & NEEDED;
    let inheritable = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable })?)
}

/// Warns of what this dipcd cannot do for want of rights.
pub fn say_what_is_missing() -> io::Result<()> {
    if !geteuid().is_root() {
        let uid = geteuid().as_raw();
        tracing::warn!(
            op = "start",
            uid,
            "without root: it serves the programs of its own user \
            alone, and every program of another node acts as that user"
        );
        return Ok(());
    }
    let permitted = capabilities(None)?.permitted;
    for (_, what) in MISSED.iter().filter(|(needed, _)| !permitted.contains(*needed)) {
        tracing::warn!(op = "start", missing = what);
    }
    Ok(())
}

/// Every capability that is not needed, also of a kernel that has more than we know.
fn others() -> impl Iterator<Item = CapabilitySet> {
    let each = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    each.filter(|capability| !NEEDED.contains(*capability))
}
