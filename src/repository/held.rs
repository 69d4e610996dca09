//! A repository whose lock is ours, and its repofile under the reference's lock: the only way to
//! change anything on disk.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use nix::errno::Errno;

use super::journal::{Depth, Journal};
use super::link::LinkLock;
use super::repofile::Repofile;
use super::{Repository, Waiting, holder, layout, link};
use crate::console::Console;
use crate::durable::{Dir, PRIVATE_DIR, PRIVATE_FILE, write_all};
use crate::error::{Error, IoContext, Result};
use crate::process::{self, Identity};

/// A repository whose lock is ours. Whatever changes the disk takes one of these.
#[derive(Debug)]
pub struct Held<'r> {
    pub repository: &'r Repository,
    pub(super) waiting: &'r Waiting<'r>,
    pub(super) parent: Dir,
    pub control: Dir,
    pub(super) lock: (u64, u64),
    pub(super) is_network: bool,
    pub(super) has_broken: Cell<bool>,
}

impl Held<'_> {
    pub fn console(&self) -> &Console {
        self.waiting.console
    }

    pub(super) fn is_held(&self) -> Result<bool> {
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
        let owner = root.stat()?.st_uid;
        let us = process::user();
        // Root acts for others, but never by what somebody else prepared beside the directory: the
        // journal there says what is deleted here.
        if owner == self.control.stat()?.st_uid && (owner == us || us == 0) {
            return root.for_its_owner().map(Some);
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
        if self.control.stat()?.st_uid == process::user() {
            return Ok(());
        }
        let name = self.repository.control_name();
        Err(self
            .parent
            .foreign(&name, "is a control directory", super::OTHER_NAME))
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
            name == layout::LOCK
                || name == layout::LAST
                || name == layout::HOLDERS
                || name == layout::SPACE
                || name == layout::SPACE_NEXT
                || name == layout::TAG
                || name == layout::JOURNAL_NEXT
                || is_blank && name == layout::JOURNAL
        };
        if !self.control.names()?.iter().all(idle) {
            return Ok(());
        }
        if journal.is_some_and(|journal| journal.root_made) {
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
        Ok(())
    }

    /// Leaves nothing of ours: takes away the control directory and the parents it stood in, as
    /// far as they are empty. After this the lock is nobody's; nothing may follow (I8).
    pub fn vanish(&self) -> Result<()> {
        self.strip()?;
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

const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
# sc keeps here what it is loading and deleting.\n";

/// Writes `name`, in place of what a killed process left of that name.
fn write_anew(dir: &Dir, name: &OsStr, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut file = match dir.create(name, mode) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {
            dir.unlink(name)?;
            dir.create(name, mode)?
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
        let owner = self.held.control.stat()?.st_uid;
        if ![None, Some(0), Some(owner)].contains(&repofile.owner) {
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
        // First the copy: one that tells of a holder who never was is found out when he is looked
        // for; one that lacks a holder would lose him.
        let control = &self.held.control;
        let aside = OsStr::new(layout::NEXT);
        // A file moved over another one goes to the disk first (ext4's auto_da_alloc), and that
        // takes longer than all else here. Killed between the two, the copy is read where it is.
        match write_anew(control, aside, PRIVATE_FILE, &bytes) {
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
        let committed = write_anew(dir, next, 0o666, &bytes)
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
