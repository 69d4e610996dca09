//! A repository on disk: the directory that jobs read, the repofile that counts them, and the
//! control directory beside it, where the lock, the journal and everything unfinished is.
//!
//! ```text
//! <base>/<name>/            what jobs read
//!     repofile              who holds it, in what state it is
//!     <archive> <archive>.list <members…>
//! <parent>/.sc.<last>/      ours alone, mode 0700 (see [`crate::share`])
//!     lock                  the flock
//!     journal               generation, stages, manifest
//!     repofile.last         what the repofile last said
//!     holders/<id>          locks of --run
//!     space                 what a load has claimed of the file system
//!     staging/<n>/          what stage n makes
//!     next/journal          the journal of what is staged, while other data are still there
//!     trash-<generation>/   what is being deleted, with the journal that names it, which whoever
//!                           is at it has locked
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
//!   deleted, but for the user's own file in a `--stats-dir` ([`past`]); symlinks are never
//!   followed; mounts never entered; nothing unverified is ever visible under its final name.
//!
//! Crash model: SIGKILL at any instruction, ENOSPC, EIO, EDQUOT anywhere. After a reboot nothing
//! counts until it is verified, so order is enough and nothing is synced.

pub mod certificate;
pub mod counts;
mod crowd;
pub mod descriptor;
pub mod guest;
mod held;
pub mod holder;
pub mod journal;
pub mod layout;
pub mod link;
pub mod lock;
pub mod manifest;
pub mod network;
pub mod past;
pub mod place;
pub mod repofile;
pub mod space;
pub mod survey;
mod waiting;

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use crate::durable::{self, Dir, PRIVATE_DIR, Watch};
use crate::error::{Error, Result};
use crate::process;
use crate::share::{self, Kind, Share};
use crate::signal::{self};
use journal::{Depth, Journal, Replay};
use repofile::Repofile;

pub use held::{Change, Held, Link};
pub use waiting::Waiting;

const OTHER_NAME: &str = "move it away, or choose another `--name`";

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
    allow_network_fs: bool,
    /// `--share`, if it was said.
    share: Option<Kind>,
    stats_dir: Option<past::StatsDir>,
}

impl Repository {
    pub fn new(base: &Path, spec: &place::Spec) -> Repository {
        Repository {
            base: base.to_owned(),
            name: spec.name.clone(),
            repofile: spec.file.clone(),
            allow_network_fs: spec.allow_network_fs,
            share: spec.share,
            stats_dir: spec.stats_dir.clone(),
        }
    }

    pub fn name(&self) -> Option<&Path> {
        self.name.as_deref()
    }

    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The directory as `--location` prints it.
    pub fn location(&self) -> PathBuf {
        layout::location(&self.base, self.name.as_deref())
    }

    /// The directory as the repofile records it.
    pub fn absolute_location(&self) -> String {
        let location = self.location();
        layout::encode(&std::path::absolute(&location).unwrap_or(location))
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
        let base = dir.stat()?.st_uid;
        // Whose directory we may only pass if he is the one whose repository is shared with us.
        let mut stranger = None;
        for component in parents.into_iter().flat_map(Path::components) {
            let component = component.as_os_str();
            let above = dir;
            let found = match make {
                true => self.ensure_parent(&above, component).map(Some),
                false => above.find_dir(component),
            };
            dir = match real(&above, component, "is no directory", found)? {
                Some(dir) => dir,
                None => return Ok(None),
            };
            // Whoever owns it may swap what is in it. Root acts for anybody, by the rules of
            // `Held::root`.
            let stat = dir.stat()?;
            let (owner, us) = (stat.st_uid, process::user());
            if us != 0 && ![us, 0, base].contains(&owner) {
                let problem = "is no directory to put a repository in";
                let refused = above.foreign(component, problem, "choose another `--name`");
                let is_open = is_open_to_us(&above, &stat)?;
                if stranger.is_none() || !is_open {
                    stranger = Some((owner, is_open, refused));
                }
            }
        }
        if let Some((owner, is_open, refused)) = stranger {
            let control = dir.lstat(&self.control_name())?;
            let share = control.as_ref().and_then(Share::of);
            let may_pass = match share {
                Some(Share::All) => control.is_some_and(|stat| stat.st_uid == owner),
                Some(Share::Group(_)) => is_open,
                _ => is_open && self.share >= Some(Kind::Group),
            };
            if !may_pass {
                return Err(refused);
            }
        }
        if !self.allow_network_fs {
            network::refuse(&dir)?;
        }
        Ok(Some(dir))
    }

    fn root_in(&self, parent: &Dir) -> Result<Option<Dir>> {
        match self.last() {
            None => parent.try_clone().map(Some),
            Some(last) => real(parent, last, "is no directory", parent.find_dir(last)),
        }
    }

    fn control_in(&self, parent: &Dir) -> Result<Option<Dir>> {
        let name = self.control_name();
        let foreign = |problem: &str| Err(parent.foreign(&name, problem, OTHER_NAME));
        let problem = "stands where sc's control directory belongs, and is none";
        let control = real(parent, &name, problem, parent.find_dir(&name))?;
        let Some(control) = control else {
            return Ok(None);
        };
        let stat = control.stat()?;
        let share = Share::of(&stat);
        if !durable::is_ours(&stat)
            && !share.is_some_and(|share| parent.stat().is_ok_and(|at| share.admits_us(&at)))
        {
            return foreign("is a control directory");
        }
        let Some(share) = share else {
            return foreign("is a control directory that others may write");
        };
        Ok(Some(control.for_its_owner()?.shared(share)))
    }

    /// `--share`, if it was said.
    pub fn share(&self) -> Option<Kind> {
        self.share
    }

    /// Whoever uses what another user shares must have said that he trusts him. Without any lock,
    /// for whoever would wait for one in vain.
    ///
    /// # Errors
    /// [`Error::Foreign`]
    pub fn may_join(&self) -> Result<()> {
        let Some(parent) = self.parent(false)? else {
            return Ok(());
        };
        match parent.lstat(&self.control_name())? {
            Some(control) if !durable::is_ours(&control) => {}
            _ => return Ok(()),
        }
        match self.control_in(&parent)? {
            Some(control) => self.trusts(&control),
            None => Ok(()),
        }
    }

    fn trusts(&self, control: &Dir) -> Result<()> {
        let (stat, share) = (control.stat()?, control.share().kind());
        if durable::is_ours(&stat) || self.share.is_some_and(|said| said >= share) {
            return Ok(());
        }
        let owner = stat.st_uid;
        let word = share.word();
        Err(Error::Foreign {
            path: self.location(),
            problem: format!(
                "belongs to another user (uid {owner}), who shares it (`--share={word}`)"
            ),
            remedy: format!("say `--share={word}` to trust his data, or choose another `--name`"),
        })
    }

    /// A directory on the way to a nested name, made if it is not there.
    fn ensure_parent(&self, above: &Dir, name: &OsStr) -> Result<Dir> {
        match self.share {
            Some(Kind::Group) if above.lstat(name)?.is_none() => {
                let share = Share::Group(group_for(above)?);
                let above = above.try_clone()?.shared(share);
                match make_aside(&above, name, 0o777, |_| Ok(())) {
                    Err(error) if error.errno() != Some(Errno::EEXIST) => return Err(error),
                    _ => {}
                }
                above.open_dir(name).map(|dir| dir.shared(Share::User))
            }
            _ => above.ensure_dir(name, 0o777),
        }
    }

    fn make_control(&self, parent: &Dir) -> Result<()> {
        let name = self.control_name();
        match self.share.unwrap_or_default() {
            Kind::User => parent.make_dir(&name, PRIVATE_DIR),
            Kind::Group => {
                let share = Share::Group(group_for(parent)?);
                let parent = parent.try_clone()?.shared(share);
                make_aside(&parent, &name, PRIVATE_DIR, |_| Ok(()))
            }
            Kind::All => make_aside(parent, &name, PRIVATE_DIR, |control| {
                guest::ensure_dir(control)?;
                control.chmod(Share::All.control())
            }),
        }
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

    /// The control directory, if it is there and ours.
    pub fn control(&self) -> Result<Option<Dir>> {
        match self.parent(false)? {
            Some(parent) => self.control_in(&parent),
            None => Ok(None),
        }
    }

    /// The journal of the load under way as it is now, without any lock.
    pub fn peek_journal(&self) -> Result<Option<Replay>> {
        let Some(control) = self.control()? else {
            return Ok(None);
        };
        let next = control.find_dir(OsStr::new(layout::NEXT_LOAD))?;
        Journal::read(next.as_ref().unwrap_or(&control), Depth::Top)
    }

    /// The repository's directory and its journal with all certificates as they are now, without any
    /// lock. `None`: one of them is not there.
    pub fn peek_certificates(&self) -> Result<Option<(Dir, Replay)>> {
        let Some(parent) = self.parent(false)? else {
            return Ok(None);
        };
        let (Some(root), Some(control)) = (self.root_in(&parent)?, self.control_in(&parent)?)
        else {
            return Ok(None);
        };
        let journal = Journal::read(&control, Depth::Certificates)?;
        Ok(journal.map(|journal| (root, journal)))
    }

    /// Wakes when something changes in the control directory. `None`: there is none.
    pub fn watch(&self) -> Result<Option<Watch>> {
        let Some(parent) = self.parent(false)? else {
            return Ok(None);
        };
        match self.control_in(&parent)? {
            Some(control) => Watch::new(&control).map(Some),
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
            let network = match self.allow_network_fs {
                true => network::kind(&control)?,
                false => None,
            };
            if network.is_some() {
                network::prove_locks(&control)?;
            }
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
                owner: control.stat()?.st_uid,
                control,
                lock: inode,
                is_network: network.is_some(),
                has_broken: Cell::new(false),
            };
            if !held.is_held()? {
                continue;
            }
            held.sweep_closed()?;
            let outcome = body(&held).map(Some);
            if held.is_network {
                // There a file that is open when it is unlinked keeps a name until it is closed.
                drop(lock);
                let _ = held.parent.rmdir(&self.control_name());
            }
            return outcome;
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
                match self.make_control(&parent) {
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

/// What came of opening the directory `name`: a link or a file of that name is no directory.
fn real<T>(dir: &Dir, name: &OsStr, problem: &str, opened: Result<T>) -> Result<T> {
    match opened {
        Err(error) if matches!(error.errno(), Some(Errno::ELOOP | Errno::ENOTDIR)) => {
            Err(dir.foreign(name, problem, OTHER_NAME))
        }
        opened => opened,
    }
}

/// The group to share with what is made in `parent`: the one that this hands on, if we are in it.
///
/// # Errors
/// [`Error::Foreign`]: where everybody may make directories of a group, that is no proof.
fn group_for(parent: &Dir) -> Result<u32> {
    let stat = parent.stat()?;
    let gid = match stat.st_mode & 0o2000 != 0 && process::is_in_group(stat.st_gid) {
        true => stat.st_gid,
        false => process::group(),
    };
    if share::proves_nothing(&stat, gid) {
        return Err(Error::Foreign {
            path: parent.path().to_owned(),
            problem: format!("hands its group (gid {gid}) on to whatever anybody makes in it"),
            remedy: "name another directory with `--directories`, or do without `--share`".into(),
        });
    }
    Ok(gid)
}

fn is_open_to_us(above: &Dir, stat: &FileStat) -> Result<bool> {
    let share = Share::Group(stat.st_gid);
    Ok(share.is_open(stat) && share.admits_us(&above.stat()?))
}

/// Makes the directory `name`, which appears when `settle` is through with it: whoever meets it
/// earlier would take it for a stranger's. What a kill leaves beside it the next one takes up.
///
/// # Errors
/// EEXIST, and ENOENT where another process of ours was quicker.
fn make_aside(
    parent: &Dir,
    name: &OsStr,
    mode: u32,
    settle: impl Fn(&Dir) -> Result<()>,
) -> Result<()> {
    let next = format!(
        "{}.new-{}-{}-{mode:o}",
        layout::CONTROL,
        process::user(),
        parent.share().kind().word(),
    );
    let next = OsStr::new(&next);
    match parent.make_dir(next, mode) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {}
        made => made?,
    }
    let dir = parent.open_dir(next)?;
    let stat = dir.stat()?;
    if stat.st_uid != process::user() {
        return Err(parent.foreign(next, "is in the way", OTHER_NAME));
    }
    parent.open_up(next, &stat)?;
    settle(&dir)?;
    let made = parent.rename_new(next, parent, name);
    match made.as_ref().err().and_then(Error::errno) {
        // no RENAME_NOREPLACE here: for an instant it is there and not open
        Some(Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSUP) => {
            parent.make_dir(name, mode)?;
            settle(&parent.open_dir(name)?)?;
        }
        Some(Errno::EEXIST | Errno::ENOTEMPTY) => {}
        _ => return made,
    }
    dir.rmdir(OsStr::new(layout::HOLDERS))?;
    parent.rmdir(next)?;
    match made.as_ref().err().and_then(Error::errno) {
        Some(Errno::EEXIST | Errno::ENOTEMPTY) => made,
        _ => Ok(()),
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
