//! Network file systems: whether a directory is on one, and whether locks work there.
//!
//! Everything here rests on flock(2), and a network file system may take it for granted and lock
//! nothing, refuse it, or ask a server that does not answer. What statfs(2) says tells which file
//! systems those are. One of them is refused unless the user allows it, and even then each sc
//! first sees two descriptions of the lock file exclude each other.

use std::ffi::OsStr;
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::OFlag;

use super::layout;
use crate::durable::{self, Dir, Flock};
use crate::error::{Error, Result, spoken};
use crate::mounts::Place;

/// The `f_type` of statfs(2) of file systems that several nodes may share.
const KINDS: &[(u32, &str)] = &[
    (0x0102_1997, "9p"),
    (0x6163_6673, "ACFS"),
    (0x5346_414F, "AFS"),
    (0x6B41_4653, "AFS"),
    (0x1983_0326, "BeeGFS"),
    (0x00C3_6400, "CephFS"),
    (0xFF53_4D42, "CIFS"),
    (0x7375_7245, "Coda"),
    (FUSE, "FUSE"),
    (0x0116_1970, "GFS2"),
    (0x4750_4653, "GPFS"),
    (0x0131_11A8, "IBRIX"),
    (0x0BD0_0BD0, "Lustre"),
    (0x0000_564C, "NCP"),
    (0x0000_6969, "NFS"),
    (0x7461_636F, "OCFS2"),
    (0x2003_0528, "OrangeFS"),
    (0xAAD7_AAEA, "PanFS"),
    (0x0000_517B, "SMB"),
    (0xFE53_4D42, "SMB"),
    (0xBEEF_DEAD, "SNFS"),
    (0x786F_4256, "VirtualBox"),
    (0xBACB_ACBC, "VMware"),
    (0xA501_FCF5, "VxFS"),
];

const FUSE: u32 = 0x6573_5546;

/// Types of /proc/self/mountinfo that are FUSE, and on this node alone.
const LOCAL_FUSE: &[&str] = &["fuseblk", "fuse.fuse-overlayfs"];

/// A server that has not answered by then is taken for one that never will.
const TRIAL: Duration = Duration::from_secs(10);

/// What kind of network file system `dir` is on; `None`: a local one.
pub fn kind(dir: &Dir) -> Result<Option<String>> {
    let magic = durable::file_system_type(dir)?;
    let Some((_, name)) = KINDS.iter().find(|(kind, _)| *kind == magic) else {
        return Ok(None);
    };
    if magic != FUSE {
        return Ok(Some((*name).into()));
    }
    let fuse = Place::of(dir.path()).map_or((*name).into(), |place| place.mount.kind);
    Ok((!LOCAL_FUSE.contains(&fuse.as_str())).then_some(fuse))
}

/// # Errors
/// [`Error::NetworkFs`]
pub fn refuse(dir: &Dir) -> Result<()> {
    match kind(dir)? {
        Some(kind) => Err(Error::NetworkFs {
            path: dir.path().to_owned(),
            kind,
        }),
        None => Ok(()),
    }
}

/// Sees the lock file in `control` be locked once, and not twice.
///
/// A call that a server does not answer may not be ended by a signal. So a thread makes it, and
/// where it does not come back it ends with us.
///
/// # Errors
/// [`Error::NoLocks`]
pub fn prove_locks(control: &Dir) -> Result<()> {
    let name = OsStr::new(layout::LOCK);
    let fail = |problem: String| Error::NoLocks {
        path: control.path().to_owned(),
        problem,
    };
    let open = || control.open_file(name, OFlag::O_RDWR);
    let (one, two) = match (open(), open()) {
        (Ok(one), Ok(two)) => (one, two),
        // taken away by one who was leaving: whoever takes the lock now finds out
        _ => return Ok(()),
    };
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let trial = || {
            durable::point("trial lock")?;
            Ok(durable::try_flock(&one, Flock::Exclusive)?
                && durable::try_flock(&two, Flock::Exclusive)?)
        };
        let outcome = trial();
        // not one moment longer than the answer takes
        drop((one, two));
        let _ = tell.send(outcome);
    });
    match told.recv_timeout(TRIAL) {
        // one of the two was told that somebody has it
        Ok(Ok(false)) => Ok(()),
        Ok(Ok(true)) => Err(fail("two have it at once".into())),
        Ok(Err(error)) => Err(fail(spoken(&error))),
        Err(_) => Err(fail(format!("no answer within {} s", TRIAL.as_secs()))),
    }
}
