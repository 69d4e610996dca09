//! What a repofile means for somebody who wants to use the repository: join, load, wait, or go.

use std::ffi::OsStr;

use super::loading::agree;
use crate::adopt;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::load;
use crate::plan::Plan;
use crate::process;
use crate::repository::counts::{self, Why};
use crate::repository::holder::Holder;
use crate::repository::repofile::{Repofile, State};
use crate::repository::{Change, Held, layout};
use crate::request::Terms;
use crate::verify::Difference;

/// What the repofile says is to be done.
pub(super) enum Verdict {
    Joined,
    Load {
        repofile: Box<Repofile>,
        why: Why,
        /// What is there may stay until its successor is.
        beside: bool,
    },
    ReferenceLoads(i64),
    Again,
    /// The data are of another boot: they count once they are proved.
    Prove(Box<Repofile>),
}

/// What somebody wants of the repository, and since when.
pub(super) struct Wish<'a> {
    pub plan: &'a Plan<'a>,
    pub terms: &'a Terms,
    pub holder: &'a Holder,
    /// Can what has expired wait for its successor?
    pub beside: bool,
    pub began_boot_ns: u64,
    pub began_unix_s: u64,
    /// What came of it when the data of this generation, of another boot, were proved.
    pub proved: Option<Proved>,
}

/// Data of another boot were read to the last byte.
#[derive(Debug, Clone)]
pub(super) struct Proved {
    pub generation: Option<String>,
    /// What is wrong with them.
    pub wrong: Option<Difference>,
}

pub(super) fn decide(
    held: &Held,
    root: &Dir,
    repofile: &mut Repofile,
    generation: Option<&str>,
    wish: &Wish,
) -> Result<Change<Verdict>> {
    let Wish { plan, holder, .. } = *wish;
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
    if let Some(pid) = repofile.living_writer(Some(held.lock_inode())) {
        return Ok(Change::None(Verdict::ReferenceLoads(pid)));
    }
    for name in repofile.reap(&held.control)? {
        held.console()
            .detail(format_args!("{name} is dead and holds no more"));
    }
    let ours = repofile.is_of(generation);
    let same = repofile.sc.signature.as_deref() == Some(&plan.signature);
    let loaded = repofile.state == State::Ok && repofile.writer.is_none();
    let holders = repofile.holds();
    let own = repofile.position(holder);
    // Our word on what is loaded stands without the journal too, which a cleaner may have taken.
    let known = ours || repofile.is_known();
    let damaged = |repofile: &Repofile, entry: String| Error::Damaged {
        location: held.repository.location(),
        entry,
        holders: repofile.holders(),
    };

    let reload = |repofile: &mut Repofile, why: Why| {
        // I7: nobody may believe the data while it is taken away
        repofile.state = State::Unknown;
        repofile.writer = None;
        repofile.sc.signature = None;
        let verdict = Verdict::Load {
            repofile: Box::new(repofile.clone()),
            why,
            beside: false,
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
        let old = repofile.sc.definition.clone();
        let why = match old.as_ref() == Some(&plan.definition) {
            // user, password and query of a URL
            true => Why::new("it came from another source, by what is not shown of its URL"),
            false => Why {
                instead_of: old,
                ..Why::new("it holds something else that nobody uses")
            },
        };
        return reload(repofile, why);
    }
    // A reader of the reference's may have found the data after the boot, and read them since.
    let mut is_taken_over = false;
    if loaded && ours && repofile.sc.boot_id != process::boot_id() && repofile.sc.holders.is_empty()
    {
        let proved = wish.proved.as_ref();
        let proved = proved.filter(|proved| proved.generation == repofile.sc.generation);
        match proved.map(|proved| &proved.wrong) {
            // what is to be loaded anew in any case is not read first
            None if outdated(held, repofile, known, wish).is_none() => {
                // whoever was dropped above need not be dropped again
                return Ok(Change::Commit(Verdict::Prove(Box::new(repofile.clone()))));
            }
            None => {}
            Some(None) => {
                repofile.sc.boot_id = process::boot_id();
                is_taken_over = true;
            }
            Some(Some(wrong)) if holders > 0 => {
                return Err(damaged(repofile, wrong.path.display().to_string()));
            }
            Some(Some(Difference { path, reason })) => {
                let path = path.display();
                let why = format!("it was loaded before the last boot, and `{path}`: {reason}");
                return reload(repofile, Why::new(why));
            }
        }
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
            return reload(repofile, Why::new(format!("`{entry}` is gone")));
        }
        if let Some(reason) = outdated(held, repofile, known, wish) {
            if ours && let Some(relayed) = relayed(repofile, wish) {
                return Err(relayed);
            }
            if ours && wish.beside {
                return Ok(Change::None(Verdict::Load {
                    repofile: Box::new(repofile.clone()),
                    why: Why::new(reason),
                    beside: true,
                }));
            }
            if !known && !held.is_guest() {
                // what the reference brought would be in our own way
                let archives: Vec<_> = plan.files().map(OsStr::to_owned).collect();
                adopt::adopt(held, root, repofile, &archives)?;
            }
            return reload(repofile, Why::new(reason));
        }
        let own = own.map(|at| &mut repofile.sc.holders[at]);
        let has_own = own.is_some();
        let mut is_as_before = *wish.terms == Terms::default();
        if let Some(own) = own {
            is_as_before &= own.lease.is_none() && holder.lease.is_none();
            own.lease = holder.lease.clone();
            own.renew();
        }
        if has_own && is_as_before && !is_taken_over {
            return Ok(Change::None(Verdict::Joined));
        }
        if !known {
            repofile.disown();
        }
        agree(&mut repofile.sc, wish.terms);
        if !has_own {
            let brought = repofile
                .sc
                .load
                .as_ref()
                .and_then(|load| load.brought_bytes);
            repofile.sc.counts.hit(brought.unwrap_or(0));
            repofile.add(holder.clone());
            if let Some(added) = repofile.sc.holders.last_mut() {
                added.renew();
            }
        }
        return Ok(Change::Commit(Verdict::Joined)); // the instant the use exists
    }
    if ours
        && repofile.state == State::Broken
        && let Some(relayed) = relayed(repofile, wish)
    {
        return Err(relayed);
    }
    let reason = match (repofile.exists, repofile.state) {
        (false, _) => counts::FIRST,
        (_, State::InProgress) => "its loader died",
        (_, State::Broken) => "the last load failed",
        (_, State::Unknown) => "its last load was not finished",
        (_, State::Ok) => "its writer died",
    };
    let verdict = Verdict::Load {
        repofile: Box::new(repofile.clone()),
        why: Why::new(reason),
        beside: false,
    };
    Ok(Change::None(verdict))
}

/// The failure of the very load that was waited for.
fn relayed(repofile: &Repofile, wish: &Wish) -> Option<Error> {
    let failure = repofile.sc.failure.as_ref()?;
    let is_ours = failure.ended_boot_ns > wish.began_boot_ns
        && failure.boot_id == process::boot_id()
        && failure.signature == wish.plan.signature
        && failure.attempt == wish.plan.attempt;
    is_ours.then(|| Error::Relayed {
        message: failure.message.clone(),
        status: failure.exit_status,
    })
}

/// Why whole data are loaded anew all the same, if nobody holds them.
fn outdated(held: &Held, repofile: &Repofile, known: bool, wish: &Wish) -> Option<String> {
    let sc = &repofile.sc;
    let loaded = sc.loaded_unix_s.filter(|_| known);
    let is_held = repofile.holds() > 0;
    // what was loaded while we waited is as fresh as it can be
    if wish.terms.refresh && loaded.is_none_or(|loaded| loaded < wish.began_unix_s) {
        if !is_held {
            return Some("`--refresh`".into());
        }
        held.console().warn(format_args!(
            "`{}` is not loaded anew (`--refresh`): it is held by {}",
            held.repository.location().display(),
            repofile.holders()
        ));
    }
    let expires = match (wish.terms.expires, loaded) {
        (Some(expires), Some(loaded)) => Some(expires.at(loaded)),
        _ => sc.expires_unix_s.filter(|_| known),
    };
    let has_expired = expires.is_some_and(|expires| expires <= process::unix_time_s());
    (has_expired && !is_held).then(|| "it has expired".into())
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
