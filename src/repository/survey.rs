//! What is there: the repositories below a base directory, and how each of them stands.
//!
//! A repository is found by its control directory, or, where the reference made it, by a repofile
//! that is one. Nested names are looked for as deep as [`DEEPEST`] says; a repository is looked
//! into for the control directories of names within it, but no further: it may be large. What
//! belongs to other users is passed over, unless we are root, or they share it with us and we have
//! said that we want it (`--share`): who said nothing is not to be kept busy by what others made.
//!
//! [`look`] takes no lock and changes nothing: what it sees may be old by the time it is read.
//! Whoever acts on it looks again under the lock.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::journal::Journal;
use super::place::Spec;
use super::repofile::{Repofile, State};
use super::{Repository, guest, layout, link, space};
use crate::durable::{self, Dir};
use crate::error::Result;
use crate::process;
use crate::share::{Kind, Share};

/// Names of more components than this are not found.
pub const DEEPEST: usize = 4;

/// The repositories below `base`, sorted by name; `spec` says what the repofile is called where no
/// journal tells.
pub fn repositories(base: &Path, spec: &Spec) -> Vec<Repository> {
    let mut found = Vec::new();
    if let Ok(dir) = Dir::open(base) {
        walk(
            &dir,
            Path::new(""),
            DEEPEST,
            &spec.file,
            spec.share,
            &mut |name, file| {
                let spec = Spec {
                    directories: Vec::new(),
                    name: name.map(Path::to_owned),
                    file: file.to_owned(),
                    allow_network_fs: spec.allow_network_fs,
                    share: None,
                    stats_dir: spec.stats_dir.clone(),
                };
                found.push(Repository::new(base, &spec));
            },
        );
    }
    found.sort_by_key(Repository::location);
    found
}

/// Calls `visit` with every control directory below `base`.
pub fn each_control(base: &Path, visit: &mut dyn FnMut(&Dir)) {
    let any = Spec {
        directories: Vec::new(),
        name: None,
        file: PathBuf::new(),
        allow_network_fs: false,
        share: None,
        stats_dir: None,
    };
    for repository in repositories(base, &any) {
        let control = repository
            .parent(false)
            .and_then(|parent| parent.map_or(Ok(None), |parent| repository.control_in(&parent)));
        if let Ok(Some(control)) = control {
            visit(&control);
        }
    }
}

fn walk(
    dir: &Dir,
    prefix: &Path,
    depth: usize,
    file: &Path,
    said: Option<Kind>,
    found: &mut dyn FnMut(Option<&Path>, &Path),
) {
    let (us, Ok(names)) = (process::user(), dir.names()) else {
        return;
    };
    let is_mine = |owner: u32| us == 0 || owner == us;
    let mut controlled: BTreeSet<OsString> = BTreeSet::new();
    let mut passed_over: BTreeSet<OsString> = BTreeSet::new();
    let mut dirs: Vec<OsString> = Vec::new();
    for name in names {
        let Ok(Some(stat)) = dir.lstat(&name) else {
            continue;
        };
        if !durable::is_dir(&stat) {
            continue;
        }
        let is_base = prefix.as_os_str().is_empty();
        let last = match name.as_bytes().strip_prefix(layout::CONTROL.as_bytes()) {
            None => {
                dirs.push(name);
                continue;
            }
            Some(b"") if is_base => None,
            Some([b'.', last @ ..]) if !last.is_empty() => Some(OsStr::from_bytes(last)),
            Some(_) => continue,
        };
        if !is_mine(stat.st_uid) {
            let above = dir.stat();
            match Share::of(&stat) {
                Some(share) if !above.is_ok_and(|dir| share.admits_us(&dir)) => continue,
                Some(share) if said >= Some(share.kind()) => {}
                // the repofile in it may be ours all the same, written when we joined
                Some(_) => {
                    passed_over.extend(last.map(OsStr::to_owned));
                    continue;
                }
                None => continue,
            }
        }
        controlled.extend(last.map(OsStr::to_owned));
        let control = dir.open_dir(&name);
        let journal = control.and_then(|control| Journal::read_head(&control));
        let file = match &journal {
            Ok(Some(journal)) if is_a_name(&journal.repofile) => journal.repofile.clone(),
            // Whose journal it is might name any file of root's.
            Ok(Some(journal)) if journal.repofile.is_absolute() && stat.st_uid == us => {
                journal.repofile.clone()
            }
            Ok(Some(_)) => continue,
            _ => file.to_owned(),
        };
        let path = last.map(|last| prefix.join(last));
        found(path.as_deref(), &file);
    }
    if prefix.as_os_str().is_empty()
        && !has_control(dir, &layout::control_name(None))
        && is_of_the_reference(dir, file, &is_mine)
    {
        found(None, file);
    }
    for name in dirs {
        let (Some(below), path) = (dir.open_dir(&name).ok(), prefix.join(&name)) else {
            continue;
        };
        let is_controlled = controlled.contains(&name);
        let is_theirs = !is_controlled
            && !passed_over.contains(&name)
            && is_of_the_reference(&below, file, &is_mine);
        if is_theirs {
            found(Some(&path), file);
        }
        match depth {
            0 | 1 => {}
            _ if is_controlled || is_theirs => walk(&below, &path, 1, file, said, found),
            _ => walk(&below, &path, depth - 1, file, said, found),
        }
    }
}

fn is_a_name(file: &Path) -> bool {
    let mut components = file.components();
    let first = components.next();
    matches!(first, Some(Component::Normal(name)) if name == file.as_os_str())
        && components.next().is_none()
}

fn has_control(dir: &Dir, name: &OsStr) -> bool {
    matches!(dir.lstat(name), Ok(Some(stat)) if durable::is_dir(&stat))
}

fn is_of_the_reference(dir: &Dir, file: &Path, is_mine: &dyn Fn(u32) -> bool) -> bool {
    if file.as_os_str().is_empty() || file.is_absolute() {
        return false;
    }
    let Ok(Some(stat)) = dir.lstat(file.as_os_str()) else {
        return false;
    };
    is_mine(stat.st_uid) && matches!(Repofile::read(dir, file), Ok(repofile) if repofile.exists)
}

/// A repository as it stands.
#[derive(Debug)]
pub struct View {
    pub repository: Repository,
    /// None: the control directory is alone.
    pub repofile: Option<Repofile>,
    pub standing: Standing,
    /// Holders that are not proven dead.
    pub holders: usize,
    /// Seconds since 1970: when somebody last came or went, as far as anything tells.
    pub used_unix_s: u64,
    /// What it takes on the disk.
    pub size_bytes: u64,
    /// That part of it that is in the control directory.
    pub own_bytes: u64,
    pub owner: u32,
    pub share: Kind,
    /// It is shared with us as with all: what becomes of it is its owner's business.
    pub is_guests: bool,
}

/// What state a repository is in, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The data are there, and somebody may use them.
    Loaded,
    /// Somebody is at work.
    Loading,
    /// The data are there, and nobody holds them.
    Kept,
    /// The last load failed.
    Broken,
    /// What a process left that was killed.
    Orphan,
}

impl Standing {
    pub fn word(self) -> &'static str {
        match self {
            Standing::Loaded => "loaded",
            Standing::Loading => "loading",
            Standing::Kept => "kept",
            Standing::Broken => "broken",
            Standing::Orphan => "orphan",
        }
    }
}

impl View {
    /// Is it ours to judge: did an sc load it?
    pub fn is_known(&self) -> bool {
        match &self.repofile {
            Some(repofile) if repofile.state == State::Ok => repofile.is_known(),
            Some(repofile) => repofile.sc.generation.is_some(),
            None => true,
        }
    }

    pub fn has_dead_holders(&self) -> bool {
        let readers = self
            .repofile
            .as_ref()
            .map_or(0, |repofile| repofile.readers.len());
        readers > self.holders && self.standing != Standing::Loading && self.is_known()
    }

    /// Until when it is kept: as was said at the last `--unuse`, or as it would have been said by
    /// holders that died.
    pub fn kept_until_unix_s(&self) -> Option<u64> {
        let sc = &self.repofile.as_ref()?.sc;
        let by_death = || (sc.keep_s > 0).then(|| self.used_unix_s.saturating_add(sc.keep_s));
        sc.kept_until_unix_s.or_else(by_death)
    }
}

/// How `repository` stands; `None`: it is gone.
///
/// # Errors
/// [`crate::error::Error::Foreign`]: something in it is not ours.
pub fn look(repository: &Repository) -> Result<Option<View>> {
    let Some(parent) = repository.parent(false)? else {
        return Ok(None);
    };
    let control = repository.control_in(&parent)?;
    let share = control.as_ref().map_or(Share::User, Dir::share);
    let is_guests = match &control {
        Some(control) => guest::are_we(control)?,
        None => false,
    };
    let repofile = repository.peek()?;
    let root = repository.root_in(&parent)?;
    if control.is_none() && repofile.is_none() {
        return Ok(None);
    }
    let mut holders = 0;
    let mut standing = Standing::Orphan;
    let mut size = 0;
    if let Some(repofile) = &repofile {
        holders = repofile.living_holders(control.as_ref());
        standing = match repofile.state {
            _ if repofile.living_writer(None).is_some() => Standing::Loading,
            State::Ok if repofile.writer.is_some() => Standing::Orphan,
            State::Ok if holders == 0 && repofile.sc.kept_until_unix_s.is_some() => Standing::Kept,
            State::Ok => Standing::Loaded,
            State::Broken => Standing::Broken,
            State::Unknown | State::InProgress => Standing::Orphan,
        };
        size = repofile.sc.size_bytes.unwrap_or(0);
    }
    if let (None, Some(control)) = (&repofile, &control) {
        // A cleaner may have taken it from those who hold the data.
        let last = Repofile::read(control, Path::new(layout::LAST))?;
        if last.state == State::Ok {
            holders = last.living_holders(Some(control));
        }
    }
    let mut own = 0;
    if let Some(control) = &control {
        // staging and trash; what else is there is small
        own = space::disk_bytes(control, &mut usize::MAX.clone());
        size = u64::saturating_add(size, own);
    }
    let dirs = [
        control.as_ref(),
        root.as_ref().filter(|_| repofile.is_some()),
    ];
    let owner = dirs
        .into_iter()
        .flatten()
        .last()
        .map(Dir::stat)
        .transpose()?;
    let told = repofile
        .as_ref()
        .and_then(|repofile| repofile.sc.used_unix_s);
    let used = match told {
        Some(told) => told,
        None => last_change(control.as_ref(), root.as_ref(), repository)?,
    };
    Ok(Some(View {
        repository: repository.clone(),
        repofile,
        standing,
        holders,
        used_unix_s: used,
        size_bytes: size,
        own_bytes: own,
        owner: owner.map_or(0, |stat| stat.st_uid),
        share: share.kind(),
        is_guests,
    }))
}

/// When something was last written down of it. Whoever looks at it under the lock makes files in
/// both directories: their own times tell nothing, unless there is nothing else.
fn last_change(control: Option<&Dir>, root: Option<&Dir>, repository: &Repository) -> Result<u64> {
    let mut stats = Vec::new();
    if let Some(control) = control {
        stats.push(control.lstat(OsStr::new(layout::JOURNAL))?);
        stats.push(control.lstat(OsStr::new(layout::LAST))?);
    }
    if let (Some(root), Some(file)) = (root, repository.inner_repofile()) {
        stats.push(root.lstat(file)?);
    }
    let mut stats: Vec<_> = stats.into_iter().flatten().collect();
    if let (true, Some(control)) = (stats.is_empty(), control) {
        stats.push(control.stat()?);
    }
    let latest = stats.iter().map(|stat| stat.st_mtime.max(0) as u64).max();
    Ok(latest.unwrap_or(0))
}

/// Those of the directories that are there. One may be named twice, or by a link.
pub fn distinct(directories: &[PathBuf]) -> Vec<&Path> {
    let mut seen: Vec<(u64, u64)> = Vec::new();
    let mut distinct = Vec::new();
    for base in directories {
        let inode = Dir::open(base).and_then(|dir| dir.stat());
        let Ok(inode) = inode.map(|stat| (stat.st_dev, stat.st_ino)) else {
            continue;
        };
        if !seen.contains(&inode) {
            seen.push(inode);
            distinct.push(&**base);
        }
    }
    distinct
}

/// The repositories below all of these directories, as they stand, with what cannot be judged.
pub fn look_at_all(
    directories: &[PathBuf],
    spec: &Spec,
    problem: &mut dyn FnMut(crate::error::Error),
) -> Vec<View> {
    let mut views = Vec::new();
    for base in distinct(directories) {
        for repository in repositories(base, spec) {
            match look(&repository) {
                Ok(view) => views.extend(view),
                Err(error) => problem(error),
            }
        }
    }
    views
}

/// Is there a deletion that is not finished?
pub fn has_trash(repository: &Repository) -> bool {
    let control = repository
        .parent(false)
        .and_then(|parent| parent.map_or(Ok(None), |parent| repository.control_in(&parent)));
    let names = match control {
        Ok(Some(control)) => control.names().unwrap_or_default(),
        _ => return false,
    };
    let is_trash = |name: &OsString| name.as_bytes().starts_with(layout::TRASH.as_bytes());
    names.iter().any(is_trash)
}

/// Is there nothing in the repository's directory but its repofile and that file's locks?
pub fn is_without_data(repository: &Repository) -> Result<bool> {
    let Some(parent) = repository.parent(false)? else {
        return Ok(false);
    };
    let (Some(root), Some(file)) = (repository.root_in(&parent)?, repository.inner_repofile())
    else {
        return Ok(false);
    };
    let is_ours = |name: &OsString| name == file || link::is_lock_file(file, name);
    Ok(repository.is_named() && root.names()?.iter().all(is_ours))
}
