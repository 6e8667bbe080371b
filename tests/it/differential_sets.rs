//! semget, semop, semtimedop and semctl give what the kernel gives, with the home here, elsewhere,
//! and without opting in.
#![forbid(unsafe_code)]

use crate::differential::compare;

#[test]
fn sets_that_nobody_waits_for() {
    compare("sets_that_nobody_waits_for", "sem_cases");
}

#[test]
fn sets_that_somebody_waits_for() {
    compare("sets_that_somebody_waits_for", "sem_wait_cases");
}
