//! The life of a repository: used, shared, given up.

use crate::node::{Node, md5, tar_gz};

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
        "a/b/.sc.c/CACHEDIR.TAG",
        "a/b/.sc.c/journal",
        "a/b/.sc.c/lock",
        "a/b/.sc.c/repofile.last",
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

#[test]
fn after_a_reboot_the_holders_are_gone_and_the_data_is_loaded_anew() {
    let node = Node::new();
    let archive = tar_gz(&node, "d.tar.gz", &[("a", "1")]);
    let words = format!("--name=r file:{} tar", archive.display());
    node.sc(&format!("--use --id=1 {words}")).run();
    let path = node.path("r/repofile");
    let text = std::fs::read_to_string(&path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let boot = json["sc"]["boot_id"].as_str().unwrap();
    std::fs::write(&path, text.replace(boot, "another boot")).unwrap();
    // what a crash of the machine makes of a file that was never synced
    std::fs::write(node.path("r/a"), "").unwrap();
    node.sc(&format!("-v --use --id=2 {words}"))
        .stderr(
            "sc: pid {} (`1`) is dead and holds no more\n\
             sc: `{}/r` was loaded before the last boot: it is verified\n\
             sc: loading `{}/r`: it was loaded before the last boot, and `a`: size_diff\n\
             sc: `file:{}`\n\
             sc: `tar`",
        )
        .run();
    assert_eq!(node.tree()["r/a"], "1");
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn one_definition_at_a_time_while_it_is_held() {
    let node = Node::new();
    let one = tar_gz(&node, "one.tar.gz", &[("a", "1")]);
    let two = tar_gz(&node, "two.tar.gz", &[("b", "2")]);
    node.sc(&format!("--use --name=r file:{}", one.display()))
        .run();
    node.sc(&format!("--use --name=r --id=2 file:{} tar", two.display()))
        .status(78)
        .stderr(
            "sc: `{}/r` holds `file:{}one.tar.gz`, not `file:{}two.tar.gz tar`, and is in use by \
             pid {}\nhint: choose another `--name`, or wait until the holders have left",
        )
        .run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
    // killed without an unuse: nobody holds it, so the other definition may come
    let mut job = node.job();
    job.sc(&format!("--use --name=r file:'{}'", one.display()));
    job.kill();
    node.sc(&format!("--use --name=r file:{} tar", two.display()))
        .run();
    assert_eq!(node.tree()["r/b"], "2");
    assert!(!node.tree().contains_key("r/one.tar.gz"));
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn the_same_content_from_elsewhere_is_the_same_definition() {
    let node = Node::new();
    let archive = tar_gz(&node, "d.tar.gz", &[("a", "1")]);
    std::fs::create_dir(node.outside("mirror")).unwrap();
    let mirror = node.outside("mirror/d.tar.gz");
    std::fs::copy(&archive, &mirror).unwrap();
    let sum = md5(&archive);
    node.sc(&format!(
        "--use --name=r --id=1 file:{} md5:{sum}",
        archive.display()
    ))
    .run();
    let upper = sum.to_uppercase();
    node.sc(&format!(
        "--use --name=r --id=2 file:{} md5:{upper}",
        mirror.display()
    ))
    .run();
    // without a checksum nothing says that it is the same
    node.sc(&format!("--use --name=r --id=3 file:{}", mirror.display()))
        .status(78)
        .stderr("sc: `{}/r` holds `{}`, not `{}`, and is in use by {}\nhint: {}")
        .run();
}

#[test]
fn several_stacks_are_loaded_into_one_repository() {
    let node = Node::new();
    let one = tar_gz(&node, "one.tar.gz", &[("bin/a", "1"), ("one", "1")]);
    let two = tar_gz(&node, "two.tar.gz", &[("bin/b", "2"), ("two", "2")]);
    let plain = node.file("plain", "p");
    let words = format!(
        "file:{} tar file:{} tar:drop file:{}",
        one.display(),
        two.display(),
        plain.display()
    );
    node.sc(&format!("--use --name=r {words}")).run();
    node.assert_paths(&[
        ".sc.r",
        ".sc.r/CACHEDIR.TAG",
        ".sc.r/journal",
        ".sc.r/lock",
        ".sc.r/repofile.last",
        "r",
        "r/bin",
        "r/bin/a",
        "r/bin/b",
        "r/one",
        "r/one.tar.gz",
        "r/one.tar.gz.list",
        "r/plain",
        "r/repofile",
        "r/two",
        "r/two.tar.gz.list",
    ]);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn any_umask_will_do_for_what_is_ours() {
    for umask in ["000", "022", "077", "777"] {
        let node = Node::new();
        let archive = tar_gz(&node, "d.tar.gz", &[("a", "1")]);
        let mut job = node.job();
        job.sh(&format!("umask {umask}"));
        let (status, said) = job.sc(&format!("--use --name=r file:'{}' tar", archive.display()));
        if umask == "777" && !nix_is_root() {
            // the repository's own directory follows the umask, and here nobody may enter it
            assert_ne!(status, 0, "{said}");
            job.sh("umask 022");
            assert_eq!(job.sh("chmod 755 \"$SC_DIRECTORIES\"/r").0, 0);
            assert_eq!(
                job.sc(&format!("--use --name=r file:'{}' tar", archive.display()))
                    .0,
                0
            );
        } else {
            assert_eq!((status, said.as_str()), (0, ""), "umask {umask}");
        }
        let mode = |path: &str| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::symlink_metadata(node.path(path))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777
        };
        assert_eq!(
            (mode(".sc.r"), mode(".sc.r/lock"), mode(".sc.r/journal")),
            (0o700, 0o600, 0o600)
        );
        assert_eq!(job.sc("--unuse --name=r"), (0, String::new()));
        node.assert_empty();
    }
}

fn nix_is_root() -> bool {
    nix::unistd::access("/", nix::unistd::AccessFlags::W_OK).is_ok()
}

#[test]
fn a_repofile_outside_is_that_of_one_repository() {
    let node = Node::new();
    let file = node.outside("state");
    let words = |name: &str| format!("--name={name} --file={}", file.display());
    node.sc(&format!("--use {}", words("a"))).run();
    node.sc(&format!("--use {}", words("b")))
        .status(77)
        .stderr("sc: `{}/state` is the repofile of `{}/a`\nhint: choose another `--file`")
        .run();
    node.sc(&format!("--unuse {}", words("a"))).run();
    assert!(!file.exists());
    node.assert_empty();
    node.sc(&format!("--use {}", words("b"))).run();
    node.sc(&format!("--unuse {}", words("b"))).run();
    node.assert_empty();
}

#[test]
fn a_copy_in_an_earlier_base_does_not_hide_the_one_that_is_held() {
    let node = Node::new();
    let other = node.outside("other");
    std::fs::create_dir(&other).unwrap();
    let both = format!("{}:{}", node.base().display(), other.display());
    let sc = |words: &str| node.sc(words).env("SC_DIRECTORIES", &both);
    node.sc("--use --name=r")
        .env("SC_DIRECTORIES", &other)
        .run();
    node.sc("--use --name=r --id=before").run();
    sc("--unuse --name=r").run();
    assert!(crate::node::tree(&other).is_empty());
    sc("--unuse --name=r --id=before").run();
    node.assert_empty();
}
