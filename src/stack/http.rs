//! `http:` (to be written)
use std::ffi::{OsStr, OsString};
use std::fmt;

use super::Site;
use crate::error::Result;

#[derive(Debug, Clone)]
pub struct Network {}

impl Network {
    /// Reads proxies and certificate authorities from the environment through `var`.
    pub fn from_env(_var: &dyn Fn(&str) -> Option<OsString>) -> Network {
        Network {}
    }
}

#[derive(Debug, Clone)]
pub struct Http {
    url: OsString,
}

impl Http {
    pub fn parse(url: &OsStr) -> Result<Http> {
        Ok(Http {
            url: url.to_owned(),
        })
    }
    pub fn file_name(&self) -> &OsStr {
        &self.url
    }
    pub fn source(&self) -> &OsStr {
        &self.url
    }
    pub fn run(&self, _site: &mut dyn Site) -> Result<()> {
        todo!()
    }
}

impl fmt::Display for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http:{}", self.url.display())
    }
}
