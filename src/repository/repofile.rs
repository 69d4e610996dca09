//! The repofile: one JSON object that says who uses the repository and what state it is in.
//!
//! Three keys are the reference's own and keep their meaning: `state`, `readers` (pids, in the
//! order they came) and `writer` (pid or null). Everything of ours stands under `sc`. Keys we
//! don't know are written back as they were.
//!
//! The file is absent or complete (I2), except that the reference writes in place: an empty or
//! cut file is what it leaves when it is killed at that moment. That means: nothing is known, and
//! is read so. Anything else that is no repofile is somebody's file, and refused.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::counts::{Counts, Why};
use super::guest::{self, Guest};
use super::holder::Holder;
use super::{crowd, layout};
use crate::durable::{self, Dir};
use crate::error::{IoContext, Result};
use crate::process::{self, Identity, Life};

/// The version of what stands under `sc`. A newer one is refused, never rewritten.
pub const FORMAT: u32 = 1;

/// A repofile with 10,000 holders has 3 MB.
const LARGEST: u64 = 64 << 20;

/// Top-level entries recorded one by one; of more than that, only the number is.
pub const MOST_ENTRIES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum State {
    #[default]
    #[serde(rename = "UNKNOWN")]
    Unknown,
    #[serde(rename = "IN_PROGRESS")]
    InProgress,
    #[serde(rename = "BROKEN")]
    Broken,
    #[serde(rename = "OK")]
    Ok,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Unknown => "UNKNOWN",
            State::InProgress => "IN_PROGRESS",
            State::Broken => "BROKEN",
            State::Ok => "OK",
        })
    }
}

/// Ours, under the key `sc`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sc {
    pub format: u32,
    /// Joins this file to the journal whose first record has the same.
    pub generation: Option<String>,
    /// The `state` it was written with; another one there now is a reference's doing.
    pub state: State,
    /// Digest of the stacks that were loaded.
    pub signature: Option<String>,
    /// The stacks as people read them.
    pub definition: Option<String>,
    /// The repository's directory, absolute and encoded: a `--file` outside of it could be named
    /// for two.
    pub location: Option<String>,
    /// The boot the data was loaded in.
    pub boot_id: Option<String>,
    pub loaded_unix_s: Option<u64>,
    /// From then on it is loaded anew, once nobody holds it (`--expires`).
    pub expires_unix_s: Option<u64>,
    /// When somebody last came or went: what is evicted first.
    pub used_unix_s: Option<u64>,
    /// The last `--keep` that was given: how long the data stay when the last holder has gone.
    pub keep_s: u64,
    /// Nobody holds it, and until then it stays.
    pub kept_until_unix_s: Option<u64>,
    /// What the files that were loaded have, together.
    pub size_bytes: Option<u64>,
    /// Published top-level names, encoded; null where there are too many.
    pub entries: Option<Vec<String>>,
    pub entry_count: u64,
    #[serde(serialize_with = "crowd::write")]
    pub holders: Vec<Holder>,
    pub loader: Option<Loader>,
    pub failure: Option<Failure>,
    pub counts: Counts,
    pub load: Option<Why>,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Sc {
    /// Are the entries names in the repository, and nothing else?
    fn leads_down(&self) -> bool {
        let is_name = |entry: &String| {
            let path = layout::decode(entry);
            layout::is_below(&path) && path.components().count() == 1
        };
        self.entries.iter().flatten().all(is_name)
    }
}

/// The sc that is loading.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loader {
    #[serde(flatten)]
    pub process: Identity,
    pub since_boot_ns: u64,
    /// The lock it works under, which tells its death to every pid namespace: whoever has locked
    /// the same inode knows that this loader has not. (An inode that is open is not given away.)
    #[serde(default)]
    pub lock_dev: u64,
    #[serde(default)]
    pub lock_ino: u64,
}

/// How the last load ended, if it failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    pub message: String,
    pub exit_status: u8,
    pub ended_boot_ns: u64,
    pub ended_unix_s: u64,
    pub boot_id: Option<String>,
    pub signature: String,
    /// Digest of sources and headers: the same failure is only expected of the same attempt.
    pub attempt: String,
}

#[derive(Debug, Clone, Default)]
pub struct Repofile {
    pub state: State,
    pub readers: Vec<i64>,
    pub writer: Option<i64>,
    pub sc: Sc,
    /// Was there a file at all?
    pub exists: bool,
    /// Met while a reference was writing it in place, or left by one that was killed then.
    pub is_cut: bool,
    /// Whose file it is, if there is one.
    pub owner: Option<u32>,
    /// Who was taken out since it was read.
    over: Vec<Holder>,
    /// Those who hold what is shared with all, as they were found at [`Repofile::reap`].
    pub guests: Vec<Guest>,
    over_guests: Vec<Guest>,
    whole: Map<String, Value>,
}

impl Repofile {
    /// Reads `name` in `dir`; a missing file is the state of a repository that isn't.
    ///
    /// # Errors
    /// [`crate::error::Error::Foreign`]: it is no repofile, or a newer sc wrote it.
    pub fn read(dir: &Dir, name: &Path) -> Result<Repofile> {
        let path = dir.path_of(name);
        let name = name.as_os_str();
        let refuse = |problem: &str, remedy: &str| Err(dir.foreign(name, problem, remedy));
        let Some(stat) = dir.lstat(name)? else {
            return Ok(Repofile::default());
        };
        if !durable::is_file(&stat) {
            return refuse(
                "stands where the repofile belongs, and is no file",
                MOVE_AWAY,
            );
        }
        if stat.st_size > LARGEST as i64 {
            return refuse("is too large for a repofile", MOVE_AWAY);
        }
        let Some(mut file) = dir.find_file(name, OFlag::O_RDONLY)? else {
            return Ok(Repofile::default());
        };
        let mut bytes = Vec::with_capacity(stat.st_size.clamp(0, LARGEST as i64) as usize + 1);
        file.by_ref()
            .take(LARGEST + 1)
            .read_to_end(&mut bytes)
            .io("cannot read", &path)?;
        if bytes.len() as u64 > LARGEST {
            return refuse("is too large for a repofile", MOVE_AWAY);
        }
        let owner = Some(
            nix::sys::stat::fstat(&file)
                .io("cannot stat", &path)?
                .st_uid,
        );
        match Repofile::parse(&bytes) {
            Ok(repofile) => Ok(Repofile { owner, ..repofile }),
            Err(Unreadable::Cut) => Ok(Repofile {
                exists: true,
                is_cut: true,
                owner,
                ..Default::default()
            }),
            Err(Unreadable::Foreign(problem)) => refuse(&problem, MOVE_AWAY),
            Err(Unreadable::Newer(format)) => refuse(
                &format!("was written by a newer sc (format {format}, this one knows {FORMAT})"),
                "use the newer sc on this node, here too",
            ),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Repofile, Unreadable> {
        let (mut whole, holders) = match crowd::read(bytes) {
            Some((whole, holders)) => (whole, Some(holders)),
            None => (object(bytes)?, None),
        };
        let wrong =
            |key: &str| Unreadable::Foreign(format!("is no repofile: its `{key}` makes no sense"));
        let state = match whole.get("state") {
            None | Some(Value::Null) => State::Unknown,
            Some(state) => State::deserialize(state).map_err(|_| wrong("state"))?,
        };
        let writer = match whole.get("writer") {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(writer) => {
                Some(writer.as_i64().ok_or_else(|| wrong("writer"))?).filter(|&w| w != 0)
            }
        };
        let readers = match whole.get("readers") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(readers)) => readers.iter().filter_map(Value::as_i64).collect(),
            Some(_) => return Err(wrong("readers")),
        };
        if let Some(readers) = whole.get_mut("readers") {
            *readers = Value::Null; // its place among the keys is what is still needed
        }
        let sc = match whole.get_mut("sc") {
            None | Some(Value::Null) => Sc::default(),
            Some(sc) => {
                let format = sc.get("format").and_then(Value::as_u64).unwrap_or(0);
                if format > u64::from(FORMAT) {
                    return Err(Unreadable::Newer(format));
                }
                // what does not parse is no statement of ours
                match Sc::deserialize(sc.take()) {
                    Ok(sc) if sc.leads_down() => Sc {
                        holders: holders.unwrap_or(sc.holders),
                        ..sc
                    },
                    _ => Sc::default(),
                }
            }
        };
        let mut repofile = Repofile {
            state,
            readers,
            writer,
            sc,
            exists: true,
            is_cut: false,
            owner: None,
            over: Vec::new(),
            guests: Vec::new(),
            over_guests: Vec::new(),
            whole,
        };
        repofile.reconcile();
        Ok(repofile)
    }

    /// Does each reader stand for the holder at the same place? Mostly.
    fn are_paired(&self) -> bool {
        let holders = self.sc.holders.iter();
        let numbers = holders.map(|holder| i64::from(holder.reader()));
        self.readers.iter().copied().eq(numbers)
    }

    /// A holder of ours whose number a reference has taken out of `readers` is one no more.
    fn reconcile(&mut self) {
        if self.are_paired() {
            return;
        }
        let mut numbers = counted(self.readers.iter().copied());
        self.sc.holders.retain(|holder| {
            let count = numbers.get_mut(&i64::from(holder.reader()));
            count.is_some_and(|count| {
                let is_there = *count > 0;
                *count -= u32::from(is_there);
                is_there
            })
        });
    }

    /// The numbers in `readers` that only a reference can have put there.
    pub fn reference_readers(&self) -> Vec<i64> {
        if self.are_paired() {
            return Vec::new();
        }
        let holders = &self.sc.holders;
        let mut ours = counted(holders.iter().map(|holder| i64::from(holder.reader())));
        let is_theirs = |number: &&i64| match ours.get_mut(number) {
            Some(count) if *count > 0 => {
                *count -= 1;
                false
            }
            _ => true,
        };
        self.readers.iter().filter(is_theirs).copied().collect()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let value = |value: serde_json::Result<Value>| value.unwrap_or(Value::Null);
        let mut whole = self.whole.clone();
        whole.insert("state".into(), value(serde_json::to_value(self.state)));
        whole.insert("readers".into(), Value::Null);
        whole.insert("writer".into(), value(serde_json::to_value(self.writer)));
        whole.insert("sc".into(), Value::Null);
        let mut sc = self.sc.clone();
        sc.format = FORMAT;
        sc.state = self.state;
        let written = Written {
            whole: &whole,
            readers: &self.readers,
            sc: &sc,
        };
        let mut bytes = serde_json::to_vec(&written).expect("what was read as JSON is JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Does `sc` speak of this state, and is the journal with this generation its own? Else a
    /// reference has loaded since.
    pub fn is_of(&self, generation: Option<&str>) -> bool {
        self.sc.format == FORMAT
            && self.sc.state == self.state
            && self.sc.generation.is_some()
            && self.sc.generation.as_deref() == generation
    }

    /// Forgets what `sc` says of the data: a reference has loaded since. It must not be committed
    /// with the new state, or it would count again.
    pub fn disown(&mut self) {
        self.sc = Sc {
            holders: std::mem::take(&mut self.sc.holders),
            counts: self.sc.counts,
            unknown: std::mem::take(&mut self.sc.unknown),
            ..Sc::default()
        };
    }

    pub fn add(&mut self, holder: Holder) {
        self.readers.push(i64::from(holder.reader()));
        self.sc.holders.push(holder);
    }

    pub fn position(&self, wanted: &Holder) -> Option<usize> {
        self.sc
            .holders
            .iter()
            .position(|holder| holder.is_same(wanted))
    }

    pub fn remove(&mut self, at: usize) -> Holder {
        let holder = self.sc.holders.remove(at);
        let number = i64::from(holder.reader());
        if let Some(at) = self.readers.iter().position(|&reader| reader == number) {
            self.readers.remove(at);
        }
        self.over.push(holder.clone());
        holder
    }

    /// Takes away what stands in the control directory for those who were taken out. Not before
    /// that is committed: of a recorded hold whose lock file is gone, the end is hard to prove (I6).
    pub(super) fn forget_over(&self, control: &Dir) -> Result<()> {
        let gone = self
            .over
            .iter()
            .filter(|holder| self.position(holder).is_none());
        gone.into_iter()
            .try_for_each(|holder| holder.forget(control))?;
        guest::forget(control, &self.over_guests)
    }

    /// How many hold, not counting those whom [`Repofile::reap`] has found to be dead.
    pub fn holds(&self) -> usize {
        self.readers.len() + self.guests.len()
    }

    /// Takes out the holders that are proven dead (I6), and those whose load never became
    /// anything: whoever calls this holds the lock, so no load of ours is under way.
    /// Returns how the dropped ones are called.
    ///
    /// Looking at ten thousand takes longer than all else. So beyond [`ENOUGH`], it is enough to
    /// know of two who live, of whom one may be the caller; each call begins elsewhere, looks at
    /// more than it adds, and so the dead go all the same.
    pub fn reap(&mut self, control: &Dir) -> Result<Vec<String>> {
        let mut dropped = Vec::new();
        let count = self.sc.holders.len();
        let first = match count > ENOUGH {
            true => process::since_boot_ns() as usize % count,
            false => 0,
        };
        let (mut looked, mut living) = (0, 0);
        let mut doomed = Vec::new();
        for at in (0..count).map(|n| (first + n) % count) {
            let holder = &self.sc.holders[at];
            if holder.provisional {
                doomed.push(at);
            } else if looked < ENOUGH || living < 2 {
                looked += 1;
                match holder.life(control)? {
                    Life::Dead => doomed.push(at),
                    Life::Alive | Life::Doubt => living += 1,
                }
            }
        }
        doomed.sort_unstable();
        for at in doomed.into_iter().rev() {
            let holder = self.remove(at);
            if !holder.provisional {
                dropped.push(holder.to_string());
            }
        }
        let (living, dead) = guest::judge(control);
        dropped.extend(dead.iter().map(Guest::to_string));
        (self.guests, self.over_guests) = (living, dead);
        // how often each number that only a reference can have put there is dead; asked once
        let mut dead = counted(self.reference_readers().into_iter());
        dead.retain(|&number, _| process::is_number_dead(number));
        self.readers.retain(
            |reader| match dead.get_mut(reader).filter(|left| **left > 0) {
                Some(left) => {
                    *left -= 1;
                    dropped.push(format!("pid {reader}"));
                    false
                }
                None => true,
            },
        );
        Ok(dropped)
    }

    /// How many holders are not proven dead. A load that came to nothing makes none.
    pub fn living_holders(&self, control: Option<&Dir>) -> usize {
        let lives = |holder: &&Holder| {
            let is_dead = match control {
                Some(control) => matches!(holder.life(control), Ok(Life::Dead)),
                None => false,
            };
            !holder.provisional && !is_dead
        };
        let ours = self.sc.holders.iter().filter(lives).count();
        let theirs = self.reference_readers().into_iter();
        let guests = control.map_or(0, |control| guest::judge(control).0.len());
        ours + guests
            + theirs
                .filter(|number| !process::is_number_dead(*number))
                .count()
    }

    /// Does what stands under `sc` tell what is loaded? Else a reference has loaded it. (It counts
    /// without the journal too, which a cleaner may have taken.)
    pub fn is_known(&self) -> bool {
        self.sc.state == State::Ok && self.sc.signature.is_some()
    }

    /// The pid of a loader that is at work though the lock is ours: a reference, or an sc whose
    /// lock file was taken away. Whoever has locked `lock` knows that no other has.
    pub fn living_writer(&self, lock: Option<(u64, u64)>) -> Option<i64> {
        let pid = self.writer?;
        if pid == i64::from(std::process::id()) {
            return None;
        }
        let dead = match &self.sc.loader {
            Some(loader) if i64::from(loader.process.pid) == pid => {
                lock == Some((loader.lock_dev, loader.lock_ino))
                    || loader.process.life() == Life::Dead
            }
            _ => process::is_number_dead(pid),
        };
        (!dead).then_some(pid)
    }

    /// The holders as a message names them.
    pub fn holders(&self) -> String {
        let mut names: Vec<String> = self.sc.holders.iter().map(Holder::to_string).collect();
        names.extend(
            self.reference_readers()
                .iter()
                .map(|pid| format!("pid {pid}")),
        );
        names.extend(self.guests.iter().map(Guest::to_string));
        match names.len() {
            0 => "nobody".into(),
            1..=4 => names.join(", "),
            n => format!("{} and {} others", names[..3].join(", "), n - 3),
        }
    }

    /// The names of what was published at the top; what can be no name there was not.
    pub fn entries(&self) -> impl Iterator<Item = PathBuf> {
        let is_name = |path: &PathBuf| {
            path.file_name() == Some(path.as_os_str()) && path.as_os_str().len() <= 255
        };
        let paths = self.sc.entries.iter().flatten();
        paths.map(|entry| layout::decode(entry)).filter(is_name)
    }
}

/// So many holders are looked at each time.
const ENOUGH: usize = 64;

/// How often each number occurs.
fn counted(numbers: impl Iterator<Item = i64>) -> BTreeMap<i64, u32> {
    let mut counts = BTreeMap::new();
    for number in numbers {
        *counts.entry(number).or_insert(0) += 1;
    }
    counts
}

/// The JSON object that a repofile is.
fn object(bytes: &[u8]) -> Result<Map<String, Value>, Unreadable> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(whole)) => Ok(whole),
        // what the reference takes an empty list for
        Ok(Value::Array(list)) if list.is_empty() => Ok(Map::new()),
        Ok(_) => Err(Unreadable::Foreign("is JSON, but no repofile".into())),
        Err(error) if error.is_eof() => Err(Unreadable::Cut),
        Err(_) => Err(Unreadable::Foreign("is no repofile: it is not JSON".into())),
    }
}

/// A repofile as it is written: the keys in their order, the two long ones straight from where
/// they are.
struct Written<'a> {
    whole: &'a Map<String, Value>,
    readers: &'a [i64],
    sc: &'a Sc,
}

impl Serialize for Written<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.whole.len()))?;
        for (key, value) in self.whole {
            match key.as_str() {
                "readers" => map.serialize_entry(key, &self.readers)?,
                "sc" => map.serialize_entry(key, self.sc)?,
                _ => map.serialize_entry(key, value)?,
            }
        }
        map.end()
    }
}

pub(super) const MOVE_AWAY: &str = "move it away, or choose another `--name` or `--file`";

enum Unreadable {
    /// Killed while writing in place.
    Cut,
    Foreign(String),
    Newer(u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::holder::Hold;

    fn parse(text: &str) -> Repofile {
        Repofile::parse(text.as_bytes()).unwrap_or_else(|_| panic!("refused: {text}"))
    }

    #[test]
    fn the_reference_reads_what_we_write_and_we_read_what_it_writes() {
        let theirs =
            parse(r#"{"state": "OK", "readers": [123, 7], "writer": null, "x": {"y": 1}}"#);
        assert_eq!(theirs.state, State::Ok);
        assert_eq!(theirs.readers, [123, 7]);
        assert_eq!(theirs.reference_readers(), [123, 7]);
        let ours: Value = serde_json::from_slice(&theirs.to_bytes()).unwrap();
        assert_eq!(ours["state"], "OK");
        assert_eq!(ours["readers"], serde_json::json!([123, 7]));
        assert_eq!(ours["writer"], Value::Null);
        assert_eq!(ours["x"]["y"], 1, "unknown keys survive");
    }

    #[test]
    fn missing_keys_are_the_reference_s_defaults() {
        for text in [
            "{}",
            "[]",
            r#"{"readers": null, "writer": 0, "state": null}"#,
        ] {
            let file = parse(text);
            assert_eq!(
                (file.state, file.readers, file.writer),
                (State::Unknown, vec![], None)
            );
        }
    }

    #[test]
    fn a_cut_file_says_nothing_and_other_content_is_foreign() {
        let whole = r#"{"state": "OK", "readers": [123], "writer": null}"#;
        for cut in 0..whole.len() {
            let parsed = Repofile::parse(&whole.as_bytes()[..cut]);
            assert!(matches!(parsed, Err(Unreadable::Cut)), "cut at {cut}");
        }
        for text in [
            "hello",
            "1",
            "[1]",
            "\"x\"",
            "{\"state\": \"FINE\"}",
            "{\"readers\": 3}",
            "{\"writer\": \"me\"}",
            "\u{0}",
            "{} {}",
        ] {
            assert!(
                matches!(
                    Repofile::parse(text.as_bytes()),
                    Err(Unreadable::Foreign(_))
                ),
                "{text}"
            );
        }
        let nested = "[".repeat(100_000);
        assert!(Repofile::parse(nested.as_bytes()).is_err());
        let newer = r#"{"sc": {"format": 2}}"#;
        assert!(matches!(
            Repofile::parse(newer.as_bytes()),
            Err(Unreadable::Newer(2))
        ));
    }

    #[test]
    fn cut_anywhere_it_is_cut_and_never_another_s() {
        let mut file = Repofile {
            state: State::Ok,
            ..Default::default()
        };
        file.add(Holder::process(std::process::id() as i32, Some("é".into())));
        file.sc.definition = Some("file:/a \"quoted\" tar".into());
        let whole = file.to_bytes();
        for cut in 0..whole.len() - 1 {
            let parsed = Repofile::parse(&whole[..cut]);
            assert!(matches!(parsed, Err(Unreadable::Cut)), "cut at {cut}");
        }
    }

    #[test]
    fn sc_counts_only_with_its_own_state_and_generation() {
        let mut file = Repofile {
            state: State::Ok,
            ..Default::default()
        };
        file.sc.generation = Some("g".into());
        let written = String::from_utf8(file.to_bytes()).unwrap();
        assert!(parse(&written).is_of(Some("g")));
        assert!(!parse(&written).is_of(Some("h")));
        assert!(!parse(&written).is_of(None));
        let reloaded = written.replacen("\"OK\"", "\"BROKEN\"", 1);
        assert!(!parse(&reloaded).is_of(Some("g")));
    }

    #[test]
    fn of_many_holders_some_are_looked_at_each_time_until_the_dead_are_gone() {
        let temporary = tempfile::tempdir().unwrap();
        let control = Dir::open(temporary.path()).unwrap();
        let living = Holder::process(std::process::id() as i32, None);
        let mut dead = living.clone();
        if let Hold::Process(process) = &mut dead.hold {
            process.start_ticks = process.start_ticks.map(|ticks| ticks - 100);
        }
        let mut file = Repofile::default();
        for n in 0..1000 {
            let mut holder = if n % 2 == 0 { &living } else { &dead }.clone();
            holder.id = Some(n.to_string());
            file.add(holder);
        }
        for _ in 0..10_000 {
            let dropped = file.reap(&control).unwrap();
            assert!(dropped.len() <= ENOUGH, "{dropped:?}");
            if file.readers.len() == 500 {
                break;
            }
        }
        assert_eq!((file.readers.len(), file.sc.holders.len()), (500, 500));
        assert!(file.reap(&control).unwrap().is_empty());

        let mut file = Repofile::default();
        for n in 0..1000 {
            let id = Some(n.to_string());
            file.add(Holder { id, ..dead.clone() });
        }
        file.add(living);
        file.reap(&control).unwrap();
        assert_eq!(file.readers.len(), 1, "the one who lives is found");
    }

    #[test]
    fn a_holder_that_a_reference_took_out_is_one_no_more() {
        let mut file = Repofile::default();
        let holder = Holder::process(std::process::id() as i32, None);
        file.add(holder.clone());
        file.add(Holder {
            id: Some("2".into()),
            ..holder
        });
        let mut json: Value = serde_json::from_slice(&file.to_bytes()).unwrap();
        json["readers"].as_array_mut().unwrap().remove(0);
        assert_eq!(parse(&json.to_string()).sc.holders.len(), 1);
    }
}
