//! A load that was killed is continued by the next process: at the last byte of a download, at
//! the first unfinished stage.

use std::fs;

use nix::sys::signal::Signal;

use crate::dataset::{Dataset, HELD_AT, LARGE, half_loaded};
use crate::node::{Fifo, Node, tar_gz};
use crate::server::{self, Gate, Reply};

fn staged(node: &Node) -> u64 {
    let path = node.path(".sc.r/staging/0/data.tar");
    std::fs::metadata(path).unwrap().len()
}

struct Half {
    node: Node,
    data: Dataset,
    gate: Gate,
    server: server::Running,
    words: String,
    staged: u64,
}

/// A repository whose loader was killed by SIGKILL in the middle of the download.
#[track_caller]
fn killed_half_way() -> Half {
    let node = Node::new();
    let data = Dataset::new(LARGE);
    let gate = Gate::new();
    let server = data
        .served()
        .reply(Reply::ok().hold_after(HELD_AT, &gate))
        .start();
    let words = data.words(&server);
    let sc = node.sc(&format!("--use --progress=always {words}"));
    let mut loader = half_loaded(sc);
    loader.signal(Signal::SIGKILL);
    assert_eq!(loader.end().0, -9);
    let staged = staged(&node);
    assert!(
        staged >= LARGE as u64 * 2 / 5 && staged <= HELD_AT as u64,
        "{staged}"
    );
    Half {
        node,
        data,
        gate,
        server,
        words,
        staged,
    }
}

impl Half {
    /// The second request asked for the rest of the same version.
    #[track_caller]
    fn assert_resumed(&self) {
        let log = self.server.log();
        assert_eq!(
            log[1].header("range"),
            Some(format!("bytes={}-", self.staged).as_str())
        );
        assert_eq!(log[1].header("if-range"), Some("\"v1\""));
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.gate.open();
    }
}

#[test]
fn a_download_killed_half_way_is_continued_at_its_last_byte() {
    let half = killed_half_way();
    let Half { node, words, .. } = &half;
    let before = half.server.bytes_sent();
    node.sc(&format!("-v --use {words}"))
        .stderr(
            "sc: loading `{}/r`: its loader died\n\
             sc: `http:{}`\n\
             sc: `md5:{}`\n\
             sc: `tar`",
        )
        .run();
    half.assert_resumed();
    assert_eq!(half.server.requests(), 2);
    assert_eq!(
        half.server.bytes_sent() - before,
        half.data.archive.len() as u64 - half.staged,
        "more than the rest was sent"
    );
    half.data.assert_whole(node);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn another_version_is_not_appended_to_what_is_there() {
    let half = killed_half_way();
    let Half { node, words, .. } = &half;
    // the same bytes, but the server calls them new: all of them are sent
    half.server.set_body(half.data.archive.clone(), "\"v2\"");
    let before = half.server.bytes_sent();
    node.sc(&format!("--use {words}")).run();
    half.assert_resumed();
    assert_eq!(
        half.server.bytes_sent() - before,
        half.data.archive.len() as u64
    );
    half.data.assert_whole(node);
}

#[test]
fn wrong_bytes_after_a_resume_are_fetched_once_more_past_the_caches() {
    let half = killed_half_way();
    let Half { node, words, .. } = &half;
    // a cache that mixes versions: same name of the version, same length, other bytes
    let mut wrong = half.data.archive.clone();
    wrong[LARGE] ^= 1;
    half.server.reply(Reply::ok().body(wrong));
    node.sc(&format!("--use {words}"))
        .stderr(
            "sc: warning: wrong md5 of `{}data.tar`: expected {}, got {}; fetching it once more",
        )
        .run();
    half.assert_resumed();
    let log = half.server.log();
    assert_eq!(log.len(), 3);
    assert_eq!(log[1].header("cache-control"), None);
    assert_eq!(log[2].header("cache-control"), Some("no-cache"));
    assert_eq!(log[2].header("range"), None);
    half.data.assert_whole(node);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn bytes_that_are_wrong_twice_are_an_error_and_a_later_use_tries_again() {
    let half = killed_half_way();
    let Half { node, words, .. } = &half;
    let mut wrong = half.data.archive.clone();
    wrong[LARGE] ^= 1;
    half.server.reply(Reply::ok().body(wrong.clone()));
    half.server.reply(Reply::ok().body(wrong));
    node.sc(&format!("--use {words}"))
        .status(65)
        .stderr(
            "sc: warning: wrong md5 of `{}data.tar`: expected {}, got {}; fetching it once more\n\
             sc: wrong md5 of `{}data.tar`: expected {}, got {}",
        )
        .run();
    assert_eq!(half.server.requests(), 3);
    let visible: Vec<_> = crate::node::tree(&node.path("r")).into_keys().collect();
    assert_eq!(visible, ["repofile"], "something partial is visible");
    let repofile = node.repofile("r");
    assert_eq!(
        (&repofile["state"], &repofile["writer"]),
        (&"BROKEN".into(), &serde_json::Value::Null)
    );
    assert_eq!(repofile["readers"], serde_json::json!([]));

    node.sc(&format!("--use --no-wait {words}")).run();
    let log = half.server.log();
    assert_eq!(log.len(), 4);
    assert_eq!(
        (log[3].header("range"), log[3].header("cache-control")),
        (None, None),
        "nothing of the wrong bytes is kept"
    );
    half.data.assert_whole(node);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

/// A load killed at the first point with this label is continued without a request; `said` is
/// what the next one says then.
#[track_caller]
fn continued_without_a_request(label: &str, said: &str) {
    let node = Node::new();
    let data = Dataset::new(100_000);
    let server = data.served().start();
    let words = data.words(&server);
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use {words}"))
        .env("SC_PAUSE_AT", fifo.at(label))
        .spawn();
    let pause = fifo.reached();
    loader.signal(Signal::SIGKILL);
    assert_eq!(loader.end().0, -9);
    drop(pause);
    node.sc(&format!("-v --use {words}")).stderr(said).run();
    assert_eq!(server.requests(), 1);
    assert_eq!(server.bytes_sent(), data.archive.len() as u64);
    data.assert_whole(&node);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn killed_after_the_checksum_only_the_unpacking_is_done_again() {
    // the archive's symlink is made in the middle of the unpacking
    continued_without_a_request(
        "symlink",
        "sc: loading `{}/r`: its loader died\n\
         sc: `http:{}`: done already\n\
         sc: `md5:{}`: done already\n\
         sc: `tar`",
    );
}

#[test]
fn killed_after_the_unpacking_nothing_is_done_again() {
    continued_without_a_request(
        "publish",
        "sc: loading `{}/r`: its loader died\n\
         sc: `http:{}`: done already\n\
         sc: `md5:{}`: done already\n\
         sc: `tar`: done already",
    );
}

/// Killed at each write of a download in turn: what is asked for is always exactly what is not
/// there.
#[test]
fn a_download_killed_at_any_write_never_asks_for_a_byte_twice() {
    let data = Dataset::new(1 << 20);
    let mut offsets = Vec::new();
    for n in 1..400 {
        let node = Node::new();
        let server = data.served().start();
        let words = data.words(&server);
        let log = node.outside("points");
        let output = node
            .sc(&format!("--use {words}"))
            .env("SC_CRASH_AT", n.to_string())
            .env("SC_POINTS_LOG", &log)
            .output();
        if output.status.success() {
            break;
        }
        let file = node.path(".sc.r/staging/0/data.tar");
        let Ok(staged) = std::fs::metadata(file).map(|meta| meta.len()) else {
            continue;
        };
        let asked = server.requests();
        node.sc(&format!("--use {words}")).run();
        data.assert_whole(&node);
        let log = server.log();
        let range = log.get(asked).map(|request| request.header("range"));
        let expected = format!("bytes={staged}-");
        match staged {
            0 => assert_eq!(range, Some(None)),
            _ if staged == data.archive.len() as u64 => assert_eq!(range, None),
            _ => assert_eq!(range, Some(Some(expected.as_str()))),
        }
        offsets.push(staged);
    }
    offsets.dedup();
    assert!(offsets.len() >= 4, "{offsets:?}");
}

#[test]
fn a_load_killed_again_and_again_does_not_make_its_journal_longer_each_time() {
    let names: Vec<String> = (0..800).map(|n| format!("d/member-{n}")).collect();
    let members: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    let node = Node::new();
    let archive = tar_gz(&node, "many.tar.gz", &members);
    let words = format!("--use --name=r file:{} tar", archive.display());
    let log = node.outside("points");
    node.sc(&words).env("SC_POINTS_LOG", &log).run();
    node.sc("--unuse --name=r").run();
    let points = fs::read_to_string(&log).unwrap();
    let publish = points.lines().position(|line| line.ends_with(" publish"));
    // all is unpacked and recorded, and the stamp not yet
    let late = publish.unwrap().to_string();
    let killed = || {
        let output = node.sc(&words).env("SC_CRASH_AT", &late).output();
        assert!(!output.status.success());
        fs::metadata(node.path(".sc.r/journal")).unwrap().len()
    };
    let once = killed();
    for time in 2..8 {
        let length = killed();
        assert!(
            length <= 4 * once,
            "{length} after {time}, {once} after one"
        );
    }
    node.sc(&words).run();
    assert_eq!(node.tree().len(), 800 + 10);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}
