//! What flows where while a stack is loaded, and who may wait for whom.
//!
//! The order of the stages is the order of their results. Checksums and `tar` read nothing but the
//! loader's file, so they may read it while it is coming, each in a thread of its own, and the data
//! is passed over once:
//!
//! ```text
//!  main thread        http, file, dirac: writes the file, says how far it is (Growth)
//!    │  the file in staging/<n>, read from the page cache
//!    ├─ checksum      one thread each: digests, compares at the end
//!    ├─ digest        where none of them is a digest: what the journal says the file is
//!    └─ tar           parses, makes directories, links and large files; writes manifest and list
//!         ↑ decompress     fills chunks of 256 KiB, a few ahead          (stack::content)
//!             ↑ × a few    decodes members that are found further on     (stack::decompress)
//!         ↓ unpack × cores make small files, a batch of them at a time   (stack::archive)
//! ```
//!
//! | who | waits for | no longer than |
//! |---|---|---|
//! | the loader | the network, the disk; never for a reader | its stall timeout |
//! | checksum, digest, decompress | the loader's next bytes, or its end | the loader |
//! | tar | the next chunk; the oldest batch, when there are too many | decompress; the workers |
//! | decompress | a place for its chunk; the member that comes next | tar, or until tar is gone |
//! | who decodes further on | a place for its chunk | decompress, or until it is gone |
//! | unpack | its next batch | tar, or until tar is gone |
//! | the main thread, its file loaded | checksums, digest and tar, in stage order | the longest of them |
//!
//! There is no circle in it: each waits for one further up, but for the bounded hand-overs between
//! `tar` and its helpers, which end when either side is gone. What bounds memory is chunks (a few
//! MiB, and the blocks of xz where liblzma has threads of its own), not the speed of anybody. A file
//! shorter than [`WORTH_THREADS`] is loaded before anybody reads it, and where no thread is to be
//! had, or a module reads more than the loader's file, the stages run one after the other: the same
//! modules, on a file that is whole from the start.
//!
//! # Unverified bytes
//!
//! Decompressor and parser see bytes that no checksum has judged yet. They are made for that (see
//! [`crate::stack::archive`]); what they make lies in staging, mode 0700, and counts nothing:
//!
//! * a stage is stamped when it *and all below it* are done, in stage order, by the main thread
//!   (I4); nothing is published before the last stamp;
//! * the error that counts is that of the lowest stage that failed: damaged data is a wrong
//!   checksum, whatever `tar` said of it before. So a failure of `tar` does not stop the loader;
//! * a loader that begins anew ([`Site::discarded`](crate::stack::Site::discarded)), fails, or
//!   brought wrong bytes takes its readers with it: they end at their next read, and are waited for.
//!
//! # What a kill leaves
//!
//! Stages without a stamp. The download goes on at its last byte; the others begin anew and are
//! quick, with all that is there in the page cache. A panic of a thread is an internal error of its
//! stage. No thread outlives [`Load::run_together`].

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use nix::fcntl::OFlag;

use super::Load;
use super::workshop::{Below, Workshop};
use crate::console::Console;
use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::hash::Hash;
use crate::plan::Plan;
use crate::process;
use crate::repository::journal::{Entry, Journal, Record, StageRecord};
use crate::repository::{Held, Repository};
use crate::share::Share;
use crate::signal;
use crate::stack::growing::{Growth, Stream};
use crate::stack::{Part, Settings};

/// What is shorter is there before a thread is.
const WORTH_THREADS: u64 = 1 << 20;

/// What the stages of a load share.
pub(super) struct Common<'a> {
    pub(super) repository: &'a Repository,
    pub(super) console: &'a Console,
    pub(super) plan: &'a Plan<'a>,
    pub(super) settings: &'a Settings,
    journal: Mutex<Journal>,
}

/// Those who read a loader's file.
pub(super) trait Readers {
    fn grown(&mut self, length: u64);
    fn discarded(&mut self);
}

/// What a stage begins with.
struct Start<'a> {
    stage: usize,
    dir: Dir,
    below: Option<Below<'a>>,
}

impl<'a> Common<'a> {
    pub(super) fn new(
        held: &'a Held,
        plan: &'a Plan<'a>,
        settings: &'a Settings,
        journal: Journal,
    ) -> Common<'a> {
        Common {
            repository: held.repository,
            console: held.console(),
            plan,
            settings,
            journal: Mutex::new(journal),
        }
    }

    /// A record is appended whole or not at all: a panic elsewhere leaves no half of one.
    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, n: usize, what: &str) {
        let module = &self.plan.stages[n].module;
        self.console.detail(format_args!("`{module}`{what}"));
    }

    /// Runs a stage up to its stamp.
    fn perform<'b>(&'b self, start: Start<'b>, loader: Loader<'b>) -> Result<Performed> {
        signal::check()?;
        let stage = &self.plan.stages[start.stage];
        if loader.part.is_none() {
            start.dir.clear()?;
        }
        self.journal().append(&Record::Stage {
            stage: start.stage,
            signature: stage.signature.clone(),
            module: stage.module.to_string().chars().take(200).collect(),
        })?;
        let mut workshop = Workshop {
            common: self,
            stage: start.stage,
            dir: start.dir,
            below: start.below,
            fresh: loader.fresh,
            part: loader.part,
            readers: loader.readers,
            record: StageRecord {
                signature: stage.signature.clone(),
                ..Default::default()
            },
            digest: None,
        };
        if let Err(error) = stage.module.run(&mut workshop) {
            workshop.abandon(&error);
            return Err(error);
        }
        Ok(Performed {
            record: workshop.record,
            digest: workshop.digest,
        })
    }

    /// Reads a loader's file as those above it do, to know what it is.
    fn digest(&self, below: &Below) -> Result<Hash> {
        let file = below.dir.open_file(below.name, OFlag::O_RDONLY)?;
        let mut stream = Stream::new(file, below.growth.clone());
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            signal::check()?;
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(hasher.into()),
                Ok(n) => drop(hasher.update(&buffer[..n])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).io("cannot read", Path::new(below.name)),
            }
        }
    }

    /// Records what a loader's file digests to.
    fn certify(&self, loader: usize, stages: &mut [StageRecord], hash: Hash) -> Result<()> {
        let name = self.plan.stages[loader].module.file_name();
        let Some(entry) = name.and_then(|name| stages[loader].entries.get_mut(Path::new(name)))
        else {
            return Ok(());
        };
        entry.hash = Some(hash);
        let entry = entry.clone();
        self.journal().append(&Record::Entry {
            stage: loader,
            entry,
        })
    }

    /// A stage is done, and all below it are (I4).
    fn stamp(&self, n: usize, record: StageRecord) -> Result<StageRecord> {
        let mut journal = self.journal();
        journal.append(&Record::Stamp {
            stage: n,
            signature: self.plan.stages[n].signature.clone(),
            boot_id: process::boot_id(),
            at_unix_s: Some(process::unix_time_s()),
        })?;
        journal.flush()?;
        Ok(StageRecord {
            stamp: Some(process::boot_id()),
            ..record
        })
    }
}

/// What came of a stage.
struct Performed {
    record: StageRecord,
    /// What the loader's file digests to.
    digest: Option<Hash>,
}

/// What only a loader is told.
#[derive(Default)]
struct Loader<'a> {
    part: Option<Part>,
    fresh: bool,
    readers: Option<&'a mut dyn Readers>,
}

impl Load<'_> {
    /// Runs those stages of `together` that are not finished, and stamps them. `fresh`: what the
    /// loader brings may not come out of a cache.
    pub(super) fn run_together(&mut self, together: Range<usize>, fresh: bool) -> Result<()> {
        let mut to_do = Vec::new();
        for n in together {
            match self.is_finished(n)? {
                true => self.common.say(n, ": done already"),
                false => to_do.push(n),
            }
        }
        let Some((&first, rest)) = to_do.split_first() else {
            return Ok(());
        };
        let is_loader = self.common.plan.stages[first].module.is_loader();
        let (loader, readers) = match is_loader {
            true => (Some(first), rest),
            false => (None, &to_do[..]),
        };
        let (common, stages) = (&self.common, &mut self.stages);
        std::thread::scope(|scope| {
            let mut early = Early {
                scope,
                held: self.held,
                published: (!self.beside).then_some(self.root),
                common,
                stages: readers,
                undigested: common.plan.undigested(first),
                growth: Arc::default(),
                is_begun: false,
                running: VecDeque::new(),
                digesting: None,
            };
            if let Some(n) = loader {
                let same = stages[n].signature == common.plan.stages[n].signature;
                let start = early.start(n)?;
                common.say(n, "");
                let is_ours = is_ours(&start.dir)?;
                let performed = common.perform(
                    start,
                    Loader {
                        part: stages[n].part.take().filter(|_| same && !fresh && is_ours),
                        fresh,
                        readers: Some(&mut early),
                    },
                )?;
                stages[n] = performed.record;
                early.finish(first)?;
                if readers.is_empty() {
                    early.digest(stages)?;
                }
                stages[n] = common.stamp(n, std::mem::take(&mut stages[n]))?;
            } else {
                early.finish(first)?;
            }
            for &n in readers {
                let performed = early.result(n)?;
                if let (Some(hash), Some(loader)) = (performed.digest, common.plan.stages[n].loader)
                {
                    common.certify(loader, stages, hash)?;
                }
                if readers.last() == Some(&n) {
                    early.digest(stages)?;
                }
                stages[n] = common.stamp(n, performed.record)?;
            }
            Ok(())
        })
    }
}

/// Can what is staged here be written to? In a group's repository another member may have brought
/// it: his files are his, and the download begins anew.
fn is_ours(dir: &Dir) -> Result<bool> {
    if dir.share() == Share::User {
        return Ok(true);
    }
    for name in dir.names()? {
        if dir
            .lstat(&name)?
            .is_some_and(|stat| !durable::is_ours(&stat))
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Those who read the loader's file, begun before it is whole.
struct Early<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    held: &'env Held<'env>,
    /// See [`Load::published`].
    published: Option<&'env Dir>,
    common: &'env Common<'env>,
    /// All of them, begun or not, in order.
    stages: &'env [usize],
    growth: Arc<Growth>,
    is_begun: bool,
    /// Those that were begun: the first ones.
    running: VecDeque<ScopedJoinHandle<'scope, Result<Performed>>>,
    /// The loader whose file no checksum digests: then that is done here.
    undigested: Option<usize>,
    digesting: Option<ScopedJoinHandle<'scope, Result<Hash>>>,
}

impl<'env> Early<'_, 'env> {
    fn start(&self, n: usize) -> Result<Start<'env>> {
        let plan = self.common.plan;
        let below = match plan.stages[n].loader {
            Some(loader) if loader < n => Some(self.below(loader)?),
            _ => None,
        };
        Ok(Start {
            stage: n,
            dir: self.held.stage_dir(n)?,
            below,
        })
    }

    /// A loader's file, as far as it is.
    fn below(&self, loader: usize) -> Result<Below<'env>> {
        let module = &self.common.plan.stages[loader].module;
        let name = module.file_name().unwrap_or_default();
        let (dir, _) = self.loaded(loader, name)?;
        let growth = self.growth.clone();
        Ok(Below { dir, name, growth })
    }

    /// Records what the loader's file digests to, where no checksum has told; all of it is there.
    fn digest(&mut self, stages: &mut [StageRecord]) -> Result<()> {
        let Some(loader) = self.undigested else {
            return Ok(());
        };
        let is_known = |entry: &Entry| entry.hash.is_some();
        if stages[loader].entries.values().any(is_known) {
            return Ok(());
        }
        let hash = match self.digesting.take() {
            Some(digesting) => joined(digesting),
            None => self.common.digest(&self.below(loader)?),
        };
        self.common.certify(loader, stages, hash?)
    }

    /// The directory where a loader's file is now, and the length of the file. It is staged, or was
    /// published by a process that was killed after that.
    fn loaded(&self, loader: usize, name: &OsStr) -> Result<(Dir, u64)> {
        let staged = self.held.stage_dir(loader)?;
        if let Some(stat) = staged.lstat(name)? {
            return Ok((staged, stat.st_size as u64));
        }
        let Some(root) = self.published else {
            return Ok((staged, 0));
        };
        let length = root.lstat(name)?.map_or(0, |stat| stat.st_size as u64);
        Ok((root.try_clone()?, length))
    }

    /// The file of the loader of stage `n` is all there.
    fn finish(&mut self, n: usize) -> Result<()> {
        let plan = self.common.plan;
        if let Some(loader) = plan.stages[n].loader {
            let name = plan.stages[loader].module.file_name().unwrap_or_default();
            let (_, length) = self.loaded(loader, name)?;
            self.growth.finish(length);
        }
        Ok(())
    }

    /// What has become of stage `n`; it is run here if it was not begun.
    fn result(&mut self, n: usize) -> Result<Performed> {
        match self.running.pop_front() {
            Some(running) => joined(running),
            None => {
                let start = self.start(n)?;
                self.common.say(n, "");
                self.common.perform(start, Loader::default())
            }
        }
    }
}

impl Readers for Early<'_, '_> {
    fn grown(&mut self, length: u64) {
        self.growth.reach(length);
        if self.is_begun || length < WORTH_THREADS {
            return;
        }
        self.is_begun = true;
        for &n in self.stages {
            // what fails here is tried again when its turn has come
            let Ok(start) = self.start(n) else { return };
            let common = self.common;
            let thread = std::thread::Builder::new()
                .name(format!("stage {n}"))
                .spawn_scoped(self.scope, move || {
                    signal::be_quiet();
                    common.perform(start, Loader::default())
                });
            let Ok(thread) = thread else { return };
            common.say(n, "");
            self.running.push_back(thread);
        }
        // what cannot be begun now is done when the file is there
        if let Some(Ok(below)) = self.undigested.map(|loader| self.below(loader)) {
            let common = self.common;
            let thread = std::thread::Builder::new()
                .name("digest".into())
                .spawn_scoped(self.scope, move || {
                    signal::be_quiet();
                    common.digest(&below)
                });
            self.digesting = thread.ok();
        }
    }

    fn discarded(&mut self) {
        self.growth.abandon();
        self.running
            .drain(..)
            .for_each(|thread| drop(joined(thread)));
        drop(self.digesting.take().map(joined));
        self.growth = Arc::default();
        self.is_begun = false;
    }
}

impl Drop for Early<'_, '_> {
    fn drop(&mut self) {
        self.discarded();
    }
}

fn joined<T>(thread: ScopedJoinHandle<Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| {
        Err(Error::Internal {
            problem: "a thread of the load is gone".into(),
        })
    })
}
