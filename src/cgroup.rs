//! The control group of a batch job: everything that belongs to the job is in it, whoever its
//! parent is, and when nothing is left in it the job is over. cgroups(7)
//!
//! Slurm, PBS, LSF, HTCondor and systemd make one for each job. It is found in
//! /proc/self/cgroup, which knows one path in the unified hierarchy (version 2) and one in each
//! of the older ones; the path that names the job counts first, cut off behind the name, because
//! the parts of a job (Slurm's steps) end sooner than the job.
//!
//! Paths are relative to the cgroup namespace: another namespace judges nothing. Nor does anybody
//! who does not see the hierarchy mounted: that a path is not there says nothing then.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::{self, Life};

/// A task that moves from one group to another may be missed by who lists them one by one.
const LOOKS: u32 = 3;

/// One control group of one boot; by default none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// The controllers of an old hierarchy, as in /proc/self/cgroup; empty: the unified one.
    hierarchy: String,
    /// Within the hierarchy, as seen from the namespace.
    pub path: PathBuf,
    /// The kernel gives a path again, but hardly the number with it.
    ino: u64,
    cgroup_ns: Option<u64>,
    boot_id: Option<String>,
}

impl Cgroup {
    /// The group of this process that is the job's; `job_id` is what the batch system calls it.
    /// `None`: it is in no group but the root of each hierarchy, or none of them can be seen.
    pub fn of_job(job_id: Option<&str>) -> Option<Cgroup> {
        let text = fs::read_to_string(source("cgroup")).ok()?;
        let mounts = mounts();
        let mut groups: Vec<(&str, &Path)> = text
            .lines()
            .filter_map(|line| {
                // 4:memory:/slurm/uid_1000/job_7/step_0, or 0::/system.slice/cron.service
                let (_, rest) = line.split_once(':')?;
                let (hierarchy, path) = rest.split_once(':')?;
                Some((hierarchy, Path::new(path)))
            })
            .collect();
        // the unified hierarchy first, then by depth: in most of the old ones little happens
        groups.sort_by_key(|(hierarchy, path)| {
            (
                !hierarchy.is_empty(),
                usize::MAX - path.components().count(),
            )
        });
        let found = |hierarchy: &str, path: &Path| {
            let ino = fs::metadata(directory(&mounts, hierarchy, path)?)
                .ok()?
                .ino();
            Some(Cgroup {
                hierarchy: hierarchy.to_owned(),
                path: path.to_owned(),
                ino,
                cgroup_ns: process::namespace("cgroup"),
                boot_id: process::boot_id(),
            })
        };
        let named = groups
            .iter()
            .find_map(|(hierarchy, path)| found(hierarchy, job_part(path, job_id?)?));
        named.or_else(|| {
            groups
                .iter()
                .filter(|(_, path)| *path != Path::new("/"))
                .find_map(|(hierarchy, path)| found(hierarchy, path))
        })
    }

    /// Does its path name that job?
    pub fn names(&self, job_id: &str) -> bool {
        job_part(&self.path, job_id).is_some()
    }

    pub fn life(&self) -> Life {
        match (&self.boot_id, process::boot_id()) {
            (Some(then), Some(now)) if *then != now => return Life::Dead,
            (Some(_), Some(_)) => {}
            _ => return Life::Doubt,
        }
        if self.cgroup_ns.is_none() || self.cgroup_ns != process::namespace("cgroup") {
            return Life::Doubt;
        }
        let Some(dir) = directory(&mounts(), &self.hierarchy, &self.path) else {
            return Life::Doubt;
        };
        match fs::symlink_metadata(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Life::Dead,
            Err(_) => return Life::Doubt,
            Ok(meta) if meta.ino() != self.ino => return Life::Dead,
            Ok(_) => {}
        }
        let is_populated = match self.hierarchy.is_empty() {
            true => fs::read_to_string(dir.join("cgroup.events"))
                .ok()
                .and_then(|events| populated(&events)),
            false => (0..LOOKS)
                .map(|_| has_tasks(&dir))
                .find(|tasks| *tasks != Some(false))
                .unwrap_or(Some(false)),
        };
        match is_populated {
            Some(true) => Life::Alive,
            Some(false) => Life::Dead,
            // it may have gone just now; the next one will see
            None => Life::Doubt,
        }
    }
}

impl fmt::Display for Cgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display().to_string();
        write!(f, "the processes of cgroup `{}`", path.escape_debug())
    }
}

/// `path` up to the component that names the job.
fn job_part<'a>(path: &'a Path, job_id: &str) -> Option<&'a Path> {
    let number = job_id.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
    let names = |component: &str| {
        component == job_id
            || component
                .split(|c: char| !c.is_ascii_alphanumeric())
                .any(|word| word == number)
    };
    let of = |is_one: &dyn Fn(&str) -> bool| {
        let is_named = |part: &&Path| {
            let last = part.file_name().and_then(|name| name.to_str());
            last.is_some_and(|last| names(last) && is_one(last))
        };
        path.ancestors().filter(is_named).last()
    };
    // `/slurm/uid_7/job_7/step_7`: a user's or a step's number may be the same
    let others = ["step", "task", "uid", "user"];
    of(&|name| name.starts_with("job"))
        .or_else(|| of(&|name| !others.iter().any(|other| name.starts_with(other))))
}

/// `populated 1` of cgroup.events
fn populated(events: &str) -> Option<bool> {
    let value = events
        .lines()
        .find_map(|line| line.strip_prefix("populated "))?;
    Some(value.trim() != "0")
}

/// Is a process in the group, or in one below it? The old hierarchies have no cgroup.events.
fn has_tasks(dir: &Path) -> Option<bool> {
    if !fs::read_to_string(dir.join("cgroup.procs"))
        .ok()?
        .is_empty()
    {
        return Some(true);
    }
    for entry in fs::read_dir(dir).ok()? {
        let entry = entry.ok()?;
        if entry.file_type().ok()?.is_dir() && has_tasks(&entry.path())? {
            return Some(true);
        }
    }
    Some(false)
}

/// Where a hierarchy is mounted.
struct Mount {
    hierarchy: Vec<String>,
    /// What of the hierarchy is to be seen there.
    root: PathBuf,
    point: PathBuf,
    device: u64,
}

fn mounts() -> Vec<Mount> {
    let text = fs::read_to_string(source("mountinfo")).unwrap_or_default();
    text.lines().filter_map(mount).collect()
}

/// `38 31 0:34 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer`
fn mount(line: &str) -> Option<Mount> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(2);
    let (major, minor) = place.next()?.split_once(':')?;
    let (root, point) = (place.next()?, place.next()?);
    let mut kind = kind.split(' ');
    let hierarchy = match kind.next()? {
        "cgroup2" => Vec::new(),
        "cgroup" => kind.nth(1)?.split(',').map(str::to_owned).collect(),
        _ => return None,
    };
    Some(Mount {
        hierarchy,
        root: root.into(),
        point: point.into(),
        device: nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?),
    })
}

/// The directory of the group `path`, if its hierarchy is to be seen.
fn directory(mounts: &[Mount], hierarchy: &str, path: &Path) -> Option<PathBuf> {
    let is_it = |mount: &&Mount| match hierarchy {
        "" => mount.hierarchy.is_empty(),
        controllers => controllers
            .split(',')
            .all(|controller| mount.hierarchy.iter().any(|other| other == controller)),
    };
    // what lies outside of our namespace begins with `/..`
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    mounts.iter().filter(is_it).find_map(|mount| {
        let below = path.strip_prefix(&mount.root).ok()?;
        // nothing else is mounted above it
        let seen = fs::symlink_metadata(&mount.point).ok()?;
        (seen.dev() == mount.device).then(|| mount.point.join(below))
    })
}

/// A file of /proc/self. In builds with debug assertions a test brings its own (`SC_CGROUPS`).
fn source(name: &str) -> PathBuf {
    let dir = process::pretended("SC_CGROUPS").unwrap_or_else(|| "/proc/self".into());
    Path::new(&dir).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_found_in_the_path_of_its_step() {
        for (path, id, part) in [
            (
                "/system.slice/slurmstepd.scope/job_4711/step_batch/user/task_0",
                "4711",
                Some("/system.slice/slurmstepd.scope/job_4711"),
            ),
            ("/slurm/uid_7/job_7/step_7", "7", Some("/slurm/uid_7/job_7")),
            ("/slurm/uid_4711/job_7/step_0", "4711", None),
            (
                "/pbs_jobs.service/jobid/4711.server/x",
                "4711.server",
                Some("/pbs_jobs.service/jobid/4711.server"),
            ),
            (
                "/lsf/site/job.12.3.9/14",
                "12",
                Some("/lsf/site/job.12.3.9"),
            ),
            ("/system.slice/slurmd.service", "4711", None),
            ("/job_47111", "4711", None),
            ("/", "4711", None),
        ] {
            assert_eq!(job_part(Path::new(path), id), part.map(Path::new), "{path}");
        }
    }

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let line = "38 31 0:34 /a /sys/fs/cgroup/freezer rw,relatime shared:7 - cgroup cgroup \
                    rw,freezer";
        let mount = mount(line).unwrap();
        assert_eq!(mount.root, Path::new("/a"));
        assert_eq!(mount.point, Path::new("/sys/fs/cgroup/freezer"));
        assert_eq!(mount.device, nix::sys::stat::makedev(0, 34));
        assert!(mount.hierarchy.contains(&"freezer".to_owned()));
    }

    #[test]
    fn only_what_the_kernel_says_is_empty_is_empty() {
        assert_eq!(populated("populated 0\nfrozen 0\n"), Some(false));
        assert_eq!(populated("frozen 0\npopulated 1\n"), Some(true));
        assert_eq!(populated(""), None);
    }
}
