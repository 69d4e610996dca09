//! `--gc`: delete what nobody holds and nothing keeps, in all base directories.

use std::time::Duration;

use super::ending::{self, End};
use super::room;
use crate::console::Console;
use crate::error::Result;
use crate::process;
use crate::report;
use crate::repository::Waiting;
use crate::repository::survey::{self, Standing, View};
use crate::request::{Gc, Request};
use crate::signal::{self, Patience};
use crate::units;

pub fn gc(request: &Request, gc: &Gc, console: &Console) -> Result<()> {
    // A cron line must not hang behind a load of an hour: it does not wait unless it is told to.
    let patience = Patience::new(Some(request.patience.unwrap_or(Duration::ZERO)));
    let waiting = Waiting {
        console,
        patience: &patience,
    };
    let judge = |view: &View| reason(view, process::unix_time_s(), gc.older_than);
    let views = survey::look_at_all(
        &request.repository.directories,
        &request.repository,
        &mut |error| console.warn(error),
    );
    let (mut left, mut gone) = (Vec::new(), Vec::new());
    for view in views {
        signal::check()?;
        if view.is_guests {
            continue;
        }
        let Some(reason) = judge(&view) else {
            // a dead holder is dropped, though others stay
            if !gc.dry_run && view.has_dead_holders() {
                ending::end_one(&view.repository, &waiting, &judge)?;
            }
            left.push(view);
            continue;
        };
        if gc.dry_run {
            report::would_delete(&view, &reason)?;
            gone.push(view);
        } else if ending::end_one(&view.repository, &waiting, &judge)? != End::Gone {
            left.push(view);
        }
    }
    room::collect(request, gc, left, gone, &waiting)
}

/// Why it goes; `None`: it stays.
fn reason(view: &View, now: u64, older_than: Option<Duration>) -> Option<String> {
    if view.holders > 0 || view.standing == Standing::Loading {
        return None;
    }
    if !view.is_known() {
        let is_empty = survey::is_without_data(&view.repository).unwrap_or(false);
        return is_empty.then(|| "there is nothing but a state file".into());
    }
    let old = older_than.map(|age| (age, view.used_unix_s.saturating_add(age.as_secs()) <= now));
    let is_old = old.is_none_or(|(_, is_old)| is_old);
    let expires = view
        .repofile
        .as_ref()
        .and_then(|repofile| repofile.sc.expires_unix_s);
    match view.standing {
        Standing::Broken => is_old.then(|| "its last load failed".into()),
        Standing::Orphan => is_old.then(|| "left by a process that was killed".into()),
        _ if expires.is_some_and(|expires| expires <= now) => Some("it has expired".into()),
        _ => match (view.kept_until_unix_s(), old) {
            (Some(until), _) if until <= now => {
                Some(format!("it was kept until {}", units::spoken_time(until)))
            }
            (Some(_), Some((age, true))) => Some(format!(
                "it was not used for {}",
                units::spoken_duration(age)
            )),
            (Some(_), _) => None,
            (None, _) => is_old.then(|| "its holders have died".into()),
        },
    }
}
