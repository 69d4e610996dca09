//! Options in the one spelling that clap cannot misread, by the rules of optparse.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};

use super::Word;
use crate::error::{Error, Result};
use crate::origin::Origin;

/// The long options of the Python `sc`. Their abbreviations are taken for good: no option of ours
/// may make `--n` or `--si` ambiguous.
const REFERENCE: [&str; 8] = [
    "directories",
    "file",
    "help",
    "location",
    "name",
    "size",
    "unuse",
    "use",
];

/// A word in the one spelling that clap cannot misread.
#[derive(Debug)]
pub(super) struct Spelled {
    pub(super) text: OsString,
    /// The full name of the option that it is.
    pub(super) option: Option<String>,
    pub(super) origin: Origin,
}

/// Words so spelled, and how they ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) words: Vec<Spelled>,
    pub(super) end: End,
}

/// Where the options ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Words,
    DashDash,
    /// `--help` or `--version`: they act when met, so what is right of them is never read.
    Help,
}

/// Rewrites options to `--name=VALUE` and `--flag`, by the rules of optparse. Other words, and
/// all behind `--`, stay as they are.
pub(super) fn spell(command: &Command, words: Vec<Word>) -> Result<Ended> {
    let mut spelled = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    while let Some((word, origin)) = words.next() {
        let plain = |text, origin| Spelled {
            text,
            option: None,
            origin,
        };
        if word == "--" {
            spelled.push(plain(word, origin));
            spelled.extend(words.map(|(word, origin)| plain(word, origin)));
            return Ok(Ended {
                words: spelled,
                end: End::DashDash,
            });
        }
        let mut next = || words.next().map(|(word, _)| word);
        let options = options(command, &word, &mut next).map_err(|error| origin.named(error))?;
        let Some(options) = options else {
            spelled.push(plain(word, origin));
            continue;
        };
        for (arg, text) in options {
            spelled.push(Spelled {
                text,
                option: arg.get_long().map(str::to_owned),
                origin: origin.clone(),
            });
            if acts_when_met(arg) {
                return Ok(Ended {
                    words: spelled,
                    end: End::Help,
                });
            }
        }
    }
    Ok(Ended {
        words: spelled,
        end: End::Words,
    })
}

/// The options that one word is, each in full; `None`: it is no option. `next` takes the next
/// word, for a value.
fn options<'a>(
    command: &'a Command,
    word: &OsStr,
    next: &mut dyn FnMut() -> Option<OsString>,
) -> Result<Option<Vec<(&'a Arg, OsString)>>> {
    let bytes = word.as_bytes();
    // as typed, with the value in the same word
    let mut options: Vec<(&Arg, String, Option<&[u8]>)> = Vec::new();
    if let Some(bytes) = bytes.strip_prefix(b"--") {
        let (name, value) = match bytes.iter().position(|&byte| byte == b'=') {
            Some(equals) => (&bytes[..equals], Some(&bytes[equals + 1..])),
            None => (bytes, None),
        };
        let arg = long(command, OsStr::from_bytes(name))?;
        let typed = format!("--{}", arg.get_long().unwrap_or_default());
        if value.is_some() && !arg.get_action().takes_values() {
            return Err(Error::usage(format!("`{typed}` takes no value")));
        }
        options.push((arg, typed, value));
    } else if let Some(mut bundle) = bytes.strip_prefix(b"-").filter(|rest| !rest.is_empty()) {
        while let Some((letter, rest)) = bundle.split_first() {
            let arg = command
                .get_arguments()
                .find(|arg| arg.get_short() == Some(char::from(*letter)))
                .ok_or_else(|| unknown_short(bundle))?;
            let value = (arg.get_action().takes_values() && !rest.is_empty()).then_some(rest);
            options.push((arg, format!("-{}", char::from(*letter)), value));
            if arg.get_action().takes_values() || acts_when_met(arg) {
                break;
            }
            bundle = rest;
        }
    } else {
        return Ok(None);
    }
    let full = options.into_iter().map(|(arg, typed, value)| {
        let mut full = OsString::from("--");
        full.push(arg.get_long().unwrap_or_default());
        if arg.get_action().takes_values() {
            let value = match value {
                Some(value) => OsString::from_vec(value.to_vec()),
                None => next().ok_or_else(|| needs_value(arg, &typed))?,
            };
            full.push("=");
            full.push(value);
        }
        Ok((arg, full))
    });
    full.collect::<Result<_>>().map(Some)
}

fn acts_when_met(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Help | ArgAction::Version)
}

/// The option that `name` is, or abbreviates.
fn long<'a>(command: &'a Command, name: &OsStr) -> Result<&'a Arg> {
    let longs = || {
        command
            .get_arguments()
            .filter_map(|arg| Some((arg, arg.get_long()?)))
    };
    let Some(name) = name.to_str().filter(|name| !name.is_empty()) else {
        return Err(unknown_long(command, &name.to_string_lossy()));
    };
    if let Some((arg, _)) = longs().find(|(_, long)| *long == name) {
        return Ok(arg);
    }
    for references in [true, false] {
        let found: Vec<_> = longs()
            .filter(|(_, long)| REFERENCE.contains(long) == references && long.starts_with(name))
            .collect();
        match found[..] {
            [] => {}
            [(arg, _)] => return Ok(arg),
            _ => {
                let mut names: Vec<_> = found.iter().map(|(_, l)| format!("`--{l}`")).collect();
                names.sort();
                let last = names.pop().unwrap_or_default();
                return Err(Error::usage(format!(
                    "`--{name}` is ambiguous: {} or {last}",
                    names.join(", ")
                )));
            }
        }
    }
    Err(unknown_long(command, name))
}

fn unknown_long(command: &Command, name: &str) -> Error {
    // clap knows which option is near, but tells only in an error of its own
    let near = command
        .clone()
        .try_get_matches_from(["sc".to_owned(), format!("--{name}")])
        .err()
        .and_then(|error| match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(near)) => Some(near.clone()),
            _ => None,
        });
    Error::Usage {
        problem: format!("no such option: `--{name}`"),
        hint: Some(match near {
            Some(near) => format!("did you mean `{near}`?"),
            None => "`sc --help` lists the options".into(),
        }),
    }
}

fn unknown_short(bundle: &[u8]) -> Error {
    let letter = String::from_utf8_lossy(bundle)
        .chars()
        .next()
        .unwrap_or(char::REPLACEMENT_CHARACTER);
    Error::Usage {
        problem: format!("no such option: `-{letter}`"),
        hint: Some("`sc --help` lists the options".into()),
    }
}

fn needs_value(arg: &Arg, typed: &str) -> Error {
    let value = arg
        .get_value_names()
        .and_then(|names| names.first())
        .map_or("VALUE", |name| name.as_str());
    Error::Usage {
        problem: format!("`{typed}` needs a value"),
        hint: Some(format!("write `{typed} {value}`")),
    }
}
