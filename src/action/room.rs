//! Making room: evicting what is kept, least recently used first.
//!
//! One lock is held at a time, and none is waited for: two that make room for each other cannot
//! wait for each other. Nothing is evicted in vain: where all that is kept would not do, it stays.

use std::path::Path;
use std::time::Duration;

use super::ending::{self, End};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::report;
use crate::repository::place::Spec;
use crate::repository::survey::{self, Standing, View};
use crate::repository::{Repository, Waiting, space};
use crate::request::{Gc, Request};
use crate::signal::{self, Patience};
use crate::teardown;
use crate::units::Bytes;

/// Where the repository is, or is to be placed: what is kept is evicted where nothing fits.
pub(super) fn choose(request: &Request, console: &Console) -> Result<Repository> {
    let spec = &request.repository;
    spec.choose(&request.need, console, &mut |place, _| {
        make(request, place, console)
    })
}

/// Evicts what is kept, but for `place` itself, until what is needed fits there. False: it does
/// not.
pub(super) fn make(request: &Request, place: &Repository, console: &Console) -> Result<bool> {
    let spec = &request.repository;
    let patience = Patience::new(Some(Duration::ZERO));
    let waiting = Waiting {
        console,
        patience: &patience,
    };
    sweep(spec, place, &waiting)?;
    let mut views = kept(spec, &on_device_of(spec, place.base()));
    views.retain(|view| view.repository.location() != place.location());
    loop {
        let missing = match spec.usable(place, &request.need) {
            Ok(()) => return Ok(true),
            Err(space::Obstacle::Room { missing, .. }) => missing,
            Err(space::Obstacle::Other(_)) => return Ok(false),
        };
        let evictable = views.iter().map(|view| view.size_bytes).sum::<u64>();
        if evictable < missing || views.is_empty() {
            return Ok(false);
        }
        evict(views.remove(0), &waiting)?;
    }
}

/// Where the repository is, or would be placed: what could be evicted counts as free.
pub(super) fn place(request: &Request, console: &Console) -> Result<Repository> {
    let spec = &request.repository;
    spec.choose(&request.need, console, &mut |place, missing| {
        let kept = kept(spec, &on_device_of(spec, place.base()));
        Ok(kept.iter().map(|view| view.size_bytes).sum::<u64>() >= missing)
    })
}

fn on_device_of<'a>(spec: &'a Spec, base: &'a Path) -> Vec<&'a Path> {
    let device = space::device(base);
    let directories = spec.directories.iter().map(|directory| &**directory);
    directories
        .filter(|directory| space::device(directory) == device)
        .collect()
}

/// What may be evicted in these directories, least recently used first.
fn kept(spec: &Spec, directories: &[&Path]) -> Vec<View> {
    let directories: Vec<_> = directories.iter().map(|dir| dir.to_path_buf()).collect();
    let mut views = survey::look_at_all(&directories, spec, &mut |_| {});
    views.retain(is_evictable);
    sort(&mut views);
    views
}

/// First what is of use to nobody but one who would go on with a load that was killed.
fn sort(views: &mut [View]) {
    views.sort_by_key(|view| (is_whole(view), view.used_unix_s, view.repository.location()));
}

fn is_whole(view: &View) -> bool {
    matches!(view.standing, Standing::Kept | Standing::Loaded)
}

/// What nobody holds any more: kept, or its holders have died, or what a process left that was
/// killed.
fn is_evictable(view: &View) -> bool {
    !view.is_guests && view.holders == 0 && view.standing != Standing::Loading && view.is_known()
}

fn evict(view: View, waiting: &Waiting) -> Result<End> {
    let last_use = view.used_unix_s;
    // who used it meanwhile is not the one that was used longest ago
    let judge = |view: &View| {
        let is_same = is_evictable(view) && view.used_unix_s == last_use;
        is_same.then(|| ending::EVICTED.into())
    };
    ending::end_one(&view.repository, waiting, &judge)
}

/// Deletes what processes left in trash that is still being deleted, or that were killed.
fn sweep(spec: &Spec, place: &Repository, waiting: &Waiting) -> Result<()> {
    for directory in on_device_of(spec, place.base()) {
        for repository in survey::repositories(directory, spec) {
            signal::check()?;
            if repository.location() == place.location() || !survey::has_trash(&repository) {
                continue;
            }
            let judge = |view: &View| {
                let is_wreck = is_evictable(view) && view.standing == Standing::Orphan;
                is_wreck.then(|| "its deletion was not finished".into())
            };
            if ending::end_one(&repository, waiting, &judge)? == End::Gone {
                continue;
            }
            let swept = repository.held(false, waiting, |held| match held.is_unused()? {
                // the journal in the trash may be all that knows whose the directory is
                true => Ok(()),
                false => teardown::sweep(held),
            });
            match swept {
                Err(error @ Error::Interrupted { .. }) => return Err(error),
                Err(Error::Timeout { .. }) | Ok(_) => {}
                Err(error) => waiting.console.warn(error),
            }
        }
    }
    Ok(())
}

/// After an `--unuse` in `base`: no more than `max_size` stays kept. What cannot be deleted is no
/// error of the one who has left.
pub(super) fn trim(request: &Request, base: &Path, max_size: Bytes, console: &Console) {
    let patience = Patience::new(Some(Duration::ZERO));
    let waiting = Waiting {
        console,
        patience: &patience,
    };
    let mut views = kept(&request.repository, &[base]);
    views.retain(is_whole);
    if let Err(error) = limit(views, max_size, &waiting) {
        console.warn(error);
    }
}

fn limit(views: Vec<View>, max_size: Bytes, waiting: &Waiting) -> Result<Vec<View>> {
    let mut total: u64 = views.iter().map(|view| view.size_bytes).sum();
    let mut left = Vec::new();
    for view in views {
        let size = view.size_bytes;
        if total <= max_size.0 {
            left.push(view);
        } else if evict(view, waiting)? == End::Gone {
            total -= size;
        }
    }
    Ok(left)
}

/// `--gc`: what `--max-size`, `--min-free` and `--free` ask for, of what is left. A dry run has
/// `gone` only in thought: their room is free all the same.
pub(super) fn collect(
    request: &Request,
    gc: &Gc,
    views: Vec<View>,
    mut gone: Vec<View>,
    waiting: &Waiting,
) -> Result<()> {
    let mut views: Vec<View> = views.into_iter().filter(is_evictable).collect();
    sort(&mut views);
    let mut done: Vec<Option<u64>> = Vec::new();
    for base in &request.repository.directories {
        let (own, others) = views
            .into_iter()
            .partition(|v: &View| v.repository.base() == base);
        views = others;
        let (mut whole, wrecks): (Vec<View>, Vec<View>) = own.into_iter().partition(is_whole);
        if let Some(max_size) = request.max_size {
            whole = match gc.dry_run {
                false => limit(whole, max_size, waiting)?,
                true => would_limit(whole, max_size, &mut gone)?,
            };
        }
        views.extend(wrecks);
        views.extend(whole);
    }
    sort(&mut views);
    for base in &request.repository.directories {
        let device = space::device(base);
        if device.is_none() || done.contains(&device) {
            continue;
        }
        done.push(device);
        let min_free = request.need.min_free.of(space::total_bytes(base)?);
        let wanted = min_free.max(gc.free.unwrap_or_default().0);
        let in_thought = |view: &&View| space::device(view.repository.base()) == device;
        let thought: u64 = gone
            .iter()
            .filter(in_thought)
            .map(|view| view.size_bytes)
            .sum();
        let mut free = space::free_bytes(base)?.saturating_add(thought);
        let (own, others) = views
            .into_iter()
            .partition(|view: &View| space::device(view.repository.base()) == device);
        views = others;
        for view in own {
            if free >= wanted {
                break;
            }
            let (_, size) = (signal::check()?, view.size_bytes);
            if gc.dry_run {
                report::would_delete(&view, ending::EVICTED)?;
                free = free.saturating_add(size);
            } else if evict(view, waiting)? == End::Gone {
                free = space::free_bytes(base)?;
            }
        }
        if free < wanted {
            waiting.console.warn(format_args!(
                "`{}` has {} free, not {}: nothing more is kept there",
                base.display(),
                Bytes(free),
                Bytes(wanted)
            ));
        }
    }
    Ok(())
}

fn would_limit(views: Vec<View>, max_size: Bytes, gone: &mut Vec<View>) -> Result<Vec<View>> {
    let mut total: u64 = views.iter().map(|view| view.size_bytes).sum();
    let mut left = Vec::new();
    for view in views {
        if total <= max_size.0 {
            left.push(view);
        } else {
            total -= view.size_bytes;
            report::would_delete(&view, "more than `--max-size` is kept")?;
            gone.push(view);
        }
    }
    Ok(left)
}
