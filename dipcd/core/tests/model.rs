//! Every interleaving of small worlds, with the machines under test in the middle: a client and
//! its session at home, two nodes and the referee. Each world is right in every state; the number
//! of states moves only when a protocol does. With a bug planted each of them goes wrong.
#![forbid(unsafe_code)]

#[path = "model/client.rs"]
mod client;
mod cluster;
#[path = "model/explore.rs"]
mod explore;
#[path = "model/small.rs"]
mod small;

use client::{Budget, Bug, Client};
use explore::{explore, fails, holds};
use small::{Shorter, Small};

const STATES_MAX: usize = 5_000_000;

/// Explores a client with two messages in the queue.
fn client(budget: Budget, bug: Bug) -> explore::Explored {
    explore(Client::new(2, budget, bug), STATES_MAX)
}

#[test]
fn no_message_is_lost_or_doubled() {
    let none = Budget { receives: 3, ..Budget::default() };
    let end = Budget { ends: 1, kills: 1, ..none };
    let rows = [
        ("nothing fails", none, 11),
        ("killed", Budget { drops: 2, outages: 1, kills: 1, ..none }, 1044),
        ("signals", Budget { drops: 2, cancels: 2, ..end }, 2866),
        ("left", Budget { drops: 2, leaves: 1, deserts: 1, ..end }, 8488),
        ("lost", Budget { drops: 1, losses: 1, leaves: 1, cancels: 1, ..end }, 4829),
    ];
    let found = rows.map(|(name, budget, _)| (name, holds(client(budget, Bug::None))));
    assert_eq!(found, rows.map(|(name, _, states)| (name, states)));
}

#[test]
fn a_message_put_back_on_wire_loss_is_doubled() {
    let budget = Budget { receives: 2, drops: 1, ..Budget::default() };
    assert!(fails(client(budget, Bug::PutBackOnWireLoss)).starts_with("DUPLICATE"));
}

#[test]
fn a_death_report_that_overtakes_the_done_number_doubles() {
    let budget = Budget { receives: 1, kills: 1, ..Budget::default() };
    assert!(fails(client(budget, Bug::DeathWithoutDone)).starts_with("DUPLICATE"));
}

/// Budgets of a world with two creators of one key.
const CREATES: small::Budget = small::Budget {
    creates: 2,
    places: 0,
    finds: 0,
    removes: 0,
    abandons: 0,
    retirements: 0,
    cuts: 0,
    referee_kills: 0,
    node_kills: 0,
    short_timeouts: 0,
    long_timeouts: 0,
};

/// One who creates, and one who has the other node make the object.
const PLACED: small::Budget = small::Budget { creates: 1, places: 1, ..CREATES };

#[test]
fn a_key_has_one_home() {
    use small::Budget;
    let rows = [
        ("nothing fails", CREATES, Shorter::Claim, 74),
        ("removed", Budget { finds: 1, removes: 1, ..CREATES }, Shorter::Claim, 1142),
        ("abandoned", Budget { finds: 1, abandons: 1, ..CREATES }, Shorter::Claim, 2057),
        ("expired", Budget { cuts: 1, short_timeouts: 1, ..CREATES }, Shorter::Claim, 8150),
        ("lost", Budget { cuts: 1, short_timeouts: 1, ..CREATES }, Shorter::Node, 5254),
        ("killed", Budget { referee_kills: 1, ..CREATES }, Shorter::Node, 3200),
        ("retired", Budget { retirements: 1, ..CREATES }, Shorter::Node, 2526),
        ("restarted", Budget { node_kills: 1, ..CREATES }, Shorter::Node, 1354),
        ("placed", Budget { cuts: 1, ..PLACED }, Shorter::Claim, 3863),
        ("placed, expired", Budget { short_timeouts: 1, ..PLACED }, Shorter::Claim, 840),
        ("placed, lost", Budget { cuts: 1, short_timeouts: 1, ..PLACED }, Shorter::Node, 15_516),
        (
            "placed, restarted",
            Budget { node_kills: 1, abandons: 1, ..PLACED },
            Shorter::Node,
            12_171,
        ),
    ];
    let found = rows.map(|(name, budget, shorter, _)| {
        (name, holds(one_key(budget, shorter, cluster::Bug::None)))
    });
    assert_eq!(found, rows.map(|(name, _, _, states)| (name, states)));
}

/// The same with more failures at once: minutes, so only in the long mode.
#[test]
fn a_key_has_one_home_whatever_fails() {
    use small::Budget;
    if std::env::var_os("DIPC_LONG").is_none() {
        println!("skip: minutes, wants DIPC_LONG=1");
        return;
    }
    let all = Budget { cuts: 1, referee_kills: 1, short_timeouts: 1, ..CREATES };
    let rows = [
        ("lost twice", Budget { cuts: 2, short_timeouts: 2, ..CREATES }, Shorter::Node, 164_156),
        ("killed and cut", Budget { cuts: 1, referee_kills: 1, ..CREATES }, Shorter::Node, 35_800),
        ("restarted and cut", Budget { cuts: 1, node_kills: 1, ..CREATES }, Shorter::Node, 21_128),
        ("all, node first", all, Shorter::Node, 411_469),
        ("all, claim first", all, Shorter::Claim, 174_260),
        ("retired", Budget { cuts: 1, retirements: 1, ..CREATES }, Shorter::Node, 47_315),
        ("three claims", Budget { creates: 3, ..all }, Shorter::Node, 2_051_580),
    ];
    let found = rows.map(|(name, budget, shorter, _)| {
        (name, holds(one_key(budget, shorter, cluster::Bug::None)))
    });
    assert_eq!(found, rows.map(|(name, _, _, states)| (name, states)));
}

fn one_key(budget: small::Budget, shorter: Shorter, bug: cluster::Bug) -> explore::Explored {
    explore(Small::new(2, budget, shorter, bug), STATES_MAX)
}

#[test]
fn serving_before_all_reports_makes_two_homes() {
    let budget = small::Budget { referee_kills: 1, ..CREATES };
    let what = fails(one_key(budget, Shorter::Node, cluster::Bug::ServesBeforeAllReports));
    assert!(what.starts_with("TWO HOMES"), "{what}");
}

#[test]
fn clearing_the_void_mark_on_sending_makes_two_homes() {
    let budget = small::Budget { cuts: 2, short_timeouts: 1, ..CREATES };
    let what = fails(one_key(budget, Shorter::Node, cluster::Bug::ForgetsVoidOnSending));
    assert!(what.starts_with("TWO HOMES"), "{what}");
}

#[test]
fn creating_on_an_expired_claim_makes_two_homes() {
    let budget = small::Budget { short_timeouts: 1, ..CREATES };
    let what = fails(one_key(budget, Shorter::Claim, cluster::Bug::CreatesOnExpiredClaim));
    assert!(what.starts_with("TWO HOMES") || what.starts_with("AT REST"), "{what}");
}

#[test]
fn acting_before_the_record_is_written_is_found() {
    let budget = small::Budget { cuts: 1, short_timeouts: 1, referee_kills: 1, ..CREATES };
    let what = fails(one_key(budget, Shorter::Node, cluster::Bug::TrustsUnwrittenRecord));
    assert!(what.starts_with("TWO HOMES") || what.starts_with("ID"), "{what}");
}
