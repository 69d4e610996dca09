//! Who registered a use, and whether he still can.
//!
//! A holder is a process; a lock that a command of `--run` inherited, or one on a file that
//! somebody keeps open (`--fd`): such a hold lasts while any copy of the descriptor is open, in
//! whatever namespace, and the kernel ends it; or a batch job, which is its cgroup (`--job`).
//! A holder that is no process appears to the reference as pid 1, which never dies for it.
//!
//! With a lease a hold ends at its time at the latest, whatever its holder does.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::descriptor::{self, Descriptor};
use super::{Held, guest, layout};
use crate::cgroup::Cgroup;
use crate::durable::{self, Dir, Flock, PRIVATE_FILE};
use crate::error::{IoContext, Result};
use crate::process::{self, Identity, Life};
use crate::share::Share;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    #[serde(flatten)]
    pub hold: Hold,
    /// `--id`: tells several holders of one process apart.
    #[serde(default)]
    pub id: Option<String>,
    pub since_unix_s: u64,
    /// `--lease`
    #[serde(default)]
    pub lease: Option<Lease>,
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
        /// As [`Identity::host`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// `--fd`: somebody has this file open, locked shared.
    Descriptor(Descriptor),
    /// `--job`
    Job {
        #[serde(flatten)]
        cgroup: Cgroup,
        /// What the batch system calls it.
        job_id: Option<String>,
    },
}

/// A hold that ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub length_s: u64,
    pub until_unix_s: u64,
    /// In this boot the clock that nobody sets judges, in another one the date.
    until_boot_s: u64,
    boot_id: Option<String>,
}

impl Lease {
    /// One that begins now.
    pub fn new(length_s: u64) -> Lease {
        Lease {
            length_s,
            until_unix_s: process::unix_time_s().saturating_add(length_s),
            until_boot_s: process::since_boot_s().saturating_add(length_s),
            boot_id: process::boot_id(),
        }
    }

    pub fn is_over(&self) -> bool {
        match self.boot_id.is_some() && self.boot_id == process::boot_id() {
            true => self.until_boot_s <= process::since_boot_s(),
            false => self.until_unix_s <= process::unix_time_s(),
        }
    }
}

impl Holder {
    pub fn new(hold: Hold, id: Option<String>, lease_s: Option<u64>) -> Holder {
        Holder {
            hold,
            id,
            since_unix_s: process::unix_time_s(),
            lease: lease_s.map(Lease::new),
            provisional: false,
        }
    }

    pub fn on_node_of(mut self, held: &Held) -> Holder {
        match &mut self.hold {
            Hold::Process(process) => *process = held.of_this_node(process.clone()),
            // what others share may be held by a file of any of them
            Hold::Descriptor(descriptor) if held.control.share() != Share::User => {
                descriptor.uid = Some(process::user());
            }
            _ => {}
        }
        self
    }

    pub fn process(pid: i32, id: Option<String>) -> Holder {
        Holder::new(Hold::Process(Identity::of(pid)), id, None)
    }

    /// Takes away what stands for it in the control directory, when it is over.
    pub fn forget(&self, control: &Dir) -> Result<()> {
        match &self.hold {
            Hold::Lock { file, .. } => forget_lock(control, file),
            _ => Ok(()),
        }
    }

    /// Begins its lease anew: what was waited for, or loaded meanwhile, is no time of use.
    pub fn renew(&mut self) {
        self.lease = self.lease.as_ref().map(|lease| Lease::new(lease.length_s));
    }

    /// The number that stands for it in `readers`.
    pub fn reader(&self) -> i32 {
        match &self.hold {
            Hold::Process(process) => process.pid,
            Hold::Lock { .. } | Hold::Descriptor(_) | Hold::Job { .. } => 1,
        }
    }

    pub fn is_same(&self, other: &Holder) -> bool {
        self.id == other.id
            && match (&self.hold, &other.hold) {
                (Hold::Process(one), Hold::Process(two)) => one.is_same(two),
                (Hold::Lock { file: one, .. }, Hold::Lock { file: two, .. }) => one == two,
                (Hold::Descriptor(one), Hold::Descriptor(two)) => one.is_same(two),
                // an epilog knows the number of a job in whose cgroup it is not
                (
                    Hold::Job {
                        job_id: Some(one), ..
                    },
                    Hold::Job {
                        job_id: Some(two), ..
                    },
                ) => one == two,
                (Hold::Job { cgroup: one, .. }, Hold::Job { cgroup: two, .. }) => one == two,
                _ => false,
            }
    }

    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io) from looking at a lock file.
    pub fn life(&self, control: &Dir) -> Result<Life> {
        let said = match &self.hold {
            Hold::Descriptor(descriptor) => descriptor.uid,
            _ => None,
        };
        match said {
            Some(uid) => self.life_of(control, uid),
            None => self.life_of(control, control.stat()?.st_uid),
        }
    }

    /// The same for one of this user: of nobody else's file is asked.
    pub(super) fn life_of(&self, control: &Dir, owner: u32) -> Result<Life> {
        if self.lease.as_ref().is_some_and(Lease::is_over) {
            return Ok(Life::Dead);
        }
        match &self.hold {
            Hold::Descriptor(descriptor) => {
                let own = control.lstat(OsStr::new(layout::LOCK))?;
                let own = own.map(|own| (own.st_dev, own.st_ino));
                Ok(descriptor.life(own, owner))
            }
            Hold::Job { cgroup, .. } => Ok(cgroup.life()),
            Hold::Process(process) => Ok(process.life()),
            Hold::Lock {
                boot_id: then,
                host,
                ..
            } if then.is_some() && process::boot_id().is_some_and(|now| Some(now) != *then) => {
                Ok(process::after_boot(host.as_deref()))
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
            Hold::Descriptor(descriptor) => write!(f, "{descriptor}")?,
            Hold::Job {
                job_id: Some(id), ..
            } => write!(f, "job {}", id.escape_debug())?,
            Hold::Job { cgroup, .. } => write!(f, "{cgroup}")?,
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
pub fn make_lock(held: &Held) -> Result<(HeldLock, Hold)> {
    let control = &held.control;
    let holders = held.holders()?;
    let name = process::random_name();
    let file = holders.create(OsStr::new(&name), PRIVATE_FILE)?;
    let path = holders.path_of(&name);
    let meta = file.metadata().io("cannot stat", &path)?;
    // nobody else knows the file yet
    durable::try_flock(&file, Flock::Exclusive).io("cannot lock", &path)?;
    let me = held.of_this_node(Identity::of(std::process::id() as i32));
    let hold = Hold::Lock {
        file: name,
        dev: meta.dev(),
        ino: meta.ino(),
        boot_id: me.boot_id,
        pid_ns: me.pid_ns,
        sc_pid: me.pid,
        host: me.host,
    };
    let _guard = control.flock_shared();
    Ok((HeldLock { file, _guard }, hold))
}

fn forget_lock(control: &Dir, file: &str) -> Result<()> {
    if file.contains('/') {
        return Ok(());
    }
    let name = OsStr::new(layout::HOLDERS);
    if let Some(holders) = control.find_dir(name)? {
        holders.unlink(OsStr::new(file))?;
        if control.share() != Share::All {
            control.rmdir(name)?;
        }
    }
    Ok(())
}

/// Removes the lock files that nobody has locked: those of a `--run` that was killed before its
/// hold stood in the repofile, or after it was taken out.
pub fn sweep(control: &Dir) -> Result<()> {
    if control.share() == Share::All {
        guest::sweep(control)?;
    }
    let name = OsStr::new(layout::HOLDERS);
    let Some(holders) = control.find_dir(name)? else {
        return Ok(());
    };
    for file in holders.names()? {
        if control.share() == Share::All
            && !(holders.lstat(&file)?).is_some_and(|stat| durable::is_file(&stat))
        {
            continue;
        }
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
            match holders.find_file(OsStr::new(name), OFlag::O_RDWR) {
                // another user's, who shares with all: to read is enough to lock
                Err(error) if error.errno() == Some(Errno::EACCES) => {
                    holders.find_file(OsStr::new(name), OFlag::O_RDONLY)?
                }
                found => found?,
            }
        }
        _ => None,
    };
    let same = file.filter(|file| {
        file.metadata()
            .is_ok_and(|m| m.ino() == ino && m.dev() == dev)
    });
    let Some(file) = same else {
        let own = control.lstat(OsStr::new(layout::LOCK))?;
        let own = own.map(|own| (own.st_dev, own.st_ino));
        return Ok(descriptor::life_in_list((dev, ino), pid_ns, own));
    };
    Ok(match durable::try_flock(&file, Flock::Exclusive) {
        Ok(true) => Life::Dead,
        Ok(false) => Life::Alive,
        Err(_) => Life::Doubt,
    })
}
