//! A repository whose lock is ours, and its repofile under the reference's lock: the only way to
//! change anything on disk.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use super::journal::{Depth, Journal, Record};
use super::link::LinkLock;
use super::repofile::Repofile;
use super::{Repository, Waiting, guest, holder, layout, link};
use crate::console::Console;
use crate::durable::{self, Dir, PRIVATE_DIR, PRIVATE_FILE, write_all};
use crate::error::{Error, IoContext, Result};
use crate::process::{self, Identity};
use crate::share::Share;

/// A repository whose lock is ours. Whatever changes the disk takes one of these.
#[derive(Debug)]
pub struct Held<'r> {
    pub repository: &'r Repository,
    pub(super) waiting: &'r Waiting<'r>,
    pub(super) parent: Dir,
    pub control: Dir,
    /// Whose control directory it is.
    pub(super) owner: u32,
    pub(super) lock: (u64, u64),
    pub(super) is_network: bool,
    pub(super) has_broken: Cell<bool>,
}

impl Held<'_> {
    pub fn console(&self) -> &Console {
        self.waiting.console
    }

    pub fn is_held(&self) -> Result<bool> {
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
        let stat = root.stat()?;
        let owner = stat.st_uid;
        // Root acts for others, but never by what somebody else prepared beside the directory: the
        // journal there says what is deleted here.
        let share = self.control.share();
        let is_one = match share {
            // what the owner alone may change is nothing for notes that the group may write
            Share::Group(_) => share.is_open(&stat),
            Share::All if self.is_guest() => owner == self.owner && stat.st_mode & 0o002 == 0,
            _ => owner == self.owner && durable::is_ours(&stat),
        };
        if is_one {
            return Ok(Some(root.for_its_owner()?.shared(share)));
        }
        if owner == process::user() && matches!(share, Share::Group(_)) {
            return Err(Error::Foreign {
                path: self.repository.location(),
                problem: "is closed to the group that it is to be shared with".into(),
                remedy: "open it (`chmod g=rwxs,o-w`, `chgrp`), or choose another `--name`".into(),
            });
        }
        // The base of an unnamed repository is nobody's; its repofile and control directory are.
        if self.repository.last().is_none() {
            return self.may_make_root().map(|()| Some(root));
        }
        Err(Error::Foreign {
            path: self.repository.location(),
            problem: format!("belongs to another user (uid {owner})"),
            remedy: "choose another `--name`".into(),
        })
    }

    /// # Errors
    /// [`Error::Foreign`]: the control directory is another user's, and what root makes beside it
    /// would be root's.
    pub fn may_make_root(&self) -> Result<()> {
        let us = process::user();
        let is_member = us != 0 && matches!(self.control.share(), Share::Group(_));
        if self.owner == us || is_member {
            return Ok(());
        }
        let name = self.repository.control_name();
        Err(self
            .parent
            .foreign(&name, "is a control directory", super::OTHER_NAME))
    }

    /// As [`Repository::may_join`], of the one whose lock is ours.
    pub fn may_join(&self) -> Result<()> {
        self.repository.trusts(&self.control)
    }

    /// Is it shared with us as with all? Then nothing here is ours to change but our own hold.
    pub fn is_guest(&self) -> bool {
        self.control.share() == Share::All && ![0, self.owner].contains(&process::user())
    }

    /// What only the owner can do, or root.
    pub fn not_for_guests(&self, problem: &str, remedy: &str) -> Error {
        Error::Foreign {
            path: self.repository.location(),
            problem: format!(
                "belongs to another user (uid {}), and {problem}",
                self.owner
            ),
            remedy: format!("{remedy}, or choose another `--name`"),
        }
    }

    /// Is this directory in the repository ours to put things in?
    pub fn owns(&self, stat: &FileStat) -> bool {
        match self.control.share() {
            share @ Share::Group(_) => share.is_open(stat),
            _ => stat.st_uid == self.owner,
        }
    }

    /// May we take away the directory `name` beside the control directory? In a sticky one, only
    /// what is our own.
    pub fn may_remove(&self, name: &OsStr) -> Result<bool> {
        let Some(stat) = self.parent.lstat(name)? else {
            return Ok(true);
        };
        let parent = self.parent.stat()?;
        let is_sticky = parent.st_mode & 0o1000 != 0;
        let may = !is_sticky || durable::is_ours(&stat) || durable::is_ours(&parent);
        Ok(may && self.parent.is_writable())
    }

    fn may_vanish(&self) -> Result<bool> {
        Ok(!self.is_guest() && self.may_remove(&self.repository.control_name())?)
    }

    /// In a sticky directory another member's directory stays when we have torn down; a journal
    /// tells who may that it can go.
    pub fn leave_root(&self) -> Result<bool> {
        let Some(last) = self.repository.last() else {
            return Ok(false);
        };
        if self.may_remove(last)? {
            return Ok(false);
        }
        let generation = process::random_name();
        let repofile = self.repository.repofile();
        let mut journal = Journal::create(&self.control, &generation, repofile)?;
        journal.append(&Record::Root { made: true })?;
        journal.flush()?;
        Ok(true)
    }

    /// What a process of another member left that was killed between making a thing and opening it
    /// to the group: nothing is in it yet, and nobody else could use it.
    pub(super) fn sweep_closed(&self) -> Result<()> {
        let share = self.control.share();
        if !matches!(share, Share::Group(_)) {
            return Ok(());
        }
        for name in self.control.names()? {
            let Some(stat) = self.control.lstat(&name)? else {
                continue;
            };
            let is_file = durable::is_file(&stat) && !durable::is_ours(&stat);
            if is_file && stat.st_mode & 0o060 != 0o060 {
                self.control.unlink(&name)?;
            } else if durable::is_dir(&stat)
                && !self.control.remove_closed(&name)?
                && let Some(dir) = self.control.find_dir(&name)?
            {
                for name in dir.names()? {
                    dir.remove_closed(&name)?;
                }
            }
        }
        Ok(())
    }

    /// Completes what is written down of a process: where other nodes read it too, the node.
    pub fn of_this_node(&self, process: Identity) -> Identity {
        let host = self.is_network.then(process::host);
        Identity { host, ..process }
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
        let share = self.control.share();
        let made = match share {
            Share::User => self.parent.make_dir(last, 0o777),
            Share::All => self.parent.make_dir(last, 0o755),
            Share::Group(_) => {
                let parent = self.parent.try_clone()?.shared(share);
                super::make_aside(&parent, last, 0o777, |_| Ok(()))
            }
        };
        let made = match made {
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

    /// The directory for lock files of `--run`, and for guests.
    pub fn holders(&self) -> Result<Dir> {
        match self.control.share() {
            Share::All if !self.is_guest() => guest::ensure_dir(&self.control),
            Share::All => self.control.open_dir(OsStr::new(layout::HOLDERS)),
            _ => self
                .control
                .ensure_dir(OsStr::new(layout::HOLDERS), PRIVATE_DIR),
        }
    }

    /// The repofile as a guest reads it, who takes no part in the reference's lock: `None`, if
    /// nothing that the owner wrote is there.
    pub fn read_as_guest(&self, root: &Dir) -> Result<Option<Repofile>> {
        let (dir, _, name) = self.repository.repofile_in(root)?;
        let repofile = Repofile::read(&dir, Path::new(&name))?;
        let is_his = [Some(0), Some(self.owner)].contains(&repofile.owner);
        Ok((is_his && !repofile.is_cut).then_some(repofile))
    }

    /// Tells programs that make backups that what is staged and deleted here is of no use to them.
    pub fn tag(&self) {
        let tag = OsStr::new(layout::TAG);
        let tagged = match self.control.create(tag, PRIVATE_FILE) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => return,
            Err(error) => Err(error),
            Ok(mut file) => {
                write_all(&mut file, TAG).io("cannot write", &self.control.path_of(tag))
            }
        };
        if let Err(error) = tagged {
            self.console().detail(error);
        }
    }

    /// Keeps cleaners that go by age from taking what sc itself needs while somebody comes now and
    /// then.
    pub fn refresh(&self, root: &Dir) {
        for name in [layout::LOCK, layout::JOURNAL] {
            self.control.refresh(OsStr::new(name));
        }
        if let Ok((dir, _, name)) = self.repository.repofile_in(root) {
            dir.refresh(&name);
        }
    }

    /// Where the journal is of a load beside the data that are there, if there is one.
    pub fn find_next_load(&self) -> Result<Option<Dir>> {
        self.control.find_dir(OsStr::new(layout::NEXT_LOAD))
    }

    /// Removes all that is staged, and what was written down of a load beside other data.
    pub fn clear_staging(&self) -> Result<()> {
        for name in [layout::NEXT_LOAD, layout::STAGING] {
            let name = OsStr::new(name);
            if let Some(dir) = self.control.find_dir(name)? {
                dir.clear()?;
                self.control.rmdir(name)?;
            }
        }
        Ok(())
    }

    /// Removes the repository's directory if it is empty.
    pub fn remove_root(&self) -> Result<bool> {
        match self.repository.last() {
            Some(last) => gone(self.parent.rmdir(last)),
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
            Ok((dir, _, name)) if dir.lstat(&name)?.is_none() => Ok(true),
            Ok(_) if self.repository.inner_repofile().is_some() => Ok(false),
            // one that lies elsewhere may be that of another repository
            Ok((dir, _, name)) => {
                let ours = self.repository.absolute_location();
                let location = Repofile::read(&dir, Path::new(&name))?.sc.location;
                Ok(location.is_some_and(|location| location != ours))
            }
        }
    }

    /// After a turn that came to nothing: leaves nothing behind, where nothing is.
    pub fn vanish_if_unused(&self) -> Result<()> {
        if !self.may_vanish()? || !self.is_unused()? {
            return Ok(());
        }
        // A journal in which no stage began knows at most of the empty directory; but that of
        // another --file is that of a repository in use, which may be empty.
        let journal = Journal::read(&self.control, Depth::Top)?;
        let is_blank = journal.as_ref().is_some_and(|journal| {
            journal.is_blank() && journal.repofile == self.repository.repofile()
        });
        let idle = |name: &OsString| {
            name == layout::LOCK
                || name == layout::LAST
                || name == layout::HOLDERS
                || name == layout::SPACE
                || name == layout::SPACE_NEXT
                || name == layout::TAG
                || name.as_bytes().starts_with(layout::LOCK_NEXT.as_bytes())
                || name == layout::JOURNAL_NEXT
                || is_blank && name == layout::JOURNAL
        };
        if !self.control.names()?.iter().all(idle) {
            return Ok(());
        }
        if journal.is_some_and(|journal| journal.root_made) {
            if let Some(last) = self.repository.last()
                && !self.may_remove(last)?
            {
                return Ok(());
            }
            // killed with the link lock in hand, before there was a repofile
            if let Some(root) = self.root()?
                && self.is_only_claims(&root)?
            {
                self.link(&root)?.give_back_and_sweep()?;
            }
            self.remove_root()?;
        }
        self.control.unlink(OsStr::new(layout::JOURNAL))?;
        self.vanish()
    }

    /// Takes away what only a repository in use needs in the control directory.
    pub fn strip(&self) -> Result<()> {
        self.check()?;
        holder::sweep(&self.control)?;
        self.control.rmdir(OsStr::new(layout::STAGING))?;
        for name in [
            layout::NEXT,
            layout::LAST,
            layout::JOURNAL_ASIDE,
            layout::JOURNAL_NEXT,
            layout::SPACE,
            layout::SPACE_NEXT,
            layout::TAG,
        ] {
            self.control.unlink(OsStr::new(name))?;
        }
        if self.control.share() != Share::User {
            for name in self.control.names()? {
                if name.as_bytes().starts_with(layout::LOCK_NEXT.as_bytes()) {
                    self.control.unlink(&name)?;
                }
            }
        }
        Ok(())
    }

    /// Leaves nothing of ours: takes away the control directory and the parents it stood in, as
    /// far as they are empty. After this the lock is nobody's; nothing may follow (I8).
    pub fn vanish(&self) -> Result<()> {
        self.strip()?;
        if !self.may_vanish()? {
            return Ok(());
        }
        self.control.unlink(OsStr::new(layout::LOCK))?;
        gone(self.parent.rmdir(&self.repository.control_name()))?;
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
            if !gone(above.rmdir(parent.file_name().unwrap_or_default()))? {
                break;
            }
        }
        Ok(())
    }
}

const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# sc keeps here what it is loading and deleting.\n";

/// Has it gone? In a sticky directory what is another's stays.
fn gone(removed: Result<bool>) -> Result<bool> {
    match removed {
        Err(Error::Foreign { .. }) => Ok(false),
        removed => removed,
    }
}

/// Writes `name`, in place of what a killed process left of that name.
fn write_anew(
    dir: &Dir,
    name: &OsStr,
    create: impl Fn(&Dir, &OsStr) -> Result<File>,
    bytes: &[u8],
) -> Result<()> {
    let mut file = match create(dir, name) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            dir.unlink(name)?;
            create(dir, name)?
        }
        file => file?,
    };
    write_all(&mut file, bytes).io("cannot write", &dir.path_of(name))
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
    /// A reference that is killed while it writes in place leaves an empty or cut file, and with it
    /// nobody knows who holds the data: then our own last word counts.
    ///
    /// # Errors
    /// [`Error::Foreign`]: another user wrote it, who could tell us that his data is ours.
    pub fn read(&self) -> Result<Repofile> {
        let repofile = Repofile::read(&self.dir, Path::new(&self.name))?;
        let owner = self.held.owner;
        // the directory is the group's, and whoever could make a file there is in it
        let is_groups = self.held.repository.inner_repofile().is_some()
            && matches!(self.held.control.share(), Share::Group(_));
        if !is_groups && ![None, Some(0), Some(owner)].contains(&repofile.owner) {
            let remedy = super::repofile::MOVE_AWAY;
            return Err(self.dir.foreign(&self.name, "is a repofile", remedy));
        }
        if !repofile.is_cut {
            return Ok(repofile);
        }
        for name in [layout::LAST, layout::NEXT] {
            let last = Repofile::read(&self.held.control, Path::new(name));
            if let Ok(last) = last
                && last.exists
                && !last.is_cut
            {
                self.held.console().detail(format_args!(
                    "`{}` is cut; what it said before is known",
                    self.dir.path_of(&self.name).display()
                ));
                if name == layout::NEXT {
                    let control = &self.held.control;
                    control.rename(OsStr::new(name), control, OsStr::new(layout::LAST))?;
                }
                return Ok(last);
            }
        }
        Ok(repofile)
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
        let bytes = repofile.to_bytes();
        let create_own = |dir: &Dir, name: &OsStr| dir.create(name, PRIVATE_FILE);
        // First the copy: one that tells of a holder who never was is found out when he is looked
        // for; one that lacks a holder would lose him.
        let control = &self.held.control;
        let aside = OsStr::new(layout::NEXT);
        // A file moved over another one goes to the disk first (ext4's auto_da_alloc), and that
        // takes longer than all else here. Killed between the two, the copy is read where it is.
        match write_anew(control, aside, create_own, &bytes) {
            // To leave must be possible on a full disk: what the copy took, the file itself needs.
            Err(error) if error.is_full() => {
                control.unlink(aside)?;
                control.unlink(OsStr::new(layout::LAST))?;
            }
            copied => {
                copied?;
                control.unlink(OsStr::new(layout::LAST))?;
                control.rename(aside, control, OsStr::new(layout::LAST))?;
            }
        }
        let committed = write_anew(dir, next, Dir::create_state, &bytes)
            .and_then(|()| self.held.check())
            .and_then(|()| self.lock.is_ours());
        match committed {
            Ok(true) => {
                dir.rename(next, &self.dir, &self.name)?;
                self.forget_over(repofile);
                Ok(true)
            }
            Ok(false) => dir.unlink(next).map(|_| false),
            Err(error) => {
                let _ = dir.unlink(next);
                Err(error)
            }
        }
    }

    /// See [`Repofile::forget_over`]. What cannot be removed goes with the control directory.
    pub fn forget_over(&self, repofile: &Repofile) {
        if let Err(error) = repofile.forget_over(&self.held.control) {
            self.held.console().detail(error);
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
