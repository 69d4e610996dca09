//! What is meant: a [`Request`] in types and base units, made from the words of the command line
//! and of the environment, which is read here and nowhere else.
//!
//! Every usage error of the program is found here, before the disk is touched: nothing in this
//! file opens, looks at or makes a file.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use crate::cli::{self, Generate, Typed};
use crate::console::{Level, ProgressMode};
use crate::error::{Error, Result};
use crate::repository::place::Spec;
use crate::stack::{self, Stack, http};
use crate::units::{self, Bytes};

/// How the environment is looked at; tests bring their own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The reference's defaults.
const FILE: &str = "repofile";
const DIRECTORIES: &str = "/tmp:/var/tmp";

/// The longest name of a file on Linux, in bytes (NAME_MAX).
const NAME_MAX: usize = 255;

/// What stands before the last component of NAME in the name of the control directory.
const CONTROL: &str = ".sc.";

/// The link lock's claim is called `FILE.lock|HOST|PID|RANDOM`: this much of NAME_MAX is for what
/// follows FILE (a host name has at most 64 bytes, the numbers 10 and 19).
const CLAIM: usize = ".lock|||".len() + 64 + 10 + 19;

/// Attempts after a transient failure.
const RETRIES: u32 = 3;

/// An attempt that brings nothing for so long has stalled: longer than a disk that spins up on the
/// server, shorter than a job's owner waits before he calls.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What somebody wants, complete and consistent.
#[derive(Debug)]
pub struct Request {
    pub action: Action,
    pub repository: Spec,
    /// Space the repository needs; 0: not known.
    pub size: Bytes,
    /// Empty: a repository with nothing in it, or (`--unuse`, `--status`) whatever is there.
    pub stacks: Vec<Stack>,
    /// What was ignored, in words for the user.
    pub warnings: Vec<String>,
    pub holder: HolderSpec,
    /// How long to wait for another process: `None` is for ever, zero not at all.
    pub patience: Option<Duration>,
    pub settings: stack::Settings,
    pub level: Level,
    pub progress: ProgressMode,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Any of `--use`, `--unuse`, `--location`, done in this order; none of them is a check of the
    /// words, after which nothing is printed or made.
    InTurn {
        use_: bool,
        unuse: bool,
        location: bool,
    },
    Run(Run),
    Status {
        json: bool,
    },
}

/// `--run`
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// CMD and its arguments: at least one word.
    pub command: Vec<OsString>,
    /// CMD inherits the hold (not `--close`).
    pub inherit: bool,
}

/// Who holds the use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HolderSpec {
    /// Positive; `None`: the parent of this process.
    pub pid: Option<i32>,
    /// Tells several holds of one process apart.
    pub id: Option<String>,
}

/// What the words come to.
#[derive(Debug)]
pub enum Parsed {
    Request(Box<Request>),
    /// To be printed on stdout as it is: help, version, `--generate`.
    Print(String),
}

impl Request {
    /// Reads the command line (without the program's name) and the environment.
    ///
    /// # Errors
    /// [`Error::Usage`] alone: whatever is wrong with a word or a variable.
    pub fn read(words: Vec<OsString>, env: Env) -> Result<Parsed> {
        // an empty variable is an unset one
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let typed = match cli::parse(options(&env)?, words)? {
            cli::Parsed::Print(text) => return Ok(Parsed::Print(text)),
            cli::Parsed::Typed(typed) => *typed,
        };
        if let Some(what) = generated(&typed)? {
            return Ok(Parsed::Print(cli::generate(what)));
        }
        let values = Values { env: &env };
        let action = action(&typed)?;
        let (stacks, warnings) = stack::parse(&typed.modules)?;
        Ok(Parsed::Request(Box::new(Request {
            action,
            repository: Spec {
                directories: directories(
                    &values
                        .get(typed.directories, "--directories", "SC_DIRECTORIES")
                        .map_or_else(|| DIRECTORIES.into(), |given| given.value),
                ),
                name: match values.get(typed.name, "--name", "SC_NAME") {
                    Some(given) => name(&given)?,
                    None => None,
                },
                file: match values.get(typed.file, "--file", "SC_FILE") {
                    Some(given) => file(&given)?,
                    None => FILE.into(),
                },
            },
            size: match values.get(typed.size, "--size", "SC_SIZE") {
                Some(given) => given.read(str::parse, Bytes::FORMS)?,
                None => Bytes(0),
            },
            stacks,
            warnings,
            holder: HolderSpec {
                pid: match values.get(typed.pid, "--pid", "SC_PID") {
                    Some(given) => Some(given.read(pid, "a process id is a positive number")?),
                    None => None,
                },
                id: match values.get(typed.id, "--id", "SC_ID") {
                    Some(given) => id(&given)?,
                    None => None,
                },
            },
            patience: match values.get(typed.timeout, "--timeout", "SC_TIMEOUT") {
                _ if typed.no_wait => Some(Duration::ZERO),
                Some(given) => Some(given.read(units::duration, units::DURATIONS)?),
                None => None,
            },
            settings: stack::Settings {
                retries: match values.get(typed.retries, "--retries", "SC_RETRIES") {
                    Some(given) => given.read(count, "a number of retries is 0, 1, 2, …")?,
                    None => RETRIES,
                },
                stall_timeout: match values.get(
                    typed.stall_timeout,
                    "--stall-timeout",
                    "SC_STALL_TIMEOUT",
                ) {
                    Some(given) => given.read(positive_duration, units::DURATIONS)?,
                    None => STALL_TIMEOUT,
                },
                network: http::Network::from_env(&env),
                dirac_get: env("SC_DIRAC_GET").unwrap_or_else(|| "dirac-dms-get-file".into()),
            },
            level: match (typed.quiet, typed.verbose) {
                (true, _) => Level::Quiet,
                (_, 0) => match values.get(None, "", "SC_LOG") {
                    Some(given) => {
                        given.read(level, "known are `quiet`, `normal`, `verbose`, `debug`")?
                    }
                    None => Level::Normal,
                },
                (_, 1) => Level::Verbose,
                _ => Level::Debug,
            },
            progress: match values.get(typed.progress, "--progress", "SC_PROGRESS") {
                Some(given) => given.read(progress, "known are `auto`, `always`, `never`")?,
                None => ProgressMode::Auto,
            },
        })))
    }
}

/// A value, and the option or variable it comes from.
struct Given {
    value: OsString,
    origin: &'static str,
}

struct Values<'a> {
    env: Env<'a>,
}

impl Values<'_> {
    /// The command line wins.
    fn get(
        &self,
        typed: Option<OsString>,
        option: &'static str,
        variable: &'static str,
    ) -> Option<Given> {
        let from_env = || {
            (self.env)(variable).map(|value| Given {
                value,
                origin: variable,
            })
        };
        typed
            .map(|value| Given {
                value,
                origin: option,
            })
            .or_else(from_env)
    }
}

impl Given {
    fn text(&self) -> std::borrow::Cow<'_, str> {
        self.value.to_string_lossy()
    }

    fn wrong(&self, problem: impl std::fmt::Display, hint: Option<&str>) -> Error {
        Error::Usage {
            problem: format!("`{}`: {problem}", self.origin),
            hint: hint.map(str::to_owned),
        }
    }

    fn read<T>(&self, reader: impl Fn(&str) -> Result<T, String>, forms: &str) -> Result<T> {
        reader(&self.text()).map_err(|problem| self.wrong(problem, Some(forms)))
    }
}

/// The words of `$SC_OPTIONS`.
fn options(env: Env) -> Result<Vec<OsString>> {
    let Some(text) = env("SC_OPTIONS") else {
        return Ok(Vec::new());
    };
    // a NUL cannot come from an environment; shlex would refuse it as well
    shlex::bytes::split(text.as_bytes())
        .map(|words| words.into_iter().map(OsString::from_vec).collect())
        .ok_or_else(|| Error::usage("in `SC_OPTIONS`: a quote is not closed"))
}

/// The actions typed, as options.
fn actions(typed: &Typed) -> Vec<&'static str> {
    [
        ("--use", typed.use_),
        ("--unuse", typed.unuse),
        ("--location", typed.location),
        ("--run", typed.run),
        ("--status", typed.status),
        ("--generate", typed.generate.is_some()),
    ]
    .into_iter()
    .filter_map(|(option, typed)| typed.then_some(option))
    .collect()
}

/// `alone` stands alone: the other action, if there is one, is an error.
fn alone(typed: &Typed, alone: &str, reason: &str) -> Result<()> {
    match actions(typed).into_iter().find(|action| *action != alone) {
        None => Ok(()),
        Some(other) => Err(Error::Usage {
            problem: format!("`{alone}` and `{other}` exclude each other"),
            hint: Some(reason.to_owned()),
        }),
    }
}

fn generated(typed: &Typed) -> Result<Option<Generate>> {
    let Some(value) = &typed.generate else {
        return Ok(None);
    };
    alone(
        typed,
        "--generate",
        "`--generate` prints a text and does nothing else",
    )?;
    let given = Given {
        value: value.clone(),
        origin: "--generate",
    };
    let what = |text: &str| match text {
        "man" => Ok(Generate::Man),
        "bash" => Ok(Generate::Bash),
        "zsh" => Ok(Generate::Zsh),
        "fish" => Ok(Generate::Fish),
        _ => Err(format!("`{text}` is nothing it can print")),
    };
    given
        .read(what, "known are `man`, `bash`, `zsh`, `fish`")
        .map(Some)
}

fn action(typed: &Typed) -> Result<Action> {
    if typed.close && !typed.run {
        return Err(Error::usage("`--close` means nothing without `--run`"));
    }
    if typed.json && !typed.status {
        return Err(Error::usage("`--json` means nothing without `--status`"));
    }
    if typed.run {
        alone(
            typed,
            "--run",
            "`--run` itself uses, tells CMD the place in `SC_LOCATION`, and gives back",
        )?;
        if typed.command.is_empty() {
            return Err(Error::Usage {
                problem: "`--run` needs a command after `--`".into(),
                hint: Some("write `sc --run [OPTION]... [MODULE]... -- CMD [ARG]...`".into()),
            });
        }
        return Ok(Action::Run(Run {
            command: typed.command.clone(),
            inherit: !typed.close,
        }));
    }
    if typed.status {
        alone(
            typed,
            "--status",
            "ask for the status in a command of its own",
        )?;
        return Ok(Action::Status { json: typed.json });
    }
    Ok(Action::InTurn {
        use_: typed.use_,
        unuse: typed.unuse,
        location: typed.location,
    })
}

/// Splits at every `:`; there is no escape, and an empty element is the current directory.
fn directories(list: &OsStr) -> Vec<PathBuf> {
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
fn name(given: &Given) -> Result<Option<PathBuf>> {
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
fn file(given: &Given) -> Result<PathBuf> {
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

/// TEXT of `--id`: an empty one is none.
fn id(given: &Given) -> Result<Option<String>> {
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

fn pid(text: &str) -> Result<i32, String> {
    digits(text)
        .and_then(|digits| digits.parse().ok())
        .filter(|pid| *pid > 0)
        .ok_or_else(|| format!("`{text}` is not a process id"))
}

fn count(text: &str) -> Result<u32, String> {
    digits(text)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("`{text}` is not a number of retries"))
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        Duration::ZERO => Err(format!("`{text}` would end every attempt at once")),
        duration => Ok(duration),
    }
}

fn level(text: &str) -> Result<Level, String> {
    match text {
        "quiet" => Ok(Level::Quiet),
        "normal" => Ok(Level::Normal),
        "verbose" => Ok(Level::Verbose),
        "debug" => Ok(Level::Debug),
        _ => Err(format!("`{text}` is not a level of detail")),
    }
}

fn progress(text: &str) -> Result<ProgressMode, String> {
    match text {
        "auto" => Ok(ProgressMode::Auto),
        "always" => Ok(ProgressMode::Always),
        "never" => Ok(ProgressMode::Never),
        _ => Err(format!("`{text}` is not a way to show progress")),
    }
}
