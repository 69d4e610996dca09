//! What almost every job types, read without clap.
//!
//! To build clap's command, some fifty options with all their help, and to have it parse, takes
//! as long as all the rest of a warm `--use`. So the words of ordinary command lines are looked
//! for in a small table first. One word that does not stand in it, spelled out, and clap reads
//! them all: it alone knows abbreviations, bundles, help and what is wrong. So this can say less
//! than clap, but never anything else, and a test compares the two.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::{Given, Typed};
use crate::origin::Origin;

/// An option as jobs type it.
struct Plain {
    long: &'static str,
    letter: Option<u8>,
    variable: Option<&'static str>,
    place: fn(&mut Typed) -> Place,
}

/// Where in [`Typed`] it is noted.
enum Place<'t> {
    Flag(&'t mut bool),
    Value(&'t mut Option<OsString>),
}

impl Plain {
    const fn flag(long: &'static str, place: fn(&mut Typed) -> Place) -> Plain {
        Plain {
            long,
            letter: None,
            variable: None,
            place,
        }
    }

    const fn value(
        long: &'static str,
        letter: Option<u8>,
        variable: &'static str,
        place: fn(&mut Typed) -> Place,
    ) -> Plain {
        Plain {
            long,
            letter,
            variable: Some(variable),
            place,
        }
    }
}

/// Options that no other one overrides.
const PLAIN: [Plain; 13] = [
    Plain::flag("use", |typed| Place::Flag(&mut typed.use_)),
    Plain::flag("unuse", |typed| Place::Flag(&mut typed.unuse)),
    Plain::flag("location", |typed| Place::Flag(&mut typed.location)),
    Plain {
        long: "quiet",
        letter: Some(b'q'),
        variable: Some("SC_LOG"),
        place: |typed| Place::Flag(&mut typed.quiet),
    },
    Plain::value("file", Some(b'f'), "SC_FILE", |typed| {
        Place::Value(&mut typed.file)
    }),
    Plain::value("directories", Some(b'd'), "SC_DIRECTORIES", |typed| {
        Place::Value(&mut typed.directories)
    }),
    Plain::value("size", Some(b's'), "SC_SIZE", |typed| {
        Place::Value(&mut typed.size)
    }),
    Plain::value("name", Some(b'n'), "SC_NAME", |typed| {
        Place::Value(&mut typed.name)
    }),
    Plain::value("share", None, "SC_SHARE", |typed| {
        Place::Value(&mut typed.share)
    }),
    Plain::value("keep", None, "SC_KEEP", |typed| {
        Place::Value(&mut typed.keep)
    }),
    Plain::value("pid", None, "SC_PID", |typed| Place::Value(&mut typed.pid)),
    Plain::value("id", None, "SC_ID", |typed| Place::Value(&mut typed.id)),
    Plain::value("lease", None, "SC_LEASE", |typed| {
        Place::Value(&mut typed.lease)
    }),
];

/// Reads the words of a command line, if all of them are plain.
pub(super) fn read(words: &[OsString]) -> Option<(Typed, Vec<Given>)> {
    let mut typed = Typed::default();
    let mut given = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(rest) = word.as_bytes().strip_prefix(b"-") else {
            typed.modules.push(word.clone());
            continue;
        };
        // the option, and the value that stands in the same word
        let (option, value) = match rest.strip_prefix(b"-") {
            Some(long) => {
                let mut parts = long.splitn(2, |&byte| byte == b'=');
                let name = parts.next()?;
                let is_it = |option: &&Plain| option.long.as_bytes() == name;
                (PLAIN.iter().find(is_it)?, parts.next())
            }
            None => {
                let (letter, value) = rest.split_first()?;
                let is_it = |option: &&Plain| option.letter == Some(*letter);
                let value = (!value.is_empty()).then_some(value);
                (PLAIN.iter().find(is_it)?, value)
            }
        };
        let value = match (option.place)(&mut typed) {
            Place::Flag(_) if value.is_some() => return None,
            Place::Flag(flag) => {
                *flag = true;
                None
            }
            Place::Value(place) => {
                let value = match value {
                    Some(value) => OsStr::from_bytes(value).to_owned(),
                    None => words.next()?.clone(),
                };
                *place = Some(value.clone());
                Some(value)
            }
        };
        if let Some(variable) = option.variable {
            given.push(Given {
                variable: variable.into(),
                option: format!("--{}", option.long),
                value,
                origin: Origin::CommandLine,
            });
        }
    }
    Some((typed, given))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Parsed, Words, parse_with_clap};
    use super::*;

    fn by_clap(line: Vec<OsString>) -> (Typed, Vec<Given>) {
        let words = Words {
            line,
            ..Words::default()
        };
        match parse_with_clap(words, &|_| false) {
            Ok((Parsed::Typed(typed), given)) => (*typed, given),
            other => panic!("plain, but not for clap: {other:?}"),
        }
    }

    #[test]
    fn what_the_documented_jobs_type_is_plain() {
        for line in [
            "--use --name=t --size=10GB http://h/f.tar.gz md5:00 tar",
            "--unuse -n t -d/tmp:/var/tmp --pid 1",
            "--location --name t",
            "--use -q --name t --quiet",
            "--use --keep 2h --id=a --lease 1d -f state -s 1 dummy",
        ] {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            let read = read(&words);
            assert_eq!(read, Some(by_clap(words)), "{line}");
        }
    }

    #[test]
    fn what_only_clap_understands_is_left_to_it() {
        for line in [
            "--nam t", "--use=1", "-n", "--name", "-", "--", "-nq -v", "--help", "-qn x", "--run",
        ] {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            assert_eq!(read(&words), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_read_otherwise_than_by_clap(words in words()) {
            if let Some(read) = read(&words) {
                prop_assert_eq!(read, by_clap(words));
            }
        }
    }

    fn words() -> impl Strategy<Value = Vec<OsString>> {
        let mut known: Vec<String> = ["", "tar", "=", "--x", "-n=", "-nx", "-d-", "a=b", "-f--"]
            .map(String::from)
            .into();
        for option in &PLAIN {
            known.push(format!("--{}", option.long));
            known.push(format!("--{}=", option.long));
            known.push(format!("--{}=v=w", option.long));
            known.extend(
                option
                    .letter
                    .map(|letter| format!("-{}", char::from(letter))),
            );
        }
        let word = prop_oneof![
            8 => prop::sample::select(known).prop_map(OsString::from),
            1 => prop::collection::vec(1u8..=255, 0..8)
                .prop_map(|bytes| OsStr::from_bytes(&bytes).to_owned()),
        ];
        prop::collection::vec(word, 0..6)
    }
}
