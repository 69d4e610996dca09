//! Who waits for whom, for how long, and what he gets: the data, the failure, or the place where
//! the data is.

use std::fs::{self, File};
use std::io::Read;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;

use crate::dataset::Dataset;
use crate::node::{Fifo, Node, Running, fits};
use crate::server::{self, Gate, Reply};

/// A load whose first body is held back behind a gate.
struct Loading {
    node: Node,
    data: Dataset,
    gate: Gate,
    server: server::Running,
    words: String,
    loader: Running,
}

/// Starts a load that gets `reply` when the gate opens, and returns when it is under way.
#[track_caller]
fn loading(reply: impl FnOnce(&Gate) -> Reply) -> Loading {
    let node = Node::new();
    let data = Dataset::new(100_000);
    let gate = Gate::new();
    let server = data.served().reply(reply(&gate)).start();
    let words = data.words(&server);
    let loader = node.sc(&format!("--use --id=loader {words}")).spawn();
    gate.wait_for_visitor();
    Loading {
        node,
        data,
        gate,
        server,
        words,
        loader,
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.gate.open();
    }
}

impl Loading {
    /// Starts a use and returns when it waits.
    #[track_caller]
    fn waiter(&self, id: usize, words: &str) -> Running {
        let mut waiter = self.node.sc(&format!("--use --id={id} {words}")).spawn();
        waiter.wait_for("sc: waiting: pid ");
        waiter
    }
}

#[test]
fn a_waiter_says_once_who_loads_since_when_and_what_for() {
    let mut at = loading(|gate| Reply::ok().hold_after(1000, gate));
    let mut waiter = at.waiter(1, &at.words);
    at.gate.open();
    assert_eq!(at.loader.end(), (0, String::new()));
    assert_eq!(waiter.end(), (0, String::new()));
    let definition = at.words.strip_prefix("--name=r ").unwrap();
    let expected = format!(
        "sc: waiting: pid {} has been loading `{}` for {{}} s (`{definition}`)\n",
        at.loader.pid(),
        at.node.path("r").display(),
    );
    assert!(fits(&expected, &waiter.said), "{}", waiter.said);
}

#[test]
fn a_waiter_on_a_terminal_sees_how_far_the_load_is() {
    let mut at = loading(|gate| Reply::ok().hold_after(1000, gate));
    let size = Winsize {
        ws_row: 24,
        ws_col: 160,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let terminal = openpty(&size, None).unwrap();
    let mut waiter = at.node.sc(&format!("--use --id=1 {}", at.words));
    waiter.command.env("TERM", "xterm").stderr(terminal.slave);
    let mut child = waiter.command.spawn().unwrap();
    // only the waiter keeps the terminal open: its end is seen here
    drop(waiter);
    let mut master = File::from(terminal.master);
    let mut said = Vec::new();
    let mut shows = |text: &str| {
        let mut chunk = [0; 4096];
        while !String::from_utf8_lossy(&said).contains(text) {
            // EIO: nobody has the terminal open any more
            let read = master.read(&mut chunk).unwrap_or(0);
            assert!(
                read > 0,
                "never {text:?}: {}",
                String::from_utf8_lossy(&said)
            );
            said.extend_from_slice(&chunk[..read]);
        }
    };
    shows("sc: waiting: pid ");
    shows(&format!("waiting for `{}`", at.node.path("r").display()));
    shows(" % of ");
    at.gate.open();
    assert_eq!(at.loader.end(), (0, String::new()));
    assert!(child.wait().unwrap().success());
}

#[test]
fn who_does_not_want_to_wait_is_told_who_works_where_and_what_would_change_it() {
    let mut at = loading(|gate| Reply::ok().hold_after(1000, gate));
    let pid = at.loader.pid();
    let line = format!("pid {pid} has been loading `{{}}/r` for {{}} s (`http:{{}} tar`)");
    at.node
        .sc(&format!("--use --no-wait {}", at.words))
        .status(75)
        .stderr(format!(
            "sc: did not wait for `{{}}/r` (`--no-wait`): {line}"
        ))
        .run();
    at.node
        .sc(&format!("--use --timeout=0.3 {}", at.words))
        .status(75)
        .stderr(format!(
            "sc: waiting: {line}\n\
             sc: gave up waiting for `{{}}/r` after 0.3 s (`--timeout`): {line}"
        ))
        .run();
    // --run has every other status for its command
    at.node
        .sc(&format!("--run --no-wait {} -- true", at.words))
        .status(125)
        .stderr(format!(
            "sc: did not wait for `{{}}/r` (`--no-wait`): {line}"
        ))
        .run();
    // and nobody of them has become a holder
    at.gate.open();
    assert_eq!(at.loader.end(), (0, String::new()));
    at.node.sc("--unuse --name=r --id=loader").run();
    at.node.assert_empty();
}

#[test]
fn an_unuse_waits_no_longer_than_it_may() {
    let node = Node::new();
    node.sc("--use --name=r --id=1").run();
    let fifo = Fifo::new(&node);
    let mut other = node
        .sc("--use --name=r --id=2")
        .env("SC_PAUSE_AT", fifo.at("create"))
        .spawn();
    let pause = fifo.reached();
    let work = format!("pid {} is at work there", other.pid());
    node.sc("--unuse --name=r --id=1 --no-wait")
        .status(75)
        .stderr(format!(
            "sc: did not wait for `{{}}/r` (`--no-wait`): {work}"
        ))
        .run();
    node.sc("--unuse --name=r --id=1 --timeout=0.3")
        .status(75)
        .stderr(format!(
            "sc: gave up waiting for `{{}}/r` after 0.3 s (`--timeout`): {work}"
        ))
        .run();
    drop(pause);
    assert_eq!(other.end(), (0, String::new()));
    // it still holds
    node.sc("--unuse --name=r --id=1").run();
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn the_lock_of_another_program_is_waited_for_no_longer_than_that() {
    let node = Node::new();
    node.sc("--use --name=r --id=1").run();
    // as the reference takes it: a claim that names itself, linked to the lock's name
    let claim = node.path("r/repofile.lock|elsewhere|1|2");
    fs::write(&claim, claim.as_os_str().as_encoded_bytes()).unwrap();
    fs::hard_link(&claim, node.path("r/repofile.lock")).unwrap();
    for action in ["--use --name=r --id=2", "--unuse --name=r --id=1"] {
        node.sc(&format!("{action} --no-wait"))
            .status(75)
            .stderr("sc: did not wait for `{}/r/repofile.lock` (`--no-wait`): another program holds the repofile's lock")
            .run();
        node.sc(&format!("{action} --timeout=0.3"))
            .status(75)
            .stderr("sc: gave up waiting for `{}/r/repofile.lock` after 0.3 s (`--timeout`): another program holds the repofile's lock")
            .run();
    }
    fs::remove_file(node.path("r/repofile.lock")).unwrap();
    fs::remove_file(claim).unwrap();
    node.sc("--unuse --name=r --id=1").run();
    node.assert_empty();
}

/// A number from the lines of /proc/PID/status.
fn status_number(pid: i32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim().parse().unwrap()
}

/// Is it queued for a flock in the kernel?
fn waits_in_the_kernel(pid: i32) -> bool {
    let pid = pid.to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(1..3) == Some(&["->", "FLOCK"]) && words.get(5) == Some(&pid.as_str())
    })
}

#[test]
fn a_waiter_sleeps_in_the_kernel_until_it_is_its_turn() {
    let mut at = loading(|gate| Reply::ok().hold_after(1000, gate));
    let mut waiter = at.waiter(1, &at.words);
    while !waits_in_the_kernel(waiter.pid()) {
        assert_eq!(waiter.child.try_wait().unwrap(), None, "{}", waiter.said);
        std::thread::yield_now();
    }
    let switches = |pid| status_number(pid, "voluntary_ctxt_switches:");
    let before = switches(waiter.pid());
    // another one lets a second pass
    at.node
        .sc(&format!("-q --use --timeout=1 {}", at.words))
        .status(75)
        .stderr("sc: gave up waiting for {} after 1 s (`--timeout`): {}")
        .run();
    assert_eq!(switches(waiter.pid()), before, "it woke up for nothing");
    assert!(waits_in_the_kernel(waiter.pid()));
    at.gate.open();
    assert_eq!(at.loader.end().0, 0);
    assert_eq!(waiter.end().0, 0);
}

#[test]
fn all_who_wait_for_a_load_that_fails_fail_with_it_and_ask_nobody() {
    let mut at = loading(|gate| Reply::status(404).behind(gate));
    let mut waiters: Vec<Running> = (0..8).map(|id| at.waiter(id, &at.words)).collect();
    // a repository of readers none of whom is one yet, but for references to see
    let repofile = at.node.repofile("r");
    assert_eq!(
        repofile["readers"],
        serde_json::json!([std::process::id()]),
        "{repofile}"
    );
    assert_eq!(repofile["sc"]["holders"][0]["provisional"], true);
    at.gate.open();
    let message = format!(
        "sc: `{}` does not exist: 404 Not Found\n",
        at.server.url("/data.tar")
    );
    assert_eq!(at.loader.end(), (66, String::new()));
    assert_eq!(at.loader.said, message);
    for waiter in &mut waiters {
        assert_eq!(waiter.end(), (66, String::new()), "{}", waiter.said);
        let (_, failure) = waiter.said.split_once('\n').unwrap();
        assert_eq!(failure, message);
    }
    assert_eq!(at.server.requests(), 1);
    let repofile = at.node.repofile("r");
    assert_eq!(repofile["state"], "BROKEN");
    assert_eq!(repofile["readers"], serde_json::json!([]));
    // who comes after the failure tries again
    at.node.sc(&format!("--use {}", at.words)).run();
    assert_eq!(at.server.requests(), 2);
    at.data.assert_whole(&at.node);
    at.node.sc("--unuse --name=r").run();
    at.node.assert_empty();
}

#[test]
fn who_waits_with_another_definition_loads_its_own_when_the_first_fails() {
    let mut at = loading(|gate| Reply::status(404).behind(gate));
    let mut waiter = at.waiter(1, "--name=r dummy");
    at.gate.open();
    assert_eq!(at.loader.end().0, 66);
    assert_eq!(waiter.end().0, 0, "{}", waiter.said);
    at.node.assert_paths(&[
        ".sc.r",
        ".sc.r/CACHEDIR.TAG",
        ".sc.r/journal",
        ".sc.r/lock",
        ".sc.r/repofile.last",
        "r",
        "r/repofile",
    ]);
    at.node
        .sc("--unuse --name=r --id=1")
        .stderr("sc: dummy: delete")
        .run();
    at.node.assert_empty();
}

#[test]
fn who_waits_with_another_source_of_the_same_bytes_asks_there() {
    let mut at = loading(|gate| Reply::status(404).behind(gate));
    let other = at.data.words_from(&at.server.url("/elsewhere/data.tar"));
    let mut waiter = at.waiter(1, &other);
    at.gate.open();
    assert_eq!(at.loader.end().0, 66);
    assert_eq!(waiter.end().0, 0, "{}", waiter.said);
    assert_eq!(at.server.log()[1].path(), "/elsewhere/data.tar");
    at.data.assert_whole(&at.node);
}

#[test]
fn who_waits_with_another_definition_is_refused_when_the_first_succeeds() {
    let mut at = loading(|gate| Reply::ok().hold_after(1000, gate));
    let mut waiter = at.waiter(1, "--name=r dummy");
    at.gate.open();
    assert_eq!(at.loader.end().0, 0);
    assert_eq!(waiter.end(), (78, String::new()));
    let refused = waiter.said.lines().nth(1).unwrap_or_default();
    assert!(
        refused.contains("` holds `http:") && refused.contains("`, not `dummy`, and is in use by "),
        "{}",
        waiter.said
    );
    at.data.assert_whole(&at.node);
}

#[test]
fn a_load_ended_by_a_signal_is_no_failure_and_the_waiter_goes_on_with_it() {
    let mut at = loading(|gate| Reply::ok().hold_after(50_000, gate));
    let mut waiter = at.waiter(1, &at.words);
    at.loader.signal(Signal::SIGTERM);
    assert_eq!(at.loader.end().0, 128 + 15);
    assert_eq!(waiter.end().0, 0, "{}", waiter.said);
    let range = at.server.log()[1].header("range").map(str::to_owned);
    assert!(range.is_some(), "it began from zero");
    at.data.assert_whole(&at.node);
    at.node.sc("--unuse --name=r --id=1").run();
    at.node.assert_empty();
}

#[test]
fn a_load_that_was_killed_leaves_no_holder_of_its_own() {
    let mut at = loading(|gate| Reply::ok().hold_after(1000, gate));
    at.loader.signal(Signal::SIGKILL);
    at.loader.end();
    // the parent, whose use it was to be, lives
    assert_eq!(
        at.node.repofile("r")["readers"],
        serde_json::json!([std::process::id()])
    );
    at.node.sc(&format!("--use --id=2 {}", at.words)).run();
    at.node
        .sc("--unuse --name=r --id=loader")
        .status(255)
        .stderr("sc: `{}/r` is not held by pid {} (`loader`)")
        .run();
    at.node.sc("--unuse --name=r --id=2").run();
    at.node.assert_empty();
}

#[test]
fn a_shell_that_dies_while_its_sc_loads_holds_nothing_and_the_load_is_not_lost() {
    let node = Node::new();
    let data = Dataset::new(100_000);
    let gate = Gate::new();
    let server = data
        .served()
        .reply(Reply::ok().hold_after(1000, &gate))
        .start();
    let words = data.words(&server);
    let mut job = node.job();
    assert_eq!(job.sc(&format!("--use {words} &")), (0, String::new()));
    gate.wait_for_visitor();
    job.die();
    gate.open();
    assert_eq!(job.rest(), "");
    data.assert_whole(&node);
    assert_eq!(
        node.repofile("r")["readers"],
        serde_json::json!([job.pid()])
    );
    node.sc(&format!("-v --use {words}"))
        .stderr(format!("sc: pid {} is dead and holds no more", job.pid()))
        .run();
    assert_eq!(server.requests(), 1);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

/// A node with two base directories, `one` preferred.
fn two_bases() -> (Node, String) {
    let node = Node::new();
    for base in ["one", "two"] {
        fs::create_dir(node.path(base)).unwrap();
    }
    (node, "-d the!base/one:the!base/two".to_owned())
}

fn with_bases(node: &Node, words: &str) -> crate::node::Sc {
    let words = words.split_whitespace().map(|word| word.replace('!', " "));
    node.sc_words(words)
}

#[test]
fn of_two_who_choose_a_place_at_once_the_later_base_gives_way() {
    let (node, bases) = two_bases();
    let fifo = Fifo::new(&node);
    // the second base is chosen while the first one can't be used
    fs::rename(node.path("one"), node.outside("away")).unwrap();
    let mut late = with_bases(&node, &format!("--use --id=late {bases} --name=r"))
        .env("SC_PAUSE_AT", fifo.at("mkdir"))
        .spawn();
    let pause = fifo.reached();
    fs::rename(node.outside("away"), node.path("one")).unwrap();
    with_bases(&node, &format!("--use --id=early {bases} --name=r")).run();
    drop(pause);
    assert_eq!(late.end().0, 0, "{}", late.said);
    node.assert_paths(&[
        "one",
        "one/.sc.r",
        "one/.sc.r/CACHEDIR.TAG",
        "one/.sc.r/journal",
        "one/.sc.r/lock",
        "one/.sc.r/repofile.last",
        "one/r",
        "one/r/repofile",
        "two",
    ]);
    for id in ["early", "late"] {
        with_bases(&node, &format!("--unuse --id={id} {bases} --name=r")).run();
    }
    node.assert_paths(&["one", "two"]);
}

#[test]
fn who_chose_the_first_base_goes_where_the_repository_has_appeared_meanwhile() {
    let (node, bases) = two_bases();
    let fifo = Fifo::new(&node);
    let mut late = with_bases(&node, &format!("--use --id=late {bases} --name=r"))
        .env("SC_PAUSE_AT", fifo.at("mkdir"))
        .spawn();
    let pause = fifo.reached();
    // the first one can't be used for a while
    fs::rename(node.path("one"), node.outside("away")).unwrap();
    with_bases(&node, &format!("--use --id=early {bases} --name=r"))
        .stderr("sc: warning: `{}one` cannot be used: {}")
        .run();
    fs::rename(node.outside("away"), node.path("one")).unwrap();
    drop(pause);
    assert_eq!(late.end().0, 0, "{}", late.said);
    node.assert_paths(&[
        "one",
        "two",
        "two/.sc.r",
        "two/.sc.r/CACHEDIR.TAG",
        "two/.sc.r/journal",
        "two/.sc.r/lock",
        "two/.sc.r/repofile.last",
        "two/r",
        "two/r/repofile",
    ]);
    for id in ["early", "late"] {
        with_bases(&node, &format!("--unuse --id={id} {bases} --name=r")).run();
    }
    node.assert_paths(&["one", "two"]);
}

#[test]
fn who_chose_the_first_base_waits_for_a_load_that_began_in_the_second_meanwhile() {
    let (node, bases) = two_bases();
    let data = Dataset::new(1000);
    let gate = Gate::new();
    let server = data.served().reply(Reply::ok().behind(&gate)).start();
    let words = format!("--use {bases} {}", data.words(&server));
    let fifo = Fifo::new(&node);
    let mut late = with_bases(&node, &format!("{words} --id=late"))
        .env("SC_PAUSE_AT", fifo.at("mkdir"))
        .spawn();
    let pause = fifo.reached();
    fs::rename(node.path("one"), node.outside("away")).unwrap();
    let mut early = with_bases(&node, &format!("{words} --id=early")).spawn();
    gate.wait_for_visitor();
    fs::rename(node.outside("away"), node.path("one")).unwrap();
    drop(pause);
    late.wait_for(&format!("sc: waiting: pid {} ", early.pid()));
    // one who comes now waits, too, and ends where they do
    let mut last = with_bases(&node, &format!("{words} --id=last")).spawn();
    gate.open();
    for sc in [&mut early, &mut late, &mut last] {
        assert_eq!(sc.end().0, 0, "{}", sc.said);
    }
    assert_eq!(server.requests(), 1);
    assert_eq!(
        node.repofile("two/r")["readers"].as_array().unwrap().len(),
        3
    );
    for id in ["early", "late", "last"] {
        with_bases(&node, &format!("--unuse --id={id} {bases} --name=r")).run();
    }
    node.assert_paths(&["one", "two"]);
}
