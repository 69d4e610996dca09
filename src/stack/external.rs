//! Programs that bring files: run in a directory of their own, end with us, and count only when
//! they succeed.
//!
//! * A program half-way through leaves files that look finished. So each run has a new, empty
//!   directory (`run-PID` in the staging directory), what an earlier run left is deleted, and
//!   products are taken out of it only after exit status 0.
//! * A program that outlives its sc would write into a staging directory that somebody else has
//!   taken over. So the kernel kills it when we die (PR_SET_PDEATHSIG); the parent is asked for
//!   once more after the call, because we may have died just before it. PR_SET_PDEATHSIG follows
//!   the *thread* that forked: call this from a thread that lives as long as the program.
//! * The program stays in our process group, so Ctrl-C reaches it from the terminal. When we are
//!   ended by a signal sent to us alone, it gets SIGTERM, and SIGKILL [`GRACE`] later.
//!
//! What it prints on stdout goes to our stderr: our stdout is for results.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::signal;

/// How long a program may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

const PREFIX: &str = "run-";

/// A program to run, and the words after its name.
#[derive(Debug)]
pub struct Program<'a> {
    pub program: &'a OsStr,
    pub arguments: &'a [&'a OsStr],
    /// Which variable names another program: for the message when there is none.
    pub variable: &'static str,
}

/// A new, empty directory in `staging`; whatever an earlier run left there is deleted.
///
/// # Errors
/// [`Error::Io`]
pub fn new_run(staging: &Dir) -> Result<Run<'_>> {
    for name in staging.names()? {
        if name.as_bytes().starts_with(PREFIX.as_bytes()) {
            remove(staging, &name)?;
        }
    }
    let name = OsString::from(format!("{PREFIX}{}", std::process::id()));
    staging.make_dir(&name, 0o700)?;
    let dir = staging.open_dir(&name)?;
    Ok(Run { staging, name, dir })
}

fn remove(staging: &Dir, name: &OsStr) -> Result<()> {
    match staging.lstat(name)? {
        None => {}
        Some(stat) if durable::is_dir(&stat) => {
            staging.searchable(name, &stat)?;
            staging.open_dir(name)?.clear()?;
            staging.rmdir(name)?;
        }
        Some(_) => drop(staging.unlink(name)?),
    }
    Ok(())
}

/// One run of a program, and its directory.
#[derive(Debug)]
pub struct Run<'a> {
    staging: &'a Dir,
    name: OsString,
    dir: Dir,
}

impl Run<'_> {
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Runs the program in the run's directory, to its end.
    ///
    /// # Errors
    /// [`Error::External`]: it cannot be started, or says no. [`Error::Interrupted`].
    pub fn execute(&self, program: &Program) -> Result<()> {
        let name = program.program.display().to_string();
        let said = |problem: String| Error::External {
            program: name.clone(),
            problem,
        };
        let child = self
            .spawn(program)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOENT) => said(format!(
                    "there is no such program; set up its environment, or name it in `{}`",
                    program.variable
                )),
                _ => said(format!(
                    "cannot be started: {}",
                    crate::error::spoken(&error)
                )),
            })?;
        match wait(child)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, status) => Err(said(format!("exit status {status}"))),
            WaitStatus::Signaled(_, signal, _) => Err(said(format!("ended by {signal}"))),
            status => Err(said(format!("ended as {status:?}"))),
        }
    }

    fn spawn(&self, program: &Program) -> io::Result<Pid> {
        // a relative path is meant from where we are, not from the run's directory
        let has_slash = program.program.as_bytes().contains(&b'/');
        let path = if has_slash {
            std::path::absolute(program.program)?.into_os_string()
        } else {
            program.program.to_owned()
        };
        let stderr = io::stderr().as_fd().try_clone_to_owned()?;
        let mut command = Command::new(path);
        command
            .args(program.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::from(stderr));
        let dir = self.dir.as_fd().as_raw_fd();
        let parent = std::process::id() as libc::pid_t;
        // SAFETY: prctl, getppid, raise and fchdir are async-signal-safe, and nothing here
        // allocates; `dir` is open until spawn has returned, which is after the exec.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(io::Error::last_os_error());
                }
                if libc::getppid() != parent {
                    libc::raise(libc::SIGKILL);
                }
                if libc::fchdir(dir) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        Ok(Pid::from_raw(child.id() as libc::pid_t))
    }

    /// Moves a product of a successful run into the staging directory, and says what it is there.
    ///
    /// # Errors
    /// [`Error::External`]: the program has not made it, or made something else than a file.
    pub fn take(&self, product: &OsStr, program: &Program) -> Result<nix::sys::stat::FileStat> {
        let missing = |what: &str| Error::External {
            program: program.program.display().to_string(),
            problem: format!("{what} `{}`", product.display()),
        };
        match self.dir.lstat(product)? {
            Some(stat) if durable::is_file(&stat) => {}
            Some(_) => return Err(missing("it made something that is no regular file:")),
            None => return Err(missing("it said success, but there is no")),
        }
        self.dir.rename(product, self.staging, product)?;
        self.staging
            .lstat(product)?
            .ok_or(Errno::ENOENT)
            .io("cannot stat", Path::new(product))
    }

    /// Deletes the directory and what is still in it.
    ///
    /// # Errors
    /// [`Error::Io`]
    pub fn finish(self) -> Result<()> {
        remove(self.staging, &self.name)
    }
}

/// Waits for a child of ours; a signal ends it first.
fn wait(child: Pid) -> Result<WaitStatus> {
    let mut ended: Option<(Error, Instant)> = None;
    loop {
        if ended.is_none()
            && let Err(error) = signal::check()
        {
            let _ = kill(child, Signal::SIGTERM);
            ended = Some((error, Instant::now()));
        }
        if ended
            .as_ref()
            .is_some_and(|(_, since)| since.elapsed() >= GRACE)
        {
            let _ = kill(child, Signal::SIGKILL);
        }
        match waitpid(child, None) {
            // after a signal an alarm interrupts us each second, see `crate::signal`
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).io("cannot wait for", Path::new("a child")),
            Ok(status) => return ended.map_or(Ok(status), |(error, _)| Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Site;
    use crate::stack::testing::loader::FakeSite;

    fn shell(script: &str) -> (FakeSite, Result<()>) {
        let site = FakeSite::new();
        let program = Program {
            program: OsStr::new("sh"),
            arguments: &[OsStr::new("-c"), OsStr::new(script)],
            variable: "SC_X",
        };
        let run = new_run(site.dir()).unwrap();
        let outcome = run
            .execute(&program)
            .and_then(|()| run.take(OsStr::new("f"), &program).map(drop));
        run.finish().unwrap();
        (site, outcome)
    }

    #[test]
    fn a_product_is_taken_after_success_and_nothing_else_stays() {
        let (site, outcome) = shell("echo text > f; mkdir -p a/b; touch a/b/c; chmod 500 a");
        outcome.unwrap();
        assert_eq!(site.read("f"), b"text\n");
        assert_eq!(site.dir().names().unwrap(), ["f"]);
    }

    #[test]
    fn a_failed_run_has_no_products() {
        for (script, problem) in [
            ("echo text > f; exit 3", "`sh` failed: exit status 3"),
            ("echo text > f; kill -9 $$", "`sh` failed: ended by SIGKILL"),
            ("true", "`sh` failed: it said success, but there is no `f`"),
            (
                "ln -s /etc/passwd f",
                "`sh` failed: it made something that is no regular file: `f`",
            ),
        ] {
            let (site, outcome) = shell(script);
            assert_eq!(outcome.unwrap_err().to_string(), problem);
            assert_eq!(site.dir().names().unwrap(), [""; 0]);
        }
    }

    #[test]
    fn what_an_earlier_run_left_is_deleted_first() {
        let site = FakeSite::new();
        std::fs::create_dir_all(site.path("run-1/x")).unwrap();
        std::fs::write(site.path("run-1/x/f"), "old").unwrap();
        let run = new_run(site.dir()).unwrap();
        assert_eq!(site.dir().names().unwrap().len(), 1);
        run.finish().unwrap();
        assert_eq!(site.dir().names().unwrap(), [""; 0]);
    }

    #[test]
    fn a_program_that_is_not_there_is_said() {
        let site = FakeSite::new();
        let run = new_run(site.dir()).unwrap();
        let program = Program {
            program: OsStr::new("sc-no-such-program"),
            arguments: &[],
            variable: "SC_X",
        };
        let error = run.execute(&program).unwrap_err();
        assert_eq!(error.exit_status(), 69);
        assert!(error.to_string().contains("`SC_X`"), "{error}");
    }
}
