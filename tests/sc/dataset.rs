//! A data set behind a web server: the archive, the words that load it, and what must be there
//! when it is loaded.

use std::collections::BTreeMap;

use crate::node::{self, Node, Sc, tree};
use crate::server::{Running, Server, pattern};

pub struct Dataset {
    pub archive: Vec<u8>,
    md5: String,
    whole: BTreeMap<String, String>,
}

impl Dataset {
    /// An uncompressed archive with a file of so many bytes, a small one, a directory and a link.
    pub fn new(size: usize) -> Dataset {
        let large = pattern(size);
        let mut builder = tar::Builder::new(Vec::new());
        let header = |kind: tar::EntryType, size: usize| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
            header.set_size(size as u64);
            header.set_mtime(1_000_000_000);
            header
        };
        let file = |size| header(tar::EntryType::Regular, size);
        builder
            .append_data(&mut header(tar::EntryType::Directory, 0), "sub/", &[][..])
            .unwrap();
        builder
            .append_data(&mut file(size), "sub/large", large.as_slice())
            .unwrap();
        builder
            .append_link(&mut header(tar::EntryType::Symlink, 0), "link", "sub/large")
            .unwrap();
        builder
            .append_data(&mut file(6), "small", &b"small\n"[..])
            .unwrap();
        let archive = builder.into_inner().unwrap();
        let whole = [
            ("data.tar", String::from_utf8_lossy(&archive).into_owned()),
            ("data.tar.list", "sub\nsub/large\nlink\nsmall\n".into()),
            ("link", "-> sub/large".into()),
            ("small", "small\n".into()),
            ("sub", "dir".into()),
            ("sub/large", String::from_utf8_lossy(&large).into_owned()),
        ];
        Dataset {
            md5: digest(&archive),
            archive,
            whole: whole.map(|(path, what)| (path.into(), what)).into(),
        }
    }

    /// A server to be that has it under every path.
    pub fn served(&self) -> Server {
        Server::new().body(self.archive.clone()).etag("\"v1\"")
    }

    /// `--name=r http:… md5:… tar`
    pub fn words(&self, server: &Running) -> String {
        self.words_from(&server.url("/data.tar"))
    }

    pub fn words_from(&self, url: &str) -> String {
        format!("--name=r http:{url} md5:{} tar", self.md5)
    }

    /// Everything is in the repository `r` under its final name with its content, and nothing
    /// else but the repofile and its locks.
    #[track_caller]
    pub fn assert_whole(&self, node: &Node) {
        let mut there = tree(&node.path("r"));
        there.retain(|path, _| !path.starts_with("repofile"));
        // not assert_eq: nobody reads two megabytes of difference
        let paths: Vec<&String> = there.keys().collect();
        assert!(there == self.whole, "the data is not whole: {paths:?}");
    }
}

/// A data set of so many bytes is eight writes of the downloader …
pub const LARGE: usize = 2 << 20;

/// … and a body held back here leaves it at work on the sixth.
pub const HELD_AT: usize = 1_400_000;

/// Starts `sc`, a load of a [`LARGE`] data set held back at [`HELD_AT`] that shows its progress,
/// and returns when nearly half of the file is on the disk.
#[track_caller]
pub fn half_loaded(sc: Sc) -> node::Running {
    let mut loader = sc.spawn();
    loop {
        loader.wait_for("sc: loading `data.tar`: ");
        let line = loader.said.lines().last().unwrap_or_default();
        let percent = line.split(' ').find_map(|word| word.parse::<u64>().ok());
        if percent >= Some(40) {
            return loader;
        }
    }
}

pub fn digest(bytes: &[u8]) -> String {
    use md5::Digest;
    base16ct::lower::encode_string(&md5::Md5::digest(bytes))
}
