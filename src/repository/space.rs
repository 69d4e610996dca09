//! The room on a file system, and who has laid claim to it.
//!
//! Two loads that begin at once both find the room free that only one of them can have. So a load
//! of a known size writes that size to `space` in its control directory, and keeps that file
//! locked until it is over: a claim dies with its loader, whatever ends it. Whoever looks for room
//! takes off what is claimed on the device and not spent yet, which is what the loader has not
//! brought to its `staging`.
//!
//! Measuring and claiming are one step: they are done under a flock of the base directory itself,
//! which leaves nothing behind. If that lock cannot be had within a second (a cleaner at work, an
//! unnamed repository in use) it is done without; the price is a load that meets a full disk.
//! Claims of other users are not seen, for their control directories are theirs alone.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use fd_lock::RwLock;
use nix::fcntl::OFlag;
use nix::sys::statvfs::statvfs;
use nix::unistd::AccessFlags;

use super::{Held, layout, lock, survey};
use crate::durable::{self, Dir, Flock, PRIVATE_FILE, write_all};
use crate::error::{IoContext, Result, spoken};
use crate::signal::Patience;
use crate::units::Bytes;

/// So long the base directory's lock is waited for: it is held for an instant.
const MEASURING: Duration = Duration::from_secs(1);

/// Of more files than this the rest is taken for not brought yet.
const MOST_STAGED: usize = 10_000;

/// What a load asks of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// 0: not known.
    pub size: Bytes,
    pub min_free: MinFree,
}

impl Need {
    pub fn is_something(&self) -> bool {
        *self != Need::default()
    }
}

/// `--min-free`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    Bytes(Bytes),
    Percent(u8),
}

impl MinFree {
    pub const FORMS: &str =
        "it is a size such as `10GB`, or a part of the file system such as `5%`";

    pub fn of(self, total: u64) -> u64 {
        match self {
            MinFree::Bytes(bytes) => bytes.0,
            MinFree::Percent(percent) => (u128::from(total) * u128::from(percent) / 100) as u64,
        }
    }
}

impl Default for MinFree {
    fn default() -> MinFree {
        MinFree::Bytes(Bytes(0))
    }
}

impl FromStr for MinFree {
    type Err = String;

    fn from_str(text: &str) -> Result<MinFree, String> {
        let Some(number) = text.strip_suffix('%') else {
            return text.parse().map(MinFree::Bytes);
        };
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        let percent = number
            .parse()
            .ok()
            .filter(|percent| is_number && *percent <= 100);
        percent
            .map(MinFree::Percent)
            .ok_or(format!("`{text}` is no part of a file system"))
    }
}

/// What stands in the way of a base directory.
#[derive(Debug)]
pub enum Obstacle {
    /// So many bytes are missing.
    Room {
        missing: u64,
        problem: String,
    },
    Other(String),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Room { problem, .. } | Obstacle::Other(problem) => f.write_str(problem),
        }
    }
}

/// Can `base` take a load that needs this, besides those under way in `directories`?
pub fn usable(
    base: &Path,
    unnamed: bool,
    need: &Need,
    directories: &[PathBuf],
) -> Result<(), Obstacle> {
    let shown = spelled(base);
    let cannot = |error: &std::io::Error| {
        Obstacle::Other(format!(
            "`{}` cannot be used: {}",
            shown.display(),
            spoken(error)
        ))
    };
    // The reference made the base of an unnamed repository.
    let mut at = shown;
    if unnamed && !at.exists() {
        let parent = at.parent().filter(|p| !p.as_os_str().is_empty());
        at = parent.unwrap_or(Path::new("."));
    }
    let access = AccessFlags::W_OK | AccessFlags::X_OK;
    nix::unistd::eaccess(at, access).map_err(|errno| cannot(&errno.into()))?;
    if !need.is_something() {
        return Ok(());
    }
    let space = fs2::statvfs(at).map_err(|error| cannot(&error))?;
    // What a plain user may write counts (`f_bavail`), not what is reserved for root.
    let free = space.available_space();
    let claimed = claimed(at, directories);
    let min_free = need.min_free.of(space.total_space());
    let needed = need.size.0.saturating_add(min_free).saturating_add(claimed);
    if free < needed {
        let also = [
            (claimed, "claimed by other loads"),
            (min_free, "to be left free"),
        ];
        let also: String = also
            .into_iter()
            .filter(|(bytes, _)| *bytes > 0)
            .map(|(bytes, why)| format!(", {} {why}", Bytes(bytes)))
            .collect();
        return Err(Obstacle::Room {
            missing: needed - free,
            problem: format!(
                "`{}` has {} of the {} needed{also}",
                shown.display(),
                Bytes(free),
                need.size
            ),
        });
    }
    let inodes = statvfs(at).map_err(|errno| cannot(&errno.into()))?;
    if need.size.0 > 0 && inodes.files() > 0 && inodes.files_available() == 0 {
        return Err(Obstacle::Other(format!(
            "`{}` has no inodes left",
            shown.display()
        )));
    }
    Ok(())
}

/// An empty path is the current directory.
fn spelled(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }
}

/// How many bytes a plain user may still write at `path`.
pub fn free_bytes(path: &Path) -> Result<u64> {
    fs2::available_space(spelled(path)).io("cannot stat", path)
}

/// How many bytes the file system of `path` has.
pub fn total_bytes(path: &Path) -> Result<u64> {
    fs2::total_space(spelled(path)).io("cannot stat", path)
}

/// The device of a base directory; none if it is not there.
pub fn device(base: &Path) -> Option<u64> {
    Dir::open(base)
        .and_then(|dir| dir.stat())
        .ok()
        .map(|stat| stat.st_dev)
}

/// What loads under way on the device of `at` have claimed and not spent.
fn claimed(at: &Path, directories: &[PathBuf]) -> u64 {
    let on_device = device(at);
    let mut bases: Vec<&PathBuf> = directories.iter().collect();
    bases.dedup();
    let mut claimed = 0u64;
    for base in bases.into_iter().filter(|base| device(base) == on_device) {
        survey::each_control(base, &mut |control| {
            claimed = claimed.saturating_add(unspent(control).unwrap_or(0));
        });
    }
    claimed
}

/// `None`: nobody claims anything there.
fn unspent(control: &Dir) -> Option<u64> {
    let file = control.find_file(OsStr::new(layout::SPACE), OFlag::O_RDONLY);
    let file = file.ok()??;
    // Shared: two who look do not take each other for the loader.
    if !matches!(durable::try_flock(&file, Flock::Shared), Ok(false)) {
        return None;
    }
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    let size: u64 = text.trim_end().parse().ok()?;
    Some(size.saturating_sub(staged(control)))
}

/// What is staged already, as far as one can say at once.
fn staged(control: &Dir) -> u64 {
    let staging = control.find_dir(OsStr::new(layout::STAGING)).ok().flatten();
    let mut files_left = MOST_STAGED;
    staging.map_or(0, |staging| disk_bytes(&staging, &mut files_left))
}

/// The blocks of all files below `dir`, in bytes, on its own device; of no more than `most` files.
pub fn disk_bytes(dir: &Dir, most: &mut usize) -> u64 {
    let (Ok(names), Ok(own)) = (dir.names(), dir.stat()) else {
        return 0;
    };
    let mut bytes = 0u64;
    for name in names {
        if *most == 0 {
            break;
        }
        let Ok(Some(stat)) = dir.lstat(&name) else {
            continue;
        };
        if !durable::is_dir(&stat) {
            *most -= 1;
            bytes = bytes.saturating_add((stat.st_blocks as u64).saturating_mul(512));
        } else if stat.st_dev == own.st_dev
            && let Ok(below) = dir.open_dir(&name)
        {
            bytes = bytes.saturating_add(disk_bytes(&below, most));
        }
    }
    bytes
}

/// Room that is ours while this lives.
#[derive(Debug)]
pub struct Claim {
    control: Dir,
    _locked: File,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // what stays is locked by nobody, and counts no more
        let _ = self.control.unlink(OsStr::new(layout::SPACE));
    }
}

/// Claims room for a load in `held`, if there is as much: `None` where there is not. What the
/// repository has staged already is not needed once more. With `anyway` it is claimed all the same.
pub fn claim(
    held: &Held,
    need: &Need,
    directories: &[PathBuf],
    anyway: bool,
) -> Result<Option<Claim>> {
    let base = held.repository.base();
    let _measuring = measuring(base);
    let staged = staged(&held.control);
    let mut left = *need;
    left.size = Bytes(need.size.0.saturating_sub(staged));
    if !anyway && usable(base, !held.repository.is_named(), &left, directories).is_err() {
        return Ok(None);
    }
    let (next, name) = (OsStr::new(layout::SPACE_NEXT), OsStr::new(layout::SPACE));
    held.control.unlink(next)?;
    let mut file = held.control.create(next, PRIVATE_FILE)?;
    let path = held.control.path_of(next);
    durable::try_flock(&file, Flock::Exclusive).io("cannot lock", &path)?;
    write_all(&mut file, need.size.0.to_string().as_bytes()).io("cannot write", &path)?;
    held.check()?;
    held.control.rename(next, &held.control, name)?;
    Ok(Some(Claim {
        control: held.control.try_clone()?,
        _locked: file,
    }))
}

/// The lock under which room is measured and claimed; given back when dropped.
fn measuring(base: &Path) -> Option<RwLock<File>> {
    let base = Dir::open(base).ok()?;
    let again = base.open_dir(OsStr::new(".")).ok()?;
    let mut lock = RwLock::new(File::from(again.into_fd()));
    let patience = Patience::new(Some(MEASURING));
    let wait = lock::acquire(
        &mut lock,
        base.path(),
        &patience,
        false,
        &mut |_| true,
        &mut || (),
    );
    matches!(wait, Ok(lock::Wait::Locked)).then_some(lock)
}
