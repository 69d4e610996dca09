//! What the variables of [`super`] ask for, in builds with debug assertions.

use std::io::{self, Read};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Plan {
    crash_at: Option<u64>,
    fault: Option<(u64, bool, i32)>,
    pause: Option<(String, String)>,
    log: Option<std::path::PathBuf>,
    openat2: Option<i32>,
}

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let var = |name| std::env::var(name).ok();
        Plan {
            crash_at: var("SC_CRASH_AT").and_then(|text| text.parse().ok()),
            fault: var("SC_FAULT_AT").and_then(|text| {
                let (at, errno) = text.split_once(':')?;
                let from = at.strip_suffix('+');
                Some((
                    from.unwrap_or(at).parse().ok()?,
                    from.is_some(),
                    errno.parse().ok()?,
                ))
            }),
            pause: var("SC_PAUSE_AT").and_then(|text| {
                let (label, fifo) = text.split_once(':')?;
                Some((label.to_owned(), fifo.to_owned()))
            }),
            log: std::env::var_os("SC_POINTS_LOG").map(Into::into),
            openat2: var("SC_OPENAT2").and_then(|text| text.parse().ok()),
        }
    })
}

pub fn openat2() -> nix::Result<()> {
    match plan().openat2 {
        Some(errno) => Err(nix::errno::Errno::from_raw(errno)),
        None => Ok(()),
    }
}

pub fn reach(label: &str) -> io::Result<()> {
    static REACHED: AtomicU64 = AtomicU64::new(0);
    static PAUSED: AtomicU64 = AtomicU64::new(0);
    let plan = plan();
    let n = REACHED.fetch_add(1, Ordering::SeqCst) + 1;
    if let Some(log) = &plan.log {
        use std::io::Write;
        let mut log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(log)?;
        writeln!(log, "{n} {label}")?;
    }
    if plan.crash_at == Some(n) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
    }
    if let Some((wanted, fifo)) = &plan.pause
        && wanted == label
        && PAUSED.swap(1, Ordering::SeqCst) == 0
    {
        io::copy(&mut std::fs::File::open(fifo)?.take(1024), &mut io::sink())?;
    }
    match plan.fault {
        Some((at, onwards, errno)) if n == at || (onwards && n > at) => {
            Err(io::Error::from_raw_os_error(errno))
        }
        _ => Ok(()),
    }
}
