//! The load as the repofile tells it: a provisional holder and IN_PROGRESS before, OK or BROKEN
//! after, and what to do about references that were at work meanwhile.

use super::verdict::Verdict;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::load::{self, Load, Published};
use crate::plan::Plan;
use crate::process::{self, Identity};
use crate::repository::holder::Holder;
use crate::repository::repofile::{FORMAT, Failure, Loader, Repofile, Sc, State};
use crate::repository::{Change, Held};
use crate::request::{Request, Terms};
use crate::share::Share;
use crate::teardown;

/// A reference that tears down under us is met so often; more than that is no accident.
const MOST_DELETIONS: u32 = 5;

/// Loads, with a provisional holder in `readers` for references to see, and commits how it ended.
/// What a reference deletes meanwhile, which knows nothing of our lock, is loaded again.
pub(super) fn load_and_register(
    held: &Held,
    root: &Dir,
    request: &Request,
    plan: &Plan,
    repofile: Repofile,
    holder: &Holder,
    made: bool,
) -> Result<Verdict> {
    let made = made || !repofile.exists && held.is_only_claims(root)?;
    let (mut root, mut made, mut repofile) = (root.try_clone()?, made, repofile);
    for deletions in 1.. {
        let loaded = load_once(held, &root, request, plan, &mut repofile, holder, made);
        let gone = match loaded {
            Ok(Outcome::Deleted(entry)) => entry,
            Ok(Outcome::Verdict(verdict)) => return Ok(verdict),
            Err(Error::Io { .. }) if !held.is_root(&root)? => "repofile".into(),
            Err(error @ Error::LockLost { .. }) => return Err(error),
            // the data that was here before is just being deleted
            Err(error) if error.is_full() && teardown::wait_for_room(held)? => continue,
            Err(error) => {
                return match give_up(held, &root, plan, holder, &error) {
                    Some(verdict) => Ok(verdict),
                    None => Err(error),
                };
            }
        };
        let deleted = Error::Damaged {
            location: held.repository.location(),
            entry: gone.clone(),
            holders: "its loader".into(),
        };
        if deletions >= MOST_DELETIONS {
            give_up(held, &root, plan, holder, &deleted);
            return Err(deleted);
        }
        held.console().warn(format_args!(
            "another program deleted `{gone}` in `{}` during the load; loading again",
            root.path().display()
        ));
        let remade;
        (root, remade) = held.make_root()?;
        made |= remade;
    }
    unreachable!("the loop above ends by returning")
}

enum Outcome {
    Verdict(Verdict),
    /// This entry was published and is gone.
    Deleted(String),
}

/// One load; `repofile` is what was read last, and then what was committed at its begin.
fn load_once(
    held: &Held,
    root: &Dir,
    request: &Request,
    plan: &Plan,
    repofile: &mut Repofile,
    holder: &Holder,
    made: bool,
) -> Result<Outcome> {
    let Some(prepared) = load::prepare(held, root, repofile, plan, made)? else {
        return Ok(Outcome::Verdict(Verdict::Again));
    };
    held.tag();
    if held.control.share() == Share::All {
        held.holders()?;
    }
    let generation = prepared.generation.clone();
    let begun = held.update(root, |repofile| {
        if let Some(pid) = repofile.living_writer(Some(held.lock_inode())) {
            // it came between our look and now
            return Ok(Change::None(Err(pid)));
        }
        repofile.reap(&held.control)?;
        let me = held.of_this_node(Identity::of(std::process::id() as i32));
        repofile.state = State::InProgress;
        repofile.writer = Some(i64::from(me.pid));
        let sc = &mut repofile.sc;
        describe(sc, held, &generation, plan);
        (sc.loaded_unix_s, sc.expires_unix_s, sc.size_bytes) = (None, None, None);
        (sc.keep_s, sc.kept_until_unix_s) = (0, None);
        sc.used_unix_s = Some(process::unix_time_s());
        (sc.entries, sc.entry_count) = (None, 0);
        sc.failure = None;
        sc.loader = Some(Loader {
            process: me,
            since_boot_ns: process::since_boot_ns(),
            lock_dev: held.lock_inode().0,
            lock_ino: held.lock_inode().1,
        });
        repofile.add(Holder {
            provisional: true,
            ..holder.clone()
        });
        repofile.sc.state = repofile.state;
        repofile.sc.format = FORMAT;
        Ok(Change::Commit(Ok(repofile.clone())))
    })?;
    match begun {
        Ok(begun) => *repofile = begun,
        Err(pid) => return Ok(Outcome::Verdict(Verdict::ReferenceLoads(pid))),
    }
    let _guards = (root.flock_shared(), held.control.flock_shared());
    let published = Load::new(held, root, plan, &request.settings, prepared)
        .read_only(request.read_only)
        .run()?;
    let accepted = accept(held, root, request, holder, &generation, plan, &published)?;
    if let Outcome::Verdict(Verdict::Joined) = accepted
        && let Err(error) = held.clear_staging()
    {
        // The use stands: what is left there is the next one's to clear.
        held.console().detail(error);
    }
    Ok(accepted)
}

/// What a load makes of the repository.
fn describe(sc: &mut Sc, held: &Held, generation: &str, plan: &Plan) {
    sc.location = Some(held.repository.absolute_location());
    sc.generation = Some(generation.to_owned());
    sc.signature = Some(plan.signature.clone());
    sc.definition = Some(plan.definition.clone());
    sc.boot_id = process::boot_id();
}

/// Has nobody put himself in our place? A reference does that where it cannot see our pid.
fn is_writer_us(repofile: &Repofile) -> bool {
    let us = i64::from(std::process::id());
    repofile.writer.is_none_or(|writer| writer == us)
}

/// Looks at what was published, under the link lock, and commits OK (I5).
fn accept(
    held: &Held,
    root: &Dir,
    request: &Request,
    holder: &Holder,
    generation: &str,
    plan: &Plan,
    published: &Published,
) -> Result<Outcome> {
    held.update(root, |repofile| {
        if let Some(pid) = repofile.living_writer(Some(held.lock_inode())) {
            // It took us for dead, and loads into the same directory: what it leaves is its own.
            drop_holder(repofile, holder);
            return Ok(Change::Commit(Outcome::Verdict(Verdict::ReferenceLoads(
                pid,
            ))));
        }
        if !is_writer_us(repofile) {
            // it may live where we cannot see it
            return Err(Error::LockLost {
                path: root.path_of(held.repository.repofile()),
            });
        }
        if let Some(entry) = published.missing(root)? {
            let entry = entry.display().to_string();
            return Ok(Change::None(Outcome::Deleted(entry)));
        }
        repofile.state = State::Ok;
        repofile.writer = None;
        repofile.sc.loader = None;
        // all of it: the file may have been taken away meanwhile
        describe(&mut repofile.sc, held, generation, plan);
        repofile.sc.loaded_unix_s = Some(process::unix_time_s());
        repofile.sc.size_bytes = Some(published.size_bytes);
        // new data, new terms
        (repofile.sc.keep_s, repofile.sc.expires_unix_s) = (0, None);
        agree(&mut repofile.sc, &request.terms);
        (repofile.sc.entries, repofile.sc.entry_count) = published.entries();
        match repofile.position(holder) {
            Some(at) => {
                let own = &mut repofile.sc.holders[at];
                own.provisional = false;
                own.renew();
            }
            // a reference reaped it
            None => repofile.add(holder.clone()),
        }
        Ok(Change::Commit(Outcome::Verdict(Verdict::Joined)))
    })
}

/// Somebody uses the data, on these terms.
pub(super) fn agree(sc: &mut Sc, terms: &Terms) {
    sc.kept_until_unix_s = None;
    sc.used_unix_s = Some(process::unix_time_s());
    sc.keep_s = terms.keep_s.unwrap_or(sc.keep_s);
    if let (Some(expires), Some(loaded)) = (terms.expires, sc.loaded_unix_s) {
        sc.expires_unix_s = Some(expires.at(loaded));
    }
}

fn drop_holder(repofile: &mut Repofile, holder: &Holder) {
    if let Some(at) = repofile.position(holder) {
        repofile.remove(at);
    }
}

/// Records that the load failed: BROKEN with the error; UNKNOWN after a signal. If a reference
/// took the load over meanwhile, nothing is recorded: what it does counts now, and is returned.
fn give_up(
    held: &Held,
    root: &Dir,
    plan: &Plan,
    holder: &Holder,
    error: &Error,
) -> Option<Verdict> {
    let recorded = held.update(root, |repofile| {
        let interrupted = matches!(error, Error::Interrupted { .. });
        let other = match repofile.living_writer(Some(held.lock_inode())) {
            Some(pid) => Some(Verdict::ReferenceLoads(pid)),
            None if repofile.writer.is_none() && repofile.state == State::Ok => {
                Some(Verdict::Again)
            }
            None => None,
        };
        if other.is_none() && !is_writer_us(repofile) {
            return Ok(Change::None(None));
        }
        drop_holder(repofile, holder);
        if other.is_some() {
            return Ok(Change::Commit(other.filter(|_| !interrupted)));
        }
        repofile.writer = None;
        repofile.sc.loader = None;
        repofile.state = match interrupted {
            true => State::Unknown,
            false => State::Broken,
        };
        repofile.sc.failure = (repofile.state == State::Broken).then(|| Failure {
            message: error.to_string(),
            exit_status: error.exit_status(),
            ended_boot_ns: process::since_boot_ns(),
            ended_unix_s: process::unix_time_s(),
            boot_id: process::boot_id(),
            signature: plan.signature.clone(),
            attempt: plan.attempt.clone(),
        });
        Ok(Change::Commit(None))
    });
    recorded.unwrap_or_else(|second| {
        // the next sc finds a writer that is dead, and goes on from there
        held.console()
            .detail(format_args!("the failure could not be recorded: {second}"));
        None
    })
}
