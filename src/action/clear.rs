//! `--clear`: tear a repository down now, wherever it is.

use super::ending::{self, End};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::report;
use crate::repository::survey::{self, Standing, View};
use crate::repository::{Repository, Waiting};
use crate::request::Request;
use crate::signal::Patience;

/// # Errors
/// [`Error::InUse`], unless `force`.
pub fn clear(
    request: &Request,
    dry_run: bool,
    force: bool,
    patience: &Patience,
    console: &Console,
) -> Result<()> {
    let waiting = Waiting { console, patience };
    let mut refused = None;
    for repository in request.repository.candidates() {
        let Some(view) = survey::look(&repository)? else {
            continue;
        };
        let is_held = view.holders > 0 || view.standing == Standing::Loading;
        if is_held && !force {
            // no waiting for somebody else's load, just to be told no
            refused = refused.or(in_use(&repository)?);
        } else if dry_run {
            report::would_delete(&view, ending::CLEARED)?;
        } else {
            if force && !view.is_guests {
                repository.held(true, &waiting, ending::discard)?;
            }
            let judge = |_: &View| Some(ending::CLEARED.to_owned());
            if ending::end(&repository, &waiting, force, &judge)? == End::Stays {
                refused = refused.or(in_use(&repository)?);
            }
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Who keeps it from being deleted; nobody, if it is gone.
fn in_use(repository: &Repository) -> Result<Option<Error>> {
    Ok(repository.peek()?.map(|repofile| Error::InUse {
        location: repository.location(),
        holders: match repofile.living_writer(None) {
            Some(pid) => format!("pid {pid}, which is loading it"),
            None => repofile.holders(),
        },
    }))
}
