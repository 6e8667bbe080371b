//! shmget, shmat, shmdt and shmctl give what the kernel gives, with the home here, elsewhere, and
//! without opting in, by either trap. What a mapping of the program may do to an attachment is
//! compared as well, and system calls and futexes on pages that are not here.
#![forbid(unsafe_code)]

use crate::differential::compare_with;

const BY_USERFAULTFD: &[(&str, &str)] = &[("trap", "userfaultfd")];
const BY_MPROTECT: &[(&str, &str)] = &[("trap", "mprotect")];
/// A child of the bare system call has no helper thread to take its pages away.
const WITHOUT_FORK_HANDLER: &[&str] = &["raw_fork"];
/// The kernel's own accesses to an absent page give EFAULT under the mprotect trap, and nattch
/// counts attachments there, not what mprotect(2) makes of them.
const KERNEL_ACCESS: &[&str] = &["sync_and_lock", "mprotect_parts"];

#[test]
fn segments_themselves() {
    compare_with("segments_themselves", "shm_cases", BY_USERFAULTFD, &[]);
}

#[test]
fn segments_themselves_by_mprotect() {
    compare_with("segments_themselves_by_mprotect", "shm_cases", BY_MPROTECT, &[]);
}

#[test]
fn attachments() {
    compare_with("attachments", "shm_map_cases", BY_USERFAULTFD, &[]);
}

#[test]
fn attachments_by_mprotect() {
    compare_with("attachments_by_mprotect", "shm_map_cases", BY_MPROTECT, KERNEL_ACCESS);
}

#[test]
fn the_life_of_attachments() {
    compare_with("the_life_of_attachments", "shm_life_cases", BY_USERFAULTFD, &[]);
}

#[test]
fn the_life_of_attachments_by_mprotect() {
    let name = "the_life_of_attachments_by_mprotect";
    compare_with(name, "shm_life_cases", BY_MPROTECT, WITHOUT_FORK_HANDLER);
}

#[test]
fn sequences_of_test_suites() {
    compare_with("sequences_of_test_suites", "shm_suite_cases", BY_USERFAULTFD, &[]);
}

#[test]
fn sequences_of_test_suites_by_mprotect() {
    compare_with("sequences_of_test_suites_by_mprotect", "shm_suite_cases", BY_MPROTECT, &[]);
}

#[test]
fn system_calls_on_absent_pages() {
    compare_with("system_calls_on_absent_pages", "shm_kernel_cases", BY_USERFAULTFD, &[]);
}
