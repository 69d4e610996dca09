//! `file:` (to be written)
use std::ffi::{OsStr, OsString};
use std::fmt;

use super::Site;
use crate::error::Result;

#[derive(Debug, Clone)]
pub struct Copy {
    source: OsString,
}

impl Copy {
    pub fn parse(source: &OsStr) -> Result<Copy> {
        Ok(Copy {
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

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{}", self.source.display())
    }
}
