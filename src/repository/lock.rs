//! The lock file: opened, locked, and only then believed.
//!
//! The lock file is deleted with the repository, so a process may lock an inode that is no
//! longer the one at `lock`. Whoever has locked looks again which inode has the name now, and
//! starts over if it is another one (I8); whoever deletes the file does so while it holds it.
//!
//! Opening goes without O_CREAT first: with `fs.protected_regular` an O_CREAT of another user's
//! file in a sticky directory is EACCES. The file is opened for writing too: NFS turns a flock
//! into a write lock and refuses it on a read-only descriptor.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;

use fd_lock::RwLock;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::layout;
use crate::durable::{self, Dir, PRIVATE_FILE};
use crate::error::{Error, IoContext, Result, spoken};
use crate::process;
use crate::share::Share;
use crate::signal::{self, Patience, Ticks};

/// Opens the lock file in `control`, making it if there is none; also its (dev, ino).
pub fn open(control: &Dir) -> Result<(RwLock<File>, (u64, u64))> {
    let name = OsStr::new(layout::LOCK);
    loop {
        let is_file = control
            .lstat(name)?
            .is_none_or(|stat| durable::is_file(&stat));
        if !is_file {
            let problem = "stands where sc's lock file belongs, and is no file";
            return Err(control.foreign(name, problem, "move it away"));
        }
        let file = match control.find_file(name, OFlag::O_RDWR)? {
            Some(file) => file,
            None if control.share() == Share::User => match control.create(name, PRIVATE_FILE) {
                Err(error) if error.errno() == Some(Errno::EEXIST) => continue,
                file => file?,
            },
            None => {
                make_for_others(control, name)?;
                continue;
            }
        };
        let stat = nix::sys::stat::fstat(&file).io("cannot stat", &control.path_of(name))?;
        if !durable::is_file(&stat) {
            return Err(control.foreign(name, "is no lock file", "move it away"));
        }
        return Ok((RwLock::new(file), (stat.st_dev, stat.st_ino)));
    }
}

/// Makes a lock file that others can open the moment it is there: one that they cannot would shut
/// them out for good, were its maker killed before he could change the mode.
fn make_for_others(control: &Dir, name: &OsStr) -> Result<()> {
    let next = OsString::from(format!("{}{}", layout::LOCK_NEXT, process::random_name()));
    let file = control.create(&next, PRIVATE_FILE)?;
    let moved = match control.share() {
        Share::All => {
            durable::set_mode(&file, 0o666).io("cannot change mode of", &control.path_of(&next))
        }
        _ => Ok(()),
    }
    .and_then(|()| control.rename_new(&next, control, name));
    match moved {
        Err(error) if error.errno() == Some(Errno::EEXIST) => control.unlink(&next).map(drop),
        Err(error) => {
            let _ = control.unlink(&next);
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

/// How waiting for the lock ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Wait {
    Locked,
    GaveUp,
}

/// Locks exclusively: tries, calls `busy` if somebody else has it, then blocks in the kernel.
/// `busy` answers whether it has said something; if not, it is called again each second, because
/// most waits are over before anybody could read of them. `each_second` runs while it waits if
/// `ticking`. The lock lasts until the `RwLock` is dropped,
/// which closes the file: fd-lock's guard borrows, so it is forgotten here.
///
/// # Errors
/// [`Error::Interrupted`]; [`Error::Io`] from `flock(2)`.
pub fn acquire(
    lock: &mut RwLock<File>,
    path: &std::path::Path,
    patience: &Patience,
    ticking: bool,
    busy: &mut dyn FnMut(bool) -> bool,
    each_second: &mut dyn FnMut(),
) -> Result<Wait> {
    loop {
        match lock.try_write() {
            Ok(guard) => {
                std::mem::forget(guard);
                return Ok(Wait::Locked);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => signal::check()?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(no_lock(error, path)),
        }
    }
    if patience.is_over() {
        return Ok(Wait::GaveUp);
    }
    let mut said = busy(false);
    let must_tick = ticking || patience.limit().is_some();
    let mut ticks = (must_tick || !said).then(Ticks::start);
    loop {
        if let Some(ticks) = &ticks {
            ticks.arm(patience.left());
        }
        match lock.write() {
            Ok(guard) => {
                std::mem::forget(guard);
                return Ok(Wait::Locked);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                signal::check()?;
                if patience.is_over() {
                    return Ok(Wait::GaveUp);
                }
                if !said {
                    said = busy(true);
                    ticks = ticks.filter(|_| must_tick);
                }
                each_second();
            }
            Err(error) => return Err(no_lock(error, path)),
        }
    }
}

/// What flock(2) said. ENOLCK, ENOSYS, ENOTSUP and 524, its name inside the kernel, are said by
/// file systems that do not lock.
fn no_lock(error: io::Error, path: &std::path::Path) -> Error {
    match error.raw_os_error() {
        Some(libc::ENOLCK | libc::ENOSYS | libc::ENOTSUP | 524) => Error::NoLocks {
            path: path.to_owned(),
            problem: spoken(&error),
        },
        _ => Error::Io {
            doing: "cannot lock",
            path: path.to_owned(),
            source: error,
        },
    }
}
