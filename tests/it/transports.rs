//! Other roads between the nodes: datagrams (`-u`), network byte order (`-n`), a line that loses,
//! doubles and reorders packets, and one across an ocean. What runs over them stands in other
//! chapters; here it runs again. And nodes that do not speak alike, which refuse each other by
//! name.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use dipc_tests::{Builder, Cluster, Weather, skip};

use crate::differential::{compare_across, compare_rows_across};
use crate::{exactly_once, hello};

/// A cluster on a network with that weather; says so if there can be none.
pub fn under(name: &str, weather: Weather, builder: Builder) -> Option<Cluster> {
    let cluster = builder.start_in(weather);
    if cluster.is_none() {
        skip::skip(name, "needs root, ip(8) and /dev/net/tun");
    }
    cluster
}

/// Programs of cases with the home elsewhere, over datagrams in a storm.
#[track_caller]
fn compare_in_a_storm(name: &str, programs: &[&str]) {
    for program in programs {
        compare_across(program, |builder| under(name, Weather::STORM, builder.option("-u")));
    }
}

/// The same in network byte order.
#[track_caller]
fn compare_in_network_order(name: &str, programs: &[&str]) {
    for program in programs {
        if !skip::needs_root(name) {
            compare_across(program, |builder| Some(builder.option("-n").start()));
        }
    }
}

#[test]
fn hello_over_datagrams() {
    hello::both_ways(&Cluster::of(2).option("-u").start());
}

#[test]
fn hello_over_datagrams_in_a_storm() {
    let name = "hello_over_datagrams_in_a_storm";
    let Some(cluster) = under(name, Weather::STORM, Cluster::of(2).option("-u")) else { return };
    hello::both_ways(&cluster);
    let toll = cluster.toll();
    let [lost, passed] = [&toll.lost, &toll.passed].map(|count| count.load(Ordering::Relaxed));
    skip::note(&format!("{name}: {lost} packets lost, {passed} passed on"));
    assert!(lost > 0, "there was no storm");
}

#[test]
fn queues_over_datagrams_in_a_storm() {
    compare_in_a_storm("queues_over_datagrams_in_a_storm", &["msg_cases", "msg_wait_cases"]);
}

#[test]
fn sets_over_datagrams_in_a_storm() {
    compare_in_a_storm("sets_over_datagrams_in_a_storm", &["sem_cases", "sem_wait_cases"]);
}

#[test]
fn each_message_arrives_once_over_datagrams_in_a_storm() {
    let name = "each_message_arrives_once_over_datagrams_in_a_storm";
    let nodes = exactly_once::nodes().option("-u");
    if let Some(cluster) = under(name, Weather::STORM, nodes) {
        exactly_once::arrive_once(cluster, name, 10_000, 1_000);
    }
}

#[test]
fn each_message_arrives_once_over_datagrams_while_every_dipcd_is_restarted() {
    let name = "each_message_arrives_once_over_datagrams_while_every_dipcd_is_restarted";
    let cluster = exactly_once::nodes().option("-u").start();
    exactly_once::arrive_once_over_restarts(cluster, name, 10_000, 1_000);
}

#[test]
fn hello_in_network_byte_order() {
    hello::both_ways(&Cluster::of(2).option("-n").start());
}

#[test]
fn queues_in_network_byte_order() {
    compare_in_network_order("queues_in_network_byte_order", &["msg_cases", "msg_wait_cases"]);
}

#[test]
fn sets_in_network_byte_order() {
    compare_in_network_order("sets_in_network_byte_order", &["sem_cases", "sem_wait_cases"]);
}

#[test]
fn hello_across_an_ocean() {
    let name = "hello_across_an_ocean";
    for options in [&[][..], &["-u"]] {
        let builder = options.iter().fold(Cluster::of(2), |builder, one| builder.option(one));
        if let Some(cluster) = under(name, Weather::OCEAN, builder) {
            hello::both_ways(&cluster);
        }
    }
}

#[test]
fn sets_across_an_ocean() {
    let name = "sets_across_an_ocean";
    let rows: [(&str, &[&str]); 2] = [
        ("sem_cases", &["several_at_once", "eagain"]),
        ("sem_wait_cases", &["woken_by_add", "undo_when_killed"]),
    ];
    compare_rows_across(&rows, |builder| under(name, Weather::OCEAN, builder));
}

/// What the second node and the first say when they are started with these options.
#[track_caller]
fn refused(first: &str, second: &str, words: &str) {
    let mut builder = Cluster::of(2);
    for (number, option) in [(1, first), (2, second)] {
        if !option.is_empty() {
            builder = builder.option_of(number, option);
        }
    }
    let cluster = builder.start();
    for node in cluster.nodes() {
        node.wait_for_log(words);
    }
}

#[test]
fn another_transport_is_refused_by_name() {
    refused("", "-u", "-u (transport): here");
    refused("-u", "", "-u (transport): here");
}

#[test]
fn another_byte_order_is_refused_by_name() {
    refused("", "-n", "-n (byte order): here");
    refused("-un", "-u", "-n (byte order): here");
}
