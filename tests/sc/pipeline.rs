//! The archive is unpacked while it comes; what that must not change.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;

use crate::dataset::digest;
use crate::node::{Fifo, Node, Running, tree};
use crate::server::{self, Gate, Reply, Server, pattern};

/// Enough that readers are begun (1 MiB) before the last byte is there.
const HELD_AT: usize = 1_250_000;

/// An archive that is worth several threads: a symlink first, files of a worker's size, one of
/// more than that, and members that depend on their order.
struct Data {
    archive: Vec<u8>,
    whole: BTreeMap<String, String>,
}

impl Data {
    fn new() -> Data {
        let mut builder = tar::Builder::new(Vec::new());
        let mut whole = BTreeMap::new();
        let mut list = String::new();
        let header = |kind, size| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o644);
            header.set_size(size as u64);
            header.set_mtime(1_000_000_000);
            header
        };
        use tar::EntryType::{Link, Regular, Symlink};
        let mut link = header(Symlink, 0);
        builder.append_link(&mut link, "first", "d/3").unwrap();
        whole.insert("first".into(), "-> d/3".into());
        list += "first\n";
        for n in 0..7 {
            let size = if n == 5 { 400_000 } else { 150_000 + n };
            let content = pattern(size);
            let name = format!("d/{n}");
            builder
                .append_data(&mut header(Regular, size), &name, &content[..])
                .unwrap();
            list += &format!("{name}\n");
            whole.insert(name, String::from_utf8_lossy(&content).into_owned());
        }
        builder
            .append_data(&mut header(Regular, 5), "d/6", &b"again"[..])
            .unwrap();
        whole.insert("d/6".into(), "again".into());
        let mut link = header(Link, 0);
        builder.append_link(&mut link, "last", "d/6").unwrap();
        whole.insert("last".into(), "again".into());
        whole.insert("d".into(), "dir".into());
        list += "last\nd\n";
        let archive = builder.into_inner().unwrap();
        let text = String::from_utf8_lossy(&archive).into_owned();
        whole.insert("data.tar".into(), text);
        whole.insert("data.tar.list".into(), list);
        Data { archive, whole }
    }

    fn served(&self) -> Server {
        Server::new().body(self.archive.clone()).etag("\"v1\"")
    }

    fn words(&self, server: &server::Running) -> String {
        let url = server.url("/data.tar");
        format!("--name=r http:{url} md5:{} tar", digest(&self.archive))
    }

    /// What has a final name has its final content, and with state OK nothing is missing.
    #[track_caller]
    fn assert_sane(&self, node: &Node, when: &str) {
        let mut there = tree(&node.path("r"));
        let repofile = there.remove("repofile").unwrap_or_default();
        there.retain(|path, _| !path.starts_with("repofile.lock"));
        for (path, content) in &there {
            assert!(self.whole.get(path) == Some(content), "{path} {when}");
        }
        if repofile.contains("\"OK\"") {
            assert!(there == self.whole, "{:?} {when}", there.keys());
        }
    }

    #[track_caller]
    fn assert_used_and_unused(&self, node: &Node, words: &str, when: &str) {
        node.sc(&format!("--use {words}")).run();
        assert_eq!(node.repofile("r")["state"], "OK", "{when}");
        self.assert_sane(node, when);
        node.sc("--unuse --name=r").run();
        assert_eq!(node.tree(), BTreeMap::new(), "left behind {when}");
    }
}

/// A load whose server holds the rest back, and which waits at its first symlink.
struct Halfway {
    node: Node,
    data: Data,
    server: server::Running,
    gate: Gate,
    loader: Running,
    words: String,
}

/// Returns with the load in the middle of the unpacking, of the download, and the pause's end.
fn halfway() -> (Halfway, std::fs::File) {
    let node = Node::new();
    let data = Data::new();
    let gate = Gate::new();
    let held = Reply::ok().hold_after(HELD_AT, &gate);
    let server = data.served().reply(held).start();
    let words = data.words(&server);
    let fifo = Fifo::new(&node);
    let loader = node
        .sc(&format!("--use {words}"))
        .env("SC_PAUSE_AT", fifo.at("symlink"))
        .spawn();
    let pause = fifo.reached();
    let half = Halfway {
        node,
        data,
        server,
        gate,
        loader,
        words,
    };
    (half, pause)
}

impl Drop for Halfway {
    fn drop(&mut self) {
        self.gate.open();
    }
}

#[test]
fn members_are_made_while_the_archive_comes_and_none_is_seen_before_its_checksum() {
    let (mut half, pause) = halfway();
    assert!(half.server.bytes_sent() < half.data.archive.len() as u64);
    let visible: Vec<_> = tree(&half.node.path("r")).into_keys().collect();
    assert_eq!(visible, ["repofile"]);
    drop(pause);
    half.gate.open();
    assert_eq!(half.loader.end(), (0, String::new()));
    half.data.assert_sane(&half.node, "at the end");
    assert_eq!(half.server.requests(), 1);
    half.node.sc("--unuse --name=r").run();
    half.node.assert_empty();
}

#[test]
fn killed_while_it_unpacks_what_comes_a_load_goes_on_at_its_last_byte() {
    let (mut half, pause) = halfway();
    half.loader.signal(Signal::SIGKILL);
    assert_eq!(half.loader.end().0, -9);
    drop(pause);
    let staged = half.node.path(".sc.r/staging/0/data.tar");
    let staged = std::fs::metadata(staged).unwrap().len();
    assert!(staged >= 1 << 20, "{staged}");
    half.data
        .assert_used_and_unused(&half.node, &half.words, "after the kill");
    let log = half.server.log();
    let range = format!("bytes={staged}-");
    assert_eq!(log[1].header("range"), Some(range.as_str()));
}

#[test]
fn a_signal_ends_every_thread_of_a_load() {
    let (mut half, pause) = halfway();
    half.loader.signal(Signal::SIGTERM);
    drop(pause);
    assert_eq!(half.loader.end().0, 143);
    assert_eq!(half.node.repofile("r")["state"], "UNKNOWN");
    half.data
        .assert_used_and_unused(&half.node, &half.words, "after the signal");
}

/// An archive that tar refuses at its second member, and that is not the one that was asked for.
fn damaged(data: &Data) -> Vec<u8> {
    let mut wrong = data.archive.clone();
    wrong[512 + 10] ^= 1;
    wrong
}

#[test]
fn damage_is_a_wrong_checksum_whatever_tar_said_before() {
    let node = Node::new();
    let data = Data::new();
    let server = data
        .served()
        .reply(Reply::ok().body(damaged(&data)))
        .start();
    node.sc(&format!("--use {}", data.words(&server)))
        .stderr("sc: warning: wrong md5 of `data.tar`: expected {}, got {}; fetching it once more")
        .run();
    data.assert_sane(&node, "after the second look");
    let log = server.log();
    assert_eq!(log.len(), 2);
    assert_eq!(log[1].header("cache-control"), Some("no-cache"));
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn damage_that_comes_twice_leaves_nothing_behind() {
    let node = Node::new();
    let data = Data::new();
    let wrong = Reply::ok().body(damaged(&data));
    let server = data.served().always(wrong).start();
    node.sc(&format!("--use {}", data.words(&server)))
        .status(65)
        .stderr(
            "sc: warning: wrong md5 of `data.tar`: expected {}, got {}; fetching it once more\n\
             sc: wrong md5 of `data.tar`: expected {}, got {}",
        )
        .run();
    let visible: Vec<_> = tree(&node.path("r")).into_keys().collect();
    assert_eq!(visible, ["repofile"]);
    let staged = tree(&node.path(".sc.r/staging"));
    assert!(staged.values().all(|what| what == "dir"), "{staged:?}");
}

#[test]
fn what_tar_refuses_is_told_when_the_checksum_is_right() {
    let node = Node::new();
    let data = Data::new();
    let wrong = damaged(&data);
    let server = Server::new().body(wrong.clone()).etag("\"v1\"").start();
    let url = server.url("/data.tar");
    let words = format!("--name=r http:{url} md5:{} tar", digest(&wrong));
    node.sc(&format!("--use {words}"))
        .status(65)
        .stderr("sc: cannot unpack `data.tar`: the archive is damaged: a header has a wrong sum")
        .run();
    assert_eq!(server.bytes_sent(), wrong.len() as u64);
    // the download was finished, and is not asked for again
    node.sc(&format!("--use {words}"))
        .status(65)
        .stderr("sc: cannot unpack `data.tar`: the archive is damaged: a header has a wrong sum")
        .run();
    assert_eq!(server.requests(), 1);
}

#[test]
fn a_download_that_begins_anew_takes_its_readers_with_it() {
    let node = Node::new();
    let data = Data::new();
    // another version breaks off when tar has begun; what comes then is not its rest
    let mut other = data.archive.clone();
    other[600_000] ^= 1;
    let first = Reply::ok()
        .body(other)
        .header("ETag", "\"v0\"")
        .cut_after(HELD_AT);
    let server = data.served().reply(first).start();
    let words = data.words(&server);
    node.sc(&format!("--use {words}"))
        .env("SC_BACKOFF_MS", "0")
        .stderr("sc: cannot fetch `{}`: {}; retry 1 of 3 in 0.0 s")
        .run();
    assert_eq!(server.requests(), 2);
    data.assert_sane(&node, "at the end");
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_file_of_this_node_is_unpacked_by_the_same_threads() {
    let node = Node::new();
    let data = Data::new();
    let file = node.file("data.tar", &data.archive);
    let words = format!(
        "--name=r file:{} md5:{} tar",
        file.display(),
        digest(&data.archive)
    );
    data.assert_used_and_unused(&node, &words, "from a file");
}

/// As the loops of `crash`, with several threads at work; their order changes from run to run, so
/// each n is a sample.
fn each_point(variable: &str, value: impl Fn(usize) -> String) {
    let data = Data::new();
    for n in 1.. {
        let node = Node::new();
        let server = data.served().start();
        let words = data.words(&server);
        let value = value(n);
        let log = node.outside("points");
        let output = node
            .sc(&format!("--use {words}"))
            .env(variable, &value)
            .env("SC_POINTS_LOG", &log)
            .output();
        let when = format!("after {variable}={value}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{said} {when}");
        data.assert_sane(&node, &when);
        data.assert_used_and_unused(&node, &words, &when);
        // another thread that was killed may not have written down its last point
        let points = std::fs::read_to_string(&log).unwrap().lines().count();
        if points < n && output.status.success() {
            assert!(n > 60, "only {n} points");
            return;
        }
    }
}

#[test]
fn a_load_by_threads_killed_at_any_point_is_continued() {
    each_point("SC_CRASH_AT", |n| n.to_string());
}

#[test]
fn a_load_by_threads_that_meets_a_full_disk_at_any_point_is_tried_again() {
    each_point("SC_FAULT_AT", |n| format!("{n}:28"));
}
