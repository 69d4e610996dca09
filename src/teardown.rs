//! Deleting what a repository holds: what the journal names, and nothing else.
//!
//! The order, and why (I7):
//!
//! 1. The claim goes first: the caller has committed a repofile that says UNKNOWN and names no
//!    holder. From here on nobody believes the data, so it may vanish piece by piece.
//! 2. [`withdraw`]: every published entry that still has the inode the journal recorded is moved
//!    to `trash-<generation>/data`, in the control directory, by rename: the tree disappears from
//!    the repository at once, however large it is. A directory that was there before us stays;
//!    what we put into it is taken out.
//! 3. What is foreign in the trash, a job's own file in a directory of ours, is moved back to
//!    where it was, with the directories it needs, replacing nothing.
//! 4. The journal follows into the trash. Until here a process that finds the remains begins
//!    again at 2 with the same trash; from here on the trash stands for itself.
//! 5. The repofile and the repository's directory go, the link lock is given back.
//! 6. [`empty`] deletes what the journal in the trash names; then the control directory goes.
//!
//! A reference that breaks the link lock before the end (we were stopped for longer than its lease)
//! may have begun to use what is left here: before each step the lock is looked at, and what is
//! not ours any more is left alone.
//!
//! A kill anywhere leaves either the journal in the control directory (begin at 2) or in the
//! trash ([`sweep`]). Deletion never follows a link and never enters another mount.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use crate::durable::{self, Dir, PRIVATE_DIR};
use crate::error::{Error, IoContext, Result};
use crate::repository::journal::{Depth, Journal, Replay};
use crate::repository::repofile::Repofile;
use crate::repository::{Held, Link, layout, link};

const DATA: &str = "data";

/// Tears the repository down and leaves nothing of ours. The caller has withdrawn the claim
/// under `link`. False: a reference broke the link lock, and the caller begins again from the file.
pub fn run(held: &Held, root: &Dir, link: Link) -> Result<bool> {
    let journal = Journal::read(&held.control, Depth::All)?;
    let Some(made) = withdraw(held, root, journal.as_ref(), &link)? else {
        return Ok(false);
    };
    let nameless = nameless(root, &link.read()?, journal.as_ref())?;
    let is_lost = journal.is_none();
    if !link.remove()? {
        return Ok(false);
    }
    link.give_back_and_sweep()?;
    let is_foreign = (made || is_lost) && !held.remove_root()?;
    if !nameless.is_empty() {
        held.console().warn(format_args!(
            "`{}` stays: no journal says any more that sc brought {}",
            held.repository.location().display(),
            what(&nameless),
        ));
    } else if is_foreign && is_lost && held.repository.is_named() {
        held.console().warn(format_args!(
            "`{}` stays: the journal that said what sc brought there is gone",
            held.repository.location().display(),
        ));
    } else if is_foreign && made {
        let mut left = root.names().unwrap_or_default();
        if let Some(repofile) = held.repository.inner_repofile() {
            left.retain(|name| !link::is_lock_file(repofile, name));
        }
        if left.is_empty() {
            // a reference that comes, and takes over, or one that was killed just now
            return finish(held);
        }
        held.console().warn(format_args!(
            "`{}` stays: {} in it did not come from sc",
            held.repository.location().display(),
            what(&left),
        ));
    }
    finish(held)
}

/// Leaves nothing in the control directory, nor itself. Always true: it is over.
fn finish(held: &Held) -> Result<bool> {
    held.clear_staging()?;
    sweep(held)?;
    // Where there was no room for trash it is still here: it alone knew whose the directory was.
    held.control.unlink(OsStr::new(layout::JOURNAL))?;
    held.vanish()?;
    Ok(true)
}

/// What the repofile says was published, is still there, and stands in no journal: a part of the
/// journal is lost.
fn nameless(root: &Dir, repofile: &Repofile, journal: Option<&Replay>) -> Result<Vec<OsString>> {
    let mut nameless = Vec::new();
    for entry in repofile.entries() {
        let is_named = journal.is_some_and(|journal| journal.entry(&entry).is_some());
        if !is_named && root.lstat(entry.as_os_str())?.is_some() {
            nameless.push(entry.into_os_string());
        }
    }
    Ok(nameless)
}

fn what(names: &[OsString]) -> String {
    match names {
        [] => "something".into(),
        [one] => format!("`{}`", one.display()),
        [one, ..] => format!("`{}` and {} more", one.display(), names.len() - 1),
    }
}

/// Takes everything the journal names out of the repository (steps 2 to 4). Returns whether the
/// repository's directory is ours. A second call does what the first one left. `None`: a reference
/// broke the link lock; what is still there may be its own by now.
pub fn withdraw(
    held: &Held,
    root: &Dir,
    journal: Option<&Replay>,
    link: &Link,
) -> Result<Option<bool>> {
    // A trash that is left from before may be of the same directory.
    let made = is_root_of_trash(held)?;
    let Some(journal) = journal else {
        return Ok(Some(made));
    };
    let dummies = journal
        .stages
        .iter()
        .filter(|stage| stage.module == "dummy" && stage.stamp.is_some());
    for _ in dummies {
        held.console().say("dummy: delete");
    }
    durable::point("teardown").io("cannot tear down", root.path())?;
    let trash = held
        .control
        .ensure_dir(&trash_name(&journal.generation), PRIVATE_DIR)
        .and_then(|trash| Ok((trash.ensure_dir(OsStr::new(DATA), PRIVATE_DIR)?, trash)));
    let tops: Vec<_> = journal
        .top_level()
        .map(|entry| entry.path.clone())
        .collect();
    let (data, trash) = match trash {
        // No room for a directory: what is deleted in place makes some.
        Err(error) if error.is_full() => {
            for path in tops {
                held.check()?;
                if !link.is_ours()? {
                    return Ok(None);
                }
                link.renew()?;
                delete_here(held, journal, root, &path)?;
            }
            return Ok(Some(made || journal.root_made));
        }
        trash => trash?,
    };
    for path in tops {
        held.check()?;
        if !link.is_ours()? {
            return Ok(None);
        }
        link.renew()?;
        take(held, journal, root, &data, &path)?;
    }
    give_back(held, journal, root, &data, Path::new(""), link)?;
    match held.control.rename(
        OsStr::new(layout::JOURNAL),
        &trash,
        OsStr::new(layout::JOURNAL),
    ) {
        Err(error) if error.errno() == Some(Errno::ENOENT) => {}
        moved => moved?,
    }
    Ok(Some(made || journal.root_made))
}

fn trash_name(generation: &str) -> OsString {
    OsString::from(format!("{}{generation}", layout::TRASH))
}

/// Is a teardown of this generation under way?
pub fn is_begun(held: &Held, generation: &str) -> Result<bool> {
    Ok(held.control.lstat(&trash_name(generation))?.is_some())
}

fn trashes(held: &Held) -> Result<Vec<Dir>> {
    let mut trashes = Vec::new();
    for name in held.control.names()? {
        if name.as_bytes().starts_with(layout::TRASH.as_bytes()) {
            trashes.extend(held.control.find_dir(&name)?);
        }
    }
    Ok(trashes)
}

/// Did a teardown that was killed between its step 4 and 5 leave a directory of ours?
fn is_root_of_trash(held: &Held) -> Result<bool> {
    for trash in trashes(held)? {
        if Journal::read(&trash, Depth::Top)?.is_some_and(|journal| journal.root_made) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Moves what stands at `path` below `dir` into `data` if it is the journal's; enters it where
/// it is a directory that was there before us.
fn take(held: &Held, journal: &Replay, dir: &Dir, data: &Dir, path: &Path) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Ok(());
    };
    let Some(stat) = dir.lstat(name)? else {
        return Ok(());
    };
    let is_dir = durable::is_dir(&stat);
    if journal.made(path, &stat) {
        if is_dir {
            // moving a directory to another parent writes its `..`
            dir.searchable(name, &stat)?;
        }
        return match dir.rename_new(name, data, name) {
            Err(error)
                if matches!(
                    error.errno(),
                    Some(
                        Errno::EXDEV
                            | Errno::EBUSY
                            | Errno::EINVAL
                            | Errno::EEXIST
                            | Errno::ENOTEMPTY
                    )
                ) =>
            {
                // a mount point, or a repository on another file system
                delete(held, journal, dir, path, stat.st_dev).map(drop)
            }
            moved => moved,
        };
    }
    if is_dir {
        let inner = dir.open_dir(name)?;
        let data = data.ensure_dir(name, PRIVATE_DIR)?;
        for child in children(journal, path) {
            take(held, journal, &inner, &data, &path.join(child))?;
        }
    }
    Ok(())
}

/// Deletes what stands at `path` below `dir` if it is the journal's; enters it where it is a
/// directory that was there before us.
fn delete_here(held: &Held, journal: &Replay, dir: &Dir, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    let Some(stat) = dir.lstat(name)? else {
        return Ok(());
    };
    if journal.made(path, &stat) {
        return delete(held, journal, dir, path, stat.st_dev).map(drop);
    }
    if durable::is_dir(&stat) {
        let inner = dir.open_dir(name)?;
        for child in children(journal, path) {
            delete_here(held, journal, &inner, &path.join(child))?;
        }
    }
    Ok(())
}

/// The names recorded directly below `path`.
fn children(journal: &Replay, path: &Path) -> Vec<OsString> {
    let depth = path.components().count();
    let mut names: Vec<OsString> = journal
        .stages
        .iter()
        .flat_map(|stage| {
            let from = stage
                .entries
                .range(path.to_owned()..)
                .map(|(below, _)| below);
            from.take_while(|below| below.starts_with(path))
        })
        .filter(|below| below.components().count() == depth + 1)
        .filter_map(|below| below.file_name().map(OsStr::to_owned))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Moves back what the journal does not name in `dir`, the trash's image of `path`.
fn give_back(
    held: &Held,
    journal: &Replay,
    root: &Dir,
    dir: &Dir,
    path: &Path,
    link: &Link,
) -> Result<()> {
    // a tree of a million directories takes longer to walk than the lease lasts
    link.renew()?;
    let device = dir.stat()?.st_dev;
    for name in dir.names()? {
        let at = path.join(&name);
        let Some(stat) = dir.lstat(&name)? else {
            continue;
        };
        let named = journal.entry(&at).is_some();
        if durable::is_dir(&stat) && stat.st_dev != device {
            continue; // a mount: never entered, and not to be moved (I9)
        }
        if durable::is_dir(&stat) && (journal.made(&at, &stat) || named) {
            dir.searchable(&name, &stat)?;
            give_back(held, journal, root, &dir.open_dir(&name)?, &at, link)?;
        } else if !journal.made(&at, &stat) {
            restore(held, root, dir, &name, path)?;
        }
    }
    Ok(())
}

/// Puts `name` from the trash back below `path` in the repository.
fn restore(held: &Held, root: &Dir, from: &Dir, name: &OsStr, path: &Path) -> Result<()> {
    let mut to = root.try_clone()?;
    for component in path.components() {
        to = to.ensure_dir(component.as_os_str(), 0o777)?;
    }
    if from.lstat(name)?.is_some_and(|stat| durable::is_dir(&stat)) {
        let stat = from.lstat(name)?.expect("just seen");
        from.searchable(name, &stat)?;
    }
    let mut new = name.to_owned();
    for n in 1.. {
        match from.rename_new(name, &to, &new) {
            Err(error) if matches!(error.errno(), Some(Errno::EEXIST | Errno::ENOTEMPTY)) => {
                new = name.to_owned();
                new.push(format!(".kept-{n}"));
            }
            moved => {
                moved?;
                break;
            }
        }
    }
    held.console().warn(format_args!(
        "`{}` did not come from sc and stays",
        to.path_of(&new).display()
    ));
    Ok(())
}

/// Deletes every trash in the control directory whose journal can be read.
pub fn sweep(held: &Held) -> Result<()> {
    for trash in trashes(held)? {
        let name = trash.path().file_name().unwrap_or_default().to_owned();
        let journal = Journal::read(&trash, Depth::All)?;
        if let Some(data) = trash.find_dir(OsStr::new(DATA))? {
            match &journal {
                Some(journal) => empty(held, journal, &data)?,
                // an empty one is all that a kill before the first move leaves
                None if data.names()?.is_empty() => {}
                None => {
                    held.console().warn(format_args!(
                        "`{}` stays: no journal says what may be deleted in it",
                        trash.path().display()
                    ));
                    continue;
                }
            }
            trash.rmdir(OsStr::new(DATA))?;
        }
        if trash.lstat(OsStr::new(DATA))?.is_none() {
            trash.unlink(OsStr::new(layout::JOURNAL))?;
            held.control.rmdir(&name)?;
        }
    }
    Ok(())
}

fn empty(held: &Held, journal: &Replay, data: &Dir) -> Result<()> {
    let device = data.stat()?.st_dev;
    for name in data.names()? {
        delete(held, journal, data, Path::new(&name), device)?;
    }
    Ok(())
}

/// Deletes `path` (its last component, in `dir`) with all that the journal names below it. True
/// when it is gone.
fn delete(held: &Held, journal: &Replay, dir: &Dir, path: &Path, device: u64) -> Result<bool> {
    let name = path.file_name().unwrap_or_default();
    let Some(stat) = dir.lstat(name)? else {
        return Ok(true);
    };
    let stays = |why: &str| {
        held.console().warn(format_args!(
            "`{}` {why} and stays",
            dir.path_of(name).display()
        ));
        Ok(false)
    };
    if durable::is_dir(&stat) {
        if journal.entry(path).is_none() {
            return stays("did not come from sc");
        }
        if stat.st_dev != device {
            return stays("is a mount point");
        }
        dir.searchable(name, &stat)?;
        let inner = dir.open_dir(name)?;
        for child in inner.names()? {
            delete(held, journal, &inner, &path.join(child), device)?;
        }
        return dir.rmdir(name);
    }
    if !journal.made(path, &stat) {
        return stays("did not come from sc");
    }
    match dir.unlink(name) {
        Err(error) if error.errno() == Some(Errno::EBUSY) => stays("is a mount point"),
        Err(error @ Error::Io { .. }) => Err(error),
        _ => Ok(true),
    }
}
