//! Honest archives are compared with what GNU tar makes of them; hostile ones are made by hand.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Tar;
use crate::error::{Error, Result};
use crate::stack::testing::transformation::FakeSite;
use crate::units::Bytes;

const PLAIN: Tar = Tar {
    drop: false,
    strip: 0,
};

fn unpack_with(tar: &Tar, archive: &[u8]) -> (Result<()>, FakeSite) {
    let mut site = FakeSite::with_archive("a.tar", archive);
    let result = tar.run(&mut site);
    (result, site)
}

fn unpack(archive: &[u8]) -> FakeSite {
    let (result, site) = unpack_with(&PLAIN, archive);
    result.unwrap();
    site
}

/// The text of the error, after checking that it is one of the archive and that nothing beside
/// the stage has changed.
fn refusal(archive: &[u8]) -> String {
    let (result, site) = unpack_with(&PLAIN, archive);
    let error = result.expect_err("it was unpacked");
    assert!(matches!(error, Error::Archive { .. }), "{error}");
    assert_eq!(error.exit_status(), 65);
    let around: Vec<_> = tree(site.root())
        .into_keys()
        .filter(|path| !path.starts_with("stage"))
        .collect();
    assert_eq!(around, [Path::new("below"), Path::new("below/a.tar")]);
    error.to_string()
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: String,
    mode: u32,
    mtime: (i64, i64),
    content: Vec<u8>,
    /// The first path of the same file.
    same_as: PathBuf,
}

/// Everything below `root`.
fn tree(root: &Path) -> BTreeMap<PathBuf, Entry> {
    fn walk(root: &Path, dir: &Path, entries: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            entries.push(path.strip_prefix(root).unwrap().to_owned());
            if path.symlink_metadata().unwrap().is_dir() {
                walk(root, &path, entries);
            }
        }
    }
    let mut paths = Vec::new();
    walk(root, root, &mut paths);
    paths.sort();
    let mut first = HashMap::new();
    let entry = |path: PathBuf| {
        let full = root.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let content = if meta.is_file() {
            fs::read(&full).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(&full)
                .unwrap()
                .into_os_string()
                .as_bytes()
                .to_vec()
        } else {
            Vec::new()
        };
        let same_as = first.entry(meta.ino()).or_insert(path.clone()).clone();
        let kind = format!("{:?}", meta.file_type());
        let mode = meta.mode() & 0o7775;
        let mtime = (meta.mtime(), meta.mtime_nsec());
        let entry = Entry {
            kind,
            mode,
            mtime,
            content,
            same_as,
        };
        (path, entry)
    };
    paths.into_iter().map(entry).collect()
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

fn gnu_tar(source: &Path, args: &[&str]) -> Vec<u8> {
    let mut command = Command::new("tar");
    command.arg("-C").arg(source).args(["-cf", "-"]).args(args);
    run(&mut command)
}

/// Unpacks with GNU tar, and with ours, and compares all of it.
fn same_as_gnu_tar(archive: &[u8]) -> FakeSite {
    let theirs = tempfile::tempdir().unwrap();
    let mut child = Command::new("tar")
        .args(["--no-same-owner", "-p", "-xf", "-", "-C"])
        .arg(theirs.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(archive).unwrap();
    assert!(child.wait().unwrap().success(), "GNU tar refuses it");
    let site = unpack(archive);
    let mut ours = tree(site.stage());
    let list = ours.remove(Path::new("a.tar.list")).expect("a list");
    let theirs = tree(theirs.path());
    assert_eq!(ours, theirs);

    let paths: Vec<_> = ours
        .keys()
        .map(|path| path.as_os_str().as_bytes())
        .collect();
    let mut lines: Vec<_> = list.content.split(|&byte| byte == b'\n').collect();
    assert_eq!(lines.pop(), Some(&b""[..]));
    lines.sort();
    let expected: Vec<_> = paths.iter().filter(|path| !path.contains(&b'\n')).collect();
    assert!(lines.iter().eq(expected), "the list is incomplete");

    let mut made: Vec<_> = site.made.iter().map(|(path, _)| path.clone()).collect();
    made.sort();
    made.dedup();
    let mut expected: Vec<_> = ours.keys().cloned().collect();
    expected.push("a.tar.list".into());
    expected.sort();
    assert_eq!(made, expected, "not all was reported");
    site
}

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
            use std::io::{Seek, SeekFrom};
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
fn not_one_byte_is_no_archive() {
    for archive in [vec![], gzip(b"")] {
        let problem = refusal(&archive);
        assert_eq!(problem, "cannot unpack `a.tar`: it is empty");
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

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_archives_unpack_whatever_they_are_called() {
    let source = source();
    let plain = gnu_tar(source.path(), &["."]);
    let expected = tree(unpack(&plain).stage());
    let (first, second) = plain.split_at(plain.len() / 2);
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(&plain).unwrap();
    for archive in [
        gzip(&plain),
        [gzip(first), gzip(second)].concat(),
        bzip2.finish().unwrap(),
        xz.finish().unwrap(),
        zstd::encode_all(&plain[..], 1).unwrap(),
        lz4.finish().unwrap(),
    ] {
        let mut ours = tree(unpack(&archive).stage());
        // Parents that are no members have the time of unpacking; here all are members.
        let list = ours.get_mut(Path::new("a.tar.list")).unwrap();
        list.mtime = expected[Path::new("a.tar.list")].mtime;
        assert_eq!(ours, expected);
    }
}

#[test]
fn cut_off_at_any_byte_a_compressed_archive_is_never_whole() {
    let archive = Craft::new().file("f", b"1").dir("d/").end();
    let whole = gzip(&archive);
    for length in 1..whole.len() {
        let problem = refusal(&whole[..length]);
        assert!(!problem.is_empty());
    }
}

#[test]
fn cut_off_inside_a_member_a_plain_archive_is_never_whole() {
    let archive = Craft::new().file("f", &[1; 600]).file("g", &[2; 5]).end();
    let boundaries = [0, 1536, 2560, 3072, 3584];
    for length in 0..archive.len() {
        if !boundaries.contains(&length) {
            let (result, _) = unpack_with(&PLAIN, &archive[..length]);
            // Between the two zero blocks, or in them, nothing is lost.
            if length > 3072 {
                continue;
            }
            assert_eq!(result.unwrap_err().exit_status(), 65, "{length}");
        }
    }
}

#[test]
fn one_wrong_bit_in_a_compressed_archive_never_makes_another_file() {
    let whole = gzip(&Craft::new().file("f", b"some content").end());
    let expected = tree(unpack(&whole).stage());
    // Behind the header of gzip itself, whose time, name and system mean nothing.
    for at in 10..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        let (result, site) = unpack_with(&PLAIN, &damaged);
        match result {
            Err(error) => assert_eq!(error.exit_status(), 65),
            // A bit that says nothing: of a code that is not used, behind the end of the stream.
            Ok(()) => {
                assert_eq!(tree(site.stage())[Path::new("f")], expected[Path::new("f")]);
            }
        }
    }
}

#[test]
fn what_is_no_archive_is_called_so() {
    for content in [
        &b"hello\n"[..],
        &[b'x'; 512],
        &[b'x'; 20_000],
        &gzip(b"hello"),
    ] {
        let problem = refusal(content);
        assert_eq!(problem, "cannot unpack `a.tar`: it is not a tar archive");
    }
}

// What follows is hostile.

/// An archive by hand: nothing is checked.
struct Craft {
    blocks: Vec<u8>,
    mode: u32,
}

impl Craft {
    fn new() -> Craft {
        Craft {
            blocks: Vec::new(),
            mode: 0o644,
        }
    }

    fn mode(mut self, mode: u32) -> Craft {
        self.mode = mode;
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Craft {
        self.raw(b'0', name, "", content.len() as u64, content)
    }

    fn dir(self, name: &str) -> Craft {
        let mode = self.mode;
        let mut with = self.mode(mode | 0o111).raw(b'5', name, "", 0, b"");
        with.mode = mode;
        with
    }

    fn symlink(self, name: &str, target: &str) -> Craft {
        self.raw(b'2', name, target, 0, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Craft {
        self.raw(b'1', name, target, 0, b"")
    }

    fn meta(self, letter: u8, content: &[u8]) -> Craft {
        self.raw(letter, "././@Meta", "", content.len() as u64, content)
    }

    fn long_name(self, name: &[u8]) -> Craft {
        self.meta(b'L', &[name, b"\0"].concat())
    }

    fn raw(mut self, letter: u8, name: &str, link: &str, size: u64, content: &[u8]) -> Craft {
        let mut header = tar::Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        old.linkflag[0] = letter;
        header.set_size(size);
        header.set_mode(self.mode);
        header.set_mtime(0);
        header.set_cksum();
        self.blocks.extend_from_slice(header.as_bytes());
        self.blocks.extend_from_slice(content);
        let padded = self.blocks.len().next_multiple_of(512);
        self.blocks.resize(padded, 0);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.blocks.extend_from_slice(&[0; 1024]);
        self.blocks
    }
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = 3 + key.len() + value.len();
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        content.extend_from_slice(format!("{length} {key}=").as_bytes());
        content.extend_from_slice(value);
        content.push(b'\n');
    }
    content
}

#[test]
fn absolute_names_are_refused() {
    let problem = refusal(&Craft::new().file("/etc/f", b"x").end());
    assert_eq!(
        problem,
        "cannot unpack `a.tar`: member `/etc/f`: has an absolute name"
    );
}

#[test]
fn dot_dot_is_refused_wherever_it_stands() {
    for name in ["..", "../f", "a/../f", "a/b/../../../f", "./..", "a/.."] {
        let problem = refusal(&Craft::new().file(name, b"x").end());
        assert!(problem.contains("`..`"), "{problem}");
        refusal(&Craft::new().dir(name).end());
        refusal(
            &Craft::new()
                .meta(b'x', &pax(&[("path", name.as_bytes())]))
                .file("f", b"")
                .end(),
        );
    }
}

#[test]
fn dot_dot_is_refused_also_where_it_would_be_stripped_off() {
    let archive = Craft::new().file("../f", b"x").end();
    let (result, _) = unpack_with(
        &Tar {
            drop: false,
            strip: 1,
        },
        &archive,
    );
    assert_eq!(result.unwrap_err().exit_status(), 65);
}

#[test]
fn nothing_is_written_through_a_symlink() {
    for target in ["..", "/tmp", ".", "d", "../below"] {
        for archive in [
            Craft::new().dir("d").symlink("s", target).file("s/f", b"x"),
            Craft::new().dir("d").symlink("s", target).dir("s/d"),
            Craft::new()
                .dir("d")
                .symlink("s", target)
                .symlink("s/l", "x"),
            Craft::new()
                .dir("d")
                .file("f", b"")
                .symlink("s", target)
                .hard_link("s/l", "f"),
            Craft::new()
                .dir("d")
                .symlink("d/s", target)
                .file("d/s/e/f", b"x"),
        ] {
            let problem = refusal(&archive.end());
            assert!(problem.contains("is a symlink"), "{problem}");
        }
    }
}

#[test]
fn a_file_takes_the_place_of_a_symlink_and_not_of_its_target() {
    let archive = Craft::new()
        .symlink("s", "../below/a.tar")
        .file("s", b"new")
        .end();
    let site = unpack(&archive);
    assert_eq!(fs::read(site.stage().join("s")).unwrap(), b"new");
    assert_eq!(fs::read(site.root().join("below/a.tar")).unwrap(), archive);
}

#[test]
fn hard_links_out_of_the_stage_are_refused() {
    for target in [
        "/etc/passwd",
        "../below/a.tar",
        "s/a.tar",
        "nothing",
        "",
        ".",
        "d",
        "x/y",
    ] {
        let archive = Craft::new()
            .dir("d")
            .symlink("s", "../below")
            .hard_link("h", target)
            .end();
        refusal(&archive);
    }
}

#[test]
fn a_hard_link_to_the_list_is_refused() {
    let archive = Craft::new()
        .hard_link("h", "a.tar.list")
        .file("h", b"x")
        .end();
    refusal(&archive);
}

#[test]
fn a_hard_link_to_itself_keeps_the_file() {
    let archive = Craft::new().file("f", b"x").hard_link("f", "./f").end();
    assert_eq!(fs::read(unpack(&archive).stage().join("f")).unwrap(), b"x");
}

#[test]
fn directories_and_other_things_do_not_replace_each_other() {
    for archive in [
        Craft::new().dir("d").symlink("d", "/tmp"),
        Craft::new().dir("d").file("d", b""),
        Craft::new().dir("d").file("f", b"").hard_link("d", "f"),
        Craft::new().symlink("d", "/tmp").dir("d"),
        Craft::new().file("d", b"").dir("d"),
        Craft::new().file("d", b"").file("d/f", b""),
        Craft::new().file("d/f", b"").symlink("d", "/tmp"),
    ] {
        let problem = refusal(&archive.end());
        assert!(problem.contains("member `d"), "{problem}");
    }
}

#[test]
fn devices_and_fifos_are_refused() {
    for (letter, what) in [(b'3', "character"), (b'4', "block"), (b'6', "FIFO")] {
        let problem = refusal(&Craft::new().raw(letter, "dev", "", 0, b"").end());
        assert!(
            problem.contains(what) && problem.contains("`dev`"),
            "{problem}"
        );
    }
}

#[test]
fn reserved_names_are_refused_at_the_top_and_ours_everywhere() {
    for name in [
        "repofile",
        "./repofile",
        "repofile/x",
        "repofile.lock",
        "a.tar",
        "a.tar.list",
        ".sc",
        ".sc.x/journal",
        "d/.sc",
        "d/.sc.lock/f",
    ] {
        let problem = refusal(&Craft::new().file(name, b"x").end());
        assert!(problem.contains("reserved"), "{problem}");
    }
    unpack(
        &Craft::new()
            .file("d/repofile", b"")
            .file(".scx", b"")
            .file("d/a.tar", b"")
            .end(),
    );
}

#[test]
fn a_reserved_name_that_stripping_brings_to_the_top_is_refused() {
    let archive = Craft::new().file("d/repofile", b"x").end();
    let (result, _) = unpack_with(
        &Tar {
            drop: false,
            strip: 1,
        },
        &archive,
    );
    assert_eq!(result.unwrap_err().exit_status(), 65);
}

#[test]
fn a_nul_in_a_name_is_refused() {
    let problem = refusal(
        &Craft::new()
            .meta(b'x', &pax(&[("path", b"a\0b")]))
            .file("f", b"")
            .end(),
    );
    assert!(problem.contains("NUL"), "{problem}");
    refusal(&Craft::new().long_name(b"a\0b").file("f", b"").end());
    refusal(
        &Craft::new()
            .meta(b'x', &pax(&[("linkpath", b"a\0b")]))
            .symlink("f", "")
            .end(),
    );
}

#[test]
fn names_that_are_too_long_are_refused() {
    let component = "n".repeat(256);
    let problem = refusal(
        &Craft::new()
            .long_name(component.as_bytes())
            .file("f", b"")
            .end(),
    );
    assert!(problem.contains("255"), "{problem}");
    let path = "n/".repeat(2100);
    let problem = refusal(&Craft::new().long_name(path.as_bytes()).file("f", b"").end());
    assert!(problem.contains("4096"), "{problem}");
    refusal(
        &Craft::new()
            .meta(b'K', &[b't'; 5000])
            .symlink("s", "")
            .end(),
    );
}

#[test]
fn a_gigantic_extended_header_is_refused_before_it_is_read() {
    for letter in [b'x', b'g', b'L', b'K'] {
        for size in [(1 << 20) + 1, 1 << 40, i64::MAX as u64] {
            let problem = refusal(&Craft::new().raw(letter, "m", "", size, b"").end());
            assert!(problem.contains("extended header"), "{problem}");
        }
    }
}

#[test]
fn sizes_that_are_none_are_refused() {
    let mut blocks = Craft::new().file("f", b"").blocks;
    for size in [
        &b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        b"99999999999\0",
    ] {
        blocks[124..136].copy_from_slice(size);
        let mut header = tar::Header::from_byte_slice(&blocks[..512]).clone();
        header.set_cksum();
        refusal(header.as_bytes());
    }
    for size in ["-1", "x", "99999999999999999999999"] {
        refusal(
            &Craft::new()
                .meta(b'x', &pax(&[("size", size.as_bytes())]))
                .file("f", b"")
                .end(),
        );
    }
    refusal(
        &Craft::new()
            .meta(b'x', &pax(&[("size", b"18446744073709551615")]))
            .file("f", b"")
            .end(),
    );
}

#[test]
fn damaged_pax_headers_are_refused() {
    for records in [
        &b"x"[..],
        b"5",
        b" a=b\n",
        b"0 a=b\n",
        b"3 \n",
        b"99 a=b\n",
        b"6 a=bc",
        b"5 ab\n",
        b"99999999999999 a=b\n",
        b"6 a=b\n\0",
        b"13 mtime=now\n",
    ] {
        refusal(&Craft::new().meta(b'x', records).file("f", b"").end());
        refusal(&Craft::new().meta(b'g', records).file("f", b"").end());
    }
}

#[test]
fn extended_headers_of_nothing_are_refused() {
    refusal(&Craft::new().long_name(b"n").end());
    refusal(&Craft::new().meta(b'x', &pax(&[("path", b"n")])).blocks);
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let with = |records: &[(&str, &[u8])], content: &[u8]| {
        let problem = refusal(
            &Craft::new()
                .meta(b'x', &pax(records))
                .file("f", content)
                .end(),
        );
        assert!(problem.contains("sparse"), "{problem}");
    };
    let text = |map: &str| {
        let mut content = map.as_bytes().to_vec();
        content.resize(512, 0);
        content.extend_from_slice(&[1; 512]);
        content
    };
    let v1 = |size: &'static str| -> Vec<(&str, &[u8])> {
        vec![
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"real"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ]
    };
    unpack(
        &Craft::new()
            .meta(b'x', &pax(&v1("9999")))
            .file("f", &text("1\n8\n512\n"))
            .end(),
    );
    for (size, map) in [
        ("9999", "1\n8\n513\n"),
        ("9999", "1\n8\n511\n"),
        ("100", "1\n8\n512\n"),
        ("9999", "2\n600\n256\n0\n256\n"),
        ("9999", "2\n0\n256\n600\n256\n"),
        ("9999", "2\n0\n512\n511\n0\n"),
        ("9999", "1\n18446744073709551615\n512\n"),
        ("18446744073709551615", "1\n8\n512\n"),
        ("9999", "99999999999\n"),
        ("9999", "1000001\n"),
        ("9999", "x"),
        ("9999", ""),
        ("9999", "1\n-8\n512\n"),
    ] {
        with(&v1(size), &text(map));
    }
    let v0: &[(&str, &[u8])] = &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,1,2")];
    refusal(&Craft::new().meta(b'x', &pax(v0)).file("f", b"1").end());
    with(
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"8,2")],
        b"12",
    );
    with(
        &[("GNU.sparse.size", b"9"), ("GNU.sparse.offset", b"8")],
        b"",
    );
    with(&[("GNU.sparse.map", b"0,1")], b"1");
    with(
        &[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"1")],
        b"1",
    );
    // The old format: no map where there is content, and a map that goes on for ever.
    refusal(&Craft::new().raw(b'S', "f", "", 512, &[1; 512]).end());
}

#[test]
fn a_bomb_ends_before_the_disk_is_full() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let bomb = Craft::new().raw(b'0', "bomb", "", 1 << 40, b"").blocks;
    encoder.write_all(&bomb).unwrap();
    encoder.write_all(&[0; 100_000]).unwrap();
    let mut site = FakeSite::with_archive("a.tar", &encoder.finish().unwrap());
    site.room = 1 << 30;
    let error = PLAIN.run(&mut site).unwrap_err();
    assert_eq!(error.exit_status(), 73);
    assert_eq!(
        error.to_string(),
        "not enough room: member `bomb` of `a.tar` has 1.1 TB, and 1.1 GB are left"
    );
    assert!(!site.stage().join("bomb").exists());
}

#[test]
fn an_archive_that_holds_more_than_was_asked_for_is_refused() {
    let archive = Craft::new().file("a", &[1; 60]).file("b", &[1; 41]).end();
    let mut site = FakeSite::with_archive("a.tar", &archive);
    site.limit = Bytes(101);
    PLAIN.run(&mut site).unwrap();
    let mut site = FakeSite::with_archive("a.tar", &archive);
    site.limit = Bytes(100);
    let error = PLAIN.run(&mut site).unwrap_err();
    assert_eq!(error.exit_status(), 73);
    assert_eq!(
        error.to_string(),
        "not enough room: `a.tar`, with its member `b`, takes more than 100 B (`--size`)"
    );
    assert!(!site.stage().join("b").exists());
}

#[test]
fn members_without_content_use_up_inodes() {
    for one in [
        |craft: Craft, n| craft.file(&format!("f{n}"), b""),
        |craft: Craft, n| craft.dir(&format!("f{n}")),
        |craft: Craft, n| craft.symlink(&format!("f{n}"), "x"),
        |craft: Craft, n| craft.file(&format!("f{n}/g"), b""),
    ] {
        let archive = (0..10).fold(Craft::new(), one).end();
        let mut site = FakeSite::with_archive("a.tar", &archive);
        site.inodes = 7;
        let error = PLAIN.run(&mut site).unwrap_err();
        assert_eq!(error.exit_status(), 73);
        assert!(error.to_string().ends_with("no inodes are left"), "{error}");
    }
}

#[test]
fn many_small_members_use_up_the_room_too() {
    let mut craft = Craft::new();
    for n in 0..10 {
        craft = craft.file(&format!("f{n}"), &[1; 1000]);
    }
    let mut site = FakeSite::with_archive("a.tar", &craft.end());
    site.room = 9999;
    let error = PLAIN.run(&mut site).unwrap_err();
    assert_eq!(error.exit_status(), 73);
    assert!(error.to_string().contains("`f9`"), "{error}");
}

#[test]
fn arguments_have_one_spelling_each() {
    for (argument, canonical) in [
        (None, "tar"),
        (Some(""), "tar"),
        (Some("drop"), "tar:drop"),
        (Some("strip=0"), "tar"),
        (Some("strip=02"), "tar:strip=2"),
        (Some("strip=1,drop"), "tar:drop,strip=1"),
    ] {
        let (tar, warning) = Tar::parse(argument.map(OsStr::new)).unwrap();
        assert_eq!(tar.to_string(), canonical);
        assert_eq!(warning, None);
    }
    let (tar, warning) = Tar::parse(Some(OsStr::new("gz"))).unwrap();
    assert_eq!(tar.to_string(), "tar");
    assert_eq!(warning.unwrap(), "`tar` ignores its argument `gz`");
    for argument in [
        "strip=",
        "strip=x",
        "strip=-1",
        "strip=+1",
        "strip=99999999999999999999",
    ] {
        let error = Tar::parse(Some(OsStr::new(argument))).unwrap_err();
        assert_eq!(error.exit_status(), 2, "{argument}");
    }
}

proptest::proptest! {
    /// Whatever the bytes: no panic, and nothing beside the stage.
    #[test]
    fn damaged_archives_never_touch_anything_else(
        at in 0usize..4096,
        byte in proptest::num::u8::ANY,
        fix_sum in proptest::bool::ANY,
    ) {
        let mut archive = Craft::new()
            .meta(b'x', &pax(&[("mtime", b"1.5"), ("path", b"d/../f")]))
            .file("f", b"1")
            .symlink("s", "..")
            .file("s/x", b"2")
            .end();
        archive.truncate(4096);
        if let Some(place) = archive.get_mut(at) {
            *place = byte;
        }
        if fix_sum {
            let block = at / 512 * 512;
            if archive.len() >= block + 512 {
                let mut header = tar::Header::from_byte_slice(&archive[block..block + 512]).clone();
                header.set_cksum();
                archive[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        let (_, site) = unpack_with(&PLAIN, &archive);
        let around: Vec<_> = tree(site.root())
            .into_keys()
            .filter(|path| !path.starts_with("stage"))
            .collect();
        proptest::prop_assert_eq!(around, [Path::new("below"), Path::new("below/a.tar")]);
    }
}
