//! A hold by an open file (`--fd N`): the shell's `exec 9>>file`, a launcher's descriptor.
//!
//! sc locks the file shared through N. Such a lock belongs to the open file description, not to a
//! process: it lasts until the last copy of N is closed, by whichever descendant, in whatever
//! namespace, and the kernel ends it. So a hold is over when the same inode, opened anew, can be
//! locked exclusively. The lock is never given back by sc: several repositories may be held by
//! one file.
//!
//! The file is the holder: two who open it each for himself are one holder, and need `--id`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag};
use serde::{Deserialize, Serialize};

use super::layout;
use crate::durable::{self, Flock};
use crate::error::{Error, IoContext, Result};
use crate::process::{self, Life};

/// An sc that looks whether a hold is over has the file locked for a moment.
const LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Where the file was; encoded.
    pub path: Option<String>,
    dev: u64,
    ino: u64,
    boot_id: Option<String>,
    pid_ns: Option<u64>,
    /// Whose file it is, where that may be another's than the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<u32>,
}

impl Descriptor {
    /// The file that our caller has open as `fd`.
    ///
    /// # Errors
    /// [`Error::Usage`]: it is not open, no regular file, or another user's.
    pub fn inherited(fd: RawFd) -> Result<Descriptor> {
        let wrong = |problem: &str, hint: &str| {
            Err(Error::Usage {
                problem: format!("descriptor {fd} (`--fd`) {problem}"),
                hint: Some(hint.into()),
            })
        };
        // what sc has opened itself is closed on exec; what it was given cannot be
        let Some(file) = open(fd).filter(|file| is_inherited(*file)) else {
            return wrong(
                "is not open",
                "open a file of your own for it first: `exec 9>>FILE`, then `--fd 9`",
            );
        };
        let stat = nix::sys::stat::fstat(file).io("cannot stat", &own_link(fd))?;
        if !durable::is_file(&stat) {
            return wrong("is no regular file", "open a file: `exec 9>>FILE`");
        }
        if stat.st_uid != process::user() {
            return wrong(
                "is a file of another user, who could lock it too",
                "open a file of your own: `exec 9>>FILE`",
            );
        }
        let path = std::fs::read_link(own_link(fd)).ok();
        Ok(Descriptor {
            path: path.map(|path| layout::encode(&path)),
            dev: stat.st_dev,
            ino: stat.st_ino,
            boot_id: process::boot_id(),
            pid_ns: process::namespace("pid"),
            uid: None,
        })
    }

    /// Locks it shared through `fd`.
    ///
    /// # Errors
    /// [`Error::Locked`]: somebody has it locked exclusively, and could never be told from a
    /// hold that is over.
    pub fn lock(&self, fd: RawFd) -> Result<()> {
        for _ in 0..LOOKS {
            // Anew, because through `fd` an exclusive lock of the caller's own would be weakened.
            let is_free = match self.reopen(process::user()) {
                Some(file) => {
                    durable::try_flock(&file, Flock::Shared).io("cannot lock", &own_link(fd))?
                }
                None => true,
            };
            let Some(file) = open(fd).filter(|_| is_free) else {
                std::thread::sleep(LOOK);
                continue;
            };
            if durable::try_flock(file, Flock::Shared).io("cannot lock", &own_link(fd))? {
                return Ok(());
            }
        }
        Err(Error::Locked {
            what: format!("descriptor {fd} (`--fd`)"),
            file: self.to_string(),
        })
    }

    pub fn is_same(&self, other: &Descriptor) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }

    /// `own` is the lock of ours under which it is asked, `owner` whose repository it is.
    pub fn life(&self, own: Option<(u64, u64)>, owner: u32) -> Life {
        match (&self.boot_id, process::boot_id()) {
            (Some(then), Some(now)) if *then != now => return Life::Dead,
            (Some(_), Some(_)) => {}
            _ => return Life::Doubt,
        }
        match self.reopen(owner) {
            None => life_in_list((self.dev, self.ino), self.pid_ns, own),
            Some(file) => match durable::try_flock(&file, Flock::Exclusive) {
                Ok(true) => Life::Dead,
                Ok(false) => Life::Alive,
                Err(_) => Life::Doubt,
            },
        }
    }

    /// The file opened anew, if it is still at its path and may be opened.
    ///
    /// The path is what another user may have written into his repofile, and root may be asking:
    /// it is looked at before it is opened, for to open a device may be to use it, and a file of
    /// somebody else's may be a lock that he waits for.
    fn reopen(&self, owner: u32) -> Option<File> {
        let path = layout::decode(self.path.as_ref()?);
        let named = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_PATH | OFlag::O_NOFOLLOW).bits())
            .open(path)
            .ok()?;
        let meta = named.metadata().ok()?;
        let is_it = (meta.dev(), meta.ino()) == (self.dev, self.ino);
        if !is_it || !meta.is_file() || meta.uid() != owner {
            return None;
        }
        let link = own_link(named.as_raw_fd());
        let mut options = OpenOptions::new();
        options.custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits());
        // NFS locks exclusively through a descriptor for writing alone, and shared for reading
        options
            .read(true)
            .write(true)
            .open(&link)
            .or_else(|_| options.read(true).write(false).open(&link))
            .or_else(|_| options.read(false).write(true).open(&link))
            .ok()
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => {
                let path = layout::decode(path).display().to_string();
                write!(f, "open file `{}`", path.escape_debug())
            }
            None => write!(f, "open file {}:{}", self.dev, self.ino),
        }
    }
}

/// The kernel's list of locks, asked where the file cannot be opened: it shows a lock only in the
/// pid namespace that it was taken in.
pub(super) fn life_in_list(
    inode: (u64, u64),
    pid_ns: Option<u64>,
    own: Option<(u64, u64)>,
) -> Life {
    let here = process::namespace("pid");
    let is_over = here.is_some()
        && here == pid_ns
        && own.is_some_and(|own| process::is_surely_unlocked(inode, own));
    if is_over { Life::Dead } else { Life::Doubt }
}

fn own_link(fd: RawFd) -> PathBuf {
    Path::new("/proc/self/fd").join(fd.to_string())
}

fn open(fd: RawFd) -> Option<BorrowedFd<'static>> {
    // SAFETY: fcntl(2) with F_GETFD takes any number and touches no memory.
    let is_open = fd >= 0 && unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1;
    // SAFETY: it is open, and nobody in this program closes a descriptor that it did not open.
    is_open.then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

fn is_inherited(fd: BorrowedFd) -> bool {
    let flags = nix::fcntl::fcntl(fd, FcntlArg::F_GETFD);
    flags.is_ok_and(|flags| !FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC))
}
