//! The journal without what counts no more.
//!
//! A load that is killed again and again records the members of its archive again and again. When
//! more lines of a journal are void than not, whoever opens it to go on writes what still counts to
//! a new file and renames that over it: so the journal is never longer than twice what it says, and
//! a process killed at any moment finds the one or the other. The lines stay as they are, checksums
//! and all; nothing is decoded and encoded anew.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, Write};

use serde::Deserialize;

use super::super::layout;
use super::{ENTRY, LONGEST_LINE, json};
use crate::durable::{self, Dir, PRIVATE_FILE};
use crate::error::{IoContext, Result};

/// Fewer void lines are not worth a new file.
const WORTH: u64 = 1000;

/// How many lines of a journal count, and how many do not.
#[derive(Debug, Clone, Default)]
pub(super) struct Lines {
    of_stage: Vec<u64>,
    void: u64,
    counting: u64,
}

impl Lines {
    /// One more line, of this stage; with `begins` those before it count no more.
    pub(super) fn add(&mut self, stage: usize, begins: bool) {
        if stage >= self.of_stage.len() {
            self.of_stage.resize(stage + 1, 0);
        }
        let of_stage = &mut self.of_stage[stage];
        if begins {
            self.void += *of_stage;
            self.counting -= *of_stage;
            *of_stage = 0;
        }
        *of_stage += 1;
        self.counting += 1;
    }

    pub(super) fn are_mostly_void(&self) -> bool {
        self.void > self.counting.max(WORTH)
    }
}

/// What a line is, as far as matters here.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Stage(OfStage),
    Part(OfStage),
    Entry(OfStage),
    Stamp(OfStage),
    Void(OfStage),
    #[serde(untagged)]
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct OfStage {
    stage: usize,
}

impl Line {
    fn read(line: &[u8]) -> Line {
        let line = json(line).and_then(|json| serde_json::from_slice(json).ok());
        line.unwrap_or(Line::Other(serde::de::IgnoredAny))
    }

    /// Its stage; `None`: it belongs to none.
    fn stage(&self) -> Option<usize> {
        match self {
            Line::Stage(of) | Line::Part(of) | Line::Entry(of) => Some(of.stage),
            Line::Stamp(of) | Line::Void(of) => Some(of.stage),
            Line::Other(_) => None,
        }
    }
}

/// Writes the first `length` bytes of `journal`, which are whole lines, without what is void.
pub(super) fn compact(dir: &Dir, journal: &mut File, length: u64) -> Result<()> {
    // where each stage begins for the last time, and what was last known then of its download
    let mut begins: Vec<u64> = Vec::new();
    let mut parts: Vec<Option<[u64; 2]>> = Vec::new();
    each_line(dir, journal, length, &mut |n, line| {
        if line.get(9..).is_some_and(|json| json.starts_with(ENTRY)) {
            return Ok(());
        }
        let line = Line::read(line);
        let Some(stage) = line.stage() else {
            return Ok(());
        };
        if stage >= begins.len() {
            begins.resize(stage + 1, 0);
            parts.resize(stage + 1, None);
        }
        match line {
            Line::Stage(_) => begins[stage] = n,
            Line::Part(_) => parts[stage] = Some([begins[stage], n]),
            _ => {}
        }
        Ok(())
    })?;
    let next = OsStr::new(layout::JOURNAL_NEXT);
    dir.unlink(next)?;
    let path = dir.path_of(next);
    let mut out = BufWriter::with_capacity(256 << 10, Durable(dir.create(next, PRIVATE_FILE)?));
    each_line(dir, journal, length, &mut |n, line| {
        let kind = Line::read(line);
        let counts = match kind.stage() {
            None => true,
            // a stage that begins again keeps its part: see `Replay::apply`
            Some(stage) => {
                n >= begins[stage] || parts[stage].is_some_and(|lines| lines.contains(&n))
            }
        };
        match counts {
            true => out.write_all(line).io("cannot write", &path),
            false => Ok(()),
        }
    })?;
    out.flush().io("cannot write", &path)?;
    dir.rename(next, dir, OsStr::new(layout::JOURNAL))
}

fn each_line(
    dir: &Dir,
    journal: &mut File,
    length: u64,
    each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let path = dir.path_of(layout::JOURNAL);
    journal.rewind().io("cannot seek in", &path)?;
    let mut reader = BufReader::with_capacity(256 << 10, journal.take(length));
    let mut line = Vec::new();
    for n in 0.. {
        line.clear();
        let mut one = reader.by_ref().take(LONGEST_LINE);
        if one.read_until(b'\n', &mut line).io("cannot read", &path)? == 0 {
            break;
        }
        each(n, &line)?;
    }
    Ok(())
}

/// A file whose writes are changes of the disk like all others.
struct Durable(File);

impl Write for Durable {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        durable::write_all(&mut self.0, bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Depth, Entry, Journal, Record};
    use super::*;

    /// A journal of a load whose second stage was begun `times` times; the length of its file.
    fn journal(dir: &Dir, times: u64) -> u64 {
        let stat = dir.stat().unwrap();
        let mut journal = Journal::create(dir, "g1", Path::new("repofile")).unwrap();
        let mut append = |record| journal.append(&record).unwrap();
        let signature = |stage: usize| format!("s{stage}");
        let begin = |stage| Record::Stage {
            stage,
            signature: signature(stage),
            module: "m".into(),
        };
        let stamp = |stage| Record::Stamp {
            stage,
            signature: signature(stage),
            boot_id: None,
            at_unix_s: None,
        };
        append(Record::Root { made: true });
        append(begin(0));
        append(Record::Entry {
            stage: 0,
            entry: Entry::new("archive".into(), &stat),
        });
        append(stamp(0));
        for time in 0..times {
            append(begin(1));
            for n in 0..100 {
                let entry = Entry::new(format!("d/{time}-{n}").into(), &stat);
                append(Record::Entry { stage: 1, entry });
            }
        }
        append(stamp(1));
        journal.flush().unwrap();
        drop(journal);
        dir.lstat(OsStr::new("journal")).unwrap().unwrap().st_size as u64
    }

    #[test]
    fn what_is_void_is_left_out_when_it_is_most_of_a_journal() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path()).unwrap();
        let once = journal(&dir, 1);
        let often = journal(&dir, 30);
        let before = Journal::read(&dir, Depth::All).unwrap().unwrap();
        assert_eq!(before.manifest.len(), 101);
        let (mut open, replay) = Journal::open(&dir, Depth::All).unwrap().unwrap();
        assert_eq!(replay.manifest.len(), 101);
        open.append(&Record::Void { stage: 1 }).unwrap();
        open.flush().unwrap();
        let length = dir.lstat(OsStr::new("journal")).unwrap().unwrap().st_size as u64;
        assert!(length < once + once / 5 && often > 20 * once, "{length}");
        let after = Journal::read(&dir, Depth::All).unwrap().unwrap();
        assert!(after.root_made && after.generation == "g1");
        assert!(after.stages[0].stamp.is_some() && after.stages[1].stamp.is_none());
        let paths = |replay: &super::super::Replay| replay.manifest.paths().collect::<Vec<_>>();
        assert_eq!(paths(&after), paths(&before));
    }

    #[test]
    fn what_is_known_of_a_download_outlives_that_its_stage_begins_again() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = Dir::open(temporary.path()).unwrap();
        let part = crate::part::Part {
            url: "http://h/f".into(),
            etag: Some("\"1\"".into()),
            last_modified: None,
            total: Some(7),
        };
        let begin = || Record::Stage {
            stage: 0,
            signature: "s".into(),
            module: "m".into(),
        };
        let mut journal = Journal::create(&dir, "g1", Path::new("repofile")).unwrap();
        journal.append(&begin()).unwrap();
        let known = Record::Part {
            stage: 0,
            part: Some(part.clone()),
        };
        journal.append(&known).unwrap();
        for _ in 0..3000 {
            journal.append(&begin()).unwrap();
        }
        journal.flush().unwrap();
        drop(journal);
        let (_, replay) = Journal::open(&dir, Depth::Top).unwrap().unwrap();
        assert_eq!(replay.stages[0].part, Some(part.clone()));
        let length = dir.lstat(OsStr::new("journal")).unwrap().unwrap().st_size;
        assert!(length < 1000, "{length}");
        let replay = Journal::read(&dir, Depth::Top).unwrap().unwrap();
        assert_eq!(replay.stages[0].part, Some(part));
    }
}
