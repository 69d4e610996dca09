//! Where a setting comes from.

use std::fmt;
use std::path::PathBuf;

use crate::error::Error;

/// Where a word of the command line, or a value, was written. The first that has it wins, in this
/// order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    CommandLine,
    /// `SC_OPTIONS`
    Options,
    /// The variable of this name.
    Variable(String),
    /// The file of a site's defaults.
    Conf {
        path: PathBuf,
        line: usize,
    },
    /// Nobody said anything.
    Default,
}

impl Origin {
    /// A usage error, with the place where the user finds what is wrong: that of the command line
    /// he sees himself, and a variable is named by the error.
    pub fn named(&self, error: Error) -> Error {
        match (self, error) {
            (Origin::Options | Origin::Conf { .. }, Error::Usage { problem, hint }) => {
                Error::Usage {
                    problem: format!("in {self}: {problem}"),
                    hint,
                }
            }
            (_, error) => error,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::CommandLine => write!(f, "the command line"),
            Origin::Options => write!(f, "`SC_OPTIONS`"),
            Origin::Variable(name) => write!(f, "`{name}`"),
            Origin::Conf { path, line } => write!(f, "`{}`, line {line}", path.display()),
            Origin::Default => write!(f, "default"),
        }
    }
}
