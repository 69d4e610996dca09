//! `--unuse`: unregister a use; the last one tears down, or has the data kept.

use std::ffi::{OsStr, OsString};

use super::{ending, room, who};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::process;
use crate::repository::guest;
use crate::repository::holder::{Hold, Holder};
use crate::repository::past::Deletion;
use crate::repository::repofile::{Repofile, State};
use crate::repository::{Held, Repository, Waiting};
use crate::request::Request;
use crate::signal::Patience;
use crate::teardown::{self, Trash};
use crate::units::{self, Bytes};

/// Unregisters whoever was named, or our parent.
///
/// # Errors
/// [`Error::NotHolder`]
pub fn by_caller(request: &Request, patience: &Patience, console: &Console) -> Result<()> {
    let holder = who::goes(request)?;
    // No waiting for somebody else's load, just to be told no. A reference writes in place: a cut
    // file may be whole again in a moment, and only the lock tells.
    let holds = |repofile: &Repofile| repofile.is_cut || find(repofile, &holder).is_some();
    let (mut there, mut problem) = (None, None);
    // A copy in an earlier base, left from before, must not hide the one that is held.
    for repository in request.repository.candidates() {
        let is_guest = || {
            let control = repository.control().ok().flatten();
            control.is_some_and(|control| guest::holds(&control, &holder))
        };
        match repository.peek() {
            Ok(Some(repofile)) if holds(&repofile) || is_guest() => {
                return leave(&repository, &holder, request, patience, console);
            }
            Ok(Some(_)) => there = there.or(Some(repository)),
            Ok(None) => {}
            // one that does not count, while there are others
            Err(Error::NetworkFs { .. }) if request.repository.find().is_ok() => {}
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

/// Takes `holder` out; if it was the last, keeps the data or tears down.
///
/// # Errors
/// [`Error::NotHolder`]
pub fn leave(
    repository: &Repository,
    holder: &Holder,
    request: &Request,
    patience: &Patience,
    console: &Console,
) -> Result<()> {
    let waiting = Waiting { console, patience };
    let left = repository.held(true, &waiting, |held| release(held, holder, request))?;
    let trashes = left.expect("made, not looked for")?;
    ending::empty(repository, trashes, &waiting)?;
    if let Some(max_size) = request.max_size {
        room::trim(request, repository.base(), max_size, console);
    }
    Ok(())
}

/// Returns what is to be deleted without the lock.
fn release(held: &Held, holder: &Holder, request: &Request) -> Result<Result<Vec<Trash>>> {
    let location = held.repository.location();
    let not_holder = Err(Error::NotHolder {
        location,
        holder: holder.to_string(),
    });
    if held.is_guest() {
        return match guest::leave(held, holder)? {
            true => leave_to_owner(held).map(Ok),
            false => Ok(not_holder),
        };
    }
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
        match find(&repofile, holder) {
            _ if has_left => {}
            None => {
                drop(link);
                held.vanish_if_unused()?;
                return Ok(not_holder);
            }
            Some(Found::Ours(at)) => drop(repofile.remove(at)),
            Some(Found::Reference(at)) => drop(repofile.readers.remove(at)),
        }
        for name in repofile.reap(&held.control)? {
            held.console()
                .detail(format_args!("{name} is dead and holds no more"));
        }
        // A dead writer is nobody: the use that was killed is given up by its --unuse.
        let is_last =
            repofile.holds() == 0 && repofile.living_writer(Some(held.lock_inode())).is_none();
        if has_left && !is_last {
            return Ok(Ok(Vec::new()));
        }
        repofile.sc.keep_s = request.terms.keep_s.unwrap_or(repofile.sc.keep_s);
        repofile.sc.used_unix_s = Some(process::unix_time_s());
        if !is_last {
            if !link.try_commit(&repofile)? {
                continue;
            }
            return Ok(Ok(Vec::new()));
        }
        if !has_left && let Some(until) = keep_until(held, &repofile, request) {
            repofile.sc.kept_until_unix_s = Some(until);
            match link.try_commit(&repofile) {
                Ok(true) => {
                    held.console().detail(format_args!(
                        "`{}` is kept until {}",
                        held.repository.location().display(),
                        units::spoken_time(until)
                    ));
                    return Ok(Ok(Vec::new()));
                }
                Ok(false) => continue,
                // who keeps data on a full disk keeps others from their work
                Err(error) if error.is_full() => held
                    .console()
                    .warn(format_args!("{error}; the data are not kept (`--keep`)")),
                Err(error) => return Err(error),
            }
        }
        let archives = archives(request);
        let deletion = Deletion::Unkept;
        if !ending::withdraw_claim(held, &root, &link, repofile, &archives, deletion)? {
            continue;
        }
        held.console().detail(format_args!(
            "`{}`: the last has left",
            held.repository.location().display()
        ));
        has_left = true;
        if let Some(trashes) = teardown::run(held, &root, link)? {
            return Ok(Ok(trashes));
        }
    }
}

/// A guest has left; what becomes of the data is their owner's business.
fn leave_to_owner(held: &Held) -> Result<Vec<Trash>> {
    let repofile = match held.root()? {
        Some(root) => held.read_as_guest(&root)?,
        None => None,
    };
    let is_last = repofile.is_some_and(|repofile| {
        repofile.exists && repofile.living_holders(Some(&held.control)) == 0
    });
    if is_last {
        held.console().detail(format_args!(
            "`{}`: the last has left; its owner, or root, deletes it",
            held.repository.location().display()
        ));
    }
    Ok(Vec::new())
}

/// Until when the data stay that nobody holds any more; `None`: not at all.
fn keep_until(held: &Held, repofile: &Repofile, request: &Request) -> Option<u64> {
    if repofile.sc.keep_s == 0 || repofile.state != State::Ok {
        return None;
    }
    let location = held.repository.location();
    if !repofile.is_known() {
        held.console().warn(format_args!(
            "`{}` is not kept (`--keep`): another program loaded it",
            location.display()
        ));
        return None;
    }
    let size = Bytes(repofile.sc.size_bytes.unwrap_or(0));
    if let Some(max_size) = request.max_size.filter(|max_size| *max_size < size) {
        held.console().detail(format_args!(
            "`{}` is not kept: it has {size}, and no more than {max_size} may be kept \
             (`--max-size`)",
            location.display()
        ));
        return None;
    }
    Some(process::unix_time_s().saturating_add(repofile.sc.keep_s))
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
