//! Waiting for another process, and saying so: who is at work, on what, since when, how far.

use super::repofile::State;
use super::{Repository, journal};
use crate::console::Console;
use crate::error::Error;
use crate::process::{self, Life};
use crate::signal::Patience;

/// How to wait for another process, and how to say so.
#[derive(Debug)]
pub struct Waiting<'a> {
    pub console: &'a Console,
    pub patience: &'a Patience,
}

impl Waiting<'_> {
    pub(super) fn show<'s>(&'s self, repository: &'s Repository) -> Show<'s> {
        Show {
            waiting: self,
            repository,
            progress: None,
        }
    }

    pub(super) fn gave_up(&self, repository: &Repository, lock: (u64, u64)) -> Error {
        let holder = match describe(repository) {
            Some(text) => text,
            // one look may miss it: see `is_surely_unlocked`
            None => match (0..8).find_map(|_| process::flock_owner(lock)) {
                Some(pid) => format!("pid {pid} is at work there"),
                _ => "another sc is at work there".into(),
            },
        };
        Error::Timeout {
            what: format!("`{}`", repository.location().display()),
            waited: self.patience.limit().filter(|limit| !limit.is_zero()),
            holder,
        }
    }
}

/// A download that another sc has under way.
struct Download {
    stage: usize,
    total: Option<u64>,
}

/// Who loads, since when and what for.
fn describe(repository: &Repository) -> Option<String> {
    let repofile = repository.peek().ok()??;
    let is_loading = |state| matches!(state, State::InProgress | State::Ok);
    let loader = repofile.sc.loader.filter(|_| is_loading(repofile.state))?;
    if repofile.state == State::Ok && loader.process.life() == Life::Dead {
        return None; // killed beside the data that are there
    }
    let seconds = process::since_boot_ns().saturating_sub(loader.since_boot_ns) / 1_000_000_000;
    Some(format!(
        "pid {} has been loading `{}` for {seconds} s (`{}`)",
        loader.process.pid,
        repository.location().display(),
        repofile.sc.definition.as_deref().unwrap_or("nothing"),
    ))
}

/// The place of the file being downloaded. Reads the journal, which may be long: for a terminal.
fn download(repository: &Repository) -> Option<Download> {
    let journal = repository.peek_journal().ok()??;
    let open = |(_, stage): &(usize, &journal::StageRecord)| stage.stamp.is_none();
    let (n, stage) = journal.stages.iter().enumerate().find(open)?;
    Some(Download {
        stage: n,
        total: stage.part.as_ref()?.total,
    })
}

/// What a waiter shows.
pub(super) struct Show<'a> {
    waiting: &'a Waiting<'a>,
    repository: &'a Repository,
    progress: Option<(usize, crate::console::Progress)>,
}

impl Show<'_> {
    /// A load is worth a line at once; whatever else sc does is mostly over before it is read.
    pub(super) fn begin(&mut self, is_late: bool) -> bool {
        let text = match describe(self.repository) {
            Some(text) => text,
            None if is_late => {
                format!(
                    "another sc is at work on `{}`",
                    self.repository.location().display()
                )
            }
            None => return false,
        };
        self.waiting.console.say(format_args!("waiting: {text}"));
        true
    }

    pub(super) fn update(&mut self) {
        if !self.waiting.console.draws() {
            return;
        }
        if self.progress.is_none()
            && let Some(Download { stage, total }) = download(self.repository)
        {
            let doing = format!("waiting for `{}`", self.repository.location().display());
            let done = self.repository.staged_bytes(stage).unwrap_or(0);
            self.progress = Some((stage, self.waiting.console.progress(&doing, done, total)));
            return;
        }
        if let Some((stage, progress)) = &mut self.progress {
            match self.repository.staged_bytes(*stage) {
                Some(bytes) => progress.set(bytes),
                None => self.progress = None,
            }
        }
    }
}
