//! Loading: from a stack of modules to a published repository, so that a kill at any instant
//! leaves something the next process can go on with.
//!
//! The order of events, all under the flock:
//!
//! 1. [`prepare`]: the journal is continued if it belongs to this very load, else what it
//!    published is withdrawn and a new one begun. Of what an older journal staged only an
//!    unfinished download is kept, and only where a checksum will judge it.
//! 2. The caller commits state IN_PROGRESS with our pid as `writer`.
//! 3. [`run`]: every stage without a valid stamp runs in `staging/<n>`, lowest first. It begins
//!    with a `stage` record and ends, all its entries recorded, with a `stamp` (I4).
//! 4. [`publish`]: the entries are on disk in the journal (I3), then each is renamed into the
//!    repository, replacing nothing. Their fingerprints are taken again: a rename is a ctime.
//! 5. The caller looks at every published entry under the link lock and commits OK (I5).
//!
//! Killed in 3, the next process continues at the first stage without stamp; killed in 4, it
//! publishes what is still staged: what is published already stands in the repository with the
//! inode the journal recorded.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use crate::adopt;
use crate::console::Console;
use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::repository::journal::{Depth, Entry, Journal, Kind, Record, Replay, StageRecord};
use crate::repository::repofile::{MOST_ENTRIES, Repofile};
use crate::repository::{Held, layout, link};
use crate::signal;
use crate::stack::{Module, Part, Product, Settings, Site, Stack};
use crate::teardown;

/// What is to be loaded, stage by stage.
#[derive(Debug)]
pub struct Plan<'a> {
    stages: Vec<Stage<'a>>,
    /// Digest of all stacks: what the repository means.
    pub signature: String,
    /// The stacks as people read them.
    pub definition: String,
    /// Digest of where the bytes come from: two loads that agree in it fail alike.
    pub attempt: String,
}

#[derive(Debug)]
struct Stage<'a> {
    module: &'a Module,
    /// Digest of the stack up to here.
    signature: String,
    /// The stage of this stack's loader.
    loader: Option<usize>,
    /// Does a checksum stand somewhere above, or here?
    is_judged: bool,
    /// Is the file of this loader deleted when it is unpacked?
    is_dropped: bool,
}

fn digest(parts: &[&[u8]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

impl<'a> Plan<'a> {
    pub fn new(stacks: &'a [Stack]) -> Plan<'a> {
        let mut stages: Vec<Stage> = Vec::new();
        let mut attempt = Vec::new();
        for stack in stacks {
            let first = stages.len();
            let mut below = String::new();
            let loader = stack.loader().map(|_| first);
            for module in &stack.modules {
                let signature = match (module.file_name(), module.source()) {
                    (Some(name), Some(source)) => {
                        attempt.extend_from_slice(digest(&[source.as_encoded_bytes()]).as_bytes());
                        // Where a checksum says which bytes they are, it does not matter whence
                        // they come.
                        let content = match stack.pin() {
                            Some(pin) => pin.to_string().into_bytes(),
                            None => source.as_encoded_bytes().to_vec(),
                        };
                        digest(&[b"loader", name.as_encoded_bytes(), &content])
                    }
                    _ => digest(&[below.as_bytes(), module.to_string().as_bytes()]),
                };
                below.clone_from(&signature);
                stages.push(Stage {
                    module,
                    signature,
                    loader,
                    is_judged: stack
                        .modules
                        .iter()
                        .any(|m| matches!(m, Module::Checksum(_))),
                    is_dropped: module.is_loader()
                        && stack
                            .modules
                            .iter()
                            .any(|m| matches!(m, Module::Tar(tar) if tar.drop)),
                });
            }
        }
        let signatures: Vec<&[u8]> = stages
            .iter()
            .map(|stage| stage.signature.as_bytes())
            .collect();
        let definition: Vec<String> = stacks.iter().map(Stack::to_string).collect();
        Plan {
            signature: digest(&signatures),
            attempt: digest(&[&attempt]),
            definition: definition.join(" "),
            stages,
        }
    }

    /// What these stacks bring and is not at the top of `root`, as far as names tell: all that can
    /// be asked of a repository that the reference loaded.
    pub fn missing(&self, root: &Dir) -> Result<Option<String>> {
        for stage in &self.stages {
            let Some(loader) = stage.loader.and_then(|loader| self.stages.get(loader)) else {
                continue;
            };
            let name = loader.module.file_name().unwrap_or_default();
            let mut list = name.to_owned();
            list.push(".list");
            let is_tar = matches!(stage.module, Module::Tar(_));
            let there = |name: &OsStr| root.lstat(name).map(|stat| stat.is_some());
            for name in [Some(name), is_tar.then_some(&*list)].into_iter().flatten() {
                if !there(name)? {
                    return Ok(Some(name.display().to_string()));
                }
            }
        }
        Ok(None)
    }
}

/// Makes the repository's directory, having written down that it is ours. False: somebody else
/// was faster.
pub fn make_root(held: &Held) -> Result<(Dir, bool)> {
    held.may_make_root()?;
    let generation = process::random_name();
    let mut journal = Journal::create(&held.control, &generation, held.repository.repofile())?;
    journal.append(&Record::Root { made: true })?;
    journal.flush()?;
    let (root, made) = held.make_root()?;
    if !made {
        journal.append(&Record::Root { made: false })?;
        journal.flush()?;
    }
    Ok((root, made))
}

/// A journal to load by, and what it says already.
pub struct Prepared {
    pub journal: Journal,
    pub generation: String,
    replay: Replay,
}

/// Step 1. `repofile` is what was read under the link lock a moment ago; it does not say OK.
/// `made`: has this process just made the repository's directory? `None`: a reference broke the link
/// lock; what the repofile says must be asked again.
pub fn prepare(
    held: &Held,
    root: &Dir,
    repofile: &Repofile,
    plan: &Plan,
    made: bool,
) -> Result<Option<Prepared>> {
    let console = held.console();
    let open = Journal::open(&held.control, Depth::Top)?;
    if let Some((mut journal, replay)) = open {
        let at_hand = |(n, record): (usize, &StageRecord)| {
            record.stamp.is_none()
                || plan.stages.get(n).is_none()
                || is_at_hand(held, root, n, record).unwrap_or(false)
        };
        let same = repofile.is_of(Some(&replay.generation))
            && repofile.sc.signature.as_deref() == Some(&plan.signature)
            && replay.boot_id == process::boot_id()
            && !teardown::is_begun(held, &replay.generation)?
            && replay.stages.iter().enumerate().all(at_hand);
        if same {
            if made && !replay.root_made {
                journal.append(&Record::Root { made })?;
                journal.flush()?;
            }
            return Ok(Some(Prepared {
                generation: replay.generation.clone(),
                journal,
                replay,
            }));
        }
    }
    if repofile.sc.generation.is_some() && repofile.sc.entries.is_some() {
        // what we published and no journal names any more would be in our own way
        adopt::adopt(held, root, repofile, &[])?;
    }
    let old = Journal::read(&held.control, Depth::All)?;
    if old.is_none() && Journal::is_damaged(&held.control)? {
        console.warn(format_args!(
            "the journal of `{}` is damaged; it is put aside as `{}`",
            held.repository.location().display(),
            layout::JOURNAL_ASIDE
        ));
        let aside = OsStr::new(layout::JOURNAL_ASIDE);
        held.control
            .rename(OsStr::new(layout::JOURNAL), &held.control, aside)?;
    }
    let link = held.link(root)?;
    let Some(withdrawn) = teardown::withdraw(held, root, old.as_ref(), &link)? else {
        return Ok(None);
    };
    let is_root_made = withdrawn || made;
    link.give_back_and_sweep()?;

    let keep = |n: usize, stage: &Stage| -> Option<Part> {
        let record = old.as_ref()?.stages.get(n)?;
        let part = record.part.clone()?;
        (stage.is_judged && record.signature == stage.signature).then_some(part)
    };
    let kept: Vec<Option<Part>> = plan
        .stages
        .iter()
        .enumerate()
        .map(|(n, stage)| keep(n, stage))
        .collect();
    if let Some(staging) = held.control.find_dir(OsStr::new(layout::STAGING))? {
        for name in staging.names()? {
            let n = name.to_str().and_then(|name| name.parse::<usize>().ok());
            if n.is_none_or(|n| kept.get(n).is_none_or(Option::is_none)) {
                match staging.find_dir(&name) {
                    Ok(Some(dir)) => {
                        dir.clear()?;
                        staging.rmdir(&name)?;
                    }
                    _ => drop(staging.unlink(&name)?),
                }
            }
        }
    }
    let generation = process::random_name();
    let mut journal = Journal::create(&held.control, &generation, held.repository.repofile())?;
    let mut replay = Replay {
        generation: generation.clone(),
        ..Default::default()
    };
    journal.append(&Record::Root { made: is_root_made })?;
    for (n, (stage, part)) in plan.stages.iter().zip(kept).enumerate() {
        let mut record = StageRecord::default();
        if let Some(part) = part {
            console.detail(format_args!(
                "`{}`: going on with what is there already",
                stage.module
            ));
            record = StageRecord {
                signature: stage.signature.clone(),
                part: Some(part.clone()),
                ..Default::default()
            };
            journal.append(&Record::Stage {
                stage: n,
                signature: stage.signature.clone(),
                module: stage.module.to_string().chars().take(200).collect(),
            })?;
            journal.append(&Record::Part {
                stage: n,
                part: Some(part),
            })?;
        }
        replay.stages.push(record);
    }
    journal.flush()?;
    // Only now: the journal in the trash may be all that knows that the directory is ours.
    teardown::sweep(held)?;
    Ok(Some(Prepared {
        journal,
        generation,
        replay,
    }))
}

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
    plan: &'a Plan<'a>,
    settings: &'a Settings,
    journal: Journal,
    stages: Vec<StageRecord>,
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
            plan,
            settings,
            journal: prepared.journal,
            stages,
        }
    }

    /// Steps 3 and 4: returns the names now at the top of the repository that are ours.
    pub fn run(mut self) -> Result<Published> {
        let mut refetched = vec![false; self.plan.stages.len()];
        let mut n = 0;
        while n < self.plan.stages.len() {
            let stage = &self.plan.stages[n];
            if self.is_finished(n)? {
                self.held
                    .console()
                    .detail(format_args!("`{}`: done already", stage.module));
                n += 1;
                continue;
            }
            let fresh = stage.loader.is_some_and(|loader| refetched[loader]);
            match self.run_stage(n, fresh && stage.module.is_loader()) {
                Ok(()) => n += 1,
                Err(error @ Error::Checksum { .. }) => {
                    let loader = stage.loader.unwrap_or(n);
                    for wrong in loader..=n {
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
                Err(error) => return Err(error),
            }
        }
        self.publish()
    }

    /// Is the stage stamped, in this boot, and all it made at hand: staged or published?
    fn is_finished(&self, n: usize) -> Result<bool> {
        let record = &self.stages[n];
        if record.signature != self.plan.stages[n].signature
            || record.stamp != Some(process::boot_id())
            || record.stamp == Some(None)
        {
            return Ok(false);
        }
        is_at_hand(self.held, self.root, n, record)
    }

    /// Takes the stamp off a stage and deletes what it staged.
    fn void(&mut self, n: usize) -> Result<()> {
        self.journal.append(&Record::Part {
            stage: n,
            part: None,
        })?;
        self.journal.append(&Record::Void { stage: n })?;
        self.journal.flush()?;
        self.stages[n] = StageRecord::default();
        match self.held.find_stage_dir(n)? {
            Some(dir) => dir.clear(),
            None => Ok(()),
        }
    }

    fn run_stage(&mut self, n: usize, fresh: bool) -> Result<()> {
        signal::check()?;
        let stage = &self.plan.stages[n];
        let console = self.held.console();
        console.detail(format_args!("`{}`", stage.module));
        let same = self.stages[n].signature == stage.signature;
        let part = self.stages[n].part.take().filter(|_| same && !fresh);
        let dir = self.held.stage_dir(n)?;
        if part.is_none() {
            dir.clear()?;
        }
        self.journal.append(&Record::Stage {
            stage: n,
            signature: stage.signature.clone(),
            module: stage.module.to_string().chars().take(200).collect(),
        })?;
        let below = match stage.loader {
            Some(loader) if loader < n => {
                let name = self.plan.stages[loader]
                    .module
                    .file_name()
                    .unwrap_or_default();
                Some((self.loaded(loader, name)?, name))
            }
            _ => None,
        };
        let mut workshop = Workshop {
            held: self.held,
            journal: &mut self.journal,
            settings: self.settings,
            stage: n,
            dir,
            below,
            fresh,
            part,
            record: StageRecord {
                signature: stage.signature.clone(),
                ..Default::default()
            },
        };
        stage.module.run(&mut workshop)?;
        let record = workshop.record;
        self.stages[n] = record;
        self.journal.append(&Record::Stamp {
            stage: n,
            signature: stage.signature.clone(),
            boot_id: process::boot_id(),
        })?;
        self.journal.flush()?;
        self.stages[n].stamp = Some(process::boot_id());
        Ok(())
    }

    /// The directory where a loader's file is now: staged, or published by a process that was
    /// killed after that.
    fn loaded(&self, loader: usize, name: &OsStr) -> Result<Dir> {
        let staged = self.held.stage_dir(loader)?;
        match staged.lstat(name)? {
            Some(_) => Ok(staged),
            None => self.root.try_clone(),
        }
    }

    /// Step 4.
    fn publish(mut self) -> Result<Published> {
        let mut tops = Tops::new();
        for (n, record) in self.stages.iter().enumerate() {
            let stage = &self.plan.stages[n];
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
        self.journal.flush()?;
        durable::point("publish").io("cannot publish in", self.root.path())?;
        let mut staged = Vec::new();
        for n in (0..self.plan.stages.len()).filter(|&n| !self.plan.stages[n].is_dropped) {
            staged.extend(self.held.find_stage_dir(n)?.map(|dir| (n, dir)));
        }
        // Whatever is in the way is found before the first entry becomes visible; what comes
        // into the way after that is found by the rename itself.
        for (_, dir) in &staged {
            check_way(dir, self.root)?;
        }
        for (n, dir) in &staged {
            self.publish_dir(*n, dir, self.root, Path::new(""))?;
        }
        for top in tops.values() {
            if let Some(stat) = self.root.lstat(top.entry.path.as_os_str())?
                && top.entry.is(&stat)
            {
                let entry = Entry::new(top.entry.path.clone(), &stat);
                self.journal.append(&Record::Entry {
                    stage: top.stage,
                    entry,
                })?;
            }
        }
        self.journal.flush()?;
        Ok(Published {
            tops: tops.into_values().map(|top| top.entry).collect(),
        })
    }

    /// Moves all that is in `from` to `to`. A directory that was there before is entered; a file
    /// in the way is an error: nothing is ever replaced.
    fn publish_dir(&mut self, n: usize, from: &Dir, to: &Dir, path: &Path) -> Result<()> {
        let mut names = from.names()?;
        names.sort();
        for name in names {
            signal::check()?;
            self.held.check()?; // I1
            let Some(stat) = from.lstat(&name)? else {
                continue;
            };
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
                        self.journal.append(&Record::Entry { stage: n, entry })?;
                        self.journal.flush()?;
                    }
                }
                published => {
                    published?;
                    continue;
                }
            }
            let (from_below, to_below) = match to.lstat(&name)? {
                Some(there) if durable::is_dir(&stat) && durable::is_dir(&there) => {
                    (from.open_dir(&name)?, to.open_dir(&name)?)
                }
                _ => return Err(in_the_way(to, &name)),
            };
            self.publish_dir(n, &from_below, &to_below, &path.join(&name))?;
            from.rmdir(&name)?;
            if made.is_some() {
                to.set_mode(&name, stat.st_mode)?;
            }
        }
        Ok(())
    }

    fn publish_one(&self, from: &Dir, to: &Dir, name: &OsStr, stat: &FileStat) -> Result<()> {
        // Moving a directory to another parent writes its `..`, which takes the right to write.
        let closed = durable::is_dir(stat) && stat.st_mode & 0o200 == 0;
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

/// Would publishing `from` in `to` meet a file?
fn check_way(from: &Dir, to: &Dir) -> Result<()> {
    for name in from.names()? {
        let Some(there) = to.lstat(&name)? else {
            continue;
        };
        let is_dir = from
            .lstat(&name)?
            .is_some_and(|stat| durable::is_dir(&stat));
        if !is_dir || !durable::is_dir(&there) {
            return Err(in_the_way(to, &name));
        }
        check_way(&from.open_dir(&name)?, &to.open_dir(&name)?)?;
    }
    Ok(())
}

fn in_the_way(to: &Dir, name: &OsStr) -> Error {
    Error::Foreign {
        path: to.path_of(name),
        problem: "was there before the load, which would bring a file of that name".into(),
        remedy: "move it away, or choose another `--name`".into(),
    }
}

/// Is all that a finished stage made still staged, or published?
fn is_at_hand(held: &Held, root: &Dir, n: usize, record: &StageRecord) -> Result<bool> {
    let dir = held.find_stage_dir(n)?;
    for entry in record.entries.values() {
        let name = entry.path.as_os_str();
        let staged = match &dir {
            Some(dir) => dir.lstat(name)?.is_some_and(|stat| entry.is(&stat)),
            None => false,
        };
        // published: this very entry, or a directory of others that ours went into
        let published = root.lstat(name)?.is_some_and(|stat| {
            entry.is(&stat) || (entry.kind == Kind::Dir && durable::is_dir(&stat))
        });
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
    let entries = journal.stages.iter().flat_map(|stage| &stage.entries);
    for (path, _) in entries {
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

/// The place where one stage works.
struct Workshop<'a> {
    held: &'a Held<'a>,
    journal: &'a mut Journal,
    settings: &'a Settings,
    stage: usize,
    dir: Dir,
    below: Option<(Dir, &'a OsStr)>,
    fresh: bool,
    part: Option<Part>,
    /// What it made at the top: all that later steps need to know.
    record: StageRecord,
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

    fn settings(&self) -> &Settings {
        self.settings
    }

    fn console(&self) -> &Console {
        self.held.console()
    }
}
