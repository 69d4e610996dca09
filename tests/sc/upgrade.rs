//! Both programs on one directory: ours, and a double of the Python 2 one it replaces
//! (`tests/reference/sc.py`, which tells what it does wrong on purpose).
//!
//! The double polls; its intervals are made short by its environment, so nothing here waits for a
//! clock but where a lease is what is tested.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::node::{Fifo, Job, Node, inode, md5, tar_gz};
use crate::server::{Running as Serving, Server};

const DOUBLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/sc.py");
const FLUFL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/reference/flufl_counter.py"
);
const FAST: &str = "REF_POLL=0.05 REF_RETRY=0.05";

/// A node with a web server, and a repository `r` that both programs can load.
struct Site {
    node: Node,
    words: String,
    _server: Serving,
}

impl Site {
    /// `None`, said aloud, where there is no Python 3.
    fn new() -> Option<Site> {
        let python = Command::new("python3").arg("--version").output();
        if !python.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: the double of the reference needs python3");
            return None;
        }
        let node = Node::new();
        // a directory that is no member of its own: `bin`
        let archive = tar_gz(
            &node,
            "d.tar.gz",
            &[("a", "1"), ("bin/b", "2"), ("bin/c", "3")],
        );
        let server = Server::new().body(fs::read(&archive).unwrap()).start();
        let url = server.url("/d.tar.gz");
        let words = format!("-n r http:{url} md5:{} tar", md5(&archive));
        Some(Site {
            node,
            words,
            _server: server,
        })
    }

    fn repofile(&self) -> PathBuf {
        self.node.path("r/repofile")
    }

    fn json(&self) -> Value {
        let text = fs::read_to_string(self.repofile()).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn readers(&self) -> Vec<i32> {
        let json = self.json();
        let readers = json["readers"].as_array().unwrap().iter();
        readers.map(|pid| pid.as_i64().unwrap() as i32).collect()
    }

    #[track_caller]
    fn assert_whole(&self) {
        let tree = self.node.tree();
        for (path, content) in [("r/a", "1"), ("r/bin/b", "2"), ("r/bin/c", "3")] {
            assert_eq!(
                tree.get(path).map(String::as_str),
                Some(content),
                "{tree:#?}"
            );
        }
        assert!(tree.contains_key("r/d.tar.gz"));
    }

    /// Nothing is left once the next call of ours has come by.
    #[track_caller]
    fn assert_swept(&self) {
        let left = self.node.tree();
        let foreign = left.keys().filter(|path| !path.starts_with(".sc.r"));
        assert_eq!(foreign.collect::<Vec<_>>(), Vec::<&String>::new());
        self.node.sc("-n r --use --id=sweep").run();
        self.node.sc("-n r --unuse --id=sweep").run();
        self.node.assert_empty();
    }

    /// The double, as a child of the test.
    fn double(&self, words: &str) -> Command {
        let mut command = Command::new("python3");
        command
            .arg(DOUBLE)
            .arg("-d")
            .arg(self.node.base())
            .args(words.split_whitespace())
            .env("REF_POLL", "0.05")
            .env("REF_RETRY", "0.05")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// The claims for the lock, and the lock itself.
    fn claims(&self) -> Vec<String> {
        let tree = self.node.tree();
        let names = tree.into_keys();
        names
            .filter(|name| name.starts_with("r/repofile.lock"))
            .collect()
    }
}

/// Who does something.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Ours,
    Theirs,
}
use Kind::{Ours, Theirs};

/// The command of one kind, in shell syntax; its holder is the shell.
fn command(kind: Kind, words: &str) -> String {
    match kind {
        Ours => format!("\"$SC\" -q {words}"),
        Theirs => format!("{FAST} python3 '{DOUBLE}' -d \"$SC_DIRECTORIES\" {words}"),
    }
}

#[track_caller]
fn does(job: &mut Job, kind: Kind, words: &str) {
    let (status, said) = job.sh(&command(kind, words));
    assert_eq!(status, 0, "{kind:?} {words}\n{said}");
}

/// Starts it in the background; [`done`] waits for it.
fn begins(job: &mut Job, environment: &str, kind: Kind, words: &str) {
    let command = command(kind, words);
    let (status, _) = job.sh(&format!("{environment} {command} > out.$$ 2>&1 & last=$!"));
    assert_eq!(status, 0);
}

#[track_caller]
fn done(job: &mut Job) -> (i32, String) {
    job.sh("wait $last; status=$?; cat out.$$; (exit $status)")
}

fn leave_in(orders: [Kind; 2], ours: &mut Job, theirs: &mut Job, words: &str) {
    for kind in orders {
        match kind {
            Ours => does(ours, Ours, &format!("--unuse {words}")),
            Theirs => does(theirs, Theirs, &format!("--unuse {words}")),
        }
    }
}

#[test]
fn who_loads_and_who_leaves_last_makes_no_difference() {
    for (loads, joins) in [(Ours, Theirs), (Theirs, Ours)] {
        for last in [Ours, Theirs] {
            let Some(site) = Site::new() else { return };
            let (mut ours, mut theirs) = (site.node.job(), site.node.job());
            for kind in [loads, joins] {
                let job = if kind == Ours { &mut ours } else { &mut theirs };
                does(job, kind, &format!("--use {}", site.words));
                site.assert_whole();
            }
            let both = [ours.pid(), theirs.pid()];
            let readers = site.readers();
            assert!(both.iter().all(|pid| readers.contains(pid)), "{readers:?}");
            let first = if last == Ours { Theirs } else { Ours };
            leave_in([first, last], &mut ours, &mut theirs, &site.words);
            assert!(
                !site.node.path("r").exists(),
                "{loads:?} loaded, {last:?} left last"
            );
            if last == Ours {
                site.node.assert_empty();
            }
            site.assert_swept();
        }
    }
}

#[test]
fn what_is_kept_is_used_and_deleted_by_a_reference() {
    let Some(site) = Site::new() else { return };
    let (mut ours, mut theirs) = (site.node.job(), site.node.job());
    does(&mut ours, Ours, &format!("--use --keep=1d {}", site.words));
    does(&mut ours, Ours, "--unuse -n r");
    assert_eq!(
        (site.json()["state"].as_str(), site.readers()),
        (Some("OK"), vec![])
    );
    let data = inode(&site.node.path("r/a"));
    // one of theirs comes and is killed: it stays as long as was said
    let mut killed = site.node.job();
    does(&mut killed, Theirs, &format!("--use {}", site.words));
    killed.kill();
    does(&mut ours, Ours, "--gc");
    assert_eq!(site.readers(), Vec::<i32>::new());
    does(&mut theirs, Theirs, &format!("--use {}", site.words));
    assert_eq!(site.readers(), [theirs.pid()]);
    does(&mut ours, Ours, "--gc --older-than=0 --free=1000TB");
    assert_eq!(inode(&site.node.path("r/a")), data);
    site.assert_whole();
    does(&mut theirs, Theirs, &format!("--unuse {}", site.words));
    assert!(!site.node.path("r").exists());
    does(&mut ours, Ours, "--gc");
    site.node.assert_empty();
}

#[test]
fn what_a_reference_loaded_is_not_kept() {
    let Some(site) = Site::new() else { return };
    let (mut ours, mut theirs) = (site.node.job(), site.node.job());
    does(&mut theirs, Theirs, &format!("--use {}", site.words));
    does(&mut ours, Ours, &format!("--use {}", site.words));
    does(&mut theirs, Theirs, &format!("--unuse {}", site.words));
    let (status, said) = ours.sc(&format!("--unuse --keep=1d {}", site.words));
    assert_eq!(status, 0);
    assert!(
        said.contains("/r` is not kept (`--keep`): another program loaded it"),
        "{said}"
    );
    site.node.assert_empty();
}

#[test]
fn what_a_reference_loaded_is_loaded_anew_with_refresh() {
    let Some(site) = Site::new() else { return };
    let (mut ours, mut theirs) = (site.node.job(), site.node.job());
    does(&mut theirs, Theirs, &format!("--use {}", site.words));
    theirs.kill();
    let (status, said) = ours.sc(&format!("-v --use --refresh {}", site.words));
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("/r`: `--refresh`"), "{said}");
    site.assert_whole();
    does(&mut ours, Ours, &format!("--unuse {}", site.words));
    site.node.assert_empty();
}

#[test]
fn without_modules_the_lists_tell_what_a_reference_has_loaded() {
    let Some(site) = Site::new() else { return };
    let mut job = site.node.job();
    does(&mut job, Theirs, &format!("--use {}", site.words));
    // lists of somebody's own: not every line is there, or no archive is
    for (name, content) in [
        ("notes", "mine"),
        ("notes.list", "a\nto do\n"),
        ("only.list", "a\n"),
    ] {
        fs::write(site.node.path("r").join(name), content).unwrap();
    }
    let (status, said) = job.sh("\"$SC\" --unuse -n r");
    assert_eq!(status, 0, "{said}");
    site.node
        .assert_paths(&["r", "r/notes", "r/notes.list", "r/only.list"]);
}

#[test]
fn a_reference_waits_for_our_load_is_registered_and_joins() {
    for last in [Ours, Theirs] {
        let Some(site) = Site::new() else { return };
        let (mut ours, mut theirs) = (site.node.job(), site.node.job());
        let (load, wait) = (
            Fifo::named(&site.node, "load"),
            Fifo::named(&site.node, "wait"),
        );
        let use_ = format!("--use {}", site.words);
        begins(
            &mut ours,
            &format!("SC_PAUSE_AT='{}'", load.at("publish")),
            Ours,
            &use_,
        );
        let loading = load.reached();
        begins(
            &mut theirs,
            &format!("REF_PAUSE_AT='{}'", wait.at("waits")),
            Theirs,
            &use_,
        );
        let waiting = wait.reached();
        let json = site.json();
        assert_eq!(json["state"], "IN_PROGRESS");
        assert!(json["writer"].is_u64());
        assert_eq!(site.readers(), [ours.pid(), theirs.pid()]);
        drop(loading);
        assert_eq!(done(&mut ours), (0, String::new()));
        drop(waiting);
        let (status, said) = done(&mut theirs);
        assert_eq!(status, 0, "{said}");
        assert!(said.contains("use registered in repo"), "{said}");
        site.assert_whole();
        let first = if last == Ours { Theirs } else { Ours };
        leave_in([first, last], &mut ours, &mut theirs, &site.words);
        site.assert_swept();
    }
}

#[test]
fn we_wait_for_a_reference_s_load_say_so_and_join() {
    for last in [Ours, Theirs] {
        let Some(site) = Site::new() else { return };
        let mut theirs = site.node.job();
        let gate = Fifo::named(&site.node, "load");
        let use_ = format!("--use {}", site.words);
        begins(
            &mut theirs,
            &format!("REF_PAUSE_AT='{}'", gate.at("extract")),
            Theirs,
            &use_,
        );
        let loading = gate.reached();
        let mut waiter = site.node.sc(&use_).spawn();
        waiter.wait_for(&format!("waiting: pid {} is loading `", theirs.pid()));
        site.node
            .sc(&format!("--no-wait --id=hurried {use_}"))
            .status(75)
            .stderr("sc: did not wait for `{}/r` (`--no-wait`): pid {} is loading it")
            .run();
        drop(loading);
        assert_eq!(waiter.end().0, 0, "{}", waiter.said);
        assert_eq!(done(&mut theirs).0, 0);
        site.assert_whole();
        if last == Ours {
            does(&mut theirs, Theirs, &format!("--unuse {}", site.words));
        }
        site.node.sc(&format!("--unuse {}", site.words)).run();
        if last == Theirs {
            does(&mut theirs, Theirs, &format!("--unuse {}", site.words));
        }
        site.assert_swept();
    }
}

#[test]
fn a_reference_whose_wait_ends_with_our_failure_loads_itself() {
    let Some(site) = Site::new() else { return };
    let (mut ours, mut theirs) = (site.node.job(), site.node.job());
    let (load, wait) = (
        Fifo::named(&site.node, "load"),
        Fifo::named(&site.node, "wait"),
    );
    let words = &site.words;
    begins(
        &mut ours,
        &format!("SC_PAUSE_AT='{}'", load.at("publish")),
        Ours,
        &format!("--use {words}"),
    );
    let loading = load.reached();
    begins(
        &mut theirs,
        &format!("REF_PAUSE_AT='{}'", wait.at("waits")),
        Theirs,
        &format!("--use {words}"),
    );
    let waiting = wait.reached();
    // in our way: the load fails, and its provisional holder with it
    fs::write(site.node.path("r/a"), "foreign").unwrap();
    drop(loading);
    assert_eq!(done(&mut ours).0, 77);
    let json = site.json();
    assert_eq!(
        (&json["state"], &json["writer"]),
        (&"BROKEN".into(), &Value::Null)
    );
    assert_eq!(site.readers(), [theirs.pid()]);
    fs::remove_file(site.node.path("r/a")).unwrap();
    drop(waiting);
    let (status, said) = done(&mut theirs);
    assert_eq!(status, 0, "{said}");
    site.assert_whole();
    does(&mut ours, Ours, &format!("--use {words}"));
    does(&mut theirs, Theirs, &format!("--unuse {words}"));
    does(&mut ours, Ours, &format!("--unuse {words}"));
    site.node.assert_empty();
}

#[test]
fn what_a_reference_deletes_during_our_load_is_loaded_again() {
    // h56: the holder of our load is dead for the reference, whose unuse comes during the load
    for label in ["publish", "commit"] {
        let Some(site) = Site::new() else { return };
        let (mut shell, mut theirs) = (site.node.job(), site.node.job());
        let (load, wait) = (
            Fifo::named(&site.node, "load"),
            Fifo::named(&site.node, "wait"),
        );
        let use_ = format!("--use {}", site.words);
        let dead = shell.pid();
        let mut loader = site
            .node
            .sc(&format!("{use_} --pid={dead}"))
            .env("SC_PAUSE_AT", load.at("publish"))
            .spawn();
        let loading = load.reached();
        begins(
            &mut theirs,
            &format!("REF_PAUSE_AT='{}'", wait.at("waits")),
            Theirs,
            &use_,
        );
        let waiting = wait.reached();
        shell.sh("true");
        shell.kill();
        theirs.sh("kill -9 $last");
        drop(waiting);
        theirs.sh("wait $last");
        if label == "commit" {
            // what its stack reaches must be there for it to get to the end
            fs::write(site.node.path("r/d.tar.gz"), "").unwrap();
            fs::write(site.node.path("r/d.tar.gz.list"), "").unwrap();
            does(&mut theirs, Theirs, &format!("--unuse {}", site.words));
        } else {
            does(&mut theirs, Theirs, "--unuse -n r");
        }
        assert!(!site.node.path("r").exists());
        drop(loading);
        assert_eq!(loader.end().0, 0, "{}", loader.said);
        assert!(
            loader.said.contains("during the load; loading again"),
            "{}",
            loader.said
        );
        site.assert_whole();
        // the holder is dead: the next call reaps it
        does(&mut theirs, Ours, &use_);
        does(&mut theirs, Ours, &format!("--unuse {}", site.words));
        site.node.assert_empty();
    }
}

#[test]
fn a_published_file_that_a_reference_deleted_before_ok_is_loaded_again() {
    let Some(site) = Site::new() else { return };
    let gate = Fifo::named(&site.node, "gate");
    // the last rename before OK is that of the last entry; the commit of OK waits for the lock
    let lock = site.node.path("r/repofile.lock");
    let mut loader = site
        .node
        .sc(&format!("--use {}", site.words))
        .env("SC_PAUSE_AT", gate.at("publish"))
        .spawn();
    let pause = gate.reached();
    fs::write(&lock, "").unwrap();
    drop(pause);
    // it waits for the lock with all published
    loop {
        if site.claims().len() == 2 {
            break;
        }
        std::thread::yield_now();
    }
    site.assert_whole();
    fs::remove_file(site.node.path("r/a")).unwrap();
    fs::remove_file(&lock).unwrap();
    assert_eq!(loader.end().0, 0, "{}", loader.said);
    assert!(loader.said.contains("deleted `a` in `"), "{}", loader.said);
    site.assert_whole();
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
}

#[test]
fn a_reference_that_takes_us_for_dead_and_loads_is_waited_for() {
    let Some(site) = Site::new() else { return };
    let mut theirs = site.node.job();
    let gate = Fifo::named(&site.node, "gate");
    let mut loader = site
        .node
        .sc(&format!("--use {}", site.words))
        .env("SC_PAUSE_AT", gate.at("publish"))
        .spawn();
    let pause = gate.reached();
    // what a reference in another pid namespace does: our writer is no process there
    let mut json = site.json();
    json["writer"] = Value::Null;
    json["state"] = "BROKEN".into();
    fs::write(site.repofile(), json.to_string()).unwrap();
    let load = Fifo::named(&site.node, "load");
    begins(
        &mut theirs,
        &format!("REF_PAUSE_AT='{}'", load.at("poll")),
        Theirs,
        &format!("--use {}", site.words),
    );
    let loading = load.reached();
    drop(pause);
    loader.wait_for(&format!("waiting: pid {} is loading", theirs.pid()));
    let json = site.json();
    assert_eq!(json["writer"], theirs.pid());
    drop(loading);
    assert_eq!(done(&mut theirs).0, 0);
    assert_eq!(loader.end().0, 0, "{}", loader.said);
    site.assert_whole();
    does(&mut theirs, Theirs, &format!("--unuse {}", site.words));
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
}

/// Begins the double, waits until it is at `label` and kills it there.
fn killed_at(site: &Site, label: &str, words: &str) {
    let gate = Fifo::named(&site.node, "killed");
    let mut double: Child = site
        .double(words)
        .env("REF_PAUSE_AT", gate.at(label))
        .spawn()
        .unwrap();
    let pause = gate.reached();
    double.kill().unwrap();
    double.wait().unwrap();
    drop(pause);
    fs::remove_file(gate.path()).unwrap();
}

/// Makes a lock or claim look as if it had been taken a minute ago.
fn age(path: &Path) {
    let then = SystemTime::now() - Duration::from_secs(60);
    fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(then)
        .unwrap();
}

#[test]
fn a_lock_left_by_a_killed_reference_is_broken_by_the_rule() {
    let Some(site) = Site::new() else { return };
    let words = &site.words;
    site.node.sc(&format!("--use --id=1 {words}")).run();
    killed_at(&site, "locked", &format!("--use {words}"));
    assert_eq!(site.claims().len(), 2);
    site.node
        .sc("--use -n r --id=2 --no-wait")
        .arg(words.split_whitespace().nth(2).unwrap())
        .status(75)
        .output();
    age(&site.node.path("r/repofile.lock"));
    site.node.sc(&format!("--use --id=2 {words}")).run();
    assert_eq!(site.claims(), Vec::<String>::new());
    site.node.sc("--unuse -n r --id=1").run();
    site.node.sc("--unuse -n r --id=2").run();
    site.node.assert_empty();
}

#[test]
fn a_repofile_that_a_reference_was_killed_writing_is_written_anew() {
    // h34
    let Some(site) = Site::new() else { return };
    let words = &site.words;
    site.node.sc(&format!("--use {words}")).run();
    killed_at(&site, "truncated", &format!("--use {words}"));
    assert_eq!(fs::read(site.repofile()).unwrap(), b"");
    age(&site.node.path("r/repofile.lock"));
    site.node.sc(&format!("--use {words}")).run();
    site.assert_whole();
    site.node.sc(&format!("--unuse {words}")).run();
    site.node.assert_empty();
}

#[test]
fn members_that_a_reference_was_killed_deleting_are_missed_and_loaded_again() {
    // h04: the state still says OK, and everything at the top is still there
    let Some(site) = Site::new() else { return };
    let mut theirs = site.node.job();
    let words = &site.words;
    site.node.sc(&format!("--use {words}")).run();
    does(&mut theirs, Theirs, &format!("--use {words}"));
    site.node.sc("--unuse -n r").run();
    let gate = Fifo::named(&site.node, "deletes");
    begins(
        &mut theirs,
        &format!("REF_PAUSE_AT='{}'", gate.at("teardown")),
        Theirs,
        &format!("--unuse {words}"),
    );
    let deleting = gate.reached();
    theirs.sh("kill -9 $last; wait $last");
    drop(deleting);
    fs::remove_file(site.node.path("r/bin/b")).unwrap();
    age(&site.node.path("r/repofile.lock"));
    theirs.kill();
    site.node.sc(&format!("--use {words}")).run();
    site.assert_whole();
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
}

#[test]
fn a_reference_that_deletes_for_longer_than_its_lease_is_waited_for() {
    // h03: by the rule its lock is over. The process must be older than the lock: pid 1.
    if !is_root() {
        eprintln!("SKIPPED: only for root is pid 1 a process of its own");
        return;
    }
    let Some(site) = Site::new() else { return };
    site.node.sc("--use -n r --id=first").run();
    let lock = site.node.path("r/repofile.lock");
    let claim = format!("{}|localhost|1|7", lock.display());
    fs::write(&claim, &claim).unwrap();
    fs::hard_link(&claim, &lock).unwrap();
    let then = SystemTime::now() - Duration::from_secs(12);
    let file = fs::File::options().write(true).open(&lock).unwrap();
    file.set_modified(then).unwrap();
    site.node
        .sc("--use -n r --id=2 --no-wait")
        .status(75)
        .stderr(
            "sc: did not wait for `{}/r/repofile.lock` (`--no-wait`): another program holds the \
             repofile's lock",
        )
        .run();
    let mut waiter = site.node.sc("-v --use -n r --id=2").spawn();
    waiter.wait_for("waiting for the lock `");
    fs::remove_file(&claim).unwrap();
    fs::remove_file(&lock).unwrap();
    assert_eq!(waiter.end().0, 0, "{}", waiter.said);
    site.node.sc("--unuse -n r --id=2").run();
    site.node.sc("--unuse -n r --id=first").run();
    site.node.assert_empty();
}

#[test]
fn a_directory_that_the_last_reference_removes_under_us_is_made_anew() {
    // h32, h33: we have seen the directory, and meet it gone when we want our claim in it
    let Some(site) = Site::new() else { return };
    let mut theirs = site.node.job();
    let words = &site.words;
    site.node.sc(&format!("--use {words}")).run();
    does(&mut theirs, Theirs, &format!("--use {words}"));
    site.node.sc("--unuse -n r").run();
    let (leave, come) = (
        Fifo::named(&site.node, "leave"),
        Fifo::named(&site.node, "come"),
    );
    begins(
        &mut theirs,
        &format!("REF_PAUSE_AT='{}'", leave.at("rmdir")),
        Theirs,
        &format!("--unuse {words}"),
    );
    let leaving = leave.reached();
    let mut comer = site
        .node
        .sc(&format!("--use {words}"))
        .env("SC_PAUSE_AT", come.at("create"))
        .spawn();
    let coming = come.reached();
    drop(leaving);
    assert_eq!(done(&mut theirs).0, 0);
    drop(coming);
    assert_eq!(comer.end().0, 0, "{}", comer.said);
    site.assert_whole();
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
}

#[test]
fn a_lock_that_we_left_when_we_were_killed_is_broken_by_a_reference_and_by_us() {
    for breaks in [Ours, Theirs] {
        let Some(site) = Site::new() else { return };
        let (mut first, mut second) = (site.node.job(), site.node.job());
        let words = &site.words;
        does(&mut first, Ours, &format!("--use {words}"));
        let gate = Fifo::named(&site.node, "commit");
        let mut killed = site
            .node
            .sc(&format!("--use {words}"))
            .env("SC_PAUSE_AT", gate.at("rename"))
            .spawn();
        let pause = gate.reached();
        killed.signal(Signal::SIGKILL);
        killed.end();
        drop(pause);
        assert_eq!(site.claims().len(), 2);
        // a reference waits for the end of our lease; it is made to think that it is over
        let use_ = format!("--use {words}");
        match breaks {
            Ours => does(&mut second, Ours, &use_),
            Theirs => {
                age(&site.node.path("r/repofile.lock"));
                does(&mut second, Theirs, &use_);
            }
        }
        assert_eq!(site.readers(), [first.pid(), second.pid()]);
        does(&mut first, Ours, &format!("--unuse {words}"));
        does(&mut second, breaks, &format!("--unuse {words}"));
        site.assert_swept();
    }
}

#[test]
fn a_lock_that_a_reference_breaks_while_we_hold_it_makes_us_begin_again() {
    // h36, h03 from the other side: stopped for longer than the lease
    let Some(site) = Site::new() else { return };
    let mut theirs = site.node.job();
    let words = &site.words;
    site.node.sc(&format!("--use --id=1 {words}")).run();
    let gate = Fifo::named(&site.node, "commit");
    let mut stopped = site
        .node
        .sc(&format!("--use --id=2 {words}"))
        .env("SC_PAUSE_AT", gate.at("write"))
        .spawn();
    // the first write is that of the next repofile, under the lock
    let pause = gate.reached();
    age(&site.node.path("r/repofile.lock"));
    does(&mut theirs, Theirs, &format!("--use {words}"));
    drop(pause);
    assert_eq!(stopped.end().0, 0, "{}", stopped.said);
    let readers = site.readers();
    assert_eq!(readers.len(), 3, "no update is lost: {readers:?}");
    does(&mut theirs, Theirs, &format!("--unuse {words}"));
    site.node.sc("--unuse -n r --id=1").run();
    site.node.sc("--unuse -n r --id=2").run();
    site.node.assert_empty();
}

#[test]
fn a_reference_that_breaks_into_our_teardown_and_loads_keeps_its_data() {
    let Some(site) = Site::new() else { return };
    let mut theirs = site.node.job();
    let words = &site.words;
    site.node.sc(&format!("--use {words}")).run();
    let gate = Fifo::named(&site.node, "teardown");
    let mut leaver = site
        .node
        .sc("--unuse -n r")
        .env("SC_PAUSE_AT", gate.at("teardown"))
        .spawn();
    let pause = gate.reached();
    age(&site.node.path("r/repofile.lock"));
    does(&mut theirs, Theirs, &format!("--use {words}"));
    drop(pause);
    assert_eq!(leaver.end().0, 0, "{}", leaver.said);
    site.assert_whole();
    assert_eq!(site.readers(), [theirs.pid()]);
    does(&mut theirs, Theirs, &format!("--unuse {words}"));
    site.assert_swept();
}

#[test]
fn claims_of_killed_references_do_not_keep_the_directory() {
    // h28
    let Some(site) = Site::new() else { return };
    let words = &site.words;
    site.node.sc(&format!("--use {words}")).run();
    killed_at(&site, "link", &format!("--use {words}"));
    let claims = site.claims();
    assert_eq!(claims.len(), 1);
    age(&site.node.path(&claims[0]));
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
    // younger than its lease: it stays, and goes with the next repository of that name
    site.node.sc(&format!("--use {words}")).run();
    killed_at(&site, "link", &format!("--use {words}"));
    let claims = site.claims();
    site.node.sc("--unuse -n r").output();
    assert_eq!(site.claims(), claims);
    age(&site.node.path(&claims[0]));
    site.node.sc(&format!("--use {words}")).run();
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
}

#[test]
fn the_claim_of_a_waiting_reference_is_never_taken_away() {
    let Some(site) = Site::new() else { return };
    let words = &site.words;
    site.node.sc(&format!("--use {words}")).run();
    let gate = Fifo::named(&site.node, "claim");
    let mut double = site
        .double(&format!("--use {words}"))
        .env("REF_PAUSE_AT", gate.at("link"))
        .spawn()
        .unwrap();
    let waiting = gate.reached();
    age(&site.node.path(&site.claims()[0]));
    site.node.sc("--unuse -n r").output();
    drop(waiting);
    assert!(double.wait().unwrap().success());
    site.assert_whole();
    let unused = site.double(&format!("--unuse {words}")).status().unwrap();
    assert!(unused.success());
    site.assert_swept();
}

#[test]
fn in_progress_without_a_writer_and_a_repofile_put_back_are_loaded_anew() {
    // h35, h48
    let Some(site) = Site::new() else { return };
    let words = &site.words;
    site.node.sc(&format!("--use {words}")).run();
    let was = fs::read_to_string(site.repofile()).unwrap();
    let broken = was.replacen("\"OK\"", "\"IN_PROGRESS\"", 1);
    fs::write(site.repofile(), broken).unwrap();
    site.node.sc(&format!("--use {words}")).run();
    site.assert_whole();
    let was = fs::read_to_string(site.repofile()).unwrap();
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
    fs::create_dir(site.node.path("r")).unwrap();
    fs::write(site.repofile(), was).unwrap();
    site.node.sc(&format!("--use {words}")).run();
    site.assert_whole();
    site.node.sc("--unuse -n r").run();
    // the directory was not ours
    site.node.assert_paths(&["r"]);
}

#[test]
fn unknown_keys_survive_both_programs() {
    let Some(site) = Site::new() else { return };
    let mut theirs = site.node.job();
    let words = &site.words;
    site.node.sc(&format!("--use {words}")).run();
    let mut json = site.json();
    json["site"] = serde_json::json!({"ticket": [1, "ü"]});
    fs::write(site.repofile(), json.to_string()).unwrap();
    does(&mut theirs, Theirs, &format!("--use {words}"));
    site.node.sc(&format!("--use --id=2 {words}")).run();
    does(&mut theirs, Theirs, &format!("--unuse {words}"));
    site.node.sc("--unuse -n r --id=2").run();
    assert_eq!(site.json()["site"], json["site"]);
    assert_eq!(site.json()["sc"]["generation"], json["sc"]["generation"]);
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
}

/// Our side of the contest: registers and gives up `n` times.
fn turns(site: &Site, tag: usize, n: usize) {
    for turn in 0..n {
        let holder = format!("-n r --id={tag}.{turn}");
        site.node.sc(&format!("-q --use {holder}")).run();
        site.node.sc(&format!("-q --unuse {holder}")).run();
    }
}

#[test]
fn no_update_is_lost_between_both_programs_and_flufl_lock() {
    const TIMES: usize = 25;
    let Some(site) = Site::new() else { return };
    site.node.sc("--use -n r").run();
    let mut json = site.json();
    json["counter"] = 0.into();
    fs::write(site.repofile(), json.to_string()).unwrap();
    let flufl = flufl();
    std::thread::scope(|scope| {
        for tag in 0..3 {
            let site = &site;
            scope.spawn(move || turns(site, tag, TIMES));
        }
        let counters: Vec<Child> = (0..3)
            .map(|_| {
                site.double(&format!("-n r --increment={TIMES}"))
                    .env("REF_RETRY", "0.01")
                    .spawn()
                    .unwrap()
            })
            .chain(flufl.iter().map(|python| {
                Command::new(python)
                    .arg(FLUFL)
                    .arg(site.repofile())
                    .arg(TIMES.to_string())
                    .spawn()
                    .unwrap()
            }))
            .collect();
        for mut counter in counters {
            assert!(counter.wait().unwrap().success());
        }
    });
    let expected = TIMES * (3 + usize::from(flufl.is_some()));
    assert_eq!(site.json()["counter"], expected);
    assert_eq!(site.readers().len(), 1);
    site.node.sc("--unuse -n r").run();
    site.node.assert_empty();
}

/// A Python that has the package flufl.lock: `scripts/test` makes one.
fn flufl() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/flufl/bin/python");
    for python in [here, PathBuf::from("python3")] {
        let has = Command::new(&python)
            .args(["-c", "import flufl.lock"])
            .stderr(Stdio::null())
            .status();
        if has.is_ok_and(|status| status.success()) {
            return Some(python);
        }
    }
    eprintln!("SKIPPED: the package flufl.lock is not there; scripts/test installs it");
    None
}

#[test]
fn eight_of_each_at_once_share_one_copy_and_leave_nothing() {
    let Some(site) = Site::new() else { return };
    let words = &site.words;
    let mut jobs: Vec<(Kind, Job)> = (0..16)
        .map(|n| (if n % 2 == 0 { Ours } else { Theirs }, site.node.job()))
        .collect();
    // the directory is there: two references at once would fail in mkdir (h31)
    site.node.sc(&format!("--use --id=first {words}")).run();
    for (kind, job) in &mut jobs {
        begins(job, "", *kind, &format!("--use {words}"));
    }
    for (kind, job) in &mut jobs {
        let (status, said) = done(job);
        assert_eq!(status, 0, "{kind:?}: {said}");
    }
    site.assert_whole();
    assert_eq!(site.readers().len(), 17);
    for (kind, job) in &mut jobs {
        begins(job, "", *kind, &format!("--unuse {words}"));
    }
    for (kind, job) in &mut jobs {
        let (status, said) = done(job);
        assert_eq!(status, 0, "{kind:?}: {said}");
    }
    site.node.sc("--unuse -n r --id=first").run();
    site.node.assert_empty();
}

#[test]
fn eight_of_each_killed_at_random_points_leave_what_the_next_use_makes_whole() {
    let mut killed = [0, 0];
    for seed in 1..=2u64 {
        let Some(site) = Site::new() else { return };
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let words = &site.words;
        site.node.sc(&format!("--use --id=first {words}")).run();
        // A lock that one of ours left is broken at once by the next of ours, by a reference after
        // 25 s: there is always one of ours.
        let mut ticker = site.node.job();
        let goes_on = site.node.file("goes on", "");
        let tick = format!("\"$SC\" -q --use {words}; \"$SC\" -q --unuse {words}");
        ticker.sh(&format!(
            "while [ -e 'goes on' ]; do {tick}; done & last=$!"
        ));
        let jobs: Vec<(Kind, Job)> = (0..16)
            .map(|n| {
                let kind = if n % 2 == 0 { Ours } else { Theirs };
                let mut job = site.node.job();
                let at = match kind {
                    Ours => format!("SC_CRASH_AT={}", 1 + random(30)),
                    // a lease that is over at once for what is killed, and soon for the others
                    Theirs => format!("REF_LEASE=-5 REF_KILL_AT={}", 1 + random(12)),
                };
                begins(&mut job, &at, kind, &format!("--use --unuse {words}"));
                (kind, job)
            })
            .collect();
        for (kind, mut job) in jobs {
            let (status, said) = done(&mut job);
            // killed, or done before the point came; a reference that met an empty state file of
            // another one that was killed fails (h34), and so does one whose lock was broken (h36)
            killed[usize::from(kind == Ours)] += u32::from(status == 137);
            match kind {
                Ours => assert!([0, 137].contains(&status), "seed {seed}: {status} {said}"),
                Theirs => assert!([0, 1, 137, 255].contains(&status), "seed {seed}: {said}"),
            }
            job.kill();
        }
        fs::remove_file(goes_on).unwrap();
        ticker.sh("wait $last");
        for name in site.claims() {
            age(&site.node.path(name));
        }
        site.node.sc(&format!("-q --use --id=last {words}")).run();
        site.assert_whole();
        site.node.sc("-q --unuse -n r --id=last").run();
        // the holders that an empty state file forgot are none any more
        if site.repofile().exists() {
            site.node.sc("-q --unuse -n r --id=first").run();
        }
        site.node.assert_empty();
    }
    assert!(
        killed.iter().all(|&n| n >= 4),
        "too few were killed: {killed:?}"
    );
}

#[test]
fn planted_locks_and_claims_touch_nothing_outside() {
    let Some(site) = Site::new() else { return };
    let victim = site.node.file("victim", "precious");
    let elsewhere = site.node.outside("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let lock = site.node.path("r/repofile.lock");
    let claim = site.node.path("r/repofile.lock|localhost|1|7");
    site.node.sc("--use -n r --id=first").run();
    let next = |status: i32| {
        let output = site.node.sc("--use -n r --id=next").output();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        if status == 0 {
            site.node.sc("--unuse -n r --id=next").run();
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
        assert!(elsewhere.exists());
    };
    let paths = [
        victim.display().to_string(),
        format!("{}/../victim", site.node.base().display()),
        elsewhere.display().to_string(),
        format!("{}|../../victim", lock.display()),
        "\0\n".into(),
        "x".repeat(1 << 20),
        String::new(),
    ];
    for content in paths {
        fs::write(&lock, &content).unwrap();
        age(&lock);
        next(0);
        assert!(
            !lock.exists(),
            "a stale lock is broken, whatever stands in it"
        );
    }
    // a claim that the lock names, and that is another file
    fs::write(&claim, "").unwrap();
    fs::write(&lock, claim.display().to_string()).unwrap();
    age(&lock);
    next(0);
    assert!(claim.exists(), "not the file that was linked");
    fs::remove_file(&claim).unwrap();
    // no file at all
    fs::create_dir(&lock).unwrap();
    next(77);
    fs::remove_dir(&lock).unwrap();
    symlink(&victim, &lock).unwrap();
    next(77);
    fs::remove_file(&lock).unwrap();
    // claims that are none are swept by nobody, and followed by nobody
    symlink(&elsewhere, &claim).unwrap();
    site.node.sc("--unuse -n r --id=first").output();
    assert!(elsewhere.exists() && fs::symlink_metadata(&claim).is_ok());
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_lock_of_another_user_proves_no_life_and_is_broken_by_the_rule() {
    if !is_root() {
        eprintln!("SKIPPED: only root can make another user's file");
        return;
    }
    let Some(site) = Site::new() else { return };
    site.node.sc("--use -n r --id=first").run();
    let lock = site.node.path("r/repofile.lock");
    // it names a process that lives: this one
    let claim = format!("{}|localhost|{}|7", lock.display(), std::process::id());
    fs::write(&claim, &claim).unwrap();
    fs::hard_link(&claim, &lock).unwrap();
    std::os::unix::fs::chown(&claim, Some(12345), None).unwrap();
    age(&lock);
    site.node.sc("--use -n r --id=2").run();
    assert!(!lock.exists() && !Path::new(&claim).exists());
    site.node.sc("--unuse -n r --id=2").run();
    site.node.sc("--unuse -n r --id=first").run();
    site.node.assert_empty();
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

#[test]
fn a_lock_taken_after_a_long_wait_has_its_whole_lease() {
    use std::os::unix::fs::MetadataExt;
    let Some(site) = Site::new() else { return };
    site.node.sc("--use -n r --id=first").run();
    let lock = site.node.path("r/repofile.lock");
    fs::write(&lock, "").unwrap();
    let gate = Fifo::named(&site.node, "commit");
    let mut waiter = site
        .node
        .sc("-v --use -n r --id=2")
        .env("SC_PAUSE_AT", gate.at("write"))
        .spawn();
    waiter.wait_for("waiting for the lock `");
    let claim = site
        .claims()
        .into_iter()
        .find(|name| name.contains('|'))
        .unwrap();
    let claim = site.node.path(claim);
    age(&claim);
    fs::remove_file(&lock).unwrap();
    let pause = gate.reached();
    assert_eq!(inode(&claim), inode(&lock));
    let left = fs::metadata(&lock).unwrap().mtime()
        - SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs() as i64;
    assert!((5..=15).contains(&left), "{left} s are left of the lease");
    drop(pause);
    assert_eq!(waiter.end().0, 0, "{}", waiter.said);
    site.node.sc("--unuse -n r --id=2").run();
    site.node.sc("--unuse -n r --id=first").run();
    site.node.assert_empty();
}
