//! `file:PATH`: copies a file of this node.
//!
//! The source is the user's: its links are followed, and it may lie on a slow or broken network
//! file system. The copy shares its blocks with it where the file system can (reflink), else the
//! kernel copies, a chunk at a time so that a signal is seen in between. A copy of a killed
//! process is never continued: reading locally is cheap, and nothing would say whether the source
//! is still the same.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Site;
use crate::durable;
use crate::error::{Error, IoContext, Result};
use crate::signal;
use crate::units::Bytes;

/// What is copied between two looks at the signals; those who read the copy wait for as much.
const CHUNK: u64 = 2 << 20;

/// A file of this node, by its absolute path.
#[derive(Debug, Clone)]
pub struct Copy {
    path: PathBuf,
}

impl Copy {
    /// # Errors
    /// [`Error::Usage`]: the path names no file.
    pub fn parse(path: &OsStr) -> Result<Copy> {
        Copy::new(PathBuf::from(path))
    }

    /// The file at `path`, which is relative to the working directory of now.
    ///
    /// # Errors
    /// As [`Copy::parse`].
    pub fn new(path: PathBuf) -> Result<Copy> {
        let bytes = path.as_os_str().as_bytes();
        let last = bytes
            .rsplit(|&byte| byte == b'/')
            .next()
            .unwrap_or_default();
        if !super::is_usable(last) {
            return Err(Error::Usage {
                problem: format!("`{}` names no file that can be copied", path.display()),
                hint: Some("write `file:/PATH/TO/FILE`".into()),
            });
        }
        let path = std::path::absolute(&path).io("cannot find", &path)?;
        Ok(Copy { path })
    }

    pub fn file_name(&self) -> &OsStr {
        // parse has seen to it that there is one
        self.path.file_name().unwrap_or_default()
    }

    pub fn source(&self) -> &OsStr {
        self.path.as_os_str()
    }

    /// # Errors
    /// [`Error::Missing`], [`Error::NoRoom`], [`Error::Interrupted`], [`Error::Io`].
    pub fn run(&self, site: &mut dyn Site) -> Result<()> {
        self.run_as(site, self.file_name())
    }

    /// Copies under another name.
    ///
    /// # Errors
    /// As [`Copy::run`].
    pub fn run_as(&self, site: &mut dyn Site, name: &OsStr) -> Result<()> {
        let source = self.open()?;
        let length = source.metadata().io("cannot stat", &self.path)?.len();
        site.check_limit(&format_args!("`{}`", self.path.display()), length)?;
        let dir = site.dir().try_clone()?;
        site.discarded();
        if dir.lstat(name)?.is_some() {
            dir.unlink(name)?;
        }
        if site.part().is_some() {
            site.set_part(None)?;
        }
        let mut file = dir.create(name, 0o666)?;
        let label = name.to_string_lossy().into_owned();
        let mut progress = site
            .console()
            .progress(&format!("loading `{label}`"), 0, Some(length));
        if !reflink(&source, &file).io("cannot write", &dir.path_of(name))? {
            let room = site.room()?;
            if length > room {
                return Err(Error::NoRoom {
                    problem: format!(
                        "`{}` is {} long, `{}` has {}",
                        self.path.display(),
                        Bytes(length),
                        dir.path().display(),
                        Bytes(room)
                    ),
                });
            }
            let mut done = 0;
            loop {
                signal::check()?;
                durable::point("write").io("cannot write", &dir.path_of(name))?;
                match io::copy(&mut (&source).take(CHUNK), &mut file) {
                    Ok(0) => break,
                    Ok(copied) => {
                        done += copied;
                        progress.advance(copied);
                        site.grown(done);
                    }
                    // both offsets have moved together: just go on
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).io("cannot copy", &self.path),
                }
            }
        }
        drop(file);
        let stat = dir.lstat(name)?.ok_or_else(|| Error::Io {
            doing: "cannot stat",
            path: dir.path_of(name),
            source: nix::errno::Errno::ENOENT.into(),
        })?;
        site.made(Path::new(name), &stat, None)
    }

    fn open(&self) -> Result<File> {
        // a FIFO would be waited for, a device may do anything
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&self.path);
        let file = match opened {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Err(Error::Missing {
                    what: self.path.display().to_string(),
                    problem: crate::error::spoken(&error),
                });
            }
            opened => opened.io("cannot open", &self.path)?,
        };
        let kind = file.metadata().io("cannot stat", &self.path)?.file_type();
        if kind.is_file() {
            return Ok(file);
        }
        let source = if kind.is_dir() {
            nix::errno::Errno::EISDIR.into()
        } else {
            io::Error::other("not a regular file")
        };
        Err(source).io("cannot copy", &self.path)
    }
}

/// Lets `file` share the blocks of `source`; false where the file system can't.
fn reflink(source: &File, file: &File) -> io::Result<bool> {
    durable::point("reflink")?;
    // SAFETY: FICLONE takes a descriptor as its argument and touches no memory of ours; both
    // descriptors are open for the duration of the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    Ok(outcome == 0)
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::stack::testing::loader::FakeSite;

    fn copy(path: impl AsRef<OsStr>) -> Result<FakeSite> {
        let mut site = FakeSite::new();
        Copy::parse(path.as_ref())?.run(&mut site)?;
        Ok(site)
    }

    #[test]
    fn a_file_is_copied_and_its_links_are_followed() {
        let source = tempfile::tempdir().unwrap();
        let text = "x".repeat(3_000_000);
        std::fs::write(source.path().join("real"), &text).unwrap();
        symlink("real", source.path().join("link")).unwrap();
        let site = copy(source.path().join("link")).unwrap();
        assert_eq!(site.read("link"), text.as_bytes());
        assert_eq!(site.made, ["link"]);
        assert!(
            std::fs::symlink_metadata(site.path("link"))
                .unwrap()
                .is_file()
        );
    }

    #[test]
    fn a_copy_starts_from_zero() {
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("f"), "new").unwrap();
        let mut site = FakeSite::new();
        std::fs::write(site.path("f"), "longer and old").unwrap();
        Copy::parse(source.path().join("f").as_os_str())
            .unwrap()
            .run(&mut site)
            .unwrap();
        assert_eq!(site.read("f"), b"new");
    }

    #[test]
    fn what_is_missing_or_no_file_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let error = copy(dir.path().join("none")).unwrap_err();
        assert_eq!(error.exit_status(), 66, "{error}");
        let error = copy(dir.path()).unwrap_err();
        assert_eq!(error.exit_status(), 74);
        assert!(error.to_string().ends_with(": is a directory"), "{error}");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = copy(fifo).unwrap_err();
        assert!(
            error.to_string().ends_with(": not a regular file"),
            "{error}"
        );
    }

    #[test]
    fn a_file_too_long_for_the_place_is_not_begun() {
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("f"), "12345678").unwrap();
        let mut site = FakeSite::new();
        site.room = 7;
        let outcome = Copy::parse(source.path().join("f").as_os_str())
            .unwrap()
            .run(&mut site);
        // a file system with reflinks needs no room
        assert!(outcome.is_ok() || outcome.is_err_and(|error| error.exit_status() == 73));
    }

    #[test]
    fn paths_are_absolute_and_name_a_file() {
        let copy = Copy::parse(OsStr::new("a/b")).unwrap();
        assert!(Path::new(copy.source()).is_absolute());
        assert_eq!(copy.file_name(), "b");
        assert!(copy.to_string().starts_with("file:/"));
        for path in ["/", "a/", "..", "/a/.", ".sc", ".sc.x"] {
            assert_eq!(
                Copy::parse(OsStr::new(path)).unwrap_err().exit_status(),
                2,
                "{path}"
            );
        }
    }
}
