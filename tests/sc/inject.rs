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

pub fn has_strace() -> bool {
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
    // one that hangs is killed, and tells so by its status
    let mut strace = Command::new("timeout");
    strace.args(["60", "strace"]);
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
    let status = output.status.code();
    assert_ne!(status, Some(124), "{calls} {fault} {n}: it hangs: {said}");
    assert!(!said.contains("panicked"), "{calls} {fault} {n}: {said}");
    command.arg("--version");
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    log.contains("INJECTED") || log.contains("killed by SIGKILL") || log.contains("SIGKILL")
}

/// What is there before the call under test.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Used,
    /// By a second holder too, whose `--id` is `2`.
    UsedTwice,
}

/// Returns how many calls were made to fail: every one, or without `SC_SOAK` every `step`th.
fn each_call(
    before: Before,
    step: usize,
    words: impl Fn(&Scenario) -> String,
    fault: &str,
) -> usize {
    let step = if is_soak() { 1 } else { step };
    let mut injected = 0;
    for calls in CALLS {
        for call in calls.split(',') {
            for n in (1..400).step_by(step) {
                let node = Node::new();
                let scenario = Scenario::new(&node);
                if before != Before::Nothing {
                    node.sc(&format!("--use {}", scenario.words)).run();
                }
                if before == Before::UsedTwice {
                    node.sc(&format!("--use {} --id=2", scenario.words)).run();
                }
                if !inject(&node, &words(&scenario), call, fault, n) {
                    break;
                }
                let when = format!("after {fault} at {call} number {n}");
                scenario.assert_sane(&node, &when);
                let words = words(&scenario);
                if words.contains("--id=2") {
                    // the other holder has lost nothing, whatever became of this one
                    scenario.assert_whole(&node.path("ref"), &when);
                    node.sc("--unuse --name=ref --id=2 -q").output();
                    scenario.assert_whole(&node.path("ref"), &when);
                }
                use_and_unuse(&node, &scenario, &when);
                injected += step;
            }
        }
    }
    injected
}

/// CI has minutes, not hours: without `SC_SOAK` one fault stands for its kin, and a part of the
/// calls for all. `scripts/soak-system-calls` runs everything.
fn faults(all: &[&'static str]) -> Vec<&'static str> {
    match is_soak() {
        true => all.to_vec(),
        false => all[..1].to_vec(),
    }
}

fn is_soak() -> bool {
    std::env::var_os("SC_SOAK").is_some()
}

#[test]
fn a_use_or_unuse_beside_another_s_killed_at_any_system_call_costs_him_nothing() {
    if !has_strace() {
        return;
    }
    let join = |s: &Scenario| format!("--use {} --id=2", s.words);
    let killed = each_call(Before::Used, 3, join, "signal=KILL");
    assert!(killed > 60, "only {killed} calls");
    let leave = |_: &Scenario| "--unuse --name=ref --id=2".into();
    let killed = each_call(Before::UsedTwice, 3, leave, "signal=KILL");
    assert!(killed > 60, "only {killed} calls");
}

#[test]
fn a_use_or_unuse_beside_another_s_whose_system_calls_fail_costs_him_nothing() {
    if !has_strace() {
        return;
    }
    for fault in faults(&[
        "error=ENOSPC",
        "error=EDQUOT",
        "error=EIO",
        "error=EROFS",
        "error=EMFILE",
        "error=EINTR",
    ]) {
        let join = |s: &Scenario| format!("--use {} --id=2", s.words);
        let failed = each_call(Before::Used, 3, join, fault);
        assert!(failed > 60, "only {failed} calls");
        let leave = |_: &Scenario| "--unuse --name=ref --id=2".into();
        let failed = each_call(Before::UsedTwice, 3, leave, fault);
        assert!(failed > 60, "only {failed} calls");
    }
}

#[test]
fn a_load_killed_at_any_system_call_is_continued() {
    if !has_strace() {
        return;
    }
    let words = |s: &Scenario| format!("--use {}", s.words);
    let killed = each_call(Before::Nothing, 2, words, "signal=KILL");
    assert!(killed > 100, "only {killed} calls");
}

#[test]
fn an_unuse_killed_at_any_system_call_can_be_repaired() {
    if !has_strace() {
        return;
    }
    let words = |_: &Scenario| "--unuse --name=ref".into();
    let killed = each_call(Before::Used, 2, words, "signal=KILL");
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
        let words = |s: &Scenario| format!("--use --retries=0 {}", s.words);
        let failed = each_call(Before::Nothing, 2, words, fault);
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
        "error=EDQUOT",
        "error=EROFS",
        "error=EMFILE",
        "error=EINTR",
    ]) {
        let words = |_: &Scenario| "--unuse --name=ref".into();
        let failed = each_call(Before::Used, 2, words, fault);
        assert!(failed > 60, "only {failed} calls");
    }
}
