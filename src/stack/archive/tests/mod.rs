//! Honest archives, and odd ones, are compared with what GNU tar makes of them; hostile and
//! damaged ones are made by hand.

mod damaged;
mod honest;
mod hostile;
mod odd;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Tar;
use crate::error::{Error, Result};
use crate::stack::testing::transformation::FakeSite;

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
    /// [`DIRECTORY`], [`SYMLINK`] or another `S_IF…`
    kind: u32,
    mode: u32,
    mtime: (i64, i64),
    content: Vec<u8>,
    /// The first path of the same file.
    same_as: PathBuf,
}

const DIRECTORY: u32 = libc::S_IFDIR;
const SYMLINK: u32 = libc::S_IFLNK;

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
        let kind = meta.mode() & libc::S_IFMT;
        let mode = meta.mode() & 0o7777;
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

/// What GNU tar makes of an archive; `None` where it complains.
fn by_gnu_tar(archive: &[u8]) -> Option<BTreeMap<PathBuf, Entry>> {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("tar")
        .args(["--no-same-owner", "-p", "-xf", "-", "-C"])
        .arg(dir.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // it may hang up first
    let _ = child.stdin.take().unwrap().write_all(archive);
    let status = child.wait().unwrap();
    let mut tree = tree(dir.path());
    for entry in tree.values_mut().filter(|entry| entry.kind != SYMLINK) {
        entry.mode &= super::extract::MODE_MASK;
    }
    status.success().then_some(tree)
}

/// Directories that are no members have the time of the unpacking.
fn without_todays_times(tree: &mut BTreeMap<PathBuf, Entry>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for entry in tree.values_mut().filter(|entry| entry.kind == DIRECTORY) {
        if entry.mtime.0 > now.as_secs() as i64 - 3600 {
            entry.mtime = (0, 0);
        }
    }
}

/// Unpacks with GNU tar, and with ours, and compares all of it.
fn same_as_gnu_tar(archive: &[u8]) -> FakeSite {
    let mut theirs = by_gnu_tar(archive).expect("GNU tar refuses it");
    let site = unpack(archive);
    let mut ours = tree(site.stage());
    let list = ours.remove(Path::new("a.tar.list")).expect("a list");
    without_todays_times(&mut ours);
    without_todays_times(&mut theirs);
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

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

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

/// The archive as each compressor would pack it, with the checksums that its program makes.
fn compressed(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(plain).unwrap();
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    zstd.include_checksum(true).unwrap();
    zstd.write_all(plain).unwrap();
    let info = lz4_flex::frame::FrameInfo::new().content_checksum(true);
    let mut lz4 = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    lz4.write_all(plain).unwrap();
    let (first, second) = plain.split_at(plain.len() / 2 + 7);
    vec![
        ("gzip", gzip(plain)),
        ("gzip twice", [gzip(first), gzip(second)].concat()),
        ("bzip2", bzip2.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("zstd", zstd.finish().unwrap()),
        ("lz4", lz4.finish().unwrap()),
    ]
}
