//! SIGINT, SIGTERM and SIGHUP as a flag that [`check`] turns into an error, and the alarm that
//! bounds a wait.
//!
//! No handler has SA_RESTART: a blocking call returns EINTR and its loop looks at the flag. A
//! signal that lands between the look and the call would be slept over; so the handler arms an
//! alarm that repeats each second until the process ends.
//!
//! While `--run` has a command, a signal that a *process* sent (`si_pid` ≠ 0) is passed on to it;
//! one from the terminal is not, because the kernel has sent it to the whole process group and
//! the command would see Ctrl-C twice.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};

use crate::error::{Error, Result};

static RECEIVED: AtomicI32 = AtomicI32::new(0);
static COMMAND: AtomicI32 = AtomicI32::new(0);
/// A signal sent by a process that came before [`COMMAND`] was known.
static OWED: AtomicI32 = AtomicI32::new(0);
static TICKING: AtomicBool = AtomicBool::new(false);

extern "C" fn ended(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let _ = RECEIVED.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    let command = COMMAND.load(Ordering::SeqCst);
    // SAFETY: kill and alarm are async-signal-safe (signal-safety(7)); the kernel hands a
    // SA_SIGINFO handler a valid siginfo, whose si_pid is set for signals sent by kill(2).
    unsafe {
        if (*info).si_code <= 0 && (*info).si_pid() != 0 {
            match command {
                0 => OWED.store(signal, Ordering::SeqCst),
                _ => drop(libc::kill(command, signal)),
            }
        }
        libc::alarm(1);
    }
}

extern "C" fn tick(_: libc::c_int) {
    if TICKING.load(Ordering::SeqCst) || RECEIVED.load(Ordering::SeqCst) != 0 {
        // SAFETY: alarm is async-signal-safe.
        unsafe { libc::alarm(1) };
    }
}

/// A closed pipe is an error of the one write, not the end of the process.
pub fn ignore_broken_pipes() {
    // SAFETY: no handler is installed, SIGPIPE is ignored.
    unsafe {
        let _ = signal::signal(Signal::SIGPIPE, SigHandler::SigIgn);
    }
}

/// Installs the handlers; called once, by main. A signal that was ignored when we were started
/// (`nohup`) stays ignored, and SIGPIPE is ignored: a closed stdout is an error, not a death.
pub fn install() {
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let action = SigAction::new(
            SigHandler::SigAction(ended),
            SaFlags::SA_SIGINFO,
            SigSet::empty(),
        );
        // SAFETY: the handler does only what signal-safety(7) allows.
        unsafe {
            if let Ok(before) = signal::sigaction(number, &action)
                && matches!(before.handler(), SigHandler::SigIgn)
            {
                let _ = signal::sigaction(number, &before);
            }
        }
    }
    let action = SigAction::new(SigHandler::Handler(tick), SaFlags::empty(), SigSet::empty());
    // SAFETY: as above.
    unsafe {
        let _ = signal::sigaction(Signal::SIGALRM, &action);
    }
}

/// # Errors
/// [`Error::Interrupted`] once one of the three signals has arrived.
pub fn check() -> Result<()> {
    match RECEIVED.load(Ordering::SeqCst) {
        0 => Ok(()),
        signal => Err(Error::Interrupted { signal }),
    }
}

/// A thread beside the main one: signals go past it, so that they interrupt what the main one waits
/// for.
///
/// # Errors
/// From `pthread_create(3)`: too many processes.
pub fn quiet_thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            be_quiet();
            work();
        })
}

/// Blocks all signals in the thread that calls it.
pub fn be_quiet() {
    let _ = SigSet::all().thread_block();
}

/// Forgets a signal that has been dealt with.
pub fn forget() {
    RECEIVED.store(0, Ordering::SeqCst);
}

/// From now on signals sent by a process go to this one too; also the one that came while it was
/// being started, which nobody would ever tell it of.
pub fn pass_on_to(pid: Option<i32>) {
    COMMAND.store(pid.unwrap_or(0), Ordering::SeqCst);
    let owed = OWED.swap(0, Ordering::SeqCst);
    if let Some(pid) = pid.filter(|_| owed != 0) {
        // SAFETY: kill(2) touches no memory; the process is our child and not waited for yet.
        unsafe { libc::kill(pid, owed) };
    }
}

/// While it lives, blocking calls return EINTR at least once a second.
pub struct Ticks(());

impl Ticks {
    pub fn start() -> Ticks {
        TICKING.store(true, Ordering::SeqCst);
        Ticks(())
    }

    /// The next tick comes in a second, or in `limit` if that is sooner.
    pub fn arm(&self, limit: Option<Duration>) {
        let first = limit.unwrap_or(Duration::MAX).min(Duration::from_secs(1));
        let micros = first.as_micros().clamp(1000, 1_000_000) as i64;
        let time = |micros: i64| libc::timeval {
            tv_sec: micros / 1_000_000,
            tv_usec: micros % 1_000_000,
        };
        let timer = libc::itimerval {
            it_interval: time(0),
            it_value: time(micros),
        };
        // SAFETY: both pointers are valid or null, as setitimer(2) wants them.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        TICKING.store(false, Ordering::SeqCst);
        if RECEIVED.load(Ordering::SeqCst) == 0 {
            nix::unistd::alarm::cancel();
        }
    }
}

/// How long to wait for another process, from when on.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    limit: Option<Duration>,
    since: Instant,
}

impl Patience {
    /// `None`: for ever; zero: not at all.
    pub fn new(limit: Option<Duration>) -> Patience {
        Patience {
            limit,
            since: Instant::now(),
        }
    }

    pub fn limit(&self) -> Option<Duration> {
        self.limit
    }

    /// What is left of it; `None` = for ever.
    pub fn left(&self) -> Option<Duration> {
        self.limit
            .map(|limit| limit.saturating_sub(self.since.elapsed()))
    }

    pub fn is_over(&self) -> bool {
        self.left() == Some(Duration::ZERO)
    }
}
