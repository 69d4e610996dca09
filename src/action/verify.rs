//! `--verify`: are the data what was loaded? `--repair`: load anew what is not.
//!
//! To look takes no lock; the new certificates are written under it, if it is free. A repair is a
//! load like any other, under the lock and of a repository that nobody holds; what it need not
//! fetch again is the archive, if that is the same: it is put back where an interrupted download
//! lies, and the load goes on from there, checksum first. All above it runs again. Killed anywhere,
//! it leaves a repository that nobody believes (UNKNOWN or IN_PROGRESS), which the next `--use` or
//! `--repair` loads.

use std::path::Path;
use std::time::Duration;

use super::loading::Loading;
use super::verdict::Verdict;
use crate::console::Console;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::process::{self, Identity};
use crate::report;
use crate::repository::counts::Why;
use crate::repository::holder::{Hold, Holder};
use crate::repository::journal::{Depth, Journal, Replay};
use crate::repository::repofile::{Repofile, State};
use crate::repository::{Change, Held, Repository, Waiting, past};
use crate::request::{Request, Verify};
use crate::signal::Patience;
use crate::stack::Module;
use crate::verify::{self, Examination, Findings, Reason};

/// Data that are loaded anew so often while they are looked at are not looked at.
const MOST_LOOKS: u32 = 5;

/// # Errors
/// [`Error::Missing`]: there is no such repository; [`Error::Differs`]. With `--repair`
/// [`Error::Held`], [`Error::OtherDefinition`], and those of a load.
pub fn verify(
    request: &Request,
    how: Verify,
    patience: &Patience,
    console: &Console,
) -> Result<()> {
    let missing = || Error::Missing {
        what: match request.repository.candidates().next() {
            Some(repository) => repository.location().display().to_string(),
            None => "the repository".into(),
        },
        problem: "no base directory has it".into(),
    };
    let repository = request.repository.find()?.ok_or_else(missing)?;
    let (findings, repaired) = match how.repair {
        true => {
            let waiting = Waiting { console, patience };
            let repaired = repository.held(false, &waiting, |held| repair(held, request, how));
            repaired?.flatten().ok_or_else(missing)?
        }
        false => {
            let (findings, generation) =
                look(&repository, request, how, console)?.ok_or_else(missing)?;
            if let Some(generation) = generation {
                renew(&repository, &generation, &findings, console);
            }
            (findings, false)
        }
    };
    let location = repository.location();
    match how.json {
        true => report::findings(&location, &findings, repaired)?,
        false => report::differences(&findings.differences)?,
    }
    let differences = findings.differences.len();
    if differences > 0 && !repaired {
        return Err(Error::Differs {
            location,
            differences,
        });
    }
    console.say(format_args!(
        "`{}` is as it was loaded{}: {} entries, {} files read",
        location.display(),
        match repaired {
            true => " again",
            false => "",
        },
        findings.entries,
        findings.hashed,
    ));
    Ok(())
}

/// Looks without a lock; again, if the data were not the same at the end. Also the generation that
/// was looked at. `None`: there is no repository.
fn look(
    repository: &Repository,
    request: &Request,
    how: Verify,
    console: &Console,
) -> Result<Option<(Findings, Option<String>)>> {
    for looks in 1.. {
        let Some(repofile) = repository.peek()? else {
            return Ok(None);
        };
        let found = repository.peek_certificates()?;
        let Some((root, journal)) = found.filter(|(_, journal)| is_whole(&repofile, journal))
        else {
            return Ok(Some((Findings::nothing_known(), None)));
        };
        let findings = examine(&root, &journal, &repofile, request, how, console);
        let now = repository.peek()?;
        let is_same = now.is_some_and(|now| is_whole(&now, &journal));
        if is_same || looks == MOST_LOOKS {
            return findings.map(|findings| Some((findings, Some(journal.generation))));
        }
    }
    unreachable!("the loop above ends by returning")
}

/// Is it loaded, and by an sc that left this journal?
fn is_whole(repofile: &Repofile, journal: &Replay) -> bool {
    repofile.state == State::Ok
        && repofile.writer.is_none()
        && repofile.is_of(Some(&journal.generation))
}

fn examine(
    root: &Dir,
    journal: &Replay,
    repofile: &Repofile,
    request: &Request,
    how: Verify,
    console: &Console,
) -> Result<Findings> {
    let examination = Examination {
        root,
        journal,
        repofile,
        // what another boot has left counts only once it was read
        all: how.paranoid || how.repair || repofile.sc.boot_id != process::boot_id(),
        console,
    };
    let mut findings = examination.run()?;
    for stack in &request.stacks {
        let file = stack.loader().and_then(Module::file_name);
        for module in &stack.modules {
            if let (Module::Checksum(checksum), Some(file)) = (module, file) {
                examination.expect(Path::new(file), checksum, &mut findings)?;
            }
        }
    }
    let expires = repofile.sc.expires_unix_s;
    if expires.is_some_and(|expires| expires <= process::unix_time_s()) {
        findings.add(".".into(), Reason::ExpiredCert);
    }
    Ok(findings)
}

/// Writes new certificates down, if nobody is at work there: the next one can do it as well.
fn renew(repository: &Repository, generation: &str, findings: &Findings, console: &Console) {
    let none = Patience::new(Some(Duration::ZERO));
    let waiting = Waiting {
        console,
        patience: &none,
    };
    let renewed = repository.held(false, &waiting, |held| {
        verify::renew(held, generation, findings)
    });
    if let Err(error) = renewed {
        console.detail(format_args!("no new certificates are written: {error}"));
    }
}

/// What differed, and whether it was loaded anew. `None`: there is no repository.
fn repair(held: &Held, request: &Request, how: Verify) -> Result<Option<(Findings, bool)>> {
    if held.is_guest() {
        return Err(held.not_for_guests("only he can repair it", "let its owner or root do so"));
    }
    let plan = Plan::new(&request.stacks);
    let Some(root) = held.root()? else {
        return Ok(None);
    };
    held.generation()?;
    let repofile = held.update(&root, |repofile| {
        check(held, repofile, &plan)?;
        Ok(Change::None(repofile.clone()))
    })?;
    if !repofile.exists {
        return Ok(None);
    }
    let journal = Journal::read(&held.control, Depth::Certificates)?;
    let journal = journal.filter(|journal| is_whole(&repofile, journal));
    let mut findings = Findings::nothing_known();
    if let Some(journal) = &journal {
        findings = examine(&root, journal, &repofile, request, how, held.console())?;
        if findings.differences.is_empty() {
            verify::renew(held, &journal.generation, &findings)?;
            return Ok(Some((findings, false)));
        }
    }
    // I7: nobody may believe the data while they are taken away
    let begun = held.update(&root, |repofile| {
        check(held, repofile, &plan)?;
        if repofile.state == State::Ok {
            repofile.state = State::Unknown;
            repofile.sc.signature = None;
        }
        Ok(Change::Commit(repofile.clone()))
    })?;
    if let Some(journal) = &journal {
        keep_archives(held, &root, &plan, journal, &findings)?;
    }
    let me = Identity::of(std::process::id() as i32);
    let me = Holder::new(Hold::Process(me), None, None).on_node_of(held);
    let loading = Loading {
        held,
        request,
        plan: &plan,
        holder: &me,
        beside: false,
        why: Why::new("`--repair`"),
        past: past::look(held),
        began_ns: process::since_boot_ns(),
    };
    match loading.load_and_register(&root, begun, false)? {
        Verdict::Joined => {}
        _ => {
            return Err(Error::Held {
                location: held.repository.location(),
                holders: "another program, which loads it".into(),
            });
        }
    }
    let before = &repofile.sc;
    let Some(root) = held.root()? else {
        return Ok(None);
    };
    held.update(&root, |repofile| {
        if let Some(at) = repofile.position(&me) {
            repofile.remove(at);
        }
        let sc = &mut repofile.sc;
        sc.kept_until_unix_s = before.kept_until_unix_s;
        sc.counts = before.counts; // a repair is no use
        if request.terms.keep_s.is_none() {
            sc.keep_s = before.keep_s;
        }
        if request.terms.expires.is_none() {
            let is_good = |time: &u64| *time > process::unix_time_s();
            sc.expires_unix_s = before.expires_unix_s.filter(is_good);
        }
        Ok(Change::Commit(()))
    })?;
    Ok(Some((findings, true)))
}

/// May it be repaired, and by this plan?
///
/// # Errors
/// [`Error::Held`], [`Error::OtherDefinition`].
fn check(held: &Held, repofile: &mut Repofile, plan: &Plan) -> Result<()> {
    let location = held.repository.location();
    let writer = repofile.living_writer(Some(held.lock_inode()));
    repofile.reap(&held.control)?;
    if writer.is_some() || repofile.holds() > 0 {
        let holders = match writer {
            Some(pid) => format!("pid {pid}, which is loading it"),
            None => repofile.holders(),
        };
        return Err(Error::Held { location, holders });
    }
    // a repair that was killed has taken the signature away, and left the words
    let is_same = match &repofile.sc.signature {
        Some(signature) => *signature == plan.signature,
        None => (repofile.sc.definition.as_ref()).is_none_or(|words| *words == plan.definition),
    };
    match is_same || !repofile.exists {
        true => Ok(()),
        false => Err(Error::OtherDefinition {
            location,
            asked: plan.definition.clone(),
            loaded: repofile.sc.definition.clone().unwrap_or_default(),
            holders: String::new(),
        }),
    }
}

/// Puts the archives that are whole where the loader finds them as its own unfinished download: a
/// checksum judges them there once more. Where none does, or the server gave nothing to know the
/// version by, they are fetched again.
fn keep_archives(
    held: &Held,
    root: &Dir,
    plan: &Plan,
    journal: &Replay,
    findings: &Findings,
) -> Result<()> {
    for (n, stage) in plan.stages.iter().enumerate() {
        let Some(name) = stage.module.file_name().filter(|_| stage.is_judged) else {
            continue;
        };
        let is_whole = (findings.differences.iter()).all(|found| found.path != Path::new(name));
        let is_ours = match root.lstat(name)? {
            Some(stat) => (journal.stages.get(n))
                .and_then(|stage| stage.entries.get(Path::new(name)))
                .is_some_and(|entry| entry.is(&stat)),
            None => false,
        };
        if is_whole && is_ours {
            held.check()?; // I1
            let staged = held.stage_dir(n)?;
            staged.clear()?;
            root.rename_new(name, &staged, name)?;
        }
    }
    Ok(())
}
