//! The manual and its tests: each row of the comparison with the original in dipcd(8), each option
//! there, and each entry of dipc.conf(5) has tests that show its effect, and they are named here. A
//! row, option or entry without a test fails, and so does a test that is not there.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dipc_tests::programs::source_tree;

/// What the manual speaks of, and the tests of it: `chapter::function` of this binary, or
/// `path::function`.
type Tested = (&'static str, &'static [&'static str]);

/// The rows of the comparison: the original's manual in its order, from "Running dipcd" on.
const COMPARISON: &[Tested] = &[
    ("rights", &["sandbox::only_six_capabilities_are_kept"]),
    ("back door", &["manual::the_back_door_shows_and_changes_what_is_important"]),
    ("start", &["bad_input::without_dipcd_the_kernel_serves"]),
    ("stop", &["failures::an_orderly_end_leaves_no_process"]),
    ("messages", &["manual::messages_are_on_standard_error_and_traces_on_standard_output"]),
    (
        "-t",
        &[
            "manual::without_time_outs_a_call_waits_as_long_as_it_takes",
            "manual::without_time_outs_the_hold_time_stays",
            "dipcd/src/config/tests.rs::t_lifts_every_bound_but_the_hold_time",
        ],
    ),
    (
        "-u",
        &[
            "transports::hello_over_datagrams_in_a_storm",
            "transports_memory::segments_over_datagrams_in_a_storm",
            "transports::another_transport_is_refused_by_name",
        ],
    ),
    (
        "-n",
        &[
            "transports::hello_in_network_byte_order",
            "transports_memory::segments_in_network_byte_order",
            "transports::another_byte_order_is_refused_by_name",
            "dipcd/wire/tests/golden.rs::every_variant_has_its_bytes",
        ],
    ),
    (
        "-s",
        &[
            "admission::a_node_dials_nobody_who_may_not_take_part",
            "manual::a_list_is_needed_where_it_is_asked_for",
        ],
    ),
    (
        "-v",
        &[
            "logs::the_journey_of_a_message_can_be_read",
            "logs::the_journey_of_a_page_can_be_read",
            "logs::without_these_options_there_is_none_of_it",
        ],
    ),
    (
        "-c",
        &[
            "logs::what_is_converted_is_said_and_shown",
            "logs::nothing_is_converted_where_nothing_must_be",
        ],
    ),
    ("-d", &["logs::what_is_converted_is_said_and_shown"]),
    (
        "bundled",
        &[
            "dipcd/src/cli.rs::options_alone_and_bundled",
            "manual::messages_are_on_standard_error_and_traces_on_standard_output",
        ],
    ),
    ("dipc.conf", &["dipcd/src/config/tests.rs::errors_say_file_line_entry_expected_and_found"]),
    ("mandatory", &["bad_input::mandatory_entries_are_asked_for"]),
    ("omitted", &["dipcd/src/config/tests.rs::every_entry_has_a_row_and_a_good_default"]),
    ("0 or less", &["dipcd/src/config/tests.rs::every_entry_takes_the_good_and_refuses_the_bad"]),
    ("this_machine", &["manual::names_stand_for_addresses_everywhere"]),
    (
        "dipc_auto_find",
        &[
            "manual::dipc_auto_find_asks_for_the_name_of_the_machine",
            "manual::names_that_are_not_found_in_time_are_given_up",
        ],
    ),
    ("referee", &["manual::names_stand_for_addresses_everywhere"]),
    (
        "transfer_mode",
        &[
            "memory_options::a_page_comes_alone",
            "memory_options::a_whole_segment_comes_at_once",
            "bad_input::peers_that_do_not_fit_are_refused_by_name",
        ],
    ),
    (
        "dipc_page_size",
        &[
            "memory_options::a_page_may_be_longer_than_the_system_s",
            "bad_input::peers_that_do_not_fit_are_refused_by_name",
        ],
    ),
    (
        "inhibit_shm_signal",
        &[
            "memory_options::programs_hear_that_they_became_readers_and_writers",
            "memory_options::programs_are_spared_the_signals",
        ],
    ),
    (
        "employer_referee_timeout",
        &[
            "bad_input::a_referee_that_is_not_there_is_named",
            "manual::without_time_outs_a_call_waits_as_long_as_it_takes",
        ],
    ),
    (
        "employer_shm_timeout",
        &["memory_options::a_fault_that_waits_too_long_is_sigbus_and_nothing_else"],
    ),
    (
        "employer_worker_timeout",
        &["manual::operations_elsewhere_are_bounded_and_those_at_home_are_not"],
    ),
    ("shm_ak_timeout", &["memory_options::a_grant_that_is_not_acknowledged_ends_the_link"]),
    ("referee_timeout", &["manual::leave_to_create_ends_with_the_time_of_the_referee"]),
    ("shm_hold_timeout", &["memory_options::an_owner_keeps_a_page_for_the_hold_time"]),
    (
        "dipc.allow",
        &[
            "manual::names_stand_for_addresses_everywhere",
            "refusals::who_is_not_on_the_list_is_not_heard",
            "dipcd/src/allow.rs::lines_comments_and_forms",
        ],
    ),
    ("the referee in it", &["manual::a_list_is_needed_where_it_is_asked_for"]),
    (
        "who needs it",
        &["dipcd/src/allow.rs::who_needs_a_list", "manual::a_list_is_needed_where_it_is_asked_for"],
    ),
    ("SIGHUP", &["admission::a_withdrawn_address_loses_its_link_and_wires_at_once"]),
];

/// Options that the original did not have.
const OPTIONS: &[Tested] = &[
    ("--config", &["bad_input::a_missing_configuration_is_named"]),
    ("--single", &["manual_ours::a_node_by_itself_needs_no_file"]),
    ("--background", &["manual_ours::in_the_background_it_returns_when_it_is_ready"]),
    (
        "--check",
        &[
            "bad_input::a_bad_configuration_is_named_by_line",
            "dipcd/src/cli/check.rs::check_prints_ok_or_every_error",
        ],
    ),
    ("--make-key", &["manual_ours::a_key_is_made_once_and_for_its_owner"]),
    ("--purge", &["manual_ours::what_is_left_of_a_dipcd_is_purged_and_never_under_one_that_runs"]),
    ("--keeper", &["failures::the_keeper_dies_and_nobody_notices"]),
    ("--help", &["manual_ours::usage_and_version_are_printed_and_wrong_arguments_end_with_two"]),
    ("--version", &["manual_ours::usage_and_version_are_printed_and_wrong_arguments_end_with_two"]),
];

/// Entries that the original did not have.
const ENTRIES: &[Tested] = &[
    ("port", &["manual_ours::an_address_without_a_port_has_that_of_the_entry"]),
    ("socket", &["bad_input::a_second_dipcd_on_one_socket_is_refused"]),
    ("socket_mode", &["manual_ours::the_socket_is_for_whom_its_mode_and_group_say"]),
    (
        "socket_group",
        &[
            "manual_ours::the_socket_is_for_whom_its_mode_and_group_say",
            "orders::orders_are_for_root_and_the_group_alone",
        ],
    ),
    (
        "state_dir",
        &[
            "manual_ours::what_dipcd_keeps_is_its_owners_alone_and_in_its_place",
            "failures::a_restart_of_everything_but_the_kernels_keeps_the_objects",
        ],
    ),
    ("lib_dir", &["manual_ours::what_dipcd_keeps_is_its_owners_alone_and_in_its_place"]),
    ("allow_file", &["admission::a_withdrawn_address_loses_its_link_and_wires_at_once"]),
    (
        "cluster_key",
        &[
            "refusals::each_is_refused_with_one_line_and_no_effect",
            "dipcd/src/config/tests.rs::a_key_is_needed_off_loopback",
        ],
    ),
    ("cluster_key_next", &["admission::the_key_is_replaced_without_a_stop"]),
    ("cipher", &["manual_ours::who_listens_on_the_way_reads_messages_only_without_a_cipher"]),
    ("node_timeout", &["failures::the_home_dies_and_its_objects_with_it"]),
    (
        "lease",
        &["memory_failures::a_node_that_is_cut_off_uses_no_page_that_others_have_given_up_on"],
    ),
    ("heartbeat", &["manual_ours::a_sign_of_life_comes_each_heartbeat"]),
    (
        "keys",
        &[
            "manual_ours::keys_are_distributed_as_the_file_says_for_all_or_one_program",
            "orders::set_changes_every_entry_that_may_change",
        ],
    ),
    ("ftok", &["manual_ours::ftok_goes_by_the_path_if_it_is_told_to"]),
    ("shm_noreserve", &["memory_options::the_flag_may_have_its_new_meaning"]),
    ("home", &["placing::new_objects_live_where_home_says"]),
    ("send", &["dipcd/src/cli/check.rs::check_prints_ok_or_every_error"]),
    ("queue_on_loss", &["manual_ours::a_message_that_was_being_received_goes_back_or_not"]),
    (
        "identity",
        &[
            "users::accounts_are_found_by_name_or_by_number",
            "sandbox::without_root_a_dipcd_serves_its_own_user",
        ],
    ),
    ("root", &["users::root_of_another_node_is_squashed_unless_its_node_is_named"]),
    ("squash", &["users::root_of_another_node_is_squashed_unless_its_node_is_named"]),
    ("container_identity", &["users::a_program_in_a_container_is_refused_or_one_account"]),
    ("user_clients_max", &["users::one_user_has_a_share_and_no_more"]),
    ("user_objects_max", &["users::one_user_has_a_share_and_no_more"]),
    ("user_segment_bytes_max", &["memory_options::a_user_has_a_share_of_memory"]),
    ("trap", &["manual_ours::faults_are_caught_as_the_entry_says"]),
    ("kernel_faults", &["memory_options::system_calls_of_who_may_not_pass_absent_pages_fail"]),
    (
        "lost_page",
        &[
            "memory_failures::pages_of_a_lost_node_are_lost_and_others_are_not",
            "memory_failures::a_lost_page_may_be_served_stale",
        ],
    ),
    ("metrics", &["orders::metrics_are_read_over_http_at_an_address_and_at_a_path"]),
    ("mailbox", &["orders::dipcd_hosts_the_mailbox_server"]),
];

fn source(path: &str) -> String {
    let path = source_tree().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A section of a page, its escapes undone.
fn section(page: &str, title: &str) -> String {
    let text = source(&format!("conf/man/{page}"));
    let (_, rest) = text.split_once(&format!("\n.SH {title}\n")).expect("the section is there");
    let end = rest.find("\n.SH ").unwrap_or(rest.len());
    rest[..end].replace("\\-", "-")
}

/// The words that head the paragraphs of a section.
fn heads(section: &str) -> Vec<String> {
    let lines: Vec<&str> = section.lines().collect();
    let heads = lines.windows(2).filter(|pair| pair[0] == ".TP").map(|pair| pair[1]);
    let words = heads.flat_map(|head| head.split([' ', '"', ',']).skip(1));
    words
        .filter(|word| word.starts_with(|c: char| c == '-' || c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

/// The rows of the table of a section: its first column, and all of it.
fn rows(section: &str) -> Vec<(String, String)> {
    let (_, table) = section.split_once("\n.TS\n").expect("a table");
    let (table, _) = table.split_once("\n.TE\n").expect("it ends");
    let (_, body) = table.split_once(".\n").expect("its form ends with a dot");
    let mut rows: Vec<(String, String)> = Vec::new();
    for line in body.lines().filter(|line| *line != "_").skip(1) {
        match line.split_once("@T{") {
            Some((name, _)) if !line.starts_with("T}") => rows.push((name.into(), String::new())),
            _ => {
                let (_, row) = rows.last_mut().expect("a row begins with its name");
                *row += line;
                *row += "\n";
            }
        }
    }
    rows
}

fn names(tested: &[Tested]) -> Vec<String> {
    tested.iter().map(|(name, _)| (*name).to_owned()).collect()
}

#[test]
fn the_comparison_is_complete_and_in_the_order_of_the_original() {
    let rows = rows(&section("dipcd.8", "COMPARISON WITH THE ORIGINAL"));
    let found: Vec<String> = rows.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(found, names(COMPARISON));
    for (name, row) in &rows {
        // What the original did, and what is done here.
        assert_eq!(row.matches("T}").count(), 2, "{name}: {row}");
        for word in ["missing", "not yet", "this version", "to do"] {
            assert!(!row.to_lowercase().contains(word), "{name}: {word}: {row}");
        }
    }
    let (entries, original) = (heads(&section("dipc.conf.5", "ENTRIES")), 11);
    let theirs = found.iter().filter(|name| entries.contains(name)).cloned().collect::<Vec<_>>();
    assert_eq!(theirs, entries[..original], "the eleven entries");
}

#[test]
fn every_entry_of_the_page_has_a_test() {
    let entries = heads(&section("dipc.conf.5", "ENTRIES"));
    let (_, ours) = entries.split_at(11);
    assert_eq!(ours, names(ENTRIES));
    for entry in &entries {
        let words = section("dipc.conf.5", "ENTRIES");
        let (_, paragraph) = words.split_once(&format!("\n.B {entry}\n")).expect("its paragraph");
        let paragraph = paragraph.split("\n.TP").next().expect("it ends");
        let available = !paragraph.contains("not available") && !paragraph.contains("not in this");
        assert!(available || entry == "send", "{entry} is said to be missing");
    }
}

#[test]
fn every_option_of_the_page_has_a_test() {
    let original = COMPARISON.iter().filter(|(name, _)| name.starts_with('-'));
    let all: Vec<Tested> = original.chain(OPTIONS).copied().collect();
    assert_eq!(heads(&section("dipcd.8", "OPTIONS")), names(&all));
}

#[test]
fn every_test_that_is_named_is_there() {
    let (mut texts, main) = (BTreeMap::new(), source("tests/it/main.rs"));
    for (row, tests) in [COMPARISON, OPTIONS, ENTRIES].into_iter().flatten() {
        assert!(!tests.is_empty(), "{row} has no test");
        for test in *tests {
            let (place, function) = test.rsplit_once("::").expect("a place and a function");
            let path = match place.ends_with(".rs") {
                true => place.to_owned(),
                false => format!("tests/it/{place}.rs"),
            };
            let runs = place.ends_with(".rs") || main.contains(&format!("\nmod {place};\n"));
            assert!(runs, "{row}: no chapter {place} is run");
            let text = texts.entry(path.clone()).or_insert_with(|| source(&path));
            let (head, _) = text
                .split_once(&format!("fn {function}("))
                .unwrap_or_else(|| panic!("{row}: {path} has no {function}"));
            let before = head.trim_end().lines().rev().take(2).collect::<Vec<_>>();
            let is_test = before.iter().any(|line| line.trim() == "#[test]");
            assert!(is_test && !before.iter().any(|line| line.contains("ignore")), "{row}: {test}");
        }
    }
}

fn sources_below(directory: &Path, all: &mut String) {
    for entry in fs::read_dir(directory).expect("the source tree can be read").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources_below(&path, all);
        } else if path.extension().is_some_and(|of| of == "rs") {
            *all += &fs::read_to_string(&path).expect("a source file is text");
        }
    }
}

/// In THREATS.md too: in the last column, what is no code and joined by underscores is a test.
#[test]
fn every_test_that_the_threats_name_is_there() {
    let mut all = String::new();
    for directory in ["tests/it", "dipcd"] {
        sources_below(&source_tree().join(directory), &mut all);
    }
    let (threats, mut named) = (source("THREATS.md"), 0);
    for row in threats.lines().filter(|line| line.starts_with("| ") && !line.contains("---")) {
        let column = row.trim_end_matches([' ', '|']).rsplit(" | ").next().expect("a column");
        let prose = column.split('`').step_by(2);
        let words =
            prose.flat_map(|text| text.split(|c: char| !c.is_ascii_lowercase() && c != '_'));
        for test in words.filter(|word| word.matches('_').count() > 1) {
            assert!(all.contains(&format!("fn {test}(")), "there is no {test}: {row}");
            named += 1;
        }
    }
    assert!(named > 40, "the last column names tests: {named}");
}
