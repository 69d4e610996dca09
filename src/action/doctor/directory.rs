//! The base directories: who owns them, what they lie on, whether what we build on works there.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::AccessFlags;

use super::{Finding, Verdict, finding};
use crate::durable::{Dir, Flock, PRIVATE_DIR, PRIVATE_FILE, try_flock};
use crate::error::{Error, IoContext, Result, spoken};
use crate::mounts::{Place, Shared};
use crate::process;
use crate::repository::layout;
use crate::request::Request;
use crate::units::Bytes;

/// What does not do is skipped by `--use`, so it is an error only where nothing does.
pub fn all(request: &Request) -> Vec<Finding> {
    let bases = request.repository.directories.iter();
    let mut looked: Vec<Result<Vec<Finding>, Finding>> =
        bases.map(|base| one(base, request)).collect();
    if looked.iter().any(Result::is_ok) {
        for skipped in looked.iter_mut().filter_map(|base| base.as_mut().err()) {
            skipped.verdict = Verdict::Warning;
        }
    }
    let findings = looked.into_iter().flat_map(|base| match base {
        Ok(findings) => findings,
        Err(finding) => vec![finding],
    });
    let mut findings: Vec<Finding> = findings.collect();
    findings.extend(request.repository.find().err().map(|error| {
        finding(
            Verdict::Error(error.exit_status()),
            "repository",
            error.to_string(),
        )
    }));
    findings
}

/// # Errors
/// The one finding that a base directory cannot be used at all.
fn one(base: &Path, request: &Request) -> Result<Vec<Finding>, Finding> {
    let say = |verdict, check, text: &dyn Display| {
        finding(verdict, check, format!("{}: {text}", base.display()))
    };
    let useless = |text: &dyn Display| say(Verdict::Error(73), "usable", text);
    let failed = |error: Error| match &error {
        Error::Io { source, .. } => useless(&spoken(source)),
        error => useless(error),
    };
    let dir = Dir::open(base).map_err(failed)?;
    let stat = dir.stat().map_err(failed)?;
    nix::unistd::eaccess(base, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|errno| useless(&spoken(&errno.into())))?;
    let bytes = Bytes(dir.available_bytes().map_err(failed)?);
    let inodes = dir.available_inodes().map_err(failed)?;
    let need = request.settings.size;
    if bytes < need {
        return Err(useless(&format!(
            "{bytes} free of the {need} needed (`--size`)"
        )));
    }
    if inodes == 0 {
        return Err(useless(&"no inodes left"));
    }

    let mut findings = Vec::new();
    let mode = stat.st_mode & 0o7777;
    let owned = format!("owner uid {}, mode {mode:04o}", stat.st_uid);
    findings.push(if mode & 0o1002 == 0o0002 {
        let text = format!("{owned}: anybody may delete what is in it; `chmod +t` ends that");
        say(Verdict::Error(77), "owner", &text)
    } else if stat.st_uid != 0 && stat.st_uid != process::user() {
        let text = format!("{owned}: its owner may delete what is in it");
        say(Verdict::Warning, "owner", &text)
    } else {
        say(Verdict::Good, "owner", &owned)
    });

    let inodes = match inodes {
        u64::MAX => "any number of".to_owned(),
        inodes => inodes.to_string(),
    };
    let place = Place::of(base);
    let kind = match &place {
        Some(place) => place.mount.kind.clone(),
        None => "a file system that /proc does not tell".into(),
    };
    let space = format!("{kind}, {bytes} and {inodes} inodes free");
    findings.push(say(Verdict::Good, "space", &space));
    findings.push(match place {
        None => say(
            Verdict::Note,
            "shared",
            &"its mount cannot be read in /proc",
        ),
        Some(place) => match place.is_shared(&request.jobs) {
            Shared::Yes(why) => say(Verdict::Good, "shared", &format!("shared: {why}")),
            Shared::Doubt(why) => say(Verdict::Note, "shared", &format!("shared? {why}")),
            Shared::No(why) => say(Verdict::Error(73), "shared", &why),
        },
    });
    match trial(&dir) {
        Ok(outcome) => findings.extend(
            outcome
                .into_iter()
                .map(|(verdict, check, text)| say(verdict, check, &text)),
        ),
        Err(error) => {
            findings.push(say(Verdict::Error(error.exit_status()), "trial", &error));
        }
    }
    Ok(findings)
}

type Outcome = Vec<(Verdict, &'static str, String)>;

/// Tries what the other actions rest on, in a directory named like a control directory: what a
/// kill leaves is swept like one.
fn trial(base: &Dir) -> Result<Outcome> {
    let name = OsString::from(format!("doctor-{}", process::random_name()));
    let name = layout::control_name(Some(&name));
    base.make_dir(&name, PRIVATE_DIR)?;
    let tried = base.open_dir(&name).and_then(|control| {
        let tried = try_in(&control);
        control.clear()?;
        tried
    });
    base.rmdir(&name)?;
    tried
}

fn try_in(control: &Dir) -> Result<Outcome> {
    let lock = OsStr::new(layout::LOCK);
    let path: PathBuf = control.path_of(lock);
    let one = control.create(lock, PRIVATE_FILE)?;
    let two = control.open_file(lock, OFlag::O_RDWR)?;
    let locked = try_flock(&one, Flock::Exclusive).and_then(|first| {
        let second = try_flock(&two, Flock::Exclusive)?;
        Ok((first, second))
    });
    let mut outcome = vec![match locked {
        Ok((true, false)) => (Verdict::Good, "locks", "locks exclude each other".into()),
        Ok((false, _)) => {
            let problem = "a new file can't be locked".into();
            (Verdict::Error(73), "locks", problem)
        }
        Ok((true, true)) => {
            let problem = "locks do not work: two have one at once".into();
            (Verdict::Error(73), "locks", problem)
        }
        Err(error) => {
            let problem = format!("locks do not work: {}", spoken(&error));
            (Verdict::Error(73), "locks", problem)
        }
    }];
    drop((one, two));

    // a directory: for a file there is another way
    let (from, to) = (OsStr::new("from"), OsStr::new("to"));
    control.make_dir(from, PRIVATE_DIR)?;
    let renamed = control.rename_new(from, control, to);
    outcome.push(
        match renamed.err().map(|error| error.errno().ok_or(error)) {
            None => (Verdict::Good, "rename", "renames without replacing".into()),
            Some(Ok(Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSUP)) => (
                Verdict::Note,
                "rename",
                "no rename without replacing: files are linked instead, directories made anew"
                    .into(),
            ),
            Some(Ok(errno)) => return Err(errno).io("cannot move", &path),
            Some(Err(error)) => return Err(error),
        },
    );

    let linked = control.hard_link(lock, control, OsStr::new("link"));
    outcome.push(match linked.err().map(|error| error.errno().ok_or(error)) {
        None => (Verdict::Good, "link", "makes hard links".into()),
        Some(Ok(Errno::EPERM | Errno::ENOTSUP | Errno::EMLINK)) => (
            Verdict::Note,
            "link",
            "no hard links: the Python `sc` cannot work there".into(),
        ),
        Some(Ok(errno)) => return Err(errno).io("cannot link", &path),
        Some(Err(error)) => return Err(error),
    });
    Ok(outcome)
}
