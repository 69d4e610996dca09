//! What GNU tar writes, unpacked as GNU tar does.

use std::ffi::OsStr;
use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::*;

/// A tree with one of everything.
fn source() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("deep/er/est")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("deep/er/est/file"), b"content\n").unwrap();
    fs::write(at("nothing"), b"").unwrap();
    fs::write(at("large"), vec![b'x'; 700_001]).unwrap();
    fs::write(at("program"), b"#!/bin/sh\n").unwrap();
    fs::hard_link(at("program"), at("deep/same")).unwrap();
    symlink("deep/er", at("link")).unwrap();
    symlink("/etc/passwd", at("outside")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    fs::write(at("name with blanks é"), b"1").unwrap();
    for (path, mode) in [
        ("program", 0o755),
        ("nothing", 0o400),
        ("large", 0o660),
        ("empty", 0o750),
        ("deep/er", 0o555),
    ] {
        fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut touch = Command::new("touch");
    run(touch
        .args(["-d", "2001-02-03 04:05:06.789"])
        .args([at("large"), at("deep")]));
    dir
}

#[test]
fn every_format_unpacks_as_gnu_tar_does() {
    let source = source();
    for format in ["gnu", "oldgnu", "posix", "ustar", "v7"] {
        same_as_gnu_tar(&gnu_tar(
            source.path(),
            &[&format!("--format={format}"), "."],
        ));
    }
}

#[test]
fn names_and_targets_longer_than_a_header_unpack() {
    let dir = tempfile::tempdir().unwrap();
    let parent = ["d".repeat(120), "e".repeat(130), "f".repeat(90)].join("/");
    let parent = dir.path().join(parent);
    fs::create_dir_all(&parent).unwrap();
    let file = parent.join("g".repeat(255));
    fs::write(&file, b"deep down").unwrap();
    fs::hard_link(&file, parent.join("other")).unwrap();
    symlink("t".repeat(3000), dir.path().join("link")).unwrap();
    for format in ["gnu", "posix"] {
        same_as_gnu_tar(&gnu_tar(dir.path(), &[&format!("--format={format}"), "."]));
    }
}

#[test]
fn paths_deeper_than_there_are_descriptors_unpack() {
    let dir = tempfile::tempdir().unwrap();
    let deep = vec!["d"; 1900].join("/");
    let archive = Craft::new()
        .long_name(deep.as_bytes())
        .file("short", b"1")
        .file("d/other", b"2")
        .end();
    let site = unpack(&archive);
    let list = fs::read(site.stage().join("a.tar.list")).unwrap();
    assert_eq!(list.split(|&byte| byte == b'\n').count(), 1902);
    drop(dir);
}

#[test]
fn holes_stay_holes_in_every_sparse_format() {
    let dir = tempfile::tempdir().unwrap();
    let holes = |name: &str, pieces: &[(u64, &[u8])], length: u64| {
        let mut file = fs::File::create(dir.path().join(name)).unwrap();
        for (offset, content) in pieces {
            file.seek(SeekFrom::Start(*offset)).unwrap();
            file.write_all(content).unwrap();
        }
        file.set_len(length).unwrap();
    };
    let block = [7; 5000];
    holes("begin", &[(3 << 20, &block)], (3 << 20) + 5000);
    holes("end", &[(0, &block)], 4 << 20);
    holes("only", &[], 5 << 20);
    let many: Vec<(u64, &[u8])> = (0..60).map(|n| (n << 17, &block[..])).collect();
    holes("many", &many, 60 << 17);
    let args = ["--sparse", "--hole-detection=raw"];
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let archive = gnu_tar(dir.path(), &[&args, format, &["."]].concat());
        assert!(archive.len() < 1 << 20, "{format:?}: tar made no holes");
        let site = same_as_gnu_tar(&archive);
        for name in ["begin", "end", "only", "many"] {
            let meta = fs::metadata(site.stage().join(name)).unwrap();
            assert!(
                meta.blocks() * 512 < meta.len() / 2,
                "{format:?}: {name} is full"
            );
        }
    }
}

#[test]
fn names_that_are_no_utf8_or_full_of_blanks_unpack() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        &b"\xff\xfe"[..],
        b"caf\xe9",
        b" blank ",
        b"new\nline",
        b"tab\t",
        b"\\",
    ] {
        fs::write(dir.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    for format in ["gnu", "posix"] {
        same_as_gnu_tar(&gnu_tar(dir.path(), &[&format!("--format={format}"), "."]));
    }
}

#[test]
fn later_members_replace_earlier_ones_of_the_same_name() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("twice.tar");
    let path = |name: &str| dir.path().join(name);
    let add = |flag: &str, names: &[&str]| {
        run(Command::new("tar")
            .current_dir(dir.path())
            .args([flag, "twice.tar"])
            .args(names));
    };
    fs::write(path("f"), b"first").unwrap();
    fs::hard_link(path("f"), path("g")).unwrap();
    fs::create_dir(path("d")).unwrap();
    symlink("f", path("s")).unwrap();
    add("-cf", &["f", "g", "d", "s"]);
    fs::remove_file(path("f")).unwrap();
    fs::write(path("f"), b"second, and longer").unwrap();
    fs::remove_file(path("s")).unwrap();
    fs::write(path("s"), b"a file now").unwrap();
    fs::set_permissions(path("d"), fs::Permissions::from_mode(0o700)).unwrap();
    add("-rf", &["f", "d", "s"]);
    fs::remove_file(path("s")).unwrap();
    symlink("g", path("s")).unwrap();
    add("-rf", &["s"]);
    same_as_gnu_tar(&fs::read(archive).unwrap());
}

/// Names that meet each other again and again, while workers make the files before.
#[test]
fn many_members_of_few_names_end_as_gnu_tar_ends_them() {
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) % below
    };
    let mut craft = Craft::new();
    let mut files = Vec::new();
    for n in 0..4000u32 {
        let name = format!("d{}/{}", random(20), random(60));
        match random(10) {
            0 => craft = craft.symlink(&name, "anywhere"),
            1 if !files.is_empty() => {
                let target: &String = &files[random(files.len() as u64) as usize];
                craft = craft.hard_link(&name, target);
            }
            _ => {
                let content = n.to_string().repeat(random(30) as usize);
                craft = craft.file(&name, content.as_bytes());
            }
        }
        files.push(name);
    }
    // the times of the directories, too
    for n in 0..20 {
        craft = craft.dir(&format!("d{n}/"));
    }
    let site = same_as_gnu_tar(&craft.end());
    assert!(site.made.len() > 1000);
}

#[test]
fn a_hard_link_to_a_symlink_is_the_symlink() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc/passwd", dir.path().join("a")).unwrap();
    fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    same_as_gnu_tar(&gnu_tar(dir.path(), &["a", "b"]));
}

#[test]
fn an_incremental_archive_and_its_label_unpack() {
    let source = source();
    let snapshot = tempfile::tempdir().unwrap();
    let snapshot = format!("--listed-incremental={}/s", snapshot.path().display());
    let archive = gnu_tar(source.path(), &["--label=x", &snapshot, "."]);
    same_as_gnu_tar(&archive);
}

#[test]
fn a_global_pax_header_applies_and_is_no_file() {
    let archive = Craft::new()
        .meta(b'g', &pax(&[("comment", b"0123"), ("mtime", b"7.25")]))
        .file("f", b"1")
        .meta(b'x', &pax(&[("mtime", b"-1.5")]))
        .file("g", b"2")
        .meta(b'x', &pax(&[("mtime", b"")]))
        .file("h", b"3")
        .end();
    let site = unpack(&archive);
    let tree = tree(site.stage());
    assert_eq!(tree.len(), 4);
    assert_eq!(tree[Path::new("f")].mtime, (7, 250_000_000));
    assert_eq!(tree[Path::new("g")].mtime, (-2, 500_000_000));
    assert_eq!(tree[Path::new("h")].mtime, (0, 0));
}

#[test]
fn a_pax_value_may_hold_newlines() {
    let archive = Craft::new()
        .meta(b'x', &pax(&[("path", b"a\n5 path=b")]))
        .file("f", b"1")
        .end();
    assert!(unpack(&archive).stage().join("a\n5 path=b").exists());
}

#[test]
fn a_pax_size_is_not_that_of_a_header_in_between() {
    let name = format!("{}\0", "n".repeat(150));
    let archive = Craft::new()
        .meta(b'x', &pax(&[("size", b"3")]))
        .meta(b'L', name.as_bytes())
        .raw(b'0', "short", "", 1000, b"abc")
        .file("next", b"1")
        .end();
    let site = unpack(&archive);
    assert_eq!(
        fs::read(site.stage().join("n".repeat(150))).unwrap(),
        b"abc"
    );
    assert!(site.stage().join("next").exists());
}

#[test]
fn strip_takes_components_off_names_and_hard_links() {
    let archive = Craft::new()
        .dir("top/")
        .file("top/a", b"1")
        .file("./top//sub/b", b"2")
        .raw(b'1', "top/sub/c", "top/sub/b", 0, b"")
        .raw(b'2', "top/s", "top/a", 0, b"")
        .file("loose", b"3")
        .end();
    let strip = Tar {
        drop: false,
        strip: 1,
    };
    let (result, site) = unpack_with(&strip, &archive);
    result.unwrap();
    let list = fs::read_to_string(site.stage().join("a.tar.list")).unwrap();
    assert_eq!(list, "a\nsub/b\nsub/c\ns\nsub\n");
    let tree = tree(site.stage());
    assert_eq!(tree[Path::new("sub/c")].same_as, Path::new("sub/b"));
    assert_eq!(tree[Path::new("s")].content, b"top/a");
}

#[test]
fn the_list_names_each_path_once_in_the_order_of_the_archive() {
    let archive = Craft::new()
        .file("b/late", b"")
        .file("./a//f", b"1")
        .file("a/f", b"2")
        .dir("b/")
        .dir("./b")
        .file("a/f", b"3")
        .end();
    let site = unpack(&archive);
    let list = fs::read_to_string(site.stage().join("a.tar.list")).unwrap();
    assert_eq!(list, "b/late\na/f\nb\na\n");
}

#[test]
fn set_id_bits_and_others_right_to_write_are_taken_off() {
    let archive = Craft::new().mode(0o7777).file("f", b"").dir("d/").end();
    let site = unpack(&archive);
    for name in ["f", "d"] {
        let mode = fs::metadata(site.stage().join(name)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o775);
    }
}

#[test]
fn a_directory_without_write_permission_is_filled_all_the_same() {
    let archive = Craft::new()
        .mode(0o555)
        .dir("d/")
        .dir("d/e/")
        .file("d/e/f", b"1")
        .end();
    let site = unpack(&archive);
    let d = site.stage().join("d");
    assert_eq!(fs::metadata(&d).unwrap().mode() & 0o777, 0o555);
    assert_eq!(fs::read(d.join("e/f")).unwrap(), b"1");
    for dir in [&d, &d.join("e")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn what_was_reported_is_what_lies_there() {
    let source = source();
    let site = unpack(&gnu_tar(source.path(), &["."]));
    for (path, stat) in &site.made {
        let meta = site.stage().join(path).symlink_metadata().unwrap();
        assert_eq!(meta.ino(), stat.st_ino);
        assert_eq!(meta.len(), stat.st_size as u64);
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (stat.st_mtime, stat.st_mtime_nsec)
        );
        // A hard link made later changes the ctime of the file it is a link to.
        if meta.nlink() == 1 || meta.is_dir() {
            assert_eq!(
                (meta.ctime(), meta.ctime_nsec()),
                (stat.st_ctime, stat.st_ctime_nsec)
            );
        }
    }
}

#[test]
fn empty_archives_unpack_to_nothing() {
    for archive in [vec![0; 512], vec![0; 10240], gzip(&[0; 10240])] {
        let site = unpack(&archive);
        assert_eq!(fs::read(site.stage().join("a.tar.list")).unwrap(), b"");
        assert_eq!(tree(site.stage()).len(), 1);
    }
}

#[test]
fn bytes_behind_the_end_of_the_archive_are_ignored_as_by_gnu_tar() {
    let mut archive = Craft::new().file("f", b"1").end();
    archive.extend_from_slice(b"garbage");
    unpack(&archive);
    unpack(&gzip(&archive));
}

#[test]
fn an_archive_cut_between_members_is_whole_as_for_gnu_tar() {
    let archive = Craft::new().file("f", b"1").blocks;
    same_as_gnu_tar(&archive);
}

#[test]
fn compressed_archives_unpack_whatever_they_are_called() {
    let source = source();
    let plain = gnu_tar(source.path(), &["."]);
    let expected = tree(unpack(&plain).stage());
    for (format, archive) in compressed(&plain) {
        let mut ours = tree(unpack(&archive).stage());
        // Parents that are no members have the time of unpacking; here all are members.
        let list = ours.get_mut(Path::new("a.tar.list")).unwrap();
        list.mtime = expected[Path::new("a.tar.list")].mtime;
        assert_eq!(ours, expected, "{format}");
    }
}
