//! Small files are made by several threads; what depends on their order is not their business.
//!
//! The extraction collects files in batches, each with its directory open and its content in
//! memory, and deals them out in turn: the n-th batch goes to lane n modulo the number of lanes, and
//! its result is the next one from that lane. So results come back in the order of the archive,
//! without a table; and what only has to be told in that order (a symlink that was made, the line
//! of a directory) travels with a batch.
//!
//! A worker never decides anything: a name that exists already goes back as it is, and whoever
//! dealt it out, having seen all that came before, replaces what is there, or refuses.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::stat::{FileStat, Mode};

use super::super::content::Slice;
use super::members::Time;
use super::split;
use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::hash::Hash;
use crate::signal;

/// More do not help: directories are locked while files are made in them, and one thread parses.
const MOST_LANES: usize = 8;

/// Items in a batch.
const BATCH: usize = 128;

/// Directories of a batch: each is kept open until its files are made.
const BATCH_DIRECTORIES: usize = 8;

/// Batches that a lane may have at once.
const DEPTH: usize = 4;

/// A file with all its content.
#[derive(Debug)]
pub struct Small {
    pub dir: Arc<Dir>,
    /// Its path below the stage's directory; the last component is its name in `dir`.
    pub path: Vec<u8>,
    pub mode: u32,
    pub mtime: Time,
    pub content: Vec<Slice>,
}

/// What travels in a batch.
#[derive(Debug)]
pub enum Item {
    /// On its way out: to be made. On its way back: something has that name.
    File(Small),
    /// On its way back: what it is now, and its path.
    Made(Vec<u8>, FileStat, Hash),
    /// Was done elsewhere, and is told of in its turn.
    Done {
        path: Vec<u8>,
        /// `None`: a directory, which is told of when it is settled.
        stat: Option<FileStat>,
        hash: Option<Hash>,
        is_listed: bool,
    },
}

type Batch = Vec<Item>;
pub type Outcome = Vec<Result<Item>>;

/// Makes files as the archive wants them.
#[derive(Debug, Default)]
pub struct Maker {
    /// Modes that a file created with them does not have: the umask, or an ACL.
    cut: HashSet<u32>,
}

impl Maker {
    /// Puts the content into a file that was just created with `mode`, and gives it what else it
    /// gets; what it is then.
    pub fn settle(
        &mut self,
        file: &File,
        mode: u32,
        mtime: Time,
        dir: &Dir,
        name: &OsStr,
    ) -> Result<FileStat> {
        let stat = || nix::sys::stat::fstat(file).io("cannot stat", &dir.path_of(name));
        let change =
            || durable::set_mode(file, mode).io("cannot change mode of", &dir.path_of(name));
        if self.cut.contains(&mode) {
            change()?;
        }
        durable::set_mtime(file, mtime).io("cannot set time of", &dir.path_of(name))?;
        let made = stat()?;
        if made.st_mode & 0o7777 == mode {
            return Ok(made);
        }
        self.cut.insert(mode);
        change()?;
        stat()
    }

    /// Makes a file, and digests its content while that is at hand; `None` where something has its
    /// name.
    pub fn make(&mut self, small: &Small) -> Result<Option<(FileStat, Hash)>> {
        let name = split(&small.path).1;
        let file = match small.dir.create(name, small.mode) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => return Ok(None),
            created => created?,
        };
        durable::write_pieces(&file, &small.content)
            .io("cannot write", &small.dir.path_of(name))?;
        let stat = self.settle(&file, small.mode, small.mtime, &small.dir, name)?;
        Ok(Some((stat, Hash::of(&small.content))))
    }

    fn work(&mut self, batch: Batch) -> Outcome {
        let one = |item| {
            let Item::File(small) = item else {
                return Ok(item);
            };
            signal::check()?;
            Ok(match self.make(&small)? {
                Some((stat, hash)) => Item::Made(small.path, stat, hash),
                None => Item::File(small),
            })
        };
        batch.into_iter().map(one).collect()
    }
}

/// The threads, started as they are needed, and what is on its way to them and back.
pub struct Workers {
    lanes: Vec<Lane>,
    most_lanes: usize,
    /// What goes to a lane next: files that begin in one chunk of the content.
    batch: Batch,
    chunk: u64,
    directories: usize,
    /// Batches that were dealt out, and that came back.
    given: usize,
    taken: usize,
    /// Paths of the files on their way.
    in_flight: HashSet<Vec<u8>>,
}

enum Lane {
    Thread {
        jobs: Option<Sender<Batch>>,
        done: Receiver<Outcome>,
        thread: Option<JoinHandle<()>>,
    },
    /// There can be no more threads: what was done at once.
    Here(Maker, VecDeque<Outcome>),
}

impl Workers {
    pub fn new() -> Workers {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Workers {
            lanes: Vec::new(),
            most_lanes: cores.min(MOST_LANES),
            batch: Batch::new(),
            chunk: 0,
            directories: 0,
            given: 0,
            taken: 0,
            in_flight: HashSet::new(),
        }
    }

    /// Has every lane enough to do? Then something must be taken back before more is put in.
    pub fn are_full(&self) -> bool {
        self.given - self.taken >= self.most_lanes * DEPTH
    }

    /// Is nothing on its way?
    pub fn are_idle(&self) -> bool {
        self.batch.is_empty() && self.given == self.taken
    }

    /// Is a file of this path on its way?
    pub fn have(&self, path: &[u8]) -> bool {
        self.in_flight.contains(path)
    }

    /// What is put in next begins in this chunk of the content. A batch that waited for more
    /// chunks would keep them all in memory.
    pub fn begin_chunk(&mut self, chunk: u64) {
        if self.chunk != chunk {
            self.deal();
            self.chunk = chunk;
        }
    }

    pub fn put(&mut self, item: Item) {
        if let Item::File(small) = &item {
            let before = self.batch.iter().rev().find_map(|item| match item {
                Item::File(before) => Some(&before.dir),
                _ => None,
            });
            if !before.is_some_and(|dir| Arc::ptr_eq(dir, &small.dir)) {
                self.directories += 1;
            }
            self.in_flight.insert(small.path.clone());
        }
        self.batch.push(item);
        if self.batch.len() >= BATCH || self.directories > BATCH_DIRECTORIES {
            self.deal();
        }
    }

    fn deal(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        self.directories = 0;
        let n = self.given % self.most_lanes;
        if n == self.lanes.len() {
            self.lanes.push(Lane::start());
        }
        match &mut self.lanes[n] {
            // a worker that is gone is found out when its result is missing
            Lane::Thread { jobs, .. } => drop(jobs.as_ref().map(|jobs| jobs.send(batch))),
            Lane::Here(maker, done) => done.push_back(maker.work(batch)),
        }
        self.given += 1;
    }

    /// The result of the oldest batch on its way; waits for it. `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Internal`]: its worker is gone.
    pub fn take(&mut self) -> Result<Option<Outcome>> {
        if self.given == self.taken {
            self.deal();
        }
        if self.given == self.taken {
            return Ok(None);
        }
        let n = self.taken % self.most_lanes;
        self.taken += 1;
        let outcome = match &mut self.lanes[n] {
            Lane::Thread { done, .. } => done.recv().ok(),
            Lane::Here(_, done) => done.pop_front(),
        };
        let outcome = outcome.ok_or_else(|| Error::Internal {
            problem: "a thread that makes files is gone".into(),
        })?;
        for item in outcome.iter().flatten() {
            if let Item::Made(path, ..) | Item::File(Small { path, .. }) = item {
                self.in_flight.remove(path);
            }
        }
        Ok(Some(outcome))
    }
}

impl Lane {
    fn start() -> Lane {
        let (jobs, to_do) = mpsc::channel::<Batch>();
        let (to_us, done) = mpsc::channel();
        let thread = signal::quiet_thread("unpack", move || {
            own_umask();
            let mut maker = Maker::default();
            for batch in to_do {
                if to_us.send(maker.work(batch)).is_err() {
                    return;
                }
            }
        });
        match thread {
            Ok(thread) => Lane::Thread {
                jobs: Some(jobs),
                done,
                thread: Some(thread),
            },
            Err(_) => Lane::Here(Maker::default(), VecDeque::new()),
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for lane in &mut self.lanes {
            if let Lane::Thread { jobs, .. } = lane {
                *jobs = None;
            }
        }
        for lane in &mut self.lanes {
            if let Lane::Thread { thread, .. } = lane
                && let Some(thread) = thread.take()
            {
                let _ = thread.join();
            }
        }
    }
}

/// Modes are the archive's: a file that is created with its own needs no second call. The umask
/// belongs to the process, unless a thread takes leave of it (`unshare(2)`); where it may not,
/// [`Maker::settle`] finds what was cut off.
fn own_umask() {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).is_ok() {
        nix::sys::stat::umask(Mode::empty());
    }
}
