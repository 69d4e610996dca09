//! What can go wrong, how it is said, and the exit status it ends with.
//!
//! Variants hold data; `Display` is the one place for wording, [`Error::exit_status`] the one
//! for numbers, [`Error::hint`] the one for advice. House style: lower case, literals in
//! backticks, no final period, the option that would change it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Error {
    /// The archive is damaged, or a member of it has no business here.
    Archive {
        archive: PathBuf,
        member: Option<PathBuf>,
        problem: String,
    },
    /// The file is not the one that was asked for.
    Checksum {
        file: PathBuf,
        algorithm: &'static str,
        expected: String,
        actual: String,
    },
    /// An external program said no.
    External { program: String, problem: String },
    /// Something that is not ours stands where ours would go.
    Foreign {
        path: PathBuf,
        problem: String,
        remedy: String,
    },
    /// `--clear` of what somebody holds.
    InUse { location: PathBuf, holders: String },
    /// `--repair` of what somebody holds or loads.
    Held { location: PathBuf, holders: String },
    /// A bug: something that can't be.
    Internal { problem: String },
    /// SIGINT, SIGTERM or SIGHUP.
    Interrupted { signal: i32 },
    /// The kernel refused; what we were doing, to which path.
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The file of `--fd` is somebody else's lock.
    Locked { what: String, file: String },
    /// The lock file was taken away under us.
    LockLost { path: PathBuf },
    /// The source says there is no such file.
    Missing { what: String, problem: String },
    /// A network file system, and nobody has said that it will do.
    NetworkFs { path: PathBuf, kind: String },
    /// The file system does not lock, or not so that it could be relied on.
    NoLocks { path: PathBuf, problem: String },
    /// No base directory has room, or none can be used.
    NoPlace { problem: String },
    /// What is being loaded is larger than what is left.
    NoRoom { problem: String },
    /// `--unuse` by one who does not hold.
    NotHolder { location: PathBuf, holder: String },
    /// Another sc failed to load this while we waited; its error is ours.
    Relayed { message: String, status: u8 },
    /// The repository holds something else, and somebody uses it.
    OtherDefinition {
        location: PathBuf,
        asked: String,
        loaded: String,
        holders: String,
    },
    /// The directory is in use with another `--file`.
    OtherRepofile {
        location: PathBuf,
        asked: PathBuf,
        there: PathBuf,
    },
    /// More may join than `--share` says.
    OtherShare {
        location: PathBuf,
        asked: &'static str,
        there: &'static str,
    },
    /// `--run`: CMD was not started.
    Run { command: String, source: io::Error },
    /// `--timeout` or `--no-wait`.
    Timeout {
        what: String,
        waited: Option<Duration>,
        holder: String,
    },
    /// Entries of a held repository were deleted.
    Damaged {
        location: PathBuf,
        entry: String,
        holders: String,
    },
    /// `--verify`: the data are not what was loaded.
    Differs {
        location: PathBuf,
        differences: usize,
    },
    /// The source could not be reached, or broke off too often.
    Unreachable { what: String, problem: String },
    /// The words of the command line are wrong.
    Usage {
        problem: String,
        hint: Option<String>,
    },
}

impl Error {
    pub fn usage(problem: impl Into<String>) -> Error {
        Error::Usage {
            problem: problem.into(),
            hint: None,
        }
    }

    pub fn archive(archive: &Path, problem: impl Into<String>) -> Error {
        Error::Archive {
            archive: archive.to_owned(),
            member: None,
            problem: problem.into(),
        }
    }

    pub fn member(archive: &Path, member: &Path, problem: impl Into<String>) -> Error {
        Error::Archive {
            archive: archive.to_owned(),
            member: Some(member.to_owned()),
            problem: problem.into(),
        }
    }

    /// The exit status: `sysexits.h` where it has a word for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Error::Usage { .. } => 2,
            Error::Archive { .. } | Error::Checksum { .. } | Error::Differs { .. } => 65,
            Error::Missing { .. } => 66,
            Error::External { .. } | Error::Unreachable { .. } => 69,
            Error::Internal { .. } => 70,
            Error::NetworkFs { .. } | Error::NoLocks { .. } => 73,
            Error::NoPlace { .. } | Error::NoRoom { .. } => 73,
            Error::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC | Errno::EDQUOT) => 73,
                _ => 74,
            },
            Error::Damaged { .. } | Error::LockLost { .. } => 74,
            Error::Held { .. }
            | Error::InUse { .. }
            | Error::Locked { .. }
            | Error::Timeout { .. } => 75,
            Error::Foreign { .. } => 77,
            Error::OtherDefinition { .. }
            | Error::OtherRepofile { .. }
            | Error::OtherShare { .. } => 78,
            Error::Run { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Error::Run { .. } => 126,
            Error::Interrupted { signal } => 128u8.wrapping_add(*signal as u8),
            Error::NotHolder { .. } => 255,
            Error::Relayed { status, .. } => *status,
        }
    }

    /// What the reader can do about it, if there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Usage { hint, .. } => hint.clone(),
            Error::Foreign { remedy, .. } => Some(remedy.clone()),
            Error::Io { source, .. }
                if matches!(source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) =>
            {
                Some("name a larger directory with `--directories`, and the space needed with `--size`".into())
            }
            Error::NoPlace { .. } | Error::NoRoom { .. } => {
                Some("name other directories with `--directories`, or correct `--size`".into())
            }
            Error::NetworkFs { .. } => {
                Some("name a local directory with `--directories`, or say `--allow-network-fs`".into())
            }
            Error::NoLocks { .. } => {
                Some("name a local directory with `--directories`".into())
            }
            Error::Held { .. } => Some("wait until the holders have left".into()),
            Error::InUse { .. } => {
                Some("wait until the holders have left, or say `--force`".into())
            }
            Error::OtherDefinition { holders, .. } if holders.is_empty() => {
                Some("say the modules that it was loaded with".into())
            }
            Error::OtherDefinition { .. } => {
                Some("choose another `--name`, or wait until the holders have left".into())
            }
            Error::OtherRepofile { there, .. } => {
                Some(format!("say `--file={}`, or choose another `--name`", there.display()))
            }
            Error::OtherShare { there, .. } => Some(format!(
                "say `--share={there}`, choose another `--name`, or wait until nobody uses it"
            )),
            Error::Locked { .. } => {
                Some("a file of your own that nobody locks: `exec 9>>FILE`, then `--fd 9`".into())
            }
            Error::Differs { .. } => Some(
                "`--repair` and the modules load anew what differs, when nobody holds it".into(),
            ),
            Error::Damaged { .. } => {
                Some("it can be loaded anew when the holders have left".into())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Archive {
                archive,
                member: None,
                problem,
            } => {
                write!(f, "cannot unpack `{}`: {problem}", archive.display())
            }
            Error::Archive {
                archive,
                member: Some(member),
                problem,
            } => {
                write!(
                    f,
                    "cannot unpack `{}`: member `{}`: {problem}",
                    archive.display(),
                    member.display()
                )
            }
            Error::Checksum {
                file,
                algorithm,
                expected,
                actual,
            } => {
                write!(
                    f,
                    "wrong {algorithm} of `{}`: expected {expected}, got {actual}",
                    file.display()
                )
            }
            Error::Damaged {
                location,
                entry,
                holders,
            } => write!(
                f,
                "`{}` is damaged: `{entry}` is gone, and it is held by {holders}",
                location.display()
            ),
            Error::Differs {
                location,
                differences: 1,
            } => write!(
                f,
                "`{}` is not as it was loaded: 1 difference",
                location.display()
            ),
            Error::Differs {
                location,
                differences,
            } => write!(
                f,
                "`{}` is not as it was loaded: {differences} differences",
                location.display()
            ),
            Error::External { program, problem } => write!(f, "`{program}` failed: {problem}"),
            Error::Foreign { path, problem, .. } => write!(f, "`{}` {problem}", path.display()),
            Error::Held { location, holders } => {
                write!(
                    f,
                    "`{}` is not repaired: it is in use by {holders}",
                    location.display()
                )
            }
            Error::InUse { location, holders } => {
                write!(f, "`{}` is in use by {holders}", location.display())
            }
            Error::Internal { problem } => write!(f, "internal error: {problem}"),
            Error::Interrupted { signal } => {
                let name =
                    nix::sys::signal::Signal::try_from(*signal).map_or("a signal", |s| s.as_str());
                write!(f, "ended by {name}")
            }
            Error::Io {
                doing,
                path,
                source,
            } => {
                write!(f, "{doing} `{}`: {}", path.display(), spoken(source))
            }
            Error::Locked { what, file } => {
                write!(f, "cannot hold by {what}: {file} is locked exclusively")
            }
            Error::LockLost { path } => write!(
                f,
                "lost the lock `{}`: somebody removed it while it was held; nothing more was changed",
                path.display()
            ),
            Error::Missing { what, problem } => write!(f, "`{what}` does not exist: {problem}"),
            Error::NetworkFs { path, kind } => write!(
                f,
                "`{}` is on a network file system ({kind}), where locks may not work \
                 (`--allow-network-fs`)",
                path.display()
            ),
            Error::NoLocks { path, problem } => {
                write!(f, "locks do not work on `{}`: {problem}", path.display())
            }
            Error::NoPlace { problem } => write!(f, "no directory will do: {problem}"),
            Error::NoRoom { problem } => write!(f, "not enough room: {problem}"),
            Error::NotHolder { location, holder } => {
                write!(f, "`{}` is not held by {holder}", location.display())
            }
            Error::Relayed { message, .. } => write!(f, "{message}"),
            Error::OtherDefinition {
                location,
                asked,
                loaded,
                holders,
            } if holders.is_empty() => {
                write!(
                    f,
                    "`{}` holds `{loaded}`, not `{asked}`",
                    location.display()
                )
            }
            Error::OtherDefinition {
                location,
                asked,
                loaded,
                holders,
            } => write!(
                f,
                "`{}` holds `{loaded}`, not `{asked}`, and is in use by {holders}",
                location.display()
            ),
            Error::OtherRepofile {
                location,
                asked,
                there,
            } => write!(
                f,
                "`{}` is in use with the repofile `{}`, not `{}`",
                location.display(),
                there.display(),
                asked.display()
            ),
            Error::OtherShare {
                location,
                asked,
                there,
            } => write!(
                f,
                "`{}` is shared (`--share={there}`), and not to be (`--share={asked}`)",
                location.display()
            ),
            Error::Run { command, source } => {
                write!(f, "cannot run `{command}`: {}", spoken(source))
            }
            Error::Timeout {
                what,
                waited: Some(waited),
                holder,
            } => {
                write!(
                    f,
                    "gave up waiting for {what} after {} s (`--timeout`): {holder}",
                    waited.as_secs_f64()
                )
            }
            Error::Timeout {
                what,
                waited: None,
                holder,
            } => {
                write!(f, "did not wait for {what} (`--no-wait`): {holder}")
            }
            Error::Unreachable { what, problem } => write!(f, "cannot fetch `{what}`: {problem}"),
            Error::Usage { problem, .. } => write!(f, "{problem}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } | Error::Run { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// An I/O error as people read it: `No space left on device`, without `(os error 28)`.
pub fn spoken(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Puts the path and the deed to an I/O error, which has neither.
pub trait IoContext<T> {
    fn io(self, doing: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn io(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            doing,
            path: path.to_owned(),
            source,
        })
    }
}

impl<T> IoContext<T> for nix::Result<T> {
    fn io(self, doing: &'static str, path: &Path) -> Result<T> {
        self.map_err(|errno| Error::Io {
            doing,
            path: path.to_owned(),
            source: errno.into(),
        })
    }
}
