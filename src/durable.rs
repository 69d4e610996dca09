//! The only place where a path becomes a file descriptor and where the disk is changed.
//!
//! A [`Dir`] is an open directory. Every call takes names relative to it and follows no symlink;
//! so whoever swaps a directory for a link while we work changes nothing but his own directory.
//! What is opened is opened by [`beneath`]; all other calls take a single name, and [`name_of`]
//! sees to it that it is one: a path with `/` or `..` is EXDEV, wherever it came from.
//!
//! Order, not fsync, is what holds the data together: after SIGKILL the kernel still has every
//! write that returned, and after a reboot nothing counts until it was verified again (see the
//! invariants in [`crate::repository`]).
//!
//! # Crash and fault points
//!
//! Every change of the disk passes [`point`] first. In builds with debug assertions these
//! variables make a point act; in release builds they are not read.
//!
//! * `SC_CRASH_AT=N`: SIGKILL to ourselves instead of the N-th change;
//! * `SC_FAULT_AT=N:ERRNO` or `N+:ERRNO`: the N-th change (and all after it) fails so;
//! * `SC_FILE_SYSTEM=NUMBER`: what `statfs(2)` calls every file system, in hexadecimal;
//! * `SC_PAUSE_AT=LABEL:FIFO`: at the first point so labelled, open FIFO for reading and wait for
//!   its end: a test arranges a race by holding the other side open;
//! * `SC_OPENAT2=ERRNO`: openat2(2) fails so, as on an old kernel or below a seccomp filter.

mod beneath;
mod listed;
#[cfg(debug_assertions)]
mod points;
mod watch;

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::UnlinkatFlags;

use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::share::Share;
use beneath::{DIRECTORY, beneath};
pub use listed::{Listed, Name};
pub use watch::Watch;

/// A change of the disk is about to happen: the place where tests kill, fail or pause us.
///
/// # Errors
/// The errno a fault test asked for; never in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_label: &str) -> io::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
pub fn point(label: &str) -> io::Result<()> {
    points::reach(label)
}

/// The `f_type` of `fstatfs(2)`.
pub fn file_system_type(dir: &Dir) -> Result<u32> {
    #[cfg(debug_assertions)]
    if let Some(magic) = std::env::var("SC_FILE_SYSTEM")
        .ok()
        .and_then(|text| u32::from_str_radix(&text, 16).ok())
    {
        return Ok(magic);
    }
    let stat = nix::sys::statfs::fstatfs(&dir.fd).io("cannot stat", &dir.path)?;
    Ok(stat.filesystem_type().0 as u32)
}

/// The mode of directories that are ours alone.
pub const PRIVATE_DIR: u32 = 0o700;
/// The mode of files that are ours alone.
pub const PRIVATE_FILE: u32 = 0o600;

/// An open directory, and the path to call it by in messages.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
    /// Whom what we make in here, and below, belongs to, if not us: (uid, gid).
    owner: Option<(u32, u32)>,
    /// Whom what we make in here, and below, is shared with.
    share: Share,
}

impl Dir {
    /// Opens a base directory by path, links and all: the user named it, and the user's own
    /// links are his.
    ///
    /// # Errors
    /// [`Error::Io`] from `open(2)`.
    pub fn open(path: &Path) -> Result<Dir> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty()).io("cannot open directory", path)?;
        Ok(Dir {
            fd,
            path: path.to_owned(),
            owner: None,
            share: Share::User,
        })
    }

    /// Where root works in another user's directory, what it makes becomes that user's: he could
    /// neither open root's lock nor empty root's directories, and nobody else will.
    pub fn for_its_owner(mut self) -> Result<Dir> {
        if process::user() == 0 {
            let stat = self.stat()?;
            self.owner = (stat.st_uid != 0).then_some((stat.st_uid, stat.st_gid));
        }
        Ok(self)
    }

    pub fn shared(mut self, share: Share) -> Dir {
        self.share = share;
        self
    }

    pub fn share(&self) -> Share {
        self.share
    }

    /// Sets the mode of this directory itself.
    pub fn chmod(&self, mode: u32) -> Result<()> {
        set_mode(&self.fd, self.share.dir(mode)).io("cannot change mode of", &self.path)
    }

    /// Hands this directory to a group.
    pub fn chgrp(&self, gid: u32) -> Result<()> {
        let doing = "cannot change group of";
        point("chown").io(doing, &self.path)?;
        std::os::unix::fs::fchown(&self.fd, None, Some(gid)).io(doing, &self.path)
    }

    /// Opens the directory `name` in here to those it is shared with, if it is ours and is not.
    pub fn open_up(&self, name: &OsStr, stat: &FileStat) -> Result<()> {
        let Share::Group(gid) = self.share else {
            return Ok(());
        };
        if self.share.is_open(stat) || !is_ours(stat) {
            return Ok(());
        }
        if stat.st_gid != gid {
            self.open_dir(name)?.chgrp(gid)?;
        }
        self.set_mode(name, stat.st_mode)
    }

    /// In a directory where everybody may write: what is made in here becomes this user's.
    pub fn for_user(mut self, uid: u32, gid: u32) -> Dir {
        self.owner = (uid != process::user()).then_some((uid, gid));
        self
    }

    fn give(&self, made: impl AsFd, path: &Path) -> Result<()> {
        let Some((uid, gid)) = self.owner else {
            return Ok(());
        };
        std::os::unix::fs::fchown(made, Some(uid), Some(gid)).io("cannot change owner of", path)
    }

    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Where it was when it was opened; for messages, not for access.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn path_of(&self, name: impl AsRef<Path>) -> PathBuf {
        if self.path == Path::new(".") {
            return name.as_ref().to_owned();
        }
        self.path.join(name)
    }

    /// A second descriptor of the same directory.
    pub fn try_clone(&self) -> Result<Dir> {
        let fd = self
            .fd
            .try_clone()
            .io("cannot duplicate descriptor of", &self.path)?;
        Ok(Dir {
            fd,
            path: self.path.clone(),
            owner: self.owner,
            share: self.share,
        })
    }

    /// Opens the directory `name` in this one. A symlink is refused (ELOOP or ENOTDIR).
    pub fn open_dir(&self, name: &OsStr) -> Result<Dir> {
        self.descend(Path::new(name))
    }

    /// Opens the directory `name`, or `None` where nothing has that name.
    pub fn find_dir(&self, name: &OsStr) -> Result<Option<Dir>> {
        match self.open_dir(name) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Opens the directory at `path`, a relative one: itself, where that is empty.
    pub fn descend(&self, path: &Path) -> Result<Dir> {
        if path.as_os_str().is_empty() {
            return self.try_clone();
        }
        let opened = beneath(self.as_fd(), path, DIRECTORY, Mode::empty());
        let fd = opened.map_err(|errno| {
            self.refused(path.as_os_str(), errno)
                .unwrap_or_else(|| io_error(errno, "cannot open directory", &self.path_of(path)))
        })?;
        Ok(Dir {
            fd,
            path: self.path_of(path),
            owner: self.owner,
            share: self.share,
        })
    }

    /// `mkdir(2)`; EEXIST is an error. The mode is subject to the umask, except that our own
    /// directories ([`PRIVATE_DIR`]) have theirs whatever the umask: we have to get in again.
    pub fn make_dir(&self, name: &OsStr, mode: u32) -> Result<()> {
        let path = self.path_of(name);
        point("mkdir").io("cannot create directory", &path)?;
        nix::sys::stat::mkdirat(
            &self.fd,
            name_of(name).io("cannot create directory", &path)?,
            Mode::from_bits_truncate(mode),
        )
        .io("cannot create directory", &path)?;
        if self.owner.is_some() {
            let made = self.open_dir(name)?;
            // who may swap names in here must not be given what he has put in the place of ours
            if made.stat()?.st_uid == process::user() && made.names()?.is_empty() {
                self.give(&made, &path)?;
            }
        }
        if mode != PRIVATE_DIR && self.share == Share::User {
            return Ok(());
        }
        let Some(stat) = self.lstat(name)? else {
            return Ok(());
        };
        match self.share {
            Share::Group(_) => self.open_up(name, &stat),
            _ if mode == PRIVATE_DIR && stat.st_mode & 0o777 != mode => self.set_mode(name, mode),
            _ => Ok(()),
        }
    }

    /// The directory `name`, made with `mode` when nothing has that name.
    pub fn ensure_dir(&self, name: &OsStr, mode: u32) -> Result<Dir> {
        match self.make_dir(name, mode) {
            Err(error) if error.errno() != Some(Errno::EEXIST) => Err(error),
            Err(_) if self.remove_closed(name)? => {
                self.make_dir(name, mode)?;
                self.open_dir(name)
            }
            _ => self.open_dir(name),
        }
    }

    /// Takes away a directory that another member of a group made, who was killed before he could
    /// open it to the group: nothing is in it yet. True if that was so.
    pub fn remove_closed(&self, name: &OsStr) -> Result<bool> {
        if !matches!(self.share, Share::Group(_)) {
            return Ok(false);
        }
        match self.lstat(name)? {
            Some(stat) if is_dir(&stat) && !is_ours(&stat) && !self.share.is_open(&stat) => {
                self.rmdir(name)
            }
            _ => Ok(false),
        }
    }

    /// Makes the directory `name`; what it is, or `None` when something has that name already.
    pub fn make_new_dir(&self, name: &OsStr, mode: u32) -> Result<Option<FileStat>> {
        match self.make_dir(name, mode) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(None),
            made => made.and_then(|()| self.lstat(name)),
        }
    }

    /// Creates the file `name` for reading and writing; whatever has that name is an error
    /// (EEXIST). The mode is subject to the umask, except for [`PRIVATE_FILE`].
    pub fn create(&self, name: &OsStr, mode: u32) -> Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        point("create").io("cannot create", &self.path_of(name))?;
        let is_own = mode == PRIVATE_FILE;
        let mode = if is_own { self.share.own_file() } else { mode };
        let file = self.open_with(name, flags, mode, "cannot create")?;
        self.give(&file, &self.path_of(name))?;
        if is_own {
            let doing = "cannot change mode of";
            let stat = nix::sys::stat::fstat(&file).io(doing, &self.path_of(name))?;
            if stat.st_mode & 0o777 != mode {
                nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode))
                    .io(doing, &self.path_of(name))?;
            }
        }
        Ok(file)
    }

    /// Creates a file that all who join read: by the umask, as far as that lets them.
    pub fn create_state(&self, name: &OsStr) -> Result<File> {
        let file = self.create(name, 0o666)?;
        if self.share != Share::User {
            let doing = "cannot change mode of";
            let made = nix::sys::stat::fstat(&file).io(doing, &self.path_of(name))?;
            let mode = self.share.state_file(made.st_mode & 0o7777);
            if mode != made.st_mode & 0o7777 {
                set_mode(&file, mode).io(doing, &self.path_of(name))?;
            }
        }
        Ok(file)
    }

    /// Opens the file `name` with `flags`, never through a symlink and never waiting for a FIFO.
    pub fn open_file(&self, name: &OsStr, flags: OFlag) -> Result<File> {
        self.open_with(name, flags, 0, "cannot open")
    }

    /// Opens the file `name`, or `None` where nothing has that name.
    pub fn find_file(&self, name: &OsStr, flags: OFlag) -> Result<Option<File>> {
        match self.open_file(name, flags) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    fn open_with(
        &self,
        name: &OsStr,
        flags: OFlag,
        mode: u32,
        doing: &'static str,
    ) -> Result<File> {
        let flags =
            flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mode = Mode::from_bits_truncate(mode);
        let fd =
            beneath(self.as_fd(), Path::new(name), flags, mode).io(doing, &self.path_of(name))?;
        Ok(File::from(fd))
    }

    /// `lstat(2)`, or `None` where nothing has that name.
    pub fn lstat(&self, name: &OsStr) -> Result<Option<FileStat>> {
        let stat = name_of(name)
            .and_then(|name| nix::sys::stat::fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW));
        match stat {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(errno) => Err(errno).io("cannot stat", &self.path_of(name)),
        }
    }

    /// What this directory itself is.
    pub fn stat(&self) -> Result<FileStat> {
        nix::sys::stat::fstat(&self.fd).io("cannot stat", &self.path)
    }

    /// Moves `name` to `to`/`new`, replacing a file there: the atomic step of every commit.
    pub fn rename(&self, name: &OsStr, to: &Dir, new: &OsStr) -> Result<()> {
        point("rename").io("cannot move", &self.path_of(name))?;
        let moved = name_of(name)
            .and_then(|name| nix::fcntl::renameat(&self.fd, name, &to.fd, name_of(new)?));
        match moved {
            Err(errno) => Err(self
                .refused(name, errno)
                .or_else(|| to.refused(new, errno))
                .unwrap_or_else(|| io_error(errno, "cannot move", &self.path_of(name)))),
            Ok(()) => Ok(()),
        }
    }

    /// The error that `name` is not ours to touch; it says whose it is.
    pub fn foreign(&self, name: &OsStr, problem: &str, remedy: &str) -> Error {
        let stat = self.lstat(name).ok().flatten();
        let other = stat.filter(|stat| stat.st_uid != process::user());
        let whose = other.map_or(String::new(), |stat| {
            format!("; it belongs to another user (uid {})", stat.st_uid)
        });
        Error::Foreign {
            path: self.path_of(name),
            problem: format!("{problem}{whose}"),
            remedy: remedy.into(),
        }
    }

    /// In a sticky directory the kernel keeps us from moving and deleting what others made, and
    /// everywhere out of what they have closed.
    fn refused(&self, name: &OsStr, errno: Errno) -> Option<Error> {
        let is_other = || {
            let stat = self.lstat(name).ok().flatten();
            stat.is_some_and(|stat| stat.st_uid != process::user())
        };
        (matches!(errno, Errno::EPERM | Errno::EACCES) && is_other()).then(|| {
            self.foreign(
                name,
                "is in the way",
                "ask its owner to remove it, or choose another `--name` or `--file`",
            )
        })
    }

    /// Moves `name` to `to`/`new` unless something has that name: EEXIST.
    ///
    /// Without RENAME_NOREPLACE (EINVAL, ENOSYS, ENOTSUP: an old kernel or file system) files and
    /// symlinks are linked and unlinked, which refuses an existing name just as well; for a
    /// directory there is no such call, so the error comes back and the caller makes the
    /// directory and moves what is in it.
    pub fn rename_new(&self, name: &OsStr, to: &Dir, new: &OsStr) -> Result<()> {
        let doing = "cannot move";
        point("rename").io(doing, &self.path_of(name))?;
        let renamed = rename_noreplace(&self.fd, name, &to.fd, new);
        match renamed {
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSUP) => {
                let is_dir = self.lstat(name)?.is_some_and(|stat| is_dir(&stat));
                if is_dir {
                    return renamed.io(doing, &self.path_of(name));
                }
                self.hard_link(name, to, new)?;
                self.unlink(name).map(drop)
            }
            renamed => renamed.io(doing, &to.path_of(new)),
        }
    }

    /// A second name for a file or symlink: `link(2)`, nothing followed.
    pub fn hard_link(&self, name: &OsStr, to: &Dir, new: &OsStr) -> Result<()> {
        point("link").io("cannot link", &to.path_of(new))?;
        name_of(name)
            .and_then(|name| {
                nix::unistd::linkat(&self.fd, name, &to.fd, name_of(new)?, AtFlags::empty())
            })
            .io("cannot link", &to.path_of(new))
    }

    pub fn symlink(&self, target: &OsStr, name: &OsStr) -> Result<()> {
        point("symlink").io("cannot create symlink", &self.path_of(name))?;
        name_of(name)
            .and_then(|name| nix::unistd::symlinkat(target, &self.fd, name))
            .io("cannot create symlink", &self.path_of(name))
    }

    /// Sets the modification time of a symlink itself: seconds and nanoseconds since 1970.
    pub fn set_link_mtime(&self, name: &OsStr, mtime: (i64, i64)) -> Result<()> {
        point("utimens").io("cannot set time of", &self.path_of(name))?;
        nix::sys::stat::utimensat(
            &self.fd,
            name_of(name).io("cannot set time of", &self.path_of(name))?,
            &TimeSpec::UTIME_OMIT,
            &TimeSpec::new(mtime.0, mtime.1),
            UtimensatFlags::NoFollowSymlink,
        )
        .io("cannot set time of", &self.path_of(name))
    }

    /// Unlinks a file; true unless it was gone already.
    pub fn unlink(&self, name: &OsStr) -> Result<bool> {
        self.remove(name, UnlinkatFlags::NoRemoveDir)
    }

    /// Removes a directory if it is empty; true when it is gone.
    pub fn rmdir(&self, name: &OsStr) -> Result<bool> {
        match self.remove(name, UnlinkatFlags::RemoveDir) {
            Err(error)
                if matches!(
                    error.errno(),
                    Some(Errno::ENOTEMPTY | Errno::EEXIST | Errno::EBUSY | Errno::ENOTDIR)
                ) =>
            {
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, name: &OsStr, flag: UnlinkatFlags) -> Result<bool> {
        let removed = point("unlink")
            .and_then(|()| Ok(nix::unistd::unlinkat(&self.fd, name_of(name)?, flag)?));
        match removed {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                match self.refused(name, errno) {
                    Some(foreign) => Err(foreign),
                    None => Err(error).io("cannot remove", &self.path_of(name)),
                }
            }
        }
    }

    /// The names in this directory, `.` and `..` left out, in the directory's own order.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let doing = "cannot read directory";
        let mut stream = beneath(self.as_fd(), Path::new("."), DIRECTORY, Mode::empty())
            .and_then(nix::dir::Dir::from_fd)
            .io(doing, &self.path)?;
        let mut names = Vec::new();
        for entry in stream.iter() {
            let name = entry.io(doing, &self.path)?.file_name().to_owned();
            if !matches!(name.as_bytes(), b"." | b"..") {
                names.push(OsString::from_vec(CString::into_bytes(name)));
            }
        }
        Ok(names)
    }

    /// What is in this directory, with its inodes: one system call for some thousand names, where
    /// `lstat` takes one each. Reads on from where the last reading of this descriptor ended.
    pub fn list(&self) -> Result<Listed> {
        let mut records = Vec::new();
        loop {
            records.reserve(32 << 10);
            let free = records.spare_capacity_mut();
            // SAFETY: the kernel writes to the free part of the buffer, at most as much as it is
            // told there is, and says how much it wrote.
            let got = unsafe {
                let fd = self.fd.as_raw_fd();
                let got = libc::syscall(libc::SYS_getdents64, fd, free.as_mut_ptr(), free.len());
                records.set_len(records.len() + got.max(0) as usize);
                got
            };
            if Errno::result(got).io("cannot read directory", &self.path)? == 0 {
                return Ok(Listed(records));
            }
        }
    }

    /// Deletes everything in this directory, which must be ours alone: a staging directory.
    /// Nothing is followed and no other mount is entered.
    pub fn clear(&self) -> Result<()> {
        let device = self.stat()?.st_dev;
        for name in self.names()? {
            let Some(stat) = self.lstat(&name)? else {
                continue;
            };
            if !is_dir(&stat) {
                self.unlink(&name)?;
            } else if stat.st_dev == device && !self.remove_closed(&name)? {
                self.searchable(&name, &stat)?;
                self.open_dir(&name)?.clear()?;
                self.rmdir(&name)?;
            }
        }
        Ok(())
    }

    /// Gives ourselves the rights on the directory `name` that deleting in it takes: an archive
    /// may bring directories of mode 0500.
    pub fn searchable(&self, name: &OsStr, stat: &FileStat) -> Result<()> {
        // what others share with us is open to us as it is
        if stat.st_mode & 0o700 == 0o700 || !is_ours(stat) {
            return Ok(());
        }
        self.set_mode(name, stat.st_mode | 0o700)
    }

    /// Sets the permission bits of the directory `name`, never through a symlink.
    pub fn set_mode(&self, name: &OsStr, mode: u32) -> Result<()> {
        self.set_mode_of(name, self.share.dir(mode), OFlag::O_DIRECTORY)
    }

    /// The same for a file; of a symlink it is an error.
    pub fn set_file_mode(&self, name: &OsStr, mode: u32) -> Result<()> {
        self.set_mode_of(name, mode, OFlag::empty())
    }

    fn set_mode_of(&self, name: &OsStr, mode: u32, flags: OFlag) -> Result<()> {
        let path = self.path_of(name);
        let doing = "cannot change mode of";
        point("chmod").io(doing, &path)?;
        // A directory of mode 0 can't be opened but for its path; and fchmod(2) refuses such a
        // descriptor, while its name in /proc is the inode itself and nothing that can be swapped.
        let flags = flags | OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = beneath(self.as_fd(), Path::new(name), flags, Mode::empty()).io(doing, &path)?;
        let inode = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flag = nix::sys::stat::FchmodatFlags::FollowSymlink;
        let mode = Mode::from_bits_truncate(mode & 0o7777);
        nix::sys::stat::fchmodat(&self.fd, inode.as_str(), mode, flag).io(doing, &path)
    }

    /// Makes the file `name` as young as now, for cleaners that go by age. Where that can't be
    /// had, so be it.
    pub fn refresh(&self, name: &OsStr) {
        if point("utimens").is_ok() {
            let now = TimeSpec::UTIME_NOW;
            let flag = UtimensatFlags::NoFollowSymlink;
            let _ = nix::sys::stat::utimensat(&self.fd, name, &now, &now, flag);
        }
    }

    /// Locks this directory shared, until the result is dropped, so that systemd-tmpfiles leaves
    /// it alone. Where that can't be had, so be it: it protects against a cleaner, not against us.
    pub fn flock_shared(&self) -> Option<OwnedFd> {
        let again = self.open_dir(OsStr::new(".")).ok()?.fd;
        try_flock(&again, Flock::Shared).ok()?;
        Some(again)
    }

    /// May we make and delete in here?
    pub fn is_writable(&self) -> bool {
        let access = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
        nix::unistd::faccessat(&self.fd, ".", access, AtFlags::AT_EACCESS).is_ok()
    }

    /// What a plain user may still write on this file system, in bytes (`f_bavail`).
    pub fn available_bytes(&self) -> Result<u64> {
        let stat = nix::sys::statvfs::fstatvfs(&self.fd).io("cannot stat", &self.path)?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    /// How many files and directories a plain user may still make (`f_favail`).
    pub fn available_inodes(&self) -> Result<u64> {
        let stat = nix::sys::statvfs::fstatvfs(&self.fd).io("cannot stat", &self.path)?;
        Ok(match stat.files() {
            0 => u64::MAX, // btrfs: they are not counted
            _ => stat.files_available(),
        })
    }
}

fn io_error(errno: Errno, doing: &'static str, path: &Path) -> Error {
    Error::Io {
        doing,
        path: path.to_owned(),
        source: errno.into(),
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `name`, if it is one: no path that leads anywhere else.
fn name_of(name: &OsStr) -> nix::Result<&OsStr> {
    match name.as_bytes() {
        b".." => Err(Errno::EXDEV),
        name if name.contains(&b'/') => Err(Errno::EXDEV),
        _ => Ok(name),
    }
}

/// How `flock(2)` locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flock {
    Shared,
    Exclusive,
}

/// Locks without waiting; false if somebody else has it. The lock belongs to the open file
/// description and lasts until its last descriptor is closed: fd-lock's guard, which would unlock
/// when dropped (and for every copy of the descriptor), is forgotten.
pub fn try_flock(fd: impl AsFd, how: Flock) -> io::Result<bool> {
    let mut lock = fd_lock::RwLock::new(fd.as_fd());
    let locked = match how {
        Flock::Shared => lock.try_read().map(std::mem::forget),
        Flock::Exclusive => lock.try_write().map(std::mem::forget),
    };
    match locked {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Appends `bytes` to a file through a crash point.
pub fn write_all(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    point("write")?;
    file.write_all(bytes)
}

/// Writes pieces one after the other, with one call where the kernel takes them all.
pub fn write_pieces(
    mut file: &File,
    pieces: &[impl std::ops::Deref<Target = [u8]>],
) -> io::Result<()> {
    let mut slices: Vec<io::IoSlice> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        point("write")?;
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => io::IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives a file its length; what was never written is a hole.
pub fn set_len(file: &File, length: u64) -> io::Result<()> {
    point("truncate")?;
    file.set_len(length)
}

/// `fchmod(2)`
pub fn set_mode(fd: impl AsFd, mode: u32) -> io::Result<()> {
    point("chmod")?;
    Ok(nix::sys::stat::fchmod(fd, Mode::from_bits_truncate(mode))?)
}

/// Sets the modification time: seconds and nanoseconds since 1970.
pub fn set_mtime(fd: impl AsFd, mtime: (i64, i64)) -> io::Result<()> {
    point("utimens")?;
    let mtime = TimeSpec::new(mtime.0, mtime.1);
    Ok(nix::sys::stat::futimens(
        fd.as_fd(),
        &TimeSpec::UTIME_OMIT,
        &mtime,
    )?)
}

/// `renameat2(2)` with RENAME_NOREPLACE, as the system call itself: its function in glibc is younger
/// (2.28) than the oldest we run on.
fn rename_noreplace(from: &OwnedFd, name: &OsStr, to: &OwnedFd, new: &OsStr) -> nix::Result<()> {
    let c_string = |name| CString::new(name_of(name)?.as_bytes()).map_err(|_| Errno::EINVAL);
    let (name, new) = (c_string(name)?, c_string(new)?);
    // SAFETY: both names are C strings, and both descriptors open, until the call is over.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            from.as_raw_fd(),
            name.as_ptr(),
            to.as_raw_fd(),
            new.as_ptr(),
            libc::RENAME_NOREPLACE,
        )
    };
    Errno::result(result).map(drop)
}

/// Is there no room, on the disk or for this user?
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// May we change its mode?
pub fn is_ours(stat: &FileStat) -> bool {
    let us = process::user();
    us == 0 || stat.st_uid == us
}

pub fn is_dir(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFDIR
}

pub fn is_file(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFREG
}

/// The file type bits of a mode.
pub fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

impl Error {
    /// Is it an I/O error for want of room?
    pub fn is_full(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENOSPC | Errno::EDQUOT))
    }

    /// The errno of an I/O error, if that is what this is.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_a_path_leads_nowhere() {
        let temporary = tempfile::tempdir().unwrap();
        std::fs::create_dir(temporary.path().join("dir")).unwrap();
        std::fs::write(temporary.path().join("victim"), "precious").unwrap();
        let dir = Dir::open(&temporary.path().join("dir")).unwrap();
        dir.create(OsStr::new("here"), 0o600).unwrap();
        for out in ["../victim", "..", "../new", "/tmp", "a/b"].map(OsStr::new) {
            let here = OsStr::new("here");
            let outcomes = [
                dir.lstat(out).map(drop),
                dir.make_dir(out, 0o700),
                dir.create(out, 0o600).map(drop),
                dir.rename(out, &dir, here),
                dir.rename(here, &dir, out),
                dir.rename_new(out, &dir, here),
                dir.rename_new(here, &dir, out),
                dir.hard_link(out, &dir, here),
                dir.hard_link(here, &dir, out),
                dir.symlink(here, out),
                dir.set_link_mtime(out, (0, 0)),
                dir.unlink(out).map(drop),
                dir.rmdir(out).map(drop),
                dir.set_mode(out, 0),
            ];
            for (n, outcome) in outcomes.into_iter().enumerate() {
                let errno = outcome.unwrap_err().errno();
                let is_refused = matches!(errno, Some(Errno::EXDEV | Errno::ENOENT));
                assert!(is_refused, "{} {n}: {errno:?}", out.display());
            }
        }
        assert_eq!(dir.names().unwrap(), ["here"]);
        let victim = std::fs::read(temporary.path().join("victim")).unwrap();
        assert_eq!(victim, b"precious");
    }
}
