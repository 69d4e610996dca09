//! Bringing the file: attempts, and what an attempt may keep of the one before it.
//!
//! # Going on where another left off
//!
//! The unfinished file in the staging directory is a *prefix* of one version of the file. Before
//! its first byte was written, the [`Part`] was recorded that says of which one: by its ETag, or
//! else by its date. Only with such a validator is the rest asked for (`Range` with `If-Range`,
//! RFC 9110 §13.1.5), and six things can come back:
//!
//! | answer | meaning | so |
//! |---|---|---|
//! | 200 | another version, or no ranges here | the body is the whole file: start over with it |
//! | 206 from our offset, same total and ETag | the rest | append |
//! | 206 otherwise | a broken server or cache | throw away, ask for everything |
//! | 416, total = our length | nothing is missing | done |
//! | 416 otherwise | the file has shrunk | throw away, ask for everything, once |
//! | 200 or 206, but wrong bytes | | the checksum above finds it and asks for a fresh copy |
//!
//! The order is what makes a kill at any instant harmless: the old file is unlinked, then the new
//! part recorded, then the new file made. A part without a file, or with an empty one, is a start
//! from zero. Recording first would lend the old bytes the new version's name.
//!
//! # What is tried again
//!
//! Broken connections, silence, names that don't resolve, 408, 429 and 5xx. Not: what the server
//! has decided (404, 403), certificates, our own disk.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag};
use ureq::http::{HeaderMap, Response, StatusCode, header};
use ureq::{Agent, Body};

use super::connection::{NoNames, Route, Trouble};
use super::url::Url;
use super::{retry, tls};
use crate::console::Progress;
use crate::durable::{self, Dir};
use crate::error::{Error, IoContext, Result};
use crate::signal;
use crate::stack::{Part, Site};
use crate::units::Bytes;

/// The limit of browsers and of the reference is of this order.
const REDIRECTS: u32 = 10;

/// One write per so many bytes.
const BUFFER: usize = 256 << 10;

/// What has come in is written at least so often: a killed load keeps it.
const FLUSH: Duration = Duration::from_secs(1);

/// A longer validator would not fit into a request, and the download could never go on.
const VALIDATOR_MAX: usize = 1024;

pub struct Download<'a> {
    site: &'a mut dyn Site,
    url: &'a Url,
    name: &'a OsStr,
    dir: Dir,
    tls: OnceCell<Arc<rustls::ClientConfig>>,
    /// Of which version the file in `dir` is a prefix.
    part: Option<Part>,
    /// See [`Route::chatter`].
    chatter: Arc<AtomicU64>,
}

/// How an attempt ends that has not brought the file.
enum Failure {
    Final(Error),
    /// Another attempt may do better.
    Transient {
        problem: String,
        /// `Retry-After`
        asked: Option<Duration>,
    },
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Final(error)
    }
}

/// What an answer is good for.
enum Verdict {
    /// Its body goes into the file from this offset on.
    Body(u64),
    /// The file was complete already.
    Complete,
    /// What we have is of no use.
    StartOver,
}

impl<'a> Download<'a> {
    pub fn new(site: &'a mut dyn Site, url: &'a Url, name: &'a OsStr) -> Result<Download<'a>> {
        let dir = site.dir().try_clone()?;
        let part = site.part().filter(|_| !site.is_fresh()).cloned();
        Ok(Download {
            site,
            url,
            name,
            dir,
            tls: OnceCell::new(),
            part,
            chatter: Arc::default(),
        })
    }

    /// # Errors
    /// [`Error::Missing`], [`Error::Unreachable`], [`Error::NoRoom`], [`Error::Interrupted`],
    /// [`Error::Io`].
    pub fn run(mut self) -> Result<()> {
        let retries = self.site.settings().retries;
        let mut failures = 0;
        loop {
            match self.attempt() {
                Ok(()) => break,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Transient { problem, .. }) if failures == retries => {
                    let times = match failures {
                        0 => String::new(),
                        _ => format!(" (attempt {} of {0}, `--retries`)", failures + 1),
                    };
                    return Err(self.unreachable(problem + &times));
                }
                Err(Failure::Transient { problem, asked }) => {
                    failures += 1;
                    let first = self.site.settings().network.backoff;
                    let pause = retry::pause(first, failures, asked);
                    self.site.console().say(format_args!(
                        "cannot fetch `{}`: {problem}; retry {failures} of {retries} in {:.1} s",
                        self.url,
                        pause.as_secs_f64()
                    ));
                    retry::sleep(pause)?;
                }
            }
        }
        let stat = self.dir.lstat(self.name)?.ok_or_else(|| Error::Io {
            doing: "cannot stat",
            path: self.dir.path_of(self.name),
            source: Errno::ENOENT.into(),
        })?;
        self.site.made(Path::new(self.name), &stat, None)
    }

    fn attempt(&mut self) -> Result<(), Failure> {
        let mut from = self.usable_length()?;
        if from > 0 && self.part.as_ref().and_then(|part| part.total) == Some(from) {
            self.site.grown(from);
            return Ok(());
        }
        loop {
            let (response, at) = self.get(from)?;
            match self.judge(&response, &at, from)? {
                Verdict::Body(from) => return self.receive(response, from),
                Verdict::Complete => {
                    self.site.grown(from);
                    return Ok(());
                }
                Verdict::StartOver => {
                    self.discard()?;
                    from = 0;
                }
            }
        }
    }

    /// How many bytes of the unfinished file may stay.
    fn usable_length(&self) -> Result<u64> {
        let Some(part) = &self.part else {
            return Ok(0);
        };
        let is_ours = part.url == self.url.to_string() && validator(part).is_some();
        Ok(match self.dir.lstat(self.name)? {
            Some(stat) if is_ours && durable::is_file(&stat) => {
                let length = stat.st_size as u64;
                if part.total.is_some_and(|total| length > total) {
                    0
                } else {
                    length
                }
            }
            _ => 0,
        })
    }

    /// Asks for the file from byte `from` on, through redirects; the answer and where it is from.
    fn get(&self, from: u64) -> Result<(Response<Body>, Url), Failure> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS {
            let response = self.request(&url, from)?;
            let location = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => response.headers().get(header::LOCATION),
                _ => None,
            };
            let Some(location) = location else {
                return Ok((response, url));
            };
            let next = url
                .join(location.as_bytes())
                .map_err(|problem| self.unreachable(format!("bad redirect: {problem}")))?;
            if url.is_secure() && !next.is_secure() {
                if [self.url, &next]
                    .iter()
                    .any(|url| url.authorization().is_some())
                {
                    let problem = format!(
                        "redirected to `{next}`, which is not encrypted, and there are credentials"
                    );
                    return Err(self.unreachable(problem).into());
                }
                self.site.console().warn(format_args!(
                    "`{}` is redirected to `{next}`, which is not encrypted",
                    self.url
                ));
            }
            url = next;
        }
        Err(self
            .unreachable(format!("more than {REDIRECTS} redirects"))
            .into())
    }

    fn request(&self, url: &Url, from: u64) -> Result<Response<Body>, Failure> {
        let settings = self.site.settings();
        let proxy = settings
            .network
            .proxy(url)
            .map_err(|problem| self.unreachable(problem))?;
        let needs_tls = url.is_secure() || proxy.as_ref().is_some_and(|proxy| proxy.0.is_secure());
        let route = Route {
            url: url.clone(),
            proxy,
            tls: if needs_tls { Some(self.tls()?) } else { None },
            stall_timeout: settings.stall_timeout,
            chatter: self.chatter.clone(),
        };
        self.chatter.store(0, Ordering::Relaxed);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .proxy(None)
            .accept_encoding("identity")
            .user_agent(concat!("sc/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = Agent::with_parts(config, route, NoNames);
        let mut request = agent.get(url.request());
        if let Some(authorization) = url.authorization() {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if from > 0
            && let Some(validator) = self.part.as_ref().and_then(validator)
        {
            request = request
                .header(header::RANGE, format!("bytes={from}-"))
                .header(header::IF_RANGE, validator);
        }
        if self.site.is_fresh() {
            request = request
                .header(header::CACHE_CONTROL, "no-cache")
                .header(header::PRAGMA, "no-cache");
        }
        request.call().map_err(|error| self.failure(error))
    }

    fn tls(&self) -> Result<Arc<rustls::ClientConfig>> {
        if self.tls.get().is_none() {
            let config = tls::config(&self.site.settings().network.authorities)
                .map_err(|problem| self.unreachable(problem))?;
            let _ = self.tls.set(config);
        }
        self.tls.get().cloned().ok_or_else(|| Error::Internal {
            problem: "no TLS configuration".into(),
        })
    }

    /// The table above, and what is wrong with every other answer. With `from` 0 nothing is ever
    /// started over, so the caller's loop ends.
    fn judge(&self, response: &Response<Body>, at: &Url, from: u64) -> Result<Verdict, Failure> {
        let status = response.status();
        let headers = response.headers();
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        if !codings.all(|coding| is_plain(coding.as_bytes())) {
            let problem = "the server packs the file in a way that was not asked for";
            return Err(Failure::Final(self.unreachable(problem)));
        }
        Ok(match status {
            StatusCode::OK => Verdict::Body(0),
            StatusCode::PARTIAL_CONTENT if from > 0 => {
                if self.continues(headers, from) {
                    Verdict::Body(from)
                } else {
                    Verdict::StartOver
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
                let total = text(headers, header::CONTENT_RANGE)
                    .and_then(|range| range.strip_prefix("bytes */")?.trim().parse().ok());
                if total == Some(from) && self.is_same_version(headers) {
                    Verdict::Complete
                } else {
                    Verdict::StartOver
                }
            }
            status => return Err(self.refusal(status, headers, at)),
        })
    }

    /// Is this 206 the rest of what we have?
    fn continues(&self, headers: &HeaderMap, from: u64) -> bool {
        let Some((first, total)) = content_range(headers) else {
            return false;
        };
        let known = self.part.as_ref().and_then(|part| part.total);
        let same_total = known.is_none() || total.is_none() || known == total;
        first == from && same_total && self.is_same_version(headers)
    }

    /// Does nothing in the answer speak against its being the version that we have a part of?
    fn is_same_version(&self, headers: &HeaderMap) -> bool {
        let Some(part) = &self.part else {
            return false;
        };
        let etag = text(headers, header::ETAG);
        match (&part.etag, etag) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => {
                let date = text(headers, header::LAST_MODIFIED);
                date.is_none()
                    || part.last_modified.is_none()
                    || date == part.last_modified.as_deref()
            }
        }
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap, at: &Url) -> Failure {
        let mut problem = match status.canonical_reason() {
            Some(reason) => format!("{} {reason}", status.as_u16()),
            None => format!("status {}", status.as_u16()),
        };
        if at != self.url {
            problem += &format!(", redirected to `{at}`");
        }
        match status.as_u16() {
            404 | 410 => Failure::Final(Error::Missing {
                what: self.url.to_string(),
                problem,
            }),
            408 | 429 | 500..=599 => Failure::Transient {
                problem,
                asked: text(headers, header::RETRY_AFTER)
                    .and_then(|value| retry::retry_after(value, SystemTime::now())),
            },
            400..=499 => Failure::Final(self.unreachable(problem)),
            _ => Failure::Final(self.unreachable(format!("unexpected answer: {problem}"))),
        }
    }

    /// Writes the body of `response` into the file from `from` on.
    fn receive(&mut self, response: Response<Body>, from: u64) -> Result<(), Failure> {
        let headers = response.headers();
        // with chunks, Content-Length does not count (RFC 9112 §6.3)
        let length = text(headers, header::CONTENT_LENGTH)
            .filter(|_| !headers.contains_key(header::TRANSFER_ENCODING))
            .and_then(|length| length.parse::<u64>().ok());
        let known = self.part.as_ref().and_then(|part| part.total);
        let total = match from {
            0 => length,
            _ => content_range(headers)
                .and_then(|(_, total)| total)
                .or(known)
                .or_else(|| length?.checked_add(from)),
        };
        if let Some(total) = total {
            self.check_limit(total)?;
        }
        let mut file = if from == 0 {
            self.discard()?;
            let owned = |name| text(headers, name).map(str::to_owned);
            self.record(Part {
                url: self.url.to_string(),
                etag: owned(header::ETAG),
                last_modified: owned(header::LAST_MODIFIED),
                total,
            })?;
            self.dir.create(self.name, 0o666)?
        } else {
            if let Some(part) = self.part.clone().filter(|part| part.total != total) {
                self.record(Part { total, ..part })?;
            }
            let file = self
                .dir
                .open_file(self.name, OFlag::O_WRONLY | OFlag::O_APPEND)?;
            let length = self.io("cannot stat", file.metadata())?.len();
            if length != from {
                return Err(Failure::Transient {
                    problem: format!("`{}` was changed meanwhile", self.name.display()),
                    asked: None,
                });
            }
            file
        };
        if let Some(total) = total {
            self.reserve(&file, from, total)?;
        }
        self.site.grown(from);
        // the path's last segment: the file's name may end in a query
        let label = self
            .url
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let mut progress = self
            .site
            .console()
            .progress(&format!("loading `{label}`"), from, total);
        let done = self.pour(response.into_body(), &mut file, from, &mut progress)?;
        match total {
            Some(total) if done < total => Err(Failure::Transient {
                problem: format!("the body ended after {done} of {total} bytes"),
                asked: None,
            }),
            Some(total) if done > total => {
                self.discard()?;
                Err(Failure::Transient {
                    problem: format!("{done} bytes came instead of {total}"),
                    asked: None,
                })
            }
            _ => Ok(()),
        }
    }

    /// Reads to the end; how long the file is then. What came before a failure is in the file.
    fn pour(
        &mut self,
        body: Body,
        file: &mut File,
        from: u64,
        progress: &mut Progress,
    ) -> Result<u64, Failure> {
        let mut reader = body.into_reader();
        let mut buffer = vec![0; BUFFER];
        let mut filled = 0;
        let mut done = from;
        let mut flushed = Instant::now();
        loop {
            let outcome = reader.read(&mut buffer[filled..]);
            filled += *outcome.as_ref().unwrap_or(&0);
            self.chatter.store(0, Ordering::Relaxed);
            let is_end = !matches!(outcome, Ok(1..));
            if is_end || filled == buffer.len() || flushed.elapsed() >= FLUSH {
                if filled > 0 {
                    let written = durable::write_all(file, &buffer[..filled]);
                    self.io("cannot write", written)?;
                }
                progress.advance(filled as u64);
                done += filled as u64;
                filled = 0;
                self.check_limit(done)?;
                self.site.grown(done);
                flushed = Instant::now();
                signal::check()?;
            }
            match outcome {
                Ok(0) => return Ok(done),
                Ok(_) => {}
                Err(error) => return Err(self.failure(error.into())),
            }
        }
    }

    /// Holds the length against the room there is, and takes the room: better no beginning than
    /// a full disk after hours.
    fn reserve(&self, file: &File, from: u64, total: u64) -> Result<(), Failure> {
        let there = self.io("cannot stat", file.metadata())?.blocks() * 512;
        let needed = total.saturating_sub(there.max(from));
        let room = self.site.room()?;
        if needed > room {
            return Err(Failure::Final(Error::NoRoom {
                problem: format!(
                    "`{}` needs {} more, `{}` has {}",
                    self.url,
                    Bytes(needed),
                    self.dir.path().display(),
                    Bytes(room)
                ),
            }));
        }
        if total <= from {
            return Ok(());
        }
        let (Ok(offset), Ok(length)) = (i64::try_from(from), i64::try_from(total - from)) else {
            return Ok(());
        };
        self.io("cannot allocate", durable::point("allocate"))?;
        loop {
            // the length stays what was written: a resume reads its offset from it
            let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            match nix::fcntl::fallocate(file, flags, offset, length) {
                Err(Errno::EINTR) => signal::check()?,
                Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG | Errno::EIO)) => {
                    return self.io("cannot allocate", Err(errno.into()));
                }
                // a file system that can't is no worse than before
                Ok(()) | Err(_) => return Ok(()),
            }
        }
    }

    /// Removes the unfinished file; see the order above.
    fn discard(&mut self) -> Result<()> {
        self.site.discarded();
        if self.dir.lstat(self.name)?.is_some() {
            self.dir.unlink(self.name)?;
        }
        if self.part.is_some() {
            self.part = None;
            self.site.set_part(None)?;
        }
        Ok(())
    }

    fn check_limit(&self, length: u64) -> Result<()> {
        self.site
            .check_limit(&format_args!("`{}`", self.url), length)
    }

    fn record(&mut self, part: Part) -> Result<()> {
        self.part = Some(part.clone());
        self.site.set_part(Some(part))
    }

    fn io<T>(&self, doing: &'static str, outcome: io::Result<T>) -> Result<T, Failure> {
        outcome
            .io(doing, &self.dir.path_of(self.name))
            .map_err(Failure::Final)
    }

    fn unreachable(&self, problem: impl Into<String>) -> Error {
        Error::Unreachable {
            what: self.url.to_string(),
            problem: problem.into(),
        }
    }

    /// What a failure of the network means. A signal comes as one, too.
    fn failure(&self, error: ureq::Error) -> Failure {
        if let Err(error) = signal::check() {
            return Failure::Final(error);
        }
        let (problem, is_lasting) = match error {
            ureq::Error::Io(error) => match error.get_ref().and_then(|e| e.downcast_ref()) {
                Some(Trouble {
                    problem,
                    is_lasting,
                }) => (problem.clone(), *is_lasting),
                None if error.kind() == io::ErrorKind::UnexpectedEof => {
                    ("the connection was closed too early".into(), false)
                }
                None => (crate::error::spoken(&error), false),
            },
            // its text is the whole URL
            ureq::Error::BadUri(_) => ("the URL cannot be used".into(), true),
            ureq::Error::Http(error) => (error.to_string(), true),
            ureq::Error::LargeResponseHeader(..) => ("the answer's head is too long".into(), true),
            ureq::Error::Protocol(error) => (format!("the answer is no good HTTP: {error}"), false),
            error => (error.to_string(), false),
        };
        if is_lasting {
            Failure::Final(self.unreachable(problem))
        } else {
            Failure::Transient {
                problem,
                asked: None,
            }
        }
    }
}

/// What proves that two answers are the same version byte by byte. A weak ETag (`W/`) promises
/// only that they mean the same (RFC 9110 §8.8.1).
fn validator(part: &Part) -> Option<&str> {
    let etag = part.etag.as_deref().filter(|etag| etag.starts_with('"'));
    let fits = |validator: &&str| validator.len() <= VALIDATOR_MAX;
    etag.or(part.last_modified.as_deref()).filter(fits)
}

/// Does this `Transfer-Encoding` leave the bytes as they are?
fn is_plain(coding: &[u8]) -> bool {
    let plain: [&[u8]; 2] = [b"chunked", b"identity"];
    plain.iter().any(|name| coding.eq_ignore_ascii_case(name))
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// First byte and total of `Content-Range: bytes 5-9/10`; the total may be unknown.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = text(headers, header::CONTENT_RANGE)?;
    let (span, total) = range.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = span.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((first.trim().parse().ok()?, total))
}
