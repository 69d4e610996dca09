//! What was typed: the words of the command line as a [`Typed`], none of them understood yet
//! (that is `crate::request`).
//!
//! Job scripts were written for the Python `sc`, whose parser was optparse. clap disagrees with
//! optparse in many small things (`-n=x`, `--name -x`, an abbreviation that a new option makes
//! ambiguous), so no word reaches it as typed: [`spell`] first rewrites every option to its one
//! full spelling, `--name=VALUE` or `--flag`, by clap's own list of options. What is left to clap
//! cannot be misread: which option is which, what repeats override, help, completions.

mod plain;
mod spell;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::builder::{OsStringValueParser, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser, ValueHint};

use crate::error::{Error, Result};
use crate::origin::Origin;
use spell::{End, Spelled, spell};

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
