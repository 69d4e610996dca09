//! `--keep`, `--expires`, `--refresh`: what becomes of data that nobody holds. The time is what
//! `SC_UNIX_TIME` says.

use std::fs;
use std::path::PathBuf;

use crate::node::{Fifo, Node, Sc, inode, md5, tar_gz};

/// Some instant; hours after it are told by [`hour`].
pub const START: u64 = 1_800_000_000;

pub fn hour(hours: u64) -> String {
    (START + hours * 3600).to_string()
}

pub trait At {
    fn at(self, hours: u64) -> Self;
}

impl At for Sc {
    /// So many hours after the beginning of time.
    fn at(self, hours: u64) -> Sc {
        self.env("SC_UNIX_TIME", hour(hours))
    }
}

fn archive(node: &Node) -> PathBuf {
    tar_gz(node, "d.tar.gz", &[("a", "1"), ("bin/b", "22")])
}

fn words(node: &Node) -> String {
    let archive = archive(node);
    format!(
        "--name=r file:{} md5:{} tar",
        archive.display(),
        md5(&archive)
    )
}

#[test]
fn what_is_kept_is_there_for_the_next_use_without_a_load() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --keep=12h {words}")).at(0).run();
    let data = inode(&node.path("r/a"));
    node.sc("-v --unuse --name=r")
        .at(1)
        .stderr("sc: `{}/r` is kept until 2027-01-15T21:00:00Z")
        .run();
    assert_eq!(node.repofile("r")["readers"], serde_json::json!([]));
    assert_eq!(node.repofile("r")["state"], "OK");
    node.sc("--status --name=r")
        .at(2)
        .stdout(
            "location    {}/r\nstate       OK\ndefinition  {}\nloaded      2 h 0 min ago, in {} s\n\
             kept        until 2027-01-15T21:00:00Z (in 11 h 0 min)",
        )
        .run();
    // its time has run out, but nobody has taken it away
    node.sc(&format!("-v --use {words}")).at(20).run();
    assert_eq!(inode(&node.path("r/a")), data);
    assert_eq!(
        node.repofile("r")["sc"]["kept_until_unix_s"],
        serde_json::Value::Null
    );
    // the last `--keep` counts, whoever said it
    node.sc("--unuse --name=r --keep=0").run();
    node.assert_empty();
}

#[test]
fn only_the_last_to_leave_begins_the_time_and_a_run_does_too() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 {words}")).run();
    node.sc(&format!("--use --id=2 {words}")).run();
    node.sc("--unuse --id=1 --name=r --keep=1h").at(1).run();
    assert_eq!(
        node.repofile("r")["sc"]["kept_until_unix_s"],
        serde_json::Value::Null
    );
    node.sc("--unuse --id=2 --name=r").at(2).run();
    let until = &node.repofile("r")["sc"]["kept_until_unix_s"];
    assert_eq!(until, START + 3 * 3600);
    node.sc(&format!("--run {words} -- true"))
        .env("SC_KEEP", "2d")
        .at(3)
        .run();
    let until = &node.repofile("r")["sc"]["kept_until_unix_s"];
    assert_eq!(until, START + 51 * 3600);
    assert!(!node.path(".sc.r/holders").exists());
    node.sc(&format!("--run --keep=0 {words} -- true")).run();
    node.assert_empty();
}

#[test]
fn what_is_kept_and_damaged_is_loaded_anew() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--run --keep=1d {words} -- true")).run();
    fs::remove_file(node.path("r/a")).unwrap();
    node.sc(&format!("-v --use {words}"))
        .stderr("sc: loading `{}/r`: `a` is gone\nsc: `file:{}`\nsc: `md5:{}`\nsc: `tar`")
        .run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn what_is_kept_gives_way_to_another_definition() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--run --keep=1d {words} -- true")).run();
    let other = node.file("other", "x");
    let other = format!("--name=r file:{}", other.display());
    node.sc(&format!("--use {other}")).run();
    assert!(node.path("r/other").exists() && !node.path("r/a").exists());
    // new data, new terms: nobody has asked to keep these
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_disk_too_full_to_remember_keeps_nothing_and_loses_nothing() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    fs::write(node.path("r/mine"), "m").unwrap();
    let log = node.outside("points");
    node.sc("--unuse --name=r --keep=1h --id=nobody")
        .env("SC_POINTS_LOG", &log)
        .status(255)
        .stderr("{}")
        .run();
    let mut was_full = false;
    for n in 1..40 {
        node.sc(&format!("-q --use {words}")).run();
        let output = node
            .sc("--unuse --name=r --keep=1h")
            .env("SC_FAULT_AT", format!("{n}:28"))
            .output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(node.path("r/mine").exists(), "{said}");
        if said.contains("the data are not kept (`--keep`)") {
            assert_eq!(output.status.code(), Some(0), "{said}");
            assert!(!node.path("r/a").exists());
            was_full = true;
        }
    }
    assert!(was_full, "no fault hit the commit");
}

#[test]
fn a_killed_holder_had_wanted_it_kept_too() {
    let node = Node::new();
    let words = words(&node);
    let mut job = node.job();
    assert_eq!(
        job.sh(&format!(
            "SC_UNIX_TIME={} \"$SC\" --use --keep=12h {words}",
            hour(0)
        ))
        .0,
        0
    );
    job.kill();
    node.sc("--gc").at(1).run();
    assert_eq!(
        node.repofile("r")["sc"]["kept_until_unix_s"],
        START + 12 * 3600
    );
    node.sc("--gc").at(12).run();
    node.assert_empty();
}

#[test]
fn data_that_have_expired_are_loaded_anew_once_nobody_holds_them() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 --expires=2h --keep=1d {words}"))
        .at(0)
        .run();
    let first = inode(&node.path("r/a"));
    node.sc("--status --name=r")
        .at(1)
        .stdout(
            "location    {}\nstate       OK\ndefinition  {}\nloaded      1 h 0 min ago, in {} s\n\
             expires     2027-01-15T10:00:00Z (in 1 h 0 min)\nholder      {}",
        )
        .run();
    // held: joined as it is
    node.sc(&format!("--use --id=2 {words}")).at(3).run();
    assert_eq!(inode(&node.path("r/a")), first);
    node.sc("--unuse --id=1 --name=r").at(3).run();
    node.sc("--unuse --id=2 --name=r").at(3).run();
    fs::write(node.path("r/mine"), "m").unwrap();
    node.sc(&format!("-v --use {words}"))
        .at(4)
        .stderr("sc: loading `{}/r`: it has expired\nsc: `file:{}`\nsc: `md5:{}`\nsc: `tar`")
        .run();
    assert!(node.path("r/mine").exists());
    fs::remove_file(node.path("r/mine")).unwrap();
    assert_eq!(
        node.repofile("r")["sc"]["expires_unix_s"],
        serde_json::Value::Null
    );
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_later_use_changes_when_the_data_expire() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 --expires=2h {words}"))
        .at(0)
        .run();
    let expires = || node.repofile("r")["sc"]["expires_unix_s"].clone();
    assert_eq!(expires(), START + 2 * 3600);
    // from when they were loaded, not from now
    node.sc(&format!("--use --id=1 --expires=5h {words}"))
        .at(1)
        .run();
    assert_eq!(expires(), START + 5 * 3600);
    node.sc(&format!(
        "--use --id=2 --expires=2027-01-15T18:00:00+01:00 {words}"
    ))
    .at(1)
    .run();
    assert_eq!(expires(), START + 9 * 3600);
    node.sc("--unuse --id=1 --name=r").run();
    node.sc("--unuse --id=2 --name=r --keep=1d").at(2).run();
    // as this one wants them, they are too old
    node.sc(&format!("--use --expires=1h {words}")).at(3).run();
    assert_eq!(node.repofile("r")["sc"]["loaded_unix_s"], START + 3 * 3600);
    assert_eq!(expires(), START + 4 * 3600);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn refresh_loads_anew_unless_somebody_holds_the_data() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--run --keep=1d {words} -- true"))
        .at(0)
        .run();
    let loaded = || node.repofile("r")["sc"]["loaded_unix_s"].clone();
    assert_eq!(loaded(), START);
    node.sc(&format!("-v --use --refresh --id=1 {words}"))
        .at(1)
        .stderr("sc: loading `{}/r`: `--refresh`\nsc: `file:{}`\nsc: `md5:{}`\nsc: `tar`")
        .run();
    assert_eq!(loaded(), START + 3600);
    node.sc(&format!("--use --refresh --id=2 {words}"))
        .at(2)
        .stderr("sc: warning: `{}/r` is not loaded anew (`--refresh`): it is held by pid {} (`1`)")
        .run();
    assert_eq!(loaded(), START + 3600);
    node.sc("--unuse --id=1 --name=r").run();
    node.sc("--unuse --id=2 --name=r").run();
    node.assert_empty();
}

#[test]
fn who_waited_for_a_load_does_not_refresh_it() {
    let node = Node::new();
    let words = words(&node);
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use --id=1 {words}"))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .at(2)
        .spawn();
    let pause = fifo.reached();
    let mut waiter = node
        .sc(&format!("--use --refresh --id=2 {words}"))
        .at(1)
        .spawn();
    waiter.wait_for("waiting: ");
    drop(pause);
    assert_eq!(loader.end().0, 0);
    assert_eq!(waiter.end().0, 0);
    assert!(!waiter.said.contains("--refresh"), "{}", waiter.said);
    node.sc("--unuse --id=1 --name=r").run();
    node.sc("--unuse --id=2 --name=r").run();
    node.assert_empty();
}

#[test]
fn wrong_times_and_durations_are_usage_errors() {
    let node = Node::new();
    for (words, problem) in [
        ("--use --keep=1w", "`--keep`: `1w` is not a duration"),
        ("--use --keep=", "`--keep`: `` is not a duration"),
        (
            "--use --expires=never",
            "`--expires`: `never` is neither a duration nor a time",
        ),
        ("--use --expires=0", "`--expires`: `0` is no time at all"),
        (
            "--use --expires=2020-01-01T00:00:00Z",
            "`--expires`: `2020-01-01T00:00:00Z` has passed",
        ),
        ("--unuse --max-size=1K", "`--max-size`: `1K` is not a size"),
        (
            "--use --min-free=101%",
            "`--min-free`: `101%` is no part of a file system",
        ),
        (
            "--use --min-free=%",
            "`--min-free`: `%` is no part of a file system",
        ),
        (
            "--gc --older-than=x",
            "`--older-than`: `x` is not a duration",
        ),
        ("--gc --free=5%", "`--free`: `5%` is not a size"),
    ] {
        node.sc(words)
            .status(2)
            .stderr(format!("sc: {problem}\nhint: {{}}"))
            .run();
    }
    for (words, problem) in [
        (
            "--unuse --refresh",
            "`--refresh` means nothing without `--use` or `--run`",
        ),
        (
            "--use --dry-run",
            "`--dry-run` means nothing without `--gc` or `--clear`",
        ),
        ("--gc --force", "`--force` means nothing without `--clear`"),
        (
            "--clear --older-than=1d",
            "`--older-than` means nothing without `--gc`",
        ),
        ("--clear --free=1", "`--free` means nothing without `--gc`"),
        (
            "--gc --json",
            "`--json` means nothing without `--status` or `--list` or `--stats` or `--verify` or `--doctor`",
        ),
    ] {
        node.sc(words)
            .status(2)
            .stderr(format!("sc: {problem}"))
            .run();
    }
    for words in ["--gc --use", "--clear --gc", "--list --clear"] {
        node.sc(words)
            .status(2)
            .stderr("sc: {} exclude each other\nhint: {}")
            .run();
    }
    node.assert_empty();
}
