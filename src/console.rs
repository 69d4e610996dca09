//! stderr: messages, hints and progress. stdout is for results alone (`crate::report`).

use std::fmt::Display;

use crate::error::Error;

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// `-q`: errors alone.
    Quiet,
    #[default]
    Normal,
    /// `-v`: each stage, and why it runs.
    Verbose,
    /// `-vv`: what the libraries say, too.
    Debug,
}

/// `--progress`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProgressMode {
    /// A bar on a terminal, sparse lines elsewhere.
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug)]
pub struct Console {
    level: Level,
    mode: ProgressMode,
}

impl Console {
    pub fn new(level: Level, mode: ProgressMode) -> Console {
        Console { level, mode }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    /// Something the user should know.
    pub fn say(&self, message: impl Display) {
        if self.level >= Level::Normal {
            eprintln!("sc: {message}");
        }
    }

    /// Something that is wrong, though the work goes on.
    pub fn warn(&self, message: impl Display) {
        self.say(format_args!("warning: {message}"));
    }

    /// Advice.
    pub fn hint(&self, message: impl Display) {
        self.say(format_args!("hint: {message}"));
    }

    /// Something only `-v` wants to know.
    pub fn detail(&self, message: impl Display) {
        if self.level >= Level::Verbose {
            eprintln!("sc: {message}");
        }
    }

    /// The error that ends the program.
    pub fn error(&self, error: &Error) {
        if matches!(error, Error::NotHolder { .. }) && self.level == Level::Quiet {
            return;
        }
        eprintln!("sc: {error}");
        if let Some(hint) = error.hint() {
            eprintln!("hint: {hint}");
        }
    }

    /// Is there a terminal on which progress is drawn?
    pub fn draws(&self) -> bool {
        false
    }

    /// Starts showing the progress of `label`, of which `done` of `total` bytes are there.
    pub fn progress(&self, label: &str, done: u64, total: Option<u64>) -> Progress {
        let _ = (label, total, self.mode);
        Progress { done }
    }
}

/// A job whose progress is shown; dropped, its bar is gone.
#[derive(Debug)]
pub struct Progress {
    done: u64,
}

impl Progress {
    pub fn advance(&mut self, bytes: u64) {
        self.done += bytes;
    }

    pub fn set(&mut self, done: u64) {
        self.done = done;
    }

    pub fn set_total(&mut self, _total: Option<u64>) {}
}
