//! `tar`: unpacks the loader's file into the stage's directory.
//!
//! An archive comes from elsewhere and is believed nothing. [`members`] turns bytes into members
//! and refuses what is no archive; [`extract`] turns members into files and refuses what has no
//! business here. Both refuse with [`Error::Archive`](crate::error::Error::Archive) (65), naming
//! the member, and a stage that failed is never published.
//!
//! # What can go wrong
//!
//! * *Writing somewhere else.* `../x`, `/x`, a symlink and then a member below it, a hard link to
//!   a file outside. Names are taken apart here and handed to the kernel one component at a time,
//!   relative to an open directory, never following a symlink ([`crate::durable::Dir`]). So even a
//!   check that is missing could not lead out of the stage.
//! * *Taking a name that means something.* The repofile, its lock, the archive, its list, our
//!   control directories: contract §4.
//! * *Filling the disk.* Every length is held against [`Site::room`] before its bytes are written.
//!   Names, extended headers, sparse maps and the directories' table have limits, so that memory
//!   is bounded, too: neither members nor names are collected, but for directories.
//! * *Half an archive.* One cut inside a member is an error; the decompressor is read to its very
//!   end, or a damaged trailer would go unseen. (A plain archive cut exactly between two members
//!   can't be told from a whole one: GNU tar accepts it, and so do we; a checksum finds it. The
//!   same holds for a wrong byte in its content: only its headers have sums.)
//! * *Rights.* Set-id and sticky bits and others' write bit are taken off, owners are ignored. A
//!   directory without write permission must still be filled: so modes and times of directories
//!   are set at the very end, deepest first.
//!
//! Odd but honest archives unpack as GNU tar does it: later duplicates replace earlier ones,
//! holes stay holes, unknown types become files with a warning.

mod extract;
mod members;
#[cfg(test)]
mod tests;
mod workers;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use super::Site;
use super::content::Content;
use super::decompress::Reader;
use crate::error::{Error, Result};

#[derive(Debug, Clone)]
pub struct Tar {
    /// Delete the archive afterwards.
    pub drop: bool,
    /// Leading components taken off the members' names.
    pub strip: usize,
}

impl Tar {
    /// The module, and a warning where (a part of) the argument is ignored, as the reference
    /// ignored all of it.
    ///
    /// # Errors
    /// [`Error::Usage`]: `strip=` without a number.
    pub fn parse(argument: Option<&OsStr>) -> Result<(Tar, Option<String>)> {
        let mut tar = Tar {
            drop: false,
            strip: 0,
        };
        let mut warning = None;
        let argument = argument.unwrap_or_default().as_bytes();
        for part in argument.split(|&byte| byte == b',') {
            if let Some(number) = part.strip_prefix(b"strip=") {
                tar.strip = std::str::from_utf8(number)
                    .ok()
                    .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(|| Error::Usage {
                        problem: format!(
                            "`tar:{}`: `{}` is not a number of components",
                            OsStr::from_bytes(argument).display(),
                            OsStr::from_bytes(number).display()
                        ),
                        hint: Some("write `tar:strip=N`".into()),
                    })?;
            } else if part == b"drop" {
                tar.drop = true;
            } else if !part.is_empty() {
                warning = Some(format!(
                    "`tar` ignores its argument `{}`",
                    OsStr::from_bytes(part).display()
                ));
            }
        }
        Ok((tar, warning))
    }

    /// Unpacks the file below into the stage's directory and writes `<archive>.list`.
    ///
    /// # Errors
    /// [`Error::Archive`]: damaged or hostile; [`Error::NoRoom`]; [`Error::Io`];
    /// [`Error::Interrupted`].
    pub fn run(&self, site: &mut dyn Site) -> Result<()> {
        let below = site.below().ok_or_else(|| Error::Internal {
            problem: "`tar` has no file below it".into(),
        })?;
        let content = Content::ahead(Reader::open(&below)?);
        let archive = below.name.to_owned();
        let mut members = members::Members::new(content);
        let mut extraction = extract::Extraction::new(site, archive, self.strip)?;
        let mut unpack = || -> Result<()> {
            while let Some(member) = members.next()? {
                extraction.unpack(&member, &mut members)?;
            }
            members.finish()
        };
        let unpacked = unpack();
        // what went wrong with a member before comes first
        extraction.settle_all()?;
        unpacked?;
        extraction.finish()
    }
}

/// The parent's path and the last component.
fn split(path: &[u8]) -> (&[u8], &OsStr) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], OsStr::from_bytes(&path[slash + 1..])),
        None => (b"", OsStr::from_bytes(path)),
    }
}

impl fmt::Display for Tar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.drop, self.strip) {
            (false, 0) => f.write_str("tar"),
            (true, 0) => f.write_str("tar:drop"),
            (false, strip) => write!(f, "tar:strip={strip}"),
            (true, strip) => write!(f, "tar:drop,strip={strip}"),
        }
    }
}
