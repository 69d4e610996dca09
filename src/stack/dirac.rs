//! `dirac:` (to be written)
use std::ffi::{OsStr, OsString};
use std::fmt;

use super::Site;
use crate::error::Result;

#[derive(Debug, Clone)]
pub struct Dirac {
    source: OsString,
}

impl Dirac {
    pub fn parse(source: &OsStr) -> Result<Dirac> {
        Ok(Dirac {
            source: source.to_owned(),
        })
    }
    pub fn file_name(&self) -> &OsStr {
        &self.source
    }
    pub fn source(&self) -> &OsStr {
        &self.source
    }
    pub fn run(&self, _site: &mut dyn Site) -> Result<()> {
        todo!()
    }
}

impl fmt::Display for Dirac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dirac:{}", self.source.display())
    }
}
