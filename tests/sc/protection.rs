//! What protects the data from those who mean no harm: jobs that write (`--read-only`), cleaners
//! that go by age, programs that make backups.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::node::{Node, inode, md5, tar_gz};

fn words(node: &Node) -> String {
    let archive = tar_gz(
        node,
        "d.tar.gz",
        &[
            ("a", "1"),
            ("bin/b", "22"),
            ("bin/deep/c", "3"),
            ("empty/", ""),
        ],
    );
    format!(
        "--name=r file:{} md5:{} tar",
        archive.display(),
        md5(&archive)
    )
}

fn write_bits(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o222
}

const LOADED: [&str; 8] = [
    "a",
    "bin",
    "bin/b",
    "bin/deep",
    "bin/deep/c",
    "d.tar.gz",
    "d.tar.gz.list",
    "empty",
];

#[test]
fn what_is_loaded_read_only_has_no_write_bits() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --read-only {words}")).run();
    for path in LOADED {
        assert_eq!(write_bits(&node.path("r").join(path)), 0, "{path}");
    }
    assert_ne!(write_bits(&node.path("r")), 0);
    assert_ne!(write_bits(&node.path("r/repofile")), 0);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn without_the_option_the_modes_are_the_archive_s() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}"))
        .env("SC_READ_ONLY", "0")
        .run();
    assert_ne!(write_bits(&node.path("r/a")), 0);
    // data that are there already are not changed
    node.sc(&format!("--use {words} --id=2"))
        .env("SC_READ_ONLY", "1")
        .run();
    assert_ne!(write_bits(&node.path("r/a")), 0);
    node.sc("--unuse --name=r").run();
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn a_switch_in_the_environment_is_1_or_0() {
    let node = Node::new();
    node.sc("--use")
        .env("SC_READ_ONLY", "yes")
        .status(2)
        .stderr("sc: `SC_READ_ONLY`: `yes` is neither yes nor no\nhint: 1 is yes, 0 is no")
        .run();
}

#[test]
fn the_journal_knows_what_was_made_read_only() {
    let node = Node::new();
    node.sc(&format!("--use --read-only {}", words(&node)))
        .run();
    let journal = fs::read_to_string(node.path(".sc.r/journal")).unwrap();
    for path in LOADED {
        // the last word on each is its fingerprint as it is now
        let last = journal
            .lines()
            .rfind(|line| line.contains(&format!("\"path\":\"{path}\"")))
            .unwrap();
        let meta = fs::symlink_metadata(node.path("r").join(path)).unwrap();
        let ctime = meta.ctime() * 1_000_000_000 + meta.ctime_nsec();
        assert!(
            last.contains(&format!("\"ctime_ns\":{ctime}")),
            "{path}: {last}"
        );
    }
    node.sc("--unuse --name=r").run();
}

#[test]
fn read_only_data_go_into_a_directory_that_was_there() {
    let node = Node::new();
    fs::create_dir_all(node.path("r/bin/deep")).unwrap();
    fs::write(node.path("r/bin/mine"), "mine").unwrap();
    node.sc(&format!("--use --read-only {}", words(&node)))
        .run();
    assert_eq!(write_bits(&node.path("r/bin/deep/c")), 0);
    assert_ne!(write_bits(&node.path("r/bin")), 0, "not ours to change");
    node.sc("--unuse --name=r").run();
    node.assert_paths(&["r", "r/bin", "r/bin/deep", "r/bin/mine"]);
}

#[test]
fn a_killed_read_only_load_is_finished_and_leaves_nothing() {
    let mut points = 0;
    for n in (1..).step_by(3) {
        let node = Node::new();
        let words = words(&node);
        let output = node
            .sc(&format!("--use --read-only {words}"))
            .env("SC_CRASH_AT", n.to_string())
            .output();
        node.sc(&format!("--use --read-only {words}")).run();
        for path in LOADED {
            assert_eq!(write_bits(&node.path("r").join(path)), 0, "{path} at {n}");
        }
        node.sc("--unuse --name=r").run();
        node.assert_empty();
        if output.status.success() {
            break;
        }
        points = n;
    }
    assert!(points > 30, "only {points} points");
}

#[test]
fn read_only_data_are_deleted_by_whoever_is_last_killed_or_not() {
    for n in [3, 6, 9, 12, 15, 20] {
        let node = Node::new();
        node.sc(&format!("--use --read-only {}", words(&node)))
            .run();
        node.sc("--unuse --name=r")
            .env("SC_CRASH_AT", n.to_string())
            .output();
        // whoever was killed before he had left, leaves; the others left trash
        node.sc("-q --unuse --name=r").output();
        node.sc("--gc").run();
        node.assert_empty();
    }
}

/// systemd-tmpfiles(8) takes what has not changed for ten days from /tmp.
#[test]
fn each_use_refreshes_the_times_of_what_sc_needs() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    let files = [
        node.path(".sc.r/lock"),
        node.path(".sc.r/journal"),
        node.path("r/repofile"),
    ];
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    // one that changes something, and one that finds all as it is
    for id in ["2", "2"] {
        for file in &files {
            let times = fs::FileTimes::new().set_accessed(old).set_modified(old);
            fs::File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_times(times)
                .unwrap();
        }
        let before: Vec<u64> = files.iter().map(|file| inode(file)).collect();
        node.sc(&format!("--use --id={id} {words}")).run();
        for file in &files {
            let meta = fs::metadata(file).unwrap();
            assert!(
                meta.mtime() > 1_000_000_000 && meta.atime() > 1_000_000_000,
                "{file:?}"
            );
        }
        assert_eq!(before[0], inode(&files[0]));
        assert_eq!(before[1], inode(&files[1]));
    }
    node.sc("--unuse --name=r").run();
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn what_is_loaded_and_deleted_is_left_out_of_backups() {
    let node = Node::new();
    node.sc(&format!("--use --keep=1h {}", words(&node))).run();
    let tag = fs::read_to_string(node.path(".sc.r/CACHEDIR.TAG")).unwrap();
    assert!(tag.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"));
    // GNU tar knows the tag
    let listed = |options: &[&str]| {
        let output = std::process::Command::new("tar")
            .args(options)
            .args(["-cf", "/dev/null", "-v", "-C"])
            .arg(node.base())
            .arg(".sc.r")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(listed(&[]).contains(".sc.r/journal"));
    assert_eq!(listed(&["--exclude-caches-all"]), "");
    node.sc("--unuse --name=r --keep=0").run();
    node.assert_empty();
}
