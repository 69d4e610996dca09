//! Archives, end to end: what people see of hostile ones, and that nothing else is there to see.

use crate::dataset::Dataset;
use crate::node::{Node, tree};

/// A member for [`archive`]: letter of its type, name, target of a link or content.
type Member<'a> = (u8, &'a str, &'a str);

/// A tar archive made by hand: nothing is checked.
fn archive(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for &(letter, name, rest) in members {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkflag[0] = letter;
        let content = match letter {
            b'1' | b'2' => {
                old.linkname[..rest.len()].copy_from_slice(rest.as_bytes());
                ""
            }
            _ => rest,
        };
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Kernels and containers without openat2(2): ENOSYS, and what a seccomp filter says.
const OPENAT2: &[&str] = &["", "38", "1"];

#[test]
fn an_archive_is_unpacked_with_and_without_openat2() {
    for errno in OPENAT2 {
        let node = Node::new();
        let data = Dataset::new(100_000);
        let server = data.served().start();
        let words = data.words(&server);
        node.sc(&format!("--use {words}"))
            .env("SC_OPENAT2", errno)
            .run();
        data.assert_whole(&node);
        node.sc("--unuse --name=r").env("SC_OPENAT2", errno).run();
        node.assert_empty();
    }
}

#[test]
fn nothing_is_written_through_a_symlink_of_the_archive_with_and_without_openat2() {
    for errno in OPENAT2 {
        let node = Node::new();
        node.file(
            "a.tar",
            archive(&[(b'2', "s", "../../../.."), (b'0', "s/stolen", "x")]),
        );
        let around = tree(&node.outside(""));
        node.sc("--use --name=r file:a.tar tar")
            .env("SC_OPENAT2", errno)
            .status(65)
            .stderr(
                "sc: cannot unpack `a.tar`: member `s/stolen`: lies below `s`, which is a symlink \
                 of the same archive",
            )
            .run();
        node.sc("--use --name=r").run();
        node.sc("--unuse --name=r").run();
        assert_eq!(tree(&node.outside("")), around, "SC_OPENAT2={errno}");
    }
}

#[test]
fn a_bomb_ends_at_the_size_that_was_asked_for() {
    let node = Node::new();
    let megabyte = "0".repeat(1 << 20);
    let members: Vec<Member> = ["a", "b", "c"].map(|name| (b'0', name, &*megabyte)).into();
    let bomb = zstd::encode_all(&archive(&members)[..], 1).unwrap();
    assert!(bomb.len() < 2000);
    node.file("bomb.tar.zst", bomb);
    node.sc("--use --name=r --size=3MB file:bomb.tar.zst tar")
        .status(73)
        .stderr(
            "sc: not enough room: `bomb.tar.zst`, with its member `c`, takes more than 3.0 MB \
             (`--size`)\n\
             hint: name other directories with `--directories`, or correct `--size`",
        )
        .run();
    let visible: Vec<_> = tree(&node.path("r")).into_keys().collect();
    assert_eq!(visible, ["repofile"]);
    let staged = tree(&node.path(".sc.r/staging"));
    let staged: Vec<_> = staged.keys().collect();
    assert_eq!(staged, ["0", "0/bomb.tar.zst", "1"], "room is still taken");
    node.sc("--use --name=r --size=3200kB file:bomb.tar.zst tar")
        .run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}
