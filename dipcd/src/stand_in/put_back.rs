//! Putting a message back that its program never got: to the end of its queue, whole, by home's
//! own right, since the receiver may not be allowed to write.
//!
//! If the queue is full, a child process waits for room: a thread would end with the stand-in,
//! and a stand-in that waited would delay its undo. If the queue is gone, so is the message.
#![forbid(unsafe_code)]

use dipc_wire::ids::KernelId;
use dipc_wire::sysv::{IPC_NOWAIT, SysvError};

use super::session::{Body, Kept};
use crate::sys::credentials::with_ipc_owner;
use crate::sys::ipc::{self, MessageBuffer};
use crate::sys::process::{self, Forked};

/// Puts back the message of a reply, if it has one.
pub(super) fn put_back(kept: &Kept) {
    if let Body::Taken { queue, message, .. } = &kept.body {
        with_ipc_owner(|| put_back_message(*queue, message));
    }
}

fn put_back_message(queue: KernelId, message: &MessageBuffer) {
    let sent = match send(queue, message, IPC_NOWAIT) {
        Err(SysvError::EAGAIN) => match process::fork() {
            Ok(Forked::Child) => {
                // The others must see the stand-in's end when it ends, so nothing stays open.
                let _ = process::close_inherited();
                let _ = send(queue, message, 0);
                process::exit_now(0)
            }
            Ok(Forked::Parent(pid)) => {
                tracing::info!(op = "put_back", queue = queue.0, pid, "waits for room");
                return;
            }
            Err(_) => send(queue, message, 0),
        },
        sent => sent,
    };
    match sent {
        Ok(()) => tracing::debug!(op = "put_back", queue = queue.0),
        Err(SysvError::EIDRM) => {}
        Err(SysvError::EINVAL) if ipc::queue_stat_any(queue).is_err() => {}
        Err(error) => {
            tracing::error!(op = "put_back", queue = queue.0, ?error, "a message is lost");
        }
    }
}

/// msgsnd(2), again if a signal comes in between.
fn send(queue: KernelId, message: &MessageBuffer, flags: i32) -> Result<(), SysvError> {
    loop {
        match ipc::msg_send(queue, message, flags) {
            Err(SysvError::EINTR) => {}
            sent => return sent,
        }
    }
}
