//! The life of a repository: used, shared, given up.

use crate::node::Node;

#[test]
fn the_last_unuse_leaves_nothing() {
    let node = Node::new();
    node.sc("--use --name=a/b/c --id=1").run();
    node.sc("--use --name=a/b/c --id=2").run();
    node.sc("--unuse --name=a/b/c --id=1").run();
    node.assert_paths(&[
        "a",
        "a/b",
        "a/b/.sc.c",
        "a/b/.sc.c/journal",
        "a/b/.sc.c/lock",
        "a/b/c",
        "a/b/c/repofile",
    ]);
    node.sc("--unuse --name=a/b/c --id=2").run();
    node.assert_empty();
}

#[test]
fn a_holder_counts_once() {
    let node = Node::new();
    node.sc("--use --name=r").run();
    node.sc("--use --name=r").run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_stranger_s_unuse_is_refused_and_makes_nothing() {
    let node = Node::new();
    node.sc("--unuse --name=r")
        .status(255)
        .stderr("sc: `{}/r` is not held by pid {}")
        .run();
    node.assert_empty();
    node.sc("-q --unuse --name=r").status(255).run();
    node.sc("--use --name=r --id=1").run();
    node.sc("--unuse --name=r --id=2")
        .status(255)
        .stderr("sc: `{}/r` is not held by pid {} (`2`)")
        .run();
    node.sc("--unuse --name=r --id=1").run();
    node.assert_empty();
}

#[test]
fn a_holder_killed_without_unuse_is_reaped_by_the_next_invocation() {
    let node = Node::new();
    let mut job = node.job();
    assert_eq!(job.sc("--use --name=r"), (0, String::new()));
    job.kill();
    node.sc("--use --name=r").run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}
