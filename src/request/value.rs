//! One value each: what a word must look like, and what it means.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use super::Expires;
use super::given::Given;
use crate::console::{Level, ProgressMode};
use crate::error::Result;
use crate::process;
use crate::repository::past::StatsDir;
use crate::units;

/// The longest name of a file on Linux, in bytes (NAME_MAX).
const NAME_MAX: usize = 255;

/// What stands before the last component of NAME in the name of the control directory.
const CONTROL: &str = ".sc.";

/// The link lock's claim is called `FILE.lock|HOST|PID|RANDOM`: this much of NAME_MAX is for what
/// follows FILE (a host name has at most 64 bytes, the numbers 10 and 19).
const CLAIM: usize = ".lock|||".len() + 64 + 10 + 19;

/// Splits at every `:`; there is no escape, and an empty element is the current directory.
pub(super) fn directories(list: &OsStr) -> Vec<PathBuf> {
    list.as_bytes()
        .split(|&byte| byte == b':')
        .map(normal)
        .collect()
}

/// A path folded as text, links not resolved: Python's `normpath`, which made the string that job
/// scripts compare and print.
fn normal(path: &[u8]) -> PathBuf {
    let slashes = path.iter().take_while(|&&byte| byte == b'/').count();
    // POSIX leaves the meaning of exactly two slashes to the system
    let root: &[u8] = match slashes {
        0 => b"",
        2 => b"//",
        _ => b"/",
    };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if !root.is_empty() && parts.is_empty() => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut folded = root.to_vec();
    folded.extend(parts.join(&b'/'));
    if folded.is_empty() {
        folded.push(b'.');
    }
    PathBuf::from(OsString::from_vec(folded))
}

/// NAME: an empty one is none.
pub(super) fn name(given: &Given) -> Result<Option<PathBuf>> {
    let text = given.text();
    let bytes = given.value.as_bytes();
    let parts: Vec<&[u8]> = bytes
        .split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .collect();
    let (problem, hint) = if bytes.is_empty() {
        return Ok(None);
    } else if bytes[0] == b'/' {
        (
            format!("`{text}` is absolute"),
            "NAME lies below a base directory; that one is named with `--directories`",
        )
    } else if parts.contains(&&b".."[..]) {
        (
            format!("`{text}` leads out of the base directory"),
            "NAME lies below a base directory; that one is named with `--directories`",
        )
    } else if parts.iter().any(|part| part.starts_with(b".sc")) {
        (
            format!("`{text}` has a component that begins `.sc`"),
            "such names are kept for the files of `sc` itself",
        )
    } else {
        match parts.last() {
            None => (
                format!("`{text}` names no directory"),
                "for the base directory itself leave `--name` out",
            ),
            Some(last)
                if CONTROL.len() + last.len() > NAME_MAX
                    || parts.iter().any(|part| part.len() > NAME_MAX) =>
            {
                (
                    format!("`{text}` is too long"),
                    "the last component has at most 251 bytes, any other 255",
                )
            }
            Some(_) => {
                let folded = parts.join(&b'/');
                return Ok(Some(PathBuf::from(OsString::from_vec(folded))));
            }
        }
    };
    Err(given.wrong(problem, Some(hint)))
}

/// FILE: a name, or an absolute path that ends in one.
pub(super) fn file(given: &Given) -> Result<PathBuf> {
    let text = given.text();
    let bytes = given.value.as_bytes();
    let absolute = bytes.first() == Some(&b'/');
    let last = bytes.rsplit(|&byte| byte == b'/').next().unwrap_or(bytes);
    let (problem, hint) = if bytes.is_empty() {
        (
            "an empty word names no file".to_owned(),
            "leave it out for `repofile`",
        )
    } else if !absolute && last.len() != bytes.len() {
        (
            format!("`{text}` is neither a name nor an absolute path"),
            "a name lies in the repository; a path elsewhere is written in full",
        )
    } else if matches!(last, b"" | b"." | b"..") {
        (format!("`{text}` names no file"), "end it with a file name")
    } else if last.starts_with(b".sc") {
        (
            format!("`{text}` begins `.sc`"),
            "such names are kept for the files of `sc` itself",
        )
    } else if last.ends_with(b".lock") {
        (
            format!("`{text}` ends in `.lock`"),
            "that is the name of the lock beside a state file",
        )
    } else if last.len() > NAME_MAX - CLAIM {
        (
            format!("`{text}` is too long"),
            "there must be room in the directory entry for the lock beside it: 154 bytes at most",
        )
    } else {
        return Ok(PathBuf::from(&given.value));
    };
    Err(given.wrong(problem, Some(hint)))
}

/// DIR of `--stats-dir`: an empty one is none. It is the same for all, wherever they are.
pub(super) fn stats_dir(given: &Given) -> Result<Option<StatsDir>> {
    match given.value.as_bytes() {
        [] => Ok(None),
        [b'/', ..] => Ok(Some(StatsDir::new(normal(given.value.as_bytes())))),
        _ => Err(given.wrong(
            format!("`{}` is no absolute path", given.text()),
            Some("an administrator makes one directory for all, of mode 1777"),
        )),
    }
}

/// TEXT of `--id`: an empty one is none.
pub(super) fn id(given: &Given) -> Result<Option<String>> {
    match given.value.to_str() {
        Some("") => Ok(None),
        // it is stored as JSON and shown on one line
        Some(text) if !text.chars().any(char::is_control) => Ok(Some(text.to_owned())),
        _ => Err(given.wrong(
            format!("`{}` is no text on one line", given.text()),
            Some("any UTF-8 without control characters will do"),
        )),
    }
}

/// `usize::from_str` and its like accept `+5`.
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

pub(super) fn pid(text: &str) -> Result<i32, String> {
    digits(text)
        .and_then(|digits| digits.parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| format!("`{text}` is not a process id"))
}

pub(super) fn descriptor(text: &str) -> Result<i32, String> {
    digits(text)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("`{text}` is not a descriptor"))
}

pub(super) fn lease(text: &str) -> Result<u64, String> {
    match seconds(text)? {
        0 => Err(format!("`{text}` would end the hold at once")),
        seconds => Ok(seconds),
    }
}

pub(super) fn count(text: &str) -> Result<u32, String> {
    digits(text)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("`{text}` is not a number of retries"))
}

/// Whole seconds, rounded up: what is kept at all is kept for one.
pub(super) fn seconds(text: &str) -> Result<u64, String> {
    let duration = units::duration(text)?;
    Ok(duration.as_secs() + u64::from(duration.subsec_nanos() > 0))
}

pub(super) const EXPIRES: &str = "it is a duration (`90s`, `30m`, `12h`, `7d`), or a time such as \
     `2026-12-24T18:00:00Z`";

/// A time that has passed is an error: everything would be loaded anew, again and again.
pub(super) fn expires(text: &str) -> Result<Expires, String> {
    if let Ok(time) = units::unix_time_s(text) {
        return match time > process::unix_time_s() {
            true => Ok(Expires::At(time)),
            false => Err(format!("`{text}` has passed")),
        };
    }
    match seconds(text) {
        Ok(0) => Err(format!("`{text}` is no time at all")),
        Ok(seconds) => Ok(Expires::After(seconds)),
        Err(_) => Err(format!("`{text}` is neither a duration nor a time")),
    }
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        Duration::ZERO => Err(format!("`{text}` would end every attempt at once")),
        duration => Ok(duration),
    }
}

/// A variable that stands for an option without a value.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "1" | "yes" | "true" => Ok(true),
        "0" | "no" | "false" => Ok(false),
        _ => Err(format!("`{text}` is neither yes nor no")),
    }
}

pub(super) fn level(text: &str) -> Result<Level, String> {
    match text {
        "quiet" => Ok(Level::Quiet),
        "normal" => Ok(Level::Normal),
        "verbose" => Ok(Level::Verbose),
        "debug" => Ok(Level::Debug),
        _ => Err(format!("`{text}` is not a level of detail")),
    }
}

pub(super) fn progress(text: &str) -> Result<ProgressMode, String> {
    match text {
        "auto" => Ok(ProgressMode::Auto),
        "always" => Ok(ProgressMode::Always),
        "never" => Ok(ProgressMode::Never),
        _ => Err(format!("`{text}` is not a way to show progress")),
    }
}
