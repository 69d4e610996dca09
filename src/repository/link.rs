//! The reference's lock: a hard link `<repofile>.lock` to a claim file.
//!
//! Whoever links his claim to that name holds the lock; its content is the claim's own path, its
//! mtime (15 s ahead) the end of the lease. The reference breaks a lock 10 s after that. We take
//! it inside our flock around every change of the repofile and around teardown, never during a
//! load and never the other way round.
//!
//! What can go wrong, and what is done about it:
//!
//! * *A reference breaks in while we hold it* (we were stopped for 25 s, or the clock jumped):
//!   before each commit [`LinkLock::is_ours`] looks whether the link still has our inode; if not,
//!   the change is given up and begun anew from the file.
//! * *A killed sc of ours left it.* Only who holds the flock takes the link, and that is us now:
//!   a link whose claim is marked [`MARK`] is nobody's, and broken at once.
//! * *A killed reference left it.* It is broken by the reference's rule. Two breakers can both
//!   find it stale and the slower one unlink the lock the faster one has just taken; so the link
//!   is first moved to a name of our own and put back if it is not the one we judged.
//!   Whoever breaks one may have met a process that was killed while deleting, so what the
//!   repofile says of the data is looked into ([`LinkLock::has_broken`]).
//! * *A reference deletes for longer than its lease.* It never renews, so by the rule we might
//!   break in, be told that all is loaded, and lose it. A lock whose owner provably lives here is
//!   waited for, up to [`LONGEST_WORK`].
//! * *We wait long ourselves*: a claim gets the lease of the moment it is linked, else references
//!   would find our lock stale as soon as we have it.
//! * *Somebody plants it* with a path outside: of the content nothing is used but the name of a
//!   sibling claim, and that is removed only if it has the inode of the link.
//! * *The file system has no hard links, or no room for one*: then no reference can take the lock
//!   either, and the flock alone is enough. To leave must be possible on a full disk.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode};
use nix::sys::time::TimeSpec;

use crate::console::Console;
use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::signal::{self, Patience};

/// What the host name in a claim of ours ends with; the reference takes any text there.
const MARK: &str = "+sc";

/// REFERENCE: a lock lasts so long from its last touch…
const LEASE: Duration = Duration::from_secs(15);
/// …and may be broken so long after that.
const GRACE: Duration = Duration::from_secs(10);

/// So long a reference that provably lives may hold the lock: the time to delete a big tree.
const LONGEST_WORK: Duration = Duration::from_secs(600);

/// The lock, held; given back when dropped.
#[derive(Debug)]
pub struct LinkLock {
    dir: Dir,
    link: OsString,
    claim: OsString,
    /// (dev, ino) of the claim; `None` where there can be no link.
    inode: Option<(u64, u64)>,
    /// The claim's name is too long for the file system: whatever stands there is no lock.
    is_impossible: bool,
    has_broken: bool,
}

/// `<repofile>.lock`
pub fn link_name(repofile: &OsStr) -> OsString {
    let mut name = repofile.to_owned();
    name.push(".lock");
    name
}

/// Is this one of the reference's lock files, or ours in its way: the link, or a claim for it?
pub fn is_lock_file(repofile: &OsStr, name: &OsStr) -> bool {
    let link = link_name(repofile);
    name.as_bytes()
        .strip_prefix(link.as_bytes())
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"|"))
}

impl LinkLock {
    /// Takes the lock beside `repofile` in `dir`. `spelled` is the directory as the user spelled
    /// it: the reference compares the content of claims byte for byte.
    ///
    /// # Errors
    /// [`Error::Foreign`]: something else has the lock's name. [`Error::Timeout`].
    pub fn take(
        dir: &Dir,
        spelled: &Path,
        repofile: &OsStr,
        patience: &Patience,
        console: &Console,
    ) -> Result<LinkLock> {
        let link = link_name(repofile);
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host: Vec<u8> = host
            .into_vec()
            .into_iter()
            .filter(|b| !b"/|\n".contains(b))
            .take(64)
            .collect();
        let mut claim = link.clone();
        claim.push("|");
        claim.push(OsStr::from_bytes(&host));
        // 63 bits, as the reference draws them
        let random = process::random_name();
        let random = u64::from_str_radix(&random[..16], 16).unwrap_or(0) >> 1;
        claim.push(format!("{MARK}|{}|{random}", std::process::id()));

        let mut lock = LinkLock {
            dir: dir.try_clone()?,
            link,
            claim,
            inode: None,
            is_impossible: false,
            has_broken: false,
        };
        match lock.make_claim(spelled) {
            Ok(true) => {}
            Ok(false) => return Ok(lock),
            // not one inode left, for a reference neither
            Err(error) if error.is_full() && lock.dir.lstat(&lock.link)?.is_none() => {
                return Ok(lock);
            }
            Err(error) => return Err(error),
        }
        let mut watch: Option<(durable::Watch, Seen)> = None;
        loop {
            match lock.dir.hard_link(&lock.claim, &lock.dir, &lock.link) {
                Ok(()) => return Ok(lock),
                Err(error) => match error.errno() {
                    Some(Errno::EEXIST) => {}
                    Some(Errno::ENOENT) => {
                        // somebody swept our claim
                        if !lock.make_claim(spelled)? {
                            return Ok(lock);
                        }
                        continue;
                    }
                    // on tmpfs a link takes an inode, too
                    Some(
                        Errno::EPERM
                        | Errno::ENOTSUP
                        | Errno::EMLINK
                        | Errno::ENOSPC
                        | Errno::EDQUOT,
                    ) => {
                        lock.inode = None;
                        lock.dir.unlink(&lock.claim)?;
                        return Ok(lock);
                    }
                    _ => return Err(error),
                },
            }
            let Some(stat) = lock.dir.lstat(&lock.link)? else {
                continue;
            };
            let foreign = |problem| Err(lock.dir.foreign(&lock.link, problem, super::OTHER_NAME));
            if !durable::is_file(&stat) {
                return foreign("stands where the repofile's lock belongs, and is no file");
            }
            if !lock.may_break(&stat)? {
                return foreign("is the lock of a repofile");
            }
            let winner = lock.winner(&stat)?;
            let seen = watch
                .as_ref()
                .map(|(_, seen)| seen)
                .filter(|seen| seen.is(&stat));
            let is_ours = winner.as_deref().is_some_and(is_marked);
            let waited = seen.map_or(Duration::ZERO, |seen| seen.since.elapsed());
            let is_stale = is_over(&stat) || waited > LEASE + GRACE;
            let works = || match winner.as_deref() {
                Some(winner) => {
                    let claim = lock.dir.lstat(winner)?;
                    let is_it = claim.is_some_and(|claim| same_inode(&claim, &stat));
                    Ok(is_it && waited < LONGEST_WORK && is_at_work(winner, &stat))
                }
                None => Ok(false),
            };
            if is_ours || is_stale && !works()? {
                lock.has_broken |= lock.break_lock(&stat, winner.as_deref())? && !is_ours;
                watch = None;
                continue;
            }
            if patience.is_over() {
                return Err(Error::Timeout {
                    what: format!("`{}`", lock.dir.path_of(&lock.link).display()),
                    waited: patience.limit().filter(|limit| !limit.is_zero()),
                    holder: "another program holds the repofile's lock".into(),
                });
            }
            match &watch {
                Some((watch, seen)) if seen.is(&stat) => {
                    watch.wait(Duration::from_secs(1).min(patience.left().unwrap_or(LEASE)))?;
                }
                _ => {
                    console.detail(format_args!(
                        "waiting for the lock `{}`",
                        lock.dir.path_of(&lock.link).display()
                    ));
                    watch = Some((durable::Watch::new(&lock.dir)?, Seen::new(&stat)));
                }
            }
            signal::check()?;
            // the lease begins when the lock is taken, not when we began to wait
            lock.renew()?;
        }
    }

    /// In a sticky directory another user's lock is his: we should wait for ever.
    fn may_break(&self, stat: &FileStat) -> Result<bool> {
        let us = process::user();
        if us == 0 || stat.st_uid == us {
            return Ok(true);
        }
        let dir = self.dir.stat()?;
        Ok(dir.st_uid == us || dir.st_mode & Mode::S_ISVTX.bits() == 0)
    }

    /// Was a reference's lock broken to take this one? It may have died while deleting.
    pub fn has_broken(&self) -> bool {
        self.has_broken
    }

    /// Is the link still ours? Asked before each commit.
    pub fn is_ours(&self) -> Result<bool> {
        let stat = self.dir.lstat(&self.link)?;
        let there = stat.map(|stat| (stat.st_dev, stat.st_ino));
        // without a link of our own: has anybody one?
        Ok(there == self.inode || self.is_impossible)
    }

    /// Begins the lease anew, for work that takes long.
    pub fn renew(&self) -> Result<()> {
        if self.inode.is_none() {
            return Ok(());
        }
        match self.dir.find_file(&self.claim, OFlag::O_WRONLY)? {
            Some(file) => touch(&file, &self.dir.path_of(&self.claim)),
            None => Ok(()),
        }
    }

    /// Makes the claim file; false where the name cannot be, and so no reference's can either.
    fn make_claim(&mut self, spelled: &Path) -> Result<bool> {
        let path = self.dir.path_of(&self.claim);
        let mut file = match self.dir.create_state(&self.claim) {
            Err(error) if error.errno() == Some(Errno::ENAMETOOLONG) => {
                self.is_impossible = true;
                return Ok(false);
            }
            file => file?,
        };
        let mut content = spelled.join(&self.claim);
        if spelled == Path::new(".") {
            content = self.claim.clone().into();
        }
        let written = match file.write_all(content.as_os_str().as_bytes()) {
            // An empty claim locks as well, and --unuse is what makes room on a full disk.
            Err(error) if durable::is_full(&error) => Ok(()),
            written => written.io("cannot write", &path),
        };
        let stat = written.and_then(|()| {
            touch(&file, &path)?;
            nix::sys::stat::fstat(&file).io("cannot stat", &path)
        });
        match stat {
            Ok(stat) => {
                self.inode = Some((stat.st_dev, stat.st_ino));
                Ok(true)
            }
            Err(error) => {
                let _ = self.dir.unlink(&self.claim);
                Err(error)
            }
        }
    }

    /// The name of the claim that holds the lock, if its content names a sibling.
    fn winner(&self, stat: &FileStat) -> Result<Option<OsString>> {
        let Some(file) = self.dir.find_file(&self.link, OFlag::O_RDONLY)? else {
            return Ok(None);
        };
        let path = self.dir.path_of(&self.link);
        let now = nix::sys::stat::fstat(&file).io("cannot stat", &path)?;
        if (now.st_dev, now.st_ino) != (stat.st_dev, stat.st_ino) {
            return Ok(None);
        }
        let mut content = Vec::new();
        file.take(8 << 10)
            .read_to_end(&mut content)
            .io("cannot read", &path)?;
        let name = content
            .rsplit(|&byte| byte == b'/')
            .next()
            .unwrap_or_default();
        let is_claim = |name: &OsStr| {
            let rest = name.as_bytes().strip_prefix(self.link.as_bytes());
            rest.is_some_and(|rest| rest.starts_with(b"|"))
        };
        if content.is_empty() {
            // one of ours may have had no room for its own path: the inode tells
            for name in self.dir.names()? {
                let same = |other: &FileStat| same_inode(other, stat);
                let may_be = is_claim(&name) && is_marked(&name);
                if may_be && self.dir.lstat(&name)?.as_ref().is_some_and(same) {
                    return Ok(Some(name));
                }
            }
        }
        let name = OsStr::from_bytes(name);
        Ok(is_claim(name).then(|| name.to_owned()))
    }

    /// Takes away a stale lock: the one that `stat` was seen of, and no other. True if it was
    /// that one.
    fn break_lock(&self, stat: &FileStat, winner: Option<&OsStr>) -> Result<bool> {
        let is_it = |other: &FileStat| same_inode(other, stat);
        let mut aside = self.claim.clone();
        aside.push("|broken");
        match self.dir.rename(&self.link, &self.dir, &aside) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(false),
            moved => moved?,
        }
        if self.dir.lstat(&aside)?.is_some_and(|stat| !is_it(&stat)) {
            // A reference was faster and took the lock anew: give it back.
            match self.dir.hard_link(&aside, &self.dir, &self.link) {
                Err(error) if error.errno() != Some(Errno::EEXIST) => return Err(error),
                _ => {}
            }
            self.dir.unlink(&aside)?;
            return Ok(false);
        }
        self.dir.unlink(&aside)?;
        if let Some(winner) = winner
            && self.dir.lstat(winner)?.is_some_and(|stat| is_it(&stat))
        {
            self.dir.unlink(winner)?;
        }
        Ok(true)
    }
}

impl LinkLock {
    /// Gives the lock back, and says whether that went well.
    pub fn give_back(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        if self.inode.is_some() {
            if self.is_ours()? {
                self.dir.unlink(&self.link)?;
            }
            self.dir.unlink(&self.claim)?;
            self.inode = None;
        }
        Ok(())
    }
}

impl Drop for LinkLock {
    fn drop(&mut self) {
        // An error here leaves a lock that the next sc breaks by its mark.
        let _ = self.release();
    }
}

/// Removes claims that killed processes left in `dir`, which would keep it from being removed: ours
/// at once, a reference's when its process is dead and its lease over. A living one must keep its
/// claim, or it tries in vain for ever. The caller holds the flock, and no claim of his own.
pub fn sweep(dir: &Dir, repofile: &OsStr) -> Result<()> {
    let link = link_name(repofile);
    for name in dir.names()? {
        if !is_lock_file(repofile, &name) || name == link {
            continue;
        }
        let Some(stat) = dir.lstat(&name)?.filter(durable::is_file) else {
            continue;
        };
        let is_dead = |pid: i32| process::is_number_dead(pid.into());
        if is_marked(&name) || is_over(&stat) && pid_here(&name).is_some_and(is_dead) {
            match dir.unlink(&name) {
                Err(Error::Foreign { .. }) => {} // another user's, in a sticky directory
                removed => drop(removed?),
            }
        }
    }
    Ok(())
}

/// The pid in a reference's claim, `<link>|<host>|<pid>|<random>`, if the host is this one. A
/// resolver may call it by another name; then nothing is known of its processes.
fn pid_here(claim: &OsStr) -> Option<i32> {
    let text = claim.to_str()?;
    let mut fields = text.rsplitn(4, '|').skip(1);
    let pid = fields.next()?.parse().ok()?;
    let host = fields.next()?.split('.').next()?;
    fields.next()?;
    let name = nix::unistd::gethostname().ok()?;
    let is_here = host == "localhost" || Some(host) == name.to_str()?.split('.').next();
    is_here.then_some(pid)
}

/// Is the owner of this lock certainly alive: a process of our own user, with the number in the
/// claim, that was there when the lock was taken? What another user plants proves nothing.
fn is_at_work(claim: &OsStr, stat: &FileStat) -> bool {
    let lock_age_s = now_s() - (stat.st_mtime - LEASE.as_secs() as i64);
    stat.st_uid == process::user()
        && pid_here(claim).is_some_and(|pid| {
            // whole seconds, cut
            process::age_s(pid).is_some_and(|age| age + 2 >= lock_age_s)
        })
}

/// Does the host name in this claim end with our mark?
fn is_marked(claim: &OsStr) -> bool {
    let fields: Vec<&[u8]> = claim.as_bytes().split(|&byte| byte == b'|').collect();
    fields.len() >= 4 && fields[fields.len() - 3].ends_with(MARK.as_bytes())
        || fields.len() >= 5 && fields[fields.len() - 4].ends_with(MARK.as_bytes())
}

fn same_inode(one: &FileStat, two: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino)
}

fn now_s() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs() as i64)
}

fn is_over(stat: &FileStat) -> bool {
    now_s() > stat.st_mtime + GRACE.as_secs() as i64
}

fn touch(file: &std::fs::File, path: &Path) -> Result<()> {
    let end = TimeSpec::new(now_s() + LEASE.as_secs() as i64, 0);
    nix::sys::stat::futimens(file, &end, &end).io("cannot set times of", path)
}

/// A lock we wait for, and since when it has not changed. A clock that was set back must not make
/// a dead lock live for years.
struct Seen {
    inode: (u64, u64),
    mtime: i64,
    since: Instant,
}

impl Seen {
    fn new(stat: &FileStat) -> Seen {
        Seen {
            inode: (stat.st_dev, stat.st_ino),
            mtime: stat.st_mtime,
            since: Instant::now(),
        }
    }

    fn is(&self, stat: &FileStat) -> bool {
        self.inode == (stat.st_dev, stat.st_ino) && self.mtime == stat.st_mtime
    }
}
