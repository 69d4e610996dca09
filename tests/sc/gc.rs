//! `--gc`: what goes, what stays, and in which order.

use std::fs;

use nix::sys::signal::Signal;

use crate::keep::{At, hour};
use crate::node::{Fifo, Node, md5, tar_gz};

/// A file of 100 kB and what loads it.
fn words(node: &Node) -> String {
    let file = node.outside("data");
    if !file.exists() {
        fs::write(&file, vec![b'x'; 100_000]).unwrap();
    }
    format!("file:{}", file.display())
}

/// Keeps `name`, last used at that hour.
fn keep(node: &Node, name: &str, hours: u64, keep: &str) {
    let words = words(node);
    node.sc(&format!(
        "--run --name={name} --keep={keep} {words} -- true"
    ))
    .at(hours)
    .run();
}

fn names(node: &Node) -> Vec<String> {
    let names = node.tree().into_keys();
    names
        .filter(|name| !name.contains('/') && !name.starts_with(".sc"))
        .collect()
}

#[test]
fn gc_deletes_what_has_been_kept_long_enough_and_leaves_the_rest() {
    let node = Node::new();
    keep(&node, "a", 0, "2h");
    keep(&node, "b", 0, "4h");
    keep(&node, "p/q/c", 0, "2h");
    let mut job = node.job();
    assert_eq!(job.sc(&format!("--use --name=held {}", words(&node))).0, 0);
    let before = node.tree();
    node.sc("--gc --dry-run")
        .at(3)
        .stdout(
            "11{}\t{}/a\tit was kept until 2027-01-15T10:00:00Z\n\
             11{}\t{}/p/q/c\tit was kept until 2027-01-15T10:00:00Z",
        )
        .run();
    assert_eq!(node.tree(), before, "a dry run changes nothing");
    node.sc("--gc").at(3).run();
    assert_eq!(names(&node), ["b", "held"]);
    node.sc("-v --gc")
        .at(4)
        .stderr("sc: `{}/b` is deleted: it was kept until 2027-01-15T12:00:00Z")
        .run();
    job.kill();
    node.sc("-v --gc")
        .stderr("sc: `{}/held` is deleted: its holders have died")
        .run();
    node.assert_empty();
}

#[test]
fn gc_takes_a_dead_holder_out_though_others_stay() {
    let node = Node::new();
    let mut job = node.job();
    assert_eq!(job.sc("--use --name=r --id=dead").0, 0);
    node.sc("--use --name=r").run();
    job.kill();
    node.sc("--gc").run();
    assert_eq!(node.repofile("r")["readers"].as_array().unwrap().len(), 1);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn gc_takes_what_has_expired_and_what_is_older_than_asked_and_no_younger_wreck() {
    let node = Node::new();
    let words = words(&node);
    keep(&node, "old", 0, "30d");
    keep(&node, "new", 20, "30d");
    node.sc(&format!(
        "--run --name=stale --keep=30d --expires=1h {words} -- true"
    ))
    .at(20)
    .run();
    node.sc("--use --name=broken file:/nowhere/x")
        .at(20)
        .status(66)
        .stderr("{}")
        .run();
    node.sc("--gc --dry-run --older-than=10h")
        .at(24)
        .stdout(
            "{}\t{}/old\tit was not used for 10 h 0 min\n\
             {}\t{}/stale\tit has expired",
        )
        .run();
    node.sc("--gc --older-than=10h").at(24).run();
    assert_eq!(names(&node), ["broken", "new"]);
    node.sc("--gc --dry-run")
        .at(24)
        .stdout("{}\t{}/broken\tits last load failed")
        .run();
    node.sc("--gc").at(24).run();
    assert_eq!(names(&node), ["new"]);
    node.sc("--gc --older-than=0").at(24).run();
    node.assert_empty();
}

#[test]
fn gc_sweeps_what_killed_processes_left() {
    let node = Node::new();
    let archive = tar_gz(&node, "d.tar.gz", &[("a", "1"), ("bin/b", "2")]);
    let words = format!(
        "--name=r file:{} md5:{} tar",
        archive.display(),
        md5(&archive)
    );
    let mut orphans = 0;
    for n in (1..200).step_by(3) {
        let killed = node
            .sc(&format!("--use {words}"))
            .env("SC_CRASH_AT", n.to_string())
            .output();
        if killed.status.success() {
            node.sc("--clear --force --name=r").run();
            break;
        }
        let listed = node.sc("--list").output();
        orphans += usize::from(String::from_utf8_lossy(&listed.stdout).contains("\norphan"));
        // its last commit was done: somebody holds it
        let repofile = fs::read_to_string(node.path("r/repofile")).unwrap_or_default();
        if repofile.starts_with("{\"state\":\"OK\"") {
            node.sc("--unuse --name=r").run();
        }
        node.sc("--gc").run();
        let left: Vec<_> = node.tree().into_keys().collect();
        assert_eq!(left, Vec::<String>::new(), "killed at {n}");
    }
    assert!(orphans > 10, "{orphans}");
    for n in (1..200).step_by(3) {
        node.sc(&format!("--use {words}")).run();
        let killed = node
            .sc("--unuse --name=r")
            .env("SC_CRASH_AT", n.to_string())
            .output();
        node.sc("--gc").run();
        if killed.status.success() {
            break;
        }
        // killed before it had given the use up
        if node.path("r/repofile").exists() {
            node.sc("--unuse --name=r").run();
        }
        node.assert_empty();
    }
}

#[test]
fn a_gc_killed_anywhere_is_finished_by_the_next() {
    let node = Node::new();
    for n in 1..200 {
        keep(&node, "r", 0, "1h");
        let output = node
            .sc("--gc")
            .at(2)
            .env("SC_CRASH_AT", n.to_string())
            .output();
        if output.status.success() {
            node.assert_empty();
            assert!(n > 10, "{n} points");
            return;
        }
        node.sc("--gc").at(2).run();
        node.assert_empty();
    }
    panic!("it never came to an end");
}

#[test]
fn gc_passes_over_what_is_busy_and_ends_well() {
    let node = Node::new();
    keep(&node, "b", 0, "1h");
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use --name=a {}", words(&node)))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    node.sc("--gc").at(2).run();
    assert_eq!(names(&node), ["a"]);
    // it judged without the lock, and met it locked
    let repofile = fs::read_to_string(node.path("a/repofile")).unwrap();
    let without = repofile.replace(&format!("\"writer\":{}", loader.pid()), "\"writer\":null");
    assert_ne!(repofile, without);
    fs::write(node.path("a/repofile"), without).unwrap();
    node.sc("-v --gc")
        .at(2)
        .stderr("sc: `{}/a` is passed over: another sc is at work there")
        .run();
    let mut waits = node.sc("--gc --timeout=600").at(2).spawn();
    waits.wait_for("waiting: ");
    drop(pause);
    assert_eq!(loader.end().0, 0, "{}", loader.said);
    assert_eq!(waits.end().0, 0, "{}", waits.said);
    assert_eq!(names(&node), ["a"]);
    node.sc("--unuse --name=a").run();
    node.assert_empty();
}

#[test]
fn gc_looks_again_under_the_lock() {
    let node = Node::new();
    keep(&node, "r", 0, "1h");
    // stopped where it takes the link lock: our flock is taken, nothing is judged yet
    let fifo = Fifo::new(&node);
    let mut gc = node
        .sc("--gc")
        .at(2)
        .env("SC_PAUSE_AT", fifo.at("create"))
        .spawn();
    let pause = fifo.reached();
    let repofile = fs::read_to_string(node.path("r/repofile")).unwrap();
    let me = std::process::id();
    // a reference has come meanwhile
    fs::write(
        node.path("r/repofile"),
        repofile.replace("\"readers\":[]", &format!("\"readers\":[{me}]")),
    )
    .unwrap();
    drop(pause);
    assert_eq!(gc.end().0, 0, "{}", gc.said);
    assert!(node.path("r/data").exists());
    node.sc("--unuse --name=r --keep=0").run();
    node.assert_empty();
}

#[test]
fn gc_evicts_the_least_recently_used_first_until_enough_is_free() {
    let node = Node::new();
    for (name, hours) in [("c", 1), ("a", 3), ("b", 2)] {
        keep(&node, name, hours, "30d");
    }
    // used again: not the oldest any more
    node.sc(&format!("--run --name=c {} -- true", words(&node)))
        .at(4)
        .run();
    let free = |node: &Node| {
        let stat = nix::sys::statvfs::statvfs(node.base()).unwrap();
        stat.blocks_available() * stat.fragment_size()
    };
    // more than there ever is: all goes, in this order, and it is told that it was not enough
    let much = free(&node) + 1_000_000_000_000;
    node.sc(&format!("--gc --dry-run --free={much}"))
        .at(5)
        .stdout(
            "{}\t{}/b\tit is evicted to make room\n\
             {}\t{}/a\tit is evicted to make room\n\
             {}\t{}/c\tit is evicted to make room",
        )
        .stderr("sc: warning: `{}` has {} free, not {}: nothing more is kept there")
        .run();
    node.sc("--gc --free=1 --min-free=1").at(5).run();
    assert_eq!(names(&node), ["a", "b", "c"]);
    node.sc(&format!("-v --gc --free={much}"))
        .at(5)
        .stderr(
            "sc: `{}/b` is deleted: it is evicted to make room\n\
             sc: `{}/a` is deleted: it is evicted to make room\n\
             sc: `{}/c` is deleted: it is evicted to make room\n\
             sc: warning: `{}` has {} free, not {}: nothing more is kept there",
        )
        .run();
    node.assert_empty();
}

#[test]
fn max_size_is_kept_by_each_unuse_and_by_gc() {
    let node = Node::new();
    let words = words(&node);
    for (name, hours) in [("a", 1), ("b", 2), ("c", 3)] {
        node.sc(&format!(
            "--run --name={name} --keep=30d --max-size=250kB {words} -- true"
        ))
        .at(hours)
        .run();
    }
    // two of 100 kB, with what sc itself needs, are all that fits
    assert_eq!(names(&node), ["b", "c"]);
    node.sc("--gc --dry-run --max-size=150kB")
        .at(4)
        .stdout("{}\t{}/b\tmore than `--max-size` is kept")
        .run();
    node.sc("--gc").env("SC_MAX_SIZE", "150kB").at(4).run();
    assert_eq!(names(&node), ["c"]);
    node.sc(&format!(
        "-v --run --name=d --keep=1d --max-size=50kB {words} -- true"
    ))
    .at(5)
    .stderr(
        "sc: loading `{}/d`: it is not there yet\nsc: `file:{}`\n\
             sc: `{}/d` is not kept: it has 100 kB, and no more than 50 kB may be kept \
             (`--max-size`)\n\
             sc: `{}/d`: the last has left\n\
             sc: `{}/c` is deleted: it is evicted to make room",
    )
    .run();
    node.assert_empty();
}

#[test]
fn gc_touches_nothing_that_is_not_ours() {
    let node = Node::new();
    // a directory, a file of a repofile's name, a repofile of the reference with its data
    fs::create_dir_all(node.path("project/.sc.nothing")).unwrap();
    fs::remove_dir(node.path("project/.sc.nothing")).unwrap();
    fs::write(node.path("project/repofile"), "my own file").unwrap();
    fs::write(node.path("project/data"), "x").unwrap();
    fs::create_dir(node.path("theirs")).unwrap();
    fs::write(node.path("theirs/f"), "data").unwrap();
    fs::write(
        node.path("theirs/repofile"),
        r#"{"state": "OK", "readers": [], "writer": null}"#,
    )
    .unwrap();
    fs::create_dir(node.path("failed")).unwrap();
    fs::write(node.path("failed/half"), "data").unwrap();
    fs::write(
        node.path("failed/repofile"),
        r#"{"state": "BROKEN", "readers": [999999999], "writer": null}"#,
    )
    .unwrap();
    std::os::unix::fs::symlink(node.path("theirs"), node.path(".sc.link")).unwrap();
    fs::write(node.path(".sc.file"), "x").unwrap();
    let before = node.tree();
    node.sc("--gc --older-than=0").at(1000).run();
    node.sc("--gc --free=1000TB")
        .at(1000)
        .stderr("sc: warning: {}: nothing more is kept there")
        .run();
    assert_eq!(node.tree(), before);
    node.sc("--gc -d /nowhere:/proc").run();
}

#[test]
fn gc_removes_a_state_file_without_data() {
    let node = Node::new();
    fs::create_dir(node.path("failed")).unwrap();
    fs::write(
        node.path("failed/repofile"),
        r#"{"state": "BROKEN", "readers": [999999999], "writer": null}"#,
    )
    .unwrap();
    let me = std::process::id();
    fs::create_dir(node.path("begun")).unwrap();
    fs::write(
        node.path("begun/repofile"),
        format!(r#"{{"state": "UNKNOWN", "readers": [], "writer": {me}}}"#),
    )
    .unwrap();
    node.sc("--gc --dry-run")
        .stdout("0\t{}/failed\tthere is nothing but a state file")
        .run();
    node.sc("--gc").run();
    node.assert_paths(&["begun", "begun/repofile"]);
}

#[test]
fn gc_finishes_for_a_reference_that_deleted_what_was_kept() {
    let node = Node::new();
    keep(&node, "r", 0, "30d");
    fs::remove_dir_all(node.path("r")).unwrap();
    node.sc("--gc --older-than=1d").run();
    node.assert_paths(&[
        ".sc.r",
        ".sc.r/CACHEDIR.TAG",
        ".sc.r/journal",
        ".sc.r/lock",
        ".sc.r/repofile.last",
    ]);
    node.sc("--gc").run();
    node.assert_empty();
}

#[test]
fn a_state_file_that_a_cleaner_took_is_no_reason_to_delete_under_its_holder() {
    let node = Node::new();
    node.sc(&format!("--use --name=r {}", words(&node))).run();
    fs::remove_file(node.path("r/repofile")).unwrap();
    node.sc("--gc --dry-run").run();
    node.sc("--gc").run();
    assert!(node.path("r/data").exists());
    let last = node.path(".sc.r/repofile.last");
    fs::copy(last, node.path("r/repofile")).unwrap();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn trash_of_which_nothing_is_known_is_reported_and_goes_by_clear_force_alone() {
    let node = Node::new();
    fs::create_dir_all(node.path(".sc.r/trash-x/data/d")).unwrap();
    fs::write(node.path(".sc.r/trash-x/data/d/f"), "x").unwrap();
    for dir in [".sc.r", ".sc.r/trash-x", ".sc.r/trash-x/data"] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(node.path(dir), fs::Permissions::from_mode(0o700)).unwrap();
    }
    node.sc("--gc")
        .stderr("sc: warning: `{}/.sc.r/trash-x` stays: no journal says what may be deleted in it")
        .run();
    assert!(node.path(".sc.r/trash-x/data/d/f").exists());
    node.sc("--clear --force --name=r").run();
    node.assert_empty();
}

#[test]
fn root_s_gc_acts_for_every_user_and_a_user_s_for_himself() {
    let node = Node::new();
    let as_nobody =
        |words: &str| format!("setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '{words}'");
    let mut job = node.job();
    if job.sh(&as_nobody("true")).0 != 0 {
        eprintln!("SKIPPED: acting as another user needs root and setpriv");
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let sc = node.outside("sc");
    // by another process: what this one has open for writing, a child of another thread may have
    let mut copy = std::process::Command::new("cp");
    copy.args([crate::node::SC.as_ref(), sc.as_path()]);
    assert!(copy.status().unwrap().success());
    for dir in [node.outside(""), node.base().to_owned()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o1777)).unwrap();
    }
    let file = node.file("data", "x");
    let load = |name: &str| {
        format!(
            "../sc --run -d . --name={name} --keep=1h file:{} -- true",
            file.display()
        )
    };
    let time = |hours| {
        format!(
            "cd \"$SC_DIRECTORIES\"; export SC_UNIX_TIME={};",
            hour(hours)
        )
    };
    let run = |job: &mut crate::node::Job, line: String| {
        let (status, said) = job.sh(&line);
        assert_eq!((status, said), (0, String::new()), "{line}");
    };
    run(&mut job, format!("{} {}", time(0), load("root")));
    run(
        &mut job,
        format!("{} {}", time(0), as_nobody(&load("user"))),
    );
    run(
        &mut job,
        format!("{} {}", time(0), as_nobody(&load("user2"))),
    );
    // a user sees what is his, and takes nothing else
    run(
        &mut job,
        format!(
            "{} {}",
            time(2),
            as_nobody("../sc --gc -d . --dry-run | grep -c user | grep -qx 2")
        ),
    );
    fs::set_permissions(node.path(".sc.root"), fs::Permissions::from_mode(0o755)).unwrap();
    run(
        &mut job,
        format!(
            "{} {}",
            time(2),
            as_nobody("../sc --gc -d . --dry-run | grep root | wc -l | grep -qx 0")
        ),
    );
    // killed in the middle, it leaves nothing that the owner cannot clear away
    let (status, _) = job.sh(&format!("{} SC_CRASH_AT=12 ../sc --gc -d .", time(2)));
    assert_eq!(status, 137);
    run(
        &mut job,
        format!("{} {}", time(2), as_nobody("../sc --gc -d .")),
    );
    assert_eq!(
        names(&node)
            .iter()
            .filter(|name| name.starts_with("user"))
            .count(),
        0
    );
    run(
        &mut job,
        format!("{} {}", time(0), as_nobody(&load("user"))),
    );
    run(&mut job, format!("{} ../sc --gc -d .", time(2)));
    // a journal of somebody else's is no guide to root's files
    run(
        &mut job,
        format!("{} {}", time(0), as_nobody(&load("user"))),
    );
    let root_s = node.file("root.json", "{}");
    let journal = fs::read_to_string(node.path(".sc.user/journal")).unwrap();
    for path in [root_s.to_str().unwrap(), "../../root.json"] {
        let (head, rest) = journal.split_once('\n').unwrap();
        let json = head[9..].replace(
            "\"repofile\":\"repofile\"",
            &format!("\"repofile\":\"{path}\""),
        );
        assert_ne!(json, head[9..]);
        let sum = crc32fast::hash(json.as_bytes());
        fs::write(
            node.path(".sc.user/journal"),
            format!("{sum:08x} {json}\n{rest}"),
        )
        .unwrap();
        run(
            &mut job,
            format!("{} ../sc --gc -d . --older-than=0 --free=1", time(2)),
        );
        assert_eq!(fs::read_to_string(&root_s).unwrap(), "{}");
        assert!(node.path("user/data").exists());
    }
    fs::write(node.path(".sc.user/journal"), journal).unwrap();
    run(&mut job, format!("{} ../sc --gc -d .", time(2)));
    assert!(!node.path("user").exists());
    // a control directory of another owner than its repository is nothing that root believes
    run(
        &mut job,
        format!("{} {}", time(0), as_nobody(&load("user"))),
    );
    job.sh(&format!("{} chown -R 65533 user", time(0)));
    job.sh(&format!("{} ../sc --gc -d .", time(2)));
    assert!(node.path("user/data").exists());
}

#[test]
fn a_signal_ends_a_gc_between_two_repositories() {
    let node = Node::new();
    for name in ["a", "b"] {
        keep(&node, name, 0, "1h");
    }
    let fifo = Fifo::new(&node);
    let mut gc = node
        .sc("--gc")
        .at(2)
        .env("SC_PAUSE_AT", fifo.at("teardown"))
        .spawn();
    let pause = fifo.reached();
    gc.signal(Signal::SIGTERM);
    drop(pause);
    let (status, _) = gc.end();
    assert!(status == 143 || status == 74, "{status}: {}", gc.said);
    node.sc("--gc").at(2).run();
    node.assert_empty();
}

#[test]
fn a_dry_run_lists_orphans_of_each_kind_with_their_bytes_and_gc_removes_them() {
    let node = Node::new();
    let file = node.file("data", vec![b'x'; 100_000]);
    let load = format!("file:{}", file.display());
    // a load that was killed: a repofile without data, and what is staged
    let fifo = Fifo::named(&node, "staged");
    let loader = node
        .sc(&format!("--use --name=staged {load}"))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    loader.signal(nix::sys::signal::Signal::SIGKILL);
    drop(pause);
    drop(loader);
    // a deletion that was killed: its trash
    node.sc(&format!("--use --name=trash {load}")).run();
    let fifo = Fifo::named(&node, "trashed");
    let leaver = node
        .sc("--unuse --name=trash")
        .env("SC_PAUSE_AT", fifo.at("trash"))
        .spawn();
    let pause = fifo.reached();
    leaver.signal(nix::sys::signal::Signal::SIGKILL);
    drop(pause);
    drop(leaver);
    assert!(!node.path("trash").exists() && node.path(".sc.trash").exists());
    // a control directory whose repository somebody deleted
    node.sc(&format!("--run --keep=9h --name=alone {load} -- true"))
        .run();
    fs::remove_dir_all(node.path("alone")).unwrap();
    // a state file of the Python program, alone
    fs::create_dir(node.path("state")).unwrap();
    let state = r#"{"state": "BROKEN", "readers": [], "writer": null}"#;
    fs::write(node.path("state/repofile"), state).unwrap();
    let output = node.sc("--gc --dry-run").output();
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<(u64, &str)> = text
        .lines()
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            (
                cells[0].parse().unwrap(),
                cells[1].rsplit('/').next().unwrap(),
            )
        })
        .collect();
    let names: Vec<&str> = rows.iter().map(|row| row.1).collect();
    assert_eq!(names, ["alone", "staged", "state", "trash"], "{text}");
    assert!(rows[1].0 >= 100_000 && rows[3].0 >= 100_000, "{text}");
    node.sc("--gc").run();
    node.assert_empty();
}
