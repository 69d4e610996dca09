//! The first step of a load: a journal to go on with.

use std::ffi::OsStr;

use super::is_at_hand;
use crate::adopt;
use crate::durable::{Dir, PRIVATE_DIR};
use crate::error::Result;
use crate::plan::{Plan, Stage};
use crate::process;
use crate::repository::journal::{Depth, Journal, Record, Replay, StageRecord};
use crate::repository::repofile::Repofile;
use crate::repository::{Held, Link, layout};
use crate::stack::Part;
use crate::teardown;

/// Makes the repository's directory, having written down that it is ours. False: somebody else
/// was faster.
pub fn make_root(held: &Held) -> Result<(Dir, bool)> {
    held.may_make_root()?;
    let generation = process::random_name();
    let mut journal = Journal::create(&held.control, &generation, held.repository.repofile())?;
    journal.append(&Record::Root { made: true })?;
    journal.flush()?;
    let (root, made) = held.make_root()?;
    if !made {
        journal.append(&Record::Root { made: false })?;
        journal.flush()?;
    }
    Ok((root, made))
}

/// A journal to load by, and what it says already.
pub struct Prepared {
    pub journal: Journal,
    pub generation: String,
    pub(super) replay: Replay,
    pub(super) beside: bool,
}

/// Step 1. `repofile` is what was read under the link lock a moment ago; it does not say OK.
/// `made`: has this process just made the repository's directory? `None`: a reference broke the link
/// lock; what the repofile says must be asked again.
pub fn prepare(
    held: &Held,
    root: &Dir,
    repofile: &Repofile,
    plan: &Plan,
    made: bool,
) -> Result<Option<Prepared>> {
    let console = held.console();
    if let Some(next) = held.find_next_load()? {
        let head = Journal::read_head(&next)?;
        let is_agreed = head.is_some_and(|head| repofile.is_of(Some(&head.generation)));
        if is_agreed && repofile.sc.boot_id == process::boot_id() {
            let link = held.link(root)?;
            if !succeed(held, root, &link)? {
                return Ok(None);
            }
        }
    }
    let open = Journal::open(&held.control, Depth::Top)?;
    if let Some((mut journal, replay)) = open {
        let at_hand = |(n, record): (usize, &StageRecord)| {
            record.stamp.is_none()
                || plan.stages.get(n).is_none()
                || is_at_hand(held, Some(root), n, record).unwrap_or(false)
        };
        let same = repofile.is_of(Some(&replay.generation))
            && repofile.sc.signature.as_deref() == Some(&plan.signature)
            && replay.boot_id == process::boot_id()
            && !teardown::is_begun(held, &replay.generation)?
            && replay.stages.iter().enumerate().all(at_hand);
        if same {
            if made && !replay.root_made {
                journal.append(&Record::Root { made })?;
                journal.flush()?;
            }
            return Ok(Some(Prepared {
                generation: replay.generation.clone(),
                journal,
                replay,
                beside: false,
            }));
        }
    }
    if repofile.sc.generation.is_some() && repofile.sc.entries.is_some() {
        // what we published and no journal names any more would be in our own way
        adopt::adopt(held, root, repofile, &[])?;
    }
    let old = Journal::read(&held.control, Depth::All)?;
    if old.is_none() && Journal::is_damaged(&held.control)? {
        console.warn(format_args!(
            "the journal of `{}` is damaged; it is put aside as `{}`",
            held.repository.location().display(),
            layout::JOURNAL_ASIDE
        ));
        let aside = OsStr::new(layout::JOURNAL_ASIDE);
        held.control
            .rename(OsStr::new(layout::JOURNAL), &held.control, aside)?;
    }
    let link = held.link(root)?;
    let Some(withdrawn) = teardown::withdraw(held, root, old.as_ref(), &link)? else {
        return Ok(None);
    };
    let is_root_made = withdrawn || made;
    link.give_back_and_sweep()?;

    let keep = |n: usize, stage: &Stage| -> Option<Part> {
        let record = old.as_ref()?.stages.get(n)?;
        let part = record.part.clone()?;
        (stage.is_judged && record.signature == stage.signature).then_some(part)
    };
    let kept: Vec<Option<Part>> = plan
        .stages
        .iter()
        .enumerate()
        .map(|(n, stage)| keep(n, stage))
        .collect();
    if let Some(staging) = held.control.find_dir(OsStr::new(layout::STAGING))? {
        for name in staging.names()? {
            let n = name.to_str().and_then(|name| name.parse::<usize>().ok());
            if n.is_none_or(|n| kept.get(n).is_none_or(Option::is_none)) {
                match staging.find_dir(&name) {
                    Ok(Some(dir)) => {
                        dir.clear()?;
                        staging.rmdir(&name)?;
                    }
                    _ => drop(staging.unlink(&name)?),
                }
            }
        }
    }
    let generation = process::random_name();
    let mut journal = Journal::create(&held.control, &generation, held.repository.repofile())?;
    let mut replay = Replay {
        generation: generation.clone(),
        ..Default::default()
    };
    journal.append(&Record::Root { made: is_root_made })?;
    for (n, (stage, part)) in plan.stages.iter().zip(kept).enumerate() {
        let mut record = StageRecord::default();
        if let Some(part) = part {
            console.detail(format_args!(
                "`{}`: going on with what is there already",
                stage.module
            ));
            record = StageRecord {
                signature: stage.signature.clone(),
                part: Some(part.clone()),
                ..Default::default()
            };
            journal.append(&Record::Stage {
                stage: n,
                signature: stage.signature.clone(),
                module: stage.module.to_string().chars().take(200).collect(),
            })?;
            journal.append(&Record::Part {
                stage: n,
                part: Some(part),
            })?;
        }
        replay.stages.push(record);
    }
    journal.flush()?;
    // Only now: the journal in the trash may be all that knows that the directory is ours.
    teardown::sweep(held)?;
    Ok(Some(Prepared {
        journal,
        generation,
        replay,
        beside: false,
    }))
}

/// Step 1 of a load beside the data that are there: what an earlier one has staged is gone on with.
pub fn prepare_beside(held: &Held, plan: &Plan) -> Result<Prepared> {
    // the directory stays what it is: ours, or not
    let old = Journal::read(&held.control, Depth::Top)?;
    let made = old.is_some_and(|old| old.root_made);
    let found = match held.find_next_load()? {
        Some(next) => Journal::open(&next, Depth::Top)?,
        None => None,
    };
    let found = found.filter(|(_, replay)| {
        replay.boot_id.is_some()
            && replay.boot_id == process::boot_id()
            && replay.stages.len() <= plan.stages.len()
            && replay.root_made == made
    });
    if let Some((journal, replay)) = found {
        return Ok(Prepared {
            generation: replay.generation.clone(),
            journal,
            replay,
            beside: true,
        });
    }
    held.clear_staging()?;
    let next = held
        .control
        .ensure_dir(OsStr::new(layout::NEXT_LOAD), PRIVATE_DIR)?;
    let generation = process::random_name();
    let mut journal = Journal::create(&next, &generation, held.repository.repofile())?;
    journal.append(&Record::Root { made })?;
    journal.flush()?;
    Ok(Prepared {
        journal,
        replay: Replay {
            generation: generation.clone(),
            root_made: made,
            ..Default::default()
        },
        generation,
        beside: true,
    })
}

/// What was staged beside other data takes their place: those are withdrawn, by their own journal,
/// and the journal in `next/` becomes that of the repository, whose repofile names its generation.
/// False: a reference broke the link lock.
pub fn succeed(held: &Held, root: &Dir, link: &Link) -> Result<bool> {
    let Some(next) = held.find_next_load()? else {
        return Ok(true);
    };
    let old = Journal::read(&held.control, Depth::All)?;
    if teardown::withdraw(held, root, old.as_ref(), link)?.is_none() {
        return Ok(false);
    }
    let journal = OsStr::new(layout::JOURNAL);
    // where there was no room for trash the old one is still here, and names what is deleted
    held.control.unlink(journal)?;
    next.rename(journal, &held.control, journal)?;
    held.control.rmdir(OsStr::new(layout::NEXT_LOAD))?;
    Ok(true)
}
