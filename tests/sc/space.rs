//! Room on the disk: claimed by loads under way, left free, made by eviction.

use std::fs;

use nix::sys::signal::Signal;

use crate::keep::START;
use crate::node::{Fifo, Node};

/// A part of what is free now, in bytes: what others write meanwhile makes no difference to it.
fn part_of_free(node: &Node, percent: u64) -> u64 {
    let stat = nix::sys::statvfs::statvfs(node.base()).unwrap();
    stat.blocks_available() * stat.fragment_size() / 100 * percent
}

fn words(node: &Node, name: &str, percent: u64) -> String {
    let file = node.file("data", "x");
    let size = part_of_free(node, percent);
    format!("--use --name={name} --size={size} file:{}", file.display())
}

const NO_ROOM: &str = "sc: no directory will do: `{}` has {} of the {} needed, {} claimed by other \
                       loads\nhint: {}";

#[test]
fn loads_under_way_do_not_count_the_same_free_bytes_twice() {
    let node = Node::new();
    let fifo = Fifo::new(&node);
    let mut first = node
        .sc(&words(&node, "p/one", 60))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    let claimed = fs::read_to_string(node.path("p/.sc.one/space")).unwrap();
    assert!(claimed.parse::<u64>().unwrap() > 0);
    node.sc(&words(&node, "two", 60))
        .status(73)
        .stderr(NO_ROOM)
        .run();
    assert!(!node.path(".sc.two").exists());
    // another directory of the same device is no way out
    let other = node.outside("other");
    fs::create_dir(&other).unwrap();
    let both = format!("{}:{}", other.display(), node.base().display());
    node.sc(&words(&node, "two", 60))
        .env("SC_DIRECTORIES", both)
        .status(73)
        .stderr("sc: no directory will do: `{}/other` has {}; `{}` has {}\nhint: {}")
        .run();
    node.sc(&words(&node, "small", 10)).run();
    node.sc("--unuse --name=small").run();
    drop(pause);
    assert_eq!(first.end().0, 0, "{}", first.said);
    assert!(!node.path("p/.sc.one/space").exists());
    // what the first one needed is spent, or was never needed
    node.sc(&words(&node, "two", 60)).run();
    node.sc("--unuse --name=two").run();
    node.sc("--unuse --name=p/one").run();
    node.assert_empty();
}

#[test]
fn a_claim_dies_with_its_loader() {
    let node = Node::new();
    let fifo = Fifo::new(&node);
    let mut first = node
        .sc(&words(&node, "one", 60))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    first.signal(Signal::SIGKILL);
    first.end();
    drop(pause);
    assert!(node.path(".sc.one/space").exists());
    node.sc(&words(&node, "two", 60)).run();
    node.sc("--unuse --name=two").run();
    node.sc("--use --name=one").run();
    node.sc("--unuse --name=one").run();
    node.assert_empty();
}

#[test]
fn of_two_that_have_chosen_at_once_one_gets_the_room() {
    let node = Node::new();
    let (one, two) = (Fifo::named(&node, "one"), Fifo::named(&node, "two"));
    // both have measured; neither has made anything yet
    let mut first = node
        .sc(&words(&node, "one", 60))
        .env("SC_PAUSE_AT", one.at("mkdir"))
        .spawn();
    let first_pause = one.reached();
    let mut second = node
        .sc(&words(&node, "two", 60))
        .env("SC_PAUSE_AT", two.at("publish"))
        .spawn();
    let second_pause = two.reached();
    drop(first_pause);
    assert_eq!(first.end().0, 73, "{}", first.said);
    drop(second_pause);
    assert_eq!(second.end().0, 0, "{}", second.said);
    node.sc("--unuse --name=two").run();
    node.assert_empty();
}

#[test]
fn min_free_is_left_free() {
    let node = Node::new();
    node.sc("--use --name=r --min-free=100%")
        .status(73)
        .stderr(
            "sc: no directory will do: `{}` has {} of the 0 B needed, {} to be left free\nhint: {}",
        )
        .run();
    let most = part_of_free(&node, 80);
    node.sc(&words(&node, "r", 40))
        .env("SC_MIN_FREE", most.to_string())
        .status(73)
        .stderr("sc: no directory will do: {} to be left free\nhint: {}")
        .run();
    node.sc("--location --name=r --min-free=100%")
        .status(73)
        .stderr("sc: {}\nhint: {}")
        .run();
    node.assert_empty();
    node.sc("--use --name=r --min-free=1").run();
    // it is here: there is nowhere else to go
    node.sc("--use --name=r --min-free=100%").run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_load_that_claims_and_is_killed_anywhere_leaves_nothing_for_long() {
    let node = Node::new();
    let use_ = words(&node, "r", 10);
    for n in (1..300).step_by(2) {
        let output = node.sc(&use_).env("SC_CRASH_AT", n.to_string()).output();
        node.sc(&use_).run();
        node.sc("--unuse --name=r").run();
        node.assert_empty();
        if output.status.success() {
            assert!(n > 20, "{n} points");
            return;
        }
    }
    panic!("it never came to an end");
}

#[test]
fn a_failed_load_gives_back_its_claim() {
    let node = Node::new();
    node.sc("--use --name=r --size=1MB file:/nowhere/x")
        .status(66)
        .stderr("{}")
        .run();
    assert!(!node.path(".sc.r/space").exists());
    node.sc("--clear --name=r").run();
    node.assert_empty();
}

/// Runs a script on a disk of so many MB of its own, mounted at `disk`, with `sc` in its PATH and
/// functions for what many need. None where no file system can be mounted.
fn on_a_small_disk(node: &Node, megabytes: u32, script: &str) -> Option<String> {
    let mut job = node.job();
    fs::create_dir(node.outside("disk")).unwrap();
    let mount = format!("mount -t tmpfs -o size={megabytes}M sc disk");
    if job.sh(&format!("unshare -Urm sh -c '{mount}'")).0 != 0 {
        eprintln!("SKIPPED: a disk of its own needs user namespaces");
        return None;
    }
    let file = node.file("data", vec![b'x'; 1_000_000]);
    let bin = node.outside("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(crate::node::SC, bin.join("sc")).unwrap();
    let script = format!(
        "{mount} || exit\nexport SC_DIRECTORIES=disk PATH=\"{}:$PATH\"\n\
         at() {{ export SC_UNIX_TIME=$(({START} + 3600 * $1)); }}\n\
         keep() {{ at $2; sc --run --keep=30d --name=$1 file:{} -- true; }}\n\
         load() {{ sc --use \"$@\" file:{}; echo $? $(ls disk); }}\n{script}\n",
        bin.display(),
        file.display(),
        file.display()
    );
    fs::write(node.outside("script"), script).unwrap();
    let (status, said) = job.sh("unshare -Urm sh ./script");
    assert_eq!(status, 0, "{said}");
    // a mount of this script's own is nobody else's, and that is told as well
    let lines = said.lines().filter(|line| !line.contains(" is private: "));
    Some(lines.map(|line| format!("{line}\n")).collect())
}

#[test]
fn what_was_used_longest_ago_is_evicted_for_a_load_that_does_not_fit() {
    let node = Node::new();
    let said = on_a_small_disk(
        &node,
        5,
        "keep c 1; keep a 2; keep b 3
         at 4; sc --location --name=d --size=3MB; ls disk
         load --name=d --size=3MB
         load --name=e --size=100MB
         load --name=e --size=1100kB
         sc --unuse --name=e; sc --unuse --name=d; sc --gc --older-than=0; ls -A disk",
    );
    if let Some(said) = said {
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..5], ["disk/d", "a", "b", "c", "0 a b d"], "{said}");
        assert!(
            lines[5].starts_with("sc: no directory will do: `disk` has "),
            "{said}"
        );
        // nothing is evicted in vain
        assert_eq!(lines[7..], ["73 a b d", "0 a b d e"], "{said}");
    }
}

#[test]
fn what_is_held_is_never_evicted_and_what_a_killed_unuse_left_is() {
    let node = Node::new();
    let said = on_a_small_disk(
        &node,
        5,
        "load --name=a --size=1MB; load --name=b
         load --name=c; load --name=d
         load --name=e --size=2MB
         for n in $(seq 1 400); do
             SC_CRASH_AT=$n sc --unuse --name=a 2>/dev/null && break
             ls -d disk/.sc.a/trash-* >/dev/null 2>&1 && break
         done
         ls -d disk/a disk/.sc.a/trash-*/data/data 2>&1 | grep -c data
         sc --unuse --name=b
         load --name=e --size=3MB",
    );
    if let Some(said) = said {
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines[..4],
            ["0 a", "0 a b", "0 a b c", "0 a b c d"],
            "{said}"
        );
        assert!(lines[4].starts_with("sc: no directory will do: "), "{said}");
        assert_eq!(lines[6], "73 a b c d", "{said}");
        assert_eq!(lines.last(), Some(&"0 c d e"), "{said}");
    }
}

#[test]
fn what_is_kept_on_a_full_disk_makes_room_for_the_next_load() {
    let node = Node::new();
    let said = on_a_small_disk(
        &node,
        2,
        "load --name=a
         dd if=/dev/zero of=disk/filler bs=4k 2>/dev/null
         sc --unuse --name=a --keep=1h
         ls -A disk
         truncate -s -100k disk/filler
         load --name=b --size=1MB",
    );
    if let Some(said) = said {
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines,
            ["0 a", ".sc.a", "a", "filler", "0 b filler"],
            "{said}"
        );
    }
}

#[test]
fn a_gc_killed_anywhere_on_a_full_disk_is_finished_by_the_next() {
    let node = Node::new();
    let said = on_a_small_disk(
        &node,
        2,
        "for n in $(seq 1 60); do
             at 0; sc --run --keep=1h --name=a file:script -- true; at 2
             dd if=/dev/zero of=disk/filler bs=4k 2>/dev/null
             SC_CRASH_AT=$n sc --gc >/dev/null 2>&1; status=$?
             rm disk/filler
             sc --gc; ls -A disk
             test $status = 0 && break
         done; test $n -gt 10 && echo all",
    );
    if let Some(said) = said {
        let said: Vec<&str> = said
            .lines()
            .filter(|line| !line.contains("Killed"))
            .collect();
        assert_eq!(said, ["all"]);
    }
}

#[test]
fn room_made_from_a_killed_deletion_leaves_nothing_of_it() {
    let node = Node::new();
    let said = on_a_small_disk(
        &node,
        2,
        "for n in $(seq 1 60); do
             load --name=a >/dev/null
             SC_CRASH_AT=$n sc --unuse --name=a >/dev/null 2>&1; status=$?
             load --name=e --size=1500kB >/dev/null 2>&1; sc -q --unuse --name=e
             sc -q --unuse --name=a; sc -q --clear --name=e; sc --gc; ls -A disk
             test $status = 0 && break
         done; test $n -gt 10 && echo all",
    );
    if let Some(said) = said {
        let said: Vec<&str> = said
            .lines()
            .filter(|line| !line.contains("Killed"))
            .collect();
        assert_eq!(said, ["all"]);
    }
}

#[test]
fn a_killed_load_that_finds_no_room_any_more_fails_and_does_not_try_for_ever() {
    let node = Node::new();
    let said = on_a_small_disk(
        &node,
        2,
        "for n in $(seq 4 4 64); do
             SC_CRASH_AT=$n sc -q --use --name=e --size=1500kB file:data >/dev/null 2>&1
             sc -q --use --name=a file:data
             sc -q --use --name=e --size=1500kB file:data 2>/dev/null; echo $?
             sc -q --clear --force --name=e; sc -q --unuse --name=a; sc --gc; ls -A disk
         done",
    );
    if let Some(said) = said {
        let said: Vec<&str> = said
            .lines()
            .filter(|line| !line.contains("Killed"))
            .collect();
        // one that had staged all of it needs no more
        let refused = said.iter().filter(|line| **line == "73").count();
        let loaded = said.iter().filter(|line| **line == "0").count();
        assert!(refused > 2 && refused + loaded == said.len(), "{said:?}");
        assert_eq!(said.len(), 16, "{said:?}");
    }
}
