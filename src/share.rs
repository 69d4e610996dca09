//! Who else may join a repository (`--share`), and by which modes on disk that is told.
//!
//! | share | control directory | its files | the repository's directory | who joins |
//! |---|---|---|---|---|
//! | user | 0700 | 0600 | 0777 by the umask | its owner |
//! | group | 2770, of the group | 0660 | 2775 by the umask, 2770 at least | the group: as if it were one user |
//! | all | 1755 | 0644, `lock` 0666 | 0755 by the umask | anybody, as a guest |
//!
//! The modes are the only record: whoever could forge them could do all that they grant. Root acts
//! for the owner of a control directory, whatever its share.
//!
//! # A repository is joined by its own setting and by ours
//!
//! Its modes say who *may* come; whoever *uses* another user's repository must have said so himself
//! (`--share`), for he is about to trust that user's data. One who said nothing is refused as ever:
//! a name in /tmp that somebody of the group `users` took first must not feed him; nor do the
//! repositories of others keep his `--list`, `--gc` and evictions busy. To leave one, or to delete
//! it by its name, takes no such word: that trusts no data.
//!
//! # Group
//!
//! Its members trust each other: any of them loads on, replaces the repofile, tears down. What it
//! takes is that every directory is writable for the group and hands its group on
//! ([`Share::is_open`]); [`crate::durable::Dir`] sees to that for each directory it makes below,
//! those of the data included, whatever umask, archive or `--read-only` say. Who may *read* the
//! data still follows the umask.
//!
//! The journal names what is deleted, and any member may write it. So nobody deletes by it where
//! the group could not without him: only in open directories. A directory of ours that is closed to
//! the group stays, whoever names it.
//!
//! A directory's group is handed on by a set-gid directory to whoever makes one there, member or
//! not. So where everybody may write into such a directory, its group proves nothing and is
//! refused.
//!
//! A directory that is to be shared is made beside its place and moved there when its modes are
//! right ([`crate::repository::Repository`]): nobody meets it half open, and takes it for a
//! stranger's. In a sticky base directory a member cannot take away another one's two directories:
//! there they stay, empty, with a journal that says whose they are, for their owner, for root, or
//! for the next load.
//!
//! # All
//!
//! The data, the repofile and all notes stay the owner's, and only what is his is believed. A
//! stranger is a guest ([`crate::repository::guest`]): he may take the lock, and leave a file of his
//! own in `holders/` (1777), which whoever would delete looks at. Nothing else is open to him: a
//! directory where everybody may make names would have every name of ours taken by somebody. A
//! guest can neither load nor tear down, and is told so (77). What he can do is to hold for ever,
//! or to keep the lock.

use nix::sys::stat::FileStat;

use crate::process;

/// What can be said with `--share`; each is wider than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Kind {
    #[default]
    User,
    Group,
    All,
}

impl Kind {
    pub const FORMS: &str = "it is `user`, `group` or `all`";

    pub fn word(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::Group => "group",
            Kind::All => "all",
        }
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        [Kind::User, Kind::Group, Kind::All]
            .into_iter()
            .find(|kind| kind.word() == text)
            .ok_or(format!("`{text}` is nobody to share with"))
    }
}

/// Who may join, as a control directory tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Share {
    #[default]
    User,
    /// This group (gid).
    Group(u32),
    All,
}

/// For the group to search, read and write, and handed on to what is made in it.
const OPEN: u32 = 0o2070;

/// The mode of a control directory that all may join.
const ALL: u32 = 0o1755;

impl Share {
    /// By the modes of a control directory. `None`: others may write in it, and it proves nothing.
    pub fn of(control: &FileStat) -> Option<Share> {
        let mode = control.st_mode & 0o7777;
        match mode {
            _ if mode & (OPEN | 0o002) == OPEN => Some(Share::Group(control.st_gid)),
            _ if mode & 0o022 != 0 => None,
            ALL => Some(Share::All),
            _ => Some(Share::User),
        }
    }

    pub fn kind(self) -> Kind {
        match self {
            Share::User => Kind::User,
            Share::Group(_) => Kind::Group,
            Share::All => Kind::All,
        }
    }

    /// Does it let us in, to a directory of another user in `parent`?
    pub fn admits_us(self, parent: &FileStat) -> bool {
        match self {
            Share::User => false,
            Share::Group(gid) => process::is_in_group(gid) && !proves_nothing(parent, gid),
            Share::All => true,
        }
    }

    /// Is this a directory where everyone whom it is shared with may do as its owner?
    pub fn is_open(self, stat: &FileStat) -> bool {
        match self {
            Share::Group(gid) => stat.st_gid == gid && stat.st_mode & (OPEN | 0o1002) == OPEN,
            Share::User | Share::All => false,
        }
    }

    /// The mode of a directory that is ours alone, shared so.
    pub fn own_dir(self) -> u32 {
        match self {
            Share::Group(_) => OPEN | 0o700,
            Share::User | Share::All => 0o700,
        }
    }

    /// The same for a file.
    pub fn own_file(self) -> u32 {
        match self {
            Share::User => 0o600,
            Share::Group(_) => 0o660,
            Share::All => 0o644,
        }
    }

    /// The mode of a control directory.
    pub fn control(self) -> u32 {
        match self {
            Share::All => ALL,
            share => share.own_dir(),
        }
    }

    /// What becomes of the mode of any other directory.
    pub fn dir(self, mode: u32) -> u32 {
        match self {
            Share::Group(_) => (mode | OPEN) & !0o002,
            Share::User | Share::All => mode,
        }
    }

    /// What becomes of the mode of a file, made by the umask, that all who join read.
    pub fn state_file(self, mode: u32) -> u32 {
        match self {
            Share::User => mode,
            Share::Group(_) => (mode | 0o660) & !0o002,
            Share::All => (mode | 0o444) & !0o022,
        }
    }
}

/// Does everybody make directories of this group there?
pub fn proves_nothing(parent: &FileStat, gid: u32) -> bool {
    parent.st_gid == gid && parent.st_mode & 0o2002 == 0o2002
}
