//! A repository on disk: the directory that jobs read, the repofile that counts them, and the
//! control directory beside it, where the lock, the journal and everything unfinished is.
//!
//! ```text
//! <base>/<name>/            what jobs read
//!     repofile              who holds it, in what state it is
//!     <archive> <archive>.list <members…>
//! <parent>/.sc.<last>/      ours alone, mode 0700
//!     lock                  the flock
//!     journal               generation, stages, manifest
//!     holders/<id>          locks of --run
//!     staging/<n>/          what stage n makes
//!     trash-<generation>/   what is being deleted, with the journal that names it
//! ```
//!
//! # The invariants
//!
//! * **I1** Only the holder of the flock on the inode now at `lock` changes the repository;
//!   before each commit of the repofile and each publication the inode is compared again
//!   ([`Held::check`]).
//! * **I2** The repofile is absent or complete: replaced, never edited ([`Link::commit`]).
//! * **I3** The journal names path, dev and inode of a staged entry before it is published.
//! * **I4** A stamp is written after all that it certifies; one that does not parse or match is
//!   no stamp.
//! * **I5** State OK means every stage is stamped and published.
//! * **I6** A holder is dropped only on proof of death, never on doubt.
//! * **I7** Teardown withdraws the claim before the matter; any prefix of it can be resumed by a
//!   teardown or by a load.
//! * **I8** The lock file is unlinked only while it is held; whoever acquires it looks whether
//!   the inode is still the one with the name ([`lock`]).
//! * **I9** Nothing outside the repository and its control directory is written, changed or
//!   deleted; symlinks are never followed; mounts never entered; nothing unverified is ever
//!   visible under its final name.
//!
//! Crash model: SIGKILL at any instruction, ENOSPC, EIO, EDQUOT anywhere. After a reboot nothing
//! counts until it is verified, so order is enough and nothing is synced.

pub mod holder;
pub mod journal;
pub mod layout;
pub mod link;
pub mod lock;
pub mod place;
pub mod repofile;

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::console::Console;
use crate::durable::{Dir, PRIVATE_DIR};
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::signal::{self, Patience};
use journal::{Depth, Journal, Replay};
use link::LinkLock;
use repofile::{Repofile, State};

/// Some file systems say ENOENT to every mkdir (proc). So many races in a row nobody loses.
const MOST_RACES: u32 = 1000;

/// Where a repository is, or would be; nothing is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    base: PathBuf,
    /// `None`: the base directory itself.
    name: Option<PathBuf>,
    /// A name inside the repository, or an absolute path.
    repofile: PathBuf,
}

impl Repository {
    pub fn new(base: &Path, name: Option<&Path>, repofile: &Path) -> Repository {
        Repository {
            base: base.to_owned(),
            name: name.map(Path::to_owned),
            repofile: repofile.to_owned(),
        }
    }

    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The directory as `--location` prints it.
    pub fn location(&self) -> PathBuf {
        layout::location(&self.base, self.name.as_deref())
    }

    pub fn repofile(&self) -> &Path {
        &self.repofile
    }

    /// Has it a directory of its own?
    pub fn is_named(&self) -> bool {
        self.name.is_some()
    }

    /// The name of a top-level file that the repofile is, unless it lies elsewhere.
    pub fn inner_repofile(&self) -> Option<&OsStr> {
        (!self.repofile.is_absolute()).then_some(self.repofile.as_os_str())
    }

    fn last(&self) -> Option<&OsStr> {
        self.name.as_deref().and_then(Path::file_name)
    }

    fn control_name(&self) -> OsString {
        layout::control_name(self.last())
    }

    /// Opens the directory that holds the control directory; with `make`, missing parents of a
    /// nested name (and the base of an unnamed repository) are made. `None`: it isn't there.
    fn parent(&self, make: bool) -> Result<Option<Dir>> {
        let absent = |error: &Error| matches!(error.errno(), Some(Errno::ENOENT | Errno::ENOTDIR));
        let mut dir = match Dir::open(&self.base) {
            Err(error) if absent(&error) && make && self.name.is_none() => {
                make_base(&self.base)?;
                Dir::open(&self.base)?
            }
            Err(error) if absent(&error) && !make => return Ok(None),
            dir => dir?,
        };
        let parents = self.name.as_deref().and_then(Path::parent);
        for component in parents.into_iter().flat_map(Path::components) {
            let component = component.as_os_str();
            dir = match make {
                true => dir.ensure_dir(component, 0o777)?,
                false => match dir.find_dir(component)? {
                    Some(dir) => dir,
                    None => return Ok(None),
                },
            };
        }
        Ok(Some(dir))
    }

    fn root_in(&self, parent: &Dir) -> Result<Option<Dir>> {
        match self.last() {
            None => parent.try_clone().map(Some),
            Some(last) => match parent.find_dir(last) {
                Err(error) if matches!(error.errno(), Some(Errno::ELOOP | Errno::ENOTDIR)) => {
                    Err(Error::Foreign {
                        path: parent.path_of(last),
                        problem: "is no directory".into(),
                        remedy: "move it away, or choose another `--name`".into(),
                    })
                }
                found => found,
            },
        }
    }

    fn control_in(&self, parent: &Dir) -> Result<Option<Dir>> {
        let name = self.control_name();
        let remedy = "move it away, or choose another `--name`";
        let foreign = |problem: String| {
            Err(Error::Foreign {
                path: parent.path_of(&name),
                problem,
                remedy: remedy.into(),
            })
        };
        let control = match parent.find_dir(&name) {
            Err(error) if matches!(error.errno(), Some(Errno::ELOOP | Errno::ENOTDIR)) => {
                return foreign("stands where sc's control directory belongs, and is none".into());
            }
            found => found?,
        };
        let Some(control) = control else {
            return Ok(None);
        };
        let stat = control.stat()?;
        let us = process::user();
        if stat.st_uid != us && us != 0 {
            return foreign(format!(
                "is the control directory of another user (uid {})",
                stat.st_uid
            ));
        }
        if stat.st_mode & 0o022 != 0 {
            return foreign("is a control directory that others may write".into());
        }
        Ok(Some(control))
    }

    /// Where the repofile is: the directory open, the directory as spelled, the file's name.
    fn repofile_in(&self, root: &Dir) -> Result<(Dir, PathBuf, OsString)> {
        match (self.repofile.parent(), self.repofile.file_name()) {
            (Some(dir), Some(name)) if self.repofile.is_absolute() => {
                Ok((Dir::open(dir)?, dir.to_owned(), name.to_owned()))
            }
            _ => Ok((
                root.try_clone()?,
                self.location(),
                self.repofile.clone().into_os_string(),
            )),
        }
    }

    /// Is there anything of this repository: its repofile, or a control directory?
    pub fn exists(&self) -> Result<bool> {
        let Some(parent) = self.parent(false)? else {
            return Ok(false);
        };
        let control = self.control_name();
        if parent
            .lstat(&control)?
            .is_some_and(|stat| crate::durable::is_dir(&stat))
        {
            return Ok(true);
        }
        let Some(root) = self.root_in(&parent)? else {
            return Ok(false);
        };
        let (dir, _, name) = self.repofile_in(&root)?;
        Ok(dir
            .lstat(&name)?
            .is_some_and(|stat| crate::durable::is_file(&stat)))
    }

    /// The repofile as it is now, without any lock. `None`: there is none.
    pub fn peek(&self) -> Result<Option<Repofile>> {
        let Some(parent) = self.parent(false)? else {
            return Ok(None);
        };
        let Some(root) = self.root_in(&parent)? else {
            return Ok(None);
        };
        let (dir, _, name) = match self.repofile_in(&root) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            found => found?,
        };
        let repofile = Repofile::read(&dir, Path::new(&name))?;
        Ok(repofile.exists.then_some(repofile))
    }

    /// The journal as it is now, without any lock.
    pub fn peek_journal(&self) -> Result<Option<Replay>> {
        let Some(parent) = self.parent(false)? else {
            return Ok(None);
        };
        match self.control_in(&parent)? {
            Some(control) => Journal::read(&control, Depth::Top),
            None => Ok(None),
        }
    }

    /// How much a loader at stage `n` has brought so far, in bytes; for a waiter's progress.
    fn staged_bytes(&self, n: usize) -> Option<u64> {
        let parent = self.parent(false).ok()??;
        let staging = self
            .control_in(&parent)
            .ok()??
            .find_dir(OsStr::new(layout::STAGING))
            .ok()??;
        let dir = staging.find_dir(OsStr::new(&n.to_string())).ok()??;
        let name = dir.names().ok()?.pop()?;
        Some(dir.lstat(&name).ok()??.st_size as u64)
    }

    /// Takes the lock, making what is missing if `make`, and runs `body` under it. `None`: there
    /// is no such repository (never with `make`).
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Interrupted`], [`Error::Foreign`], [`Error::Io`]; those of
    /// `body`.
    pub fn held<T>(
        &self,
        make: bool,
        waiting: &Waiting,
        body: impl FnOnce(&Held) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut races = 0;
        // Another sc that is leaving may take away any directory of ours before we are in it.
        let mut was_race = |error: &Error| {
            races += 1;
            error.errno() == Some(Errno::ENOENT) && races < MOST_RACES
        };
        loop {
            signal::check()?;
            let (parent, control) = match self.enter(make) {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(None),
                Err(error) if make && was_race(&error) && self.can_start() => continue,
                Err(error) => return Err(error),
            };
            let (mut lock, inode) = match lock::open(&control) {
                Err(error) if was_race(&error) => continue,
                lock => lock?,
            };
            let path = control.path_of(layout::LOCK);
            let mut show = waiting.show(self);
            let show = std::cell::RefCell::new(&mut show);
            let wait = lock::acquire(
                &mut lock,
                &path,
                waiting.patience,
                waiting.console.draws(),
                &mut |is_late| show.borrow_mut().begin(is_late),
                &mut || show.borrow_mut().update(),
            )?;
            if wait == lock::Wait::GaveUp {
                return Err(waiting.gave_up(self, inode));
            }
            let held = Held {
                repository: self,
                waiting,
                parent,
                control,
                lock: inode,
                has_broken: Cell::new(false),
            };
            if !held.is_held()? {
                continue;
            }
            return body(&held).map(Some);
        }
    }

    /// Is there a base to start from? Tells a base that is missing from one that was just about
    /// to lose a directory of ours.
    fn can_start(&self) -> bool {
        // a relative base whose directory was deleted (a job's own working directory) still opens,
        // but nothing can be made in it any more
        let base = Dir::open(&self.base).and_then(|base| base.stat());
        base.is_ok_and(|stat| stat.st_nlink > 0)
    }

    fn enter(&self, make: bool) -> Result<Option<(Dir, Dir)>> {
        let Some(parent) = self.parent(make)? else {
            return Ok(None);
        };
        let control = match (self.control_in(&parent)?, make) {
            (Some(control), _) => control,
            (None, false) => return Ok(None),
            (None, true) => {
                match parent.make_dir(&self.control_name(), PRIVATE_DIR) {
                    Err(error) if error.errno() != Some(Errno::EEXIST) => return Err(error),
                    _ => {}
                }
                match self.control_in(&parent)? {
                    Some(control) => control,
                    // taken away again by another sc that was leaving
                    None => return self.enter(make),
                }
            }
        };
        Ok(Some((parent, control)))
    }
}

/// Makes the base directory of an unnamed repository, as the reference did: one level.
fn make_base(base: &Path) -> Result<()> {
    let folded = layout::location(base, None);
    let parent = folded.parent().unwrap_or(Path::new(""));
    match folded.file_name() {
        Some(name) => Dir::open(parent)?.ensure_dir(name, 0o777).map(drop),
        None => Ok(()),
    }
}

/// How to wait for another process, and how to say so.
#[derive(Debug)]
pub struct Waiting<'a> {
    pub console: &'a Console,
    pub patience: &'a Patience,
}

impl Waiting<'_> {
    fn show<'s>(&'s self, repository: &'s Repository) -> Show<'s> {
        Show {
            waiting: self,
            repository,
            progress: None,
        }
    }

    fn gave_up(&self, repository: &Repository, lock: (u64, u64)) -> Error {
        let holder = match describe(repository) {
            Some((text, _)) => text,
            None => match process::flock_owner(lock.0, lock.1) {
                Some(Some(pid)) => format!("pid {pid} is at work there"),
                _ => "another sc is at work there".into(),
            },
        };
        Error::Timeout {
            what: format!("`{}`", repository.location().display()),
            waited: self.patience.limit().filter(|limit| !limit.is_zero()),
            holder,
        }
    }
}

/// A download that another sc has under way.
struct Download {
    stage: usize,
    total: Option<u64>,
}

/// Who loads, since when and what for; and the place of the file being downloaded.
fn describe(repository: &Repository) -> Option<(String, Option<Download>)> {
    let repofile = repository.peek().ok()??;
    if repofile.state != State::InProgress {
        return None;
    }
    let loader = repofile.sc.loader?;
    let seconds = process::since_boot_ns().saturating_sub(loader.since_boot_ns) / 1_000_000_000;
    let text = format!(
        "pid {} has been loading `{}` for {seconds} s (`{}`)",
        loader.process.pid,
        repository.location().display(),
        repofile.sc.definition.as_deref().unwrap_or("nothing"),
    );
    let journal = repository.peek_journal().ok().flatten();
    let download = journal.and_then(|journal| {
        let open = |(_, stage): &(usize, &journal::StageRecord)| stage.stamp.is_none();
        let (n, stage) = journal.stages.iter().enumerate().find(open)?;
        let part = stage.part.as_ref()?;
        Some(Download {
            stage: n,
            total: part.total,
        })
    });
    Some((text, download))
}

/// What a waiter shows.
struct Show<'a> {
    waiting: &'a Waiting<'a>,
    repository: &'a Repository,
    progress: Option<(usize, crate::console::Progress)>,
}

impl Show<'_> {
    /// A load is worth a line at once; whatever else sc does is mostly over before it is read.
    fn begin(&mut self, is_late: bool) -> bool {
        let text = match describe(self.repository) {
            Some((text, _)) => text,
            None if is_late => {
                format!(
                    "another sc is at work on `{}`",
                    self.repository.location().display()
                )
            }
            None => return false,
        };
        self.waiting.console.say(format_args!("waiting: {text}"));
        true
    }

    fn update(&mut self) {
        if !self.waiting.console.draws() {
            return;
        }
        if self.progress.is_none()
            && let Some((_, Some(Download { stage, total }))) = describe(self.repository)
        {
            let doing = format!("waiting for `{}`", self.repository.location().display());
            let done = self.repository.staged_bytes(stage).unwrap_or(0);
            self.progress = Some((stage, self.waiting.console.progress(&doing, done, total)));
            return;
        }
        if let Some((stage, progress)) = &mut self.progress {
            match self.repository.staged_bytes(*stage) {
                Some(bytes) => progress.set(bytes),
                None => self.progress = None,
            }
        }
    }
}

/// A repository whose lock is ours. Whatever changes the disk takes one of these.
#[derive(Debug)]
pub struct Held<'r> {
    pub repository: &'r Repository,
    waiting: &'r Waiting<'r>,
    parent: Dir,
    pub control: Dir,
    lock: (u64, u64),
    has_broken: Cell<bool>,
}

impl Held<'_> {
    pub fn console(&self) -> &Console {
        self.waiting.console
    }

    fn is_held(&self) -> Result<bool> {
        let control = match self.parent.find_dir(&self.repository.control_name()) {
            Err(error) if matches!(error.errno(), Some(Errno::ELOOP | Errno::ENOTDIR)) => None,
            found => found?,
        };
        let Some(control) = control else {
            return Ok(false);
        };
        let stat = control.lstat(OsStr::new(layout::LOCK))?;
        Ok(stat.is_some_and(|stat| (stat.st_dev, stat.st_ino) == self.lock))
    }

    /// I1: is the lock we hold still the one that others find?
    ///
    /// # Errors
    /// [`Error::LockLost`]
    pub fn check(&self) -> Result<()> {
        match self.is_held()? {
            true => Ok(()),
            false => Err(Error::LockLost {
                path: self.control.path_of(layout::LOCK),
            }),
        }
    }

    /// The repository's directory, if it is there.
    ///
    /// # Errors
    /// [`Error::Foreign`]: it is no directory, or another user's.
    pub fn root(&self) -> Result<Option<Dir>> {
        let Some(root) = self.repository.root_in(&self.parent)? else {
            return Ok(None);
        };
        // The base of an unnamed repository is nobody's; its repofile and control directory are.
        if self.repository.last().is_some() {
            let owner = root.stat()?.st_uid;
            let us = process::user();
            // root acts for others, but never by what somebody else prepared beside the directory
            let is_ours = owner == us || us == 0;
            if !is_ours || owner != self.control.stat()?.st_uid {
                return Err(Error::Foreign {
                    path: self.repository.location(),
                    problem: format!("belongs to another user (uid {owner})"),
                    remedy: "choose another `--name`".into(),
                });
            }
        }
        Ok(Some(root))
    }

    /// # Errors
    /// [`Error::Foreign`]: the control directory is another user's, and what root makes beside it
    /// would be root's.
    pub fn may_make_root(&self) -> Result<()> {
        let owner = self.control.stat()?.st_uid;
        if owner == process::user() {
            return Ok(());
        }
        Err(Error::Foreign {
            path: self.control.path().to_owned(),
            problem: format!("is the control directory of another user (uid {owner})"),
            remedy: "move it away, or choose another `--name`".into(),
        })
    }

    /// The inode of the lock: while it is ours, nobody who locked this inode before still works.
    pub fn lock_inode(&self) -> (u64, u64) {
        self.lock
    }

    /// The repository's directory, made if it is not there; true if it was.
    pub fn make_root(&self) -> Result<(Dir, bool)> {
        if let Some(root) = self.root()? {
            return Ok((root, false));
        }
        self.check()?;
        let last = self
            .repository
            .last()
            .expect("the root of an unnamed repository is its parent");
        let made = match self.parent.make_dir(last, 0o777) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => false,
            made => made.map(|()| true)?,
        };
        match self.root()? {
            Some(root) => Ok((root, made)),
            None => self.make_root(),
        }
    }

    /// The generation of the journal, if there is one of this repofile.
    ///
    /// # Errors
    /// [`Error::OtherRepofile`]: the directory is in use with another `--file`.
    pub fn generation(&self) -> Result<Option<String>> {
        let Some(head) = Journal::read_head(&self.control)? else {
            return Ok(None);
        };
        if head.repofile != self.repository.repofile() {
            return Err(Error::OtherRepofile {
                location: self.repository.location(),
                asked: self.repository.repofile().to_owned(),
                there: head.repofile,
            });
        }
        Ok(Some(head.generation))
    }

    /// The link lock, in a repository whose directory is there.
    pub fn link<'h>(&'h self, root: &Dir) -> Result<Link<'h>> {
        let (dir, spelled, name) = self.repository.repofile_in(root)?;
        let lock = LinkLock::take(
            &dir,
            &spelled,
            &name,
            self.waiting.patience,
            self.waiting.console,
        )?;
        if lock.has_broken() {
            self.has_broken.set(true);
        }
        Ok(Link {
            held: self,
            dir,
            name,
            lock,
        })
    }

    /// Did we have to break a lock that a reference left? It may have died while deleting.
    pub fn has_broken(&self) -> bool {
        self.has_broken.get()
    }

    /// Is `root` still the directory that has the repository's name?
    pub fn is_root(&self, root: &Dir) -> Result<bool> {
        let inode = |dir: &Dir| dir.stat().map(|stat| (stat.st_dev, stat.st_ino));
        match self.repository.root_in(&self.parent)? {
            Some(now) => Ok(inode(&now)? == inode(root)?),
            None => Ok(false),
        }
    }

    /// Is there nothing in `root` but claims for its lock? Then killed processes left it, which
    /// would have removed it, and so shall we.
    pub fn is_only_claims(&self, root: &Dir) -> Result<bool> {
        let Some(repofile) = self.repository.inner_repofile() else {
            return Ok(false);
        };
        let names = root.names()?;
        Ok(self.repository.name.is_some()
            && !names.is_empty()
            && names.iter().all(|name| link::is_lock_file(repofile, name)))
    }

    /// Reads the repofile, lets `change` change it, and commits it if `change` says so; begun
    /// anew from the file when a reference broke the lock in between.
    pub fn update<T>(
        &self,
        root: &Dir,
        mut change: impl FnMut(&mut Repofile) -> Result<Change<T>>,
    ) -> Result<T> {
        loop {
            let link = self.link(root)?;
            let mut repofile = link.read()?;
            match change(&mut repofile)? {
                Change::None(value) => return Ok(value),
                Change::Commit(value) => {
                    if link.try_commit(&repofile)? {
                        return Ok(value);
                    }
                }
            }
        }
    }

    /// The directory of stage `n`, made if it is not there.
    pub fn stage_dir(&self, n: usize) -> Result<Dir> {
        let staging = self
            .control
            .ensure_dir(OsStr::new(layout::STAGING), PRIVATE_DIR)?;
        staging.ensure_dir(OsStr::new(&n.to_string()), PRIVATE_DIR)
    }

    /// The directory of stage `n`, if it is there.
    pub fn find_stage_dir(&self, n: usize) -> Result<Option<Dir>> {
        match self.control.find_dir(OsStr::new(layout::STAGING))? {
            Some(staging) => staging.find_dir(OsStr::new(&n.to_string())),
            None => Ok(None),
        }
    }

    /// Removes all that is staged.
    pub fn clear_staging(&self) -> Result<()> {
        let name = OsStr::new(layout::STAGING);
        if let Some(staging) = self.control.find_dir(name)? {
            staging.clear()?;
            self.control.rmdir(name)?;
        }
        Ok(())
    }

    /// Removes the repository's directory if it is empty.
    pub fn remove_root(&self) -> Result<bool> {
        match self.repository.last() {
            Some(last) => self.parent.rmdir(last),
            None => Ok(false),
        }
    }

    /// Is there no repofile: nobody uses it, nobody has tried to load it?
    pub fn is_unused(&self) -> Result<bool> {
        let root = match self.root() {
            Err(Error::Foreign { .. }) => None, // no repository of ours
            root => root?,
        };
        let Some(root) = root else { return Ok(true) };
        match self.repository.repofile_in(&root) {
            // an absolute --file in a directory that isn't
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(true),
            Err(error) => Err(error),
            Ok((dir, _, name)) => Ok(dir.lstat(&name)?.is_none()),
        }
    }

    /// After a turn that came to nothing: leaves nothing behind, where nothing is.
    pub fn vanish_if_unused(&self) -> Result<()> {
        if !self.is_unused()? {
            return Ok(());
        }
        // A journal in which no stage began knows at most of the empty directory; but that of
        // another --file is that of a repository in use, which may be empty.
        let journal = Journal::read(&self.control, Depth::Top)?;
        let is_blank = journal.as_ref().is_some_and(|journal| {
            journal.is_blank() && journal.repofile == self.repository.repofile()
        });
        let idle = |name: &OsString| {
            name == layout::LOCK || name == layout::HOLDERS || is_blank && name == layout::JOURNAL
        };
        if !self.control.names()?.iter().all(idle) {
            return Ok(());
        }
        if journal.is_some_and(|journal| journal.root_made) {
            self.remove_root()?;
        }
        self.control.unlink(OsStr::new(layout::JOURNAL))?;
        self.vanish()
    }

    /// Leaves nothing of ours: takes away the control directory and the parents it stood in, as
    /// far as they are empty. After this the lock is nobody's; nothing may follow (I8).
    pub fn vanish(&self) -> Result<()> {
        self.check()?;
        holder::sweep(&self.control)?;
        self.control.rmdir(OsStr::new(layout::STAGING))?;
        for name in [layout::NEXT, layout::JOURNAL_ASIDE] {
            self.control.unlink(OsStr::new(name))?;
        }
        self.control.unlink(OsStr::new(layout::LOCK))?;
        self.parent.rmdir(&self.repository.control_name())?;
        let Some(name) = &self.repository.name else {
            return Ok(());
        };
        // Whoever made a/ for a/b, the last one to leave a/ removes it.
        for parent in name
            .ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            let base = Dir::open(&self.repository.base)?;
            let above = match base.descend(parent.parent().unwrap_or(Path::new(""))) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => continue,
                above => above?,
            };
            if !above.rmdir(parent.file_name().unwrap_or_default())? {
                break;
            }
        }
        Ok(())
    }
}

/// What became of the repofile in [`Held::update`].
pub enum Change<T> {
    None(T),
    Commit(T),
}

/// The repofile under the link lock.
#[derive(Debug)]
pub struct Link<'h> {
    held: &'h Held<'h>,
    dir: Dir,
    name: OsString,
    lock: LinkLock,
}

impl Link<'_> {
    pub fn read(&self) -> Result<Repofile> {
        Repofile::read(&self.dir, Path::new(&self.name))
    }

    pub fn renew(&self) -> Result<()> {
        self.lock.renew()
    }

    /// Replaces the repofile: that rename is the instant a change exists (I2). False: a reference
    /// broke the link lock; the change is given up and must begin anew from the file.
    ///
    /// # Errors
    /// [`Error::LockLost`] (I1).
    pub fn try_commit(&self, repofile: &Repofile) -> Result<bool> {
        // An absolute --file may be on another file system than the control directory.
        let mut sibling = OsString::from(".sc.");
        sibling.push(&self.name);
        sibling.push(".next");
        let inside = self.held.repository.inner_repofile().is_some();
        let (dir, next) = match inside {
            true => (&self.held.control, OsStr::new(layout::NEXT)),
            false => (&self.dir, sibling.as_os_str()),
        };
        let mut file = match dir.create(next, 0o666) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                dir.unlink(next)?;
                dir.create(next, 0o666)?
            }
            file => file?,
        };
        let committed = crate::durable::write_all(&mut file, &repofile.to_bytes())
            .io("cannot write", &dir.path_of(next))
            .and_then(|()| self.held.check())
            .and_then(|()| self.lock.is_ours());
        match committed {
            Ok(true) => dir.rename(next, &self.dir, &self.name).map(|()| true),
            Ok(false) => dir.unlink(next).map(|_| false),
            Err(error) => {
                let _ = dir.unlink(next);
                Err(error)
            }
        }
    }

    /// Has no reference broken the link lock?
    pub fn is_ours(&self) -> Result<bool> {
        self.lock.is_ours()
    }

    /// Removes the repofile: the repository is no more. False: a reference broke the link lock.
    pub fn remove(&self) -> Result<bool> {
        self.held.check()?;
        if !self.is_ours()? {
            return Ok(false);
        }
        self.dir.unlink(&self.name).map(|_| true)
    }

    /// Removes claims that killed processes of ours left beside the repofile; only with no claim
    /// of our own there.
    pub fn give_back_and_sweep(self) -> Result<()> {
        let Link {
            dir, name, lock, ..
        } = self;
        lock.give_back()?;
        link::sweep(&dir, &name)
    }
}
