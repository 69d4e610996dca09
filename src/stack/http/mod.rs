//! `http:URL`: brings one file by HTTP GET.
//!
//! What can go wrong with a download is mostly what looks like success:
//!
//! * an error page is stored as the file (the reference did), so only 200 and 206 have a body
//!   that counts;
//! * a connection that breaks off looks like the end of the file, so the length is compared;
//! * a proxy or server inflates what it thinks is compressed, so nothing but `identity` is asked
//!   for, and whatever comes is stored as it is;
//! * the rest of a *new* version is appended to the beginning of the *old* one: see
//!   [`download`].
//!
//! The parts: [`url`] takes a URL apart, [`network`] chooses the proxy, [`tls`] the authorities,
//! [`connection`] makes the connection, `ureq` speaks HTTP on it, [`download`] brings the file
//! and [`retry`] says when to try again.
//!
//! Secrets (user-info, query) go into [`Http::source`] and over the wire, nowhere else.

mod connection;
mod download;
mod network;
mod retry;
mod tls;
mod url;

#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use percent_encoding::percent_decode;

use self::url::{Url, split_scheme};
use super::{Site, file};
use crate::error::{Error, Result};

pub use self::network::Network;

const FORMS: &str =
    "accepted are `http://HOST/PATH`, `https://HOST/PATH`, `file:///PATH` and a plain path";

/// A file named by a URL. The reference took local files here too, so they are taken.
#[derive(Clone)]
pub struct Http {
    source: Source,
    name: OsString,
    identity: OsString,
}

#[derive(Clone)]
enum Source {
    Network(Url),
    Local(file::Copy),
}

impl Http {
    /// # Errors
    /// [`Error::Usage`]: a scheme that is not ours, a URL that is none, or one that names no file.
    pub fn parse(text: &OsStr) -> Result<Http> {
        let bytes = text.as_bytes();
        let scheme = split_scheme(bytes).map(|(scheme, rest)| (scheme.to_ascii_lowercase(), rest));
        let source = match &scheme {
            Some((scheme, _)) if matches!(scheme.as_slice(), b"http" | b"https") => {
                let url = Url::parse(bytes).map_err(|problem| Error::Usage {
                    // without its text: what can't be taken apart can't be shown without secrets
                    problem: format!("the URL of `http:` cannot be used: {problem}"),
                    hint: Some(FORMS.into()),
                })?;
                Source::Network(url)
            }
            Some((scheme, rest)) if scheme == b"file" => {
                let path = local_path(rest).ok_or_else(|| Error::Usage {
                    problem: format!("`{}` names no file on this node", text.display()),
                    hint: Some("write `file:///PATH`".into()),
                })?;
                Source::Local(file::Copy::new(path)?)
            }
            Some((scheme, _)) => {
                return Err(Error::Usage {
                    problem: format!(
                        "`http:` cannot fetch `{}:…`",
                        String::from_utf8_lossy(scheme)
                    ),
                    hint: Some(FORMS.into()),
                });
            }
            None => Source::Local(file::Copy::new(PathBuf::from(text))?),
        };
        let name = file_name(bytes, &source).ok_or_else(|| Error::Usage {
            problem: format!("`{}` names no file: nothing usable follows its last `/`", {
                match &source {
                    Source::Network(url) => url.to_string(),
                    Source::Local(copy) => copy.to_string(),
                }
            }),
            hint: Some("give the URL of a file, not of a directory".into()),
        })?;
        let identity = match &source {
            Source::Network(url) => url.identity().into(),
            Source::Local(copy) => copy.source().to_owned(),
        };
        Ok(Http {
            source,
            name,
            identity,
        })
    }

    /// What follows the last `/` as typed, query and all, as in the reference.
    pub fn file_name(&self) -> &OsStr {
        &self.name
    }

    /// The URL with its secrets, or the absolute path.
    pub fn source(&self) -> &OsStr {
        &self.identity
    }

    /// Brings the file.
    ///
    /// # Errors
    /// [`Error::Missing`] (404, 410), [`Error::Unreachable`], [`Error::NoRoom`],
    /// [`Error::Interrupted`], [`Error::Io`].
    pub fn run(&self, site: &mut dyn Site) -> Result<()> {
        match &self.source {
            Source::Network(url) => download::Download::new(site, url, &self.name)?.run(),
            Source::Local(copy) => copy.run_as(site, &self.name),
        }
    }
}

/// The path of `file:` and what follows: `///a%20b`, `//localhost/a`, `/a`.
fn local_path(rest: &[u8]) -> Option<PathBuf> {
    let path = match rest.strip_prefix(b"//") {
        Some(rest) => rest.strip_prefix(b"localhost").unwrap_or(rest),
        None => rest,
    };
    let path: Vec<u8> = percent_decode(path).collect();
    let is_path = path.first() == Some(&b'/') && !path.contains(&0);
    is_path.then(|| OsString::from_vec(path).into())
}

fn file_name(typed: &[u8], source: &Source) -> Option<OsString> {
    let typed = typed.rsplit(|&byte| byte == b'/').next()?;
    let spare = match source {
        // `http://user:secret@host`: what follows the last slash is no name but a secret
        Source::Network(url) if url.path() == "/" && typed.contains(&b'@') => return None,
        Source::Network(url) => url.path().rsplit('/').next()?.as_bytes(),
        Source::Local(copy) => copy.file_name().as_bytes(),
    };
    [typed, spare]
        .into_iter()
        .find(|name| super::is_usable(name))
        .map(|name| OsStr::from_bytes(name).to_owned())
}

impl fmt::Display for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Network(url) => write!(f, "http:{url}"),
            // the same file under the same name is the same thing, however it was asked for
            Source::Local(copy) if copy.file_name() == self.name => copy.fmt(f),
            Source::Local(copy) => {
                write!(
                    f,
                    "http:{} as {}",
                    copy.source().display(),
                    self.name.display()
                )
            }
        }
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
