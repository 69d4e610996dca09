//! Who registered a use, and whether he still can.
//!
//! A holder is a process, or a lock that a command of `--run` inherited: such a hold lasts while
//! any descendant keeps the descriptor open, in whatever namespace, and the kernel ends it.
//! A holder that is no process appears to the reference as pid 1, which never dies for it.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::layout;
use crate::durable::{self, Dir, Flock, PRIVATE_DIR, PRIVATE_FILE};
use crate::error::{IoContext, Result};
use crate::process::{self, Identity, Life};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    #[serde(flatten)]
    pub hold: Hold,
    /// `--id`: tells several holders of one process apart.
    #[serde(default)]
    pub id: Option<String>,
    pub since_unix_s: u64,
    /// Its load is not finished: it is no holder yet for anybody but a reference.
    #[serde(default)]
    pub provisional: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Hold {
    Process(Identity),
    /// `holders/<file>` is locked exclusively while the hold lasts.
    Lock {
        file: String,
        dev: u64,
        ino: u64,
        boot_id: Option<String>,
        pid_ns: Option<u64>,
        sc_pid: i32,
    },
}

impl Holder {
    pub fn process(pid: i32, id: Option<String>) -> Holder {
        Holder {
            hold: Hold::Process(Identity::of(pid)),
            id,
            since_unix_s: process::unix_time_s(),
            provisional: false,
        }
    }

    /// The number that stands for it in `readers`.
    pub fn reader(&self) -> i32 {
        match &self.hold {
            Hold::Process(process) => process.pid,
            Hold::Lock { .. } => 1,
        }
    }

    pub fn is_same(&self, other: &Holder) -> bool {
        self.id == other.id
            && match (&self.hold, &other.hold) {
                (Hold::Process(one), Hold::Process(two)) => one.is_same(two),
                (Hold::Lock { file: one, .. }, Hold::Lock { file: two, .. }) => one == two,
                _ => false,
            }
    }

    /// # Errors
    /// [`Error::Io`] from looking at a lock file.
    pub fn life(&self, control: &Dir) -> Result<Life> {
        match &self.hold {
            Hold::Process(process) => Ok(process.life()),
            Hold::Lock { boot_id: then, .. }
                if then.is_some() && process::boot_id().is_some_and(|now| Some(now) != *then) =>
            {
                Ok(Life::Dead)
            }
            Hold::Lock {
                file,
                dev,
                ino,
                pid_ns,
                ..
            } => lock_life(control, file, *dev, *ino, *pid_ns),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hold {
            Hold::Process(process) => write!(f, "pid {}", process.pid)?,
            Hold::Lock { sc_pid, .. } => write!(f, "`sc --run` of pid {sc_pid}")?,
        }
        match &self.id {
            Some(id) => write!(f, " (`{}`)", id.escape_debug()),
            None => Ok(()),
        }
    }
}

/// The lock file of a `--run`, locked; its last copy closed, the hold is over.
pub struct HeldLock {
    pub file: File,
    /// Keeps systemd-tmpfiles out of the control directory.
    _guard: Option<std::os::fd::OwnedFd>,
}

/// Makes and locks `holders/<name>`; the caller holds the repository's lock.
pub fn make_lock(control: &Dir) -> Result<(HeldLock, Hold)> {
    let holders = control.ensure_dir(OsStr::new(layout::HOLDERS), PRIVATE_DIR)?;
    let name = process::random_name();
    let file = holders.create(OsStr::new(&name), PRIVATE_FILE)?;
    let path = holders.path_of(&name);
    let meta = file.metadata().io("cannot stat", &path)?;
    // nobody else knows the file yet
    durable::try_flock(&file, Flock::Exclusive).io("cannot lock", &path)?;
    let me = Identity::of(std::process::id() as i32);
    let hold = Hold::Lock {
        file: name,
        dev: meta.dev(),
        ino: meta.ino(),
        boot_id: me.boot_id,
        pid_ns: me.pid_ns,
        sc_pid: me.pid,
    };
    let _guard = control.flock_shared();
    Ok((HeldLock { file, _guard }, hold))
}

/// Removes the lock file of a hold that is over.
pub fn forget_lock(control: &Dir, file: &str) -> Result<()> {
    if file.contains('/') {
        return Ok(());
    }
    let name = OsStr::new(layout::HOLDERS);
    if let Some(holders) = control.find_dir(name)? {
        holders.unlink(OsStr::new(file))?;
        control.rmdir(name)?;
    }
    Ok(())
}

/// Removes the lock files that nobody has locked: those of a `--run` that was killed before its
/// hold stood in the repofile, or after it was taken out.
pub fn sweep(control: &Dir) -> Result<()> {
    let name = OsStr::new(layout::HOLDERS);
    let Some(holders) = control.find_dir(name)? else {
        return Ok(());
    };
    for file in holders.names()? {
        let found = holders.find_file(&file, OFlag::O_RDWR)?;
        if found.is_some_and(|f| matches!(durable::try_flock(&f, Flock::Exclusive), Ok(true))) {
            holders.unlink(&file)?;
        }
    }
    control.rmdir(name).map(drop)
}

/// Over, when the same inode opened anew can be locked. If it can't be opened, the kernel's list
/// of locks is asked, which shows every lock only in the namespace it was taken in.
fn lock_life(control: &Dir, name: &str, dev: u64, ino: u64, pid_ns: Option<u64>) -> Result<Life> {
    let file = match control.find_dir(OsStr::new(layout::HOLDERS))? {
        Some(holders) if !name.contains('/') => {
            holders.find_file(OsStr::new(name), OFlag::O_RDWR)?
        }
        _ => None,
    };
    let same = file.filter(|file| {
        file.metadata()
            .is_ok_and(|m| m.ino() == ino && m.dev() == dev)
    });
    let Some(file) = same else {
        let here = Identity::of(std::process::id() as i32).pid_ns;
        let own = control.lstat(OsStr::new(layout::LOCK))?;
        let is_over = here.is_some()
            && here == pid_ns
            && own.is_some_and(|own| {
                process::is_surely_unlocked((dev, ino), (own.st_dev, own.st_ino))
            });
        return Ok(if is_over { Life::Dead } else { Life::Doubt });
    };
    Ok(match durable::try_flock(&file, Flock::Exclusive) {
        Ok(true) => Life::Dead,
        Ok(false) => Life::Alive,
        Err(_) => Life::Doubt,
    })
}
