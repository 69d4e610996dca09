//! Names on disk, all in one place.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The control directory of an unnamed repository; `.sc.<last>` is that of a named one.
pub const CONTROL: &str = ".sc";
pub const LOCK: &str = "lock";
/// A lock file that is not one yet; a random name follows.
pub const LOCK_NEXT: &str = "lock.";
pub const JOURNAL: &str = "journal";
/// A journal without what counts no more, until it is renamed.
pub const JOURNAL_NEXT: &str = "journal.next";
/// A journal that no longer counts, kept for whoever asks what happened.
pub const JOURNAL_ASIDE: &str = "journal.old";
pub const HOLDERS: &str = "holders";
pub const STAGING: &str = "staging";
pub const TRASH: &str = "trash-";
/// What the repofile last said: our copy, should a reference be killed while it rewrites it.
pub const LAST: &str = "repofile.last";
/// Tells programs that make backups to leave the control directory out (bford.info/cachedir).
pub const TAG: &str = "CACHEDIR.TAG";
/// What a load under way has claimed of the file system, in bytes; locked by its loader.
pub const SPACE: &str = "space";
/// The next claim, until it is renamed.
pub const SPACE_NEXT: &str = "space.next";
/// The journal of a load that stages new data while the old ones stay: `next/journal`.
pub const NEXT_LOAD: &str = "next";
/// The next repofile, until it is renamed.
pub const NEXT: &str = "repofile.next";

/// `<parent>/.sc.<last>`
pub fn control_name(last: Option<&OsStr>) -> OsString {
    let mut name = OsString::from(CONTROL);
    if let Some(last) = last {
        name.push(".");
        name.push(last);
    }
    name
}

/// Joins and folds as Python's `normpath(join(base, name))`: the text that `--location` prints.
/// Links are not resolved; `..` in a base is folded textually, as the reference did.
pub fn location(base: &Path, name: Option<&Path>) -> PathBuf {
    let joined = match name {
        Some(name) => base.join(name),
        None => base.to_owned(),
    };
    // POSIX lets two leading slashes mean something; normpath keeps exactly two.
    let bytes = joined.as_os_str().as_bytes();
    let double_root = bytes.starts_with(b"//") && !bytes.starts_with(b"///");
    let mut folded = PathBuf::new();
    let mut depth = 0;
    for component in joined.components() {
        match component {
            Component::RootDir => folded.push(if double_root { "//" } else { "/" }),
            Component::ParentDir if depth > 0 => {
                folded.pop();
                depth -= 1;
            }
            Component::ParentDir if folded.has_root() => {}
            Component::ParentDir => folded.push(".."),
            Component::Normal(part) => {
                folded.push(part);
                depth += 1;
            }
            Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if folded.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        folded
    }
}

/// A path as text that JSON and lines can hold: bytes that are no plain ASCII as `%XX`.
pub fn encode(path: &Path) -> String {
    use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
    const SET: &AsciiSet = &CONTROLS.add(b'%');
    percent_encode(path.as_os_str().as_bytes(), SET).to_string()
}

/// Is it a path that leads down, and nowhere else?
pub fn is_below(path: &Path) -> bool {
    let mut components = path.components().peekable();
    components.peek().is_some() && components.all(|part| matches!(part, Component::Normal(_)))
}

pub fn decode(text: &str) -> PathBuf {
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(text).collect();
    PathBuf::from(<OsString as std::os::unix::ffi::OsStringExt>::from_vec(
        bytes,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_spelled_as_the_reference_spelled_them() {
        for (base, name, expected) in [
            ("/tmp", Some("r"), "/tmp/r"),
            (".", Some("r"), "r"),
            (".", None, "."),
            ("", None, "."),
            ("/tmp//x/", None, "/tmp/x"),
            ("//tmp", Some("r"), "//tmp/r"),
            ("///tmp", None, "/tmp"),
            ("a/../b", Some("r"), "b/r"),
            ("../b", Some("r"), "../b/r"),
            ("/..", Some("r"), "/r"),
            ("a/..", None, "."),
        ] {
            let folded = location(Path::new(base), name.map(Path::new));
            assert_eq!(folded, Path::new(expected), "{base} {name:?}");
            assert_eq!(folded.as_os_str(), OsStr::new(expected), "{base} {name:?}");
        }
    }

    #[test]
    fn any_path_survives_encoding() {
        let path = Path::new(OsStr::from_bytes(b"a b%41/\xff\n\xc3\xa9\"\\"));
        let text = encode(path);
        assert!(text.is_ascii() && !text.contains('\n'), "{text}");
        assert_eq!(decode(&text), path);
        assert_eq!(encode(Path::new("plain/name.tar.gz")), "plain/name.tar.gz");
    }
}
