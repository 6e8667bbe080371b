//! What a thousand strangers a second cost who works: each connects, greets with a wrong key and is
//! refused, while a program and its partner on the other node go on.
#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dipc_tests::Cluster;
use dipc_tests::stranger::greeting;

use super::{Row, paired, remote};

/// Connections of strangers.
const EACH_SECOND: u32 = 1_000;

/// The row: a remote request and its answer, with the strangers and without.
pub fn row(probe: &Path, pairs: usize) -> Row {
    let cluster = Cluster::of(2).allow("127.0.0.1").alone().start();
    let asked = || remote(&cluster, probe, "answer", "ask");
    let flooded = || {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| knock(cluster.node(1).address, &over));
            let time = asked();
            over.store(true, Ordering::Release);
            time
        })
    };
    let (what, against) = ("request and answer, 1,000 strangers/s", "the same without strangers");
    paired(what, against, 1.25, pairs, asked, flooded)
}

/// Knocks in time until it is over.
fn knock(address: SocketAddr, over: &AtomicBool) {
    let (greeting, begun) = (greeting(&[1; 32]), Instant::now());
    for number in 0.. {
        if over.load(Ordering::Acquire) {
            return;
        }
        let due = Duration::from_secs(1) * number / EACH_SECOND;
        thread::sleep(due.saturating_sub(begun.elapsed()));
        let wait = Duration::from_millis(100);
        if let Ok(mut stranger) = TcpStream::connect_timeout(&address, wait) {
            // It is closed at once, perhaps before it has said all.
            let _ = stranger.write_all(&greeting);
        }
    }
}
