//! Members become files.
//!
//! The stage's directory is empty at first and ours alone, so everything met in it was made by
//! this archive. What is there is asked of the file system, not of a table: a name that exists is
//! EEXIST, a target that does not is ENOENT. Only directories are remembered, because their
//! modes and times come last.
//!
//! The directory last written to is kept open, and so are the ones above it (up to
//! [`OPEN_MAX`]); the next member mostly lies in the same one. Per file that leaves openat,
//! write, futimens, fstat, close; fchmod only if the umask (or a default ACL) took bits off.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;

use super::super::Site;
use super::members::{Kind, Member, Members, Time};
use crate::console::Progress;
use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::signal;
use crate::units::Bytes;

/// Bytes copied at a time.
const BUFFER: usize = 256 * 1024;

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
    root: Rc<Dir>,
    /// Where the last member went, and which directories on the way there are open: the length
    /// of each one's path.
    here: Vec<u8>,
    open: Vec<(usize, Rc<Dir>)>,
    /// Every directory that was made; `None`: a parent that is no member.
    directories: BTreeMap<Vec<u8>, Option<Settings>>,
    directory_bytes: usize,
    list: List,
    members: u64,
    room: u64,
    inodes: u64,
    /// Bytes of content so far.
    content: u64,
    /// Does a file created with this mode have it, too?
    kept_modes: HashMap<u32, bool>,
    buffer: Vec<u8>,
    progress: Progress,
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
        };
        let progress =
            site.console()
                .progress(&format!("unpacking `{}`", archive.display()), 0, None);
        Ok(Extraction {
            room: site.room()?,
            inodes: site.inodes()?,
            content: 0,
            site,
            archive,
            strip,
            root: Rc::new(root),
            here: Vec::new(),
            open: Vec::new(),
            directories: BTreeMap::new(),
            directory_bytes: 0,
            list,
            members: 0,
            kept_modes: HashMap::new(),
            buffer: vec![0; BUFFER],
            progress,
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
        self.progress.set_total(Some(members.reader().size()));
        self.progress.set(members.reader().consumed());
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
    fn enter(&mut self, path: &[u8], member: &Path) -> Result<Rc<Dir>> {
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
            dir = Rc::new(self.open_or_make(&dir, name, &path[..end], member)?);
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
        self.list_line(path)
    }

    fn file(
        &mut self,
        dir: &Dir,
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
        let (mut file, is_new) = self.anew(dir, name, member, |dir| dir.create(name, mode))?;
        let path_shown = || dir.path_of(name);
        match &member.sparse {
            None => self.copy(&mut file, member.stored, members, dir, name)?,
            Some(sparse) => {
                for &(offset, length) in &sparse.pieces {
                    file.seek(SeekFrom::Start(offset))
                        .io("cannot write", &path_shown())?;
                    self.copy(&mut file, length, members, dir, name)?;
                }
                durable::set_len(&file, sparse.size).io("cannot write", &path_shown())?;
            }
        }
        let is_kept = match self.kept_modes.get(&mode) {
            Some(is_kept) => *is_kept,
            None => {
                let stat = nix::sys::stat::fstat(&file).io("cannot stat", &path_shown())?;
                let is_kept = stat.st_mode & 0o7777 == mode;
                self.kept_modes.insert(mode, is_kept);
                is_kept
            }
        };
        if !is_kept {
            durable::set_mode(&file, mode).io("cannot change mode of", &path_shown())?;
        }
        durable::set_mtime(&file, member.mtime).io("cannot set time of", &path_shown())?;
        let stat = nix::sys::stat::fstat(&file).io("cannot stat", &path_shown())?;
        self.made(path, &stat, is_new)
    }

    fn copy(
        &mut self,
        file: &mut File,
        mut length: u64,
        members: &mut Members,
        dir: &Dir,
        name: &OsStr,
    ) -> Result<()> {
        while length > 0 {
            signal::check()?;
            let n = length.min(BUFFER as u64) as usize;
            let n = members.read(&mut self.buffer[..n])?;
            if n == 0 {
                // The member's own length is the sum of its pieces: they were checked.
                return Err(Error::Internal {
                    problem: format!("`{}` is shorter than its pieces", name.display()),
                });
            }
            durable::write_all(file, &self.buffer[..n]).io("cannot write", &dir.path_of(name))?;
            length -= n as u64;
            self.progress.set(members.reader().consumed());
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
        let ((), is_new) = self.anew(dir, name, member, |dir| dir.symlink(target, name))?;
        dir.set_link_mtime(name, member.mtime)?;
        self.made_at(dir, path, name, is_new)
    }

    fn hard_link(&mut self, dir: &Dir, path: &[u8], name: &OsStr, member: &Member) -> Result<()> {
        let target = self.place(&member.link, member.path())?;
        let shown = OsStr::from_bytes(&member.link).display().to_string();
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
        let ((), is_new) = self.anew(dir, name, member, |dir| {
            from.hard_link(target_name, dir, name)
        })?;
        self.made_at(dir, path, name, is_new)
    }

    /// The directory at `path`, if there is one: nothing is made, nothing followed.
    fn find(&self, path: &[u8]) -> Result<Option<Rc<Dir>>> {
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
            Ok(dir) => Ok(Some(Rc::new(dir))),
            Err(error) if not_there(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an entry, after unlinking an earlier member of that name; true if there was none.
    fn anew<T>(
        &self,
        dir: &Dir,
        name: &OsStr,
        member: &Member,
        make: impl Fn(&Dir) -> Result<T>,
    ) -> Result<(T, bool)> {
        match make(dir) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {}
            made => return Ok((made?, true)),
        }
        if dir.lstat(name)?.is_some_and(|stat| durable::is_dir(&stat)) {
            return Err(self.refuse(
                member.path(),
                "takes the place of a directory of the same archive",
            ));
        }
        dir.unlink(name)?;
        Ok((make(dir)?, false))
    }

    /// Takes an inode, and what `member` stores, off the room there is.
    fn charge(&mut self, bytes: u64, member: &Path) -> Result<()> {
        let blocks = bytes.div_ceil(ALLOCATED).saturating_mul(ALLOCATED);
        if blocks > self.room || self.inodes == 0 {
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
        self.made(path, &stat, is_new)
    }

    fn made(&mut self, path: &[u8], stat: &nix::sys::stat::FileStat, is_new: bool) -> Result<()> {
        self.site.made(Path::new(OsStr::from_bytes(path)), stat)?;
        // One line a name: the reference unlinks line by line, and fails on the second.
        if is_new {
            self.list_line(path)?;
        }
        Ok(())
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
                durable::set_mode(&dir, settings.mode).io("cannot change mode of", dir.path())?;
                durable::set_mtime(&dir, settings.mtime).io("cannot set time of", dir.path())?;
            }
            let stat = dir.stat()?;
            self.site.made(Path::new(OsStr::from_bytes(path)), &stat)?;
        }
        self.list.flush()?;
        let stat = nix::sys::stat::fstat(&self.list.file).io("cannot stat", &self.list.path)?;
        self.site.made(Path::new(&self.list.name), &stat)
    }
}

/// `<archive>.list`: the members, one a line, by which the reference deletes.
struct List {
    file: File,
    name: OsString,
    path: PathBuf,
    buffer: Vec<u8>,
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
            self.buffer.clear();
        }
        Ok(())
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

/// The parent's path and the last component.
fn split(path: &[u8]) -> (&[u8], &OsStr) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], OsStr::from_bytes(&path[slash + 1..])),
        None => (b"", OsStr::from_bytes(path)),
    }
}
