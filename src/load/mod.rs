//! Loading: from a stack of modules to a published repository, so that a kill at any instant
//! leaves something the next process can go on with.
//!
//! The order of events, all under the flock:
//!
//! 1. [`prepare`]: the journal is continued if it belongs to this very load, else what it
//!    published is withdrawn and a new one begun. Of what an older journal staged only an
//!    unfinished download is kept, and only where a checksum will judge it.
//! 2. The caller commits state IN_PROGRESS with our pid as `writer`.
//! 3. [`run`](Load::run): every stage without a valid stamp runs in `staging/<n>`, lowest first.
//!    It begins with a `stage` record and ends, all its entries recorded, with a `stamp` (I4).
//!    Stages that read the loader's file run while it comes: see [`pipeline`].
//! 4. [`publish`]: the entries are on disk in the journal (I3), then each is renamed into the
//!    repository, replacing nothing. Their fingerprints are taken again: a rename is a ctime.
//!    With `--read-only` the write bits of everything below them are taken off before, while
//!    nobody can see it.
//! 5. The caller looks at every published entry under the link lock and commits OK (I5).
//!
//! Killed in 3, the next process continues at the first stage without stamp; killed in 4, it
//! publishes what is still staged: what is published already stands in the repository with the
//! inode the journal recorded.
//!
//! # Beside other data
//!
//! What has expired is better than nothing while its successor is not there. So a load in place of
//! whole data that nobody holds withdraws nothing in step 1 and commits no IN_PROGRESS in 2: the
//! state stays OK, and the new journal lies in `next/`. When step 3 is done, the caller commits
//! IN_PROGRESS with the new generation, [`succeed`] withdraws the old data by their own journal and
//! gives the new one its place, and step 4 follows. A failure in 3 has changed nothing; killed
//! between the commit and step 4, the next process finds the generation of the repofile in `next/`
//! and goes on there. Where the two do not fit side by side the old data go first.

mod pipeline;
mod prepare;
mod workshop;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::plan::Plan;
use crate::process;
use crate::repository::journal::{Depth, Entry, Journal, Kind, Record, StageRecord};
use crate::repository::repofile::{MOST_ENTRIES, Repofile};
use crate::repository::{Held, layout};
use crate::share::Share;
use crate::signal;
use crate::stack::{Module, Settings};
use pipeline::Common;

pub use prepare::{Prepared, make_root, prepare, prepare_beside, succeed};

/// The top-level entries of the repository, as they will be or are published.
type Tops = BTreeMap<OsString, Top>;

#[derive(Debug, Clone)]
struct Top {
    stage: usize,
    entry: Entry,
}

/// A load under way.
pub struct Load<'a> {
    held: &'a Held<'a>,
    root: &'a Dir,
    /// What stands in `root` is not what is being loaded.
    beside: bool,
    common: Common<'a>,
    stages: Vec<StageRecord>,
    read_only: bool,
}

impl<'a> Load<'a> {
    pub fn new(
        held: &'a Held<'a>,
        root: &'a Dir,
        plan: &'a Plan<'a>,
        settings: &'a Settings,
        prepared: Prepared,
    ) -> Load<'a> {
        let mut stages = prepared.replay.stages;
        stages.resize_with(plan.stages.len(), StageRecord::default);
        Load {
            held,
            root,
            beside: prepared.beside,
            common: Common::new(held, plan, settings, prepared.journal),
            stages,
            read_only: false,
        }
    }

    /// Shall nobody write to what is loaded?
    pub fn read_only(self, read_only: bool) -> Load<'a> {
        Load { read_only, ..self }
    }

    /// Step 3.
    pub fn stage(mut self) -> Result<Staged<'a>> {
        let plan = self.common.plan;
        let mut refetched = vec![false; plan.stages.len()];
        let mut n = 0;
        while n < plan.stages.len() {
            let together = plan.together(n);
            let loader = plan.stages[n].loader.unwrap_or(n);
            match self.run_together(together.clone(), refetched[loader]) {
                Ok(()) => n = together.end,
                Err(error @ Error::Checksum { .. }) => {
                    for wrong in loader..together.end {
                        self.void(wrong)?;
                    }
                    if refetched[loader] {
                        return Err(error);
                    }
                    self.held
                        .console()
                        .warn(format_args!("{error}; fetching it once more"));
                    refetched[loader] = true;
                    n = loader;
                }
                Err(error) => {
                    if matches!(error, Error::Archive { .. }) && !self.is_verified(loader)? {
                        // else every later load would fail by the same staged file
                        self.void(loader)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(Staged(self))
    }

    /// Is the stage stamped, in this boot, and all it made at hand: staged or published?
    fn is_finished(&self, n: usize) -> Result<bool> {
        let record = &self.stages[n];
        if record.signature != self.common.plan.stages[n].signature
            || record.stamp != Some(process::boot_id())
            || record.stamp == Some(None)
        {
            return Ok(false);
        }
        is_at_hand(self.held, self.published(), n, record)
    }

    /// Where a process that was killed may have published something of this load.
    fn published(&self) -> Option<&'a Dir> {
        (!self.beside).then_some(self.root)
    }

    /// Has a checksum said that this loader's file is the right one?
    fn is_verified(&self, loader: usize) -> Result<bool> {
        for (n, stage) in self.common.plan.stages.iter().enumerate() {
            if stage.loader == Some(loader)
                && matches!(stage.module, Module::Checksum(_))
                && self.is_finished(n)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the stamp off a stage and deletes what it staged.
    fn void(&mut self, n: usize) -> Result<()> {
        let mut journal = self.common.journal();
        journal.append(&Record::Part {
            stage: n,
            part: None,
        })?;
        journal.append(&Record::Void { stage: n })?;
        journal.flush()?;
        self.stages[n] = StageRecord::default();
        match self.held.find_stage_dir(n)? {
            Some(dir) => dir.clear(),
            None => Ok(()),
        }
    }

    fn publish(self) -> Result<Published> {
        let mut tops = Tops::new();
        let (mut size_bytes, mut brought_bytes) = (0, 0);
        for (n, record) in self.stages.iter().enumerate() {
            let stage = &self.common.plan.stages[n];
            if stage.module.is_loader() {
                brought_bytes += record.entries.values().map(Entry::file_bytes).sum::<u64>();
            }
            if !stage.is_dropped {
                size_bytes += record.below_bytes;
            }
            for entry in record.entries.values().filter(|_| !stage.is_dropped) {
                let name = entry.path.clone().into_os_string();
                tops.insert(
                    name,
                    Top {
                        stage: n,
                        entry: entry.clone(),
                    },
                );
            }
        }
        self.common.journal().flush()?;
        durable::point("publish").io("cannot publish in", self.root.path())?;
        let mut staged = Vec::new();
        for n in
            (0..self.common.plan.stages.len()).filter(|&n| !self.common.plan.stages[n].is_dropped)
        {
            staged.extend(self.held.find_stage_dir(n)?.map(|dir| (n, dir)));
        }
        // Whatever is in the way is found before the first entry becomes visible; what comes
        // into the way after that is found by the rename itself.
        for (_, dir) in &staged {
            check_way(dir, self.root, self.held)?;
        }
        if matches!(self.held.control.share(), Share::Group(_)) {
            for (n, dir) in &staged {
                self.open_up(*n, dir, Path::new(""))?;
            }
        }
        if self.read_only {
            for (n, dir) in &staged {
                self.protect(*n, dir, Path::new(""))?;
            }
            self.common.journal().flush()?;
        }
        for (n, dir) in &staged {
            self.publish_dir(*n, dir, self.root, Path::new(""))?;
        }
        for top in tops.values() {
            if let Some(stat) = self.root.lstat(top.entry.path.as_os_str())?
                && top.entry.is(&stat)
            {
                let mut stat = stat;
                // a load that was killed in the middle of a move left it writable
                if self.read_only
                    && durable::is_dir(&stat)
                    && durable::is_ours(&stat)
                    && stat.st_mode & 0o222 != 0
                {
                    let name = top.entry.path.as_os_str();
                    self.root.set_mode(name, stat.st_mode & !0o222)?;
                    stat = self.root.lstat(name)?.unwrap_or(stat);
                }
                let entry = Entry::new(top.entry.path.clone(), &stat);
                self.common.journal().append(&Record::Entry {
                    stage: top.stage,
                    entry,
                })?;
            }
        }
        self.common.journal().flush()?;
        size_bytes += tops.values().map(|top| top.entry.file_bytes()).sum::<u64>();
        Ok(Published {
            size_bytes,
            brought_bytes,
            tops: tops.into_values().map(|top| top.entry).collect(),
        })
    }

    /// Opens to a group the directories that a program made, which sc did not: without that nobody
    /// else could delete what is in them.
    fn open_up(&self, n: usize, dir: &Dir, path: &Path) -> Result<()> {
        for name in dir.names()? {
            let Some(stat) = dir.lstat(&name)?.filter(durable::is_dir) else {
                continue;
            };
            let at = path.join(&name);
            dir.searchable(&name, &stat)?;
            self.open_up(n, &dir.open_dir(&name)?, &at)?;
            if dir.share().is_open(&stat) {
                continue;
            }
            dir.open_up(&name, &stat)?;
            self.record(n, dir, &name, at)?;
        }
        Ok(())
    }

    /// Takes the write bits off everything in `dir`.
    fn protect(&self, n: usize, dir: &Dir, path: &Path) -> Result<()> {
        for name in dir.names()? {
            signal::check()?;
            let Some(stat) = dir.lstat(&name)? else {
                continue;
            };
            let (at, mode) = (path.join(&name), stat.st_mode & !0o222);
            // another member's, who was killed: the mode is his
            if !durable::is_ours(&stat) {
                if durable::is_dir(&stat) {
                    self.protect(n, &dir.open_dir(&name)?, &at)?;
                }
                continue;
            }
            if durable::is_dir(&stat) {
                dir.searchable(&name, &stat)?;
                self.protect(n, &dir.open_dir(&name)?, &at)?;
                dir.set_mode(&name, mode)?;
            } else if durable::is_file(&stat) {
                dir.set_file_mode(&name, mode)?;
            } else {
                continue;
            }
            self.record(n, dir, &name, at)?;
        }
        Ok(())
    }

    /// Takes the fingerprint of `name` again: a change of its mode is a ctime.
    fn record(&self, n: usize, dir: &Dir, name: &OsStr, at: PathBuf) -> Result<()> {
        let Some(stat) = dir.lstat(name)? else {
            return Ok(());
        };
        let entry = Entry::new(at, &stat);
        self.common
            .journal()
            .append(&Record::Entry { stage: n, entry })
    }

    /// Moves all that is in `from` to `to`. A directory that was there before is entered; a file
    /// in the way is an error: nothing is ever replaced.
    fn publish_dir(&self, n: usize, from: &Dir, to: &Dir, path: &Path) -> Result<()> {
        let mut names = from.names()?;
        names.sort();
        for name in names {
            signal::check()?;
            self.held.check()?; // I1
            let Some(stat) = from.lstat(&name)? else {
                continue;
            };
            // I3. What a program brought may have been left running, and go on writing beside it.
            let at = path.join(&name);
            if path.as_os_str().is_empty() && !self.stages[n].entries.contains_key(&at) {
                continue;
            }
            let mut made = None;
            match self.publish_one(from, to, &name, &stat) {
                Err(error) if error.errno() == Some(Errno::EEXIST) => {}
                Err(error) if error.errno() == Some(Errno::ENOTEMPTY) => {}
                // no RENAME_NOREPLACE here: a directory has to be made and filled
                Err(error) if error.errno() == Some(Errno::EINVAL) && durable::is_dir(&stat) => {
                    // I3 as far as it goes: the inode is not known before the mkdir
                    made = to.make_new_dir(&name, stat.st_mode & 0o777 | 0o700)?;
                    if let Some(stat) = made {
                        let entry = Entry::new(path.join(&name), &stat);
                        let mut journal = self.common.journal();
                        journal.append(&Record::Entry { stage: n, entry })?;
                        journal.flush()?;
                    }
                }
                published => {
                    published?;
                    continue;
                }
            }
            let (from_below, to_below) = match to.lstat(&name)? {
                Some(there)
                    if durable::is_dir(&stat)
                        && durable::is_dir(&there)
                        && self.held.owns(&there) =>
                {
                    from.searchable(&name, &stat)?;
                    (from.open_dir(&name)?, to.open_dir(&name)?)
                }
                _ => return Err(in_the_way(to, &name)),
            };
            self.publish_dir(n, &from_below, &to_below, &path.join(&name))?;
            from.rmdir(&name)?;
            if made.is_some_and(|made| durable::is_ours(&made)) {
                to.set_mode(&name, stat.st_mode)?;
            }
        }
        Ok(())
    }

    fn publish_one(&self, from: &Dir, to: &Dir, name: &OsStr, stat: &FileStat) -> Result<()> {
        // Moving a directory to another parent writes its `..`, which takes the right to write.
        let closed = durable::is_dir(stat) && stat.st_mode & 0o200 == 0 && durable::is_ours(stat);
        if closed {
            from.searchable(name, stat)?;
        }
        from.rename_new(name, to, name)?;
        if closed {
            to.set_mode(name, stat.st_mode)?;
        }
        Ok(())
    }
}

/// A load whose stages are all finished.
pub struct Staged<'a>(Load<'a>);

impl Staged<'_> {
    /// Step 4: returns the names now at the top of the repository that are ours.
    pub fn publish(self) -> Result<Published> {
        self.0.publish()
    }
}

/// Would publishing `from` in `to` meet a file?
fn check_way(from: &Dir, to: &Dir, held: &Held) -> Result<()> {
    for name in from.names()? {
        let Some(there) = to.lstat(&name)? else {
            continue;
        };
        let is_dir = from
            .lstat(&name)?
            .is_some_and(|stat| durable::is_dir(&stat));
        // who owns a directory may swap what is put into it
        if !is_dir || !durable::is_dir(&there) || !held.owns(&there) {
            return Err(in_the_way(to, &name));
        }
        check_way(&from.open_dir(&name)?, &to.open_dir(&name)?, held)?;
    }
    Ok(())
}

fn in_the_way(to: &Dir, name: &OsStr) -> Error {
    let problem = "was there before the load, which would bring a file of that name";
    let remedy = "move it away, or choose another `--name`";
    to.foreign(name, problem, remedy)
}

/// Is all that a finished stage made still staged, or published?
fn is_at_hand(held: &Held, root: Option<&Dir>, n: usize, record: &StageRecord) -> Result<bool> {
    let dir = held.find_stage_dir(n)?;
    for entry in record.entries.values() {
        let name = entry.path.as_os_str();
        let staged = match &dir {
            Some(dir) => dir.lstat(name)?.is_some_and(|stat| entry.is(&stat)),
            None => false,
        };
        // published: this very entry, or a directory of others that ours went into
        let published = match root {
            Some(root) => root.lstat(name)?.is_some_and(|stat| {
                entry.is(&stat) || (entry.kind == Kind::Dir && durable::is_dir(&stat))
            }),
            None => false,
        };
        if !staged && !published {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first entry, however deep, that was published and is gone: a deletion that was killed takes
/// the members first.
pub fn missing_below(held: &Held, root: &Dir, repofile: &Repofile) -> Result<Option<String>> {
    let Some(journal) = Journal::read(&held.control, Depth::All)? else {
        return Ok(None);
    };
    let published: Vec<PathBuf> = repofile.entries().collect();
    for path in journal.manifest.paths() {
        let top = Path::new(path.iter().next().unwrap_or_default());
        // what was unpacked and dropped stands in the journal too
        let is_published = match &repofile.sc.entries {
            Some(_) => published.iter().any(|entry| entry == top),
            None => root.lstat(top.as_os_str())?.is_some(),
        };
        if !is_published {
            continue;
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let there = match root.descend(parent) {
            Ok(dir) => dir.lstat(path.file_name().unwrap_or_default())?.is_some(),
            Err(error) if error.errno() == Some(Errno::ENOENT) => false,
            Err(error) => return Err(error),
        };
        if !there {
            return Ok(Some(path.display().to_string()));
        }
    }
    Ok(None)
}

/// What a load put at the top of the repository.
#[derive(Debug)]
pub struct Published {
    tops: Vec<Entry>,
    /// All files of it together.
    pub size_bytes: u64,
    /// What the loaders brought of it.
    pub brought_bytes: u64,
}

impl Published {
    /// Is every entry still there? Names the first that isn't.
    pub fn missing(&self, root: &Dir) -> Result<Option<PathBuf>> {
        for entry in &self.tops {
            if root.lstat(entry.path.as_os_str())?.is_none() {
                return Ok(Some(entry.path.clone()));
            }
        }
        Ok(None)
    }

    /// What the repofile records of them: the names, encoded, unless they are too many.
    pub fn entries(&self) -> (Option<Vec<String>>, u64) {
        let names = || {
            self.tops
                .iter()
                .map(|entry| layout::encode(&entry.path))
                .collect()
        };
        (
            (self.tops.len() <= MOST_ENTRIES).then(names),
            self.tops.len() as u64,
        )
    }
}
