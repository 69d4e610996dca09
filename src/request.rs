//! What is meant: a [`Request`] in types and base units, made from the words of the command line
//! and of the environment, which is read here and nowhere else.
//!
//! Every usage error of the program is found here, before the disk is touched: nothing in this
//! directory opens, looks at or makes a file.

mod action;
mod given;
mod holder;
#[cfg(test)]
mod tests;
mod value;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use crate::cli;
use crate::conf::Conf;
use crate::console::{Level, ProgressMode};
use crate::error::{Error, Result};
use crate::origin::Origin;
use crate::repository::place::Spec;
use crate::repository::space::{MinFree, Need};
use crate::share::Kind;
use crate::stack::{self, Module, Stack, http};
use crate::units::{self, Bytes};

/// How the environment is looked at; tests bring their own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The reference's defaults.
const FILE: &str = "repofile";
const DIRECTORIES: &str = "/tmp:/var/tmp";

/// The DIRAC client.
const DIRAC_GET: &str = "dirac-dms-get-file";

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
    pub need: Need,
    pub terms: Terms,
    /// Cap on what is kept in each base directory.
    pub max_size: Option<Bytes>,
    /// Empty: a repository with nothing in it, or (`--unuse`, `--status`) whatever is there.
    pub stacks: Vec<Stack>,
    /// What was ignored, in words for the user.
    pub warnings: Vec<String>,
    pub holder: HolderSpec,
    /// What the batch systems call the job we are part of.
    pub jobs: Vec<String>,
    /// Nobody shall write to what is loaded.
    pub read_only: bool,
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
    Doctor(Doctor),
    List {
        json: bool,
    },
    Stats(Form),
    Verify(Verify),
    Gc(Gc),
    Clear {
        dry_run: bool,
        force: bool,
    },
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
    /// Prometheus' text format.
    Prometheus,
}

/// `--verify`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verify {
    pub json: bool,
    /// Read every file.
    pub paranoid: bool,
    /// Load anew what differs.
    pub repair: bool,
}

/// `--gc`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gc {
    pub dry_run: bool,
    pub older_than: Option<Duration>,
    pub free: Option<Bytes>,
}

/// How long the data are good, and how long they stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// In whole seconds; what was not said is not changed.
    pub keep_s: Option<u64>,
    pub expires: Option<Expires>,
    pub refresh: bool,
}

/// `--expires`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expires {
    /// So many seconds after the data were loaded.
    After(u64),
    /// In seconds since 1970.
    At(u64),
}

impl Expires {
    /// In seconds since 1970, for data that were loaded then.
    pub fn at(self, loaded_unix_s: u64) -> u64 {
        match self {
            Expires::After(seconds) => loaded_unix_s.saturating_add(seconds),
            Expires::At(time) => time,
        }
    }
}

/// `--doctor`
#[derive(Debug, PartialEq, Eq)]
pub struct Doctor {
    pub json: bool,
    pub settings: Vec<Setting>,
}

/// A value in effect.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    pub variable: String,
    /// `None`: there is no default either.
    pub value: Option<String>,
    pub origin: Origin,
}

/// `--run`
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// CMD and its arguments: at least one word.
    pub command: Vec<OsString>,
    /// CMD inherits the hold (not `--close`).
    pub inherit: bool,
}

/// What several stacks bring, and the repofile, stand in one directory: no two may have one name.
fn names(stacks: &[Stack], file: &Path) -> Result<()> {
    let mut taken: Vec<(OsString, String)> = Vec::new();
    let mut take = |name: OsString, whose: String| match taken.iter().find(|(n, _)| *n == name) {
        Some((_, other)) => Err(Error::Usage {
            problem: format!(
                "{whose} and {other} would both be called `{}`",
                name.display()
            ),
            hint: Some("load them into repositories of their own, with other `--name`s".into()),
        }),
        None => {
            taken.push((name, whose));
            Ok(())
        }
    };
    if !file.is_absolute() {
        let lock = suffixed(file.as_os_str(), ".lock");
        take(file.into(), "the repofile (`--file`)".into())?;
        take(lock, "the repofile's lock".into())?;
    }
    for stack in stacks {
        let loader = stack.loader();
        let Some((loader, name)) = loader.and_then(|l| Some((l, l.file_name()?))) else {
            continue;
        };
        take(name.to_owned(), format!("the file of `{loader}`"))?;
        if stack
            .modules
            .iter()
            .any(|module| matches!(module, Module::Tar(_)))
        {
            let list = suffixed(name, ".list");
            take(list, format!("the list of members of `{loader}`"))?;
        }
    }
    Ok(())
}

fn suffixed(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}

/// Who holds the use, and for how long at the most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HolderSpec {
    pub who: Who,
    /// Tells several holds of one process apart.
    pub id: Option<String>,
    pub lease_s: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Who {
    /// The parent of this process.
    #[default]
    Parent,
    /// Positive.
    Process(i32),
    /// Whoever keeps this descriptor open.
    Descriptor(i32),
    /// The batch job we are in; what the batch system calls it.
    Job(Option<String>),
}

/// What the words come to.
#[derive(Debug)]
pub enum Parsed {
    Request(Box<Request>),
    /// To be printed on stdout as it is: help, version, `--generate`.
    Print(String),
}

impl Request {
    /// Reads the command line (without the program's name), the environment and what is in the
    /// file of the site's defaults.
    ///
    /// # Errors
    /// [`Error::Usage`] alone: whatever is wrong with a word or a variable.
    pub fn read(conf: &Conf, words: Vec<OsString>, env: Env) -> Result<Parsed> {
        // an empty variable is an unset one
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let words = cli::Words {
            conf: conf.words()?,
            before: given::options(&env)?,
            line: words,
        };
        let (typed, given) = match cli::parse(words, &|name| env(name).is_some())? {
            (cli::Parsed::Print(text), _) => return Ok(Parsed::Print(text)),
            (cli::Parsed::Typed(typed), given) => (*typed, given),
        };
        if let Some(what) = action::generated(&typed)? {
            return Ok(Parsed::Print(cli::generate(what)));
        }
        let values = given::Values { env: &env, given };
        let action = action::read(&typed, &values)?;
        let (stacks, mut warnings) = stack::parse(&typed.modules)?;
        warnings.extend(conf.warning.clone());
        let who = holder::who(&values, &typed)?;
        let file = match values.get(typed.file, "--file", "SC_FILE") {
            Some(given) => value::file(&given)?,
            None => FILE.into(),
        };
        names(&stacks, &file)?;
        let name = match values.get(typed.name, "--name", "SC_NAME") {
            Some(given) => value::name(&given)?,
            None => None,
        };
        let share = match values.get(typed.share, "--share", "SC_SHARE") {
            Some(given) => {
                let kind = given.read(str::parse, Kind::FORMS)?;
                let is_use = matches!(action, Action::InTurn { use_: true, .. } | Action::Run(_));
                let problem = match kind {
                    Kind::User => None,
                    _ if !is_use => None,
                    _ if name.is_none() => Some("a directory of its own (`--name`)"),
                    _ if file.is_absolute() => Some("its state file inside (`--file`)"),
                    _ => None,
                };
                if let Some(what) = problem {
                    let word = kind.word();
                    let problem = format!("what is shared (`--share={word}`) needs {what}");
                    return Err(Error::usage(problem));
                }
                Some(kind)
            }
            None => None,
        };
        let need = Need {
            size: match values.get(typed.size, "--size", "SC_SIZE") {
                Some(given) => given.read(str::parse, Bytes::FORMS)?,
                None => Bytes(0),
            },
            min_free: match values.get(typed.min_free, "--min-free", "SC_MIN_FREE") {
                Some(given) => given.read(str::parse, MinFree::FORMS)?,
                None => MinFree::default(),
            },
        };
        Ok(Parsed::Request(Box::new(Request {
            action,
            repository: Spec {
                directories: value::directories(
                    &values
                        .get(typed.directories, "--directories", "SC_DIRECTORIES")
                        .map_or_else(|| DIRECTORIES.into(), |given| given.value),
                ),
                name,
                file,
                allow_network_fs: typed.allow_network_fs
                    || match values.get(None, "", "SC_ALLOW_NETWORK_FS") {
                        Some(given) => given.read(value::flag, "say `1` or `0`")?,
                        None => false,
                    },
                share,
                stats_dir: match values.get(typed.stats_dir.clone(), "--stats-dir", "SC_STATS_DIR")
                {
                    Some(given) => value::stats_dir(&given)?,
                    None => None,
                },
            },
            need,
            terms: Terms {
                keep_s: match values.get(typed.keep, "--keep", "SC_KEEP") {
                    Some(given) => Some(given.read(value::seconds, units::DURATIONS)?),
                    None => None,
                },
                expires: match values.get(typed.expires, "--expires", "SC_EXPIRES") {
                    Some(given) => Some(given.read(value::expires, value::EXPIRES)?),
                    None => None,
                },
                refresh: typed.refresh,
            },
            max_size: match values.get(typed.max_size, "--max-size", "SC_MAX_SIZE") {
                Some(given) => Some(given.read(str::parse, Bytes::FORMS)?),
                None => None,
            },
            stacks,
            warnings,
            holder: HolderSpec {
                who,
                id: match values.get(typed.id, "--id", "SC_ID") {
                    Some(given) => value::id(&given)?,
                    None => None,
                },
                lease_s: match values.get(typed.lease, "--lease", "SC_LEASE") {
                    Some(given) => Some(given.read(value::lease, units::DURATIONS)?),
                    None => None,
                },
            },
            jobs: holder::jobs(&env),
            read_only: values.switch(typed.read_only, "SC_READ_ONLY")?,
            patience: match values.get(typed.timeout, "--timeout", "SC_TIMEOUT") {
                _ if typed.no_wait => Some(Duration::ZERO),
                Some(given) => Some(given.read(units::duration, units::DURATIONS)?),
                None => None,
            },
            settings: stack::Settings {
                size: need.size,
                retries: match values.get(typed.retries, "--retries", "SC_RETRIES") {
                    Some(given) => given.read(value::count, "a number of retries is 0, 1, 2, …")?,
                    None => RETRIES,
                },
                stall_timeout: match values.get(
                    typed.stall_timeout,
                    "--stall-timeout",
                    "SC_STALL_TIMEOUT",
                ) {
                    Some(given) => given.read(value::positive_duration, units::DURATIONS)?,
                    None => STALL_TIMEOUT,
                },
                network: http::Network::from_env(&env),
                dirac_get: env("SC_DIRAC_GET").unwrap_or_else(|| DIRAC_GET.into()),
            },
            level: match (typed.quiet, typed.verbose) {
                (true, _) => Level::Quiet,
                (_, 0) => match values.get(None, "", "SC_LOG") {
                    Some(given) => given.read(
                        value::level,
                        "known are `quiet`, `normal`, `verbose`, `debug`",
                    )?,
                    None => Level::Normal,
                },
                (_, 1) => Level::Verbose,
                _ => Level::Debug,
            },
            progress: match values.get(typed.progress, "--progress", "SC_PROGRESS") {
                Some(given) => {
                    given.read(value::progress, "known are `auto`, `always`, `never`")?
                }
                None => ProgressMode::Auto,
            },
        })))
    }
}
