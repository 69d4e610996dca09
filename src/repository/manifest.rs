//! Every path a journal names, in little more memory than the names take: what a deletion asks.
//!
//! An entry is 24 bytes and its last name component; the path of a directory is kept once. A
//! deletion asks directory by directory, so what lies in one lies together, sorted by name.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::journal::Kind;

#[derive(Debug, Clone, Copy)]
struct Item {
    ino: u64,
    /// Where its name begins in `names`; of two records of one path the later one has more.
    name: u64,
    dir: u32,
    stage: u16,
    length: u8,
    kind: Kind,
}

#[derive(Debug, Clone, Default)]
pub struct Manifest {
    items: Vec<Item>,
    names: Vec<u8>,
    /// The directories that entries lie in.
    dirs: HashMap<Box<[u8]>, u32>,
    /// Where the items of each directory are; empty until [`Manifest::sort`].
    ranges: Vec<Range<usize>>,
    /// The directory of the last entry: the next one mostly lies in it, too.
    last: Option<(Box<[u8]>, u32)>,
}

impl Manifest {
    /// How many records there are, about as many as paths.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn insert(&mut self, stage: usize, path: &[u8], kind: Kind, ino: u64) {
        let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        // no directory can hold a longer name
        let Ok(length) = u8::try_from(name.len()) else {
            return;
        };
        let dir = self.dir_number(parent);
        self.items.push(Item {
            ino,
            name: self.names.len() as u64,
            dir,
            stage: stage as u16,
            length,
            kind,
        });
        self.names.extend_from_slice(name);
    }

    fn dir_number(&mut self, path: &[u8]) -> u32 {
        if let Some((last, number)) = &self.last
            && **last == *path
        {
            return *number;
        }
        let next = self.dirs.len() as u32;
        let number = match self.dirs.get(path) {
            Some(&number) => number,
            None => *self.dirs.entry(path.into()).or_insert(next),
        };
        self.last = Some((path.into(), number));
        number
    }

    /// A stage has begun again: what it made before counts no more.
    pub(super) fn forget(&mut self, stage: usize) {
        self.items.retain(|item| usize::from(item.stage) != stage);
    }

    /// To be called once, when all is read.
    pub(super) fn sort(&mut self) {
        self.last = None;
        let names = &self.names;
        let name = |item: &Item| &names[item.name as usize..][..usize::from(item.length)];
        self.items.sort_unstable_by(|one, two| {
            (one.dir, name(one), one.stage, two.name).cmp(&(
                two.dir,
                name(two),
                two.stage,
                one.name,
            ))
        });
        // the later record of a path stands first now
        self.items.dedup_by(|next, first| {
            (first.dir, name(first), first.stage) == (next.dir, name(next), next.stage)
        });
        self.items.shrink_to_fit();
        self.ranges = vec![0..0; self.dirs.len()];
        for (at, item) in self.items.iter().enumerate() {
            let range = &mut self.ranges[item.dir as usize];
            if range.end == 0 {
                range.start = at;
            }
            range.end = at + 1;
        }
    }

    /// What is named directly in the directory `path`, relative to the repository.
    pub fn in_dir(&self, path: &Path) -> Listing<'_> {
        let dir = self.dirs.get(path.as_os_str().as_bytes());
        let range = dir.and_then(|&dir| self.ranges.get(dir as usize).cloned());
        Listing {
            items: &self.items[range.unwrap_or_default()],
            names: &self.names,
        }
    }

    /// Every path, once for each stage that made it.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let mut dirs: Vec<&[u8]> = vec![&[]; self.dirs.len()];
        for (path, &number) in &self.dirs {
            dirs[number as usize] = path;
        }
        self.items.iter().map(move |item| {
            let dir = Path::new(OsStr::from_bytes(dirs[item.dir as usize]));
            dir.join(OsStr::from_bytes(self.name(item)))
        })
    }

    fn name(&self, item: &Item) -> &[u8] {
        &self.names[item.name as usize..][..usize::from(item.length)]
    }
}

/// What is named in one directory.
#[derive(Debug, Clone, Copy)]
pub struct Listing<'m> {
    items: &'m [Item],
    names: &'m [u8],
}

impl Listing<'_> {
    fn name(&self, item: &Item) -> &[u8] {
        &self.names[item.name as usize..][..usize::from(item.length)]
    }

    fn of(&self, name: &OsStr) -> &[Item] {
        let name = name.as_bytes();
        let from = self.items.partition_point(|item| self.name(item) < name);
        let to = self.items[from..].partition_point(|item| self.name(item) == name);
        &self.items[from..from + to]
    }

    /// Has any stage recorded `name`?
    pub fn has(&self, name: &OsStr) -> bool {
        !self.of(name).is_empty()
    }

    /// Has any stage recorded `name` as this very inode?
    pub fn made(&self, name: &OsStr, kind: Kind, ino: u64) -> bool {
        self.of(name)
            .iter()
            .any(|item| item.ino == ino && item.kind == kind)
    }

    /// The names, each once.
    pub fn names(&self) -> Vec<OsString> {
        let name = |item| OsString::from_vec(self.name(item).to_vec());
        let mut names: Vec<_> = self.items.iter().map(name).collect();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(records: &[(usize, &str, Kind, u64)]) -> Manifest {
        let mut manifest = Manifest::default();
        for (stage, path, kind, ino) in records {
            manifest.insert(*stage, path.as_bytes(), *kind, *ino);
        }
        manifest.sort();
        manifest
    }

    #[test]
    fn what_lies_in_a_directory_is_found_by_name_and_inode() {
        let manifest = manifest(&[
            (1, "d/b", Kind::File, 3),
            (1, "d", Kind::Dir, 2),
            (1, "d/a", Kind::Symlink, 4),
            (0, "data", Kind::File, 1),
            (1, "d/a/deeper", Kind::File, 5),
        ]);
        assert_eq!(manifest.len(), 5);
        let d = manifest.in_dir(Path::new("d"));
        assert_eq!(d.names(), ["a", "b"]);
        assert!(d.made(OsStr::new("a"), Kind::Symlink, 4));
        assert!(!d.made(OsStr::new("a"), Kind::File, 4), "another kind");
        assert!(!d.made(OsStr::new("b"), Kind::File, 4), "another inode");
        assert!(d.has(OsStr::new("b")) && !d.has(OsStr::new("c")));
        assert_eq!(manifest.in_dir(Path::new("")).names(), ["d", "data"]);
        assert!(manifest.in_dir(Path::new("e")).names().is_empty());
        assert_eq!(manifest.paths().count(), 5);
        assert!(manifest.paths().any(|path| path == Path::new("d/a/deeper")));
    }

    #[test]
    fn the_last_record_of_a_path_counts_and_each_stage_has_its_own() {
        let manifest = manifest(&[
            (0, "f", Kind::File, 1),
            (1, "f", Kind::File, 9),
            (0, "f", Kind::File, 2),
        ]);
        let top = manifest.in_dir(Path::new(""));
        let made = |ino| top.made(OsStr::new("f"), Kind::File, ino);
        assert!(!made(1) && made(2) && made(9));
        assert_eq!(top.names(), ["f"]);
    }

    #[test]
    fn a_stage_begun_again_names_nothing() {
        let mut manifest = Manifest::default();
        manifest.insert(0, b"a", Kind::File, 1);
        manifest.insert(1, b"b", Kind::File, 2);
        manifest.forget(1);
        manifest.insert(1, &[b'x'; 256], Kind::File, 3);
        manifest.sort();
        assert_eq!(manifest.in_dir(Path::new("")).names(), ["a"]);
    }
}
