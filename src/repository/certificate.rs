//! What a journal vouches for, path by path: kind, fingerprint, hash, and when that was seen.
//!
//! A record of a path replaces the one before. One without a hash, of the same inode, size and
//! mtime, tells of a new ctime alone (a rename, a link, a chmod): the hash before stands. A second
//! name of a file has the hash of the first, whose inode it is.
//!
//! This is what a verification reads; a deletion, which must do with little memory, reads the
//! [manifest](super::manifest).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::journal::{Entry, Kind};
use crate::hash::Hash;

/// What is known of one path.
#[derive(Debug, Clone)]
pub struct Certificate {
    pub stage: usize,
    pub kind: Kind,
    pub size_bytes: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub ino: u64,
    /// `None`: what is not a file, or was recorded by an sc that knew no hashes.
    pub hash: Option<Hash>,
    /// When the content was seen to be that; `None`: when all was, see [`Certificates::seen_at`].
    pub certified_unix_s: Option<u64>,
}

impl Certificate {
    /// What a file has; of anything else it does not matter.
    pub fn file_bytes(&self) -> u64 {
        match self.kind {
            Kind::File => self.size_bytes,
            _ => 0,
        }
    }

    /// Is this the same inode with the same content, as far as a record without hash tells?
    fn goes_on(&self, before: &Certificate) -> bool {
        (self.ino, self.size_bytes, self.mtime_ns, self.kind)
            == (before.ino, before.size_bytes, before.mtime_ns, before.kind)
    }
}

/// The certificates of one directory, sorted by name.
#[derive(Debug, Clone, Default)]
pub struct Folder {
    /// Relative to the repository.
    pub path: PathBuf,
    pub items: Vec<(Box<OsStr>, Certificate)>,
}

/// All of a journal's.
#[derive(Debug, Clone, Default)]
pub struct Certificates {
    pub folders: Vec<Folder>,
    numbers: HashMap<Box<[u8]>, usize>,
    /// The folder of the last one: the next one mostly lies in it, too.
    last: usize,
    /// When a stage was last stamped: until the first time nobody else could get at what was
    /// recorded, and again it is only when all was found to be as it was.
    stamped_unix_s: Option<u64>,
}

impl Certificates {
    pub fn is_empty(&self) -> bool {
        self.folders.iter().all(|folder| folder.items.is_empty())
    }

    pub(super) fn insert(&mut self, path: &[u8], certificate: Certificate) {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        let is_last = (self.folders.get(self.last))
            .is_some_and(|folder| folder.path.as_os_str().as_bytes() == parent);
        if !is_last {
            self.last = match self.numbers.get(parent) {
                Some(&number) => number,
                None => {
                    self.numbers.insert(parent.into(), self.folders.len());
                    self.folders.push(Folder {
                        path: PathBuf::from(OsStr::from_bytes(parent)),
                        items: Vec::new(),
                    });
                    self.folders.len() - 1
                }
            };
        }
        let name = OsStr::from_bytes(name).into();
        self.folders[self.last].items.push((name, certificate));
    }

    /// A stage has begun again: what it made before counts no more.
    pub(super) fn forget(&mut self, stage: usize) {
        for folder in &mut self.folders {
            folder.items.retain(|(_, item)| item.stage != stage);
        }
    }

    /// When the content of a file was seen to be what is recorded of it. `None`: nobody knows.
    pub fn seen_at(&self, certificate: &Certificate) -> Option<u64> {
        certificate.certified_unix_s.or(self.stamped_unix_s)
    }

    pub(super) fn stamped(&mut self, at_unix_s: Option<u64>) {
        self.stamped_unix_s = at_unix_s;
    }

    /// To be called once, when all is read.
    pub(super) fn settle(&mut self) {
        self.numbers = HashMap::new();
        let mut by_inode: HashMap<u64, Hash> = HashMap::new();
        let mut is_wanting = false;
        for folder in &mut self.folders {
            // stable: of two records of one path the later one stays behind
            folder.items.sort_by(|(one, _), (two, _)| one.cmp(two));
            folder.items.dedup_by(|(name, next), (before, first)| {
                let is_again = name == before;
                if is_again {
                    if next.hash.is_none() && next.goes_on(first) {
                        next.hash = first.hash.take();
                        next.certified_unix_s = next.certified_unix_s.or(first.certified_unix_s);
                    }
                    std::mem::swap(next, first);
                }
                is_again
            });
            for (_, item) in &folder.items {
                is_wanting |= item.kind == Kind::File && item.hash.is_none();
            }
        }
        if !is_wanting {
            return;
        }
        let files = |folder: &'_ mut Folder, each: &mut dyn FnMut(&mut Certificate)| {
            let items = folder.items.iter_mut().map(|(_, item)| item);
            items.filter(|item| item.kind == Kind::File).for_each(each);
        };
        for folder in &mut self.folders {
            files(folder, &mut |item| {
                if let Some(hash) = &item.hash {
                    by_inode.insert(item.ino, hash.clone());
                }
            });
        }
        for folder in &mut self.folders {
            files(folder, &mut |item| {
                if item.hash.is_none() {
                    item.hash = by_inode.get(&item.ino).cloned();
                }
            });
        }
    }

    /// What is known of `path`.
    pub fn of(&self, path: &Path) -> Option<&Certificate> {
        let parent = path.parent()?;
        let folder = self.folders.iter().find(|folder| folder.path == parent)?;
        let name = path.file_name()?;
        let found = folder
            .items
            .binary_search_by(|(other, _)| (**other).cmp(name));
        found.ok().map(|at| &folder.items[at].1)
    }
}

impl Entry {
    /// Of a file whose content was found to be right at this time.
    pub fn certified(self, hash: Hash, unix_s: u64) -> Entry {
        Entry {
            hash: Some(hash),
            certified_unix_s: Some(unix_s),
            ..self
        }
    }
}
