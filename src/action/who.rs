//! Who holds a use: what was said of it (`--pid`, `--fd`, `--job`), as a holder.

use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::error::{Error, Result};
use crate::process::{self, Identity};
use crate::repository::descriptor::Descriptor;
use crate::repository::holder::{Hold, Holder};
use crate::request::{HolderSpec, Request, Who};

/// Who registers.
///
/// # Errors
/// [`Error::Usage`]: there is no such process, descriptor or job; [`Error::Locked`]: somebody has
/// locked the descriptor's file.
pub fn comes(request: &Request, console: &Console) -> Result<Holder> {
    let hold = match &request.holder.who {
        Who::Parent => {
            let parent = parent();
            if let Some(name) = wrapper() {
                console.hint(format_args!(
                    "the holder is `{name}` (pid {parent}), and the use ends with it; `--pid` \
                     names another"
                ));
            }
            Hold::Process(Identity::of(parent))
        }
        Who::Process(pid) if process::is_gone(*pid) => {
            return Err(Error::usage(format!("there is no process {pid} (`--pid`)")));
        }
        Who::Process(pid) => Hold::Process(Identity::of(*pid)),
        Who::Descriptor(fd) => {
            let descriptor = Descriptor::inherited(*fd)?;
            descriptor.lock(*fd)?;
            Hold::Descriptor(descriptor)
        }
        Who::Job(job_id) => {
            let cgroup = cgroup(job_id.as_deref())?;
            if let Some(id) = job_id.as_deref().filter(|id| !cgroup.names(id)) {
                console.hint(format_args!(
                    "the cgroup `{}` is not one of job {id} alone; with `--lease` the use ends in \
                     any case",
                    cgroup.path.display()
                ));
            }
            Hold::Job {
                cgroup,
                job_id: job_id.clone(),
            }
        }
    };
    Ok(holder(request, hold))
}

/// Who gives a use up. An epilog may do so for a job that has ended: its process need not live.
///
/// # Errors
/// [`Error::Usage`]: there is no such descriptor or job.
pub fn goes(request: &Request) -> Result<Holder> {
    let hold = match &request.holder.who {
        Who::Parent => Hold::Process(Identity::of(parent())),
        Who::Process(pid) => Hold::Process(Identity::of(*pid)),
        Who::Descriptor(fd) => Hold::Descriptor(Descriptor::inherited(*fd)?),
        // an epilog is in no cgroup of the job, but knows its number
        Who::Job(Some(id)) => Hold::Job {
            cgroup: Cgroup::of_job(Some(id)).unwrap_or_default(),
            job_id: Some(id.clone()),
        },
        Who::Job(None) => Hold::Job {
            cgroup: cgroup(None)?,
            job_id: None,
        },
    };
    Ok(holder(request, hold))
}

fn holder(request: &Request, hold: Hold) -> Holder {
    let HolderSpec { id, lease_s, .. } = &request.holder;
    Holder::new(hold, id.clone(), *lease_s)
}

fn parent() -> i32 {
    // 0: our parent is in another pid namespace, and we are the first process of ours
    match nix::unistd::getppid().as_raw() {
        0 => std::process::id() as i32,
        parent => parent,
    }
}

/// Our parent, if it is one that ends with the command it started: a use by it is dead at once.
pub fn wrapper() -> Option<String> {
    const WRAPPERS: &[&str] = &[
        "find",
        "flock",
        "gmake",
        "make",
        "runuser",
        "slurmstepd",
        "srun",
        "strace",
        "su",
        "sudo",
        "time",
        "timeout",
        "xargs",
    ];
    process::command_name(parent()).filter(|name| WRAPPERS.contains(&name.as_str()))
}

fn cgroup(job_id: Option<&str>) -> Result<Cgroup> {
    Cgroup::of_job(job_id).ok_or_else(|| Error::Usage {
        problem: "this process is in no cgroup of a job (`--job`)".into(),
        hint: Some("name the holder with `--pid` or `--fd`, or use `--run`".into()),
    })
}
