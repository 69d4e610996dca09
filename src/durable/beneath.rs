//! Where a path becomes a descriptor: whatever it says, and whoever swaps what on the way, it is
//! one of something below the directory it started from, and no symlink was followed.
//!
//! `openat2(2)` sees to that by itself. A kernel before 5.6 has none, and a container's seccomp
//! filter may not know it: then a walk holds a descriptor of every directory on the way, one
//! component at a time. Both answer alike; the rest of the program does not know which it was.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

pub const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Opens what `path` names below `dir`.
///
/// # Errors
/// EXDEV for `..` and for an absolute path; for a symlink ELOOP, or ENOTDIR where a directory
/// should be; else as `open(2)`.
pub fn beneath(dir: BorrowedFd, path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    // What one call has found out holds for all: the kernel stays what it is.
    static IS_MISSING: AtomicBool = AtomicBool::new(false);
    if IS_MISSING.load(Ordering::Relaxed) {
        return walk(dir, path, flags, mode);
    }
    match openat2(dir, path, flags, mode) {
        Err(Errno::ENOSYS) => {
            IS_MISSING.store(true, Ordering::Relaxed);
            walk(dir, path, flags, mode)
        }
        // A seccomp filter that knows no openat2 may say EPERM; but so may the file (immutable).
        Err(Errno::EPERM) => {
            walk(dir, path, flags, mode).inspect(|_| IS_MISSING.store(true, Ordering::Relaxed))
        }
        opened => opened,
    }
}

/// `openat2(2)`: Linux 5.6.
fn openat2(dir: BorrowedFd, path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    #[cfg(debug_assertions)]
    super::points::openat2()?;
    let how = OpenHow::new()
        .flags(flags)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    nix::fcntl::openat2(dir, path, how)
}

/// The same, component by component.
fn walk(dir: BorrowedFd, path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let mut components = path.components().peekable();
    let mut above: Option<OwnedFd> = None;
    loop {
        let (name, flags) = match (components.next(), components.peek()) {
            (Some(Component::Normal(name)), None) => (name, flags | OFlag::O_NOFOLLOW),
            (Some(Component::Normal(name)), Some(_)) => (name, DIRECTORY.union(OFlag::O_PATH)),
            (Some(Component::CurDir), None) => (OsStr::new("."), flags),
            (Some(Component::CurDir), Some(_)) => continue,
            (None, _) => return Err(Errno::ENOENT),
            _ => return Err(Errno::EXDEV),
        };
        let at = above.as_ref().map_or(dir, |above| above.as_fd());
        let opened = nix::fcntl::openat(at, name, flags, mode)?;
        if components.peek().is_none() {
            return Ok(opened);
        }
        above = Some(opened);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    type Open = fn(BorrowedFd, &Path, OFlag, Mode) -> nix::Result<OwnedFd>;

    /// `openat2` itself, where this kernel has it, and what stands in for it.
    fn both() -> Vec<(&'static str, Open)> {
        let here = File::open(".").unwrap();
        let probe = openat2(here.as_fd(), Path::new("."), DIRECTORY, Mode::empty());
        match probe {
            Ok(_) => vec![("openat2", openat2 as Open), ("walk", walk)],
            Err(errno) => {
                eprintln!("SKIPPED: openat2 itself, which says {errno} here");
                vec![("walk", walk)]
            }
        }
    }

    /// `root` with a tree of all sorts, beside a directory `outside`.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("root/a/b")).unwrap();
        fs::create_dir(at("outside")).unwrap();
        fs::write(at("outside/f"), "secret").unwrap();
        fs::write(at("root/a/b/f"), "inside").unwrap();
        symlink("../outside", at("root/out")).unwrap();
        symlink("a", at("root/in")).unwrap();
        symlink("b/f", at("root/a/link")).unwrap();
        symlink("/", at("root/slash")).unwrap();
        dir
    }

    #[test]
    fn what_lies_below_is_opened() {
        let dir = tree();
        let root = File::open(dir.path().join("root")).unwrap();
        for (how, open) in both() {
            for (path, flags) in [
                ("a", DIRECTORY),
                ("a/b", DIRECTORY),
                ("./a//b/.", DIRECTORY),
                (".", DIRECTORY),
                ("a/b/f", OFlag::O_RDONLY),
            ] {
                let fd = open(root.as_fd(), Path::new(path), flags, Mode::empty())
                    .unwrap_or_else(|errno| panic!("{how}: {path}: {errno}"));
                let meta = File::from(fd).metadata().unwrap();
                let expected = fs::metadata(dir.path().join("root").join(path)).unwrap();
                assert_eq!(meta.ino(), expected.ino(), "{how}: {path}");
            }
        }
    }

    #[test]
    fn nothing_else_is_opened_or_made() {
        let dir = tree();
        let root = File::open(dir.path().join("root")).unwrap();
        let create = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let open_or_create = OFlag::O_WRONLY | OFlag::O_CREAT;
        for (how, open) in both() {
            for (path, flags, expected) in [
                ("..", DIRECTORY, &[Errno::EXDEV][..]),
                ("a/../../outside", DIRECTORY, &[Errno::EXDEV]),
                ("/", DIRECTORY, &[Errno::EXDEV]),
                ("/etc/passwd", OFlag::O_RDONLY, &[Errno::EXDEV]),
                ("out", DIRECTORY, &[Errno::ELOOP, Errno::ENOTDIR]),
                ("in", DIRECTORY, &[Errno::ELOOP, Errno::ENOTDIR]),
                ("slash", DIRECTORY, &[Errno::ELOOP, Errno::ENOTDIR]),
                ("out/f", OFlag::O_RDONLY, &[Errno::ELOOP, Errno::ENOTDIR]),
                ("in/b/f", OFlag::O_RDONLY, &[Errno::ELOOP, Errno::ENOTDIR]),
                ("out/new", create, &[Errno::ELOOP, Errno::ENOTDIR]),
                ("slash/tmp", DIRECTORY, &[Errno::ELOOP, Errno::ENOTDIR]),
                ("a/link", OFlag::O_RDONLY, &[Errno::ELOOP]),
                ("a/link", open_or_create, &[Errno::ELOOP]),
                ("a/link", create, &[Errno::EEXIST]),
                ("../new", create, &[Errno::EXDEV]),
                ("a/b/f/x", OFlag::O_RDONLY, &[Errno::ENOTDIR]),
                ("a/none", OFlag::O_RDONLY, &[Errno::ENOENT]),
                ("", OFlag::O_RDONLY, &[Errno::ENOENT]),
            ] {
                let opened = open(root.as_fd(), Path::new(path), flags, mode(flags));
                let errno = opened.map(drop).expect_err(path);
                assert!(expected.contains(&errno), "{how}: {path}: {errno}");
            }
        }
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    fn mode(flags: OFlag) -> Mode {
        match flags.contains(OFlag::O_CREAT) {
            true => Mode::S_IRUSR | Mode::S_IWUSR,
            false => Mode::empty(),
        }
    }

    #[test]
    fn a_file_is_made_in_the_directory_that_was_meant() {
        let dir = tree();
        let root = File::open(dir.path().join("root")).unwrap();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        for (how, open) in both() {
            open(root.as_fd(), Path::new("a/b/new"), flags, mode(flags)).expect(how);
            fs::remove_file(dir.path().join("root/a/b/new")).expect(how);
        }
    }
}
