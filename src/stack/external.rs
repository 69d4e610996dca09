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
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
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
///
/// EINTR is not enough to notice a signal: the kernel may hand it to another thread. So a thread
/// waits in our place, and does not reap: until we do that, the pid we may have to kill is the
/// child's.
fn wait(child: Pid) -> Result<WaitStatus> {
    /// A signal waits so long at most; the child's end is seen at once.
    const LOOK: Duration = Duration::from_millis(200);
    let (sender, receiver) = mpsc::channel();
    let spawned = std::thread::Builder::new()
        .name("wait".into())
        .spawn(move || {
            let _ = SigSet::all().thread_block();
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            let _ = sender.send(waitid(Id::Pid(child), flags).map(drop));
        });
    if let Err(error) = spawned {
        let _ = kill(child, Signal::SIGKILL);
        let _ = reap(child);
        return Err(error).io("cannot wait for", Path::new("a child"));
    }
    let mut ended: Option<(Error, Instant)> = None;
    while receiver.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
        match &ended {
            Some((_, since)) if since.elapsed() >= GRACE => {
                let _ = kill(child, Signal::SIGKILL);
            }
            Some(_) => {}
            None => {
                if let Err(error) = signal::check() {
                    let _ = kill(child, Signal::SIGTERM);
                    ended = Some((error, Instant::now()));
                }
            }
        }
    }
    let status = reap(child)?;
    ended.map_or(Ok(status), |(error, _)| Err(error))
}

fn reap(child: Pid) -> Result<WaitStatus> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            outcome => return outcome.io("cannot wait for", Path::new("a child")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read};

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

    /// What the children below do: a program that says `ready` and then goes on for ever.
    #[test]
    fn child() {
        let Ok(script) = std::env::var("SC_TEST_SCRIPT") else {
            return;
        };
        signal::install();
        let (site, outcome) = shell(&script);
        let left = site.dir().names().unwrap().len();
        println!("\n{left} left: {}", outcome.unwrap_err());
    }

    /// Sends a signal to a process of ours when its program is ready; what it says, when both are
    /// gone: the program holds stderr open, so its end is seen there.
    fn ended_by(signal: Signal, script: &str) -> String {
        let mut child = Command::new(std::env::current_exe().unwrap())
            // one thread: the test then runs in the main one, as in sc
            .args([
                "stack::external::tests::child",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("SC_TEST_SCRIPT", script)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let mut output = String::new();
        said.read_to_string(&mut output).unwrap();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut output)
            .unwrap();
        child.wait().unwrap();
        output
    }

    #[test]
    fn a_signal_to_us_ends_the_program_first() {
        let script = "trap 'echo so be it; exit 0' TERM; echo ready; for i in $(seq 300); do sleep 0.1; done";
        let output = ended_by(Signal::SIGTERM, script);
        assert!(output.starts_with("so be it\n"), "{output}");
        assert!(output.contains("\n0 left: ended by SIGTERM\n"), "{output}");
    }

    #[test]
    fn the_program_dies_with_us() {
        // exec: the kernel's promise is for our child alone, not for what it starts
        let output = ended_by(Signal::SIGKILL, "echo ready; exec sleep 30");
        assert!(!output.contains("left"), "{output}");
    }
}
