//! Checksums (to be written)
use std::ffi::OsStr;
use std::fmt;

use super::Site;
use crate::error::Result;

#[derive(Debug, Clone)]
pub struct Checksum {}

impl Checksum {
    /// `None` where `class` is no checksum.
    pub fn parse(_class: &[u8], _argument: Option<&OsStr>) -> Result<Option<Checksum>> {
        Ok(None)
    }
    /// Does it say which bytes they must be: a whole cryptographic digest?
    pub fn pins(&self) -> bool {
        true
    }
    pub fn run(&self, _site: &mut dyn Site) -> Result<()> {
        todo!()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "")
    }
}
