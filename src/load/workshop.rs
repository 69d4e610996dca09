//! The place where one stage works: its directory, and its way to the journal.

use std::ffi::OsStr;
use std::path::Path;

use nix::sys::stat::FileStat;

use crate::console::Console;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::repository::journal::{Entry, Journal, Record, StageRecord};
use crate::repository::{Held, link};
use crate::stack::{Part, Product, Settings, Site};
use crate::units::Bytes;

/// The place where one stage works.
pub(super) struct Workshop<'a> {
    pub(super) held: &'a Held<'a>,
    pub(super) journal: &'a mut Journal,
    pub(super) settings: &'a Settings,
    pub(super) stage: usize,
    pub(super) dir: Dir,
    pub(super) below: Option<(Dir, &'a OsStr)>,
    pub(super) fresh: bool,
    pub(super) part: Option<Part>,
    /// What it made at the top: all that later steps need to know.
    pub(super) record: StageRecord,
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
            let console = self.held.console();
            console.detail(format_args!("what the failed stage left stays: {second}"));
        }
    }
}

impl Site for Workshop<'_> {
    fn dir(&self) -> &Dir {
        &self.dir
    }

    fn below(&self) -> Option<Product<'_>> {
        self.below.as_ref().map(|(dir, name)| Product { dir, name })
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
        self.journal.append(&Record::Part {
            stage: self.stage,
            part,
        })?;
        self.journal.flush()
    }

    fn made(&mut self, path: &Path, stat: &FileStat) -> Result<()> {
        let entry = Entry::new(path.to_owned(), stat);
        if path.components().count() == 1 {
            self.record
                .entries
                .insert(entry.path.clone(), entry.clone());
        } else {
            self.record.below_bytes += entry.file_bytes();
        }
        self.journal.append(&Record::Entry {
            stage: self.stage,
            entry,
        })
    }

    fn is_reserved(&self, name: &OsStr) -> bool {
        match self.held.repository.inner_repofile() {
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
        match self.settings.size {
            Bytes(0) => Bytes(u64::MAX),
            size => size,
        }
    }

    fn settings(&self) -> &Settings {
        self.settings
    }

    fn console(&self) -> &Console {
        self.held.console()
    }
}
