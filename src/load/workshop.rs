//! The place where one stage works: its directory, and its way to the journal.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::FileStat;

use super::pipeline::{Common, Readers};
use crate::console::Console;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::repository::journal::{Entry, Record, StageRecord};
use crate::repository::link;
use crate::stack::growing::Growth;
use crate::stack::{Part, Product, Settings, Site};
use crate::units::Bytes;

/// A loader's file, for those above it.
pub(super) struct Below<'a> {
    pub(super) dir: Dir,
    pub(super) name: &'a OsStr,
    pub(super) growth: Arc<Growth>,
}

/// The place where one stage works.
pub(super) struct Workshop<'a> {
    pub(super) common: &'a Common<'a>,
    pub(super) stage: usize,
    pub(super) dir: Dir,
    pub(super) below: Option<Below<'a>>,
    pub(super) fresh: bool,
    pub(super) part: Option<Part>,
    /// Who wants to know how far a loader is.
    pub(super) readers: Option<&'a mut dyn Readers>,
    /// What it made at the top: all that later steps need to know.
    pub(super) record: StageRecord,
    /// What the file below digests to, if this stage has found out.
    pub(super) digest: Option<Hash>,
}

impl Workshop<'_> {
    /// Frees the room that a failed stage took. An unfinished download stays for the next
    /// process, unless there is no room: then it may be what fills the disk. (A part without its
    /// file is a start from zero, so the journal need not say so.)
    pub(super) fn abandon(&self, error: &Error) {
        let is_kept = match error {
            Error::Interrupted { .. } | Error::LockLost { .. } => true,
            error => self.part.is_some() && error.exit_status() != 73,
        };
        if is_kept {
            return;
        }
        if let Err(second) = self.dir.clear() {
            let console = self.common.console;
            console.detail(format_args!("what the failed stage left stays: {second}"));
        }
    }
}

impl Site for Workshop<'_> {
    fn dir(&self) -> &Dir {
        &self.dir
    }

    fn below(&self) -> Option<Product<'_>> {
        self.below.as_ref().map(|below| Product {
            dir: &below.dir,
            name: below.name,
            growth: &below.growth,
        })
    }

    fn is_fresh(&self) -> bool {
        self.fresh
    }

    fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    fn set_part(&mut self, part: Option<Part>) -> Result<()> {
        self.part.clone_from(&part);
        self.record.part.clone_from(&part);
        let mut journal = self.common.journal();
        journal.append(&Record::Part {
            stage: self.stage,
            part,
        })?;
        journal.flush()
    }

    fn grown(&mut self, length: u64) {
        if let Some(readers) = &mut self.readers {
            readers.grown(length);
        }
    }

    fn discarded(&mut self) {
        if let Some(readers) = &mut self.readers {
            readers.discarded();
        }
    }

    fn digested(&mut self, hash: Hash) {
        self.digest = Some(hash);
    }

    fn made(&mut self, path: &Path, stat: &FileStat, hash: Option<Hash>) -> Result<()> {
        let entry = Entry {
            hash,
            ..Entry::new(path.to_owned(), stat)
        };
        if path.components().count() == 1 {
            self.record
                .entries
                .insert(entry.path.clone(), entry.clone());
        } else {
            self.record.below_bytes += entry.file_bytes();
        }
        self.common.journal().append(&Record::Entry {
            stage: self.stage,
            entry,
        })
    }

    fn is_reserved(&self, name: &OsStr) -> bool {
        match self.common.repository.inner_repofile() {
            Some(repofile) => name == repofile || link::is_lock_file(repofile, name),
            None => false,
        }
    }

    fn room(&self) -> Result<u64> {
        self.dir.available_bytes()
    }

    fn inodes(&self) -> Result<u64> {
        self.dir.available_inodes()
    }

    fn limit(&self) -> Bytes {
        match self.common.settings.size {
            Bytes(0) => Bytes(u64::MAX),
            size => size,
        }
    }

    fn settings(&self) -> &Settings {
        self.common.settings
    }

    fn console(&self) -> &Console {
        self.common.console
    }
}
