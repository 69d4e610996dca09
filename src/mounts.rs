//! Mounts as /proc tells them: whether a directory is the same one for every job of the node.
//!
//! A batch system may give each job a `/tmp` of its own (Slurm's job_container, HTCondor's
//! MOUNT_UNDER_SCRATCH, systemd's PrivateTmp). To the job it looks like any other; its mount tells.
//! What process 1 has mounted at the same place is the proof, where we may look at it; else the
//! directory that is mounted there gives it away by its name.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// One line of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `8:1`
    pub device: String,
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// `ext4`
    pub kind: String,
}

impl Mount {
    /// Where `path` is on the file system itself: the same however it is mounted.
    fn inside(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.point) {
            Ok(rest) if rest != Path::new("") => self.root.join(rest),
            _ => self.root.clone(),
        }
    }
}

/// A directory, and the mount it lies on.
#[derive(Debug, Clone)]
pub struct Place {
    /// Absolute, without links.
    path: PathBuf,
    pub mount: Mount,
}

/// Is a directory the same one for every job?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shared {
    Yes(String),
    No(String),
    /// Nothing is proven.
    Doubt(String),
}

impl Place {
    /// `None`: /proc does not tell.
    pub fn of(directory: &Path) -> Option<Place> {
        let path = directory.canonicalize().ok()?;
        let mount = find(&fs::read("/proc/self/mountinfo").ok()?, &path)?;
        Some(Place { path, mount })
    }

    /// Has every job of the node this directory? `jobs` are the ids that the batch system gave us.
    pub fn is_shared(&self, jobs: &[String]) -> Shared {
        let init = fs::read("/proc/1/mountinfo").ok();
        let init = init.and_then(|text| find(&text, &self.path));
        judge(&self.path, &self.mount, init, jobs)
    }
}

fn judge(path: &Path, mount: &Mount, init: Option<Mount>, jobs: &[String]) -> Shared {
    let root = mount.root.display();
    let mut names = mount.root.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_string_lossy()),
        _ => None,
    });
    let whose = names.find_map(|name| {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if name.starts_with("systemd-private-") {
            Some("one service (systemd's `PrivateTmp`)")
        } else if name.strip_prefix("dir_").is_some_and(is_number) {
            Some("one job (HTCondor's `MOUNT_UNDER_SCRATCH`)")
        } else if name
            .split(['.', '_', '-'])
            .any(|part| jobs.iter().any(|job| job == part))
        {
            Some("one job (Slurm's `job_container` does that)")
        } else {
            None
        }
    });
    if let Some(whose) = whose {
        return Shared::No(format!("private to {whose}: it is `{root}`"));
    }
    match init {
        // a container may mount by itself what for process 1 lies on a larger mount
        Some(init) if init.device == mount.device && init.inside(path) == mount.inside(path) => {
            Shared::Yes("process 1 has the same directory there".into())
        }
        Some(init) => Shared::No(format!(
            "private: it is `{}` of the {} file system {}, and for process 1 `{}` of the {} \
             file system {}",
            mount.inside(path).display(),
            mount.kind,
            mount.device,
            init.inside(path).display(),
            init.kind,
            init.device
        )),
        // btrfs mounts subvolumes by their path
        None if mount.root != Path::new("/") && mount.kind != "btrfs" => Shared::Doubt(format!(
            "it is `{root}`, mounted there; whether for all jobs root can tell"
        )),
        None => Shared::Doubt("nothing speaks against it; root can tell for certain".into()),
    }
}

/// The last mount, and the deepest, that `path` lies below.
fn find(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(parse)
        .filter(|mount| path.starts_with(&mount.point))
        // of two at one point the later covers the earlier
        .max_by_key(|mount| mount.point.components().count())
}

fn parse(line: &[u8]) -> Option<Mount> {
    // 36 35 98:0 /root /mnt rw,noatime shared:1 - ext4 /dev/sda rw
    let mut words = line.split(|&byte| byte == b' ');
    let device = words.nth(2)?;
    let (root, point) = (words.next()?, words.next()?);
    let kind = words.skip_while(|word| *word != b"-").nth(1)?;
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    Some(Mount {
        device: text(device),
        root: unescape(root),
        point: unescape(point),
        kind: text(kind),
    })
}

/// Blanks, newlines and backslashes are written as `\040`.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| byte == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(root: &str, kind: &str) -> Mount {
        Mount {
            device: "8:1".into(),
            root: root.into(),
            point: "/tmp".into(),
            kind: kind.into(),
        }
    }

    #[test]
    fn the_deepest_and_latest_mount_counts() {
        let text = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n\
            30 27 0:30 / /tmp rw shared:5 master:1 - tmpfs tmpfs rw\n\
            31 27 8:2 /a\\040b /tmp rw - xfs /dev/sdb rw\n\
            32 27 0:32 / /tmpfoo rw - tmpfs tmpfs rw\n\
            nonsense\n";
        let found = find(text, Path::new("/tmp/x")).unwrap();
        assert_eq!((found.kind.as_str(), found.root), ("xfs", "/a b".into()));
        assert_eq!(find(text, Path::new("/tm")).unwrap().kind, "ext4");
        assert_eq!(find(text, Path::new("/tmpfoo")).unwrap().kind, "tmpfs");
        assert_eq!(find(b"", Path::new("/")), None);
        assert!(Place::of(Path::new("/")).is_some());
    }

    #[test]
    fn a_private_directory_is_known_by_its_name_or_by_process_1() {
        let jobs = ["4711".to_owned()];
        for (root, init, expected) in [
            ("/", Some("/"), "yes"),
            ("/", Some("/tmp"), "private: "),
            ("/tmp", None, "doubt"),
            ("/", None, "doubt"),
            (
                "/tmp/systemd-private-0f-x.service-a/tmp",
                Some("/"),
                "private to one service (systemd",
            ),
            (
                "/var/lib/condor/execute/dir_4242/tmp",
                None,
                "private to one job (HTCondor",
            ),
            (
                "/scratch/4711/.4711/_tmp",
                None,
                "private to one job (Slurm",
            ),
            ("/scratch/147112", None, "doubt"),
            ("/scratch/dir_x", None, "doubt"),
        ] {
            let init = init.map(|root| mount(root, "ext4"));
            let judged = judge(Path::new("/tmp/x"), &mount(root, "ext4"), init, &jobs);
            let text = match judged {
                Shared::Yes(_) => "yes".to_owned(),
                Shared::Doubt(_) => "doubt".to_owned(),
                Shared::No(why) => why,
            };
            assert!(text.starts_with(expected), "{root}: {text}");
        }
        // bound by a container, and for process 1 a directory like others
        let init = Mount {
            point: "/".into(),
            ..mount("/", "ext4")
        };
        for (root, is_shared) in [("/tmp", true), ("/", false)] {
            let own = mount(root, "ext4");
            for path in ["/tmp", "/tmp/x"] {
                let judged = judge(Path::new(path), &own, Some(init.clone()), &jobs);
                assert_eq!(matches!(judged, Shared::Yes(_)), is_shared, "{root} {path}");
            }
        }
    }
}
