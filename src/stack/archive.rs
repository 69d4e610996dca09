//! `tar` (to be written)
use std::ffi::OsStr;
use std::fmt;

use super::Site;
use crate::error::Result;

#[derive(Debug, Clone)]
pub struct Tar {
    /// Delete the archive afterwards.
    pub drop: bool,
    /// Leading components taken off the members' names.
    pub strip: usize,
}

impl Tar {
    /// The module, and a warning where the argument is ignored.
    pub fn parse(_argument: Option<&OsStr>) -> Result<(Tar, Option<String>)> {
        Ok((
            Tar {
                drop: false,
                strip: 0,
            },
            None,
        ))
    }
    pub fn run(&self, _site: &mut dyn Site) -> Result<()> {
        todo!()
    }
}

impl fmt::Display for Tar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tar")
    }
}
