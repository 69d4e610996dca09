//! Members become files.
//!
//! The stage's directory is empty at first and ours alone, so everything met in it was made by
//! this archive. What is there is asked of the file system, not of a table: a name that exists is
//! EEXIST, a target that does not is ENOENT. Only directories are remembered, because their
//! modes and times come last.
//!
//! The directory last written to is kept open, and so are the ones above it (up to
//! [`OPEN_MAX`]); the next member mostly lies in the same one. Per file that leaves openat,
//! write, futimens, fstat, close.
//!
//! # What several threads do, and what one does
//!
//! Most members are small files, each with a name of its own, and it does not matter which is
//! made first: they go to [`workers`](super::workers), a batch at a time. Everything else is done
//! here, at once: directories, links, large files, files with holes. For that to be right, the
//! paths that are on their way are known, and whatever has to do with one of them
//! (a second member of that name, a hard link to it, a member below it) waits until all are done.
//! What is not on its way is on the disk. Journal and list are written here too, in the order of
//! the archive.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::FileStat;

use super::super::Site;
use super::members::{Kind, Member, Members, Time};
use super::split;
use super::workers::{Item, Maker, Outcome, Small, Workers};
use crate::console::Progress;
use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::hash::Hash;
use crate::signal;
use crate::units::Bytes;

/// A file of at most so many bytes is made by a worker. One that is longer is written here, as
/// it comes: so the memory needed does not depend on the archive.
const SMALL: u64 = 256 * 1024;

/// PATH_MAX and NAME_MAX: no call takes more.
const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;

/// Directories kept open. One per component would be 2048 for the longest path, and a process
/// usually has 1024 descriptors.
const OPEN_MAX: usize = 32;

/// What may be remembered of directories, in bytes of their paths: a million of usual ones.
const DIRECTORIES_MAX: usize = 64 << 20;

/// More members than any file system has inodes for: where space and inodes have no limit
/// (tmpfs), this is the one that ends an archive of empty files.
const MEMBERS_MAX: u64 = 1 << 32;

/// Set-id and sticky bits, and others' right to write, are nobody's business in a cache.
pub const MODE_MASK: u32 = 0o775;

/// What a small file takes on most file systems.
const ALLOCATED: u64 = 4096;

/// Unpacks members into a stage's directory.
pub struct Extraction<'a> {
    site: &'a mut dyn Site,
    archive: OsString,
    strip: usize,
    root: Arc<Dir>,
    /// Where the last member went, and which directories on the way there are open: the length
    /// of each one's path.
    here: Vec<u8>,
    open: Vec<(usize, Arc<Dir>)>,
    /// Every directory that was made; `None`: a parent that is no member.
    directories: BTreeMap<Vec<u8>, Option<Settings>>,
    directory_bytes: usize,
    list: List,
    members: u64,
    room: u64,
    inodes: u64,
    /// Bytes of content so far.
    content: u64,
    maker: Maker,
    workers: Workers,
    has_failed: bool,
    /// Shown once the archive is all there: before that, its loader's progress is ours.
    progress: Option<Progress>,
}

/// What a directory gets in the end.
#[derive(Debug, Clone, Copy)]
struct Settings {
    mode: u32,
    mtime: Time,
}

impl<'a> Extraction<'a> {
    pub fn new(site: &'a mut dyn Site, archive: OsString, strip: usize) -> Result<Extraction<'a>> {
        let root = site.dir().try_clone()?;
        let mut list_name = archive.clone();
        list_name.push(".list");
        let list = List {
            file: root.create(&list_name, 0o666)?,
            path: PathBuf::from(&list_name),
            name: list_name,
            buffer: Vec::new(),
            hasher: blake3::Hasher::new(),
        };
        Ok(Extraction {
            room: site.room()?,
            inodes: site.inodes()?,
            content: 0,
            site,
            archive,
            strip,
            root: Arc::new(root),
            here: Vec::new(),
            open: Vec::new(),
            directories: BTreeMap::new(),
            directory_bytes: 0,
            list,
            members: 0,
            maker: Maker::default(),
            workers: Workers::new(),
            has_failed: false,
            progress: None,
        })
    }

    fn refuse(&self, member: &Path, problem: impl Into<String>) -> Error {
        Error::member(Path::new(&self.archive), member, problem)
    }

    /// Makes what `member` says; its content comes from `members`.
    ///
    /// # Errors
    /// [`Error::Archive`] naming the member where it has no business here; [`Error::NoRoom`];
    /// [`Error::Io`].
    pub fn unpack(&mut self, member: &Member, members: &mut Members) -> Result<()> {
        signal::check()?;
        self.show_progress(members);
        self.workers.begin_chunk(members.reader().chunks());
        while self.workers.are_full() {
            self.settle_batch()?;
        }
        self.members += 1;
        if self.members > MEMBERS_MAX {
            return Err(Error::archive(
                Path::new(&self.archive),
                "it has too many members",
            ));
        }
        if let Kind::Note(what) = member.kind {
            self.site.console().detail(format_args!(
                "skipped `{}`: {what}",
                member.path().display()
            ));
            return Ok(());
        }
        let path = self.place(&member.name, member.path())?;
        // The root itself, or all of it stripped off.
        if path.is_empty() {
            return Ok(());
        }
        if let Some(letter) = member.unknown {
            self.site.console().warn(format_args!(
                "`{}` is of the unknown type `{}`: unpacked as a file",
                member.path().display(),
                letter.escape_ascii()
            ));
        }
        self.wait_for(&path)?;
        let (parent, name) = split(&path);
        let dir = self.enter(parent, member.path())?;
        match member.kind {
            Kind::Directory => self.directory(&dir, &path, name, member),
            Kind::File => self.file(&dir, &path, name, member, members),
            Kind::Symlink => self.symlink(&dir, &path, name, member),
            Kind::HardLink => self.hard_link(&dir, &path, name, member),
            Kind::Note(_) => Ok(()),
        }
    }

    fn show_progress(&mut self, members: &Members) {
        let content = members.reader();
        let Some(size) = content.size() else { return };
        let done = content.consumed();
        let progress = self.progress.get_or_insert_with(|| {
            let doing = format!("unpacking `{}`", self.archive.display());
            // what was unpacked while the file came is no speed
            self.site.console().progress(&doing, done, Some(size))
        });
        progress.set(done);
    }

    /// Returns when nothing of this path is on its way.
    fn wait_for(&mut self, path: &[u8]) -> Result<()> {
        match self.workers.have(path) {
            true => self.settle_all(),
            false => Ok(()),
        }
    }

    /// Returns when nothing is on its way.
    ///
    /// # Errors
    /// What was wrong with the first member in the archive that could not be made; once.
    pub fn settle_all(&mut self) -> Result<()> {
        while !self.has_failed && !self.workers.are_idle() {
            self.settle_batch()?;
        }
        Ok(())
    }

    /// Tells of what the oldest batch has become.
    fn settle_batch(&mut self) -> Result<()> {
        let oldest = self.workers.take();
        let told = oldest.and_then(|oldest| oldest.map_or(Ok(()), |oldest| self.settle(oldest)));
        // what comes behind an error counts no more
        self.has_failed |= told.is_err();
        told
    }

    fn settle(&mut self, outcome: Outcome) -> Result<()> {
        for item in outcome {
            match item? {
                Item::Made(path, stat, hash) => self.tell(&path, Some(&stat), Some(hash), true)?,
                Item::File(small) => self.replace(&small)?,
                Item::Done {
                    path,
                    stat,
                    hash,
                    is_listed,
                } => self.tell(&path, stat.as_ref(), hash, is_listed)?,
            }
        }
        Ok(())
    }

    /// Makes a file in place of an earlier member of that name.
    fn replace(&mut self, small: &Small) -> Result<()> {
        let path = Path::new(OsStr::from_bytes(&small.path));
        let name = split(&small.path).1;
        let make = |_: &Dir| match self.maker.make(small)? {
            Some(made) => Ok(made),
            None => Err(Errno::EEXIST).io("cannot create", &small.dir.path_of(name)),
        };
        let ((stat, hash), is_new) = anew(&small.dir, name, &self.archive, path, make)?;
        self.tell(&small.path, Some(&stat), Some(hash), is_new)
    }

    /// The path below the stage's directory that a name of the archive means: its components,
    /// the first ones stripped off, with one slash between them. Empty for the root.
    fn place(&self, name: &[u8], member: &Path) -> Result<Vec<u8>> {
        if name.contains(&0) {
            return Err(self.refuse(member, "has a NUL in its name"));
        }
        if name.len() > PATH_MAX {
            return Err(self.refuse(member, "has a name of more than 4096 bytes"));
        }
        if name.starts_with(b"/") {
            return Err(self.refuse(member, "has an absolute name"));
        }
        let mut path = Vec::with_capacity(name.len());
        let mut stripped = 0;
        for component in name.split(|&byte| byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(self.refuse(member, "has `..` in its name")),
                _ if component.len() > NAME_MAX => {
                    return Err(self.refuse(member, "has a component of more than 255 bytes"));
                }
                _ if stripped < self.strip => {
                    stripped += 1;
                    continue;
                }
                _ if component == b".sc" || component.starts_with(b".sc.") => {
                    return Err(self.refuse(member, "has a name that is reserved for sc"));
                }
                _ => {}
            }
            if path.is_empty() {
                let top = OsStr::from_bytes(component);
                if top == self.archive || top == self.list.name || self.site.is_reserved(top) {
                    return Err(self.refuse(
                        member,
                        format!("has the name `{}`, which is reserved here", top.display()),
                    ));
                }
            } else {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        Ok(path)
    }

    /// Opens the directory at `path`; what is missing on the way is made.
    fn enter(&mut self, path: &[u8], member: &Path) -> Result<Arc<Dir>> {
        while let Some(&(end, _)) = self.open.last() {
            let leads_there = path.starts_with(&self.here[..end])
                && path.get(end).is_none_or(|&byte| byte == b'/');
            if leads_there {
                break;
            }
            self.open.pop();
        }
        let (mut end, mut dir) = match self.open.last() {
            Some((end, dir)) => (*end, dir.clone()),
            None => (0, self.root.clone()),
        };
        self.here.truncate(end);
        while end < path.len() {
            let start = if end == 0 { 0 } else { end + 1 };
            let length = path[start..].iter().position(|&byte| byte == b'/');
            end = length.map_or(path.len(), |length| start + length);
            let name = OsStr::from_bytes(&path[start..end]);
            dir = Arc::new(self.open_or_make(&dir, name, &path[..end], member)?);
            self.here.clear();
            self.here.extend_from_slice(&path[..end]);
            self.open.push((end, dir.clone()));
            if self.open.len() > OPEN_MAX {
                // Every other one goes, the last one (of an odd number) stays: so wherever the
                // next member lies, some directory not far above is open.
                let mut is_kept = false;
                self.open.retain(|_| {
                    is_kept = !is_kept;
                    is_kept
                });
            }
        }
        Ok(dir)
    }

    fn open_or_make(&mut self, dir: &Dir, name: &OsStr, path: &[u8], member: &Path) -> Result<Dir> {
        self.wait_for(path)?;
        match open_own(dir, name) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => {}
            Err(error) if matches!(error.errno(), Some(Errno::ENOTDIR | Errno::ELOOP)) => {
                let what = match dir.lstat(name)? {
                    Some(stat) if durable::is_file(&stat) => "a file",
                    _ => "a symlink",
                };
                return Err(self.refuse(
                    member,
                    format!(
                        "lies below `{}`, which is {what} of the same archive",
                        OsStr::from_bytes(path).display()
                    ),
                ));
            }
            opened => return opened,
        }
        self.make(dir, name, path, None, member)?;
        open_own(dir, name)
    }

    fn make(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        path: &[u8],
        settings: Option<Settings>,
        member: &Path,
    ) -> Result<()> {
        self.charge(ALLOCATED, member)?;
        dir.make_dir(name, MODE_MASK)?;
        self.directory_bytes += path.len();
        if self.directory_bytes > DIRECTORIES_MAX {
            return Err(Error::archive(
                Path::new(&self.archive),
                "it has too many directories",
            ));
        }
        self.directories.insert(path.to_vec(), settings);
        Ok(())
    }

    fn directory(&mut self, dir: &Dir, path: &[u8], name: &OsStr, member: &Member) -> Result<()> {
        let settings = Settings {
            mode: member.mode & MODE_MASK,
            mtime: member.mtime,
        };
        match self.make(dir, name, path, Some(settings), member.path()) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                // All directories are in the table: what is not there is something else.
                match self.directories.get_mut(path) {
                    Some(known) => {
                        let is_listed = known.replace(settings).is_some();
                        if is_listed {
                            return Ok(());
                        }
                    }
                    None => {
                        return Err(self.refuse(
                            member.path(),
                            "is a directory in place of another member of the same name",
                        ));
                    }
                }
            }
            made => made?,
        }
        self.made(path, None, None, true)
    }

    fn file(
        &mut self,
        dir: &Arc<Dir>,
        path: &[u8],
        name: &OsStr,
        member: &Member,
        members: &mut Members,
    ) -> Result<()> {
        self.content = self.content.saturating_add(member.stored);
        self.site.check_limit(
            &format_args!(
                "`{}`, with its member `{}`,",
                self.archive.display(),
                member.path().display()
            ),
            self.content,
        )?;
        self.charge(member.stored, member.path())?;
        let mode = member.mode & MODE_MASK;
        if member.sparse.is_none() && member.stored <= SMALL {
            let mut content = Vec::new();
            let mut left = member.stored;
            while left > 0 {
                let slice = members.take(left)?;
                left -= slice.len() as u64;
                content.push(slice);
            }
            self.workers.put(Item::File(Small {
                dir: dir.clone(),
                path: path.to_owned(),
                mode,
                mtime: member.mtime,
                content,
            }));
            return Ok(());
        }
        let create = |dir: &Dir| dir.create(name, mode);
        let (mut file, is_new) = anew(dir, name, &self.archive, member.path(), create)?;
        let path_shown = || dir.path_of(name);
        let mut digest = Digest::new(member);
        match &member.sparse {
            None => self.copy(&mut file, member.stored, members, &mut digest, dir, name)?,
            Some(sparse) => {
                for &(offset, length) in &sparse.pieces {
                    file.seek(SeekFrom::Start(offset))
                        .io("cannot write", &path_shown())?;
                    digest.skip_to(offset)?;
                    self.copy(&mut file, length, members, &mut digest, dir, name)?;
                }
                digest.skip_to(sparse.size)?;
                durable::set_len(&file, sparse.size).io("cannot write", &path_shown())?;
            }
        }
        let stat = self.maker.settle(&file, mode, member.mtime, dir, name)?;
        self.made(path, Some(stat), digest.finish(), is_new)
    }

    fn copy(
        &mut self,
        file: &mut File,
        mut length: u64,
        members: &mut Members,
        digest: &mut Digest,
        dir: &Dir,
        name: &OsStr,
    ) -> Result<()> {
        while length > 0 {
            signal::check()?;
            let slice = members.take(length)?;
            durable::write_all(file, &slice).io("cannot write", &dir.path_of(name))?;
            digest.update(&slice);
            length -= slice.len() as u64;
            self.show_progress(members);
        }
        Ok(())
    }

    fn symlink(&mut self, dir: &Dir, path: &[u8], name: &OsStr, member: &Member) -> Result<()> {
        let target = OsStr::from_bytes(&member.link);
        if target.is_empty() || member.link.contains(&0) || target.len() >= PATH_MAX {
            return Err(self.refuse(member.path(), "is a symlink to an impossible name"));
        }
        self.charge(ALLOCATED, member.path())?;
        // Where it points to does not matter: nothing is ever written through it.
        let make = |dir: &Dir| dir.symlink(target, name);
        let ((), is_new) = anew(dir, name, &self.archive, member.path(), make)?;
        dir.set_link_mtime(name, member.mtime)?;
        self.made_at(dir, path, name, is_new)
    }

    fn hard_link(&mut self, dir: &Dir, path: &[u8], name: &OsStr, member: &Member) -> Result<()> {
        let target = self.place(&member.link, member.path())?;
        let shown = OsStr::from_bytes(&member.link).display().to_string();
        self.wait_for(&target)?;
        let (parent, target_name) = split(&target);
        let found = match self.find(parent)? {
            Some(from) if !target.is_empty() => from.lstat(target_name)?.map(|stat| (from, stat)),
            _ => None,
        };
        let Some((from, stat)) = found else {
            let problem = format!("is a hard link to `{shown}`, which is not there");
            return Err(self.refuse(member.path(), problem));
        };
        if durable::is_dir(&stat) {
            let problem = format!("is a hard link to `{shown}`, a directory");
            return Err(self.refuse(member.path(), problem));
        }
        // A link to itself, or one that is there already: it must not be unlinked first.
        if let Some(there) = dir.lstat(name)?
            && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        let make = |dir: &Dir| from.hard_link(target_name, dir, name);
        let ((), is_new) = anew(dir, name, &self.archive, member.path(), make)?;
        self.made_at(dir, path, name, is_new)
    }

    /// The directory at `path`, if there is one: nothing is made, nothing followed.
    fn find(&self, path: &[u8]) -> Result<Option<Arc<Dir>>> {
        if let Some((end, dir)) = self.open.last()
            && *end == path.len()
            && self.here == path
        {
            return Ok(Some(dir.clone()));
        }
        let not_there = |error: &Error| {
            matches!(
                error.errno(),
                Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)
            )
        };
        match self.root.descend(Path::new(OsStr::from_bytes(path))) {
            Ok(dir) => Ok(Some(Arc::new(dir))),
            Err(error) if not_there(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes an inode, and what `member` stores, off the room there is.
    fn charge(&mut self, bytes: u64, member: &Path) -> Result<()> {
        let blocks = bytes.div_ceil(ALLOCATED).saturating_mul(ALLOCATED);
        if blocks > self.room || self.inodes == 0 {
            self.settle_all()?;
            (self.room, self.inodes) = (self.site.room()?, self.site.inodes()?);
            let problem = |left: &str| Error::NoRoom {
                problem: format!(
                    "member `{}` of `{}` has {}, and {left} are left",
                    member.display(),
                    self.archive.display(),
                    Bytes(bytes),
                ),
            };
            if bytes > self.room {
                return Err(problem(&Bytes(self.room).to_string()));
            }
            if self.inodes == 0 {
                return Err(problem("no inodes"));
            }
        }
        self.room = self.room.saturating_sub(blocks);
        self.inodes -= 1;
        Ok(())
    }

    fn made_at(&mut self, dir: &Dir, path: &[u8], name: &OsStr, is_new: bool) -> Result<()> {
        let stat = dir.lstat(name)?.ok_or_else(|| Error::Io {
            doing: "cannot stat",
            path: dir.path_of(name),
            source: Errno::ENOENT.into(),
        })?;
        // a second name of a file: what is in it stands with the first one, by its inode
        self.made(path, Some(stat), None, is_new)
    }

    /// Something is made that is to be told of behind all that is on its way.
    fn made(
        &mut self,
        path: &[u8],
        stat: Option<FileStat>,
        hash: Option<Hash>,
        is_listed: bool,
    ) -> Result<()> {
        if self.workers.are_idle() {
            return self.tell(path, stat.as_ref(), hash, is_listed);
        }
        self.workers.put(Item::Done {
            path: path.to_owned(),
            stat,
            hash,
            is_listed,
        });
        Ok(())
    }

    /// One line a name: the reference unlinks line by line, and fails on the second.
    fn tell(
        &mut self,
        path: &[u8],
        stat: Option<&FileStat>,
        hash: Option<Hash>,
        is_listed: bool,
    ) -> Result<()> {
        if let Some(stat) = stat {
            self.site
                .made(Path::new(OsStr::from_bytes(path)), stat, hash)?;
        }
        match is_listed {
            true => self.list_line(path),
            false => Ok(()),
        }
    }

    fn list_line(&mut self, path: &[u8]) -> Result<()> {
        if path.contains(&b'\n') {
            self.site.console().warn(format_args!(
                "`{}` has a newline in its name: left out of `{}`",
                OsStr::from_bytes(path).display(),
                self.list.name.display()
            ));
            return Ok(());
        }
        self.room = self.room.saturating_sub(path.len() as u64 + 1);
        self.list.line(path)
    }

    /// Settles the directories and finishes the list.
    pub fn finish(mut self) -> Result<()> {
        self.settle_all()?;
        let directories = std::mem::take(&mut self.directories);
        // Backwards, `a/b` comes before `a`: a directory is settled after all that is in it.
        for (path, settings) in directories.iter().rev() {
            signal::check()?;
            if settings.is_none() {
                self.list_line(path)?;
            }
            let (parent, name) = split(path);
            let parent = self.enter(parent, Path::new(OsStr::from_bytes(path)))?;
            let dir = open_own(&parent, name)?;
            if let Some(settings) = settings {
                dir.chmod(settings.mode)?;
                durable::set_mtime(&dir, settings.mtime).io("cannot set time of", dir.path())?;
            }
            let stat = dir.stat()?;
            self.site
                .made(Path::new(OsStr::from_bytes(path)), &stat, None)?;
        }
        self.list.flush()?;
        let stat = nix::sys::stat::fstat(&self.list.file).io("cannot stat", &self.list.path)?;
        let hash = self.list.hasher.into();
        self.site
            .made(Path::new(&self.list.name), &stat, Some(hash))
    }
}

/// `<archive>.list`: the members, one a line, by which the reference deletes.
struct List {
    file: File,
    name: OsString,
    path: PathBuf,
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
}

impl List {
    fn line(&mut self, path: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(path);
        self.buffer.push(b'\n');
        if self.buffer.len() >= 64 * 1024 {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            durable::write_all(&mut self.file, &self.buffer).io("cannot write", &self.path)?;
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
        Ok(())
    }
}

/// Digests a file that is written here, holes and all.
struct Digest {
    hasher: Option<blake3::Hasher>,
    at: u64,
}

/// Zeros that a hole is worth: whoever asks for more has a file that nobody will want to read.
const HOLE_MAX: u64 = 1 << 30;

impl Digest {
    fn new(member: &Member) -> Digest {
        let size = member.sparse.as_ref().map_or(0, |sparse| sparse.size);
        let is_worth_it = size.saturating_sub(member.stored) <= HOLE_MAX;
        Digest {
            hasher: is_worth_it.then(blake3::Hasher::new),
            at: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.at += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
    }

    /// What is passed over is a hole.
    fn skip_to(&mut self, offset: u64) -> Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        if offset < self.at {
            self.hasher = None; // pieces out of order: not what a digest reads
        }
        while self.hasher.is_some() && self.at < offset {
            signal::check()?;
            let length = (offset - self.at).min(ZEROS.len() as u64);
            self.update(&ZEROS[..length as usize]);
        }
        Ok(())
    }

    fn finish(self) -> Option<Hash> {
        self.hasher.map(Hash::from)
    }
}

/// Opens a directory made by this archive. It may lack our own rights, where the umask takes them
/// off (what the archive says is set at the end): they are given back.
fn open_own(dir: &Dir, name: &OsStr) -> Result<Dir> {
    match dir.open_dir(name) {
        Err(error) if error.errno() == Some(Errno::EACCES) => {
            if let Some(stat) = dir.lstat(name)? {
                dir.searchable(name, &stat)?;
            }
            dir.open_dir(name)
        }
        opened => opened,
    }
}

/// Makes an entry, after unlinking an earlier member of that name; true if there was none.
fn anew<T>(
    dir: &Dir,
    name: &OsStr,
    archive: &OsStr,
    member: &Path,
    mut make: impl FnMut(&Dir) -> Result<T>,
) -> Result<(T, bool)> {
    match make(dir) {
        Err(error) if error.errno() == Some(Errno::EEXIST) => {}
        made => return Ok((made?, true)),
    }
    if dir.lstat(name)?.is_some_and(|stat| durable::is_dir(&stat)) {
        return Err(Error::member(
            Path::new(archive),
            member,
            "takes the place of a directory of the same archive",
        ));
    }
    dir.unlink(name)?;
    Ok((make(dir)?, false))
}
