//! Guests: users who hold a repository that another one shares with all (`--share=all`).
//!
//! A guest cannot write the repofile. He records his hold in a file of his own in `holders/`, a
//! sticky directory that all may write: one holder as JSON, which for `--run` is the locked file
//! itself. He writes it under the repository's lock, and whoever would delete or load anew looks
//! there under the same lock; so the instant the file is whole is the instant the use exists, and no
//! hold is missed. It ends as any hold does: he removes the file, or what it names is proven dead.
//!
//! Anybody may put anything there. What is no regular file of one name, what is long, what is no
//! holder, what the owner himself or root made (theirs stand in the repofile) is nobody's hold; no
//! link is followed, and no FIFO waited for. A hold says something of processes and files; it is
//! asked about with the rights of its file's owner only (`--fd`: a file that is his). So the worst
//! that a guest can say is that he holds for ever.

use std::ffi::{OsStr, OsString};
use std::io::Read;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::holder::{Hold, Holder};
use super::{Held, layout};
use crate::durable::{self, Dir, PRIVATE_DIR, PRIVATE_FILE, write_all};
use crate::error::{Error, IoContext, Result};
use crate::process::{self, Life};
use crate::share::Share;

/// A holder has some hundred bytes, and what `--id` says.
const LONGEST: u64 = 64 << 10;

/// The mode of `holders/`, where all may make files and nobody takes another's away.
const HOLDERS: u32 = 0o1777;

/// The hold of another user.
#[derive(Debug, Clone)]
pub struct Guest {
    pub holder: Holder,
    pub uid: u32,
    file: OsString,
}

impl Guest {
    pub fn life(&self, control: &Dir) -> Life {
        let life = self.holder.life_of(control, self.uid);
        life.unwrap_or(Life::Doubt)
    }
}

impl std::fmt::Display for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of uid {}", self.holder, self.uid)
    }
}

/// Are we guests in the repository of this control directory?
pub fn are_we(control: &Dir) -> Result<bool> {
    Ok(control.share() == Share::All && !durable::is_ours(&control.stat()?))
}

/// Opens `holders/`, made by the owner where it is not there.
pub(super) fn ensure_dir(control: &Dir) -> Result<Dir> {
    let name = OsStr::new(layout::HOLDERS);
    let holders = control.ensure_dir(name, PRIVATE_DIR)?;
    if holders.stat()?.st_mode & 0o7777 != HOLDERS {
        holders.chmod(HOLDERS)?;
    }
    Ok(holders)
}

/// All holds of guests, dead or alive.
pub fn read(control: &Dir) -> Vec<Guest> {
    if control.share() != Share::All {
        return Vec::new();
    }
    let read = || -> Result<Vec<Guest>> {
        let Some(holders) = control.find_dir(OsStr::new(layout::HOLDERS))? else {
            return Ok(Vec::new());
        };
        let owner = control.stat()?.st_uid;
        let mut guests = Vec::new();
        for name in holders.names()? {
            // one that cannot be read is none; the others count all the same
            guests.extend(parse(&holders, &name, owner).ok().flatten());
        }
        Ok(guests)
    };
    read().unwrap_or_default()
}

fn parse(holders: &Dir, name: &OsStr, owner: u32) -> Result<Option<Guest>> {
    let may_be = |stat: &nix::sys::stat::FileStat| {
        durable::is_file(stat)
            && ![0, owner].contains(&stat.st_uid)
            && stat.st_nlink == 1
            && (1..=LONGEST).contains(&(stat.st_size as u64))
    };
    if !holders.lstat(name)?.is_some_and(|stat| may_be(&stat)) {
        return Ok(None);
    }
    let Some(mut file) = holders.find_file(name, OFlag::O_RDONLY)? else {
        return Ok(None);
    };
    let path = holders.path_of(name);
    let stat = nix::sys::stat::fstat(&file).io("cannot stat", &path)?;
    if !may_be(&stat) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.by_ref()
        .take(LONGEST)
        .read_to_end(&mut bytes)
        .io("cannot read", &path)?;
    let Ok(holder) = serde_json::from_slice::<Holder>(&bytes) else {
        return Ok(None);
    };
    let is_his = match &holder.hold {
        Hold::Lock { file, .. } => OsStr::new(file) == name,
        _ => true,
    };
    Ok(is_his.then(|| Guest {
        holder,
        uid: stat.st_uid,
        file: name.to_owned(),
    }))
}

/// The living ones, and the dead.
pub fn judge(control: &Dir) -> (Vec<Guest>, Vec<Guest>) {
    let guests = read(control).into_iter();
    guests.partition(|guest| guest.life(control) != Life::Dead)
}

/// Our own holds by this holder.
fn own(control: &Dir, holder: &Holder) -> Vec<Guest> {
    let mut guests = read(control);
    guests.retain(|guest| guest.uid == process::user() && guest.holder.is_same(holder));
    guests
}

/// Does this holder hold, by a file of ours?
pub fn holds(control: &Dir, holder: &Holder) -> bool {
    !own(control, holder).is_empty()
}

/// Registers a guest, once.
pub fn join(held: &Held, holder: &Holder) -> Result<()> {
    let holders = held.holders()?;
    let before = own(&held.control, holder);
    let bytes = serde_json::to_vec(holder).map_err(|error| Error::Internal {
        problem: format!("a holder that cannot be written: {error}"),
    })?;
    let (name, mut file) = match &holder.hold {
        Hold::Lock { file, .. } => {
            let name = OsString::from(file);
            let file = holders.open_file(&name, OFlag::O_RDWR)?;
            (name, file)
        }
        _ => {
            let name = OsString::from(process::random_name());
            let file = holders.create(&name, PRIVATE_FILE)?;
            (name, file)
        }
    };
    held.check()?; // I1
    if let Err(error) = write_all(&mut file, &bytes) {
        let _ = holders.unlink(&name);
        return Err(error).io("cannot write", &holders.path_of(&name));
    }
    remove(&holders, before.iter().filter(|guest| guest.file != name))
}

/// Gives a guest's hold back; false if there was none.
pub fn leave(held: &Held, holder: &Holder) -> Result<bool> {
    let own = own(&held.control, holder);
    if !own.is_empty() {
        remove(&held.holders()?, own.iter())?;
    }
    Ok(!own.is_empty())
}

fn remove<'a>(holders: &Dir, mut guests: impl Iterator<Item = &'a Guest>) -> Result<()> {
    guests.try_for_each(|guest| holders.unlink(&guest.file).map(drop))
}

/// Takes the files of these away, as far as they may be.
pub(super) fn forget(control: &Dir, guests: &[Guest]) -> Result<()> {
    match control.find_dir(OsStr::new(layout::HOLDERS))? {
        Some(holders) => remove(&holders, guests.iter()),
        None => Ok(()),
    }
}

/// Takes away all that others put into `holders/`: nobody holds any more. A directory that is not
/// empty stays; it may be anybody's.
pub(super) fn sweep(control: &Dir) -> Result<()> {
    let (name, owner) = (OsStr::new(layout::HOLDERS), control.stat()?.st_uid);
    let Some(holders) = control.find_dir(name)? else {
        return Ok(());
    };
    for name in holders.names()? {
        let removed = match holders.lstat(&name)? {
            Some(stat) if durable::is_dir(&stat) => holders.rmdir(&name),
            Some(stat) if stat.st_uid != owner => holders.unlink(&name),
            _ => Ok(true),
        };
        match removed {
            Err(error) if error.errno() != Some(Errno::EPERM) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
