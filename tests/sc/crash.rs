//! Killed at every change of the disk, failed at every change of the disk: whatever is left, the
//! next process makes it right (I1 to I9), and nothing stays behind.
//!
//! The points are those of `durable`: the loop kills (or fails) the first change, the second, …
//! until a run completes. A floor under the number of points tells that they are still there.

use std::collections::BTreeMap;
use std::path::Path;

use crate::node::{Node, md5, tar_gz, tree};
use crate::server::{Running, Server};

pub struct Scenario {
    /// Serves the archive while the scenario lasts.
    _server: Running,
    pub words: String,
    whole: BTreeMap<String, String>,
}

impl Scenario {
    pub fn new(node: &Node) -> Scenario {
        let archive = tar_gz(
            node,
            "data.tar.gz",
            &[
                ("readme", "hello\n"),
                ("bin/one", "1"),
                ("bin/two", "22"),
                ("empty/", ""),
            ],
        );
        let server = Server::new()
            .body(std::fs::read(&archive).unwrap())
            .etag("\"1\"")
            .start();
        let url = server.url("/data.tar.gz");
        let words = format!("--name=ref http:{url} md5:{} tar", md5(&archive));
        let mut whole = tree(&node.outside("data.tar.gz.tree"));
        whole.insert("data.tar.gz".into(), content(&archive));
        whole.insert(
            "data.tar.gz.list".into(),
            "bin\nbin/one\nbin/two\nempty\nreadme\n".into(),
        );
        Scenario {
            _server: server,
            words,
            whole,
        }
    }

    /// The data is whole: everything under its final name with its content, and nothing else.
    #[track_caller]
    pub fn assert_whole(&self, root: &Path, when: &str) {
        let mut there = tree(root);
        assert!(there.remove("repofile").is_some(), "no repofile {when}");
        // what a kill inside the link lock leaves for the next one to break
        there.retain(|path, _| !path.starts_with("repofile.lock"));
        assert_eq!(there, self.whole, "{when}");
    }

    /// What must hold of any wreck: the repofile is absent or complete (I2), OK means whole (I5),
    /// and what has a final name has its final content (I9).
    #[track_caller]
    pub fn assert_sane(&self, node: &Node, when: &str) {
        let root = node.path("ref");
        if let Ok(text) = std::fs::read_to_string(root.join("repofile")) {
            let json: serde_json::Value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("I2: {error} {when}: {text:?}"));
            if json["state"] == "OK" {
                self.assert_whole(&root, when);
            }
        }
        for (path, content) in tree(&root) {
            if path != "repofile" && !path.starts_with("repofile.lock") {
                assert_eq!(self.whole.get(&path), Some(&content), "I9: {path} {when}");
            }
        }
    }
}

fn content(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()
}

#[track_caller]
pub fn use_and_unuse(node: &Node, scenario: &Scenario, when: &str) {
    node.sc(&format!("--use {}", scenario.words)).run();
    scenario.assert_whole(&node.path("ref"), when);
    node.sc("--unuse --keep=0 --name=ref").run();
    assert_eq!(node.tree(), BTreeMap::new(), "left behind {when}");
}

/// Runs `words` with `variable` set to `value(n)` for n = 1, 2, …, until a run has fewer points
/// than that; after each, looks at the wreck and lets fresh processes use and unuse it. Returns
/// the number of points.
fn each_point(
    prepare: impl Fn(&Node, &Scenario),
    words: impl Fn(&Scenario) -> String,
    variable: &str,
    value: impl Fn(u32) -> String,
) -> u32 {
    for n in 1..2000 {
        let node = Node::new();
        let scenario = Scenario::new(&node);
        prepare(&node, &scenario);
        let value = value(n);
        let log = node.outside("points");
        let output = node
            .sc(&words(&scenario))
            .env(variable, &value)
            .env("SC_POINTS_LOG", &log)
            .output();
        let when = format!("after {variable}={value}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{said} {when}");
        scenario.assert_sane(&node, &when);
        if words(&scenario).contains("--refresh") {
            // what was begun may have to be gone on with, which a plain use has no need of
            let again = node.sc(&words(&scenario)).output();
            assert!(again.status.success(), "{again:?} {when}");
            scenario.assert_whole(&node.path("ref"), &when);
        }
        use_and_unuse(&node, &scenario, &when);
        let reached = std::fs::read_to_string(&log).unwrap().lines().count();
        if reached < n as usize {
            assert!(output.status.success() && said.is_empty(), "{said}");
            return n - 1;
        }
    }
    panic!("no end of points")
}

fn nothing(_: &Node, _: &Scenario) {}

fn used(node: &Node, scenario: &Scenario) {
    node.sc(&format!("--use {}", scenario.words)).run();
}

fn use_words(scenario: &Scenario) -> String {
    format!("--use {}", scenario.words)
}

fn unuse_words(_: &Scenario) -> String {
    "--unuse --name=ref".into()
}

#[test]
fn a_load_killed_at_any_point_is_continued() {
    let points = each_point(nothing, use_words, "SC_CRASH_AT", |n| n.to_string());
    assert!(points > 40, "only {points} points");
}

/// Loaded, kept, and to be loaded anew.
fn kept(node: &Node, scenario: &Scenario) {
    node.sc(&format!("--run --keep=1d {} -- true", scenario.words))
        .env("SC_UNIX_TIME", "1700000000") // not in the second in which it is refreshed
        .run();
}

fn refresh_words(scenario: &Scenario) -> String {
    format!("--use --refresh {}", scenario.words)
}

#[test]
fn a_load_in_place_of_other_data_killed_at_any_point_is_continued() {
    let points = each_point(kept, refresh_words, "SC_CRASH_AT", |n| n.to_string());
    assert!(points > 50, "only {points} points");
}

#[test]
fn a_load_in_place_of_other_data_that_meets_a_full_disk_at_any_point_is_tried_again() {
    let points = each_point(kept, refresh_words, "SC_FAULT_AT", |n| format!("{n}:28"));
    assert!(points > 50, "only {points} points");
}

#[test]
fn a_load_in_place_of_other_data_that_meets_an_error_at_any_point_is_tried_again() {
    let points = each_point(kept, refresh_words, "SC_FAULT_AT", |n| format!("{n}:5"));
    assert!(points > 50, "only {points} points");
}

#[test]
fn an_unuse_killed_at_any_point_leaves_what_the_next_one_can_use() {
    let points = each_point(used, unuse_words, "SC_CRASH_AT", |n| n.to_string());
    assert!(points > 20, "only {points} points");
}

#[test]
fn a_load_that_meets_a_full_disk_at_any_point_is_tried_again() {
    let points = each_point(nothing, use_words, "SC_FAULT_AT", |n| format!("{n}:28"));
    assert!(points > 40, "only {points} points");
}

#[test]
fn a_load_that_meets_a_disk_that_stays_full_is_tried_again() {
    let points = each_point(nothing, use_words, "SC_FAULT_AT", |n| format!("{n}+:28"));
    assert!(points > 40, "only {points} points");
}

#[test]
fn an_unuse_that_meets_an_error_at_any_point_can_be_repaired() {
    let points = each_point(used, unuse_words, "SC_FAULT_AT", |n| format!("{n}:5"));
    assert!(points > 20, "only {points} points");
}

#[test]
fn an_unuse_that_meets_a_dead_disk_can_be_repaired() {
    let points = each_point(used, unuse_words, "SC_FAULT_AT", |n| format!("{n}+:5"));
    assert!(points > 20, "only {points} points");
}

#[test]
fn a_load_by_a_client_killed_at_any_point_alone_or_with_it_is_done_anew() {
    use nix::sys::signal::{Signal, killpg};
    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use std::os::unix::process::CommandExt;

    for with_its_group in [false, true] {
        for n in 1..2000 {
            let node = Node::new();
            let get = crate::modules::script(&node, "printf da > f; printf ta >> f");
            let sc = |words: &str| node.sc(words).env("SC_DIRAC_GET", &get);
            let mut killed = sc("--use --name=r dirac:/vo/f").env("SC_CRASH_AT", n.to_string());
            killed.command.process_group(0);
            let mut killed = killed.spawn();
            let leader = nix::unistd::Pid::from_raw(killed.pid());
            // not reaped yet: its number is still that of its group
            waitid(Id::Pid(leader), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
            if with_its_group {
                killpg(leader, Signal::SIGKILL).unwrap();
            }
            let (status, _) = killed.end();
            sc("--use --name=r dirac:/vo/f").run();
            assert_eq!(node.tree()["r/f"], "data", "after SC_CRASH_AT={n}");
            sc("--unuse --name=r").run();
            node.assert_empty();
            if status == 0 {
                assert!(n > 20, "only {n} points");
                break;
            }
        }
    }
}
