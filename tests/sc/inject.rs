//! The kernel says no, or the process dies, at every system call: by strace, on the program as it
//! is, not at points of our own choosing.
//!
//! strace counts the calls of one name; the loop fails (or kills at) the first `openat`, the
//! second, … until a run has no call left to fail. After each, what must hold of any wreck is
//! looked at, and fresh processes use and unuse the repository.

use std::path::Path;
use std::process::Command;

use crate::crash::{Scenario, use_and_unuse};
use crate::node::{Node, SC};

/// Calls that change the disk, or that the protocol rests on.
const CALLS: &[&str] = &[
    "openat,openat2",
    "newfstatat,statx,fstat",
    "mkdirat",
    "linkat",
    "unlinkat",
    "renameat,renameat2",
    "write",
    "flock",
    "ftruncate",
    "utimensat",
    "fchmod,fchmodat",
    "fallocate",
    "getdents64",
    "read",
    "symlinkat",
    "lseek",
];

fn has_strace() -> bool {
    let probe = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .status();
    let works = probe.is_ok_and(|status| status.success());
    if !works {
        eprintln!("SKIPPED: strace is not installed, or may not trace here");
    }
    works
}

/// Runs `sc` with the words, with `fault` injected at the `n`-th of `calls`. False: there was no
/// such call. `sc` runs below strace, so its holder is named.
fn inject(node: &Node, words: &str, calls: &str, fault: &str, n: u32) -> bool {
    let log = node.outside("strace");
    let _ = std::fs::remove_file(&log);
    let mut command = node.sc("").command;
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o"]).arg(&log);
    strace.arg(format!("-einject={calls}:{fault}:when={n}"));
    strace.arg(format!("-etrace={calls}"));
    strace
        .arg(SC)
        .arg(format!("--pid={}", std::process::id()))
        .args(words.split_whitespace());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            strace.env(name, value);
        }
    }
    strace.current_dir(command.get_current_dir().unwrap_or(Path::new("/")));
    let output = strace.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{calls} {fault} {n}: {said}");
    command.arg("--version");
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    log.contains("INJECTED") || log.contains("killed by SIGKILL") || log.contains("SIGKILL")
}

/// Returns how many calls were made to fail.
fn each_call(used: bool, words: impl Fn(&Scenario) -> String, fault: &str) -> u32 {
    let mut injected = 0;
    for calls in CALLS {
        for call in calls.split(',') {
            for n in 1..400 {
                let node = Node::new();
                let scenario = Scenario::new(&node);
                if used {
                    node.sc(&format!("--use {}", scenario.words)).run();
                }
                if !inject(&node, &words(&scenario), call, fault, n) {
                    break;
                }
                let when = format!("after {fault} at {call} number {n}");
                scenario.assert_sane(&node, &when);
                use_and_unuse(&node, &scenario, &when);
                injected += 1;
            }
        }
    }
    injected
}

/// CI has minutes, not hours: without `SC_SOAK` one fault stands for its kin.
fn faults(all: &[&'static str]) -> Vec<&'static str> {
    match std::env::var_os("SC_SOAK") {
        Some(_) => all.to_vec(),
        None => all[..1].to_vec(),
    }
}

#[test]
fn a_load_killed_at_any_system_call_is_continued() {
    if !has_strace() {
        return;
    }
    let killed = each_call(false, |s| format!("--use {}", s.words), "signal=KILL");
    assert!(killed > 100, "only {killed} calls");
}

#[test]
fn an_unuse_killed_at_any_system_call_can_be_repaired() {
    if !has_strace() {
        return;
    }
    let killed = each_call(true, |_| "--unuse --name=ref".into(), "signal=KILL");
    assert!(killed > 60, "only {killed} calls");
}

#[test]
fn a_load_whose_system_calls_fail_can_be_repeated() {
    if !has_strace() {
        return;
    }
    for fault in faults(&[
        "error=ENOSPC",
        "error=EIO",
        "error=EDQUOT",
        "error=EROFS",
        "error=EMFILE",
        "error=EINTR",
    ]) {
        let failed = each_call(false, |s| format!("--use --retries=0 {}", s.words), fault);
        assert!(failed > 100, "only {failed} calls");
    }
}

#[test]
fn an_unuse_whose_system_calls_fail_can_be_repaired() {
    if !has_strace() {
        return;
    }
    for fault in faults(&[
        "error=EIO",
        "error=ENOSPC",
        "error=EROFS",
        "error=EMFILE",
        "error=EINTR",
    ]) {
        let failed = each_call(true, |_| "--unuse --name=ref".into(), fault);
        assert!(failed > 60, "only {failed} calls");
    }
}
