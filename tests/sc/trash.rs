//! The deletion after the last `--unuse`: without the lock, on several threads, by one at a time.

use std::fs;

use nix::sys::signal::Signal;

use crate::node::{Fifo, Node, tar_gz, tree};

/// The members, with their directories, the repofile and the list of members.
const WHOLE: usize = 600 + 30 + 6 + 2;

/// Words for `file:` and `tar` of an archive that takes more than one thread to delete.
fn large(node: &Node) -> String {
    let names: Vec<String> = (0..600)
        .map(|n| format!("d{}/e{}/f{n}", n / 100, n / 20))
        .collect();
    let members: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    let archive = tar_gz(node, "large.tar.gz", &members);
    format!("--name=r file:{} tar:drop", archive.display())
}

fn trashes(node: &Node) -> usize {
    let control = fs::read_dir(node.path(".sc.r")).unwrap();
    control
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("trash-")
        })
        .count()
}

#[test]
fn a_new_load_need_not_wait_for_the_deletion() {
    let node = Node::new();
    let words = large(&node);
    node.sc(&format!("--use {words}")).run();
    let fifo = Fifo::new(&node);
    let mut leaver = node
        .sc("--unuse --name=r")
        .env("SC_PAUSE_AT", fifo.at("trash"))
        .spawn();
    let pause = fifo.reached();
    assert!(!node.path("r").exists());

    node.sc(&format!("--use {words}")).run();
    let loaded = tree(&node.path("r"));
    assert_eq!(loaded.len(), WHOLE);
    assert_eq!(trashes(&node), 1, "it was not for the second one to delete");
    drop(pause);
    assert_eq!(leaver.end().0, 0, "{}", leaver.said);
    assert_eq!(trashes(&node), 0);
    assert_eq!(tree(&node.path("r")), loaded);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn the_last_of_two_deletions_takes_the_control_directory_away() {
    let node = Node::new();
    let words = large(&node);
    node.sc(&format!("--use {words}")).run();
    let fifo = Fifo::new(&node);
    let mut leaver = node
        .sc("--unuse --name=r")
        .env("SC_PAUSE_AT", fifo.at("trash"))
        .spawn();
    let pause = fifo.reached();
    node.sc(&format!("--use {words}")).run();
    node.sc("--unuse --name=r").run();
    assert_eq!(trashes(&node), 1);
    drop(pause);
    assert_eq!(leaver.end().0, 0, "{}", leaver.said);
    node.assert_empty();
}

#[test]
fn a_directory_that_somebody_makes_during_the_deletion_is_his() {
    let node = Node::new();
    let words = large(&node);
    node.sc(&format!("--use {words}")).run();
    let fifo = Fifo::new(&node);
    let mut leaver = node
        .sc("--unuse --name=r")
        .env("SC_PAUSE_AT", fifo.at("trash"))
        .spawn();
    let pause = fifo.reached();
    fs::create_dir(node.path("r")).unwrap();
    leaver.signal(Signal::SIGKILL);
    leaver.end();
    drop(pause);
    node.sc(&format!("--use {words}")).run();
    assert_eq!(trashes(&node), 0, "nobody was at it any more");
    node.sc("--unuse --name=r").run();
    node.assert_paths(&["r"]);
}

#[test]
fn a_load_that_finds_no_room_waits_for_the_deletion_beside_it() {
    let node = Node::new();
    let words = large(&node);
    node.sc(&format!("--use {words}")).run();
    let fifo = Fifo::new(&node);
    let mut leaver = node
        .sc("--unuse --name=r")
        .env("SC_PAUSE_AT", fifo.at("trash"))
        .spawn();
    let pause = fifo.reached();
    let mut loader = node
        .sc(&format!("--use {words}"))
        .env("SC_FAULT_AT", "100:28")
        .spawn();
    loader.wait_for("sc: waiting: another sc is still deleting what was in");
    drop(pause);
    assert_eq!(leaver.end().0, 0, "{}", leaver.said);
    assert_eq!(loader.end().0, 0, "{}", loader.said);
    assert_eq!(tree(&node.path("r")).len(), WHOLE);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_deletion_killed_on_any_of_its_threads_is_finished_by_the_next() {
    let mut killed = 0;
    // one in 61: a prime, so that no rhythm of the tree keeps a kind of point from being met
    for n in (1..).step_by(61) {
        let node = Node::new();
        let words = large(&node);
        node.sc(&format!("--use {words}")).run();
        let output = node
            .sc("--unuse --name=r")
            .env("SC_CRASH_AT", n.to_string())
            .output();
        if output.status.success() {
            break;
        }
        killed += 1;
        node.sc(&format!("--use {words}")).run();
        assert_eq!(tree(&node.path("r")).len(), WHOLE, "after SC_CRASH_AT={n}");
        node.sc("--unuse --name=r").run();
        node.assert_empty();
    }
    assert!(killed > 9, "killed {killed} times only");
}

#[test]
fn a_deletion_that_meets_an_error_on_any_of_its_threads_says_so_once() {
    for n in [150, 300, 500] {
        let node = Node::new();
        let words = large(&node);
        node.sc(&format!("--use {words}")).run();
        let output = node
            .sc("--unuse --name=r")
            .env("SC_FAULT_AT", format!("{n}+:5"))
            .output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(74), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        node.sc(&format!("--use {words}")).run();
        node.sc("--unuse --name=r").run();
        node.assert_empty();
    }
}
