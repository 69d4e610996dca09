//! What was done to a repository, in the order it was done: which stage runs, what it made,
//! which stages are finished. Append-only, one record a line.
//!
//! A line is the CRC-32 of its JSON in hex, a blank, the JSON. A process killed in the middle of
//! a write leaves a torn last line; reading stops at the first line that is not whole, and the
//! next writer cuts the file there. So the journal is always a prefix of what was meant, and
//! every rule that builds on it must hold for every prefix:
//!
//! * a stage's entries come after its `stage` record and before its `stamp` (I4): a stage
//!   without a stamp made nothing that counts;
//! * an entry is on disk before it is published (I3): what a repository holds and the journal
//!   does not name is foreign;
//! * a `void` record comes before the deletion of what it voids.
//!
//! When most of it is void it is written anew: see [`compact`].

mod compact;

mod plain;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, SFlag};
use serde::{Deserialize, Serialize};

use super::certificate::{Certificate, Certificates};
use super::layout;
use super::manifest::Manifest;
use crate::durable::{self, Dir, PRIVATE_FILE};
use crate::error::{Error, IoContext, Result};
use crate::hash::Hash;
use crate::part::Part;
use compact::Lines;

/// The version of this format; a journal of another one is not read.
pub const FORMAT: u32 = 1;

/// A line longer than this is no record: nothing legal comes near it (a path has at most 4096
/// bytes, three times that when encoded).
const LONGEST_LINE: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// Always the first one.
    Journal {
        format: u32,
        generation: String,
        repofile: String,
        boot_id: Option<String>,
    },
    /// Whether the repository directory is made by us, and may go with the data. Written before
    /// the mkdir, corrected if somebody else was faster.
    Root { made: bool },
    /// A stage begins, from nothing.
    Stage {
        stage: usize,
        signature: String,
        module: String,
    },
    /// What is known of the file being downloaded.
    Part { stage: usize, part: Option<Part> },
    /// Something a stage made; the last record of a path counts.
    Entry {
        stage: usize,
        #[serde(flatten)]
        entry: Entry,
    },
    /// A stage is finished: all its entries stand above.
    Stamp {
        stage: usize,
        signature: String,
        boot_id: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_unix_s: Option<u64>,
    },
    /// The stamp of this stage counts no more.
    Void { stage: usize },
}

impl Record {
    fn stage(&self) -> Option<usize> {
        match self {
            Record::Stage { stage, .. }
            | Record::Part { stage, .. }
            | Record::Entry { stage, .. }
            | Record::Stamp { stage, .. }
            | Record::Void { stage } => Some(numbered(*stage)),
            Record::Journal { .. } | Record::Root { .. } => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Other,
}

impl Kind {
    pub fn of(stat: &FileStat) -> Kind {
        Kind::of_type(durable::kind(stat))
    }

    /// Of the type bits of a mode.
    pub fn of_type(bits: SFlag) -> Kind {
        match bits {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Dir,
            SFlag::S_IFLNK => Kind::Symlink,
            _ => Kind::Other,
        }
    }
}

/// A path a stage made, relative to the repository, with its fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(with = "encoded")]
    pub path: PathBuf,
    pub kind: Kind,
    pub size_bytes: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    pub ino: u64,
    pub dev: u64,
    /// What is in a file. Without it, and of the same inode, size and mtime as the record before,
    /// a record tells of a new ctime alone, and the hash before it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<Hash>,
    /// When the content was found to be that, by the clock on the wall; absent: when the last
    /// stage was stamped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified_unix_s: Option<u64>,
}

mod encoded {
    use super::{PathBuf, layout};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(path: &std::path::Path, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&layout::encode(path))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(layout::decode(&String::deserialize(from)?))
    }
}

impl Entry {
    pub fn new(path: PathBuf, stat: &FileStat) -> Entry {
        let ns = |s: i64, ns: i64| s.wrapping_mul(1_000_000_000).wrapping_add(ns);
        Entry {
            path,
            kind: Kind::of(stat),
            size_bytes: stat.st_size as u64,
            mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
            ino: stat.st_ino,
            dev: stat.st_dev,
            hash: None,
            certified_unix_s: None,
        }
    }

    /// What a file has; of anything else it does not matter.
    pub fn file_bytes(&self) -> u64 {
        match self.kind {
            Kind::File => self.size_bytes,
            _ => 0,
        }
    }

    /// Is what `lstat` shows the very thing that was recorded? The device number is left out: it
    /// changes across boots. Content and times are left out: a job may have changed its data,
    /// and they are still ours to delete.
    pub fn is(&self, stat: &FileStat) -> bool {
        self.ino == stat.st_ino && self.kind == Kind::of(stat)
    }
}

/// What the journal says of one stage.
#[derive(Debug, Clone, Default)]
pub struct StageRecord {
    pub signature: String,
    /// The module as people read it.
    pub module: String,
    pub part: Option<Part>,
    /// The boot in which the stage was finished.
    pub stamp: Option<Option<String>>,
    /// What it made at the top of the repository.
    pub entries: BTreeMap<PathBuf, Entry>,
    /// The size of the files that do not stand at the top.
    pub below_bytes: u64,
}

/// How much of the manifest is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What stands at the top of the repository: all that a load needs, however many members.
    Top,
    /// Everything, by inode: what a deletion needs.
    All,
    /// Everything, with fingerprints and hashes: what a verification needs.
    Certificates,
}

/// A journal as read back.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    pub generation: String,
    pub repofile: PathBuf,
    pub boot_id: Option<String>,
    /// Did we make the repository directory?
    pub root_made: bool,
    pub stages: Vec<StageRecord>,
    /// Every path, with [`Depth::All`].
    pub manifest: Manifest,
    /// Every path, with [`Depth::Certificates`].
    pub certificates: Certificates,
}

/// An `entry` record as it is read: a long journal is little else, and `Record` would copy each
/// several times over to find out what it is.
#[derive(Deserialize)]
struct EntryLine<'a> {
    #[serde(borrow)]
    entry: EntryFields<'a>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct EntryFields<'a> {
    stage: usize,
    #[serde(borrow)]
    path: Cow<'a, str>,
    kind: Kind,
    size_bytes: u64,
    mtime_ns: i64,
    ctime_ns: i64,
    ino: u64,
    dev: u64,
    #[serde(default, borrow)]
    hash: Option<Cow<'a, str>>,
    #[serde(default)]
    certified_unix_s: Option<u64>,
}

/// More stages than any command line has words for; a larger number is no stage.
const MOST_STAGES: usize = 10_000;

fn numbered(stage: usize) -> usize {
    stage.min(MOST_STAGES - 1)
}

impl Replay {
    /// Did no stage begin?
    pub fn is_blank(&self) -> bool {
        let begun = |stage: &StageRecord| !stage.signature.is_empty();
        !self.stages.iter().any(begun)
    }

    /// Has any stage recorded this very thing at `path`?
    pub fn made(&self, path: &Path, stat: &FileStat) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return false;
        };
        self.manifest
            .in_dir(parent)
            .made(name, Kind::of(stat), stat.st_ino)
    }

    /// Everything recorded at the top of the repository: what one rename publishes or withdraws.
    pub fn top_level(&self) -> impl Iterator<Item = &Entry> {
        self.stages.iter().flat_map(|stage| stage.entries.values())
    }

    fn stage(&mut self, number: usize) -> &mut StageRecord {
        if number >= self.stages.len() {
            self.stages.resize_with(number + 1, StageRecord::default);
        }
        &mut self.stages[number]
    }

    fn apply_entry(&mut self, entry: EntryFields, depth: Depth) {
        let number = numbered(entry.stage);
        let is_top = !entry.path.contains('/');
        if depth == Depth::All {
            let (kind, ino) = (entry.kind, entry.ino);
            match entry.path.contains('%') {
                false => (self.manifest).insert(number, entry.path.as_bytes(), kind, ino),
                true => {
                    let path = layout::decode(&entry.path).into_os_string();
                    (self.manifest).insert(number, path.as_bytes(), kind, ino);
                }
            }
        }
        if depth == Depth::Certificates {
            let path = match entry.path.contains('%') {
                false => Cow::Borrowed(entry.path.as_bytes()),
                true => Cow::Owned(layout::decode(&entry.path).into_os_string().into_vec()),
            };
            let certificate = Certificate {
                stage: number,
                kind: entry.kind,
                size_bytes: entry.size_bytes,
                mtime_ns: entry.mtime_ns,
                ctime_ns: entry.ctime_ns,
                ino: entry.ino,
                hash: entry.hash.as_deref().and_then(Hash::parse),
                certified_unix_s: entry.certified_unix_s,
            };
            self.certificates.insert(&path, certificate);
        }
        let stage = self.stage(number);
        if !is_top && entry.kind == Kind::File {
            stage.below_bytes += entry.size_bytes;
        }
        if is_top {
            let path = layout::decode(&entry.path);
            let same = |before: &&Entry| {
                (before.ino, before.size_bytes, before.mtime_ns)
                    == (entry.ino, entry.size_bytes, entry.mtime_ns)
            };
            let hash = match &entry.hash {
                Some(hash) => Hash::parse(hash),
                None => stage
                    .entries
                    .get(&path)
                    .filter(same)
                    .and_then(|before| before.hash.clone()),
            };
            stage.entries.insert(
                path.clone(),
                Entry {
                    path,
                    kind: entry.kind,
                    size_bytes: entry.size_bytes,
                    mtime_ns: entry.mtime_ns,
                    ctime_ns: entry.ctime_ns,
                    ino: entry.ino,
                    dev: entry.dev,
                    hash,
                    certified_unix_s: entry.certified_unix_s,
                },
            );
        }
    }

    fn apply(&mut self, record: Record, depth: Depth) {
        let number = record.stage().unwrap_or(0);
        let stage = self.stage(number);
        match record {
            Record::Journal { .. } => {}
            Record::Root { made } => self.root_made = made,
            Record::Stage {
                signature, module, ..
            } => {
                let part = stage.part.take().filter(|_| stage.signature == signature);
                *stage = StageRecord {
                    signature,
                    module,
                    part,
                    ..Default::default()
                };
                match depth {
                    Depth::Top => {}
                    Depth::All => self.manifest.forget(number),
                    Depth::Certificates => self.certificates.forget(number),
                }
            }
            Record::Part { part, .. } => stage.part = part,
            Record::Entry { .. } => {} // read as an `EntryLine`
            Record::Stamp {
                signature,
                boot_id,
                at_unix_s,
                ..
            } => {
                if signature == stage.signature {
                    stage.stamp = Some(boot_id);
                    self.certificates.stamped(at_unix_s);
                }
            }
            Record::Void { .. } => stage.stamp = None,
        }
    }
}

/// A journal open for appending.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Journal {
    /// Begins a new journal, whose first record names `generation` and the repofile.
    pub fn create(control: &Dir, generation: &str, repofile: &Path) -> Result<Journal> {
        let name = OsStr::new(layout::JOURNAL);
        control.unlink(name)?;
        let file = control.create(name, PRIVATE_FILE)?;
        let mut journal = Journal {
            file,
            path: control.path_of(name),
            buffer: Vec::new(),
        };
        journal.append(&Record::Journal {
            format: FORMAT,
            generation: generation.to_owned(),
            repofile: layout::encode(repofile),
            boot_id: crate::process::boot_id(),
        })?;
        journal.flush()?;
        Ok(journal)
    }

    /// Opens the journal in `dir` for appending, with what it says. `None`: there is none, or
    /// it does not begin as one.
    pub fn open(dir: &Dir, depth: Depth) -> Result<Option<(Journal, Replay)>> {
        let name = OsStr::new(layout::JOURNAL);
        let path = dir.path_of(name);
        let Some(mut file) = find(dir, OFlag::O_RDWR)? else {
            return Ok(None);
        };
        let Some((replay, length, lines)) = replay(&mut file, &path, depth)? else {
            return Ok(None);
        };
        file.set_len(length).io("cannot cut", &path)?;
        // a disk that is full, or worse, is no reason not to go on with a long one
        if lines.are_mostly_void()
            && compact::compact(dir, &mut file, length).is_ok()
            && let Some(compacted) = find(dir, OFlag::O_RDWR)?
        {
            file = compacted;
        }
        file.seek(SeekFrom::End(0)).io("cannot seek in", &path)?;
        Ok(Some((
            Journal {
                file,
                path,
                buffer: Vec::new(),
            },
            replay,
        )))
    }

    /// Opens the journal in `dir` for appending, unread. Behind a torn line nobody reads what is
    /// appended.
    pub fn at_end(dir: &Dir) -> Result<Option<Journal>> {
        let name = OsStr::new(layout::JOURNAL);
        let path = dir.path_of(name);
        let Some(mut file) = find(dir, OFlag::O_RDWR)? else {
            return Ok(None);
        };
        file.seek(SeekFrom::End(0)).io("cannot seek in", &path)?;
        Ok(Some(Journal {
            file,
            path,
            buffer: Vec::new(),
        }))
    }

    /// For `flock(2)`.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads the journal in `dir` without changing it.
    pub fn read(dir: &Dir, depth: Depth) -> Result<Option<Replay>> {
        let name = OsStr::new(layout::JOURNAL);
        let Some(mut file) = find(dir, OFlag::O_RDONLY)? else {
            return Ok(None);
        };
        Ok(replay(&mut file, &dir.path_of(name), depth)?.map(|(replay, ..)| replay))
    }

    /// The first record alone: generation and repofile. Costs the same however long the journal.
    pub fn read_head(dir: &Dir) -> Result<Option<Replay>> {
        let name = OsStr::new(layout::JOURNAL);
        let Some(file) = find(dir, OFlag::O_RDONLY)? else {
            return Ok(None);
        };
        let mut line = Vec::new();
        let mut reader = BufReader::with_capacity(1 << 10, file).take(LONGEST_LINE);
        reader
            .read_until(b'\n', &mut line)
            .io("cannot read", &dir.path_of(name))?;
        Ok(record(&line).and_then(head))
    }

    /// Is there a file of the journal's name that is neither a journal nor the beginning of one?
    pub fn is_damaged(dir: &Dir) -> Result<bool> {
        let name = OsStr::new(layout::JOURNAL);
        let Some(file) = find(dir, OFlag::O_RDONLY)? else {
            return Ok(false);
        };
        let mut line = Vec::new();
        let mut reader = BufReader::with_capacity(1 << 10, file).take(LONGEST_LINE);
        let read = reader
            .read_until(b'\n', &mut line)
            .io("cannot read", &dir.path_of(name))?;
        let is_torn = !line.ends_with(b"\n") && (read as u64) < LONGEST_LINE;
        Ok(!is_torn && record(&line).and_then(head).is_none())
    }

    /// Puts a record behind the others; on disk after [`Journal::flush`].
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let json = serde_json::to_vec(record).map_err(|error| Error::Internal {
            problem: format!("a record that cannot be written: {error}"),
        })?;
        let sum = crc32fast::hash(&json);
        self.buffer
            .extend_from_slice(format!("{sum:08x} ").as_bytes());
        self.buffer.extend_from_slice(&json);
        self.buffer.push(b'\n');
        if self.buffer.len() >= 128 << 10 {
            self.flush()?;
        }
        Ok(())
    }

    /// # Errors
    /// [`Error::Io`]; the journal then ends where it ended before, so that a later record is not
    /// behind a torn one, which nobody would read.
    pub fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let end = self
            .file
            .stream_position()
            .io("cannot seek in", &self.path)?;
        let written = durable::write_all(&mut self.file, &self.buffer);
        self.buffer.clear();
        if written.is_err() {
            // if this fails too, the tail is cut by whoever opens it next
            let _ = self
                .file
                .set_len(end)
                .and_then(|()| self.file.seek(SeekFrom::Start(end)));
        }
        written.io("cannot write", &self.path)
    }
}

/// Opens the journal in `dir`. What else has its name is not ours, and in the way.
fn find(dir: &Dir, flags: OFlag) -> Result<Option<File>> {
    let name = OsStr::new(layout::JOURNAL);
    match dir.lstat(name)? {
        None => Ok(None),
        Some(stat) if durable::is_file(&stat) => dir.find_file(name, flags),
        Some(_) => {
            let problem = "stands where sc's journal belongs, and is no file";
            Err(dir.foreign(name, problem, "move it away"))
        }
    }
}

fn head(record: Record) -> Option<Replay> {
    match record {
        Record::Journal {
            format: FORMAT,
            generation,
            repofile,
            boot_id,
        } if !generation.contains('/') => Some(Replay {
            generation,
            repofile: layout::decode(&repofile),
            boot_id,
            ..Default::default()
        }),
        _ => None,
    }
}

/// A whole line, newline included.
fn record(line: &[u8]) -> Option<Record> {
    serde_json::from_slice(json(line)?).ok()
}

/// The JSON of a whole line whose checksum is right.
fn json(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, json) = (line.get(..8)?, line.get(9..)?);
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    (crc32fast::hash(json) == sum).then_some(json)
}

/// How the JSON of an `entry` record begins.
const ENTRY: &[u8] = br#"{"entry":"#;

/// Is it, decoded, a path below the repository, and spelled as we spell it?
fn leads_down(encoded: &str) -> bool {
    if !encoded.contains('%') {
        return layout::is_below(Path::new(encoded));
    }
    let path = layout::decode(encoded);
    layout::is_below(&path) && layout::encode(&path) == encoded
}

/// Reads up to the first line that is not whole; also how many bytes and lines that were.
fn replay(file: &mut File, path: &Path, depth: Depth) -> Result<Option<(Replay, u64, Lines)>> {
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let mut line = Vec::new();
    let mut length = 0;
    let mut replay: Option<Replay> = None;
    let mut lines = Lines::default();
    loop {
        line.clear();
        let read = reader
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line);
        let read = read.io("cannot read", path)? as u64;
        match &mut replay {
            None => match record(&line).and_then(head) {
                Some(head) => replay = Some(head),
                None => break,
            },
            Some(replay) => {
                let Some(json) = json(&line) else { break };
                if json.starts_with(ENTRY) {
                    let entry = match plain::entry(json) {
                        Some(entry) => entry,
                        None => match serde_json::from_slice::<EntryLine>(json) {
                            Ok(line) => line.entry,
                            Err(_) => break,
                        },
                    };
                    if !leads_down(&entry.path) {
                        break;
                    }
                    lines.add(numbered(entry.stage), false);
                    replay.apply_entry(entry, depth);
                } else {
                    let Ok(record) = serde_json::from_slice::<Record>(json) else {
                        break;
                    };
                    if let Some(stage) = record.stage() {
                        lines.add(stage, matches!(record, Record::Stage { .. }));
                    }
                    replay.apply(record, depth);
                }
            }
        }
        length += read;
    }
    if let Some(replay) = &mut replay {
        replay.manifest.sort();
        replay.certificates.settle();
    }
    Ok(replay.map(|replay| (replay, length, lines)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_elsewhere_is_no_record() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path()).unwrap();
        let stat = dir.stat().unwrap();
        for path in ["..", "../x", "a/../b", "/etc/passwd", ""] {
            let mut journal = Journal::create(&dir, "g1", Path::new("repofile")).unwrap();
            for path in ["a", path, "b"] {
                let entry = Entry::new(path.into(), &stat);
                journal.append(&Record::Entry { stage: 0, entry }).unwrap();
            }
            journal.flush().unwrap();
            let replay = Journal::read(&dir, Depth::All).unwrap().unwrap();
            let paths: Vec<_> = replay.stages[0].entries.keys().collect();
            assert_eq!(paths, [Path::new("a")], "{path}");
        }
        for generation in ["../x", "x/../../y"] {
            drop(Journal::create(&dir, generation, Path::new("repofile")).unwrap());
            assert!(Journal::read(&dir, Depth::All).unwrap().is_none());
        }
    }

    fn sample(dir: &Dir) -> Vec<Record> {
        let stat = dir.stat().unwrap();
        let mut journal = Journal::create(dir, "g1", Path::new("repofile")).unwrap();
        let records = vec![
            Record::Root { made: true },
            Record::Stage {
                stage: 0,
                signature: "s0".into(),
                module: "http:x".into(),
            },
            Record::Entry {
                stage: 0,
                entry: Entry::new("a\u{e9}".into(), &stat),
            },
            Record::Stamp {
                stage: 0,
                signature: "s0".into(),
                boot_id: None,
                at_unix_s: None,
            },
        ];
        for record in &records {
            journal.append(record).unwrap();
        }
        journal.flush().unwrap();
        records
    }

    fn temporary() -> (tempfile::TempDir, Dir) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path()).unwrap();
        (temporary, dir)
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let (_temporary, dir) = temporary();
        sample(&dir);
        let replay = Journal::read(&dir, Depth::All).unwrap().unwrap();
        assert_eq!(replay.generation, "g1");
        assert_eq!(replay.repofile, Path::new("repofile"));
        assert!(replay.root_made);
        assert_eq!(replay.stages[0].stamp, Some(None));
        let (made, stat) = (replay.manifest.in_dir(Path::new("")), dir.stat().unwrap());
        assert!(made.made(OsStr::new("a\u{e9}"), Kind::Dir, stat.st_ino));
        assert!(replay.stages[0].entries[Path::new("a\u{e9}")].is(&stat));
    }

    #[test]
    fn a_journal_cut_at_any_byte_is_a_prefix_and_can_be_continued() {
        let (temporary, dir) = temporary();
        sample(&dir);
        let whole = std::fs::read(temporary.path().join("journal")).unwrap();
        let lines: Vec<usize> = whole
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(n, _)| n + 1)
            .collect();
        for cut in 0..whole.len() {
            std::fs::write(temporary.path().join("journal"), &whole[..cut]).unwrap();
            let complete = lines.iter().filter(|&&end| end <= cut).count();
            match Journal::open(&dir, Depth::All).unwrap() {
                None => assert_eq!(complete, 0, "cut at {cut}"),
                Some((mut journal, replay)) => {
                    assert_eq!(
                        replay.stages.iter().any(|s| s.stamp.is_some()),
                        complete > 4
                    );
                    journal.append(&Record::Void { stage: 3 }).unwrap();
                    journal.flush().unwrap();
                    assert_eq!(
                        Journal::read(&dir, Depth::All)
                            .unwrap()
                            .unwrap()
                            .stages
                            .len(),
                        4,
                        "cut at {cut}"
                    );
                }
            }
        }
    }

    #[test]
    fn junk_is_no_journal_and_a_flipped_bit_ends_it() {
        let (temporary, dir) = temporary();
        for junk in [
            &b""[..],
            b"\n",
            b"{}\n",
            b"00000000 {}\n",
            &[0xff; 4096],
            &[b'a'; 200_000],
        ] {
            std::fs::write(temporary.path().join("journal"), junk).unwrap();
            assert!(Journal::open(&dir, Depth::All).unwrap().is_none());
            assert!(Journal::read_head(&dir).unwrap().is_none());
        }
        std::fs::remove_file(temporary.path().join("journal")).unwrap();
        sample(&dir);
        let mut bytes = std::fs::read(temporary.path().join("journal")).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(temporary.path().join("journal"), bytes).unwrap();
        assert!(
            Journal::read(&dir, Depth::All)
                .unwrap()
                .unwrap()
                .stages
                .iter()
                .all(|s| s.stamp.is_none())
        );
    }

    #[test]
    fn a_stage_begun_again_has_made_nothing_yet() {
        let (_temporary, dir) = temporary();
        sample(&dir);
        let (mut journal, _) = Journal::open(&dir, Depth::All).unwrap().unwrap();
        let again = Record::Stage {
            stage: 0,
            signature: "s0".into(),
            module: "http:x".into(),
        };
        journal.append(&again).unwrap();
        journal.flush().unwrap();
        let replay = Journal::read(&dir, Depth::All).unwrap().unwrap();
        assert!(replay.stages[0].stamp.is_none() && replay.stages[0].entries.is_empty());
    }
}
