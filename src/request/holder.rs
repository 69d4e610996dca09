//! Who holds the use: the one who was named, the job, or our parent.

use std::ffi::OsString;

use super::given::{Given, Values};
use super::value::{descriptor, pid};
use super::{Env, Who};
use crate::cli::Typed;
use crate::error::{Error, Result};

/// Job ids, as they stand in the names of what a batch system makes for a job.
pub(super) fn jobs(env: Env) -> Vec<String> {
    let ids = JOB_IDS.into_iter();
    let ids = ids.filter_map(|name| env(name)?.into_string().ok());
    // PBS adds the server: 4711.server
    ids.filter_map(|id| id.split('.').next().map(str::to_owned))
        .filter(|id| !id.is_empty())
        .collect()
}

/// Variables in which batch systems tell the name of the job: Slurm, PBS, LSF, OAR, Flux, Cobalt,
/// Grid Engine.
pub(super) const JOB_IDS: [&str; 7] = [
    "SLURM_JOB_ID",
    "PBS_JOBID",
    "LSB_JOBID",
    "OAR_JOB_ID",
    "FLUX_JOB_ID",
    "COBALT_JOBID",
    "JOB_ID",
];

/// One who was named on the command line counts before one of the environment.
pub(super) fn who(values: &Values, typed: &Typed) -> Result<Who> {
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
