//! Network file systems: refused by what statfs(2) says, and where they are allowed, believed only
//! once their locks were seen to work. What statfs says is told by `SC_FILE_SYSTEM`, what flock
//! says by strace; one file system is real (bindfs).

use std::fs;
use std::process::Command;

use crate::node::{Fifo, Node, SC};

const NFS: &str = "6969";
const EXT4: &str = "ef53";

#[test]
fn a_network_file_system_is_refused_with_the_way_out_and_untouched() {
    for (magic, kind) in [
        (NFS, "NFS"),
        ("bd00bd0", "Lustre"),
        ("c36400", "CephFS"),
        ("ff534d42", "CIFS"),
        ("47504653", "GPFS"),
        ("19830326", "BeeGFS"),
        ("5346414f", "AFS"),
        ("1021997", "9p"),
    ] {
        let node = Node::new();
        for action in ["--use", "--location", "--unuse", "--status"] {
            node.sc(&format!("{action} --name=r"))
                .env("SC_FILE_SYSTEM", magic)
                .status(73)
                .stderr(format!(
                    "sc: `{{}}/the base` is on a network file system ({kind}), where locks may \
                     not work (`--allow-network-fs`)\nhint: name a local directory with \
                     `--directories`, or say `--allow-network-fs`"
                ))
                .run();
        }
        node.assert_empty();
    }
    let node = Node::new();
    node.sc("--use --name=r").env("SC_FILE_SYSTEM", EXT4).run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn where_it_is_allowed_and_locks_work_it_is_as_good_as_any() {
    let node = Node::new();
    for (option, variable) in [("--allow-network-fs", ""), ("", "1")] {
        let sc = |words: &str| {
            node.sc(&format!("{option} {words}"))
                .env("SC_FILE_SYSTEM", NFS)
                .env("SC_ALLOW_NETWORK_FS", variable)
        };
        sc("--use --name=r").run();
        sc("--use --name=r --no-wait --id=2").run();
        sc("--unuse --name=r --id=2").run();
        sc("--unuse --name=r").run();
        node.assert_empty();
        sc("--run --name=r -- true").run();
        node.assert_empty();
    }
    node.sc("--use --name=r")
        .env("SC_ALLOW_NETWORK_FS", "maybe")
        .status(2)
        .stderr("sc: `SC_ALLOW_NETWORK_FS`: `maybe` is neither yes nor no\nhint: say `1` or `0`")
        .run();
}

/// The trial ends by the first answer, so strace may give two different ones.
fn with_flock(node: &Node, inject: &str) -> (i32, String) {
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-etrace=flock"])
        .arg(format!("-einject=flock:{inject}"))
        .args([SC, "--use", "--name=r", "--allow-network-fs"])
        // strace itself is a wrapper, and would be told so
        .arg(format!("--pid={}", std::process::id()))
        .env_clear()
        .env("SC_DIRECTORIES", node.base())
        .env("SC_FILE_SYSTEM", NFS)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap_or(-1), said)
}

#[test]
fn locks_that_lock_nothing_or_are_refused_are_told_and_nothing_is_loaded() {
    if !crate::inject::has_strace() {
        return;
    }
    for (inject, problem) in [
        ("retval=0:when=1..2", "two have it at once"),
        ("error=ENOLCK", "no record locks available"),
        ("error=ENOSYS", "function not implemented"),
    ] {
        let node = Node::new();
        let (status, said) = with_flock(&node, inject);
        assert_eq!(status, 73, "{said}");
        assert!(
            said.starts_with("sc: locks do not work on `") && said.contains(problem),
            "{said}"
        );
        assert!(!node.path("r").exists());
        node.sc("--use --name=r").run();
        node.sc("--unuse --name=r").run();
        node.assert_empty();
    }
}

#[test]
fn a_lock_that_is_never_answered_is_not_waited_for() {
    let node = Node::new();
    let fifo = Fifo::new(&node);
    node.sc("--use --name=r --allow-network-fs")
        .env("SC_FILE_SYSTEM", NFS)
        .env("SC_PAUSE_AT", fifo.at("trial lock"))
        .status(73)
        .stderr("sc: locks do not work on `{}/.sc.r`: no answer within 10 s\nhint: {}")
        .run();
    node.sc("--use --name=r").run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_boot_of_another_node_is_no_death_and_one_of_this_node_is() {
    for (host, holders_left) in [("elsewhere", 2), ("", 1)] {
        let node = Node::new();
        let sc = |words: &str| {
            node.sc(&format!("{words} --name=r --allow-network-fs"))
                .env("SC_FILE_SYSTEM", NFS)
        };
        sc("--use --id=1").run();
        let mut json = node.repofile("r");
        let holder = &mut json["sc"]["holders"][0];
        assert!(holder["host"].as_str().is_some_and(|host| !host.is_empty()));
        holder["boot_id"] = "another".into();
        if !host.is_empty() {
            holder["host"] = host.into();
        }
        fs::write(node.path("r/repofile"), json.to_string()).unwrap();
        sc("--use --id=2").run();
        let readers = node.repofile("r")["readers"].as_array().unwrap().len();
        assert_eq!(readers, holders_left);
    }
    // on a local one nobody's node is written down
    let node = Node::new();
    node.sc("--use --name=r").run();
    assert!(node.repofile("r")["sc"]["holders"][0]["host"].is_null());
    node.sc("--unuse --name=r").run();
}

#[test]
fn of_several_bases_the_network_one_is_passed_over_with_a_warning() {
    let node = Node::new();
    let mut job = node.job();
    if job.sh("command -v bindfs && unshare -m true").0 != 0 {
        eprintln!("SKIPPED: what needs bindfs, or root");
        return;
    }
    let script = "mkdir net below local && bindfs -o hard_remove below net || exit 99
        \"$SC\" --use --name=r -d net:local --pid=$$ 2>said || exit 1
        cat said; test -d local/r && test -z \"$(ls -A net)\" || exit 2
        \"$SC\" --unuse --name=r -d net:local --pid=$$ || exit 3
        test -z \"$(ls -A local)\" || exit 4
        \"$SC\" --use --name=r -d net && exit 5
        \"$SC\" --unuse --name=r -d net:local && exit 5
        \"$SC\" --use --name=r -d net --allow-network-fs --pid=$$ || exit 6
        test -d below/r || exit 7
        \"$SC\" --unuse --name=r -d net --allow-network-fs --pid=$$ || exit 8
        test -z \"$(ls -A below)\" || exit 9
        umount net";
    node.file("script", script);
    let (status, said) = job.sh("unshare -m sh ./script");
    if status == 99 {
        eprintln!("SKIPPED: {said}");
        return;
    }
    assert_eq!(status, 0, "{said}");
    // a mount of this script's own is nobody else's, and that is told as well
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.contains(" is private: "))
        .collect();
    assert_eq!(lines.len(), 4, "{said}");
    assert!(lines[0].starts_with("sc: warning: `net` is on a network file system (fuse)"));
    assert!(lines[1].starts_with("sc: `net` is on a network file system (fuse)"));
    assert!(lines[3].contains(" is not held by pid "), "{said}");
}
