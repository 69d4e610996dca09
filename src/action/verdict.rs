//! What a repofile means for somebody who wants to use the repository: join, load, wait, or go.

use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::load;
use crate::plan::Plan;
use crate::process::{self, Life};
use crate::repository::holder::Holder;
use crate::repository::repofile::{Repofile, State};
use crate::repository::{Change, Held, layout};

/// What the repofile says is to be done.
pub(super) enum Verdict {
    Joined,
    Load {
        repofile: Box<Repofile>,
        reason: String,
    },
    ReferenceLoads(i64),
    Again,
}

pub(super) fn decide(
    held: &Held,
    root: &Dir,
    repofile: &mut Repofile,
    plan: &Plan,
    generation: Option<&str>,
    began_boot_ns: u64,
    holder: &Holder,
) -> Result<Change<Verdict>> {
    if held.repository.inner_repofile().is_none()
        && let Some(location) = &repofile.sc.location
        && *location != held.repository.absolute_location()
    {
        return Err(Error::Foreign {
            path: held.repository.repofile().to_owned(),
            problem: format!(
                "is the repofile of `{}`",
                layout::decode(location).display()
            ),
            remedy: "choose another `--file`".into(),
        });
    }
    if let Some(pid) = living_writer(repofile, Some(held)) {
        return Ok(Change::None(Verdict::ReferenceLoads(pid)));
    }
    for name in repofile.reap(&held.control)? {
        held.console()
            .detail(format_args!("{name} is dead and holds no more"));
    }
    let ours = repofile.is_of(generation);
    let same = repofile.sc.signature.as_deref() == Some(&plan.signature);
    let loaded = repofile.state == State::Ok && repofile.writer.is_none();
    let holders = repofile.readers.len();
    let own = repofile.position(holder);
    // Our word on what is loaded stands without the journal too, which a cleaner may have taken.
    let known = ours || repofile.sc.state == State::Ok && repofile.sc.signature.is_some();
    let damaged = |repofile: &Repofile, entry: String| Error::Damaged {
        location: held.repository.location(),
        entry,
        holders: repofile.holders(),
    };

    let reload = |repofile: &mut Repofile, reason: String| {
        // I7: nobody may believe the data while it is taken away
        repofile.state = State::Unknown;
        repofile.writer = None;
        repofile.sc.signature = None;
        let verdict = Verdict::Load {
            repofile: Box::new(repofile.clone()),
            reason,
        };
        Ok(Change::Commit(verdict))
    };
    if loaded && known && !same {
        if holders > 0 {
            return Err(Error::OtherDefinition {
                location: held.repository.location(),
                asked: plan.definition.clone(),
                loaded: repofile.sc.definition.clone().unwrap_or_default(),
                holders: repofile.holders(),
            });
        }
        return reload(repofile, "it holds something else that nobody uses".into());
    }
    if loaded && ours && repofile.sc.boot_id != process::boot_id() && holders == 0 {
        return reload(repofile, "it was loaded before the last boot".into());
    }
    if loaded {
        let mut gone = match known {
            true => missing(root, repofile)?,
            false => plan.missing(root)?,
        };
        if gone.is_none() && ours && held.has_broken() {
            gone = load::missing_below(held, root, repofile)?;
        }
        if let Some(entry) = gone {
            if holders > usize::from(own.is_some()) {
                return Err(damaged(repofile, entry));
            }
            if let Some(own) = own {
                repofile.remove(own);
            }
            return reload(repofile, format!("`{entry}` is gone"));
        }
        if own.is_some() {
            return Ok(Change::None(Verdict::Joined));
        }
        if !known {
            repofile.disown();
        }
        repofile.add(holder.clone());
        return Ok(Change::Commit(Verdict::Joined)); // the instant the use exists
    }
    if let Some(failure) = &repofile.sc.failure
        && ours
        && repofile.state == State::Broken
        && failure.ended_boot_ns > began_boot_ns
        && failure.boot_id == process::boot_id()
        && failure.signature == plan.signature
        && failure.attempt == plan.attempt
    {
        return Err(Error::Relayed {
            message: failure.message.clone(),
            status: failure.exit_status,
        });
    }
    let reason = match (repofile.exists, repofile.state) {
        (false, _) => "it is not there yet".into(),
        (_, State::InProgress) => "its loader died".into(),
        (_, State::Broken) => "the last load failed".into(),
        (_, State::Unknown) => "its last load was not finished".into(),
        (_, State::Ok) => "its writer died".into(),
    };
    let verdict = Verdict::Load {
        repofile: Box::new(repofile.clone()),
        reason,
    };
    Ok(Change::None(verdict))
}

/// The pid of a loader that is at work though the lock is ours: a reference, or an sc whose lock
/// file was taken away.
pub fn living_writer(repofile: &Repofile, held: Option<&Held>) -> Option<i64> {
    let pid = repofile.writer?;
    if pid == i64::from(std::process::id()) {
        return None;
    }
    let dead = match &repofile.sc.loader {
        Some(loader) if i64::from(loader.process.pid) == pid => {
            held.is_some_and(|held| held.lock_inode() == (loader.lock_dev, loader.lock_ino))
                || loader.process.life() == Life::Dead
        }
        _ => process::is_number_dead(pid),
    };
    (!dead).then_some(pid)
}

/// The first published entry that is gone.
fn missing(root: &Dir, repofile: &Repofile) -> Result<Option<String>> {
    if repofile.sc.entries.is_none() && repofile.sc.entry_count > 0 {
        let there = root.names()?.len() as u64;
        let gone = there < repofile.sc.entry_count;
        return Ok(gone.then(|| format!("some of {} entries", repofile.sc.entry_count)));
    }
    for entry in repofile.entries() {
        if root.lstat(entry.as_os_str())?.is_none() {
            return Ok(Some(entry.display().to_string()));
        }
    }
    Ok(None)
}
