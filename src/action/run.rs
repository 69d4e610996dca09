//! `--run`: use, run a command, unuse whatever happens.
//!
//! The hold is a lock file that the command inherits: if sc is killed, the hold lasts while the
//! command or a descendant keeps the descriptor open, and the end of both frees it. As long as sc
//! lives, the hold ends with the command, whatever it left running.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::{unuse, r#use};
use crate::console::Console;
use crate::error::{Error, IoContext, Result};
use crate::request::{Request, Run};
use crate::signal::{self, Patience};

/// Returns the command's exit status: 128+n for a signal.
///
/// # Errors
/// Those of `--use`; [`Error::Run`].
pub fn run(request: &Request, run: &Run, patience: &Patience, console: &Console) -> Result<u8> {
    let used = r#use::by_lock(request, patience, console)?;
    let status = execute(&used, run);
    // From here on a signal has had its effect: the command got it, or is no more.
    signal::forget();
    let repository = used.repository.clone();
    // the time that the command took is no waiting
    let patience = Patience::new(patience.limit());
    let left = unuse::leave(&repository, &used.holder, request, &patience, console);
    drop(used.lock);
    match (status, left) {
        (Ok(status), Ok(())) => Ok(status),
        (Ok(status), Err(error)) => {
            // CMD's status is the result, as with any wrapper; the message tells the rest.
            console.error(&error);
            Ok(status)
        }
        (Err(error), left) => {
            if let Err(second) = left {
                console.error(&second);
            }
            Err(error)
        }
    }
}

fn execute(used: &r#use::Use, run: &Run) -> Result<u8> {
    let location = used.repository.location();
    let location = std::path::absolute(&location).io("cannot find", &location)?;
    // systemd-tmpfiles leaves a directory alone that is locked
    let directory = crate::durable::Dir::open(&location)?;
    let _guard = directory.flock_shared();
    // A copy of the descriptor without close-on-exec, which the command gets.
    let inherited = match (&used.lock, run.inherit) {
        (Some(lock), true) => Some(nix::unistd::dup(&lock.file).io("cannot pass on", &location)?),
        _ => None,
    };
    let (name, arguments) = run.command.split_first().expect("request has seen to it");
    let fail = |source| Error::Run {
        command: name.display().to_string(),
        source,
    };
    signal::check()?;
    let mut child = Command::new(name)
        .args(arguments)
        .env("SC_LOCATION", &location)
        .spawn()
        .map_err(fail)?;
    drop(inherited);
    signal::pass_on_to(Some(child.id() as i32));
    // As long as it is not reaped, its number is nobody else's.
    let pid = Pid::from_raw(child.id() as i32);
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
    signal::pass_on_to(None);
    let status = child.wait().map_err(fail)?;
    Ok(match status.signal() {
        Some(signal) => 128u8.wrapping_add(signal as u8),
        None => status.code().unwrap_or(0) as u8,
    })
}
