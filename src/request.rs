//! What is meant: a [`Request`] in types and base units, made from the words of the command line
//! and of the environment, which is read here and nowhere else.
//!
//! Every usage error of the program is found here, before the disk is touched: nothing in this
//! file opens, looks at or makes a file.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::{self, Generate, Typed};
use crate::conf::Conf;
use crate::console::{Level, ProgressMode};
use crate::error::{Error, Result};
use crate::origin::Origin;
use crate::process;
use crate::repository::past::StatsDir;
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

/// The longest name of a file on Linux, in bytes (NAME_MAX).
const NAME_MAX: usize = 255;

/// What stands before the last component of NAME in the name of the control directory.
const CONTROL: &str = ".sc.";

/// The link lock's claim is called `FILE.lock|HOST|PID|RANDOM`: this much of NAME_MAX is for what
/// follows FILE (a host name has at most 64 bytes, the numbers 10 and 19).
const CLAIM: usize = ".lock|||".len() + 64 + 10 + 19;

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
            before: options(&env)?,
            line: words,
        };
        let (typed, given) = match cli::parse(words, &|name| env(name).is_some())? {
            (cli::Parsed::Print(text), _) => return Ok(Parsed::Print(text)),
            (cli::Parsed::Typed(typed), given) => (*typed, given),
        };
        if let Some(what) = generated(&typed)? {
            return Ok(Parsed::Print(cli::generate(what)));
        }
        let values = Values { env: &env, given };
        let action = action(&typed, &values)?;
        let (stacks, mut warnings) = stack::parse(&typed.modules)?;
        warnings.extend(conf.warning.clone());
        let who = who(&values, &typed)?;
        let file = match values.get(typed.file, "--file", "SC_FILE") {
            Some(given) => file(&given)?,
            None => FILE.into(),
        };
        names(&stacks, &file)?;
        let name = match values.get(typed.name, "--name", "SC_NAME") {
            Some(given) => name(&given)?,
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
                directories: directories(
                    &values
                        .get(typed.directories, "--directories", "SC_DIRECTORIES")
                        .map_or_else(|| DIRECTORIES.into(), |given| given.value),
                ),
                name,
                file,
                allow_network_fs: typed.allow_network_fs
                    || match values.get(None, "", "SC_ALLOW_NETWORK_FS") {
                        Some(given) => given.read(flag, "say `1` or `0`")?,
                        None => false,
                    },
                share,
                stats_dir: match values.get(typed.stats_dir.clone(), "--stats-dir", "SC_STATS_DIR")
                {
                    Some(given) => stats_dir(&given)?,
                    None => None,
                },
            },
            need,
            terms: Terms {
                keep_s: match values.get(typed.keep, "--keep", "SC_KEEP") {
                    Some(given) => Some(given.read(seconds, units::DURATIONS)?),
                    None => None,
                },
                expires: match values.get(typed.expires, "--expires", "SC_EXPIRES") {
                    Some(given) => Some(given.read(expires, EXPIRES)?),
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
                    Some(given) => id(&given)?,
                    None => None,
                },
                lease_s: match values.get(typed.lease, "--lease", "SC_LEASE") {
                    Some(given) => Some(given.read(lease, units::DURATIONS)?),
                    None => None,
                },
            },
            jobs: jobs(&env),
            read_only: values.switch(typed.read_only, "SC_READ_ONLY")?,
            patience: match values.get(typed.timeout, "--timeout", "SC_TIMEOUT") {
                _ if typed.no_wait => Some(Duration::ZERO),
                Some(given) => Some(given.read(units::duration, units::DURATIONS)?),
                None => None,
            },
            settings: stack::Settings {
                size: need.size,
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
                dirac_get: env("SC_DIRAC_GET").unwrap_or_else(|| DIRAC_GET.into()),
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

/// A value, the option or variable that has it, and where that was written.
struct Given {
    value: OsString,
    name: &'static str,
    origin: Origin,
}

struct Values<'a> {
    env: Env<'a>,
    given: Vec<cli::Given>,
}

impl Values<'_> {
    /// The command line wins.
    fn get(
        &self,
        typed: Option<OsString>,
        option: &'static str,
        variable: &'static str,
    ) -> Option<Given> {
        match typed {
            Some(value) => {
                let given = self.given.iter().rfind(|given| given.option == option);
                Some(Given {
                    value,
                    name: option,
                    origin: given.map_or(Origin::CommandLine, |given| given.origin.clone()),
                })
            }
            None => (self.env)(variable).map(|value| Given {
                value,
                name: variable,
                origin: Origin::Variable(variable.into()),
            }),
        }
    }

    /// An option without a value, and its variable, which is 1 or 0.
    fn switch(&self, typed: bool, variable: &'static str) -> Result<bool> {
        let on = |text: &str| match text {
            "1" => Ok(true),
            "0" => Ok(false),
            _ => Err(format!("`{text}` is neither yes nor no")),
        };
        match self.get(None, "", variable) {
            Some(given) if !typed => given.read(on, "1 is yes, 0 is no"),
            _ => Ok(typed),
        }
    }
}

impl Given {
    fn text(&self) -> std::borrow::Cow<'_, str> {
        self.value.to_string_lossy()
    }

    fn wrong(&self, problem: impl std::fmt::Display, hint: Option<&str>) -> Error {
        self.origin.named(Error::Usage {
            problem: format!("`{}`: {problem}", self.name),
            hint: hint.map(str::to_owned),
        })
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
        .ok_or_else(|| Origin::Options.named(Error::usage("a quote is not closed")))
}

/// The actions typed, as options.
fn actions(typed: &Typed) -> Vec<&'static str> {
    [
        ("--use", typed.use_),
        ("--unuse", typed.unuse),
        ("--location", typed.location),
        ("--run", typed.run),
        ("--status", typed.status),
        ("--list", typed.list),
        ("--stats", typed.stats),
        ("--verify", typed.verify),
        ("--gc", typed.gc),
        ("--clear", typed.clear),
        ("--doctor", typed.doctor),
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
        name: "--generate",
        origin: Origin::CommandLine,
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

fn action(typed: &Typed, values: &Values) -> Result<Action> {
    if typed.close && !typed.run {
        return Err(Error::usage("`--close` means nothing without `--run`"));
    }
    for (option, given, actions) in [
        (
            "--json",
            typed.json,
            &["--status", "--list", "--stats", "--verify", "--doctor"][..],
        ),
        ("--prometheus", typed.prometheus, &["--stats"]),
        ("--paranoid", typed.paranoid, &["--verify"]),
        ("--repair", typed.repair, &["--verify"]),
        ("--dry-run", typed.dry_run, &["--gc", "--clear"]),
        ("--force", typed.force, &["--clear"]),
        ("--older-than", typed.older_than.is_some(), &["--gc"]),
        ("--free", typed.free.is_some(), &["--gc"]),
        ("--refresh", typed.refresh, &["--use", "--run"]),
    ] {
        let is_used = self::actions(typed).iter().any(|a| actions.contains(a));
        if given && !is_used {
            let without: Vec<String> = actions.iter().map(|a| format!("`{a}`")).collect();
            return Err(Error::usage(format!(
                "`{option}` means nothing without {}",
                without.join(" or ")
            )));
        }
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
    if typed.list {
        alone(typed, "--list", "ask for the list in a command of its own")?;
        return Ok(Action::List { json: typed.json });
    }
    if typed.stats {
        alone(typed, "--stats", "ask for them in a command of their own")?;
        let form = match (typed.json, typed.prometheus) {
            (true, true) => {
                return Err(Error::usage(
                    "`--json` and `--prometheus` exclude each other",
                ));
            }
            (true, false) => Form::Json,
            (false, true) => Form::Prometheus,
            (false, false) => Form::Text,
        };
        return Ok(Action::Stats(form));
    }
    if typed.verify {
        alone(
            typed,
            "--verify",
            "verify the repository in a command of its own",
        )?;
        if typed.repair && typed.modules.is_empty() {
            return Err(Error::Usage {
                problem: "`--repair` needs the modules, to load by".into(),
                hint: Some("say them as `--use` was told them".into()),
            });
        }
        return Ok(Action::Verify(Verify {
            json: typed.json,
            paranoid: typed.paranoid,
            repair: typed.repair,
        }));
    }
    if typed.gc {
        alone(typed, "--gc", "`--gc` is not about one repository")?;
        return Ok(Action::Gc(Gc {
            dry_run: typed.dry_run,
            older_than: match values.get(typed.older_than.clone(), "--older-than", "") {
                Some(given) => Some(given.read(units::duration, units::DURATIONS)?),
                None => None,
            },
            free: match values.get(typed.free.clone(), "--free", "") {
                Some(given) => Some(given.read(str::parse, Bytes::FORMS)?),
                None => None,
            },
        }));
    }
    if typed.clear {
        alone(typed, "--clear", "`--clear` deletes, and does nothing else")?;
        return Ok(Action::Clear {
            dry_run: typed.dry_run,
            force: typed.force,
        });
    }
    if typed.doctor {
        alone(typed, "--doctor", "ask the doctor in a command of its own")?;
        return Ok(Action::Doctor(Doctor {
            json: typed.json,
            settings: settings(values),
        }));
    }
    Ok(Action::InTurn {
        use_: typed.use_,
        unuse: typed.unuse,
        location: typed.location,
    })
}

/// Every setting that has a variable: said by whom, or the default.
fn settings(values: &Values) -> Vec<Setting> {
    let mut variables = cli::variables();
    variables.push(("SC_DIRAC_GET".into(), Some(DIRAC_GET.into())));
    let settings = variables.into_iter().map(|(variable, default)| {
        let given = values
            .given
            .iter()
            .rfind(|given| given.variable == variable);
        let (value, origin) = match (given, (values.env)(&variable)) {
            (Some(given), _) => {
                let option = || given.option.clone().into();
                let value = given.value.clone().unwrap_or_else(option);
                (Some(value), given.origin.clone())
            }
            (None, Some(value)) => (Some(value), Origin::Variable(variable.clone())),
            (None, None) => (default.map(OsString::from), Origin::Default),
        };
        Setting {
            variable,
            value: value.map(|value| value.to_string_lossy().into_owned()),
            origin,
        }
    });
    settings.collect()
}

/// Job ids, as they stand in the names of what a batch system makes for a job.
fn jobs(env: Env) -> Vec<String> {
    let ids = JOB_IDS.into_iter();
    let ids = ids.filter_map(|name| env(name)?.into_string().ok());
    // PBS adds the server: 4711.server
    ids.filter_map(|id| id.split('.').next().map(str::to_owned))
        .filter(|id| !id.is_empty())
        .collect()
}

/// Variables in which batch systems tell the name of the job: Slurm, PBS, LSF, OAR, Flux, Cobalt,
/// Grid Engine.
const JOB_IDS: [&str; 7] = [
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
    "OAR_JOB_ID",
    "FLUX_JOB_ID",
    "COBALT_JOBID",
    "JOB_ID",
];

/// One who was named on the command line counts before one of the environment.
fn who(values: &Values, typed: &Typed) -> Result<Who> {
    let named: Vec<&str> = [
        ("--pid", typed.pid.is_some()),
        ("--fd", typed.fd.is_some()),
        ("--job", typed.job),
    ]
    .into_iter()
    .filter_map(|(option, is_typed)| is_typed.then_some(option))
    .collect();
    match named[..] {
        [one, other, ..] => {
            return Err(Error::usage(format!(
                "`{one}` and `{other}` exclude each other: a use has one holder"
            )));
        }
        [one @ ("--fd" | "--job")] if typed.run => {
            return Err(Error::Usage {
                problem: format!("`{one}` means nothing with `--run`"),
                hint: Some("there CMD holds the use".into()),
            });
        }
        _ => {}
    }
    let job = || {
        let ids = JOB_IDS.into_iter().filter_map(|name| (values.env)(name));
        let mut ids = ids.filter_map(|id| id.into_string().ok());
        Ok(Who::Job(ids.find(|id| !id.chars().any(char::is_control))))
    };
    let of_pid = |given: Given| {
        let pid = given.read(pid, "a process id is a positive number")?;
        Ok(Who::Process(pid))
    };
    let value = |value: &Option<OsString>, option| values.get(value.clone(), option, "");
    if let Some(given) = value(&typed.fd, "--fd") {
        let forms = "a descriptor is a number: with `exec 9>>FILE` it is 9";
        return given.read(descriptor, forms).map(Who::Descriptor);
    }
    if typed.job {
        return job();
    }
    if let Some(given) = value(&typed.pid, "--pid") {
        return of_pid(given);
    }
    match (
        values.get(None, "", "SC_PID"),
        values.switch(false, "SC_JOB")?,
    ) {
        (Some(given), false) => of_pid(given),
        (Some(_), true) => Err(Error::usage(
            "`SC_PID` and `SC_JOB` exclude each other: a use has one holder",
        )),
        (None, true) => job(),
        (None, false) => Ok(Who::Parent),
    }
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

/// DIR of `--stats-dir`: an empty one is none. It is the same for all, wherever they are.
fn stats_dir(given: &Given) -> Result<Option<StatsDir>> {
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

fn descriptor(text: &str) -> Result<i32, String> {
    digits(text)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("`{text}` is not a descriptor"))
}

fn lease(text: &str) -> Result<u64, String> {
    match seconds(text)? {
        0 => Err(format!("`{text}` would end the hold at once")),
        seconds => Ok(seconds),
    }
}

fn count(text: &str) -> Result<u32, String> {
    digits(text)
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("`{text}` is not a number of retries"))
}

/// Whole seconds, rounded up: what is kept at all is kept for one.
fn seconds(text: &str) -> Result<u64, String> {
    let duration = units::duration(text)?;
    Ok(duration.as_secs() + u64::from(duration.subsec_nanos() > 0))
}

const EXPIRES: &str = "it is a duration (`90s`, `30m`, `12h`, `7d`), or a time such as \
     `2026-12-24T18:00:00Z`";

/// A time that has passed is an error: everything would be loaded anew, again and again.
fn expires(text: &str) -> Result<Expires, String> {
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

fn positive_duration(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        Duration::ZERO => Err(format!("`{text}` would end every attempt at once")),
        duration => Ok(duration),
    }
}

/// A variable that stands for an option without a value.
fn flag(text: &str) -> Result<bool, String> {
    match text {
        "1" | "yes" | "true" => Ok(true),
        "0" | "no" | "false" => Ok(false),
        _ => Err(format!("`{text}` is neither yes nor no")),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::repository::Repository;

    fn os(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn read(words: &[&str], env: &[(&str, &str)]) -> Result<Parsed> {
        Request::read(&Conf::default(), os(words), &|name| {
            env.iter()
                .find(|(variable, _)| *variable == name)
                .map(|(_, value)| value.into())
        })
    }

    fn request(words: &[&str], env: &[(&str, &str)]) -> Request {
        match read(words, env) {
            Ok(Parsed::Request(request)) => *request,
            other => panic!("{words:?} {env:?}: {other:?}"),
        }
    }

    fn problem(words: &[&str], env: &[(&str, &str)]) -> String {
        match read(words, env) {
            Err(error @ Error::Usage { .. }) => error.to_string(),
            other => panic!("{words:?} {env:?}: {other:?}"),
        }
    }

    #[test]
    fn two_files_of_one_name_are_a_usage_error() {
        for words in [
            &["http://h/repofile"][..],
            &["file:/x/repofile.lock"],
            &["http://h/a/f", "http://h/b/f"],
            &["http://h/f", "tar", "file:/x/f.list"],
        ] {
            let read = Request::read(
                &Conf::default(),
                words.iter().map(OsString::from).collect(),
                &|_| None,
            );
            let error = read.expect_err("one name twice").to_string();
            assert!(error.contains("would both be called"), "{words:?}: {error}");
        }
        let words = ["--file=state", "http://h/repofile"]
            .map(OsString::from)
            .to_vec();
        assert!(Request::read(&Conf::default(), words, &|_| None).is_ok());
    }

    #[test]
    fn nothing_typed_is_the_reference_with_its_defaults() {
        let request = request(&[], &[]);
        assert_eq!(
            request.action,
            Action::InTurn {
                use_: false,
                unuse: false,
                location: false
            }
        );
        assert_eq!(
            request.repository,
            Spec {
                directories: vec!["/tmp".into(), "/var/tmp".into()],
                name: None,
                file: "repofile".into(),
                allow_network_fs: false,
                share: None,
                stats_dir: None,
            }
        );
        assert_eq!(request.need, Need::default());
        assert_eq!(request.settings.size, Bytes(0));
        assert!(request.stacks.is_empty() && request.warnings.is_empty());
        assert_eq!(request.holder, HolderSpec::default());
        assert_eq!(request.patience, None);
        assert_eq!(request.settings.retries, 3);
        assert_eq!(request.settings.stall_timeout, Duration::from_secs(60));
        assert_eq!(request.settings.dirac_get, "dirac-dms-get-file");
        assert_eq!(request.level, Level::Normal);
        assert_eq!(request.progress, ProgressMode::Auto);
    }

    #[test]
    fn each_variable_stands_for_its_option() {
        let env = [
            ("SC_FILE", "state"),
            ("SC_DIRECTORIES", "/a::b/"),
            ("SC_SIZE", "10GB"),
            ("SC_NAME", "n/m"),
            ("SC_PID", "42"),
            ("SC_ID", "job 7"),
            ("SC_TIMEOUT", "0.5"),
            ("SC_RETRIES", "0"),
            ("SC_STALL_TIMEOUT", "2m"),
            ("SC_LOG", "debug"),
            ("SC_PROGRESS", "never"),
            ("SC_ALLOW_NETWORK_FS", "1"),
            ("SC_STATS_DIR", "/var/lib//sc/"),
            ("SC_DIRAC_GET", "/opt/get"),
            ("SC_SHARE", "group"),
        ];
        let by_env = request(&["--use"], &env);
        let by_words = request(
            &[
                "--use",
                "-f",
                "state",
                "-d/a::b/",
                "-s10GB",
                "-nn/m",
                "--pid=42",
                "--id=job 7",
                "--timeout=0.5",
                "--retries=0",
                "--stall-timeout=2m",
                "--allow-network-fs",
                "--share=group",
                "--stats-dir=/var/lib//sc/",
                "-vv",
                "--progress=never",
            ],
            &[("SC_DIRAC_GET", "/opt/get")],
        );
        assert_eq!(format!("{by_env:?}"), format!("{by_words:?}"));
        assert_eq!(
            by_env.repository,
            Spec {
                directories: vec!["/a".into(), ".".into(), "b".into()],
                name: Some("n/m".into()),
                file: "state".into(),
                allow_network_fs: true,
                share: Some(Kind::Group),
                stats_dir: Some(StatsDir::new("/var/lib/sc".into())),
            }
        );
        assert_eq!(by_env.need.size, Bytes(10_000_000_000));
        assert_eq!(by_env.settings.size, Bytes(10_000_000_000));
        assert_eq!(by_env.holder.who, Who::Process(42));
        assert_eq!(by_env.holder.id.as_deref(), Some("job 7"));
        assert_eq!(by_env.patience, Some(Duration::from_millis(500)));
        assert_eq!(by_env.settings.retries, 0);
        assert_eq!(by_env.settings.stall_timeout, Duration::from_secs(120));
        assert_eq!(by_env.settings.dirac_get, "/opt/get");
        assert_eq!(by_env.level, Level::Debug);
        assert_eq!(by_env.progress, ProgressMode::Never);
    }

    #[test]
    fn the_command_line_wins_over_sc_options_and_these_over_the_variables() {
        let env = [("SC_NAME", "env"), ("SC_OPTIONS", "-n 'op tions' dummy")];
        let name = |words: &[&str], env: &[(&str, &str)]| request(words, env).repository.name;
        assert_eq!(name(&["--name=line"], &env), Some("line".into()));
        assert_eq!(name(&[], &env), Some("op tions".into()));
        assert_eq!(name(&[], &env[..1]), Some("env".into()));
        // typed, an empty name is no name
        assert_eq!(name(&["-n", ""], &env), None);
        assert_eq!(request(&["dummy"], &env).stacks[0].modules.len(), 2);
        assert_eq!(request(&["-q"], &[("SC_LOG", "debug")]).level, Level::Quiet);
        assert_eq!(
            request(&["-v"], &[("SC_LOG", "quiet")]).level,
            Level::Verbose
        );
        assert_eq!(
            request(&["--no-wait"], &[("SC_TIMEOUT", "9")]).patience,
            Some(Duration::ZERO)
        );
        assert_eq!(
            request(&["--timeout=9"], &[("SC_OPTIONS", "--no-wait")]).patience,
            Some(Duration::from_secs(9))
        );
    }

    #[test]
    fn an_empty_variable_is_an_unset_one() {
        let names = [
            "SC_FILE",
            "SC_DIRECTORIES",
            "SC_SIZE",
            "SC_NAME",
            "SC_PID",
            "SC_ID",
            "SC_TIMEOUT",
            "SC_RETRIES",
            "SC_STALL_TIMEOUT",
            "SC_LOG",
            "SC_PROGRESS",
            "SC_OPTIONS",
            "SC_DIRAC_GET",
        ];
        let env: Vec<_> = names.iter().map(|name| (*name, "")).collect();
        assert_eq!(
            format!("{:?}", request(&[], &env)),
            format!("{:?}", request(&[], &[]))
        );
    }

    #[test]
    fn the_actions_of_the_reference_may_be_combined() {
        assert_eq!(
            request(&["--location", "--unuse", "--use"], &[]).action,
            Action::InTurn {
                use_: true,
                unuse: true,
                location: true
            }
        );
        assert_eq!(
            request(&["--status", "--json"], &[]).action,
            Action::Status { json: true }
        );
        let run = |words: &[&str]| request(words, &[]).action;
        assert_eq!(
            run(&["--run", "dummy", "--", "ls", "-l"]),
            Action::Run(Run {
                command: os(&["ls", "-l"]),
                inherit: true
            })
        );
        assert_eq!(
            run(&["--close", "--run", "--", "-"]),
            Action::Run(Run {
                command: os(&["-"]),
                inherit: false
            })
        );
    }

    #[test]
    fn names_are_folded() {
        for (typed, meant) in [
            ("", None),
            ("a", Some("a")),
            ("a//b/", Some("a/b")),
            ("./a/./b/.", Some("a/b")),
            ("...", Some("...")),
            ("-x", Some("-x")),
            ("--", Some("--")),
            ("=x", Some("=x")),
            ("a.sc", Some("a.sc")),
        ] {
            assert_eq!(
                request(&["-n", typed], &[]).repository.name,
                meant.map(PathBuf::from),
                "{typed}"
            );
        }
        let longest = "x".repeat(251);
        assert!(request(&["-n", &longest], &[]).repository.name.is_some());
        let nested = format!("{}/x", "x".repeat(255));
        assert!(request(&["-n", &nested], &[]).repository.name.is_some());
    }

    #[test]
    fn a_location_is_spelled_as_the_reference_spells_it() {
        for (directory, name, location) in [
            (".", "r", "r"),
            (".", "", "."),
            ("", "r", "r"),
            ("", "", "."),
            ("/", "r", "/r"),
            ("//x", "r", "//x/r"),
            ("///x//y/../z/.", "a//b/", "/x/z/a/b"),
            ("..", "r", "../r"),
            ("../../a", "", "../../a"),
            ("/..", "r", "/r"),
            ("a/..", "r", "r"),
            ("a/../..", "r", "../r"),
        ] {
            let spec = request(&["-d", directory, "-n", name], &[]).repository;
            assert_eq!(
                Repository::new(&spec.directories[0], &spec)
                    .location()
                    .as_os_str(),
                location,
                "{directory} {name}"
            );
        }
    }

    #[test]
    fn every_wrong_value_is_told_with_its_option() {
        let long = "x".repeat(252);
        let nested = format!("{}/x", "x".repeat(256));
        let too_long = format!("`--name`: `{long}` is too long");
        let too_long_nested = format!("`--name`: `{nested}` is too long");
        for (words, expected) in [
            (&["--size="][..], "`--size`: `` is not a size"),
            (&["-s", "1K"], "`--size`: `1K` is not a size"),
            (&["-s", "--"], "`--size`: `--` is not a size"),
            (
                &["-s", "99999999TB"],
                "`--size`: `99999999TB` is more than 2^64 bytes",
            ),
            (&["-n", "/a"], "`--name`: `/a` is absolute"),
            (
                &["-n", "a/../b"],
                "`--name`: `a/../b` leads out of the base directory",
            ),
            (&["-n", "."], "`--name`: `.` names no directory"),
            (
                &["-n", ".sc"],
                "`--name`: `.sc` has a component that begins `.sc`",
            ),
            (
                &["-n", "a/.scx/b"],
                "`--name`: `a/.scx/b` has a component that begins `.sc`",
            ),
            (&["-n", &long], &too_long),
            (&["-n", &nested], &too_long_nested),
            (&["-f", ""], "`--file`: an empty word names no file"),
            (
                &["-f", "a/b"],
                "`--file`: `a/b` is neither a name nor an absolute path",
            ),
            (
                &["-f", "./a"],
                "`--file`: `./a` is neither a name nor an absolute path",
            ),
            (&["-f", ".."], "`--file`: `..` names no file"),
            (&["-f", "/a/"], "`--file`: `/a/` names no file"),
            (&["-f", ".sc.x"], "`--file`: `.sc.x` begins `.sc`"),
            (
                &["-f", "repofile.lock"],
                "`--file`: `repofile.lock` ends in `.lock`",
            ),
            (&["--pid=0"], "`--pid`: `0` is not a process id"),
            (&["--pid=-1"], "`--pid`: `-1` is not a process id"),
            (&["--pid=+1"], "`--pid`: `+1` is not a process id"),
            (&["--pid=x"], "`--pid`: `x` is not a process id"),
            (
                &["--pid=99999999999"],
                "`--pid`: `99999999999` is not a process id",
            ),
            (&["--id=a\nb"], "`--id`: `a\nb` is no text on one line"),
            (&["--timeout=soon"], "`--timeout`: `soon` is not a duration"),
            (&["--timeout="], "`--timeout`: `` is not a duration"),
            (
                &["--retries=-1"],
                "`--retries`: `-1` is not a number of retries",
            ),
            (
                &["--retries=1.5"],
                "`--retries`: `1.5` is not a number of retries",
            ),
            (
                &["--stall-timeout=0"],
                "`--stall-timeout`: `0` would end every attempt at once",
            ),
            (
                &["--stall-timeout=x"],
                "`--stall-timeout`: `x` is not a duration",
            ),
            (
                &["--progress=x"],
                "`--progress`: `x` is not a way to show progress",
            ),
            (
                &["--generate=x"],
                "`--generate`: `x` is nothing it can print",
            ),
            (
                &["--generate=man", "--use"],
                "`--generate` and `--use` exclude each other",
            ),
            (&["--run", "x"], "`--run` needs a command after `--`"),
            (&["--run", "--"], "`--run` needs a command after `--`"),
            (
                &["--run", "--use", "--", "x"],
                "`--run` and `--use` exclude each other",
            ),
            (
                &["--unuse", "--run", "--", "x"],
                "`--run` and `--unuse` exclude each other",
            ),
            (
                &["--run", "--location", "--", "x"],
                "`--run` and `--location` exclude each other",
            ),
            (
                &["--status", "--run", "--", "x"],
                "`--run` and `--status` exclude each other",
            ),
            (
                &["--status", "--use"],
                "`--status` and `--use` exclude each other",
            ),
            (
                &["--json", "--use"],
                "`--json` means nothing without `--status` or `--list` or `--stats` or `--verify` or `--doctor`",
            ),
            (
                &["--prometheus", "--list"],
                "`--prometheus` means nothing without `--stats`",
            ),
            (
                &["--stats", "--json", "--prometheus"],
                "`--json` and `--prometheus` exclude each other",
            ),
            (
                &["--stats", "--stats-dir=x/y"],
                "`--stats-dir`: `x/y` is no absolute path",
            ),
            (
                &["--close", "--use"],
                "`--close` means nothing without `--run`",
            ),
        ] {
            assert_eq!(problem(words, &[]), expected, "{words:?}");
        }
    }

    #[test]
    fn a_wrong_variable_is_told_by_its_name() {
        for (variable, value, expected) in [
            ("SC_SIZE", "1TBB", "`SC_SIZE`: `1TBB` is not a size"),
            (
                "SC_NAME",
                "..",
                "`SC_NAME`: `..` leads out of the base directory",
            ),
            (
                "SC_FILE",
                "a/b",
                "`SC_FILE`: `a/b` is neither a name nor an absolute path",
            ),
            ("SC_PID", "x", "`SC_PID`: `x` is not a process id"),
            ("SC_TIMEOUT", "x", "`SC_TIMEOUT`: `x` is not a duration"),
            (
                "SC_RETRIES",
                "x",
                "`SC_RETRIES`: `x` is not a number of retries",
            ),
            (
                "SC_STALL_TIMEOUT",
                "x",
                "`SC_STALL_TIMEOUT`: `x` is not a duration",
            ),
            ("SC_LOG", "x", "`SC_LOG`: `x` is not a level of detail"),
            (
                "SC_PROGRESS",
                "x",
                "`SC_PROGRESS`: `x` is not a way to show progress",
            ),
            (
                "SC_OPTIONS",
                "-n 'a",
                "in `SC_OPTIONS`: a quote is not closed",
            ),
            ("SC_OPTIONS", "-n", "in `SC_OPTIONS`: `-n` needs a value"),
        ] {
            assert_eq!(problem(&[], &[(variable, value)]), expected);
            // what is only printed needs none of them
            if variable != "SC_OPTIONS" {
                for words in [&["--help"][..], &["--version"], &["--generate=fish"]] {
                    assert!(matches!(
                        read(words, &[(variable, value)]),
                        Ok(Parsed::Print(_))
                    ));
                }
            }
        }
    }

    #[test]
    fn sc_options_are_split_as_a_shell_splits() {
        let name = |options: &str| request(&[], &[("SC_OPTIONS", options)]).repository.name;
        for (options, meant) in [
            ("-n 'a b'", "a b"),
            ("--name=\"a\\\"b\"", "a\"b"),
            ("  -n\ta\\ b\n", "a b"),
            ("-n a'b'\"c\"", "abc"),
            ("-n a # -n b", "a"),
        ] {
            assert_eq!(name(options), Some(meant.into()), "{options}");
        }
        let raw = OsString::from_vec(b"-n '\xff'".to_vec());
        match Request::read(&Conf::default(), Vec::new(), &|name| {
            (name == "SC_OPTIONS").then(|| raw.clone())
        }) {
            Ok(Parsed::Request(request)) => assert_eq!(
                request.repository.name,
                Some(OsString::from_vec(b"\xff".to_vec()).into())
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn modules_are_checked_without_an_action() {
        assert!(problem(&["tar"], &[]).contains("no loader below it"));
        assert!(problem(&["nonsense"], &[]).contains("unknown module"));
        assert!(problem(&["--use", "-"], &[]).contains("unknown module"));
        assert!(problem(&["--use", ""], &[]).contains("unknown module"));
    }

    #[test]
    fn the_man_page_and_the_parser_have_the_same_options() {
        let page = cli::generate(Generate::Man);
        let mut told: Vec<String> = Vec::new();
        let mut defined: Vec<String> = Vec::new();
        for line in page.lines().filter(|line| line.starts_with('.')) {
            let mut words = line.split_whitespace();
            let is_item = words.next() == Some(".It");
            let words: Vec<_> = line.split_whitespace().collect();
            for option in words
                .windows(2)
                .filter(|pair| matches!(pair[0], "Fl" | ".Fl"))
                .map(|pair| pair[1])
                .filter(|word| !word.is_empty() && *word != "Fl")
            {
                told.push(option.to_owned());
                if is_item {
                    defined.push(option.to_owned());
                }
            }
        }
        let mut real: Vec<String> = Vec::new();
        for arg in cli::command()
            .get_arguments()
            .filter(|arg| !arg.is_positional())
        {
            real.extend(arg.get_long().map(|long| format!("-{long}")));
            real.extend(arg.get_short().map(String::from));
        }
        for option in &real {
            assert!(
                defined.contains(option),
                "`-{option}` has no entry in the man page"
            );
        }
        for option in &told {
            // `Fl -` is the word that ends the options
            assert!(
                real.contains(option) || option == "-",
                "the man page tells of `-{option}`, which is no option"
            );
        }
    }

    #[test]
    fn the_man_page_and_the_program_have_the_same_variables() {
        let page = cli::generate(Generate::Man);
        let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
        let _ = Request::read(&Conf::default(), Vec::new(), &|name| {
            seen.borrow_mut().insert(name.to_owned());
            None
        });
        // of debug builds only, for the tests of the whole program
        seen.borrow_mut().remove("SC_BACKOFF_MS");
        // not the value of one option
        let beside = ["SC_DIRAC_GET", "SC_OPTIONS"];
        let options = cli::variables();
        for name in seen.borrow().iter().filter(|name| name.starts_with("SC_")) {
            assert!(
                beside.contains(&name.as_str()) || options.iter().any(|(known, _)| known == name),
                "the help of no option ends with `[{name}]`"
            );
        }
        for (name, _) in &options {
            assert!(seen.borrow().contains(name), "nobody reads `{name}`");
        }
        for name in seen.borrow().iter() {
            assert!(
                page.contains(&format!("Ev {name}")),
                "`{name}` is not in the man page"
            );
        }
        for word in page
            .split_whitespace()
            .filter(|word| word.starts_with("SC_"))
        {
            let name = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            assert!(
                seen.borrow().contains(name) || name == "SC_LOCATION",
                "the man page tells of `{name}`, which nobody reads"
            );
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(
            option in prop::sample::select(vec![
                "-f", "-d", "-s", "-n", "--pid", "--id", "--timeout", "--retries",
                "--stall-timeout", "--progress", "--generate",
            ]),
            value in prop::collection::vec(1u8..=255, 0..12),
        ) {
            let value = OsString::from_vec(value);
            let _ = Request::read(&Conf::default(), vec![option.into(), value], &|_| None);
        }

        #[test]
        fn no_environment_makes_it_panic(value in prop::collection::vec(1u8..=255, 0..12)) {
            let value = OsString::from_vec(value);
            let _ = Request::read(&Conf::default(), Vec::new(), &|_| Some(value.clone()));
            let _ = Request::read(&Conf::default(), Vec::new(), &|name| {
                (name == "SC_OPTIONS").then(|| value.clone())
            });
        }

        #[test]
        fn a_name_never_leaves_its_directory(name in "[a/.]{0,12}") {
            if let Ok(Parsed::Request(request)) =
                Request::read(&Conf::default(), vec!["-n".into(), name.into()], &|_| None)
                && let Some(name) = request.repository.name
            {
                prop_assert!(name.components().count() > 0);
                prop_assert!(name
                    .components()
                    .all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }
    }
}
