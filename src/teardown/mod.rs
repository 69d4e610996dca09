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
//! 5. The repofile and the repository's directory go, the link lock is given back. The journal in
//!    the trash is told that the directory is not ours any more: another may be made there.
//! 6. The repository's lock is given back: whoever waits may load anew, beside the trash.
//! 7. [`Trash::empty`] deletes what the journal in the trash names. While somebody is at it, he
//!    has that journal locked: others leave that trash to him, and empty the one of a process
//!    that was killed.
//! 8. [`tidy`] takes the lock again, and if nobody has begun to use the repository, the control
//!    directory goes.
//!
//! A reference that breaks the link lock before the end (we were stopped for longer than its lease)
//! may have begun to use what is left here: before each step the lock is looked at, and what is
//! not ours any more is left alone.
//!
//! A kill anywhere leaves either the journal in the control directory (begin at 2) or in the
//! trash ([`sweep`]). Deletion never follows a link and never enters another mount.

mod trash;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use crate::console::Console;
use crate::durable::{self, Dir, PRIVATE_DIR, Watch};
use crate::error::{Error, IoContext, Result};
use crate::repository::journal::{Depth, Journal, Replay};
use crate::repository::repofile::Repofile;
use crate::repository::{Held, Link, Repository, Waiting, layout, link};
use crate::share::Share;
use crate::signal::{self, Patience};
use trash::{DATA, Eraser, Look};

pub use trash::Trash;

/// Tears the repository down, up to what can be deleted without the lock: the caller gives that
/// back, and empties what is returned. The caller has withdrawn the claim under `link`. `None`: a
/// reference broke the link lock, and the caller begins again from the file.
pub fn run(held: &Held, root: &Dir, link: Link) -> Result<Option<Vec<Trash>>> {
    let journal = Journal::read(&held.control, Depth::All)?;
    let Some(made) = withdraw(held, root, journal.as_ref(), &link)? else {
        return Ok(None);
    };
    let nameless = nameless(root, &link.read()?, journal.as_ref())?;
    let is_lost = journal.is_none();
    if !link.remove()? {
        return Ok(None);
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
        // nothing: a reference that comes, and takes over, or one that was killed just now
        if !left.is_empty() {
            held.console().warn(format_args!(
                "`{}` stays: {} in it did not come from sc",
                held.repository.location().display(),
                what(&left),
            ));
        }
    }
    held.clear_staging()?;
    // Where there was no room for trash it is still here: it alone knew whose the directory was.
    if !made || !held.leave_root()? {
        held.control.unlink(OsStr::new(layout::JOURNAL))?;
    }
    let mut trashes = trashes(held)?;
    if trashes.is_empty() {
        held.vanish()?;
        return Ok(Some(trashes));
    }
    held.strip()?;
    for trash in &mut trashes {
        trash.disown_root();
    }
    if let Some(journal) = journal
        && let Some(trash) = trashes
            .iter_mut()
            .find(|trash| trash.is_of(&journal.generation))
    {
        trash.know(journal.manifest);
    }
    Ok(Some(trashes))
}

/// Takes away the control directory after [`run`] and [`Trash::empty`], unless somebody has begun
/// to use the repository again: then it is his.
///
/// Whoever has the lock now will either commit a repofile, or go soon, and may have looked around
/// while our trash was still there. So this waits for the one or the other: any of them writes in
/// the control directory, and closing the lock file counts as that. When `patience` is over first,
/// what stays is for the next one to take away.
pub fn tidy(repository: &Repository, patience: &Patience, console: &Console) -> Result<()> {
    // whoever sends a signal wants us to end, and that we are about to
    signal::forget();
    let none = Patience::new(Some(Duration::ZERO));
    let waiting = Waiting {
        console,
        patience: &none,
    };
    // Only where somebody is there: to stop watching takes the kernel some 10 ms, and more than all
    // else here.
    let mut watch = None;
    loop {
        match repository.held(false, &waiting, |held| held.vanish_if_unused()) {
            Err(Error::Timeout { .. })
                if !patience.is_over() && matches!(repository.peek(), Ok(None)) =>
            {
                match watch.take() {
                    Some(watch) => Watch::wait(&watch, Duration::from_secs(1))?,
                    // looked at once more, so that no change is missed
                    None => watch = repository.watch()?,
                }
            }
            Err(Error::Timeout { .. } | Error::Interrupted { .. }) => return Ok(()),
            tidied => return tidied.map(drop),
        }
    }
}

/// What the repofile says was published, is still there, and stands in no journal: a part of the
/// journal is lost.
fn nameless(root: &Dir, repofile: &Repofile, journal: Option<&Replay>) -> Result<Vec<OsString>> {
    let mut nameless = Vec::new();
    for entry in repofile.entries() {
        let top = journal.map(|journal| journal.manifest.in_dir(Path::new("")));
        let is_named = top.is_some_and(|top| top.has(entry.as_os_str()));
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
    let eraser = || Eraser::new(&journal.manifest, held.console());
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
                delete_here(&eraser(), journal, root, &path)?;
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
        take(held, &eraser(), journal, root, &data, &path)?;
    }
    give_back(held, journal, root, &data, link)?;
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

/// What is left to delete, and nobody is at.
fn trashes(held: &Held) -> Result<Vec<Trash>> {
    let mut trashes = Vec::new();
    for name in held.control.names()? {
        if name.as_bytes().starts_with(layout::TRASH.as_bytes())
            && let Look::Free(trash) = Trash::look(&held.control, &name)?
        {
            trashes.push(*trash);
        }
    }
    Ok(trashes)
}

/// Waits until nobody deletes in this repository's trash any more. False: nobody did.
pub fn wait_for_room(held: &Held) -> Result<bool> {
    let mut has_waited = false;
    for name in held.control.names()? {
        if name.as_bytes().starts_with(layout::TRASH.as_bytes())
            && let Look::Busy(journal) = Trash::look(&held.control, &name)?
        {
            held.console().say(format_args!(
                "waiting: another sc is still deleting what was in `{}` before",
                held.repository.location().display()
            ));
            trash::wait_for(journal)?;
            has_waited = true;
        }
    }
    Ok(has_waited)
}

/// Did a teardown that was killed between its step 4 and 5 leave a directory of ours?
fn is_root_of_trash(held: &Held) -> Result<bool> {
    for trash in trashes(held)? {
        if trash
            .read(Depth::Top)?
            .is_some_and(|journal| journal.root_made)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Moves what stands at `path` below `dir` into `data` if it is the journal's; enters it where
/// it is a directory that was there before us.
fn take(
    held: &Held,
    eraser: &Eraser,
    journal: &Replay,
    dir: &Dir,
    data: &Dir,
    path: &Path,
) -> Result<()> {
    let Some(name) = path.file_name() else {
        return Ok(());
    };
    let Some(stat) = dir.lstat(name)? else {
        return Ok(());
    };
    let is_dir = durable::is_dir(&stat);
    // where the group could not delete, nobody does by a journal that the group may write
    if is_dir && is_closed(dir, &stat) {
        held.console().warn(format_args!(
            "`{}` is closed to the group and stays",
            dir.path_of(name).display()
        ));
        return Ok(());
    }
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
                eraser.erase(dir, path)
            }
            moved => moved,
        };
    }
    if is_dir {
        let inner = dir.open_dir(name)?;
        let data = data.ensure_dir(name, PRIVATE_DIR)?;
        for child in journal.manifest.in_dir(path).names() {
            take(held, eraser, journal, &inner, &data, &path.join(child))?;
        }
    }
    Ok(())
}

/// Deletes what stands at `path` below `dir` if it is the journal's; enters it where it is a
/// directory that was there before us.
fn delete_here(eraser: &Eraser, journal: &Replay, dir: &Dir, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    let Some(stat) = dir.lstat(name)? else {
        return Ok(());
    };
    if journal.made(path, &stat) {
        return eraser.erase(dir, path);
    }
    if durable::is_dir(&stat) && !is_closed(dir, &stat) {
        let inner = dir.open_dir(name)?;
        for child in journal.manifest.in_dir(path).names() {
            delete_here(eraser, journal, &inner, &path.join(child))?;
        }
    }
    Ok(())
}

/// Moves back what the journal does not name in `data`, the trash's image of the repository.
fn give_back(held: &Held, journal: &Replay, root: &Dir, data: &Dir, link: &Link) -> Result<()> {
    let mut renewed = Instant::now();
    let foreign = trash::foreign(&journal.manifest, data, || {
        // a tree of a million directories takes longer to walk than the lease lasts
        if renewed.elapsed() > Duration::from_secs(1) {
            renewed = Instant::now();
            let _ = link.renew(); // each step looks whether the lock is still ours
        }
    })?;
    for path in foreign {
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().unwrap_or_default();
        restore(held, root, &data.descend(parent)?, name, parent)?;
    }
    Ok(())
}

/// Is it a directory of a group's repository that the group may not change?
fn is_closed(above: &Dir, stat: &FileStat) -> bool {
    matches!(above.share(), Share::Group(_)) && !above.share().is_open(stat)
}

fn is_fixed(dir: &Dir, name: &OsStr) -> Result<bool> {
    Ok(dir.lstat(name)?.is_some_and(|stat| {
        durable::is_dir(&stat) && is_closed(dir, &stat) && !durable::is_ours(&stat)
    }))
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
            // another member's directory, which only he can move
            Err(Error::Io { .. }) if to.share() != Share::User && is_fixed(from, name)? => {
                to = from.try_clone()?;
                break;
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

/// Deletes every trash in the control directory that nobody is at and whose journal can be read.
pub fn sweep(held: &Held) -> Result<()> {
    for trash in trashes(held)? {
        trash.empty(held.console())?;
    }
    Ok(())
}
