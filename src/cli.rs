//! What was typed: the words of the command line as a [`Typed`], none of them understood yet
//! (that is `crate::request`).
//!
//! Job scripts were written for the Python `sc`, whose parser was optparse. clap disagrees with
//! optparse in many small things (`-n=x`, `--name -x`, an abbreviation that a new option makes
//! ambiguous), so no word reaches it as typed: [`spell`] first rewrites every option to its one
//! full spelling, `--name=VALUE` or `--flag`, by clap's own list of options. What is left to clap
//! cannot be misread: which option is which, what repeats override, help, completions.

mod plain;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::builder::{OsStringValueParser, PossibleValue, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser, ValueHint};

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

const USAGE: &str = "\
sc --use      [OPTION]... [MODULE]...
       sc --unuse    [OPTION]... [MODULE]...
       sc --location [OPTION]...
       sc --run      [OPTION]... [MODULE]... -- CMD [ARG]...
       sc --status   [--json] [OPTION]...
       sc --list     [--json] [OPTION]...
       sc --stats    [--json | --prometheus] [OPTION]...
       sc --verify   [--paranoid] [--repair] [--json] [OPTION]... [MODULE]...
       sc --gc       [--dry-run] [--older-than D] [--free SIZE] [OPTION]...
       sc --clear    [--dry-run] [--force] [OPTION]...
       sc --doctor   [--json] [OPTION]...
       sc --generate man|bash|zsh|fish";

const TEMPLATE: &str = "\
{about}

Usage: {usage}

{all-args}{after-help}";

const AFTER: &str = "\
Modules, lowest first: a loader brings a file, what follows works on it.
  http:URL https://... file:PATH dirac:LFN
  md5:HEX sha1:HEX sha256:HEX sha512:HEX blake3:HEX adler32:HEX crc32:HEX
  tar tar:drop tar:strip=N dummy

Example:
  sc --run --name=calib http:https://example.org/calib.tar.gz md5:HEX tar -- ./job

Each SC_ variable stands for its option; SC_OPTIONS holds words put before all
others, /etc/sc.conf a site's defaults.
The whole manual: sc --generate man | man -l -";

/// Jobs on one node share one copy of their data: the first loads it, the last deletes it
#[derive(Debug, Clone, Default, PartialEq, Eq, Parser)]
#[command(
    name = "sc",
    version,
    args_override_self = true,
    override_usage = USAGE,
    help_template = TEMPLATE,
    after_help = AFTER,
    next_line_help = false,
)]
pub struct Typed {
    /// Register a use of the repository, loaded first if it is not there
    #[arg(long = "use", help_heading = "Actions")]
    pub use_: bool,

    /// Give the use back; the last one deletes the repository
    #[arg(long, help_heading = "Actions")]
    pub unuse: bool,

    /// Print the directory of the repository
    #[arg(long, help_heading = "Actions")]
    pub location: bool,

    /// Use, run CMD with SC_LOCATION set, give back whatever happens
    #[arg(long, help_heading = "Actions")]
    pub run: bool,

    /// Tell what is in the repository and who holds it
    #[arg(long, help_heading = "Actions")]
    pub status: bool,

    /// Tell of every repository in the base directories
    #[arg(long, help_heading = "Actions")]
    pub list: bool,

    /// Tell what the repositories take, and what they have been good for
    #[arg(long, help_heading = "Actions")]
    pub stats: bool,
    /// Compare the data with what was loaded
    #[arg(long, help_heading = "Actions")]
    pub verify: bool,

    /// Delete what nobody holds and nothing keeps, in all base directories
    #[arg(long, help_heading = "Actions")]
    pub gc: bool,

    /// Delete the repository now
    #[arg(long, help_heading = "Actions")]
    pub clear: bool,

    /// Tell whether sc can work here, and where each setting comes from
    #[arg(long, help_heading = "Actions")]
    pub doctor: bool,

    /// Print the man page, or the completions of a shell
    #[arg(
        long,
        value_name = "man|bash|zsh|fish",
        value_parser = one_of(&["man", "bash", "zsh", "fish"]),
        hide_possible_values = true,
        help_heading = "Actions"
    )]
    pub generate: Option<OsString>,

    /// Name of the state file in the repository, or its absolute path [repofile] [SC_FILE]
    #[arg(short, long, value_name = "FILE", help_heading = "Repository")]
    pub file: Option<OsString>,

    /// Where repositories may lie, best first [/tmp:/var/tmp] [SC_DIRECTORIES]
    #[arg(
        short,
        long,
        value_name = "DIR:DIR...",
        value_hint = ValueHint::DirPath,
        help_heading = "Repository"
    )]
    pub directories: Option<OsString>,

    /// Take a directory on a network file system if locks work there [SC_ALLOW_NETWORK_FS]
    #[arg(long, help_heading = "Repository")]
    pub allow_network_fs: bool,

    /// Space the repository needs, and may take: 500MB, 10GB, 2TiB [0] [SC_SIZE]
    #[arg(short, long, value_name = "SIZE", help_heading = "Repository")]
    pub size: Option<OsString>,

    /// Directory of the repository below DIR [none: DIR itself] [SC_NAME]
    #[arg(short, long, value_name = "NAME", help_heading = "Repository")]
    pub name: Option<OsString>,

    /// Who may join: user, group or all; the readers are the umask's [user] [SC_SHARE]
    #[arg(
        long,
        value_name = "WHO",
        value_parser = one_of(&["user", "group", "all"]),
        hide_possible_values = true,
        help_heading = "Repository"
    )]
    pub share: Option<OsString>,

    /// Take the write bits off what is loaded [SC_READ_ONLY=1]
    #[arg(long, help_heading = "Repository")]
    pub read_only: bool,

    /// With --verify: read every file, whatever its times say
    #[arg(long, help_heading = "Repository")]
    pub paranoid: bool,

    /// With --verify: load anew what differs, if nobody holds it
    #[arg(long, help_heading = "Repository")]
    pub repair: bool,

    /// Keep the data for D when the last has left: 30m, 12h, 7d [0] [SC_KEEP]
    #[arg(long, value_name = "D", help_heading = "Keeping and deleting")]
    pub keep: Option<OsString>,

    /// Load data anew that are older than D, or from TIME on (RFC 3339) [never] [SC_EXPIRES]
    #[arg(long, value_name = "D|TIME", help_heading = "Keeping and deleting")]
    pub expires: Option<OsString>,

    /// With --use, --run: load anew, if nobody holds it
    #[arg(long, help_heading = "Keeping and deleting")]
    pub refresh: bool,

    /// Keep no more than SIZE in each base directory [no limit] [SC_MAX_SIZE]
    #[arg(long, value_name = "SIZE", help_heading = "Keeping and deleting")]
    pub max_size: Option<OsString>,

    /// Leave so much of the file system free: 10GB, 5% [0] [SC_MIN_FREE]
    #[arg(long, value_name = "SIZE|N%", help_heading = "Keeping and deleting")]
    pub min_free: Option<OsString>,

    /// With --gc: what was used within D stays, what was not goes, kept or not
    #[arg(long, value_name = "D", help_heading = "Keeping and deleting")]
    pub older_than: Option<OsString>,

    /// With --gc: delete kept data until SIZE is free
    #[arg(long, value_name = "SIZE", help_heading = "Keeping and deleting")]
    pub free: Option<OsString>,

    /// With --gc, --clear: tell what would be deleted, and delete nothing
    #[arg(long, help_heading = "Keeping and deleting")]
    pub dry_run: bool,

    /// With --clear: though somebody holds it
    #[arg(long, help_heading = "Keeping and deleting")]
    pub force: bool,

    /// Count there also what is gone: a directory of mode 1777 [none] [SC_STATS_DIR]
    #[arg(
        long,
        value_name = "DIR",
        value_hint = ValueHint::DirPath,
        help_heading = "Keeping and deleting"
    )]
    pub stats_dir: Option<OsString>,

    /// Process that holds the use [the parent of sc] [SC_PID]
    #[arg(long, value_name = "PID", help_heading = "Holder")]
    pub pid: Option<OsString>,

    /// Whoever keeps descriptor N open holds the use
    #[arg(long, value_name = "N", help_heading = "Holder")]
    pub fd: Option<OsString>,

    /// The batch job holds the use: its control group [SC_JOB=1]
    #[arg(long, help_heading = "Holder")]
    pub job: bool,

    /// The use ends by itself after D; the next --use renews it [never] [SC_LEASE]
    #[arg(long, value_name = "D", help_heading = "Holder")]
    pub lease: Option<OsString>,

    /// Tells several uses by one process apart [SC_ID]
    #[arg(long, value_name = "TEXT", help_heading = "Holder")]
    pub id: Option<OsString>,

    /// With --run: the use does not outlive sc in CMD
    #[arg(long, help_heading = "Holder")]
    pub close: bool,

    /// Give up waiting for another sc after SECS [never] [SC_TIMEOUT]
    #[arg(
        long,
        value_name = "SECS",
        overrides_with = "no_wait",
        help_heading = "Patience"
    )]
    pub timeout: Option<OsString>,

    /// Give up at once where another sc is at work [SC_TIMEOUT=0]
    #[arg(long, overrides_with = "timeout", help_heading = "Patience")]
    pub no_wait: bool,

    /// Try again so often after a transient failure [3] [SC_RETRIES]
    #[arg(long, value_name = "N", help_heading = "Patience")]
    pub retries: Option<OsString>,

    /// End an attempt that brings no byte for SECS [60] [SC_STALL_TIMEOUT]
    #[arg(long, value_name = "SECS", help_heading = "Patience")]
    pub stall_timeout: Option<OsString>,

    /// Say nothing but errors [SC_LOG=quiet]
    #[arg(short, long, overrides_with = "verbose", help_heading = "Output")]
    pub quiet: bool,

    /// Say each step and why it is taken; twice: what the libraries say, too [SC_LOG=verbose]
    #[arg(
        short,
        long,
        action = ArgAction::Count,
        overrides_with = "quiet",
        help_heading = "Output"
    )]
    pub verbose: u8,

    /// Show progress [auto: a bar on a terminal, else a line now and then] [SC_PROGRESS]
    #[arg(
        long,
        value_name = "auto|always|never",
        value_parser = one_of(&["auto", "always", "never"]),
        hide_possible_values = true,
        help_heading = "Output"
    )]
    pub progress: Option<OsString>,

    /// With --status, --list, --stats, --doctor: print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// With --stats: print Prometheus' text format
    #[arg(long, help_heading = "Output")]
    pub prometheus: bool,

    /// What the repository is made of
    #[arg(value_name = "MODULE", hide = true)]
    pub modules: Vec<OsString>,

    /// With --run: the command and its arguments
    #[arg(
        value_name = "CMD",
        last = true,
        hide = true,
        value_hint = ValueHint::CommandWithArguments
    )]
    pub command: Vec<OsString>,
}

/// What the parser made of the words.
#[derive(Debug)]
pub enum Parsed {
    Typed(Box<Typed>),
    /// Help or version, for stdout.
    Print(String),
}

/// The options as clap knows them: for help, completions and whoever compares them.
pub fn command() -> Command {
    // clap's own `--help` and `--version` would come first, in a group of their own
    let mut command = Typed::command()
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(
            Arg::new("help")
                .short('h')
                .long("help")
                .help("Print this text")
                .action(ArgAction::Help)
                .help_heading("Output"),
        )
        .arg(
            Arg::new("version")
                .long("version")
                .help("Print the version")
                .action(ArgAction::Version)
                .help_heading("Output"),
        )
        .max_term_width(100);
    command.build();
    command
}

/// A word, and where it was written.
pub type Word = (OsString, Origin);

/// The words of one invocation.
#[derive(Debug, Default)]
pub struct Words {
    /// A site's defaults: options, which give way to a variable.
    pub conf: Vec<Word>,
    /// `$SC_OPTIONS`
    pub before: Vec<OsString>,
    /// The command line, without the program's name.
    pub line: Vec<OsString>,
}

/// An option that was given, and counts unless one of the same variable stands behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The variable that would say the same.
    pub variable: String,
    /// `--size`
    pub option: String,
    pub value: Option<OsString>,
    pub origin: Origin,
}

/// Reads the site's defaults, the words of `$SC_OPTIONS`, then those of the command line.
/// `is_set` tells of a variable whether the environment has it.
///
/// # Errors
/// [`Error::Usage`]: an option that is none, an ambiguous abbreviation, a value missing or one too
/// many; an action or a module among the defaults. Values are not looked at.
pub fn parse(words: Words, is_set: &dyn Fn(&str) -> bool) -> Result<(Parsed, Vec<Given>)> {
    if words.conf.is_empty()
        && words.before.is_empty()
        && let Some((typed, given)) = plain::read(&words.line)
    {
        return Ok((Parsed::Typed(Box::new(typed)), given));
    }
    parse_with_clap(words, is_set)
}

fn parse_with_clap(words: Words, is_set: &dyn Fn(&str) -> bool) -> Result<(Parsed, Vec<Given>)> {
    let mut command = command();
    let at = |words: Vec<OsString>, origin: Origin| {
        let words = words.into_iter().map(|word| (word, origin.clone()));
        words.collect::<Vec<Word>>()
    };
    let mut spelled = defaults(&command, words.conf, is_set)?;
    let before = spell(&command, at(words.before, Origin::Options))?;
    if before.end == End::DashDash {
        return Err(Origin::Options.named(Error::usage(
            "`--` would make modules of the whole command line",
        )));
    }
    spelled.extend(before.words);
    if before.end != End::Help {
        spelled.extend(spell(&command, at(words.line, Origin::CommandLine))?.words);
    }
    let given = spelled.iter().filter_map(|word| given(&command, word));
    let given = given.collect();
    let words = spelled.into_iter().map(|word| word.text);
    let words = std::iter::once(OsString::from("sc")).chain(words);
    let matches = match command.try_get_matches_from_mut(words) {
        Ok(matches) => matches,
        Err(error) => {
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    Ok((Parsed::Print(error.render().to_string()), given))
                }
                _ => Err(in_our_words(&error)),
            };
        }
    };
    let mut typed = Typed::from_arg_matches(&matches).map_err(|error| in_our_words(&error))?;
    if !typed.run {
        typed.modules.append(&mut typed.command);
    }
    Ok((Parsed::Typed(Box::new(typed)), given))
}

/// The options of the site's defaults that no variable overrules. What belongs to one command, an
/// action or a module, has no place there, and neither has an option without a variable: most of
/// those are errors beside another action.
fn defaults(
    command: &Command,
    words: Vec<Word>,
    is_set: &dyn Fn(&str) -> bool,
) -> Result<Vec<Spelled>> {
    let mut options = spell(command, words)?.words;
    for word in &options {
        if word
            .option
            .as_deref()
            .is_none_or(|option| variable(command, option).is_none())
        {
            let text = word.text.to_string_lossy();
            let text = text.split_once('=').map_or(&*text, |(option, _)| option);
            return Err(word.origin.named(Error::Usage {
                problem: format!("`{text}` has no place here"),
                hint: Some(
                    "options that have a variable may stand here; no actions, no modules".into(),
                ),
            }));
        }
    }
    options.retain(|word| given(command, word).is_some_and(|given| !is_set(&given.variable)));
    Ok(options)
}

fn given(command: &Command, word: &Spelled) -> Option<Given> {
    let option = word.option.as_deref()?;
    let text = word.text.as_bytes();
    let equals = text.iter().position(|&byte| byte == b'=');
    Some(Given {
        variable: variable(command, option)?,
        option: format!("--{option}"),
        value: equals.map(|equals| OsString::from_vec(text[equals + 1..].to_vec())),
        origin: word.origin.clone(),
    })
}

/// The variable that stands for this option: its help ends with it, in brackets.
fn variable(command: &Command, option: &str) -> Option<String> {
    let mut args = command.get_arguments();
    let arg = args.find(|arg| arg.get_long() == Some(option))?;
    help_of(arg).1
}

/// The default and the variable that the help of an option tells, both in brackets.
fn help_of(arg: &Arg) -> (Option<String>, Option<String>) {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let brackets = help.split('[').skip(1);
    let mut brackets = brackets.filter_map(|text| text.split(']').next());
    let is_variable = |text: &&str| text.starts_with("SC_");
    let default = brackets.clone().find(|text| !is_variable(text));
    let variable = brackets.find(is_variable);
    let variable = variable.and_then(|text| text.split('=').next());
    (default.map(str::to_owned), variable.map(str::to_owned))
}

/// Every variable that an option has, with the default that the help tells.
pub fn variables() -> Vec<(String, Option<String>)> {
    let mut variables: Vec<(String, Option<String>)> = Vec::new();
    for (default, variable) in command().get_arguments().map(help_of) {
        let Some(variable) = variable else { continue };
        match variables.iter_mut().find(|(known, _)| *known == variable) {
            Some((_, known)) => *known = known.take().or(default),
            None => variables.push((variable, default)),
        }
    }
    variables
}

/// A word in the one spelling that clap cannot misread.
#[derive(Debug)]
struct Spelled {
    text: OsString,
    /// The full name of the option that it is.
    option: Option<String>,
    origin: Origin,
}

/// Words so spelled, and how they ended.
#[derive(Debug)]
struct Ended {
    words: Vec<Spelled>,
    end: End,
}

/// Where the options ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Words,
    DashDash,
    /// `--help` or `--version`: they act when met, so what is right of them is never read.
    Help,
}

/// Rewrites options to `--name=VALUE` and `--flag`, by the rules of optparse. Other words, and
/// all behind `--`, stay as they are.
fn spell(command: &Command, words: Vec<Word>) -> Result<Ended> {
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

/// clap speaks in paragraphs. Its first line is the sentence; [`spell`] leaves it little to say.
fn in_our_words(error: &clap::Error) -> Error {
    let text = error.render().to_string();
    let line = text.lines().next().unwrap_or_default();
    Error::Usage {
        problem: line.strip_prefix("error: ").unwrap_or(line).to_owned(),
        hint: Some("`sc --help` lists the options".into()),
    }
}

/// What completions offer. The value itself is checked by `crate::request`, which reads the same
/// words from the environment.
fn one_of(values: &'static [&'static str]) -> OneOf {
    OneOf(values)
}

#[derive(Clone)]
struct OneOf(&'static [&'static str]);

impl TypedValueParser for OneOf {
    type Value = OsString;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> std::result::Result<OsString, clap::Error> {
        OsStringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().copied().map(PossibleValue::new)))
    }
}

/// What `--generate` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generate {
    Man,
    Bash,
    Zsh,
    Fish,
}

/// The man page, or a completion script of the same options that [`parse`] reads.
pub fn generate(what: Generate) -> String {
    let shell = match what {
        Generate::Man => return include_str!("../man/sc.1").to_owned(),
        Generate::Bash => clap_complete::Shell::Bash,
        Generate::Zsh => clap_complete::Shell::Zsh,
        Generate::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "sc", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn os(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn parse(before: Vec<OsString>, line: Vec<OsString>) -> Result<Parsed> {
        let conf = Vec::new();
        let words = Words { conf, before, line };
        super::parse(words, &|_| false).map(|(parsed, _)| parsed)
    }

    fn typed(words: &[&str]) -> Typed {
        match parse(Vec::new(), os(words)) {
            Ok(Parsed::Typed(typed)) => *typed,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn error(words: &[&str]) -> (String, String) {
        match parse(Vec::new(), os(words)) {
            Err(Error::Usage { problem, hint }) => (problem, hint.unwrap_or_default()),
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn printed(words: &[&str]) -> String {
        match parse(Vec::new(), os(words)) {
            Ok(Parsed::Print(text)) => text,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    #[test]
    fn clap_finds_nothing_wrong_with_the_options() {
        command().debug_assert();
    }

    #[test]
    fn a_valued_option_is_read_in_every_spelling() {
        for (words, name, modules) in [
            (&["-n", "x"][..], "x", &[][..]),
            (&["-nx"], "x", &[]),
            (&["-n=x"], "=x", &[]),
            (&["--name", "x"], "x", &[]),
            (&["--name=x"], "x", &[]),
            (&["--name=x=y"], "x=y", &[]),
            (&["--na", "x"], "x", &[]),
            (&["--n=x"], "x", &[]),
            (&["--name="], "", &[]),
            (&["--name", ""], "", &[]),
            (&["-n", ""], "", &[]),
            // the next word, whatever it looks like
            (&["-n", "-x"], "-x", &[]),
            (&["-n", "--"], "--", &[]),
            (&["--name", "--use"], "--use", &[]),
            (&["--name", "--help"], "--help", &[]),
            (&["-n", "-d", "b"], "-d", &["b"]),
            // the last one wins
            (&["-n", "x", "--name=y"], "y", &[]),
            (&["--name=x", "m", "-ny"], "y", &["m"]),
            (&["--name=x", "--name="], "", &[]),
        ] {
            let expected = Typed {
                name: Some(name.into()),
                modules: os(modules),
                ..Typed::default()
            };
            assert_eq!(typed(words), expected, "{words:?}");
        }
    }

    #[test]
    fn letters_without_a_value_may_be_bundled_with_others() {
        assert_eq!(
            typed(&["-dbn", "x"]),
            Typed {
                directories: Some("bn".into()),
                modules: os(&["x"]),
                ..Typed::default()
            }
        );
        assert_eq!(
            typed(&["-vvn", "x", "y"]),
            Typed {
                verbose: 2,
                name: Some("x".into()),
                modules: os(&["y"]),
                ..Typed::default()
            }
        );
    }

    #[test]
    fn an_abbreviation_is_looked_up_in_the_reference_first() {
        for (word, full) in [
            ("--l", "location"),
            ("--loc", "location"),
            ("--us", "use"),
            ("--use", "use"),
            ("--un", "unuse"),
            // ours; `--n` and `--s` stay the reference's
            ("--ru", "run"),
            ("--no", "no_wait"),
            ("--statu", "status"),
            ("--js", "json"),
            ("--clo", "close"),
            ("--q", "quiet"),
        ] {
            let flag = |name: &str| full == name;
            let expected = Typed {
                use_: flag("use"),
                unuse: flag("unuse"),
                location: flag("location"),
                run: flag("run"),
                status: flag("status"),
                no_wait: flag("no_wait"),
                quiet: flag("quiet"),
                json: flag("json"),
                close: flag("close"),
                ..Typed::default()
            };
            assert_eq!(typed(&[word]), expected, "{word}");
        }
        for (word, of) in [
            ("--f=1", "file"),
            ("--d=1", "directories"),
            ("--dir=1", "directories"),
            ("--s=1", "size"),
            ("--si=1", "size"),
            ("--n=1", "name"),
            ("--pi=1", "pid"),
            ("--t=1", "timeout"),
            (
                "--sta=1",
                "--stall-timeout`, `--stats-dir`, `--stats` or `--status",
            ),
            ("--r=1", "--retries` or `--run"),
        ] {
            match parse(Vec::new(), os(&[word])) {
                Ok(Parsed::Typed(typed)) => {
                    let one = Some(OsString::from("1"));
                    let found = [
                        ("file", typed.file),
                        ("directories", typed.directories),
                        ("size", typed.size),
                        ("name", typed.name),
                        ("pid", typed.pid),
                        ("timeout", typed.timeout),
                    ];
                    assert_eq!(
                        found.iter().find(|(_, value)| *value == one).map(|f| f.0),
                        Some(of),
                        "{word}"
                    );
                }
                Err(error) => assert!(error.to_string().contains(of), "{word}: {error}"),
                other => panic!("{word}: {other:?}"),
            }
        }
    }

    #[test]
    fn options_and_modules_may_be_mixed() {
        assert_eq!(
            typed(&[
                "http:u", "--use", "-s", "1GB", "-", "md5:0", "--use", "", "-n", "x"
            ]),
            Typed {
                use_: true,
                size: Some("1GB".into()),
                name: Some("x".into()),
                modules: os(&["http:u", "-", "md5:0", ""]),
                ..Typed::default()
            }
        );
    }

    #[test]
    fn modules_follow_two_dashes_and_with_run_the_command() {
        assert_eq!(
            typed(&["--use", "a", "--", "b", "--unuse", "--", "-n"]),
            Typed {
                use_: true,
                modules: os(&["a", "b", "--unuse", "--", "-n"]),
                ..Typed::default()
            }
        );
        assert_eq!(
            typed(&["a", "--run", "b", "--", "cmd", "--use", "--", "-n", ""]),
            Typed {
                run: true,
                modules: os(&["a", "b"]),
                command: os(&["cmd", "--use", "--", "-n", ""]),
                ..Typed::default()
            }
        );
        // not an option any more
        assert_eq!(
            typed(&["--", "--run", "--help"]),
            Typed {
                modules: os(&["--run", "--help"]),
                ..Typed::default()
            }
        );
    }

    #[test]
    fn of_two_that_contradict_each_other_the_last_wins() {
        let waits = |words: &[&str]| {
            let typed = typed(words);
            (typed.no_wait, typed.timeout)
        };
        assert_eq!(waits(&["--timeout=5", "--no-wait"]), (true, None));
        assert_eq!(
            waits(&["--no-wait", "--timeout=5"]),
            (false, Some("5".into()))
        );
        let says = |words: &[&str]| {
            let typed = typed(words);
            (typed.quiet, typed.verbose)
        };
        assert_eq!(says(&["-v", "-q"]), (true, 0));
        assert_eq!(says(&["-q", "-vv"]), (false, 2));
        assert_eq!(says(&["-qq", "--quiet"]), (true, 0));
        let many = vec!["-v"; 300];
        assert!(says(&many).1 >= 2);
    }

    #[test]
    fn words_need_not_be_utf8() {
        let raw = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let words = vec![
            raw(b"-n\xff"),
            raw(b"--directories=/\xfe"),
            raw(b"file:\xfd"),
        ];
        match parse(Vec::new(), words) {
            Ok(Parsed::Typed(typed)) => {
                assert_eq!(typed.name, Some(raw(b"\xff")));
                assert_eq!(typed.directories, Some(raw(b"/\xfe")));
                assert_eq!(typed.modules, [raw(b"file:\xfd")]);
            }
            other => panic!("{other:?}"),
        }
        for (word, problem) in [
            (&b"--na\xff"[..], "no such option: `--na\u{fffd}`"),
            (b"-\xff", "no such option: `-\u{fffd}`"),
            ("-é".as_bytes(), "no such option: `-é`"),
        ] {
            let error = parse(Vec::new(), vec![raw(word)]).unwrap_err();
            assert_eq!(error.to_string(), problem);
        }
    }

    #[test]
    fn wrong_options_are_told_in_one_line() {
        let list = "`sc --help` lists the options";
        for (words, problem, hint) in [
            (&["--u"][..], "`--u` is ambiguous: `--unuse` or `--use`", ""),
            (
                &["--p=1"],
                "`--p` is ambiguous: `--paranoid`, `--pid`, `--progress` or `--prometheus`",
                "",
            ),
            (&["--location=1"], "`--location` takes no value", ""),
            (&["--loc="], "`--location` takes no value", ""),
            (&["--help=1"], "`--help` takes no value", ""),
            (&["--foo"], "no such option: `--foo`", list),
            // what follows may be a secret
            (
                &["--header=K: V"],
                "no such option: `--header`",
                "did you mean `--share`?",
            ),
            (
                &["--locaton"],
                "no such option: `--locaton`",
                "did you mean `--location`?",
            ),
            (
                &["--usee"],
                "no such option: `--usee`",
                "did you mean `--use`?",
            ),
            (&["--=x"], "no such option: `--`", list),
            (&["-x"], "no such option: `-x`", list),
            (&["-5"], "no such option: `-5`", list),
            (&["-vx"], "no such option: `-x`", list),
            (&["-v="], "no such option: `-=`", list),
            (&["-n"], "`-n` needs a value", "write `-n NAME`"),
            (
                &["x", "--na"],
                "`--name` needs a value",
                "write `--name NAME`",
            ),
            (&["-vs"], "`-s` needs a value", "write `-s SIZE`"),
        ] {
            assert_eq!(error(words), (problem.into(), hint.into()), "{words:?}");
        }
    }

    #[test]
    fn what_is_not_built_yet_is_no_option() {
        for option in ["--mirror=u", "--header=x"] {
            let (problem, _) = error(&[option]);
            let name = option.split('=').next().unwrap();
            assert_eq!(problem, format!("no such option: `{name}`"));
        }
    }

    #[test]
    fn help_acts_when_it_is_met() {
        let help = printed(&["--help"]);
        assert!(help.contains("Usage: sc --use"), "{help}");
        for words in [
            &["-h"][..],
            &["--h"],
            &["-h", "--foo"],
            &["-vh"],
            &["-hx"],
            &["unknown", "--use", "--he", "-n"],
        ] {
            assert_eq!(printed(words), help, "{words:?}");
        }
        assert_eq!(error(&["--foo", "-h"]).0, "no such option: `--foo`");
        assert_eq!(error(&["-xh"]).0, "no such option: `-x`");
        assert!(printed(&["--version", "--foo"]).starts_with("sc "));
        assert_eq!(typed(&["--", "-h"]).modules, os(&["-h"]));
    }

    #[test]
    fn sc_options_stand_before_the_command_line() {
        let parsed = parse(
            os(&["-n", "a", "m", "--timeout=1"]),
            os(&["-nb", "--use", "n"]),
        );
        match parsed {
            Ok(Parsed::Typed(typed)) => assert_eq!(
                *typed,
                Typed {
                    use_: true,
                    name: Some("b".into()),
                    timeout: Some("1".into()),
                    modules: os(&["m", "n"]),
                    ..Typed::default()
                }
            ),
            other => panic!("{other:?}"),
        }
        for (before, problem) in [
            (&["-n"][..], "in `SC_OPTIONS`: `-n` needs a value"),
            (&["--foo"], "in `SC_OPTIONS`: no such option: `--foo`"),
            (
                &["--"],
                "in `SC_OPTIONS`: `--` would make modules of the whole command line",
            ),
        ] {
            let error = parse(os(before), os(&["x"])).unwrap_err();
            assert_eq!(error.to_string(), problem);
        }
        assert!(matches!(
            parse(os(&["-h"]), os(&["--foo"])),
            Ok(Parsed::Print(_))
        ));
    }

    #[test]
    fn a_site_s_defaults_give_way_to_variables_and_to_words() {
        let conf = || {
            let words = ["--retries=1", "--timeout", "5", "-q", "-n", "site"];
            let words = words.into_iter().enumerate();
            let path = || "/etc/sc.conf".into();
            words
                .map(|(n, word)| {
                    (
                        word.into(),
                        Origin::Conf {
                            path: path(),
                            line: n,
                        },
                    )
                })
                .collect::<Vec<Word>>()
        };
        let typed = |line: &[&str], set: &[&str]| {
            let words = Words {
                conf: conf(),
                before: os(&["--name=options"]),
                line: os(line),
            };
            match super::parse(words, &|name| set.contains(&name)) {
                Ok((Parsed::Typed(typed), _)) => *typed,
                other => panic!("{other:?}"),
            }
        };
        let mut expected = Typed {
            retries: Some("1".into()),
            timeout: Some("5".into()),
            quiet: true,
            name: Some("options".into()),
            ..Typed::default()
        };
        assert_eq!(typed(&[], &[]), expected);
        expected.timeout = None;
        expected.no_wait = true;
        assert_eq!(typed(&["--no-wait"], &[]), expected);
        expected.quiet = false;
        expected.verbose = 1;
        assert_eq!(typed(&["--no-wait", "-v"], &[]), expected);
        // a variable takes out every option that it stands for
        expected.verbose = 0;
        expected.no_wait = false;
        assert_eq!(typed(&[], &["SC_TIMEOUT", "SC_LOG", "SC_NAME"]), expected);
    }

    #[test]
    fn every_option_is_in_the_help() {
        let help = printed(&["--help"]);
        for arg in command().get_arguments().filter(|arg| !arg.is_positional()) {
            let long = format!("--{}", arg.get_long().unwrap());
            assert!(help.contains(&long), "{long}");
            assert!(arg.get_help().is_some(), "{long}");
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100));
    }

    #[test]
    fn completions_know_every_option() {
        for what in [Generate::Bash, Generate::Zsh, Generate::Fish] {
            let script = generate(what);
            for arg in command().get_arguments().filter(|arg| !arg.is_positional()) {
                let long = arg.get_long().unwrap();
                assert!(script.contains(long), "{what:?}: {long}");
            }
            assert!(script.contains("always"), "{what:?}");
        }
    }

    proptest! {
        #[test]
        fn no_words_make_the_parser_panic(
            before in words(),
            words in words(),
        ) {
            let _ = parse(before, words);
        }

        #[test]
        fn the_words_of_a_command_arrive_as_typed(
            command in prop::collection::vec(prop::collection::vec(1u8..=255, 0..6), 1..5),
        ) {
            let command: Vec<_> = command.into_iter().map(OsString::from_vec).collect();
            let mut words = os(&["--run", "--"]);
            words.extend(command.clone());
            match parse(Vec::new(), words) {
                Ok(Parsed::Typed(typed)) => prop_assert_eq!(typed.command, command),
                other => panic!("{other:?}"),
            }
        }
    }

    fn words() -> impl Strategy<Value = Vec<OsString>> {
        let known = prop::sample::select(vec![
            "--use",
            "--unuse",
            "--run",
            "--",
            "-",
            "",
            "-n",
            "--name",
            "--name=",
            "-nx",
            "-q",
            "-vv",
            "--time",
            "--timeout=1",
            "--no-wait",
            "--u",
            "-h",
            "--version",
            "tar",
            "-s",
            "--=",
            "---",
            "--generate",
            "-n=",
        ]);
        let word = prop_oneof![
            3 => known.prop_map(OsString::from),
            1 => prop::collection::vec(1u8..=255, 0..8).prop_map(OsString::from_vec),
            1 => prop::collection::vec(1u8..=255, 0..4).prop_map(|mut bytes| {
                bytes.insert(0, b'-');
                OsString::from_vec(bytes)
            }),
        ];
        prop::collection::vec(word, 0..8)
    }
}
