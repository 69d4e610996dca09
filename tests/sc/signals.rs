//! SIGINT, SIGTERM, SIGHUP: what they end, what they leave.

use nix::sys::signal::Signal;

use crate::dataset::{Dataset, HELD_AT, LARGE, half_loaded};
use crate::node::Node;
use crate::server::{Gate, Reply};

/// That the server stays silent ends nothing here: the signal must.
fn words(data: &str) -> String {
    format!("--use --progress=always --stall-timeout=1h {data}")
}

#[track_caller]
fn a_load_is_ended_by(signal: Signal) {
    let node = Node::new();
    let data = Dataset::new(LARGE);
    let gate = Gate::new();
    let server = data
        .served()
        .reply(Reply::ok().hold_after(HELD_AT, &gate))
        .start();
    let mut loader = half_loaded(node.sc(&words(&data.words(&server))));
    // what is sent is counted below
    gate.wait_for_visitor();
    loader.said.clear();
    loader.signal(signal);
    assert_eq!(loader.end(), (128 + signal as i32, String::new()));
    let last = loader.said.lines().last().unwrap_or_default();
    assert_eq!(last, format!("sc: ended by {signal}"));
    assert!(
        loader
            .said
            .lines()
            .rev()
            .skip(1)
            .all(|line| line.starts_with("sc: loading `data.tar`: ")),
        "{}",
        loader.said
    );

    let repofile = node.repofile("r");
    assert_eq!(repofile["state"], "UNKNOWN");
    assert_eq!(repofile["writer"], serde_json::Value::Null);
    assert_eq!(repofile["readers"], serde_json::json!([]));
    // what came is kept, none of it where a job would look
    let staged = std::fs::metadata(node.path(".sc.r/staging/0/data.tar"))
        .unwrap()
        .len();
    assert!(
        staged >= LARGE as u64 * 2 / 5 && staged <= HELD_AT as u64,
        "{staged}"
    );
    let visible: Vec<_> = crate::node::tree(&node.path("r")).into_keys().collect();
    assert_eq!(visible, ["repofile"]);

    node.sc(&format!("--use --no-wait {}", data.words(&server)))
        .run();
    assert_eq!(
        server.log()[1].header("range"),
        Some(format!("bytes={staged}-").as_str())
    );
    assert_eq!(
        server.bytes_sent(),
        HELD_AT as u64 + data.archive.len() as u64 - staged
    );
    data.assert_whole(&node);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
    gate.open();
}

#[test]
fn sigint_ends_a_load_which_the_next_use_continues() {
    a_load_is_ended_by(Signal::SIGINT);
}

#[test]
fn sigterm_ends_a_load_which_the_next_use_continues() {
    a_load_is_ended_by(Signal::SIGTERM);
}

#[test]
fn sighup_ends_a_load_which_the_next_use_continues() {
    a_load_is_ended_by(Signal::SIGHUP);
}

#[test]
fn a_sighup_that_nohup_ignores_ends_nothing() {
    use std::os::unix::process::CommandExt;
    let node = Node::new();
    let data = Dataset::new(LARGE);
    let gate = Gate::new();
    let server = data
        .served()
        .reply(Reply::ok().hold_after(HELD_AT, &gate))
        .start();
    let mut sc = node.sc(&words(&data.words(&server)));
    // SAFETY: signal(2) may be called between fork and exec.
    unsafe {
        sc.command.pre_exec(|| {
            nix::sys::signal::signal(Signal::SIGHUP, nix::sys::signal::SigHandler::SigIgn)?;
            Ok(())
        });
    }
    let mut loader = half_loaded(sc);
    loader.signal(Signal::SIGHUP);
    gate.open();
    assert_eq!(loader.end(), (0, String::new()));
    assert_eq!(server.requests(), 1);
    data.assert_whole(&node);
}

#[test]
fn a_waiter_that_is_told_to_end_ends_and_was_never_there() {
    let node = Node::new();
    let data = Dataset::new(100_000);
    let gate = Gate::new();
    let server = data
        .served()
        .reply(Reply::ok().hold_after(1000, &gate))
        .start();
    let words = data.words(&server);
    let mut loader = node.sc(&format!("--use --id=1 {words}")).spawn();
    gate.wait_for_visitor();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut waiter = node.sc(&format!("--use --id=2 {words}")).spawn();
        waiter.wait_for("sc: waiting: pid ").said.clear();
        waiter.signal(signal);
        assert_eq!(waiter.end(), (128 + signal as i32, String::new()));
        assert_eq!(waiter.said, format!("sc: ended by {signal}\n"));
    }
    gate.open();
    assert_eq!(loader.end(), (0, String::new()));
    node.sc("--unuse --name=r --id=1").run();
    node.assert_empty();
}
