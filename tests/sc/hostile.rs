//! Cleaners, references, other users, other namespaces, full disks: what they do while sc is at
//! work, or to what it left.

use std::fs;
use std::os::unix::fs::chown;

use nix::sys::signal::Signal;

use crate::node::{Fifo, Node, tar_gz};

fn archive(node: &Node) -> String {
    let archive = tar_gz(node, "d.tar", &[("a", "1"), ("bin/b", "2")]);
    format!("--name=r file:{} tar", archive.display())
}

#[test]
fn a_base_directory_that_was_deleted_is_an_error_and_no_endless_loop() {
    let node = Node::new();
    let mut job = node.job();
    job.sh("mkdir gone && cd gone && rmdir ../gone");
    let (status, said) = job.sh("timeout -s KILL 20 \"$SC\" --use -d . --name=r --pid=$$");
    assert_eq!(status, 74, "{said}");
    assert!(said.contains("no such file or directory"), "{said}");
}

#[test]
fn a_run_killed_at_any_point_leaves_nothing_that_the_next_one_cannot_remove() {
    for n in 1..500 {
        let node = Node::new();
        let words = archive(&node);
        let log = node.outside("points");
        let run = node
            .sc(&format!("--run {words} -- true"))
            .env("SC_CRASH_AT", n.to_string())
            .env("SC_POINTS_LOG", &log)
            .output();
        node.sc(&format!("--use {words}")).run();
        node.sc("--unuse --name=r").run();
        assert_eq!(node.tree().len(), 0, "after point {n}: {:?}", node.tree());
        if fs::read_to_string(&log).unwrap().lines().count() < n {
            assert!(run.status.success() && n > 60, "{run:?}");
            return;
        }
    }
    panic!("no end of points");
}

#[test]
fn a_refused_use_leaves_nothing() {
    let node = Node::new();
    node.sc("--use --name=r -f /nonexistent/state")
        .status(74)
        .stderr("sc: cannot open directory `/nonexistent`: no such file or directory")
        .run();
    node.assert_empty();
    fs::create_dir(node.path("r")).unwrap();
    if chown(node.path("r"), Some(12345), None).is_err() {
        eprintln!("SKIPPED: giving a directory away needs root");
        return;
    }
    node.sc("--use --name=r")
        .status(77)
        .stderr("sc: `{}/r` belongs to another user (uid 12345)\nhint: choose another `--name`")
        .run();
    node.assert_paths(&["r"]);
}

#[test]
fn root_does_not_load_by_a_control_directory_that_somebody_else_prepared() {
    let node = Node::new();
    let words = archive(&node);
    fs::create_dir(node.path(".sc.r")).unwrap();
    if chown(node.path(".sc.r"), Some(12345), None).is_err() {
        eprintln!("SKIPPED: giving a directory away needs root");
        return;
    }
    node.sc(&format!("--use {words}"))
        .status(77)
        .stderr("sc: `{}/.sc.r` is a control directory; it belongs to another user (uid 12345)\nhint: {}")
        .run();
    assert!(!node.path("r").exists());
}

#[test]
fn without_its_journal_a_repository_in_use_is_still_what_it_was() {
    let node = Node::new();
    let words = archive(&node);
    let other = node.file("other", "x");
    node.sc(&format!("--use {words} --id=1")).run();
    fs::remove_file(node.path(".sc.r/journal")).unwrap();
    node.sc(&format!("--use --name=r --id=2 file:{}", other.display()))
        .status(78)
        .stderr("sc: `{}/r` holds `file:{}d.tar tar`, not `file:{}other`, and is in use by {}\nhint: {}")
        .run();
    node.sc(&format!("--use {words} --id=2")).run();
    node.sc("--unuse --name=r --id=1").run();
    // the list tells what may go
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn a_repofile_deleted_during_the_load_is_written_anew_whole() {
    let node = Node::new();
    let words = archive(&node);
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use {words} --id=1"))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    fs::remove_file(node.path("r/repofile")).unwrap();
    drop(pause);
    assert_eq!(loader.end().0, 0, "{}", loader.said);
    let other = node.file("other", "x");
    node.sc(&format!("--use --name=r --id=2 file:{}", other.display()))
        .status(78)
        .stderr("sc: `{}/r` holds `file:{}d.tar tar`, not `file:{}other`, and is in use by {}\nhint: {}")
        .run();
    node.sc("--unuse --name=r --id=1").run();
    node.assert_empty();
}

#[test]
fn the_only_holder_may_have_his_damaged_data_loaded_anew() {
    let node = Node::new();
    let words = archive(&node);
    node.sc(&format!("--use {words}")).run();
    fs::remove_file(node.path("r/a")).unwrap();
    node.sc(&format!("--use {words}")).run();
    assert!(node.path("r/a").exists());
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_reference_that_broke_in_during_teardown_keeps_what_is_there() {
    let node = Node::new();
    let words = archive(&node);
    node.sc(&format!("--use {words}")).run();
    let fifo = Fifo::new(&node);
    let mut leaver = node
        .sc("--unuse --name=r")
        .env("SC_PAUSE_AT", fifo.at("teardown"))
        .spawn();
    let pause = fifo.reached();
    // as the reference does 25 s later: the link and its claim go, its own repofile comes
    for (path, _) in node.tree() {
        if path.starts_with("r/repofile.lock") {
            fs::remove_file(node.path(path)).unwrap();
        }
    }
    let me = std::process::id();
    let theirs = format!("{{\"state\": \"UNKNOWN\", \"readers\": [], \"writer\": {me}}}");
    fs::write(node.path("r/repofile"), &theirs).unwrap();
    drop(pause);
    assert_eq!(leaver.end().0, 0, "{}", leaver.said);
    // it may be writing into these very files: nothing more is taken away from under it
    assert_eq!(node.tree().remove("r/repofile"), Some(theirs));
    assert!(node.path("r/a").exists() && node.path("r/bin/b").exists());
}

#[test]
fn those_who_wait_for_a_reference_do_not_wake_each_other() {
    let node = Node::new();
    let words = archive(&node);
    fs::create_dir(node.path("r")).unwrap();
    let me = std::process::id();
    let loading = format!("{{\"state\": \"UNKNOWN\", \"readers\": [], \"writer\": {me}}}");
    fs::write(node.path("r/repofile"), loading).unwrap();
    let mut waiters: Vec<_> = (1..=2)
        .map(|id| {
            let log = node.outside(format!("points{id}"));
            let mut waiter = node
                .sc(&format!("--use {words} --id={id}"))
                .env("SC_POINTS_LOG", log)
                .spawn();
            waiter.wait_for("waiting: pid");
            waiter
        })
        .collect();
    for n in 0..1000 {
        let path = node.path(format!("r/{n}"));
        fs::write(&path, "").unwrap();
        fs::remove_file(path).unwrap();
    }
    // its load is done
    for name in ["d.tar", "d.tar.list"] {
        fs::write(node.path("r").join(name), "").unwrap();
    }
    let done = "{\"state\": \"OK\", \"readers\": [], \"writer\": null}";
    fs::write(node.outside("done"), done).unwrap();
    fs::rename(node.outside("done"), node.path("r/repofile")).unwrap();
    for (waiter, id) in waiters.iter_mut().zip(1..) {
        assert_eq!(waiter.end().0, 0, "{}", waiter.said);
        let points = fs::read_to_string(node.outside(format!("points{id}"))).unwrap();
        assert!(points.lines().count() < 60, "{points}");
    }
}

#[test]
fn a_loader_killed_in_another_pid_namespace_is_not_waited_for() {
    let node = Node::new();
    let words = archive(&node);
    let mut job = node.job();
    if job.sh("unshare --fork --pid --mount-proc true").0 != 0 {
        eprintln!("SKIPPED: making a pid namespace needs root");
        return;
    }
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use {words} --id=1"))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    loader.signal(Signal::SIGKILL);
    loader.end();
    drop(pause);
    let (status, said) = job.sh(&format!(
        "unshare --fork --pid --mount-proc \"$SC\" --no-wait --use {words} --id=2 --pid=1"
    ));
    assert_eq!((status, said.as_str()), (0, ""));
}

#[test]
fn the_last_unuse_makes_room_on_a_full_disk() {
    let mut done = 0;
    for n in 1..200 {
        let node = Node::new();
        let words = archive(&node);
        node.sc(&format!("--use {words}")).run();
        let log = node.outside("points");
        let unuse = node
            .sc("--unuse --name=r")
            .env("SC_FAULT_AT", format!("{n}:28"))
            .env("SC_POINTS_LOG", &log)
            .output();
        let label = fs::read_to_string(&log).unwrap();
        let label = label
            .lines()
            .nth(n - 1)
            .map(|line| line.split_once(' ').unwrap().1);
        match label {
            // what takes room: the next repofile, the trash
            Some("write" | "mkdir") => {
                assert!(unuse.status.success(), "point {n}: {unuse:?}");
                node.assert_empty();
                done += 1;
            }
            Some(_) => {}
            None => break,
        }
    }
    assert!(done >= 3, "{done}");
}

#[test]
fn a_disk_that_is_really_full_is_no_reason_to_stay() {
    let node = Node::new();
    let words = archive(&node);
    let mut job = node.job();
    let base = node.base().display();
    let script = format!(
        "mount -t tmpfs -o size=400k none '{base}' || exit 99
         \"$SC\" --use {words} --id=1 --pid=$$ || exit 1
         dd if=/dev/zero of='{base}/fill' bs=1k status=none
         \"$SC\" --unuse --name=r --id=1 --pid=$$ || exit 2
         test \"$(ls -A '{base}')\" = fill"
    );
    node.file("script", script);
    let (status, said) = job.sh("unshare -m sh ./script");
    if status == 99 || said.contains("unshare") {
        eprintln!("SKIPPED: a mount needs root");
        return;
    }
    assert_eq!(status, 0, "{said}");
}

#[test]
fn where_directories_cannot_be_renamed_they_are_made_and_still_deleted() {
    let renames = |log: &str| -> Vec<String> {
        let is_rename = |line: &&str| line.ends_with(" rename");
        let number = |line: &str| line.split_once(' ').unwrap().0.to_owned();
        log.lines().filter(is_rename).map(number).collect()
    };
    let node = Node::new();
    let words = archive(&node);
    let log = node.outside("points");
    node.sc(&format!("--use {words}"))
        .env("SC_POINTS_LOG", &log)
        .run();
    let mut done = 0;
    for n in renames(&fs::read_to_string(&log).unwrap()) {
        let node = Node::new();
        let words = archive(&node);
        let used = node
            .sc(&format!("--use {words}"))
            .env("SC_FAULT_AT", format!("{n}:22"))
            .output();
        if used.status.success() {
            assert_eq!(node.tree()["r/bin/b"], "2");
            node.sc("--unuse --name=r").run();
            node.assert_empty();
            done += 1;
        }
    }
    assert_eq!(done, 1, "bin");
}
