//! What `-c` and `-d` log: the frames of links and wires whose integers are not in the order in
//! which this machine has them, and what stood in them. Message text and pages are bytes, which
//! nobody converts; secrets are not shown.
//!
//! ```text
//! [4711@conversion.rs:40]{0:00:12:07} op="to network order" what="MsgSend" raw_bytes=512
//! [4711@conversion.rs:44]{0:00:12:07} op="to network order" value=Do { seq: Seq(1), ...
//! ```
#![forbid(unsafe_code)]

use std::fmt::Debug;

use dipc_wire::codec::ByteOrder;
use tracing::{Level, enabled};

use crate::log::{CONVERSION, CONVERTED};

/// How this machine has its integers.
const NATIVE: ByteOrder =
    if cfg!(target_endian = "big") { ByteOrder::Network } else { ByteOrder::Little };

/// A frame goes out in this order.
pub fn going_out(order: ByteOrder, value: &impl Debug, raw_bytes: usize) {
    if order != NATIVE {
        log("to the order of the network", value, raw_bytes);
    }
}

/// A frame has come in, in this order.
pub fn come_in(order: ByteOrder, value: &impl Debug, raw_bytes: usize) {
    if order != NATIVE {
        log("to the order of this machine", value, raw_bytes);
    }
}

fn log(op: &str, value: &impl Debug, raw_bytes: usize) {
    if enabled!(target: CONVERSION, Level::TRACE) {
        let what = format!("{value:?}");
        let what = what.split([' ', '(', '{']).next().unwrap_or_default();
        tracing::trace!(target: CONVERSION, op, what, raw_bytes);
    }
    tracing::trace!(target: CONVERTED, op, ?value);
}
