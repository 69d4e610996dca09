//! Writing the journal of a repository that has none: it was lost, or the reference loaded the
//! data and never wrote one.
//!
//! All that tells then what was brought is what the reference deletes by: an archive that the
//! caller knows by name, its `<archive>.list`, and the members that the list names. Where nobody
//! knows a name, a list beside its archive tells it, if all that it lists is there. What lies at
//! these paths is looked at with lstat and recorded as it is now, and from there on teardown goes
//! its usual way. A name in a list that is absolute, that climbs, or that means something to sc is
//! passed over; no symlink is followed, so what lies behind one is never recorded.
//!
//! The journal is written in `staging/` and becomes the journal by one rename: a process killed
//! before it has changed nothing, one killed after it left a journal like any other (I7). What
//! no list names stays, and teardown says so.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::durable::{self, Dir, PRIVATE_DIR};
use crate::error::{IoContext, Result};
use crate::process;
use crate::repository::journal::{Entry, Journal, Record};
use crate::repository::repofile::Repofile;
use crate::repository::{Held, layout, link};
use crate::teardown;

/// A longer line names nothing: a path has at most 4096 bytes.
const LONGEST_LINE: u64 = 4096 + 1;

/// The longest name of a file on Linux, in bytes.
const NAME_MAX: usize = 255;

const WORKSHOP: &str = "adopt";

/// Writes a journal if the repository of `repofile` has none of its own; `archives` are the names
/// of files that the command line says its loaders bring.
///
/// # Errors
/// [`crate::error::Error::Io`], [`crate::error::Error::LockLost`].
pub fn adopt(held: &Held, root: &Dir, repofile: &Repofile, archives: &[OsString]) -> Result<()> {
    let ours = &repofile.sc.generation;
    if let Some(generation) = ours
        && teardown::is_begun(held, generation)?
    {
        return Ok(()); // the journal is in the trash
    }
    let journal = Journal::read_head(&held.control)?.map(|journal| journal.generation);
    if journal.is_some() && journal == *ours {
        return Ok(());
    }
    let entries: Vec<PathBuf> = repofile.entries().collect();
    let mut names = archives.to_vec();
    names.extend(
        entries
            .iter()
            .filter(|entry| entries.contains(&list_of(entry.as_os_str()).into()))
            .map(|entry| entry.clone().into_os_string()),
    );
    names.sort();
    names.dedup();

    let staging = held
        .control
        .ensure_dir(OsStr::new(layout::STAGING), PRIVATE_DIR)?;
    let workshop = staging.ensure_dir(OsStr::new(WORKSHOP), PRIVATE_DIR)?;
    let generation = ours.clone().unwrap_or_else(process::random_name);
    let mut adoption = Adoption {
        held,
        root,
        journal: Journal::create(&workshop, &generation, held.repository.repofile())?,
        parent: None,
        found: 0,
    };
    adoption.journal.append(&Record::Stage {
        stage: 0,
        signature: String::new(),
        module: String::new(),
    })?;
    if names.is_empty() {
        names = adoption.listed_archives()?;
    }
    for name in names {
        adoption.archive(&name)?;
    }
    if adoption.found == 0 {
        if Journal::is_damaged(&held.control)? {
            let aside = OsStr::new(layout::JOURNAL_ASIDE);
            held.control
                .rename(OsStr::new(layout::JOURNAL), &held.control, aside)?;
        }
        workshop.clear()?;
        return staging.rmdir(OsStr::new(WORKSHOP)).map(drop);
    }
    let mut journal = adoption.journal;
    // The reference removes the directory of every named repository, if nothing is left in it.
    journal.append(&Record::Root { made: true })?;
    journal.flush()?;
    held.check()?;
    let name = OsStr::new(layout::JOURNAL);
    workshop.rename(name, &held.control, name)?;
    staging.rmdir(OsStr::new(WORKSHOP)).map(drop)
}

fn list_of(archive: &OsStr) -> OsString {
    let mut name = archive.to_owned();
    name.push(".list");
    name
}

struct Adoption<'a> {
    held: &'a Held<'a>,
    root: &'a Dir,
    journal: Journal,
    /// The directory of the last member: the next one mostly lies in it, too.
    parent: Option<(PathBuf, Dir)>,
    found: u64,
}

impl Adoption<'_> {
    /// The files at the top that have a list of members beside them, all of whose tops are there.
    fn listed_archives(&self) -> Result<Vec<OsString>> {
        let mut archives = Vec::new();
        for list in self.root.names()? {
            let Some(archive) = list.as_bytes().strip_suffix(b".list") else {
                continue;
            };
            let archive = OsStr::from_bytes(archive);
            let stat = match archive.is_empty() {
                true => None,
                false => self.root.lstat(archive)?,
            };
            if !stat.is_some_and(|stat| durable::is_file(&stat)) {
                continue;
            }
            let (mut members, mut missing) = (0, 0);
            let mut last_top = OsString::new();
            each_member(self.held, self.root, &list, |member| {
                members += 1;
                let top = member.as_deref().and_then(|member| member.iter().next());
                match top {
                    Some(top) if *top == *last_top => {}
                    Some(top) if self.root.lstat(top)?.is_some() => last_top = top.to_owned(),
                    _ => missing += 1,
                }
                Ok(())
            })?;
            if members > 0 && missing == 0 {
                archives.push(archive.to_owned());
            }
        }
        Ok(archives)
    }

    fn archive(&mut self, name: &OsStr) -> Result<()> {
        let list = list_of(name);
        self.record(Path::new(name))?;
        self.record(Path::new(&list))?;
        each_member(self.held, self.root, &list, |member| match member {
            Some(member) => self.record(&member),
            None => Ok(()),
        })
    }

    /// Records what lies at `path`, and the directories it lies in.
    fn record(&mut self, path: &Path) -> Result<()> {
        let Some(name) = path.file_name() else {
            return Ok(());
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_none_or(|(at, _)| at != parent) {
            let dir = match self.root.descend(parent) {
                Ok(dir) => dir,
                Err(error)
                    if matches!(
                        error.errno(),
                        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)
                    ) =>
                {
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let above: Vec<&Path> = parent.ancestors().collect();
            for above in above
                .into_iter()
                .rev()
                .filter(|p| !p.as_os_str().is_empty())
            {
                let stat = self.root.descend(above)?.stat()?;
                self.append(above, &stat)?;
            }
            self.parent = Some((parent.to_owned(), dir));
        }
        let stat = match &self.parent {
            Some((_, dir)) => dir.lstat(name)?,
            None => None,
        };
        match stat {
            Some(stat) => self.append(path, &stat),
            None => Ok(()),
        }
    }

    fn append(&mut self, path: &Path, stat: &nix::sys::stat::FileStat) -> Result<()> {
        self.found += 1;
        self.journal.append(&Record::Entry {
            stage: 0,
            entry: Entry::new(path.to_owned(), stat),
        })
    }
}

/// Calls `f` with each line of a list: the path below the repository, if it is one.
fn each_member(
    held: &Held,
    root: &Dir,
    list: &OsStr,
    mut f: impl FnMut(Option<PathBuf>) -> Result<()>,
) -> Result<()> {
    let file = match root.find_file(list, OFlag::O_RDONLY) {
        Err(error) if error.errno() == Some(Errno::ELOOP) => None,
        found => found?,
    };
    let path = root.path_of(list);
    let Some(file) = file else { return Ok(()) };
    if !durable::is_file(&nix::sys::stat::fstat(&file).io("cannot stat", &path)?) {
        return Ok(());
    }
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .io("cannot read", &path)?;
        if read == 0 {
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if read as u64 == LONGEST_LINE {
            continue;
        }
        let member = member(held, &line);
        if member.is_none() {
            held.console().detail(format_args!(
                "`{}`: `{}` is no name of a member",
                path.display(),
                String::from_utf8_lossy(&line)
            ));
        }
        f(member)?;
    }
}

/// A line of a list as a path below the repository.
fn member(held: &Held, line: &[u8]) -> Option<PathBuf> {
    let mut member = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(line)).components() {
        match component {
            Component::Normal(name) => {
                let bytes = name.as_bytes();
                if bytes.len() > NAME_MAX || bytes == b".sc" || bytes.starts_with(b".sc.") {
                    return None;
                }
                member.push(name);
            }
            Component::CurDir => {}
            _ => return None,
        }
    }
    let top = member.iter().next()?;
    let is_ours = held
        .repository
        .inner_repofile()
        .is_some_and(|repofile| top == repofile || link::is_lock_file(repofile, top));
    (!is_ours).then_some(member)
}
