//! `--unuse`: unregister a use; the last one tears down.

use std::ffi::{OsStr, OsString};

use super::verdict;
use crate::adopt;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::repository::holder::{self, Hold, Holder};
use crate::repository::repofile::{Repofile, State};
use crate::repository::{Held, Repository, Waiting};
use crate::request::Request;
use crate::signal::Patience;
use crate::teardown::{self, Trash};

/// Unregisters a process: the one of `--pid`, or our parent.
///
/// # Errors
/// [`Error::NotHolder`]
pub fn by_process(request: &Request, patience: &Patience, console: &Console) -> Result<()> {
    // An epilog may give up the use of a job that has ended: its pid need not live.
    let pid = request
        .holder
        .pid
        .unwrap_or_else(|| nix::unistd::getppid().as_raw());
    let pid = if pid == 0 {
        std::process::id() as i32
    } else {
        pid
    };
    let holder = Holder::process(pid, request.holder.id.clone());
    // No waiting for somebody else's load, just to be told no. A reference writes in place: a cut
    // file may be whole again in a moment, and only the lock tells.
    let holds = |repofile: &Repofile| repofile.is_cut || find(repofile, &holder).is_some();
    let (mut there, mut problem) = (None, None);
    // A copy in an earlier base, left from before, must not hide the one that is held.
    for repository in request.repository.candidates() {
        match repository.peek() {
            Ok(Some(repofile)) if holds(&repofile) => {
                return leave(&repository, &holder, &archives(request), patience, console);
            }
            Ok(Some(_)) => there = there.or(Some(repository)),
            Ok(None) => {}
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    let location = there.or_else(|| request.repository.candidates().next());
    Err(problem.unwrap_or_else(|| Error::NotHolder {
        location: location
            .map(|repository| repository.location())
            .unwrap_or_default(),
        holder: holder.to_string(),
    }))
}

/// The files that the stacks on the command line bring: where to look for data whose journal is
/// lost, or never was.
fn archives(request: &Request) -> Vec<OsString> {
    let loaders = request
        .stacks
        .iter()
        .filter_map(|stack| stack.loader()?.file_name());
    loaders.map(OsStr::to_owned).collect()
}

/// Takes `holder` out, and tears down if it was the last. `archives` are the names of the files
/// that the loaders on the command line bring: what is deleted by where there is no journal.
///
/// # Errors
/// [`Error::NotHolder`]
pub fn leave(
    repository: &Repository,
    holder: &Holder,
    archives: &[OsString],
    patience: &Patience,
    console: &Console,
) -> Result<()> {
    let waiting = Waiting { console, patience };
    let left = repository.held(true, &waiting, |held| release(held, holder, archives))?;
    let trashes = left.expect("made, not looked for")?;
    if trashes.is_empty() {
        return Ok(());
    }
    for trash in trashes {
        trash.empty(console)?;
    }
    teardown::tidy(repository, patience, console)
}

/// Returns what is to be deleted without the lock.
fn release(held: &Held, holder: &Holder, archives: &[OsString]) -> Result<Result<Vec<Trash>>> {
    let location = held.repository.location();
    let not_holder = Err(Error::NotHolder {
        location,
        holder: holder.to_string(),
    });
    // a teardown that a reference broke into is begun again, unless that one uses it now
    let mut has_left = false;
    loop {
        let Some(root) = held.root()? else {
            held.vanish_if_unused()?;
            return Ok(if has_left { Ok(Vec::new()) } else { not_holder });
        };
        let link = match held.link(&root) {
            // the last reference has just removed the directory
            Err(Error::Io { .. }) if !held.is_root(&root)? => continue,
            link => link?,
        };
        let mut repofile = link.read()?;
        let mut over = None;
        match find(&repofile, holder) {
            _ if has_left => {}
            None => {
                drop(link);
                held.vanish_if_unused()?;
                return Ok(not_holder);
            }
            Some(Found::Ours(at)) => {
                if let Hold::Lock { file, .. } = repofile.remove(at).hold {
                    over = Some(file);
                }
            }
            Some(Found::Reference(at)) => drop(repofile.readers.remove(at)),
        }
        for name in repofile.reap(&held.control)? {
            held.console()
                .detail(format_args!("{name} is dead and holds no more"));
        }
        // A dead writer is nobody: the use that was killed is given up by its --unuse.
        let is_last =
            repofile.readers.is_empty() && verdict::living_writer(&repofile, Some(held)).is_none();
        if has_left && !is_last {
            return Ok(Ok(Vec::new()));
        }
        if is_last {
            if repofile.state != repofile.sc.state {
                repofile.disown();
            }
            if repofile.state == State::Ok || repofile.sc.entries.is_some() {
                adopt::adopt(held, &root, &repofile, archives)?;
            }
            repofile.state = State::Unknown;
            repofile.writer = None;
            repofile.sc.signature = None;
        }
        match link.try_commit(&repofile) {
            Ok(true) => {}
            Ok(false) => continue,
            // A full disk must not keep the last one from making room; no repofile at all says
            // as much as UNKNOWN without a holder.
            Err(error) if is_last && error.is_full() => {
                if !link.remove()? {
                    continue;
                }
            }
            Err(error) => return Err(error),
        }
        // Not before: of a recorded hold whose file is gone, the end is hard to prove (I6).
        if let Some(file) = over {
            holder::forget_lock(&held.control, &file)?;
        }
        if is_last {
            held.console().detail(format_args!(
                "`{}`: the last has left",
                held.repository.location().display()
            ));
            has_left = true;
            match teardown::run(held, &root, link)? {
                Some(trashes) => return Ok(Ok(trashes)),
                None => continue,
            }
        }
        return Ok(Ok(Vec::new()));
    }
}

enum Found {
    Ours(usize),
    /// Only a number in `readers`: registered by the reference.
    Reference(usize),
}

fn find(repofile: &Repofile, holder: &Holder) -> Option<Found> {
    if let Some(at) = repofile.position(holder) {
        return Some(Found::Ours(at));
    }
    let number = i64::from(holder.reader());
    let is_theirs =
        matches!(holder.hold, Hold::Process(_)) && repofile.reference_readers().contains(&number);
    is_theirs
        .then(|| repofile.readers.iter().position(|&reader| reader == number))
        .flatten()
        .map(Found::Reference)
}
