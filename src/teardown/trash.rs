//! What a teardown has taken out of a repository, and its deletion on several threads.
//!
//! # What may be deleted
//!
//! Only what the journal names, with the inode it names. What has a name is told by reading its
//! directory (`d_ino` of getdents64(2)): one system call for a directory instead of one for each
//! file. Where that does not agree with the journal, lstat(2) is asked, so that a file system
//! which numbers its directory entries otherwise costs time, and nothing else.
//!
//! Between the reading and the unlink(2) somebody could put another file under a name of ours;
//! between an lstat and the unlink he could, too, and no call deletes by inode. What keeps him
//! out is the place: the tree has been moved below a directory that is ours alone (mode 0700), so
//! only a process that was inside before still finds it, and every directory is deleted right
//! after it was read.
//!
//! # On several threads
//!
//! A directory is one piece of work: read, its files deleted, its subdirectories put on the pile.
//! Whoever is done with the last of them removes it, and perhaps the one above. Changes of one
//! directory are serialized by the kernel, those of different ones are not.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fd_lock::RwLock;
use nix::errno::Errno;
use nix::sys::stat::SFlag;

use crate::console::Console;
use crate::crew::{self, Pile};
use crate::durable::{self, Dir, Flock, Name};
use crate::error::{Error, IoContext, Result};
use crate::repository::journal::{Depth, Journal, Kind, Record, Replay};
use crate::repository::layout;
use crate::repository::manifest::{Listing, Manifest};
use crate::signal;

/// The image of the repository in a trash.
pub(super) const DATA: &str = "data";

/// A trash that this process alone deletes in.
#[derive(Debug)]
pub struct Trash {
    control: Dir,
    name: OsString,
    dir: Dir,
    /// Locked.
    journal: Option<Journal>,
    manifest: Option<Manifest>,
}

/// Is anybody at a trash?
pub(super) enum Look {
    Free(Box<Trash>),
    /// He has this locked.
    Busy(Journal),
    Gone,
}

impl Trash {
    pub(super) fn look(control: &Dir, name: &OsStr) -> Result<Look> {
        let Some(dir) = control.find_dir(name)? else {
            return Ok(Look::Gone);
        };
        let journal = match Journal::at_end(&dir)? {
            // Where nothing can be locked two may delete at once, which does no harm.
            Some(journal) => match durable::try_flock(journal.file(), Flock::Exclusive) {
                Ok(false) => return Ok(Look::Busy(journal)),
                _ => Some(journal),
            },
            None => None,
        };
        Ok(Look::Free(Box::new(Trash {
            control: control.try_clone()?,
            name: name.to_owned(),
            dir,
            journal,
            manifest: None,
        })))
    }

    pub(super) fn read(&self, depth: Depth) -> Result<Option<Replay>> {
        Journal::read(&self.dir, depth)
    }

    /// Says in its journal that the repository's directory is no more. If that cannot be written,
    /// a directory that somebody makes there may be removed if it is empty.
    pub(super) fn disown_root(&mut self) {
        if let Some(journal) = &mut self.journal {
            let record = Record::Root { made: false };
            let _ = journal.append(&record).and_then(|()| journal.flush());
        }
    }

    /// Is it that of this generation?
    pub(super) fn is_of(&self, generation: &str) -> bool {
        self.name == super::trash_name(generation)
    }

    /// What its journal names was read already.
    pub(super) fn know(&mut self, manifest: Manifest) {
        self.manifest = Some(manifest);
    }

    /// Deletes what its journal names.
    pub fn empty(self, console: &Console) -> Result<()> {
        durable::point("trash").io("cannot delete", self.dir.path())?;
        if let Some(data) = self.dir.find_dir(OsStr::new(DATA))? {
            let manifest = match self.manifest {
                Some(manifest) => Some(manifest),
                None => Journal::read(&self.dir, Depth::All)?.map(|replay| replay.manifest),
            };
            match manifest {
                Some(manifest) => Eraser::new(&manifest, console).erase_all(data)?,
                // an empty one is all that a kill before the first move leaves
                None if data.names()?.is_empty() => {}
                None => {
                    console.warn(format_args!(
                        "`{}` stays: no journal says what may be deleted in it",
                        self.dir.path().display()
                    ));
                    return Ok(());
                }
            }
            self.dir.rmdir(OsStr::new(DATA))?;
        }
        if self.dir.lstat(OsStr::new(DATA))?.is_none() {
            self.dir.unlink(OsStr::new(layout::JOURNAL))?;
            self.control.rmdir(&self.name)?;
        }
        Ok(())
    }
}

/// Waits until nobody has the journal of a trash locked.
pub(super) fn wait_for(journal: Journal) -> Result<()> {
    let file = journal.file().try_clone();
    let mut lock = RwLock::new(file.io("cannot lock", Path::new(layout::JOURNAL))?);
    loop {
        match lock.write().map(drop) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => signal::check()?,
            locked => return locked.io("cannot lock", Path::new(layout::JOURNAL)),
        }
    }
}

/// Opens the directory `name`, with the rights that deleting in it takes. `None`: it is gone, or
/// another mount.
fn enter(above: &Dir, name: &OsStr, device: u64) -> Result<Option<Dir>> {
    let dir = match above.find_dir(name) {
        Err(error) if error.errno() == Some(Errno::EACCES) => {
            match above.lstat(name)? {
                Some(stat) if stat.st_dev == device => above.searchable(name, &stat)?,
                _ => return Ok(None),
            }
            above.find_dir(name)?
        }
        found => found?,
    };
    let Some(dir) = dir else { return Ok(None) };
    let stat = dir.stat()?;
    if stat.st_dev != device || super::is_closed(above, &stat) {
        return Ok(None);
    }
    if durable::is_ours(&stat) && stat.st_mode & 0o700 != 0o700 {
        durable::set_mode(&dir, (stat.st_mode | 0o700) & 0o7777)
            .io("cannot change mode of", dir.path())?;
    }
    Ok(Some(dir))
}

/// Is this the very thing that is recorded? If not, lstat tells.
fn is_surely(listing: Listing, entry: Name) -> bool {
    !entry.kind.is_empty() && listing.made(entry.name, Kind::of_type(entry.kind), entry.ino)
}

/// The paths below `data` that the journal does not name, nor anything below them. `between` is
/// called ever so often.
pub(super) fn foreign(
    manifest: &Manifest,
    data: &Dir,
    between: impl FnMut(),
) -> Result<Vec<PathBuf>> {
    let device = data.stat()?.st_dev;
    let foreign = Mutex::new(Vec::new());
    let each = |(above, path): (Option<Arc<Dir>>, PathBuf), pile: &Pile<_>| {
        let dir = match (&above, path.file_name()) {
            (Some(above), Some(name)) => enter(above, name, device)?,
            _ => Some(data.open_dir(OsStr::new("."))?),
        };
        let Some(dir) = dir.map(Arc::new) else {
            return Ok(());
        };
        let listing = manifest.in_dir(&path);
        for entry in dir.list()?.iter() {
            let mut kind = entry.kind;
            if !is_surely(listing, entry) {
                let Some(stat) = dir.lstat(entry.name)? else {
                    continue;
                };
                kind = durable::kind(&stat);
                let is_dir = kind == SFlag::S_IFDIR;
                if is_dir && stat.st_dev != device {
                    continue; // a mount: never entered, and not to be moved (I9)
                }
                let is_made = listing.made(entry.name, Kind::of_type(kind), stat.st_ino);
                let is_entered = is_dir && listing.has(entry.name);
                if !is_made && !is_entered {
                    let mut foreign = foreign.lock().unwrap_or_else(PoisonError::into_inner);
                    foreign.push(path.join(entry.name));
                    continue;
                }
            }
            if kind == SFlag::S_IFDIR {
                pile.put((Some(Arc::clone(&dir)), path.join(entry.name)));
            }
        }
        Ok(())
    };
    let threads = crew::threads_for(manifest.len());
    crew::work_off(threads, vec![(None, PathBuf::new())], each, between)?;
    let mut foreign = foreign.into_inner().unwrap_or_else(PoisonError::into_inner);
    foreign.sort();
    Ok(foreign)
}

/// A directory that is being emptied.
struct Folder<'m> {
    /// In which it is; nothing for the one that stays.
    above: Option<Arc<Folder<'m>>>,
    name: OsString,
    dir: Dir,
    /// Relative to the repository.
    path: PathBuf,
    listing: Listing<'m>,
    /// How many things in it are not over: itself, and each of its directories.
    open: AtomicUsize,
}

impl Folder<'_> {
    /// Something in `folder` is over; where it was the last, the folder goes.
    fn over(mut folder: Arc<Self>) -> Result<()> {
        while folder.open.fetch_sub(1, Ordering::AcqRel) == 1
            && let Some(above) = &folder.above
        {
            above.dir.rmdir(&folder.name)?;
            folder = Arc::clone(above);
        }
        Ok(())
    }
}

/// Deletes what a manifest names.
pub(super) struct Eraser<'a> {
    manifest: &'a Manifest,
    console: &'a Console,
}

type Task<'m> = (Arc<Folder<'m>>, OsString);

impl<'a> Eraser<'a> {
    pub(super) fn new(manifest: &'a Manifest, console: &'a Console) -> Eraser<'a> {
        Eraser { manifest, console }
    }

    /// Deletes `path`, whose last component is in `dir`, with all that is named below it.
    pub(super) fn erase(&self, dir: &Dir, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        let Some(stat) = dir.lstat(name)? else {
            return Ok(());
        };
        let entry = Name {
            name,
            ino: stat.st_ino,
            kind: durable::kind(&stat),
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let folder = self.folder(dir.try_clone()?, parent);
        let mut tasks = Vec::new();
        self.entry(&folder, entry, &mut |task| tasks.push(task))?;
        self.work_off(tasks, stat.st_dev)
    }

    /// Deletes all that is named in `data`, the image of the repository.
    fn erase_all(&self, data: Dir) -> Result<()> {
        let device = data.stat()?.st_dev;
        let folder = self.folder(data, Path::new(""));
        let mut tasks = Vec::new();
        self.entries(&folder, &mut |task| tasks.push(task))?;
        self.work_off(tasks, device)
    }

    fn folder(&self, dir: Dir, path: &Path) -> Arc<Folder<'a>> {
        Arc::new(Folder {
            listing: self.manifest.in_dir(path),
            above: None,
            name: OsString::new(),
            dir,
            path: path.to_owned(),
            open: AtomicUsize::new(1),
        })
    }

    fn work_off(&self, tasks: Vec<Task<'a>>, device: u64) -> Result<()> {
        let each = |(above, name): Task<'a>, pile: &Pile<Task<'a>>| {
            let Some(dir) = enter(&above.dir, &name, device)? else {
                match above.dir.lstat(&name)? {
                    Some(stat) if stat.st_dev == device => {
                        self.stays(&above, &name, "is closed to the group");
                    }
                    Some(_) => self.stays(&above, &name, "is a mount point"),
                    None => {}
                }
                return Folder::over(above);
            };
            let path = above.path.join(&name);
            let folder = Arc::new(Folder {
                listing: self.manifest.in_dir(&path),
                path,
                above: Some(above),
                name,
                dir,
                open: AtomicUsize::new(1),
            });
            self.entries(&folder, &mut |task| pile.put(task))?;
            Folder::over(folder)
        };
        crew::work_off(crew::threads_for(self.manifest.len()), tasks, each, || {})
    }

    /// Deletes the files in `folder`; its directories go to `put`.
    fn entries(&self, folder: &Arc<Folder<'a>>, put: &mut dyn FnMut(Task<'a>)) -> Result<()> {
        // read to the end before the first change: what it shows of a directory that changes is
        // the file system's choice
        for entry in folder.dir.list()?.iter() {
            self.entry(folder, entry, put)?;
        }
        Ok(())
    }

    fn entry(
        &self,
        folder: &Arc<Folder<'a>>,
        entry: Name,
        put: &mut dyn FnMut(Task<'a>),
    ) -> Result<()> {
        let (dir, name, listing) = (&folder.dir, entry.name, folder.listing);
        let mut kind = entry.kind;
        if !is_surely(listing, entry) {
            let Some(stat) = dir.lstat(name)? else {
                return Ok(());
            };
            kind = durable::kind(&stat);
            let is_ours = match kind {
                SFlag::S_IFDIR => listing.has(name),
                _ => listing.made(name, Kind::of_type(kind), stat.st_ino),
            };
            if !is_ours {
                self.stays(folder, name, "did not come from sc");
                return Ok(());
            }
        }
        if kind == SFlag::S_IFDIR {
            folder.open.fetch_add(1, Ordering::AcqRel);
            put((Arc::clone(folder), name.to_owned()));
            return Ok(());
        }
        match dir.unlink(name) {
            Err(error) if error.errno() == Some(Errno::EBUSY) => {
                self.stays(folder, name, "is a mount point");
                Ok(())
            }
            Err(error @ Error::Io { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    fn stays(&self, folder: &Folder, name: &OsStr, why: &str) {
        self.console.warn(format_args!(
            "`{}` {why} and stays",
            folder.dir.path_of(name).display()
        ));
    }
}
