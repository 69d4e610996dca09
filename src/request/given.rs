//! What was said, by whom, and where: an option of the command line or of `$SC_OPTIONS`, a
//! variable, the site's file.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::{DIRAC_GET, Env, Setting};
use crate::cli;
use crate::error::{Error, Result};
use crate::origin::Origin;

/// A value, the option or variable that has it, and where that was written.
pub(super) struct Given {
    pub(super) value: OsString,
    pub(super) name: &'static str,
    pub(super) origin: Origin,
}

pub(super) struct Values<'a> {
    pub(super) env: Env<'a>,
    pub(super) given: Vec<cli::Given>,
}

impl Values<'_> {
    /// The command line wins.
    pub(super) fn get(
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
    pub(super) fn switch(&self, typed: bool, variable: &'static str) -> Result<bool> {
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
    pub(super) fn text(&self) -> std::borrow::Cow<'_, str> {
        self.value.to_string_lossy()
    }

    pub(super) fn wrong(&self, problem: impl std::fmt::Display, hint: Option<&str>) -> Error {
        self.origin.named(Error::Usage {
            problem: format!("`{}`: {problem}", self.name),
            hint: hint.map(str::to_owned),
        })
    }

    pub(super) fn read<T>(
        &self,
        reader: impl Fn(&str) -> Result<T, String>,
        forms: &str,
    ) -> Result<T> {
        reader(&self.text()).map_err(|problem| self.wrong(problem, Some(forms)))
    }
}

/// The words of `$SC_OPTIONS`.
pub(super) fn options(env: Env) -> Result<Vec<OsString>> {
    let Some(text) = env("SC_OPTIONS") else {
        return Ok(Vec::new());
    };
    // a NUL cannot come from an environment; shlex would refuse it as well
    shlex::bytes::split(text.as_bytes())
        .map(|words| words.into_iter().map(OsString::from_vec).collect())
        .ok_or_else(|| Origin::Options.named(Error::usage("a quote is not closed")))
}

/// Every setting that has a variable: said by whom, or the default.
pub(super) fn settings(values: &Values) -> Vec<Setting> {
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
