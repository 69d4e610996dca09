//! What has expired, or is to be refreshed, stays until its successor is there.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::keep::{At, START};
use crate::node::{Fifo, Node, inode, md5, tar_gz};

struct Site {
    node: Node,
    archive: PathBuf,
    words: String,
}

impl Site {
    /// A repository `r` that was loaded at hour 0, expired two hours later, and is kept.
    fn new() -> Site {
        let node = Node::new();
        let archive = tar_gz(&node, "d.tar.gz", &[("a", "1"), ("bin/b", "22")]);
        let words = format!(
            "--name=r file:{} md5:{} tar",
            archive.display(),
            md5(&archive)
        );
        node.sc(&format!("--run --keep=9d --expires=2h {words} -- true"))
            .at(0)
            .run();
        Site {
            node,
            archive,
            words,
        }
    }

    fn sc(&self) -> Value {
        self.node.repofile("r")["sc"].clone()
    }

    #[track_caller]
    fn assert_is(&self, data: u64) {
        assert_eq!(inode(&self.node.path("r/a")), data);
        assert_eq!(self.node.repofile("r")["state"], "OK");
        assert_eq!(self.node.tree()["r/bin/b"], "22");
    }

    fn data(&self) -> u64 {
        inode(&self.node.path("r/a"))
    }
}

#[test]
fn a_load_that_fails_leaves_what_has_expired() {
    let site = Site::new();
    let old = site.data();
    let saved = fs::read(&site.archive).unwrap();
    fs::remove_file(&site.archive).unwrap();
    let use_it = || site.node.sc(&format!("--use {}", site.words)).at(3);
    use_it()
        .status(66)
        .stderr("sc: `{}` does not exist: no such file or directory")
        .run();
    site.assert_is(old);
    assert_eq!(site.node.repofile("r")["readers"], serde_json::json!([]));
    assert_eq!(site.sc()["failure"]["exit_status"], 66);
    site.node
        .sc("--status --name=r")
        .at(4)
        .stdout(
            "location    {}\nstate       OK\ndefinition  {}\nloaded      4 h 0 min ago, in {} s\n\
             expires     {} ago)\nkept        until {}\nfailure     `{}` does not exist: {} (1 h 0 min ago)",
        )
        .run();
    // wrong content is no successor either, and nothing of it becomes visible
    fs::write(&site.archive, "no archive").unwrap();
    use_it()
        .status(65)
        .stderr("sc: warning: wrong md5 of {}\nsc: wrong md5 of {}")
        .run();
    site.assert_is(old);
    fs::write(&site.archive, saved).unwrap();
    use_it().run();
    assert_ne!(site.data(), old);
    assert_eq!(site.sc()["failure"], Value::Null);
    site.node.sc("--unuse --name=r").at(3).run();
    site.node.assert_empty();
}

#[test]
fn a_refresh_that_fails_keeps_no_other_use_from_the_data() {
    let site = Site::new();
    let old = site.data();
    fs::remove_file(&site.archive).unwrap();
    site.node
        .sc(&format!("--use --refresh {}", site.words))
        .at(1)
        .status(66)
        .stderr("sc: `{}` does not exist: no such file or directory")
        .run();
    site.node.sc(&format!("--use {}", site.words)).at(1).run();
    site.assert_is(old);
    site.node.sc("--unuse --name=r").at(1).run();
    site.node.sc("--clear --name=r").run();
    site.node.assert_empty();
}

#[test]
fn who_waits_for_a_successor_takes_its_failure_for_his_own() {
    let site = Site::new();
    let old = site.data();
    fs::write(&site.archive, "no archive").unwrap();
    let fifo = Fifo::new(&site.node);
    let mut loader = site
        .node
        .sc(&format!("--use --id=1 {}", site.words))
        .at(3)
        .env("SC_PAUSE_AT", fifo.at("reflink"))
        .spawn();
    let pause = fifo.reached();
    site.assert_is(old);
    let mut waiter = site
        .node
        .sc(&format!("-v --use --id=2 {}", site.words))
        .at(3)
        .spawn();
    waiter.wait_for("waiting: pid ");
    drop(pause);
    assert_eq!(loader.end().0, 65);
    assert_eq!(waiter.end().0, 65);
    assert!(!waiter.said.contains("it has expired"), "{}", waiter.said);
    site.assert_is(old);
    site.node.sc("--clear --name=r").run();
    site.node.assert_empty();
}

/// The number of the first point called `label` in a load in place of what has expired.
fn point(label: &str) -> usize {
    let site = Site::new();
    let log = site.node.outside("points");
    let sc = site.node.sc(&format!("--use {}", site.words)).at(3);
    sc.env("SC_POINTS_LOG", &log).run();
    let log = fs::read_to_string(&log).unwrap();
    let first = log.lines().position(|line| line.ends_with(label));
    1 + first.expect("such a point")
}

#[test]
fn a_load_killed_beside_the_old_data_leaves_them_and_is_continued() {
    let site = Site::new();
    let old = site.data();
    // the first thing that `tar` does; the archive is staged and stamped by then
    let output = site
        .node
        .sc(&format!("--use {}", site.words))
        .at(3)
        .env("SC_CRASH_AT", point(" utimens").to_string())
        .output();
    assert!(!output.status.success());
    site.assert_is(old);
    assert!(site.node.path(".sc.r/next/journal").exists());
    site.node
        .sc(&format!("-v --use {}", site.words))
        .at(3)
        .stderr(
            "sc: loading `{}/r`: it has expired\nsc: `file:{}`: done already\n\
             sc: `md5:{}`: done already\nsc: `tar`",
        )
        .run();
    assert_ne!(site.data(), old);
    assert_eq!(site.node.tree()["r/bin/b"], "22");
    site.node.sc("--unuse --name=r").at(3).run();
    site.node.assert_empty();
}

#[test]
fn who_comes_to_hold_the_old_data_while_the_new_are_staged_keeps_them() {
    let site = Site::new();
    let old = site.data();
    let fifo = Fifo::new(&site.node);
    let mut loader = site
        .node
        .sc(&format!("-v --use --id=1 {}", site.words))
        .at(3)
        .env("SC_PAUSE_AT", fifo.at("reflink"))
        .spawn();
    let pause = fifo.reached();
    // as a reference joins, which knows nothing of our lock
    let mut json = site.node.repofile("r");
    json["readers"] = serde_json::json!([std::process::id()]);
    fs::write(site.node.path("r/repofile"), json.to_string()).unwrap();
    drop(pause);
    assert_eq!(loader.end().0, 0, "{}", loader.said);
    site.assert_is(old);
    assert!(!site.node.path(".sc.r/next").exists());
    assert!(!site.node.path(".sc.r/staging").exists());
    let readers = site.node.repofile("r")["readers"].clone();
    assert_eq!(readers.as_array().unwrap().len(), 2, "{readers}");
    site.node.sc("--clear --force --name=r").run();
    site.node.assert_empty();
}

#[test]
fn where_both_do_not_fit_the_old_data_go_first() {
    let site = Site::new();
    site.node
        .sc(&format!("-v --use {}", site.words))
        .at(3)
        .env("SC_FAULT_AT", format!("{}:28", point(" reflink")))
        .stderr(
            "sc: loading `{}/r`: it has expired\nsc: `file:{}`\n\
             sc: cannot write `{}`: no space left on device{}; what has expired goes first, to make room\n\
             sc: loading `{}/r`: it has expired\nsc: `file:{}`\nsc: `md5:{}`\nsc: `tar`",
        )
        .run();
    // by its time: the inode of what is deleted may be given to what comes
    assert_eq!(site.sc()["loaded_unix_s"], START + 3 * 3600);
    site.node.sc("--unuse --name=r").at(3).run();
    site.node.assert_empty();
}
