//! The end of a repository that nobody holds, for whichever reason.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::adopt;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::repository::journal::Journal;
use crate::repository::past::{self, Deletion};
use crate::repository::repofile::{Repofile, State};
use crate::repository::survey::{self, View};
use crate::repository::{Held, Link, Repository, Waiting, layout};
use crate::signal;
use crate::teardown::{self, Trash};

/// Why data go for which somebody else will have the room.
pub(super) const EVICTED: &str = "it is evicted to make room";
/// Why data go that somebody names.
pub(super) const CLEARED: &str = "`--clear`";

/// Commits that nobody believes the data any more (I7). `archives` are the names of files that
/// tell what to delete where no journal does. What the repository has been good for is added to
/// the past. False: a reference broke the link lock, and the caller begins again from the file.
pub(super) fn withdraw_claim(
    held: &Held,
    root: &Dir,
    link: &Link,
    mut repofile: Repofile,
    archives: &[OsString],
    deletion: Deletion,
) -> Result<bool> {
    let deletion = match repofile.state {
        State::Ok => deletion,
        _ => Deletion::Wanted,
    };
    let counts = repofile.sc.counts;
    if repofile.state != repofile.sc.state {
        repofile.disown();
    }
    if repofile.state == State::Ok || repofile.sc.entries.is_some() {
        adopt::adopt(held, root, &repofile, archives)?;
    }
    repofile.state = State::Unknown;
    repofile.writer = None;
    repofile.sc.signature = None;
    repofile.sc.kept_until_unix_s = None;
    let withdrawn = match link.try_commit(&repofile) {
        // A full disk must not keep us from making room; no repofile at all says as much as
        // UNKNOWN without a holder.
        Err(error) if error.is_full() => {
            let removed = link.remove()?;
            link.forget_over(&repofile);
            Ok(removed)
        }
        committed => committed,
    };
    if let Ok(true) = withdrawn {
        past::add(held, &counts, deletion);
    }
    withdrawn
}

/// What became of a repository that was to go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Under the lock there was a reason to leave it.
    Stays,
    Gone,
}

/// Why a repository goes; `None`: it stays. Asked without the lock, and again under it.
pub(super) type Judge<'a> = &'a dyn Fn(&View) -> Option<String>;

/// Tears `repository` down if `judge` says so under its lock, and `force` or nobody holds it.
///
/// # Errors
/// [`Error::Timeout`]: somebody is at work there.
pub(super) fn end(
    repository: &Repository,
    waiting: &Waiting,
    force: bool,
    judge: Judge,
) -> Result<End> {
    // Without a control directory there is no lock yet to be taken.
    let ended = repository.held(true, waiting, |held| {
        let ended = end_held(held, force, judge);
        match &ended {
            Ok(Some(_)) | Err(Error::LockLost { .. }) => {}
            _ => held.vanish_if_unused()?,
        }
        ended
    });
    match ended?.expect("made, not looked for") {
        Some(trashes) => {
            // there may be more to do after this one, which a signal ends
            let interrupted = signal::check();
            empty(repository, trashes, waiting)?;
            interrupted.map(|()| End::Gone)
        }
        None => Ok(End::Stays),
    }
}

/// Deletes without the lock what a teardown has left to be deleted so.
pub(super) fn empty(repository: &Repository, trashes: Vec<Trash>, waiting: &Waiting) -> Result<()> {
    if trashes.is_empty() {
        return Ok(());
    }
    for trash in trashes {
        trash.empty(waiting.console)?;
    }
    teardown::tidy(repository, waiting.patience, waiting.console)
}

/// The same for one of many: what cannot be deleted keeps nothing else from being deleted.
pub(super) fn end_one(repository: &Repository, waiting: &Waiting, judge: Judge) -> Result<End> {
    match end(repository, waiting, false, judge) {
        Err(error @ Error::Interrupted { .. }) => Err(error),
        Err(Error::Timeout { .. }) => {
            waiting.console.detail(format_args!(
                "`{}` is passed over: another sc is at work there",
                repository.location().display()
            ));
            Ok(End::Stays)
        }
        Err(error) => {
            waiting.console.warn(error);
            Ok(End::Stays)
        }
        end => end,
    }
}

/// What is to be deleted without the lock; `None`: it stays.
fn end_held(held: &Held, force: bool, judge: Judge) -> Result<Option<Vec<Trash>>> {
    let location = held.repository.location();
    if held.is_guest() {
        let remedy = "let its owner or root delete it";
        return Err(held.not_for_guests("only he can delete it", remedy));
    }
    let mut has_begun = false;
    loop {
        let Some(root) = held.root()? else {
            let view = survey::look(held.repository)?;
            if !has_begun && view.is_none_or(|view| judge(&view).is_none()) {
                return Ok(None);
            }
            sweep_alone(held)?;
            return Ok(Some(Vec::new()));
        };
        let link = match held.link(&root) {
            // the last reference has just removed the directory
            Err(Error::Io { .. }) if !held.is_root(&root)? => continue,
            link => link?,
        };
        let mut repofile = link.read()?;
        if !force && repofile.living_writer(Some(held.lock_inode())).is_some() {
            return Ok(None);
        }
        let view = survey::look(held.repository)?;
        let dropped = repofile.reap(&held.control)?;
        let view = match view {
            Some(view) if force || view.holders == 0 && repofile.holds() == 0 => view,
            _ if !dropped.is_empty() && !link.try_commit(&repofile)? => continue,
            _ => return Ok(None),
        };
        let reason = match has_begun {
            true => None,
            false => match judge(&view) {
                Some(reason) => Some(reason),
                None => {
                    // those who died had wanted it kept
                    repofile.sc.kept_until_unix_s = view.kept_until_unix_s();
                    if !dropped.is_empty() && !link.try_commit(&repofile)? {
                        continue;
                    }
                    return Ok(None);
                }
            },
        };
        let deletion = match reason.as_deref() {
            Some(EVICTED) => Deletion::Evicted,
            Some(CLEARED) => Deletion::Wanted,
            _ => Deletion::Unkept,
        };
        if let Some(reason) = reason {
            held.console().detail(format_args!(
                "`{}` is deleted: {reason}",
                location.display()
            ));
        }
        repofile.readers.clear();
        repofile.sc.holders.clear();
        repofile.guests.clear();
        if repofile.exists && !withdraw_claim(held, &root, &link, repofile, &[], deletion)? {
            continue;
        }
        if Journal::read_head(&held.control)?.is_none() {
            // killed while it wrote the first line: it names nothing
            held.control.unlink(OsStr::new(layout::JOURNAL))?;
        }
        has_begun = true;
        if let Some(trashes) = teardown::run(held, &root, link)? {
            return Ok(Some(trashes));
        }
    }
}

/// Deletes the trash of which no journal tells what may be deleted.
pub(super) fn discard(held: &Held) -> Result<()> {
    for name in held.control.names()? {
        if !name.as_bytes().starts_with(layout::TRASH.as_bytes()) {
            continue;
        }
        if let Some(trash) = held.control.find_dir(&name)?
            && Journal::read_head(&trash)?.is_none()
        {
            trash.clear()?;
            held.control.rmdir(&name)?;
        }
    }
    Ok(())
}

/// What a control directory holds whose repository is gone.
fn sweep_alone(held: &Held) -> Result<()> {
    held.clear_staging()?;
    teardown::sweep(held)?;
    held.control.unlink(OsStr::new(layout::JOURNAL))?;
    held.vanish()
}
