//! Comparing what a repository holds with what its journal says that it held.
//!
//! # What is read, and what is not
//!
//! Each file was digested while it was made, and its fingerprint (size, mtime, ctime, inode; the
//! device number changes across boots) taken then. A file whose fingerprint is the same is not read
//! again, as in bzr's hash cache: whoever writes to a file changes its ctime, which only a clock
//! that is set back can make come out the same. Three things take that trust away, and the file is
//! read:
//!
//! * its mtime or ctime is not [`RACY_S`] older than its certificate: a write within the same tick
//!   of the clock after it would not show;
//! * its certificate is of the future: the clock was set back since, which proves nothing wrong;
//! * the caller wants all of it read (`--paranoid`, or the data are of another boot).
//!
//! A file that was read and is right gets a new certificate, which is of the time *before* it was
//! read; where nothing at all differs, one new stamp is that of all files which the last one
//! certified. Its times alone are no difference: whoever touches a file has not changed what jobs
//! read.
//! Where there is no hash to tell (a journal of an sc that knew none), a changed mtime is one.
//!
//! Directories and symlinks have no hash. Of a directory only that it is there matters: jobs may
//! put files of their own into it. A symlink never changes; another one has another inode.
//!
//! # On several threads
//!
//! A task is some hundred names of one directory. Nothing here changes the repository, and no lock
//! is held: data that are torn down meanwhile look damaged, so whoever is told of differences
//! looks afterwards whether the generation is still the same.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, fstat};

use crate::console::Console;
use crate::crew;
use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::hash::Hash;
use crate::process;
use crate::repository::Held;
use crate::repository::certificate::{Certificate, Certificates, Folder};
use crate::repository::journal::{Depth, Entry, Journal, Kind, Record, Replay};
use crate::repository::repofile::Repofile;
use crate::signal;
use crate::stack::checksum::{Checksum, Hasher};

/// The coarsest clock of a file system (FAT has 2 s): two writes within one tick have one time.
pub const RACY_S: i64 = 2;

/// Names of a directory that one thread takes at once.
const TASK: usize = 256;

/// Bytes read at a time.
const BUFFER: usize = 256 << 10;

/// In what a path differs; the words are ubelt's, and part of the output's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    NoCert,
    ExpiredCert,
    MissingProducts,
    TypeDiff,
    InodeDiff,
    SizeDiff,
    MtimeDiff,
    HashDiff,
    HashPrefixMismatch,
}

impl Reason {
    pub fn word(self) -> &'static str {
        match self {
            Reason::NoCert => "no_cert",
            Reason::ExpiredCert => "expired_cert",
            Reason::MissingProducts => "missing_products",
            Reason::TypeDiff => "type_diff",
            Reason::InodeDiff => "inode_diff",
            Reason::SizeDiff => "size_diff",
            Reason::MtimeDiff => "mtime_diff",
            Reason::HashDiff => "hash_diff",
            Reason::HashPrefixMismatch => "hash_prefix_mismatch",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A path that is not as it was recorded; `.` is the repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    pub path: PathBuf,
    pub reason: Reason,
}

/// What came of a comparison.
#[derive(Debug, Default)]
pub struct Findings {
    /// Sorted by path.
    pub differences: Vec<Difference>,
    /// Paths looked at.
    pub entries: u64,
    /// Files that were read, and their bytes.
    pub hashed: u64,
    pub hashed_bytes: u64,
    began_unix_s: u64,
    renewed: Vec<Renewed>,
}

/// A new certificate.
#[derive(Debug)]
struct Renewed {
    stage: usize,
    entry: Entry,
    /// Would it do to stamp the last stage anew?
    by_stamp: bool,
}

impl Findings {
    /// Of a repository nothing can be said of.
    pub fn nothing_known() -> Findings {
        let mut findings = Findings::default();
        findings.add(PathBuf::from("."), Reason::NoCert);
        findings
    }

    pub fn add(&mut self, path: PathBuf, reason: Reason) {
        let difference = Difference { path, reason };
        if let Err(at) = self.differences.binary_search(&difference) {
            self.differences.insert(at, difference);
        }
    }
}

/// What is compared, and how closely.
pub struct Examination<'a> {
    pub root: &'a Dir,
    /// Read with [`Depth::Certificates`].
    pub journal: &'a Replay,
    pub repofile: &'a Repofile,
    /// Read every file.
    pub all: bool,
    pub console: &'a Console,
}

/// What is counted while several threads are at it.
#[derive(Default)]
struct Tally {
    found: Mutex<Findings>,
    hashed: AtomicU64,
    hashed_bytes: AtomicU64,
}

impl Examination<'_> {
    /// # Errors
    /// [`Error::Io`]; [`Error::Interrupted`]. What differs is no error.
    pub fn run(&self) -> Result<Findings> {
        let folders = &self.journal.certificates.folders;
        let is_published = self.published();
        let (mut tasks, mut entries, mut bytes) = (Vec::new(), 0, 0);
        for folder in folders {
            if let Some(top) = folder.path.iter().next()
                && !is_published(top)
            {
                continue;
            }
            entries += folder.items.len();
            bytes += (folder.items.iter()).fold(0, |bytes, (_, item)| bytes + item.file_bytes());
            tasks.extend(folder.items.chunks(TASK).map(|items| (folder, items)));
        }
        // it is there before the first file is read
        let now = process::unix_time_s();
        let tally = Tally::default();
        let each = |(folder, items): (&Folder, &[(Box<OsStr>, Certificate)]), _: &_| {
            let mut look = Look {
                certificates: &self.journal.certificates,
                all: self.all,
                now,
                found: Findings::default(),
                tally: &tally,
                buffer: Vec::new(),
                console: self.console,
            };
            let dir = match self.root.descend(&folder.path) {
                Ok(dir) => Ok(dir),
                Err(error) => Err(unreached(error)?),
            };
            for (name, certificate) in items {
                signal::check()?;
                if folder.path.as_os_str().is_empty() && !is_published(name) {
                    continue;
                }
                let path = || folder.path.join(&**name);
                let reason = match &dir {
                    Ok(dir) => look.at(dir, name, certificate, &path)?,
                    Err(reason) => Some(*reason),
                };
                look.found.entries += 1;
                if let Some(reason) = reason {
                    let path = path();
                    (look.found.differences).push(Difference { path, reason });
                }
            }
            let mut found = tally.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.entries += look.found.entries;
            found.differences.append(&mut look.found.differences);
            found.renewed.append(&mut look.found.renewed);
            Ok(())
        };
        let threads = match self.all {
            true => crew::threads_for(entries.max((bytes >> 14) as usize)),
            false => crew::threads_for(entries),
        };
        let mut progress = (self.all).then(|| {
            let doing = format!("verifying `{}`", self.root.path().display());
            self.console.progress(&doing, 0, Some(bytes))
        });
        crew::work_off(threads, tasks, each, || {
            if let Some(progress) = &mut progress {
                progress.set(tally.hashed_bytes.load(Ordering::Relaxed));
            }
        })?;
        let found = tally.found.into_inner();
        let mut found = found.unwrap_or_else(PoisonError::into_inner);
        found.began_unix_s = now;
        found.hashed = tally.hashed.into_inner();
        found.hashed_bytes = tally.hashed_bytes.into_inner();
        found.differences.sort();
        self.promised(&mut found);
        Ok(found)
    }

    /// Is this top-level name one that was published? What was unpacked and dropped is not.
    fn published(&self) -> impl Fn(&OsStr) -> bool + Sync {
        let names = self.repofile.sc.entries.is_some();
        let names: Option<Vec<PathBuf>> = names.then(|| self.repofile.entries().collect());
        let dropped: Vec<PathBuf> = (self.journal.stages.iter().enumerate())
            .filter(|(_, stage)| stage.module.starts_with("tar:drop"))
            .filter_map(|(n, _)| self.loaded(n))
            .collect();
        move |top: &OsStr| match &names {
            Some(names) => names.iter().any(|name| name == top),
            None => dropped.iter().all(|name| name != top),
        }
    }

    /// The file that stage `n` of the journal works on.
    fn loaded(&self, n: usize) -> Option<PathBuf> {
        let above = ["tar", "dummy"];
        let loader = self.journal.stages[..n].iter().rev().find(|stage| {
            let class = stage.module.split(':').next().unwrap_or_default();
            !above.contains(&class) && checksum(&stage.module).is_none()
        })?;
        loader.entries.keys().next().cloned()
    }

    /// Does what is recorded of the loaders' files fit the checksums that let them pass?
    fn promised(&self, found: &mut Findings) {
        for (n, stage) in self.journal.stages.iter().enumerate() {
            if let (Some(checksum), Some(path)) = (checksum(&stage.module), self.loaded(n))
                && let Some(certificate) = self.journal.certificates.of(&path)
                && let Some(hash) = &certificate.hash
                && checksum.fits(hash) == Some(false)
            {
                found.add(path, Reason::HashPrefixMismatch);
            }
        }
    }

    /// Does the file at `path` fit a checksum of the command line? What the journal says of it
    /// counts, if that speaks of the same algorithm; else the file is read.
    pub fn expect(&self, path: &Path, checksum: &Checksum, found: &mut Findings) -> Result<()> {
        let Some(certificate) = self.journal.certificates.of(path) else {
            return Ok(());
        };
        let fits = match certificate
            .hash
            .as_ref()
            .and_then(|hash| checksum.fits(hash))
        {
            Some(fits) => fits,
            None => {
                let name = path.as_os_str();
                let file = match self.root.open_file(name, OFlag::O_RDONLY) {
                    Err(error) => return unreached(error).map(drop),
                    Ok(file) => file,
                };
                let mut buffer = Vec::new();
                let mut hasher = checksum.hasher();
                let mut feed = |bytes: &[u8]| hasher.update(bytes);
                read(
                    file,
                    &self.root.path_of(name),
                    u64::MAX,
                    &mut buffer,
                    &mut feed,
                )?;
                checksum.verify(path, &hasher.finish()).is_ok()
            }
        };
        if !fits {
            found.add(path.to_owned(), Reason::HashPrefixMismatch);
        }
        Ok(())
    }
}

/// The checksum that a stage of the journal was.
fn checksum(module: &str) -> Option<Checksum> {
    let (class, hex) = module.split_once(':')?;
    Checksum::parse(class.as_bytes(), Some(OsStr::new(hex))).ok()?
}

/// Why something is not to be had that was there.
fn unreached(error: Error) -> Result<Reason> {
    match error.errno() {
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(Reason::MissingProducts),
        // an archive may close its members to their owner: nothing can be said of what is in them
        Some(Errno::EACCES) => Ok(Reason::NoCert),
        _ => Err(error),
    }
}

/// Reads the `size_bytes` of a file, or to its end if it has become shorter.
fn read(
    mut file: impl Read,
    path: &Path,
    size_bytes: u64,
    buffer: &mut Vec<u8>,
    feed: &mut dyn FnMut(&[u8]),
) -> Result<()> {
    buffer.resize(BUFFER, 0);
    let mut left = size_bytes;
    while left > 0 {
        signal::check()?;
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        match file.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(n) => {
                left -= n as u64;
                feed(&buffer[..n]);
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).io("cannot read", path),
        }
    }
    Ok(())
}

/// One thread's look at some names.
struct Look<'a> {
    certificates: &'a Certificates,
    all: bool,
    now: u64,
    found: Findings,
    tally: &'a Tally,
    buffer: Vec<u8>,
    console: &'a Console,
}

impl Look<'_> {
    fn at(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        certificate: &Certificate,
        path: &dyn Fn() -> PathBuf,
    ) -> Result<Option<Reason>> {
        let Some(stat) = dir.lstat(name)? else {
            return Ok(Some(Reason::MissingProducts));
        };
        let is_same_inode = stat.st_ino == certificate.ino;
        match certificate.kind {
            kind if kind != Kind::of(&stat) => return Ok(Some(Reason::TypeDiff)),
            // one that was there before the load was entered
            Kind::Dir => return Ok(None),
            _ if !is_same_inode => return Ok(Some(Reason::InodeDiff)),
            Kind::File => {}
            _ => return Ok(None),
        }
        let now = Entry::new(PathBuf::new(), &stat);
        if now.size_bytes != certificate.size_bytes {
            return Ok(Some(Reason::SizeDiff));
        }
        let is_touched = now.mtime_ns != certificate.mtime_ns;
        let Some(hash) = &certificate.hash else {
            return Ok(Some(match is_touched {
                true => Reason::MtimeDiff,
                false => Reason::NoCert,
            }));
        };
        let is_equal = !is_touched && now.ctime_ns == certificate.ctime_ns;
        let is_trusted = is_trusted(&now, self.certificates.seen_at(certificate), self.now);
        if is_equal && is_trusted && !self.all {
            return Ok(None);
        }
        let file = match dir.open_file(name, OFlag::O_RDONLY) {
            Ok(file) => file,
            Err(error) => return unreached(error).map(Some),
        };
        let full = dir.path_of(name);
        let Some(digest) = self.digest(&file, &full, now.size_bytes, hash)? else {
            return Ok(Some(Reason::NoCert));
        };
        if digest != *hash {
            return Ok(Some(Reason::HashDiff));
        }
        if is_touched {
            self.console.detail(format_args!(
                "`{}` has another mtime than was recorded, and the same content",
                full.display()
            ));
        }
        if is_equal && is_trusted {
            return Ok(None);
        }
        // as it was before and after it was read, so that this is what was read
        let after = fstat(&file).io("cannot stat", &full)?;
        let entry = Entry::new(path(), &after);
        if is_as_before(&stat, &after) && is_trusted_at(&entry, self.now) {
            self.found.renewed.push(Renewed {
                stage: certificate.stage,
                entry: entry.certified(hash.clone(), self.now),
                by_stamp: is_equal && certificate.certified_unix_s.is_none(),
            });
        }
        Ok(None)
    }

    /// `None`: an algorithm that we don't know.
    fn digest(
        &mut self,
        file: &File,
        path: &Path,
        size_bytes: u64,
        like: &Hash,
    ) -> Result<Option<Hash>> {
        let tally = self.tally;
        tally.hashed.fetch_add(1, Ordering::Relaxed);
        let count = |bytes: &[u8]| {
            (tally.hashed_bytes).fetch_add(bytes.len() as u64, Ordering::Relaxed);
        };
        match like {
            Hash::Blake3(_) => {
                let mut hasher = blake3::Hasher::new();
                read(file, path, size_bytes, &mut self.buffer, &mut |bytes| {
                    hasher.update(bytes);
                    count(bytes);
                })?;
                Ok(Some(hasher.into()))
            }
            Hash::Other(_) => {
                let (algorithm, _) = like.split();
                let Some(mut hasher) = Hasher::called(&algorithm) else {
                    return Ok(None);
                };
                read(file, path, size_bytes, &mut self.buffer, &mut |bytes| {
                    hasher.update(bytes);
                    count(bytes);
                })?;
                Ok(Hash::parse(&format!(
                    "{algorithm}:{}",
                    hasher.finish().hex()
                )))
            }
        }
    }
}

fn is_as_before(before: &FileStat, after: &FileStat) -> bool {
    let print = |stat| {
        let entry = Entry::new(PathBuf::new(), stat);
        (entry.ino, entry.size_bytes, entry.mtime_ns, entry.ctime_ns)
    };
    print(before) == print(after)
}

/// Does a certificate of that time say something of a file with these times?
fn is_trusted(now: &Entry, certified_unix_s: Option<u64>, now_unix_s: u64) -> bool {
    certified_unix_s.is_some_and(|at| at <= now_unix_s && is_trusted_at(now, at))
}

fn is_trusted_at(entry: &Entry, certified_unix_s: u64) -> bool {
    let latest_ns = i128::from(entry.mtime_ns.max(entry.ctime_ns));
    let racy_ns = i128::from(RACY_S) * 1_000_000_000;
    latest_ns + racy_ns <= i128::from(certified_unix_s) * 1_000_000_000
}

/// Writes the new certificates down, if the journal is still that of `generation`.
pub fn renew(held: &Held, generation: &str, findings: &Findings) -> Result<()> {
    // a guest's word on the data is not the owner's
    if findings.renewed.is_empty() || held.is_guest() {
        return Ok(());
    }
    let Some((mut journal, replay)) = Journal::open(&held.control, Depth::Top)? else {
        return Ok(());
    };
    held.check()?;
    if replay.generation != generation {
        return Ok(());
    }
    durable::point("renew").io("cannot write", &held.control.path_of("journal"))?;
    let last = (replay.stages.iter().enumerate()).rfind(|(_, stage)| stage.stamp.is_some());
    // of what differs nothing may be said that a stamp would say of it, too
    let stamp = match last {
        Some((stage, record)) if findings.differences.is_empty() => {
            record.stamp.clone().map(|boot_id| Record::Stamp {
                stage,
                signature: record.signature.clone(),
                boot_id,
                at_unix_s: Some(findings.began_unix_s),
            })
        }
        _ => None,
    };
    for one in &findings.renewed {
        if stamp.is_none() || !one.by_stamp {
            journal.append(&Record::Entry {
                stage: one.stage,
                entry: one.entry.clone(),
            })?;
        }
    }
    if let Some(stamp) = &stamp
        && findings.renewed.iter().any(|one| one.by_stamp)
    {
        journal.append(stamp)?;
    }
    journal.flush()
}

/// Are all the data, which were loaded in another boot, what they were then? Read to the last
/// byte. `Some`: what is wrong.
pub fn prove(held: &Held, root: &Dir, repofile: &Repofile) -> Result<Option<Difference>> {
    let journal = Journal::read(&held.control, Depth::Certificates)?;
    let Some(journal) = journal.filter(|journal| repofile.is_of(Some(&journal.generation))) else {
        return Ok(Findings::nothing_known().differences.pop());
    };
    let examination = Examination {
        root,
        journal: &journal,
        repofile,
        all: true,
        console: held.console(),
    };
    let mut findings = examination.run()?;
    if findings.differences.is_empty() {
        // what cannot be written down is read again, another time
        match renew(held, &journal.generation, &findings) {
            Err(error @ Error::Io { .. }) => held.console().detail(error),
            renewed => renewed?,
        }
        return Ok(None);
    }
    Ok(Some(findings.differences.swap_remove(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(mtime_s: i64, ctime_s: i64) -> Entry {
        let temporary = tempfile::tempdir().unwrap();
        let stat = Dir::open(temporary.path()).unwrap().stat().unwrap();
        Entry {
            mtime_ns: mtime_s * 1_000_000_000,
            ctime_ns: ctime_s * 1_000_000_000,
            ..Entry::new("f".into(), &stat)
        }
    }

    #[test]
    fn a_file_two_seconds_older_than_its_certificate_is_trusted() {
        assert!(is_trusted(&file(1000, 1000), Some(1002), 5000));
        assert!(!is_trusted(&file(1000, 1000), Some(1001), 5000), "racy");
        assert!(!is_trusted(&file(1001, 1000), Some(1002), 5000), "by mtime");
        assert!(!is_trusted(&file(1000, 1001), Some(1002), 5000), "by ctime");
    }

    #[test]
    fn a_certificate_of_the_future_or_of_no_time_is_not_trusted() {
        assert!(is_trusted(&file(1000, 1000), Some(5000), 5000));
        assert!(!is_trusted(&file(1000, 1000), Some(5001), 5000));
        assert!(!is_trusted(&file(1000, 1000), None, 5000));
    }
}
