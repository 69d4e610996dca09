//! The nouns of the command line: a stack is a loader, which brings a file, and the
//! transformations that work on it, lowest first.
//!
//! Modules know nothing of repositories, locks or journals. A module that runs gets a [`Site`]:
//! where it may write, what lies below it, how it says what it made. Whoever runs it
//! (`crate::load`) decides what becomes of the products.

pub mod archive;
pub mod checksum;
pub mod content;
pub mod decompress;
pub mod dirac;
pub mod external;
pub mod file;
pub mod growing;
pub mod http;
pub mod module;
#[cfg(test)]
mod testing;

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::FileStat;

use crate::console::Console;
use crate::durable::Dir;
use crate::error::{Error, Result};
use crate::hash::Hash;
use crate::units::Bytes;

pub use crate::part::Part;
use growing::{Growth, Stream};
pub use module::{Module, Stack, parse};

/// What every loader may be told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the user said the repository needs: no stage may bring more. 0: nothing was said.
    pub size: Bytes,
    /// Attempts after a transient failure.
    pub retries: u32,
    /// An attempt without one byte for so long ends.
    pub stall_timeout: Duration,
    /// Proxies and certificate authorities, from the environment.
    pub network: http::Network,
    /// The program that fetches from DIRAC (`$SC_DIRAC_GET`).
    pub dirac_get: OsString,
}

/// Can a file have this name, and may it in a repository? Names that begin with `.sc.` are those
/// of control directories.
fn is_usable(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b".." | b".sc")
        && name.len() <= 255
        && !name.starts_with(b".sc.")
        && !name.contains(&b'/')
}

/// The file a loader brings, for the transformations above it.
pub struct Product<'a> {
    /// The directory it lies in (the loader's own staging directory).
    pub dir: &'a Dir,
    pub name: &'a OsStr,
    /// How much of it is there.
    pub growth: &'a Arc<Growth>,
}

impl Product<'_> {
    /// Reads it from its beginning; waits for what is not there yet.
    ///
    /// # Errors
    /// [`Error::Io`](crate::error::Error::Io)
    pub fn open(&self) -> Result<Stream> {
        let file = self.dir.open_file(self.name, OFlag::O_RDONLY)?;
        Ok(Stream::new(file, self.growth.clone()))
    }
}

/// Where a module works, and how it reports.
pub trait Site {
    /// The module's own staging directory: private to us, on the repository's file system. Empty,
    /// except that a loader that may resume finds its unfinished file there.
    fn dir(&self) -> &Dir;

    /// The file brought by the loader of this stack; `None` for a loader, and where there is no
    /// loader.
    fn below(&self) -> Option<Product<'_>>;

    /// May a module that starts from zero not take the answer of a cache? True after a wrong
    /// checksum.
    fn is_fresh(&self) -> bool;

    /// What an earlier process recorded of the unfinished file in [`Site::dir`].
    fn part(&self) -> Option<&Part>;

    /// Records what is known of the file about to be downloaded, before its first byte is
    /// written. `None` forgets it.
    fn set_part(&mut self, part: Option<Part>) -> Result<()>;

    /// A loader's file has so many bytes now: those above it may read them.
    fn grown(&mut self, length: u64);

    /// A loader throws away what it has, and begins anew.
    fn discarded(&mut self);

    /// Records a finished product: its path below [`Site::dir`], what `lstat` says of it now,
    /// every write to it done, and what is in it, where the module knows without reading it again.
    fn made(&mut self, path: &Path, stat: &FileStat, hash: Option<Hash>) -> Result<()>;

    /// A module has read all of the file below it, and this is what it digests to.
    fn digested(&mut self, hash: Hash);

    /// Is this top-level name one that no archive member may have?
    fn is_reserved(&self, name: &OsStr) -> bool;

    /// Bytes that this load may still write here; what a declared length is held against.
    fn room(&self) -> Result<u64>;

    /// Files and directories that this load may still make here.
    fn inodes(&self) -> Result<u64>;

    /// Bytes that a stage may bring, because that is what the user said it needs: whatever is
    /// beyond that belongs to others, and an answer without an end must have one.
    fn limit(&self) -> Bytes;

    /// # Errors
    /// [`Error::NoRoom`]: `length` is above [`Site::limit`].
    fn check_limit(&self, what: &dyn Display, length: u64) -> Result<()> {
        if length <= self.limit().0 {
            return Ok(());
        }
        Err(Error::NoRoom {
            problem: format!("{what} takes more than {} (`--size`)", self.limit()),
        })
    }

    fn settings(&self) -> &Settings;

    fn console(&self) -> &Console;
}
