//! What is left of repositories that are gone: their counts, and when they were deleted.
//!
//! With a repository goes its repofile, and with that what it was good for. A site that wants to
//! know all the same names a directory (`--stats-dir`): the only place outside of a repository that
//! is ever written, and only because somebody said so. There is one file in it for each user, named
//! by his uid: totals for each base directory, and the latest deletions, so that a load that comes
//! soon after one can be told.
//!
//! The file is written where a repository ends and where one is loaded that had ended before, never
//! when others come and go. It is read, changed and replaced under a flock of itself; whoever gets
//! that lock looks whether the inode still has the name, as with any lock that is replaced.
//!
//! # Once, whoever is killed
//!
//! Counts move from the repofile to this file, and a kill in between must neither lose them nor
//! count them twice: what is graphed from them may not go back. So they are added here first, with
//! the instant at which they began ([`Counts::since_ns`]), and the repofile goes after that. Whoever
//! meets a repofile whose counts are here already adds them no second time ([`Past::has`]): neither
//! the next deletion, nor `--stats`, nor the next load, which begins to count anew. What is lost is
//! what cannot be written here; and what a reference deletes, which does not know of this file.
//!
//! # Whom it trusts
//!
//! The directory is one where everybody may write (mode 1777). A file counts if it is a regular one
//! that belongs to the user it is named for; no link is followed. So a user can spoil his own
//! numbers and nobody else's. Root, who deletes for others, writes to their files and leaves them
//! theirs; nobody's lock is waited for longer than [`WAIT`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fd_lock::RwLock;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};

use super::counts::Counts;
use super::{Held, Repository, layout, lock};
use crate::durable::{self, Dir, PRIVATE_FILE, write_all};
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::signal::Patience;

/// The version of the file. A newer one is refused, never rewritten.
const FORMAT: u32 = 1;

/// So many deletions are remembered, and so many base directories: a file of some 200 kB, which
/// takes a millisecond to rewrite.
const MOST: usize = 1000;

/// [`MOST`] deletions whose names are as long as names can be.
const LARGEST: u64 = 16 << 20;

/// The lock is held for a millisecond. Whoever holds it longer does so on purpose.
const WAIT: Duration = Duration::from_secs(1);

/// A load within this time of the deletion could have been spared by keeping the data: an hour is
/// the shortest `--keep` that bridges the pause between two jobs of a queue that is not empty.
pub const SOON_S: u64 = 3600;

/// Where the files are, and whose could not be written: that is said once.
#[derive(Debug, Clone)]
pub struct StatsDir {
    pub path: PathBuf,
    given_up: Arc<Mutex<Vec<u32>>>,
}

impl StatsDir {
    pub fn new(path: PathBuf) -> StatsDir {
        StatsDir {
            path,
            given_up: Arc::default(),
        }
    }

    /// False for each user but the first time.
    fn give_up(&self, user: u32) -> bool {
        let mut given_up = self
            .given_up
            .lock()
            .unwrap_or_else(|lock| lock.into_inner());
        let is_first = !given_up.contains(&user);
        if is_first {
            given_up.push(user);
        }
        is_first
    }

    fn has_given_up(&self, user: u32) -> bool {
        let given_up = self
            .given_up
            .lock()
            .unwrap_or_else(|lock| lock.into_inner());
        given_up.contains(&user)
    }
}

impl PartialEq for StatsDir {
    fn eq(&self, other: &StatsDir) -> bool {
        self.path == other.path
    }
}

impl Eq for StatsDir {}

/// One user's file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Past {
    format: u32,
    /// By their path, encoded.
    directories: BTreeMap<String, Total>,
    /// The latest deletion last.
    gone: Vec<Gone>,
}

/// What the repositories came to that are gone from a base directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Total {
    #[serde(flatten)]
    pub counts: Counts,
    /// Loads soon after a deletion.
    pub reloads: u64,
    changed_unix_s: u64,
}

/// A repository that is gone, or was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gone {
    /// Encoded, as is the name.
    directory: String,
    name: Option<String>,
    /// Whose counts have been added.
    since_ns: u64,
    /// `None`: it had no data, it was deleted because somebody said so, or it was loaded again.
    deleted_unix_s: Option<u64>,
    /// Did the data go to make room? Then keeping them longer would not have helped.
    is_evicted: bool,
    /// How often it was loaded soon after it had been deleted, and how soon the last time.
    reloads: u64,
    after_s: u64,
}

/// A repository that was loaded again soon after it had been deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// `None`: the base directory itself.
    pub name: Option<PathBuf>,
    pub times: u64,
    /// How long after the deletion, the last time.
    pub after_s: u64,
    pub was_evicted: bool,
}

/// How data go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Nobody had them kept any longer.
    Unkept,
    /// To make room for others.
    Evicted,
    /// Somebody said so; or there were no data.
    Wanted,
}

impl Past {
    /// Has somebody added the counts that began then?
    pub fn has(&self, repository: &Repository, since_ns: u64) -> bool {
        let gone = self.find(&key(repository));
        since_ns != 0 && gone.is_some_and(|at| self.gone[at].since_ns == since_ns)
    }

    /// When the data of `repository` were deleted, if they have not been loaded since.
    pub fn deleted_unix_s(&self, repository: &Repository) -> Option<u64> {
        self.gone[self.find(&key(repository))?].deleted_unix_s
    }

    /// The counts that have been added, by name (encoded) and instant.
    pub fn added(&self, base: &Path) -> impl Iterator<Item = (Option<String>, u64)> {
        let directory = directory(base);
        let gone = self.gone.iter();
        let gone = gone.filter(move |gone| gone.directory == directory);
        gone.map(|gone| (gone.name.clone(), gone.since_ns))
    }

    /// What was in the base directory.
    pub fn total(&self, base: &Path) -> Total {
        let total = self.directories.get(&directory(base));
        total.copied().unwrap_or_default()
    }

    /// What was loaded soon after it was deleted from the base directory.
    pub fn reloaded(&self, base: &Path) -> impl Iterator<Item = Reloaded> {
        let directory = directory(base);
        let gone = self.gone.iter();
        let again = gone.filter(move |gone| gone.directory == directory && gone.reloads > 0);
        again.map(|gone| Reloaded {
            name: gone.name.as_deref().map(layout::decode),
            times: gone.reloads,
            after_s: gone.after_s,
            was_evicted: gone.is_evicted,
        })
    }

    fn find(&self, (directory, name): &Key) -> Option<usize> {
        let is_it = |gone: &Gone| gone.directory == *directory && gone.name == *name;
        self.gone.iter().rposition(is_it)
    }

    fn add(&mut self, key: Key, counts: &Counts, deletion: Deletion, now: u64) {
        let mut gone = match self.find(&key) {
            Some(at) => self.gone.remove(at),
            None => Gone {
                directory: key.0.clone(),
                name: key.1,
                ..Gone::default()
            },
        };
        gone.since_ns = counts.since_ns;
        gone.is_evicted = deletion == Deletion::Evicted;
        gone.deleted_unix_s = (deletion != Deletion::Wanted).then_some(now);
        self.gone.push(gone);
        let excess = self.gone.len().saturating_sub(MOST);
        self.gone.drain(..excess);
        let total = self.directories.entry(key.0).or_default();
        total.counts.add(counts);
        total.changed_unix_s = now;
        while self.directories.len() > MOST {
            let total = |entry: (&String, &Total)| (entry.1.changed_unix_s, entry.0.clone());
            let oldest = self.directories.iter().map(total).min();
            self.directories.remove(&oldest.unwrap_or_default().1);
        }
    }

    fn reload(&mut self, key: &Key, began_unix_s: u64) {
        let Some(at) = self.find(key) else { return };
        let gone = &mut self.gone[at];
        let Some(deleted) = gone.deleted_unix_s.take() else {
            return;
        };
        let after_s = began_unix_s.saturating_sub(deleted);
        if after_s <= SOON_S {
            gone.reloads = gone.reloads.saturating_add(1);
            gone.after_s = after_s;
            let total = self.directories.entry(key.0.clone()).or_default();
            total.reloads = total.reloads.saturating_add(1);
        }
    }
}

type Key = (String, Option<String>);

fn key(repository: &Repository) -> Key {
    let name = repository.name().map(layout::encode);
    (directory(repository.base()), name)
}

/// A base directory is called many things, and is one.
fn directory(base: &Path) -> String {
    let base = match base.as_os_str().is_empty() {
        true => Path::new("."),
        false => base,
    };
    let real = std::fs::canonicalize(base).or_else(|_| std::path::absolute(base));
    layout::encode(&real.unwrap_or_else(|_| base.to_owned()))
}

/// Adds the counts of a repository whose repofile is about to go. What cannot be written is said,
/// once, and is no reason not to delete.
pub fn add(held: &Held, counts: &Counts, deletion: Deletion) {
    let repository = held.repository;
    if *counts == Counts::default() && deletion == Deletion::Wanted {
        return;
    }
    change(held, "the end", &mut |past| {
        let is_added = past.has(repository, counts.since_ns);
        if !is_added {
            past.add(key(repository), counts, deletion, process::unix_time_s());
        }
        !is_added
    });
}

/// What is known of the repository before it is loaded.
pub fn look(held: &Held) -> Option<Past> {
    let stats = held.repository.stats_dir.as_ref()?;
    let (user, _) = counted_for(held)?;
    let read = || read_in(&Dir::open(&stats.path)?, user);
    match read() {
        Ok(past) => past,
        Err(error) => {
            refuse(held, stats, user, "the load", error);
            None
        }
    }
}

/// A repository is loaded whose load began then.
pub fn reloaded(held: &Held, began_unix_s: u64) {
    let key = key(held.repository);
    change(held, "the load", &mut |past| {
        past.reload(&key, began_unix_s);
        true
    });
}

/// In whose file (uid, gid): root acts for the owner; of a group each member keeps his own.
fn counted_for(held: &Held) -> Option<(u32, u32)> {
    match process::user() {
        0 => held
            .control
            .stat()
            .map(|stat| (stat.st_uid, stat.st_gid))
            .ok(),
        user => Some((user, process::group())),
    }
}

/// Replaces the file of the repository's owner, if `change` says that it has changed.
fn change(held: &Held, what: &str, change: &mut dyn FnMut(&mut Past) -> bool) {
    let Some(stats) = &held.repository.stats_dir else {
        return;
    };
    let Some((user, group)) = counted_for(held) else {
        return;
    };
    if stats.has_given_up(user) {
        return;
    }
    if let Err(error) = replace(held, &stats.path, (user, group), change) {
        refuse(held, stats, user, what, error);
    }
}

fn refuse(held: &Held, stats: &StatsDir, user: u32, what: &str, error: Error) {
    if stats.give_up(user) {
        held.console().warn(format_args!(
            "{error}; {what} of `{}` is not counted (`--stats-dir`)",
            held.repository.location().display()
        ));
    }
}

fn replace(
    held: &Held,
    path: &Path,
    (user, group): (u32, u32),
    change: &mut dyn FnMut(&mut Past) -> bool,
) -> Result<()> {
    let dir = Dir::open(path)?.for_user(user, group);
    let name = OsString::from(user.to_string());
    let lock = locked(&dir, &name, user)?;
    let mut past = match read_in(&dir, user) {
        Err(Error::Foreign { problem, .. }) if problem.starts_with(DAMAGED) => {
            let aside = OsString::from(format!("{user}.damaged"));
            held.console().warn(format_args!(
                "`{}` {DAMAGED}; it is put aside as `{}`, and counting begins anew",
                dir.path_of(&name).display(),
                aside.display()
            ));
            dir.rename(&name, &dir, &aside)?;
            Past::default()
        }
        past => past?.unwrap_or_default(),
    };
    if !change(&mut past) {
        return Ok(());
    }
    past.format = FORMAT;
    let mut bytes = serde_json::to_vec(&past).unwrap_or_default();
    bytes.push(b'\n');
    let next = OsString::from(format!("{user}.next"));
    dir.unlink(&next)?; // of one that was killed
    let mut file = dir.create(&next, PRIVATE_FILE)?;
    let written = write_all(&mut file, &bytes)
        .io("cannot write", &dir.path_of(&next))
        .and_then(|()| dir.rename(&next, &dir, &name));
    if written.is_err() {
        let _ = dir.unlink(&next);
    }
    drop(lock);
    written
}

/// Locks the user's file, made if it is not there.
fn locked(dir: &Dir, name: &OsStr, user: u32) -> Result<RwLock<File>> {
    let path = dir.path_of(name);
    loop {
        let file = match find(dir, name, user)? {
            Some(file) => file,
            None => match dir.create(name, PRIVATE_FILE) {
                Err(error) if error.errno() == Some(nix::errno::Errno::EEXIST) => continue,
                file => file?,
            },
        };
        let inode = nix::sys::stat::fstat(&file).io("cannot stat", &path)?;
        let mut lock = RwLock::new(file);
        let patience = Patience::new(Some(WAIT));
        let wait = lock::acquire(
            &mut lock,
            &path,
            &patience,
            false,
            &mut |_| true,
            &mut || (),
        );
        if wait? == lock::Wait::GaveUp {
            return Err(Error::Timeout {
                what: format!("`{}`", path.display()),
                waited: Some(WAIT),
                holder: "somebody keeps it locked".into(),
            });
        }
        // whoever had the lock before has replaced the file
        let now = dir.lstat(name)?;
        if now.is_some_and(|now| (now.st_dev, now.st_ino) == (inode.st_dev, inode.st_ino)) {
            return Ok(lock);
        }
    }
}

/// The user's file, which he alone can have written.
fn find(dir: &Dir, name: &OsStr, user: u32) -> Result<Option<File>> {
    let foreign = |problem: &str| Err(dir.foreign(name, problem, "ask who keeps `--stats-dir`"));
    match dir.lstat(name)? {
        None => return Ok(None),
        Some(stat) if !durable::is_file(&stat) => return foreign("is no file of statistics"),
        Some(_) => {}
    }
    let Some(file) = dir.find_file(name, OFlag::O_RDWR)? else {
        return Ok(None);
    };
    let stat = nix::sys::stat::fstat(&file).io("cannot stat", &dir.path_of(name))?;
    match durable::is_file(&stat) && stat.st_uid == user {
        true => Ok(Some(file)),
        false => foreign("is not the file of the user that it is named for"),
    }
}

const DAMAGED: &str = "is damaged";

/// What the user's file says; `None`: there is none.
fn read_in(dir: &Dir, user: u32) -> Result<Option<Past>> {
    let name = OsString::from(user.to_string());
    let path = dir.path_of(&name);
    let foreign = |problem: &str, remedy: &str| Err(dir.foreign(&name, problem, remedy));
    let Some(file) = find(dir, &name, user)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    let mut file = file.take(LARGEST + 1);
    file.read_to_end(&mut bytes).io("cannot read", &path)?;
    // made, and its maker killed
    if bytes.is_empty() {
        return Ok(None);
    }
    #[derive(Deserialize)]
    struct Format {
        format: u64,
    }
    match serde_json::from_slice(&bytes) {
        Ok(Format { format }) if format > u64::from(FORMAT) => {
            return foreign(
                &format!("was written by a newer sc (format {format}, this one knows {FORMAT})"),
                "use the newer sc on this node, here too",
            );
        }
        Ok(_) => {}
        Err(_) => return foreign(DAMAGED, "move it away"),
    }
    match serde_json::from_slice(&bytes) {
        Ok(past) if bytes.len() as u64 <= LARGEST => Ok(Some(past)),
        _ => foreign(DAMAGED, "move it away"),
    }
}

/// What is known of all whom we may ask: root everybody, anybody else himself. By uid.
pub fn read_all(stats: &StatsDir, problem: &mut dyn FnMut(Error)) -> Result<BTreeMap<u32, Past>> {
    let dir = Dir::open(&stats.path)?;
    let us = process::user();
    let mut pasts = BTreeMap::new();
    for name in dir.names()? {
        let user = name.to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(user) = user.filter(|user| us == 0 || *user == us) else {
            continue;
        };
        if OsString::from(user.to_string()) != name {
            continue;
        }
        match read_in(&dir, user) {
            Ok(past) => drop(past.map(|past| pasts.insert(user, past))),
            Err(error) => problem(error),
        }
    }
    Ok(pasts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("/base".into(), Some(name.into()))
    }

    fn counts(since_ns: u64) -> Counts {
        Counts {
            since_ns,
            loads: 1,
            hits: 2,
            failures: 3,
            spared_bytes: 4,
        }
    }

    #[test]
    fn the_deletions_and_the_directories_that_are_remembered_are_bounded() {
        let mut past = Past::default();
        let most = MOST as u64;
        for n in 0..most + 5 {
            past.add(key(&n.to_string()), &counts(n), Deletion::Unkept, n);
        }
        assert_eq!(past.gone.len(), MOST);
        assert_eq!(past.find(&key("4")), None, "the oldest go");
        assert!(past.find(&key("5")).is_some());
        assert_eq!(past.directories["/base"].counts.loads, most + 5);
        for n in 0..most + 5 {
            let at = (format!("/base/{n}"), None);
            past.add(at, &counts(n), Deletion::Unkept, most + 10 + n);
        }
        assert_eq!(past.directories.len(), MOST);
        assert!(
            !past.directories.contains_key("/base"),
            "changed longest ago"
        );
    }

    #[test]
    fn a_load_soon_after_the_deletion_counts_once() {
        let mut past = Past::default();
        past.add(key("r"), &counts(1), Deletion::Unkept, 1000);
        past.reload(&key("r"), 1000 + SOON_S);
        past.reload(&key("r"), 1000 + SOON_S);
        assert_eq!((past.gone[0].reloads, past.gone[0].after_s), (1, SOON_S));
        past.add(key("r"), &counts(2), Deletion::Unkept, 9000);
        past.reload(&key("r"), 9001 + SOON_S);
        assert_eq!(past.gone[0].reloads, 1, "that was not soon");
        past.add(key("r"), &counts(3), Deletion::Wanted, 20_000);
        past.reload(&key("r"), 20_001);
        assert_eq!(past.gone[0].reloads, 1, "somebody had wanted it gone");
        past.add(key("r"), &counts(4), Deletion::Evicted, 30_000);
        past.reload(&key("r"), 30_007);
        assert_eq!((past.gone[0].reloads, past.gone[0].after_s), (2, 7));
        assert!(past.gone[0].is_evicted);
        assert_eq!(past.directories["/base"].reloads, 2);
        assert_eq!(past.directories["/base"].counts.uses(), 12);
    }
}
