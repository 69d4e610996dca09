//! `--clear`: now, unless somebody holds it.

use std::fs;

use crate::node::{Fifo, Node};

fn words(node: &Node) -> String {
    let file = node.file("data", "x");
    format!("--name=r file:{}", file.display())
}

#[test]
fn what_is_kept_is_cleared_and_what_is_not_there_is_no_error() {
    let node = Node::new();
    node.sc("--clear --name=r").run();
    node.assert_empty();
    node.sc(&format!("--run --keep=1d {} -- true", words(&node)))
        .run();
    node.sc("--clear --dry-run --name=r")
        .stdout("{}\t{}/r\t`--clear`")
        .run();
    assert!(node.path("r/data").exists());
    node.sc("-v --clear --name=r")
        .stderr("sc: `{}/r` is deleted: `--clear`")
        .run();
    node.assert_empty();
}

#[test]
fn what_is_held_is_cleared_by_force_alone() {
    let node = Node::new();
    let mut job = node.job();
    assert_eq!(job.sc(&format!("--use {}", words(&node))).0, 0);
    let before = node.tree();
    for words in ["--clear --name=r", "--clear --dry-run --name=r"] {
        node.sc(words)
            .status(75)
            .stderr(format!(
                "sc: `{{}}/r` is in use by pid {}\n\
                 hint: wait until the holders have left, or say `--force`",
                job.pid()
            ))
            .run();
    }
    assert_eq!(node.tree(), before);
    node.sc("--clear --dry-run --force --name=r")
        .stdout("{}\t{}/r\t`--clear`")
        .run();
    assert_eq!(node.tree(), before);
    node.sc("--clear --force --name=r").run();
    node.assert_empty();
    assert_eq!(job.sc("-q --unuse --name=r").0, 255);
}

#[test]
fn a_dead_holder_keeps_nothing_from_being_cleared() {
    let node = Node::new();
    let mut job = node.job();
    assert_eq!(job.sc(&format!("--use {}", words(&node))).0, 0);
    job.kill();
    node.sc("--clear --name=r").run();
    node.assert_empty();
}

#[test]
fn a_load_under_way_is_not_waited_for() {
    let node = Node::new();
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use {}", words(&node)))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    node.sc("--clear --name=r")
        .status(75)
        .stderr(format!(
            "sc: `{{}}/r` is in use by pid {}, which is loading it\nhint: {{}}",
            loader.pid()
        ))
        .run();
    node.sc("--clear --force --no-wait --name=r")
        .status(75)
        .stderr("sc: did not wait for `{}/r` (`--no-wait`): pid {} has been loading {}")
        .run();
    drop(pause);
    assert_eq!(loader.end().0, 0);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_wreck_is_cleared_and_foreign_files_stay() {
    let node = Node::new();
    node.sc(&format!("--use {}", words(&node)))
        .env("SC_CRASH_AT", "25")
        .status(-9)
        .run();
    node.sc("--clear --name=r").run();
    node.assert_empty();
    node.sc(&format!("--run --keep=1d {} -- true", words(&node)))
        .run();
    fs::write(node.path("r/mine"), "m").unwrap();
    node.sc("--clear --name=r")
        .stderr("sc: warning: `{}/r` stays: `mine` in it did not come from sc")
        .run();
    node.assert_paths(&["r", "r/mine"]);
    // a directory that is none of ours
    node.sc("--clear --force --name=r").run();
    node.assert_paths(&["r", "r/mine"]);
    fs::write(node.path("r/repofile"), "my own").unwrap();
    node.sc("--clear --force --name=r")
        .status(77)
        .stderr("sc: {}\nhint: {}")
        .run();
    node.assert_paths(&["r", "r/mine", "r/repofile"]);
}

#[test]
fn every_base_directory_that_has_it_is_cleared() {
    let node = Node::new();
    let (one, two) = (node.outside("one"), node.outside("two"));
    for dir in [&one, &two] {
        fs::create_dir(dir).unwrap();
        node.sc(&format!("--run --keep=1d {} -- true", words(&node)))
            .env("SC_DIRECTORIES", dir)
            .run();
    }
    let both = format!("{}:{}", one.display(), two.display());
    node.sc("--clear --name=r")
        .env("SC_DIRECTORIES", both)
        .run();
    assert!(crate::node::tree(&one).is_empty() && crate::node::tree(&two).is_empty());
}
