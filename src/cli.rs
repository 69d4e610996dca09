//! What was typed: the words of the command line as a [`Typed`], none of them understood yet
//! (that is `crate::request`).
//!
//! Job scripts were written for the Python `sc`, whose parser was optparse. clap disagrees with
//! optparse in many small things (`-n=x`, `--name -x`, an abbreviation that a new option makes
//! ambiguous), so no word reaches it as typed: [`spell`] first rewrites every option to its one
//! full spelling, `--name=VALUE` or `--flag`, by clap's own list of options. What is left to clap
//! cannot be misread: which option is which, what repeats override, help, completions.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::builder::{OsStringValueParser, PossibleValue, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches, Parser, ValueHint};

use crate::error::{Error, Result};

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

Each SC_ variable stands for its option; SC_OPTIONS holds words put before all others.
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

    /// Space the repository needs: 500MB, 10GB, 2TiB [0] [SC_SIZE]
    #[arg(short, long, value_name = "SIZE", help_heading = "Repository")]
    pub size: Option<OsString>,

    /// Directory of the repository below DIR [none: DIR itself] [SC_NAME]
    #[arg(short, long, value_name = "NAME", help_heading = "Repository")]
    pub name: Option<OsString>,

    /// Process that holds the use [the parent of sc] [SC_PID]
    #[arg(long, value_name = "PID", help_heading = "Holder")]
    pub pid: Option<OsString>,

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

    /// Give up at once where another sc is at work
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

    /// With --status: print JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,

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

/// Reads the words of `$SC_OPTIONS`, then those of the command line (without the program's name).
///
/// # Errors
/// [`Error::Usage`]: an option that is none, an ambiguous abbreviation, a value missing or one too
/// many. Values are not looked at.
pub fn parse(before: Vec<OsString>, words: Vec<OsString>) -> Result<Parsed> {
    let mut command = command();
    let mut spelled = spell(&command, before).map_err(|error| match error {
        Error::Usage { problem, hint } => Error::Usage {
            problem: format!("in `SC_OPTIONS`: {problem}"),
            hint,
        },
        other => other,
    })?;
    if spelled.end == End::DashDash {
        return Err(Error::Usage {
            problem: "in `SC_OPTIONS`: `--` would make modules of the whole command line".into(),
            hint: None,
        });
    }
    if spelled.end != End::Help {
        spelled.words.extend(spell(&command, words)?.words);
    }
    let words = std::iter::once(OsString::from("sc")).chain(spelled.words);
    let matches = match command.try_get_matches_from_mut(words) {
        Ok(matches) => matches,
        Err(error) => {
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    Ok(Parsed::Print(error.render().to_string()))
                }
                _ => Err(in_our_words(&error)),
            };
        }
    };
    let mut typed = Typed::from_arg_matches(&matches).map_err(|error| in_our_words(&error))?;
    if !typed.run {
        typed.modules.append(&mut typed.command);
    }
    Ok(Parsed::Typed(Box::new(typed)))
}

/// Words in the one spelling that clap cannot misread.
#[derive(Debug)]
struct Spelled {
    words: Vec<OsString>,
    end: End,
}

/// Where the options ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Words,
    DashDash,
    /// `--help` or `--version`: they act when met, so what is right of them is never read.
    Help,
}

/// Rewrites options to `--name=VALUE` and `--flag`, by the rules of optparse. Other words, and
/// all behind `--`, stay as they are.
fn spell(command: &Command, words: Vec<OsString>) -> Result<Spelled> {
    let mut spelled = Vec::with_capacity(words.len());
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            spelled.push(word);
            spelled.extend(words);
            return Ok(Spelled {
                words: spelled,
                end: End::DashDash,
            });
        }
        // each option of the word, as typed, with the value in the same word
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
            spelled.push(word);
            continue;
        }
        for (arg, typed, value) in options {
            let mut full = OsString::from("--");
            full.push(arg.get_long().unwrap_or_default());
            if arg.get_action().takes_values() {
                let value = match value {
                    Some(value) => OsString::from_vec(value.to_vec()),
                    None => words.next().ok_or_else(|| needs_value(arg, &typed))?,
                };
                full.push("=");
                full.push(value);
            }
            spelled.push(full);
            if acts_when_met(arg) {
                return Ok(Spelled {
                    words: spelled,
                    end: End::Help,
                });
            }
        }
    }
    Ok(Spelled {
        words: spelled,
        end: End::Words,
    })
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
