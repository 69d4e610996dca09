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

/// What has no business here is named, ends the load with status 65, and nothing is visible or
/// changed anywhere.
#[test]
fn a_hostile_archive_is_refused_by_the_name_of_its_member() {
    let file = |name| (b'0', name, "x");
    for (members, said) in [
        (
            vec![file("/etc/stolen")],
            "`/etc/stolen`: has an absolute name",
        ),
        (vec![file("../stolen")], "`../stolen`: has `..` in its name"),
        (
            vec![file("a/./b/../../../x")],
            "`a/./b/../../../x`: has `..` in its name",
        ),
        (
            vec![(b'2', "s", "/tmp"), file("s/x")],
            "`s/x`: lies below `s`, which is a symlink of the same archive",
        ),
        (
            vec![(b'1', "h", "/etc/passwd")],
            "`h`: has an absolute name",
        ),
        (
            vec![(b'1', "h", "../../outside")],
            "`h`: has `..` in its name",
        ),
        (
            vec![(b'2', "s", "../.."), (b'1', "h", "s/outside")],
            "`h`: is a hard link to `s/outside`, which is not there",
        ),
        (
            vec![(b'5', "d/", ""), (b'2', "d", "/tmp")],
            "`d`: takes the place of a directory of the same archive",
        ),
        (
            vec![(b'2', "d", "/tmp"), (b'5', "d/", "")],
            "`d/`: is a directory in place of another member of the same name",
        ),
        (vec![(b'3', "c", "")], "`c`: is a character device"),
        (vec![(b'4', "b", "")], "`b`: is a block device"),
        (vec![(b'6', "p", "")], "`p`: is a FIFO"),
        (
            vec![file("repofile")],
            "`repofile`: has the name `repofile`, which is reserved here",
        ),
        (
            vec![file("./repofile.lock|x")],
            "`./repofile.lock|x`: has the name `repofile.lock|x`, which is reserved here",
        ),
        (
            vec![file("a.tar")],
            "`a.tar`: has the name `a.tar`, which is reserved here",
        ),
        (
            vec![file("a.tar.list/x")],
            "`a.tar.list/x`: has the name `a.tar.list`, which is reserved here",
        ),
        (
            vec![file("d/.sc.r/lock")],
            "`d/.sc.r/lock`: has a name that is reserved for sc",
        ),
    ] {
        let node = Node::new();
        node.file("outside", "precious");
        // an honest member before it is not visible either
        let members: Vec<Member> = [&[file("honest")], &members[..]].concat();
        node.file("a.tar", archive(&members));
        let before = tree(&node.outside(""));
        node.sc("--use --name=r file:a.tar tar")
            .status(65)
            .stderr(format!("sc: cannot unpack `a.tar`: member {said}"))
            .run();
        let visible: Vec<_> = tree(&node.path("r")).into_keys().collect();
        assert_eq!(visible, ["repofile"]);
        let mut after = tree(&node.outside(""));
        after.retain(|path, _| !path.starts_with("the base/"));
        assert_eq!(after, before);
    }
}

#[test]
fn half_an_archive_is_none() {
    let node = Node::new();
    let whole = archive(&[(b'0', "f", "content")]);
    let packed = zstd::encode_all(&whole[..], 1).unwrap();
    for (half, said) in [
        (&whole[..600], "the archive is cut off"),
        (&whole[..100], "it is not a tar archive"),
        (&whole[..0], "it is empty"),
        (
            &packed[..packed.len() - 1],
            "the zstd data end too early: the file is cut off",
        ),
        (b"<html>no such file</html>\n", "it is not a tar archive"),
    ] {
        node.file("a.tar", half);
        node.sc("--use --name=r file:a.tar tar")
            .status(65)
            .stderr(format!("sc: cannot unpack `a.tar`: {said}"))
            .run();
        let visible: Vec<_> = tree(&node.path("r")).into_keys().collect();
        assert_eq!(visible, ["repofile"]);
    }
    node.file("a.tar", &whole);
    node.sc("--use --name=r file:a.tar tar").run();
    node.sc("--unuse --name=r").run();
    node.assert_paths(&[]);
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
