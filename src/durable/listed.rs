//! The names in a directory, as the kernel lists them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::SFlag;

/// What getdents64(2) says of a directory.
#[derive(Debug)]
pub struct Listed(pub(super) Vec<u8>);

/// One name in it.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    pub name: &'a OsStr,
    /// The inode, or what the file system takes for one here; under a mount point what is mounted
    /// over.
    pub ino: u64,
    /// What it is; nothing where the file system does not say.
    pub kind: SFlag,
}

impl Listed {
    /// The names, `.` and `..` left out.
    pub fn iter(&self) -> impl Iterator<Item = Name<'_>> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            // struct linux_dirent64: inode, offset, length, type, name up to a zero byte
            let ino = u64::from_ne_bytes(rest.get(..8)?.try_into().ok()?);
            let length = u16::from_ne_bytes(rest.get(16..18)?.try_into().ok()?);
            let kind = *rest.get(18)?;
            let name = rest.get(19..usize::from(length))?;
            rest = &rest[usize::from(length)..];
            let end = name.iter().position(|&byte| byte == 0)?;
            Some(Name {
                name: OsStr::from_bytes(&name[..end]),
                ino,
                // DT_* are the type bits of a mode (IFTODT)
                kind: SFlag::from_bits_truncate(libc::mode_t::from(kind) << 12),
            })
        })
        .filter(|name| !matches!(name.name.as_bytes(), b"." | b".."))
    }
}
