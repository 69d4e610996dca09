//! The invariants of `repository`, each broken on purpose from outside: what sc then does.

use std::fs;
use std::os::unix::fs::symlink;

use nix::sys::signal::Signal;

use crate::node::{Fifo, Node, inode, md5, tar_gz};

fn words(node: &Node) -> String {
    let archive = tar_gz(
        node,
        "d.tar.gz",
        &[("a", "1"), ("bin/b", "2"), ("bin/c", "3")],
    );
    format!(
        "--name=r file:{} md5:{} tar",
        archive.display(),
        md5(&archive)
    )
}

const WHOLE: &[&str] = &[
    ".sc.r",
    ".sc.r/CACHEDIR.TAG",
    ".sc.r/journal",
    ".sc.r/lock",
    ".sc.r/repofile.last",
    "r",
    "r/a",
    "r/bin",
    "r/bin/b",
    "r/bin/c",
    "r/d.tar.gz",
    "r/d.tar.gz.list",
    "r/repofile",
];

#[test]
fn i1_a_loader_whose_lock_was_taken_away_changes_nothing_more() {
    let node = Node::new();
    let words = words(&node);
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use --id=1 {words}"))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    fs::remove_file(node.path(".sc.r/lock")).unwrap();
    // another one locks a new file, and still must not load beside the first
    let mut second = node.sc(&format!("--use --id=2 {words}")).spawn();
    second.wait_for("is loading `");
    drop(pause);
    assert_eq!(loader.end().0, 74);
    assert!(
        loader.said.contains("sc: lost the lock `"),
        "{}",
        loader.said
    );
    assert_eq!(second.end(), (0, String::new()));
    node.assert_paths(WHOLE);
    node.sc("--unuse --name=r --id=1")
        .status(255)
        .stderr("sc: `{}/r` is not held by {}")
        .run();
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn i2_whoever_reads_the_repofile_while_it_changes_sees_the_old_one_whole() {
    use std::io::Read;
    let node = Node::new();
    node.sc("--use --name=r --id=1").run();
    let path = node.path("r/repofile");
    let (mut before, was) = (fs::File::open(&path).unwrap(), inode(&path));
    let text = fs::read_to_string(&path).unwrap();
    node.sc("--use --name=r --id=2").run();
    assert_ne!(inode(&path), was);
    let mut seen = String::new();
    before.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, text);
}

#[test]
fn i2_a_repofile_cut_by_a_killed_reference_does_not_lose_its_holders() {
    for cut in ["", "{\"state\": \"O"] {
        let node = Node::new();
        let words = words(&node);
        let mut job = node.job();
        assert_eq!(job.sc(&format!("--use {words}")).0, 0);
        let data = inode(&node.path("r/a"));
        fs::write(node.path("r/repofile"), cut).unwrap();
        node.sc(&format!("-v --use {words}"))
            .stderr("sc: `{}/r/repofile` is cut; what it said before is known")
            .run();
        assert_eq!(
            inode(&node.path("r/a")),
            data,
            "nothing was loaded under a holder"
        );
        node.sc("--unuse --name=r").run();
        node.assert_paths(WHOLE);
        fs::write(node.path("r/repofile"), cut).unwrap();
        assert_eq!(job.sc("--unuse --name=r"), (0, String::new()));
        node.assert_empty();
    }
}

#[test]
fn i2_a_commit_killed_between_its_two_copies_does_not_lose_the_holders_either() {
    let node = Node::new();
    let words = words(&node);
    let mut job = node.job();
    assert_eq!(job.sc(&format!("--use {words}")).0, 0);
    let (last, next) = (".sc.r/repofile.last", ".sc.r/repofile.next");
    fs::rename(node.path(last), node.path(next)).unwrap();
    fs::write(node.path("r/repofile"), "").unwrap();
    node.sc(&format!("-v --use {words}"))
        .stderr("sc: `{}/r/repofile` is cut; what it said before is known")
        .run();
    node.sc("--unuse --name=r").run();
    node.assert_paths(WHOLE);
    assert_eq!(job.sc("--unuse --name=r"), (0, String::new()));
    node.assert_empty();
}

#[test]
fn i2_a_repofile_of_which_nothing_is_known_any_more_is_loaded_anew() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    fs::write(node.path("r/repofile"), "").unwrap();
    fs::remove_file(node.path(".sc.r/repofile.last")).unwrap();
    node.sc(&format!("--use {words}")).run();
    node.assert_paths(WHOLE);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn i3_what_the_journal_does_not_name_is_never_deleted() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    // a job's own file, beside and below ours, and one that took the place of ours
    fs::write(node.path("r/mine"), "m").unwrap();
    fs::write(node.path("r/bin/mine"), "m").unwrap();
    fs::write(node.outside("new"), "not the archive's").unwrap();
    fs::rename(node.outside("new"), node.path("r/bin/c")).unwrap();
    node.sc("--unuse --name=r")
        .stderr(
            "sc: warning: `{}/r/bin/{}` did not come from sc and stays\n\
             sc: warning: `{}/r/bin/{}` did not come from sc and stays\n\
             sc: warning: `{}/r` stays: `{}` and 1 more in it did not come from sc",
        )
        .run();
    node.assert_paths(&["r", "r/bin", "r/bin/c", "r/bin/mine", "r/mine"]);
    assert_eq!(node.tree()["r/bin/c"], "not the archive's");
}

#[test]
fn i3_a_file_in_the_way_is_an_error_that_names_it_and_stays() {
    let node = Node::new();
    let words = words(&node);
    fs::create_dir_all(node.path("r/bin")).unwrap();
    fs::write(node.path("r/bin/c"), "mine").unwrap();
    let before = node.tree();
    node.sc(&format!("--use {words}"))
        .status(77)
        .stderr(
            "sc: `{}/r/bin/c` was there before the load, which would bring a file of that name\n\
             hint: move it away, or choose another `--name`",
        )
        .run();
    assert_eq!(node.tree()["r/bin/c"], "mine");
    let ours = |path: &&String| !path.starts_with(".sc.r") && *path != "r/repofile";
    let visible: Vec<_> = node.tree().into_keys().filter(|path| ours(&path)).collect();
    assert_eq!(
        visible,
        before.into_keys().collect::<Vec<_>>(),
        "nothing partial is visible"
    );
    fs::remove_file(node.path("r/bin/c")).unwrap();
    node.sc(&format!("--use {words}")).run();
    node.sc("--unuse --name=r").run();
    node.assert_paths(&["r", "r/bin"]);
}

#[test]
fn i3_killed_while_a_file_is_in_the_way_leaves_that_file() {
    let node = Node::new();
    let words = words(&node);
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use {words}"))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    fs::create_dir(node.path("r/bin")).unwrap();
    fs::write(node.path("r/bin/b"), "mine").unwrap();
    loader.signal(Signal::SIGKILL);
    loader.end();
    drop(pause);
    node.sc(&format!("--use {words}"))
        .status(77)
        .stderr("sc: `{}/r/bin/b` was there before{}\nhint: {}")
        .run();
    assert_eq!(node.tree()["r/bin/b"], "mine");
}

#[test]
fn i4_a_stamp_that_does_not_parse_is_no_stamp() {
    let node = Node::new();
    let words = words(&node);
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use {words}"))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    loader.signal(Signal::SIGKILL);
    loader.end();
    drop(pause);
    let journal = node.path(".sc.r/journal");
    let mut bytes = fs::read(&journal).unwrap();
    let stamp = bytes
        .windows(7)
        .rposition(|window| window == b"\"stamp\"")
        .unwrap();
    bytes[stamp + 20] ^= 1;
    fs::write(&journal, bytes).unwrap();
    node.sc(&format!("-v --use {words}"))
        .stderr(
            "sc: loading `{}/r`: its loader died\n\
             sc: `file:{}`: done already\n\
             sc: `md5:{}`: done already\n\
             sc: `tar`",
        )
        .run();
    node.assert_paths(WHOLE);
}

#[test]
fn i5_ok_with_an_entry_gone_is_loaded_anew_unless_somebody_holds_it() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 {words}")).run();
    fs::remove_file(node.path("r/a")).unwrap();
    node.sc(&format!("--use --id=2 {words}"))
        .status(74)
        .stderr(
            "sc: `{}/r` is damaged: `a` is gone, and it is held by pid {} (`1`)\n\
             hint: it can be loaded anew when the holders have left",
        )
        .run();
    // the holder dies, which only its record tells
    let repofile = fs::read_to_string(node.path("r/repofile")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&repofile).unwrap();
    let ticks = json["sc"]["holders"][0]["start_ticks"].to_string();
    fs::write(node.path("r/repofile"), repofile.replace(&ticks, "1")).unwrap();
    node.sc(&format!("--use --id=2 {words}")).run();
    node.assert_paths(WHOLE);
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn i6_a_recycled_pid_is_not_taken_for_the_holder() {
    let node = Node::new();
    let mut job = node.job();
    assert_eq!(job.sc("--use --name=r"), (0, String::new()));
    let repofile = fs::read_to_string(node.path("r/repofile")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&repofile).unwrap();
    let ticks = json["sc"]["holders"][0]["start_ticks"].as_u64().unwrap();
    let recycled = repofile.replace(&ticks.to_string(), &(ticks - 500).to_string());
    fs::write(node.path("r/repofile"), recycled).unwrap();
    // the process that has the number now does not hold, and the first one is no holder any more
    assert_eq!(job.sc("-q --unuse --name=r").0, 255);
    node.sc("-v --use --name=r")
        .stderr("sc: pid {} is dead and holds no more")
        .run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn i6_a_live_holder_in_another_pid_namespace_is_not_reaped_nor_from_inside() {
    let node = Node::new();
    let mut job = node.job();
    if job.sh("unshare --fork --pid --mount-proc true").0 != 0 {
        eprintln!("SKIPPED: making a pid namespace needs root");
        return;
    }
    // inside, the shell is pid 1 of its own namespace; the use lasts as long as it
    let fifo = Fifo::new(&node);
    let hold = format!(
        "\"$SC\" --use --name=r --id=in && read x < '{}'",
        fifo.path().display()
    );
    node.file("inside", hold);
    let mut outside = node.job();
    outside.sh("unshare --fork --pid --mount-proc sh ./inside > inside.log 2>&1 & unshare=$!");
    let release = fifo.reached();
    node.sc("-v --use --name=r --id=out").run();
    assert_eq!(
        job.sh("unshare --fork --pid --mount-proc \"$SC\" -v --use --name=r --id=three --pid=1")
            .0,
        0
    );
    node.sc("--unuse --name=r --id=out").run();
    let text = fs::read_to_string(node.path("r/repofile")).unwrap();
    assert!(text.contains("\"id\":\"in\""), "{text}");
    drop(release);
    outside.sh("wait $unshare");
    // its namespace is empty now, which root in the first namespace sees
    node.sc("--use --name=r --id=out").run();
    node.sc("--unuse --name=r --id=out").run();
    node.assert_empty();
}

#[test]
fn i7_a_teardown_has_withdrawn_the_claim_before_it_takes_the_first_file() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    let fifo = Fifo::new(&node);
    let mut leaver = node
        .sc("--unuse --name=r")
        .env("SC_PAUSE_AT", fifo.at("teardown"))
        .spawn();
    let pause = fifo.reached();
    let repofile = fs::read_to_string(node.path("r/repofile")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&repofile).unwrap();
    assert_eq!(
        (&json["state"], &json["readers"]),
        (&"UNKNOWN".into(), &serde_json::json!([]))
    );
    leaver.signal(Signal::SIGKILL);
    leaver.end();
    drop(pause);
    node.sc(&format!("--use {words}")).run();
    node.assert_paths(WHOLE);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn i8_who_waited_for_a_lock_file_that_was_deleted_meanwhile_takes_the_new_one() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 {words}")).run();
    let fifo = Fifo::new(&node);
    let mut leaver = node
        .sc("--unuse --name=r --id=1")
        .env("SC_PAUSE_AT", fifo.at("teardown"))
        .spawn();
    let pause = fifo.reached();
    let mut waiter = node.sc(&format!("--use --id=2 {words}")).spawn();
    waiter.wait_for("waiting: another sc is at work on");
    drop(pause);
    assert_eq!(leaver.end().0, 0, "{}", leaver.said);
    assert_eq!(waiter.end().0, 0, "{}", waiter.said);
    node.assert_paths(WHOLE);
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn i9_a_symlink_in_place_of_the_repository_is_refused() {
    let node = Node::new();
    let words = words(&node);
    fs::create_dir(node.outside("victim")).unwrap();
    symlink(node.outside("victim"), node.path("r")).unwrap();
    node.sc(&format!("--use {words}"))
        .status(77)
        .stderr("sc: `{}/r` is no directory\nhint: move it away, or choose another `--name`")
        .run();
    assert!(crate::node::tree(&node.outside("victim")).is_empty());
    node.assert_paths(&["r"]);
}

#[test]
fn i9_a_directory_swapped_for_a_symlink_is_not_followed_by_teardown() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    fs::rename(node.path("r/bin"), node.outside("bin")).unwrap();
    symlink(node.outside("bin"), node.path("r/bin")).unwrap();
    node.sc("--unuse --name=r")
        .stderr("sc: warning: `{}/r` stays: `bin` in it did not come from sc")
        .run();
    node.assert_paths(&["r", "r/bin"]);
    assert_eq!(
        crate::node::tree(&node.outside("bin")).len(),
        2,
        "what the link points to is whole"
    );
}
