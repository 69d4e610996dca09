//! A site for the modules' own tests: a temporary directory and a notebook.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::FileStat;

use crate::console::{Console, Level, ProgressMode};
use crate::durable::Dir;
use crate::error::Result;
use crate::hash::Hash;
use crate::stack::growing::Growth;
use crate::stack::http::Network;
use crate::stack::{Part, Product, Settings, Site};
use crate::units::Bytes;

/// Public fields are there to be changed before, and looked at after.
#[derive(Debug)]
pub struct FakeSite {
    temporary: tempfile::TempDir,
    dir: Dir,
    growth: Arc<Growth>,
    console: Console,
    pub below: Option<String>,
    pub is_fresh: bool,
    pub part: Option<Part>,
    /// Every part that was recorded, and how long the unfinished file was then.
    pub parts: Vec<(Option<Part>, Option<u64>)>,
    /// The file whose length `parts` notes.
    pub watched: Option<String>,
    /// The products, by their path.
    pub made: Vec<String>,
    pub reserved: Vec<String>,
    pub room: u64,
    pub limit: Bytes,
    pub settings: Settings,
}

impl FakeSite {
    pub fn new() -> FakeSite {
        let temporary = tempfile::tempdir().unwrap();
        FakeSite {
            dir: Dir::open(temporary.path()).unwrap(),
            temporary,
            growth: Arc::default(),
            console: Console::new(Level::Quiet, ProgressMode::Never),
            below: None,
            is_fresh: false,
            part: None,
            parts: Vec::new(),
            watched: None,
            made: Vec::new(),
            reserved: Vec::new(),
            room: 1 << 40,
            limit: Bytes(u64::MAX),
            settings: Settings {
                size: Bytes(0),
                retries: 3,
                stall_timeout: Duration::from_secs(60),
                network: Network::from_env(&|name| (name == "SC_BACKOFF_MS").then(|| "0".into())),
                dirac_get: "dirac-dms-get-file".into(),
            },
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temporary.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
}

impl Site for FakeSite {
    fn dir(&self) -> &Dir {
        &self.dir
    }

    fn below(&self) -> Option<Product<'_>> {
        let name = OsStr::new(self.below.as_ref()?);
        let growth = &self.growth;
        Some(Product {
            dir: &self.dir,
            name,
            growth,
        })
    }

    fn is_fresh(&self) -> bool {
        self.is_fresh
    }

    fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    fn set_part(&mut self, part: Option<Part>) -> Result<()> {
        let watched = self.watched.as_ref().map(|name| self.path(name));
        let length = watched.and_then(|path| Some(path.metadata().ok()?.len()));
        self.parts.push((part.clone(), length));
        self.part = part;
        Ok(())
    }

    fn grown(&mut self, _length: u64) {}

    fn discarded(&mut self) {}

    fn digested(&mut self, _hash: Hash) {}

    fn made(&mut self, path: &Path, stat: &FileStat, _hash: Option<Hash>) -> Result<()> {
        let now = self.dir.lstat(path.as_os_str())?.unwrap();
        assert_eq!((now.st_ino, now.st_size), (stat.st_ino, stat.st_size));
        self.made.push(path.display().to_string());
        Ok(())
    }

    fn is_reserved(&self, name: &OsStr) -> bool {
        self.reserved
            .iter()
            .any(|reserved| OsStr::new(reserved) == name)
    }

    fn room(&self) -> Result<u64> {
        Ok(self.room)
    }

    fn inodes(&self) -> Result<u64> {
        Ok(u64::MAX)
    }

    fn limit(&self) -> Bytes {
        self.limit
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn console(&self) -> &Console {
        &self.console
    }
}
