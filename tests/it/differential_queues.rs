//! msgget, msgsnd, msgrcv and msgctl give what the kernel gives, with the home here, elsewhere, and
//! without opting in.
#![forbid(unsafe_code)]

use crate::differential::compare;

#[test]
fn queues_that_nobody_waits_for() {
    compare("queues_that_nobody_waits_for", "msg_cases");
}

#[test]
fn queues_that_somebody_waits_for() {
    compare("queues_that_somebody_waits_for", "msg_wait_cases");
}
