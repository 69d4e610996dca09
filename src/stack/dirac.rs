//! `dirac:LFN`: lets the DIRAC client fetch a file by its logical name.
//!
//! The client exits 0 or 2 and prints a Python dictionary either way; it takes an existing local
//! file of the LFN's name for a *list* of LFNs. So it runs in an empty directory, and success is
//! exit status 0 *and* the file is there.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Site;
use super::external::{Program, new_run};
use crate::error::{Error, Result};

/// A logical file name: `/vo/path/file` or `LFN:/vo/path/file`.
#[derive(Debug, Clone)]
pub struct Dirac {
    lfn: OsString,
}

impl Dirac {
    /// # Errors
    /// [`Error::Usage`]: it names no file, or the client would take it for an option.
    pub fn parse(lfn: &OsStr) -> Result<Dirac> {
        let dirac = Dirac {
            lfn: lfn.to_owned(),
        };
        let is_option = lfn.as_bytes().starts_with(b"-");
        if is_option || !super::is_usable(dirac.file_name().as_bytes()) {
            return Err(Error::Usage {
                problem: format!("`{}` is no logical file name", lfn.display()),
                hint: Some("write `dirac:/VO/PATH/FILE`".into()),
            });
        }
        Ok(dirac)
    }

    pub fn file_name(&self) -> &OsStr {
        let bytes = self.lfn.as_bytes();
        let last = bytes.rsplit(|byte| matches!(byte, b'/' | b':')).next();
        OsStr::from_bytes(last.unwrap_or_default())
    }

    pub fn source(&self) -> &OsStr {
        &self.lfn
    }

    /// # Errors
    /// [`Error::External`], [`Error::Interrupted`], [`Error::Io`].
    pub fn run(&self, site: &mut dyn Site) -> Result<()> {
        let command = site.settings().dirac_get.clone();
        let program = Program {
            program: &command,
            arguments: &[&self.lfn],
            variable: "SC_DIRAC_GET",
        };
        let dir = site.dir().try_clone()?;
        let run = new_run(&dir)?;
        let outcome = run
            .execute(&program)
            .and_then(|()| run.take(self.file_name(), &program));
        // also after a failure: half a file in the staging directory is of use to nobody
        let finished = run.finish();
        let stat = outcome?;
        finished?;
        site.made(Path::new(self.file_name()), &stat, None)
    }
}

impl fmt::Display for Dirac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dirac:{}", self.lfn.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::testing::loader::FakeSite;

    fn fetch(script: &str) -> (FakeSite, Result<()>) {
        let tools = tempfile::tempdir().unwrap();
        let tool = tools.path().join("get");
        // written by another process: a descriptor of ours, open for writing in a child that some
        // other test has just forked, would make it ETXTBSY
        let written = std::process::Command::new("sh")
            .args(["-c", r#"printf '%s' "$1" > "$0" && chmod 755 "$0""#])
            .arg(&tool)
            .arg(format!("#!/bin/sh\n{script}\n"))
            .status();
        assert!(written.unwrap().success());
        let mut site = FakeSite::new();
        site.settings.dirac_get = tool.into();
        let outcome = Dirac::parse(OsStr::new("LFN:/vo/user/data.tar"))
            .unwrap()
            .run(&mut site);
        (site, outcome)
    }

    #[test]
    fn the_client_runs_in_an_empty_directory_and_its_file_is_taken() {
        let (site, outcome) = fetch(r#"ls -A | grep . && exit 9; echo "$1" > data.tar"#);
        outcome.unwrap();
        assert_eq!(site.read("data.tar"), b"LFN:/vo/user/data.tar\n");
        assert_eq!(site.made, ["data.tar"]);
        assert_eq!(site.dir().names().unwrap(), ["data.tar"]);
    }

    #[test]
    fn exit_status_0_without_the_file_is_a_failure() {
        let (site, outcome) = fetch("echo '{Failed: {}}'");
        assert_eq!(outcome.unwrap_err().exit_status(), 69);
        assert_eq!(site.dir().names().unwrap(), [""; 0]);
    }

    #[test]
    fn the_file_with_another_exit_status_is_a_failure() {
        let (site, outcome) = fetch("echo half > data.tar; exit 2");
        assert_eq!(outcome.unwrap_err().exit_status(), 69);
        assert!(site.made.is_empty());
        assert_eq!(site.dir().names().unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_no_file_name_is_refused() {
        for lfn in ["/", "/vo/", "/vo/..", "--help", "-x/f", "LFN:", "/vo/.sc.x"] {
            assert!(Dirac::parse(OsStr::new(lfn)).is_err(), "{lfn}");
        }
    }
}
