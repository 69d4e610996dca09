//! A [`Site`] over a temporary directory, for the unit tests of the modules.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::FileStat;

use crate::console::{Console, Level, ProgressMode};
use crate::durable::Dir;
use crate::error::Result;
use crate::hash::Hash;
use crate::stack::growing::Growth;
use crate::stack::{Part, Product, Settings, Site};
use crate::units::Bytes;

pub struct FakeSite {
    /// Holds `below`, where the archive is, and `stage`, where the module works.
    root: tempfile::TempDir,
    dir: Dir,
    below: Dir,
    archive: OsString,
    growth: Arc<Growth>,
    console: Console,
    /// What was reported, in order.
    pub made: Vec<(PathBuf, FileStat)>,
    /// What [`Site::room`] answers, before what has been made is taken off it.
    pub room: u64,
    pub limit: Bytes,
    /// What [`Site::inodes`] answers, before what there is is taken off it.
    pub inodes: u64,
}

impl FakeSite {
    pub fn with_archive(name: impl AsRef<OsStr>, content: &[u8]) -> FakeSite {
        let root = tempfile::tempdir().unwrap();
        let open = |name| {
            let path = root.path().join(name);
            std::fs::create_dir(&path).unwrap();
            Dir::open(&path).unwrap()
        };
        let (below, dir) = (open("below"), open("stage"));
        let archive = name.as_ref().to_owned();
        std::fs::write(below.path_of(&archive), content).unwrap();
        let growth = Growth::default();
        growth.finish(content.len() as u64);
        FakeSite {
            growth: Arc::new(growth),
            dir,
            below,
            archive,
            root,
            console: Console::new(Level::Quiet, ProgressMode::Never),
            made: Vec::new(),
            room: u64::MAX,
            limit: Bytes(u64::MAX),
            inodes: u64::MAX,
        }
    }

    /// Where the module works.
    pub fn stage(&self) -> &Path {
        self.dir.path()
    }

    /// Everything that the module must leave alone, and its stage.
    pub fn root(&self) -> &Path {
        self.root.path()
    }
}

/// How many entries there are below `dir`.
fn count(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| match entry.file_type().unwrap().is_dir() {
            true => 1 + count(&entry.path()),
            false => 1,
        })
        .sum()
}

impl Site for FakeSite {
    fn dir(&self) -> &Dir {
        &self.dir
    }

    fn below(&self) -> Option<Product<'_>> {
        Some(Product {
            dir: &self.below,
            name: &self.archive,
            growth: &self.growth,
        })
    }

    fn is_fresh(&self) -> bool {
        false
    }

    fn part(&self) -> Option<&Part> {
        None
    }

    fn set_part(&mut self, _part: Option<Part>) -> Result<()> {
        Ok(())
    }

    fn grown(&mut self, _length: u64) {}

    fn discarded(&mut self) {}

    fn digested(&mut self, _hash: Hash) {}

    fn made(&mut self, path: &Path, stat: &FileStat, _hash: Option<Hash>) -> Result<()> {
        self.made.push((path.to_owned(), *stat));
        Ok(())
    }

    fn is_reserved(&self, name: &OsStr) -> bool {
        name == "repofile" || name == "repofile.lock"
    }

    fn room(&self) -> Result<u64> {
        let spent: i64 = self.made.iter().map(|(_, stat)| stat.st_size).sum();
        Ok(self.room.saturating_sub(spent as u64))
    }

    fn inodes(&self) -> Result<u64> {
        Ok(self.inodes.saturating_sub(count(self.stage())))
    }

    fn limit(&self) -> Bytes {
        self.limit
    }

    fn settings(&self) -> &Settings {
        unimplemented!("no transformation asks for the loaders' settings")
    }

    fn console(&self) -> &Console {
        &self.console
    }
}
