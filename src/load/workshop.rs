//! The place where one stage works: its directory, and its way to the journal.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::FileStat;

use super::pipeline::{Common, Readers};
use crate::console::Console;
use crate::durable::Dir;
use crate::error::Result;
use crate::repository::journal::{Entry, Record, StageRecord};
use crate::repository::link;
use crate::stack::growing::Growth;
use crate::stack::{Part, Product, Settings, Site};

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

    fn made(&mut self, path: &Path, stat: &FileStat) -> Result<()> {
        let entry = Entry::new(path.to_owned(), stat);
        if path.components().count() == 1 {
            self.record
                .entries
                .insert(entry.path.clone(), entry.clone());
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

    fn settings(&self) -> &Settings {
        self.common.settings
    }

    fn console(&self) -> &Console {
        self.common.console
    }
}
