//! `--run`: the command has the data as long as it lives, and nobody has it longer.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};

use nix::sys::signal::Signal;

use crate::dataset::Dataset;
use crate::node::{Fifo, Node, Running, Sc};
use crate::server::{Gate, Reply};

/// `sc --run … -- sh -c SCRIPT`
fn run(node: &Node, words: &str, script: &str) -> Sc {
    node.sc(&format!("--run {words} -- sh -c")).arg(script)
}

#[test]
fn the_command_is_told_where_the_data_is_and_has_it() {
    let node = Node::new();
    let data = Dataset::new(1000);
    let server = data.served().start();
    run(
        &node,
        &data.words(&server),
        "echo \"$SC_LOCATION\"; cat \"$SC_LOCATION/small\"; wc -c < \"$SC_LOCATION/link\"",
    )
    .stdout(format!("{}\nsmall\n1000\n", node.path("r").display()))
    .run();
    node.assert_empty();
    // absolute, so that the command may go elsewhere
    run(
        &node,
        "--name=r -d the_base",
        "cd / && echo \"$SC_LOCATION\"",
    )
    .status(125)
    .stderr("sc: no directory will do: `the_base` cannot be used: {}\nhint: {}")
    .run();
    node.sc_words(["-d", "the base", "--name=r", "--run", "--", "sh", "-c"])
        .arg("cd / && echo \"$SC_LOCATION\"")
        .stdout("{}/the base/r\n")
        .run();
    node.assert_empty();
}

#[test]
fn its_status_is_the_commands_and_the_use_ends_whatever_it_is() {
    let node = Node::new();
    for (script, status) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + 15),
        ("kill -KILL $$", 128 + 9),
    ] {
        run(&node, "--name=r", script).status(status).run();
        node.assert_empty();
    }
}

#[test]
fn a_command_that_cannot_be_run_has_the_statuses_of_a_shell() {
    let node = Node::new();
    node.sc("--run --name=r -- no-such-command")
        // a directory in PATH that may not be searched would make it "permission denied"
        .env("PATH", "/usr/bin:/bin")
        .status(127)
        .stderr("sc: cannot run `no-such-command`: no such file or directory")
        .run();
    node.assert_empty();
    let file = node.file("data", "not a program");
    node.sc("--run --name=r --")
        .arg(&file)
        .status(126)
        .stderr("sc: cannot run `{}/data`: permission denied")
        .run();
    node.assert_empty();
}

#[test]
fn without_the_data_the_command_is_not_run() {
    let node = Node::new();
    let data = Dataset::new(1000);
    let server = data.served().always(Reply::status(404)).start();
    run(&node, &data.words(&server), "echo run")
        .status(125)
        .stderr("sc: `{}/data.tar` does not exist: 404 Not Found")
        .run();
    assert_eq!(node.repofile("r")["readers"], serde_json::json!([]));
    assert!(!node.path(".sc.r/holders").exists());
}

#[test]
fn a_signal_during_the_load_ends_it_and_the_command_is_not_run() {
    let node = Node::new();
    let data = Dataset::new(1000);
    let gate = Gate::new();
    let server = data.served().reply(Reply::ok().behind(&gate)).start();
    let mut sc = run(&node, &data.words(&server), "echo run").spawn();
    gate.wait_for_visitor();
    sc.signal(Signal::SIGTERM);
    assert_eq!(sc.end(), (128 + 15, String::new()));
    assert_eq!(sc.said, "sc: ended by SIGTERM\n");
    assert_eq!(node.repofile("r")["readers"], serde_json::json!([]));
    gate.open();
}

/// A command that says on stderr when it is there and what reaches it, and ends when the FIFO
/// does. `wait` ends with a signal that is trapped, so it waits again.
fn listener(fifo: &Fifo, signal: &str) -> String {
    format!(
        "trap 'echo got {signal} >&2' {signal}; cat '{}' & echo ready >&2\n\
         for try in 1 2 3; do wait $! && break; done; echo end >&2; exit 5",
        fifo.path().display()
    )
}

#[test]
fn a_signal_for_sc_reaches_the_command_once_and_the_use_ends_with_the_command() {
    let node = Node::new();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let name = signal.as_str().trim_start_matches("SIG");
        let fifo = Fifo::named(&node, name);
        let mut sc = run(&node, "--name=r", &listener(&fifo, name)).spawn();
        sc.wait_for("ready");
        let cat = fifo.reached();
        sc.signal(signal);
        sc.wait_for("got");
        // what the command does about it is its own business
        assert_eq!(node.repofile("r")["readers"], serde_json::json!([1]));
        drop(cat);
        assert_eq!(sc.end(), (5, String::new()));
        assert_eq!(sc.said, format!("ready\ngot {name}\nend\n"));
        node.assert_empty();
    }
}

#[test]
fn ctrl_c_on_the_terminal_reaches_the_command_once() {
    use std::os::unix::process::CommandExt;
    let node = Node::new();
    let fifo = Fifo::new(&node);
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: openpty(3) writes two descriptors, which are ours; the other pointers may be null.
    let opened = unsafe {
        libc::openpty(
            &mut master,
            &mut slave,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    assert_eq!(opened, 0);
    // SAFETY: just opened, and nobody else's.
    let (mut master, slave) =
        unsafe { (fs::File::from_raw_fd(master), fs::File::from_raw_fd(slave)) };
    // the background `cat` of a shell without job control ignores SIGINT
    let mut sc = run(&node, "--name=r", &listener(&fifo, "INT"));
    let terminal = slave.as_raw_fd();
    // SAFETY: setsid(2) and ioctl(2) may be called between fork and exec.
    unsafe {
        sc.command.pre_exec(move || {
            nix::unistd::setsid()?;
            match libc::ioctl(terminal, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut sc = sc.spawn();
    sc.wait_for("ready");
    let cat = fifo.reached();
    master.write_all(b"\x03").unwrap();
    sc.wait_for("got");
    drop(cat);
    assert_eq!(sc.end(), (5, String::new()));
    assert_eq!(sc.said, "ready\ngot INT\nend\n");
    node.assert_empty();
}

/// `sc --run` killed by SIGKILL while its command goes on; until `Running::end` has seen the end
/// of the command, which still has sc's stderr.
#[track_caller]
fn bereaved(node: &Node, options: &str, fifo: &Fifo) -> (Running, fs::File) {
    let script = format!("echo ready >&2; cat '{}'", fifo.path().display());
    let mut sc = run(node, &format!("--name=r --id=run {options}"), &script).spawn();
    sc.wait_for("ready");
    let cat = fifo.reached();
    sc.signal(Signal::SIGKILL);
    sc.child.wait().unwrap();
    (sc, cat)
}

#[test]
fn killed_alone_sc_leaves_the_hold_to_the_command() {
    let node = Node::new();
    let fifo = Fifo::new(&node);
    let (mut sc, cat) = bereaved(&node, "", &fifo);
    node.sc("--use --name=r --id=2").run();
    node.sc("--unuse --name=r --id=2").run();
    assert_eq!(node.repofile("r")["state"], "OK");
    assert_eq!(node.repofile("r")["readers"], serde_json::json!([1]));
    drop(cat);
    assert_eq!(sc.end().0, -9);
    node.sc("-v --use --name=r --id=3")
        .stderr("sc: `sc --run` of pid {} (`run`) is dead and holds no more")
        .run();
    node.sc("--unuse --name=r --id=3").run();
    node.assert_empty();
}

#[test]
fn with_close_the_hold_dies_with_sc() {
    let node = Node::new();
    let fifo = Fifo::new(&node);
    let (mut sc, cat) = bereaved(&node, "--close", &fifo);
    node.sc("--use --name=r --id=2").run();
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
    drop(cat);
    assert_eq!(sc.end().0, -9);
}

#[test]
fn what_a_command_leaves_running_holds_nothing() {
    let node = Node::new();
    let fifo = Fifo::new(&node);
    let script = format!("cat '{}' > /dev/null 2>&1 & exit 3", fifo.path().display());
    run(&node, "--name=r", &script).status(3).run();
    node.assert_empty();
    drop(fifo.reached());
}

#[test]
fn several_runs_at_once_share_the_data_and_the_last_one_tears_down() {
    let node = Node::new();
    let data = Dataset::new(1000);
    let server = data.served().start();
    let words = data.words(&server);
    let one = Fifo::named(&node, "one");
    let script = format!("echo ready >&2; cat '{}'", one.path().display());
    let mut first = run(&node, &words, &script).spawn();
    first.wait_for("ready");
    let cat = one.reached();
    run(&node, &words, "cat \"$SC_LOCATION/small\"")
        .stdout("small\n")
        .run();
    data.assert_whole(&node);
    drop(cat);
    assert_eq!(first.end(), (0, String::new()));
    assert_eq!(server.requests(), 1);
    node.assert_empty();
}

#[test]
fn what_is_closed_at_the_start_takes_no_file_s_number() {
    let node = Node::new();
    let out = node.outside("out");
    let look = "for n in 0 1 2; do a=$(readlink /proc/$$/fd/$n); echo \"$a\" >&9; done";
    let (status, _) = node.job().sh(&format!(
        "\"$SC\" --run -v --name=r dummy -- sh -c '{look}' <&- >&- 2>&- 9>'{}'",
        out.display()
    ));
    assert_eq!(status, 0);
    // without it the second file that sc opens, the lock, would be stderr
    let open = std::fs::read_to_string(out).unwrap();
    assert_eq!(open, "/dev/null\n".repeat(3));
    node.assert_empty();
}

#[test]
fn a_reader_that_has_gone_is_no_death() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = std::process::Command::new(crate::node::SC)
        .args(["--generate", "man"])
        .stdout(writer)
        .status();
    assert_eq!(status.unwrap().code(), Some(0));
}
