//! Other users of a node in a directory that all may write: what they put where ours belongs, and
//! what they do while we are at work. Becoming somebody else needs root.
//!
//! What the kernel's `fs.protected_*` say is as it is on this node; `scripts/soak-neighbours` runs
//! these tests under all of them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::node::{Fifo, Node, SC, Sc, tar_gz};

/// Who runs sc, and whose files are in danger.
const US: u32 = 20_001;
const NEIGHBOUR: u32 = 20_002;

/// A node whose base directory is like /tmp.
pub struct Tmp {
    pub node: Node,
    /// Options and modules.
    pub stack: String,
    victim: PathBuf,
}

impl Tmp {
    /// `None`, said aloud, where we can't become another user.
    pub fn new() -> Option<Tmp> {
        if shared_cache::process::user() != 0 {
            eprintln!("SKIPPED: becoming another user needs root");
            return None;
        }
        let node = Node::new();
        set_mode(&node.outside(""), 0o755);
        set_mode(node.base(), 0o1777);
        let archive = tar_gz(
            &node,
            "d.tar.gz",
            &[("a", "1"), ("bin/b", "2"), ("bin/deep/c", "3")],
        );
        let victim = node.outside("victim");
        fs::create_dir_all(victim.join("dir/bin/deep")).unwrap();
        // what teardown would delete, were it led here
        for name in ["file", "dir/a", "dir/bin/b", "dir/bin/deep/c", "dir/lock"] {
            fs::write(victim.join(name), "precious").unwrap();
        }
        let long_ago = SystemTime::now() - Duration::from_secs(7200);
        let times = fs::FileTimes::new().set_modified(long_ago);
        let file = fs::File::options().write(true).open(victim.join("file"));
        file.unwrap().set_times(times).unwrap();
        for path in tree(&victim) {
            lchown(victim.join(&path.0), Some(US), Some(US)).unwrap();
        }
        let stack = format!("file:{} tar", archive.display());
        Some(Tmp {
            node,
            stack,
            victim,
        })
    }

    /// `sc` as [`US`]; one that hangs is killed.
    pub fn sc(&self, words: &str) -> Sc {
        self.sc_as(US, words)
    }

    fn sc_as(&self, user: u32, words: &str) -> Sc {
        let mut sc = self.node.sc("");
        let mut command = std::process::Command::new("timeout");
        command.args(["-s", "KILL", "60", SC]);
        command.args(words.split_whitespace());
        command.arg(format!("--pid={}", std::process::id()));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap());
        command.env("SC_DIRECTORIES", self.node.base());
        command
            .current_dir(self.node.outside(""))
            .uid(user)
            .gid(user);
        sc.command = command;
        sc
    }

    fn victims(&self) -> Vec<(PathBuf, String)> {
        tree(&self.victim)
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Everything below `base`: what must not change of a file that is not ours.
fn tree(base: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut pending = vec![base.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = match meta.is_file() {
                true => String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned(),
                false => String::new(),
            };
            let what = format!(
                "{:o} {} {} {}.{} {content}",
                meta.mode(),
                meta.uid(),
                meta.ino(),
                meta.mtime(),
                meta.mtime_nsec()
            );
            found.push((path.strip_prefix(base).unwrap().to_owned(), what));
            if meta.is_dir() {
                pending.push(path);
            }
        }
    }
    found.sort();
    found
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    LinkToFile,
    LinkToDir,
    HardLink,
    Fifo,
    Dir,
    File,
}

const KINDS: [Kind; 6] = [
    Kind::LinkToFile,
    Kind::LinkToDir,
    Kind::HardLink,
    Kind::Fifo,
    Kind::Dir,
    Kind::File,
];

impl Kind {
    fn make(self, path: &Path, victim: &Path) {
        match self {
            Kind::LinkToFile => symlink(victim.join("file"), path).unwrap(),
            Kind::LinkToDir => symlink(victim.join("dir"), path).unwrap(),
            // the victim's own inode: it stays his
            Kind::HardLink => return fs::hard_link(victim.join("file"), path).unwrap(),
            Kind::Fifo => mkfifo(path, Mode::from_bits_truncate(0o666)).unwrap(),
            Kind::Dir => {
                fs::create_dir(path).unwrap();
                set_mode(path, 0o777);
            }
            Kind::File => {
                fs::write(path, "{\"state\":\"OK\",\"readers\":[],\"writer\":null}").unwrap();
                set_mode(path, 0o666);
            }
        }
        lchown(path, Some(NEIGHBOUR), Some(NEIGHBOUR)).unwrap();
    }
}

/// Puts each kind of thing at `object` and sees `words` refused by what `is_refused` says of the
/// kind; then, the thing out of the way, sees them work.
#[track_caller]
fn each_kind(object: &str, options: &str, is_refused: impl Fn(Kind) -> bool) {
    for kind in KINDS {
        let Some(tmp) = Tmp::new() else { return };
        let options = options.replace("{base}", &tmp.node.base().display().to_string());
        // options are split at blanks
        assert!(
            !options.contains(' ') || !options.contains("the base"),
            "{options}"
        );
        let victims = tmp.victims();
        let at = tmp.node.path(object);
        kind.make(&at, &tmp.victim);
        let was = fs::symlink_metadata(&at).unwrap();
        let when = format!("{kind:?} at {object}");
        let output = tmp.sc(&format!("--use {options} {}", tmp.stack)).output();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(tmp.victims(), victims, "{when}: {said}");
        let status = output.status.code();
        if is_refused(kind) {
            assert_eq!(status, Some(77), "{when}: {said}");
            assert!(said.contains("\nhint: "), "{when}: {said}");
            assert!(
                kind == Kind::HardLink || said.contains(&format!("(uid {NEIGHBOUR})")),
                "{when}: {said}"
            );
            let now = fs::symlink_metadata(&at).unwrap();
            let seen = |meta: &fs::Metadata| (meta.ino(), meta.mode(), meta.uid(), meta.mtime());
            assert_eq!(seen(&now), seen(&was), "{when}");
            if kind == Kind::Dir {
                assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "{when}");
            }
            fs::remove_file(&at)
                .or_else(|_| fs::remove_dir(&at))
                .unwrap();
            tmp.sc(&format!("--use {options} {}", tmp.stack)).run();
        } else {
            assert_eq!((status, said.as_str()), (Some(0), ""), "{when}");
        }
        tmp.sc(&format!("--unuse {options}")).run();
        if fs::symlink_metadata(&at).is_ok() {
            assert!(!is_refused(kind), "{when}");
            fs::remove_file(&at)
                .or_else(|_| fs::remove_dir(&at))
                .unwrap();
        }
        assert_eq!(tmp.node.tree().len(), 0, "{when}: {:?}", tmp.node.tree());
        assert_eq!(tmp.victims(), victims, "{when}");
    }
}

#[test]
fn what_a_neighbour_puts_where_a_directory_of_ours_belongs_is_refused() {
    each_kind("r", "--name=r", |_| true);
    each_kind(".sc.r", "--name=r", |_| true);
    each_kind("n", "--name=n/r", |_| true);
    each_kind(".sc", "", |_| true);
}

#[test]
fn what_a_neighbour_puts_where_a_file_of_ours_belongs_is_refused() {
    each_kind("repofile", "", |_| true);
    // a second name of our own old file is a lock that somebody left, and goes without a trace
    each_kind("repofile.lock", "", |kind| kind != Kind::HardLink);
    each_kind("d.tar.gz", "", |_| true);
    each_kind("d.tar.gz.list", "", |_| true);
    each_kind("a", "", |_| true);
    // the directory of a member: who owns it could swap what is in it
    each_kind("bin", "", |_| true);
    // another's claim is no lock
    each_kind("repofile.lock|x+sc|1|1", "", |_| false);
}

#[test]
fn what_a_neighbour_puts_beside_a_repofile_elsewhere_is_refused() {
    let Some(tmp) = Tmp::new() else { return };
    let state = tmp.node.path("state");
    for object in ["state", "state.lock", ".sc.state.next"] {
        for kind in KINDS {
            let victims = tmp.victims();
            let at = tmp.node.path(object);
            kind.make(&at, &tmp.victim);
            let words = format!("--name=r {}", tmp.stack);
            let with = |words: &str| tmp.sc(words).arg("-f").arg(&state);
            let output = with(&format!("--use {words}")).output();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let when = format!("{kind:?} at {object}: {said}");
            assert_eq!(tmp.victims(), victims, "{when}");
            if kind == Kind::HardLink && object != "state" {
                assert_eq!(output.status.code(), Some(0), "{when}");
            } else {
                assert_eq!(output.status.code(), Some(77), "{when}");
                assert!(
                    kind == Kind::HardLink || said.contains(&format!("(uid {NEIGHBOUR})")),
                    "{when}"
                );
                fs::remove_file(&at)
                    .or_else(|_| fs::remove_dir(&at))
                    .unwrap();
                with(&format!("--use {words}")).run();
            }
            with("--unuse --name=r").run();
            assert_eq!(tmp.node.tree().len(), 0, "{when}: {:?}", tmp.node.tree());
        }
    }
}

#[test]
fn a_repofile_that_a_neighbour_wrote_makes_nobody_believe_his_data() {
    let Some(tmp) = Tmp::new() else { return };
    // loaded by the neighbour himself, as good as ours in every word
    tmp.sc_as(NEIGHBOUR, &format!("--use {}", tmp.stack)).run();
    let theirs = fs::File::options()
        .write(true)
        .truncate(true)
        .open(tmp.node.path("a"));
    std::io::Write::write_all(&mut theirs.unwrap(), b"poison").unwrap();
    for action in ["--use", "--unuse"] {
        tmp.sc(&format!("{action} {}", tmp.stack))
            .status(77)
            .stderr(format!(
                "sc: `{{}}/.sc` is in the way; it belongs to another user (uid {NEIGHBOUR})\n\
                 hint: {{}}"
            ))
            .run();
    }
    fs::rename(tmp.node.path(".sc"), tmp.node.outside("aside")).unwrap();
    tmp.sc(&format!("--use {}", tmp.stack))
        .status(77)
        .stderr(format!(
            "sc: `{{}}/repofile` is a repofile; it belongs to another user (uid {NEIGHBOUR})\n\
             hint: {{}}"
        ))
        .run();
}

#[test]
fn root_does_not_delete_by_a_journal_that_another_user_wrote_beside_it() {
    let Some(tmp) = Tmp::new() else { return };
    tmp.sc_as(NEIGHBOUR, &format!("--use {}", tmp.stack)).run();
    let before = tmp.node.tree();
    // the base is nobody's: what the neighbour's journal names in it may be anybody's
    tmp.sc_as(0, "--unuse")
        .status(77)
        .stderr(format!(
            "sc: `{{}}/.sc` is a control directory; it belongs to another user (uid {NEIGHBOUR})\n\
             hint: {{}}"
        ))
        .run();
    assert_eq!(tmp.node.tree(), before);
    tmp.sc_as(NEIGHBOUR, "--unuse").run();
    tmp.node.assert_empty();
}

#[test]
fn what_root_makes_in_another_user_s_repository_is_that_user_s() {
    let Some(tmp) = Tmp::new() else { return };
    let stack = format!("--name=r {}", tmp.stack);
    // a load that failed leaves the directories, and root comes
    tmp.sc("--use --name=r file:/nonexistent")
        .status(66)
        .stderr("sc: `/nonexistent` does not exist: no such file or directory")
        .run();
    tmp.sc_as(0, &format!("--use {stack}")).run();
    for (path, what) in tree(tmp.node.base()) {
        let owner: Vec<&str> = what.split(' ').collect();
        assert_eq!(owner[1], US.to_string(), "{}", path.display());
    }
    // and of a --run of root's he can tell whether it still lives
    let fifo = Fifo::new(&tmp.node);
    let mut run = tmp
        .sc_as(0, &format!("--run {stack} -- sh -c"))
        .arg(format!("read x < '{}'", fifo.path().display()));
    // the pid is an option, and CMD's words come last
    let words: Vec<OsString> = run.command.get_args().map(Into::into).collect();
    let pid = words
        .iter()
        .position(|word| word.as_encoded_bytes().starts_with(b"--pid"));
    let mut command = std::process::Command::new("timeout");
    command.args(
        words
            .iter()
            .enumerate()
            .filter(|(n, _)| Some(*n) != pid)
            .map(|(_, w)| w),
    );
    command.env("SC_DIRECTORIES", tmp.node.base());
    run.command = command;
    let mut run = run.spawn();
    let pause = fifo.reached();
    tmp.sc(&format!("--use {stack}")).run();
    tmp.sc("--unuse --name=r").run();
    drop(pause);
    run.end();
    tmp.sc_as(0, "--unuse --name=r")
        .status(255)
        .stderr("sc: `{}/r` is not held by pid {}")
        .run();
    assert_eq!(run.said, "");
    tmp.node.assert_empty();
}

#[test]
fn modes_are_those_of_the_contract_whatever_the_umask() {
    for umask in [0o000, 0o022, 0o077, 0o777u32] {
        let Some(tmp) = Tmp::new() else { return };
        let fifo = Fifo::new(&tmp.node);
        chown(fifo.path(), Some(US), Some(US)).unwrap();
        let mut sc = tmp.sc(&format!("--use --name=n/r {}", tmp.stack));
        sc.command.env("SC_PAUSE_AT", fifo.at("publish"));
        // SAFETY: umask(2) cannot fail and is async-signal-safe.
        unsafe {
            sc.command.pre_exec(move || {
                nix::sys::stat::umask(Mode::from_bits_truncate(umask));
                Ok(())
            })
        };
        let mut loader = sc.spawn();
        let pause = fifo.reached();
        // our own rights are never taken off
        let shared = |mode: u32| mode & !(umask & 0o077);
        let mode = |path: &str| fs::symlink_metadata(tmp.node.path(path)).unwrap().mode() & 0o7777;
        let mut expected = vec![
            ("n", shared(0o777)),
            ("n/r", shared(0o777)),
            ("n/.sc.r", 0o700),
            ("n/.sc.r/lock", 0o600),
            ("n/.sc.r/journal", 0o600),
            ("n/.sc.r/repofile.last", 0o600),
            ("n/.sc.r/staging", 0o700),
            ("n/.sc.r/staging/0", 0o700),
            ("n/r/repofile", shared(0o666)),
        ];
        for (path, wanted) in &expected {
            assert_eq!(mode(path), *wanted, "{path} under {umask:o}");
        }
        drop(pause);
        assert_eq!(loader.end().0, 0, "{}", loader.said);
        expected.retain(|(path, _)| !path.contains("staging"));
        expected.extend([
            ("n/r/d.tar.gz", shared(0o666)),
            ("n/r/d.tar.gz.list", shared(0o666)),
        ]);
        for (path, wanted) in &expected {
            assert_eq!(mode(path), *wanted, "{path} under {umask:o}");
        }
        tmp.sc("--unuse --name=n/r").run();
        tmp.node.assert_empty();
    }
}

/// Swaps two names as fast as it can until told to stop.
fn swap(one: &Path, two: &Path, stop: &AtomicBool) -> u64 {
    use std::os::unix::ffi::OsStrExt;
    let name = |path: &Path| std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    let (one, two) = (name(one), name(two));
    let mut swaps = 0;
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: both are C strings that live longer than the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                one.as_ptr(),
                libc::AT_FDCWD,
                two.as_ptr(),
                libc::RENAME_EXCHANGE,
            )
        };
        swaps += u64::from(result == 0);
        std::thread::yield_now();
    }
    swaps
}

#[test]
fn directories_swapped_for_links_while_we_work_lead_nobody_out() {
    let Some(tmp) = Tmp::new() else { return };
    let victims = tmp.victims();
    // the same user in the repository and in its control directory, and the way to both
    for object in [
        "r/bin",
        "r",
        ".sc.r/staging",
        ".sc.r/staging/1",
        ".sc.r/staging/1/bin",
        ".sc.r",
    ] {
        let link = tmp.node.path("evil");
        symlink(tmp.victim.join("dir"), &link).unwrap();
        lchown(&link, Some(US), Some(US)).unwrap();
        let stop = AtomicBool::new(false);
        let at = tmp.node.path(object);
        let mut swaps = 0;
        std::thread::scope(|scope| {
            let swapper = scope.spawn(|| swap(&at, &link, &stop));
            for _ in 0..15 {
                for action in ["--use", "--unuse"] {
                    let output = tmp.sc(&format!("{action} --name=r {}", tmp.stack)).output();
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert!(!said.contains("panicked"), "{said}");
                    assert_ne!(output.status.code(), None, "{object}: it hung");
                }
            }
            stop.store(true, Ordering::Relaxed);
            swaps = swapper.join().unwrap();
        });
        assert_eq!(tmp.victims(), victims, "{object}");
        eprintln!("{object}: {swaps} swaps");
        for entry in fs::read_dir(tmp.node.base()).unwrap() {
            let path = entry.unwrap().path();
            fs::remove_file(&path)
                .or_else(|_| fs::remove_dir_all(&path))
                .unwrap();
        }
    }
}
