//! `/etc/sc.conf`: a site's defaults, options in the syntax of `SC_OPTIONS`.
//!
//! Every user's every `sc` obeys it, so it counts only where nobody but root can have written it.
//! Where somebody else could have, it is passed over, and that is said: an administrator who
//! wonders why his defaults have no effect is told by the first job.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, spoken};
use crate::origin::Origin;

const PATH: &str = "/etc/sc.conf";

/// The file as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf {
    path: PathBuf,
    text: Vec<u8>,
    /// Why the file is passed over, in words for the user.
    pub warning: Option<String>,
}

impl Conf {
    /// Reads the file, if there is one.
    pub fn read() -> Conf {
        let (path, owner) = place();
        let mut text = Vec::new();
        let warning = match trusted(&path, owner) {
            Ok(None) => None,
            Ok(Some(mut file)) => file.read_to_end(&mut text).err().map(|e| spoken(&e)),
            Err(problem) => Some(problem),
        };
        if warning.is_some() {
            text.clear();
        }
        Conf {
            warning: warning.map(|why| format!("`{}` is passed over: {why}", path.display())),
            path,
            text,
        }
    }

    /// Its words, each with the line that it (or the quote it begins in) begins on.
    ///
    /// # Errors
    /// [`Error::Usage`]: a quote that is not closed.
    pub fn words(&self) -> Result<Vec<(OsString, Origin)>> {
        let mut words = Vec::new();
        let mut begun: Option<(usize, Vec<u8>)> = None;
        for (n, line) in self.text.split(|&byte| byte == b'\n').enumerate() {
            let (first, text) = match begun.take() {
                Some((first, text)) => (first, [&text, &b"\n"[..], line].concat()),
                None => (n + 1, line.to_vec()),
            };
            // fails at a quote or a backslash that the next line may close
            match shlex::bytes::split(&text) {
                Some(split) => words.extend(
                    split
                        .into_iter()
                        .map(|word| (OsString::from_vec(word), self.at(first))),
                ),
                None => begun = Some((first, text)),
            }
        }
        match begun {
            Some((first, _)) => Err(self.at(first).named(Error::usage(
                "a quote is not closed, or nothing follows `\\`",
            ))),
            None => Ok(words),
        }
    }

    fn at(&self, line: usize) -> Origin {
        Origin::Conf {
            path: self.path.clone(),
            line,
        }
    }
}

/// The file, and the user who must own it. In builds with debug assertions a test may name a file
/// of its own (`SC_CONF`).
fn place() -> (PathBuf, u32) {
    #[cfg(debug_assertions)]
    if let Some(path) = std::env::var_os("SC_CONF") {
        return (path.into(), crate::process::user());
    }
    (PATH.into(), 0)
}

/// Opens the file if `owner` and nobody else can have written it; `None`: there is none.
fn trusted(path: &Path, owner: u32) -> Result<Option<File>, String> {
    let opened = File::options()
        .read(true)
        // whatever stands there, it is not waited for
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = match opened {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        opened => opened.map_err(|error| spoken(&error))?,
    };
    let metadata = file.metadata().map_err(|error| spoken(&error))?;
    if !metadata.is_file() {
        return Err("it is no regular file".into());
    }
    if metadata.uid() != owner {
        let whose = if owner == 0 {
            "root".into()
        } else {
            format!("uid {owner}")
        };
        return Err(format!(
            "it belongs to uid {}, not to {whose}",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(format!(
            "others than its owner may write it (mode {:04o})",
            metadata.mode() & 0o7777
        ));
    }
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Vec<(String, usize)>> {
        let conf = Conf {
            path: "/etc/sc.conf".into(),
            text: text.into(),
            warning: None,
        };
        let words = conf
            .words()?
            .into_iter()
            .map(|(word, origin)| match origin {
                Origin::Conf { line, .. } => (word.into_string().unwrap(), line),
                other => panic!("{other:?}"),
            });
        Ok(words.collect())
    }

    #[test]
    fn each_word_has_its_line() {
        let word = |text: &str, line| (text.to_owned(), line);
        for (text, expected) in [
            ("", vec![]),
            ("# don't\n\n", vec![]),
            (
                "-q\n--size 10GB # 'x\n",
                vec![word("-q", 1), word("--size", 2), word("10GB", 2)],
            ),
            (
                "-d 'a\nb' -q\n-v",
                vec![word("-d", 1), word("a\nb", 1), word("-q", 1), word("-v", 3)],
            ),
            ("--na\\\nme=x\n-q", vec![word("--name=x", 1), word("-q", 3)]),
        ] {
            assert_eq!(words(text).unwrap(), expected, "{text:?}");
        }
        for (text, line) in [("-q\n'a\nb\n", 2), ("-q \\", 1)] {
            let error = words(text).unwrap_err().to_string();
            assert!(
                error.contains(&format!("`/etc/sc.conf`, line {line}:")),
                "{error}"
            );
        }
    }
}
