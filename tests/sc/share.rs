//! Repositories that several users share (`--share`): a group acts as one user, everybody else is a
//! guest. Becoming somebody else needs root.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::node::{Fifo, Node, Sc, tar_gz, tree};

const GROUP: u32 = 30_000;
const ANN: u32 = 30_001;
const BOB: u32 = 30_002;
/// In no group of theirs.
const EVE: u32 = 30_003;

/// A node with users, each of whom has a job: a process that lives until it is killed.
struct Users {
    node: Node,
    stack: String,
    jobs: BTreeMap<u32, Child>,
}

/// Makes `command` that of `user`.
fn become_user(command: &mut Command, user: u32, umask: u32) {
    let groups = [GROUP];
    let count = usize::from(user != EVE);
    // SAFETY: each of these is a system call, and touches nothing but its arguments.
    unsafe {
        command.pre_exec(move || {
            nix::sys::stat::umask(Mode::from_bits_truncate(umask));
            if user == 0 {
                return Ok(());
            }
            let outcomes = [
                libc::syscall(libc::SYS_setgroups, count, groups.as_ptr()),
                libc::syscall(libc::SYS_setgid, user),
                libc::syscall(libc::SYS_setuid, user),
            ];
            match outcomes {
                [0, 0, 0] => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

impl Users {
    /// In a base directory of this mode and the group. `None`, said aloud, where we can't become
    /// another user.
    fn in_base(mode: u32) -> Option<Users> {
        if shared_cache::process::user() != 0 {
            eprintln!("SKIPPED: becoming another user needs root");
            return None;
        }
        let node = Node::new();
        set_mode(&node.outside(""), 0o755);
        chown(node.base(), Some(0), Some(GROUP)).unwrap();
        set_mode(node.base(), mode);
        let members = [
            ("a", "1"),
            ("bin/b", "2"),
            ("bin/deep/c", "3"),
            ("none/", ""),
        ];
        let archive = tar_gz(&node, "d.tar.gz", &members);
        let mut jobs = BTreeMap::new();
        for user in [ANN, BOB, EVE] {
            let mut job = Command::new("cat");
            job.stdin(Stdio::piped()).stdout(Stdio::null());
            become_user(&mut job, user, 0o022);
            jobs.insert(user, job.spawn().unwrap());
        }
        Some(Users {
            node,
            stack: format!("--name=r file:{} tar", archive.display()),
            jobs,
        })
    }

    /// Where the group may do all, and nobody else anything.
    fn of_a_group() -> Option<Users> {
        Users::in_base(0o2770)
    }

    /// As in /tmp.
    fn in_tmp() -> Option<Users> {
        Users::in_base(0o1777)
    }

    /// `sc` by the job of `user`.
    fn sc(&self, user: u32, words: &str) -> Sc {
        self.sc_under(0o022, user, words)
    }

    fn sc_under(&self, umask: u32, user: u32, words: &str) -> Sc {
        let is_held = (words.contains("--use") || words.contains("--unuse")) && user != 0;
        let mut sc = self.node.sc(words);
        if is_held {
            let pid = self.jobs[&user].id();
            sc = sc.env("SC_PID", pid.to_string());
        }
        become_user(&mut sc.command, user, umask);
        sc
    }

    fn used(&self, user: u32, share: &str) -> Sc {
        self.sc(user, &format!("--use --share={share} {}", self.stack))
    }

    fn unused(&self, user: u32) -> Sc {
        self.sc(user, "--unuse --name=r")
    }

    fn kill(&mut self, user: u32) {
        let mut job = self.jobs.remove(&user).unwrap();
        job.kill().unwrap();
        job.wait().unwrap();
    }

    fn mode(&self, path: &str) -> u32 {
        fs::symlink_metadata(self.node.path(path)).unwrap().mode() & 0o7777
    }

    #[track_caller]
    fn assert_whole(&self, when: &str) {
        let mut expected = tree(&self.node.outside("d.tar.gz.tree"));
        let mut there = tree(&self.node.path("r"));
        there.retain(|path, _| !path.starts_with("repofile") && !path.starts_with("d.tar.gz"));
        assert_eq!(there, std::mem::take(&mut expected), "{when}");
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        for job in self.jobs.values_mut() {
            let _ = job.kill();
            let _ = job.wait();
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn members_of_a_group_use_one_copy_and_the_last_deletes_it() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    users.used(ANN, "group").run();
    let generation = users.node.repofile("r")["sc"]["generation"].clone();
    users.used(BOB, "group").run();
    let repofile = users.node.repofile("r");
    assert_eq!(repofile["readers"].as_array().unwrap().len(), 2);
    assert_eq!(repofile["sc"]["generation"], generation, "loaded once");
    users.unused(ANN).run();
    users.assert_whole("the other one holds");
    users.unused(BOB).run();
    users.node.assert_empty();
}

#[test]
fn a_member_waits_for_the_load_of_another() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    let fifo = Fifo::new(&users.node);
    chown(fifo.path(), Some(ANN), Some(ANN)).unwrap();
    let mut loader = users
        .used(ANN, "group")
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    let mut waiter = users.used(BOB, "group").spawn();
    waiter.wait_for("has been loading");
    drop(pause);
    assert_eq!(loader.end().0, 0, "{}", loader.said);
    assert_eq!(waiter.end().0, 0, "{}", waiter.said);
    users.unused(BOB).run();
    users.assert_whole("the loader holds");
    users.unused(ANN).run();
    users.node.assert_empty();
}

#[test]
fn members_who_come_at_once_meet_nothing_half_made() {
    for _ in 0..20 {
        let Some(users) = Users::of_a_group() else {
            return;
        };
        let stack = users.stack.replace("--name=r", "--name=n/r");
        let words = format!("-q --use --share=group {stack}");
        let mut all = [ANN, BOB].map(|user| users.sc(user, &words).spawn());
        for sc in &mut all {
            assert_eq!(sc.end().0, 0, "{}", sc.said);
        }
        let mut all = [ANN, BOB].map(|user| users.sc(user, "-q --unuse --name=n/r").spawn());
        for sc in &mut all {
            assert_eq!(sc.end().0, 0, "{}", sc.said);
        }
        users.node.assert_empty();
    }
}

#[test]
fn a_member_holds_by_an_open_file_of_his_own() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    let fifo = Fifo::new(&users.node);
    chown(fifo.path(), Some(ANN), Some(ANN)).unwrap();
    let file = users.node.file("held", "");
    chown(&file, Some(ANN), Some(ANN)).unwrap();
    let mut shell = users.sc(ANN, "");
    let script = format!(
        "exec 9>>'{}'; \"$0\" --use --share=group --fd=9 {} || exit; read x < '{}'; true",
        file.display(),
        users.stack,
        fifo.path().display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script, crate::node::SC]);
    command
        .env("SC_DIRECTORIES", users.node.base())
        .env("SC_CONF", "/nowhere/sc.conf")
        .current_dir(users.node.outside(""));
    become_user(&mut command, ANN, 0o022);
    shell.command = command;
    let mut shell = shell.spawn();
    let pause = fifo.reached();
    users.used(BOB, "group").run();
    users.unused(BOB).run();
    users.assert_whole("another member has the file open");
    drop(pause);
    assert_eq!(shell.end().0, 0, "{}", shell.said);
    users.sc(BOB, "--gc --share=group").run();
    users.node.assert_empty();
}

#[test]
fn a_lock_that_a_member_s_reference_left_is_broken_by_another() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    users.used(ANN, "group").run();
    // as of a waiter that was killed, and of one that had won
    let claim = users.node.path("r/repofile.lock|nowhere|1|1");
    fs::write(
        &claim,
        users
            .node
            .path("r/repofile.lock|nowhere|1|1")
            .to_str()
            .unwrap(),
    )
    .unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(7200);
    let opened = fs::File::options().write(true).open(&claim).unwrap();
    opened
        .set_times(fs::FileTimes::new().set_modified(long_ago))
        .unwrap();
    chown(&claim, Some(ANN), Some(GROUP)).unwrap();
    fs::hard_link(&claim, users.node.path("r/repofile.lock")).unwrap();
    users.used(BOB, "group").run();
    users.unused(ANN).run();
    users.unused(BOB).run();
    users.node.assert_empty();
}

#[test]
fn a_directory_that_is_closed_to_the_group_is_not_shared_with_it() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    let dir = users.node.path("r");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(ANN), Some(GROUP)).unwrap();
    set_mode(&dir, 0o755);
    users
        .used(ANN, "group")
        .status(77)
        .stderr("sc: `{}/r` is closed to the group that it is to be shared with\nhint: open it {}")
        .run();
    set_mode(&dir, 0o2775);
    users.used(ANN, "group").run();
    users.used(BOB, "group").run();
    users.unused(ANN).run();
    users.unused(BOB).run();
    users.node.assert_paths(&["r"]);
}

#[test]
fn what_a_group_shares_is_open_to_it_whatever_the_umask() {
    for umask in [0o000, 0o022, 0o077] {
        let Some(users) = Users::in_tmp() else { return };
        let fifo = Fifo::new(&users.node);
        chown(fifo.path(), Some(ANN), Some(ANN)).unwrap();
        let words = format!("--use --share=group {}", users.stack);
        let words = words.replace("--name=r", "--name=n/r");
        let mut loader = users
            .sc_under(umask, ANN, &words)
            .env("SC_PAUSE_AT", fifo.at("publish"))
            .spawn();
        let pause = fifo.reached();
        let others = |mode: u32| mode & !(umask & 0o007);
        for (path, wanted) in [
            ("n", 0o2770 | others(0o5)),
            ("n/.sc.r", 0o2770),
            ("n/.sc.r/lock", 0o660),
            ("n/.sc.r/journal", 0o660),
            ("n/.sc.r/repofile.last", 0o660),
            ("n/.sc.r/staging", 0o2770),
            ("n/.sc.r/staging/0", 0o2770),
            ("n/.sc.r/staging/1/bin", 0o2775),
            ("n/r", 0o2770 | others(0o5)),
            ("n/r/repofile", 0o660 | others(0o4)),
        ] {
            assert_eq!(users.mode(path), wanted, "{path} under {umask:o}");
            let gid = fs::symlink_metadata(users.node.path(path)).unwrap().gid();
            assert_eq!(gid, ANN, "{path}: no group is handed on here");
        }
        drop(pause);
        assert_eq!(loader.end().0, 0);
        let closed = "with umask 0077: the group may join, and cannot read all of it";
        assert_eq!(
            loader.said.contains(closed),
            umask == 0o077,
            "{}",
            loader.said
        );
        // who may read the data is the umask's
        assert_eq!(users.mode("n/r/d.tar.gz"), 0o666 & !umask);
        users.sc(ANN, "--unuse --name=n/r").run();
        users.node.assert_empty();
    }
}

#[test]
fn what_one_user_alone_uses_is_on_disk_as_ever() {
    let node = Node::new();
    let archive = tar_gz(&node, "d.tar.gz", &[("a", "1")]);
    for share in ["", "--share=user"] {
        node.sc(&format!(
            "--use {share} --name=r file:{}",
            archive.display()
        ))
        .run();
        let mode = |path: &str| fs::metadata(node.path(path)).unwrap().mode() & 0o7777;
        assert_eq!(mode(".sc.r"), 0o700);
        assert_eq!(mode(".sc.r/lock"), 0o600);
        assert_eq!(mode(".sc.r/journal"), 0o600);
        node.sc("--unuse --name=r").run();
        node.assert_empty();
    }
}

#[test]
fn a_plain_user_shares_with_the_group_he_is_in_and_with_all() {
    let node = Node::new();
    let archive = tar_gz(&node, "d.tar.gz", &[("bin/b", "1")]);
    let words = format!("--name=r file:{} tar", archive.display());
    let mode = |path: &str| fs::metadata(node.path(path)).unwrap().mode() & 0o7777;
    for (share, control, file, lock) in [
        ("group", 0o2770, 0o660, 0o660),
        ("all", 0o1755, 0o644, 0o666),
    ] {
        node.sc(&format!("--use --share={share} {words}")).run();
        assert_eq!(mode(".sc.r"), control, "{share}");
        assert_eq!(mode(".sc.r/journal"), file, "{share}");
        assert_eq!(mode(".sc.r/lock"), lock, "{share}");
        let listed = node.sc("--list --json").output();
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        assert_eq!(listed["repositories"][0]["share"], share);
        node.sc("--unuse --name=r").run();
        node.assert_empty();
    }
}

#[test]
fn a_load_of_a_member_killed_at_any_point_is_done_by_another() {
    let mut points = 0;
    for n in 1..2000 {
        let Some(users) = Users::of_a_group() else {
            return;
        };
        let umask = [0o022, 0o027][n % 2];
        let words = format!("--use --share=group --name=n/r {}", &users.stack[9..]);
        let output = users
            .sc_under(umask, ANN, &words)
            .env("SC_CRASH_AT", n.to_string())
            .output();
        let when = format!("after SC_CRASH_AT={n}");
        users.sc(BOB, &words).run();
        assert_eq!(
            fs::read(users.node.path("n/r/bin/deep/c")).unwrap(),
            b"3",
            "{when}"
        );
        users.sc(BOB, "--unuse --name=n/r").run();
        // he holds if he was killed late
        users.sc(ANN, "-q --unuse --name=n/r").output();
        // what lay beside its place when its maker was killed
        users.sc(ANN, "--gc").run();
        users.node.assert_empty();
        if output.status.success() {
            points = n;
            break;
        }
    }
    assert!(points > 50, "only {points} points");
}

#[test]
fn an_unuse_of_a_member_killed_at_any_point_is_finished_by_another() {
    let mut points = 0;
    for n in 1..2000 {
        let Some(users) = Users::of_a_group() else {
            return;
        };
        users.used(ANN, "group").run();
        users.used(BOB, "group").run();
        users.unused(ANN).run();
        let output = users.unused(BOB).env("SC_CRASH_AT", n.to_string()).output();
        users.used(ANN, "group").run();
        users.assert_whole(&format!("after SC_CRASH_AT={n}"));
        users.unused(ANN).run();
        if !output.status.success() {
            // he was killed before he had left, or after
            users.unused(BOB).output();
        }
        users.node.assert_empty();
        if output.status.success() {
            points = n;
            break;
        }
    }
    assert!(points > 20, "only {points} points");
}

#[test]
fn in_a_sticky_directory_another_member_leaves_two_empty_directories() {
    for cleaner in [ANN, 0] {
        let Some(users) = Users::in_base(0o3775) else {
            return;
        };
        users.used(ANN, "group").run();
        users.used(BOB, "group").run();
        users.unused(ANN).run();
        users.unused(BOB).run();
        users
            .node
            .assert_paths(&[".sc.r", ".sc.r/journal", ".sc.r/lock", "r"]);
        // they are as good as none
        users.used(BOB, "group").run();
        users.assert_whole("loaded beside what was left");
        users.unused(BOB).run();
        users.sc(cleaner, "--gc").run();
        users.node.assert_empty();
    }
}

#[test]
fn read_only_data_are_deleted_by_another_member() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    users.used(ANN, "group").arg("--read-only").run();
    assert_eq!(users.mode("r/a") & 0o222, 0);
    assert_eq!(users.mode("r/bin") & 0o222, 0o020, "else nobody could");
    users.used(BOB, "group").run();
    users.unused(ANN).run();
    users.unused(BOB).run();
    users.node.assert_empty();
}

#[test]
fn a_member_s_own_files_survive_what_another_deletes() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    users.used(ANN, "group").run();
    users.used(BOB, "group").run();
    let out = users.node.path("r/bin/out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("result"), "42").unwrap();
    for path in [out.join("result"), out] {
        chown(&path, Some(ANN), Some(GROUP)).unwrap();
    }
    users.unused(ANN).run();
    let output = users.unused(BOB).output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("stays"), "{said}");
    let results: Vec<_> = users
        .node
        .tree()
        .into_iter()
        .filter(|(path, _)| path.ends_with("bin/out/result"))
        .collect();
    assert_eq!(results.len(), 1, "{:?}", users.node.tree());
}

#[test]
fn nobody_deletes_for_a_group_what_it_could_not_delete() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    users.used(ANN, "group").run();
    users.used(BOB, "group").run();
    // a directory of the journal's, which is now closed: as if its inode had been written there
    set_mode(&users.node.path("r/bin/deep"), 0o755);
    chown(users.node.path("r/bin/deep"), Some(BOB), Some(BOB)).unwrap();
    users.unused(ANN).run();
    let output = users.unused(BOB).output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("is closed to the group and stays"), "{said}");
    let tree = users.node.tree();
    assert!(
        tree.keys().any(|path| path.ends_with("bin/deep/c")),
        "{tree:?}"
    );
}

#[test]
fn members_hold_by_files_commands_and_processes_of_their_own() {
    let Some(mut users) = Users::of_a_group() else {
        return;
    };
    let fifo = Fifo::new(&users.node);
    chown(fifo.path(), Some(ANN), Some(ANN)).unwrap();
    let mut run = users.sc(
        ANN,
        &format!("--run --share=group {} -- sh -c", users.stack),
    );
    run = run.arg(format!("read x < '{}'; true", fifo.path().display()));
    let mut run = run.spawn();
    let pause = fifo.reached();
    users.used(BOB, "group").run();
    users.unused(BOB).run();
    users.assert_whole("a command of another member holds");
    drop(pause);
    assert_eq!(run.end().0, 0, "{}", run.said);
    users.node.assert_empty();

    users.used(ANN, "group").run();
    users.used(BOB, "group").run();
    users.unused(BOB).run();
    users.assert_whole("another member's job lives");
    users.kill(ANN);
    users.sc(BOB, "--gc").run();
    users.assert_whole("`--gc` without `--share` is about one's own");
    users.sc(BOB, "--gc --share=group").run();
    users.node.assert_empty();
}

#[test]
fn who_may_not_join_or_has_not_said_that_he_would_is_told_what_to_do() {
    let Some(users) = Users::of_a_group() else {
        return;
    };
    set_mode(users.node.base(), 0o2775);
    users.used(ANN, "group").run();
    let before = users.node.tree();
    users
        .sc(BOB, &format!("--use {}", users.stack))
        .status(77)
        .stderr(format!(
            "sc: `{{}}/r` belongs to another user (uid {ANN}), who shares it (`--share=group`)\n\
             hint: say `--share=group` to trust his data, or choose another `--name`"
        ))
        .run();
    for share in ["user", "group", "all"] {
        let output = users.used(EVE, share).output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(77), "{said}");
        assert!(
            said.contains(&format!("(uid {ANN})")) && said.contains("\nhint: "),
            "{said}"
        );
    }
    users
        .used(ANN, "user")
        .arg("--id=2")
        .status(78)
        .stderr(
            "sc: `{}/r` is shared (`--share=group`), and not to be (`--share=user`)\n\
             hint: say `--share=group`, choose another `--name`, or wait until nobody uses it",
        )
        .run();
    assert_eq!(users.node.tree(), before);
    users
        .used(BOB, "all")
        .stderr(
            "sc: warning: `{}/r` stays as it is (`--share=group`): `--share=all` counts when it is made anew",
        )
        .run();
    users.unused(BOB).run();
    users.unused(ANN).run();
    users.node.assert_empty();
}

#[test]
fn a_group_that_everybody_is_given_is_no_proof() {
    let Some(users) = Users::in_base(0o3777) else {
        return;
    };
    users
        .used(ANN, "group")
        .status(77)
        .stderr(format!(
            "sc: `{{}}` hands its group (gid {GROUP}) on to whatever anybody makes in it\n\
             hint: name another directory with `--directories`, or do without `--share`"
        ))
        .run();
    // as one who is not in the group makes it: the group is handed on to him
    let control = users.node.path(".sc.r");
    fs::create_dir(&control).unwrap();
    lchown(&control, Some(EVE), Some(GROUP)).unwrap();
    set_mode(&control, 0o2770);
    users
        .used(BOB, "group")
        .status(77)
        .stderr(format!(
            "sc: `{{}}/.sc.r` is a control directory; it belongs to another user (uid {EVE})\n\
             hint: {{}}"
        ))
        .run();
}

#[test]
fn a_guest_holds_what_another_user_loaded() {
    let Some(users) = Users::in_tmp() else { return };
    users.used(ANN, "all").run();
    users
        .sc(EVE, &format!("--use {}", users.stack))
        .status(77)
        .stderr("sc: `{}/r` belongs to another user{}\nhint: say `--share=all` {}")
        .run();
    users.used(EVE, "all").run();
    users.used(EVE, "all").run();
    let status = users.sc(BOB, "--status --name=r").output();
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(
        status.matches(&format!("of uid {EVE}")).count(),
        1,
        "{status}"
    );
    // its owner's last --unuse and his --clear are the guest's no end
    users.unused(ANN).run();
    users.assert_whole("a guest holds");
    users.sc(ANN, "--gc").run();
    users
        .sc(ANN, "--clear --name=r")
        .status(75)
        .stderr("sc: `{}/r` is in use by {}\nhint: {}")
        .run();
    users.assert_whole("a guest holds");
    let verify = "--verify --paranoid --name=r";
    let journal = fs::read(users.node.path(".sc.r/journal")).unwrap();
    users
        .sc(EVE, verify)
        .stderr("sc: `{}/r` is as it was loaded: {} files read")
        .run();
    assert_eq!(fs::read(users.node.path(".sc.r/journal")).unwrap(), journal);
    let repair = format!("--verify --repair {}", users.stack);
    users
        .sc(EVE, &repair)
        .status(77)
        .stderr("sc: `{}/r` belongs to another user {} and only he can repair it\nhint: {}")
        .run();
    users
        .sc(ANN, &repair)
        .status(75)
        .stderr(format!("sc: {{}} of uid {EVE}{{}}\nhint: {{}}"))
        .run();
    let stack = users.stack.replace(" tar", "");
    users
        .sc(ANN, &format!("--use {stack}"))
        .status(78)
        .stderr(format!(
            "sc: `{{}}/r` holds {{}} and is in use by pid {{}} of uid {EVE}\nhint: {{}}"
        ))
        .run();
    users
        .unused(EVE)
        .arg("-v")
        .stderr("sc: `{}/r`: the last has left; its owner, or root, deletes it")
        .run();
    users
        .unused(EVE)
        .status(255)
        .stderr("sc: `{}/r` is not held by pid {}")
        .run();
    users.assert_whole("a guest deletes nothing");
    let listed = users.sc(EVE, "--list --json --share=all").output();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["repositories"][0]["owner_uid"], ANN);
    users.sc(EVE, "--list").run();
    users.sc(EVE, "--gc --share=all").run();
    users.assert_whole("a guest deletes nothing");
    users.sc(ANN, "--gc").run();
    users.node.assert_empty();
}

#[test]
fn the_owner_deletes_what_a_guest_held_who_was_killed() {
    let Some(mut users) = Users::in_tmp() else {
        return;
    };
    users.used(ANN, "all").run();
    users.used(EVE, "all").run();
    users.kill(EVE);
    users.unused(ANN).run();
    users.node.assert_empty();

    // a command of his, and what it has left running
    users.used(ANN, "all").run();
    let fifo = Fifo::new(&users.node);
    chown(fifo.path(), Some(BOB), Some(BOB)).unwrap();
    let run = users.sc(BOB, &format!("--run --share=all {} -- sh -c", users.stack));
    let mut run = run
        .arg(format!("read x < '{}'", fifo.path().display()))
        .spawn();
    let pause = fifo.reached();
    run.signal(Signal::SIGKILL);
    run.child.wait().unwrap();
    users.unused(ANN).run();
    users.assert_whole("the guest's command lives");
    drop(pause);
    while fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*fifo.path().to_string_lossy())
            && !process.file_name().to_string_lossy().contains("self")
    }) {}
    users.sc(ANN, "--gc").run();
    users.node.assert_empty();
}

#[test]
fn a_guest_can_neither_load_nor_delete_and_is_told_so() {
    let Some(users) = Users::in_tmp() else { return };
    users
        .sc(ANN, "--use --share=all --name=r file:/nonexistent")
        .status(66)
        .stderr("sc: `/nonexistent` does not exist: no such file or directory")
        .run();
    let before = users.node.tree();
    users
        .used(EVE, "all")
        .status(77)
        .stderr(format!(
            "sc: `{{}}/r` belongs to another user (uid {ANN}), and only he can load it: the last \
             load failed\nhint: wait until he has, or choose another `--name`"
        ))
        .run();
    users
        .sc(EVE, "--clear --force --name=r")
        .status(77)
        .stderr(format!(
            "sc: `{{}}/r` belongs to another user (uid {ANN}), and only he can delete it\nhint: {{}}"
        ))
        .run();
    assert_eq!(users.node.tree(), before);
    users.used(ANN, "all").run();
    users
        .used(EVE, "all")
        .arg("--refresh")
        .env("SC_UNIX_TIME", "4000000000")
        .stderr("sc: warning: `{}/r` is not loaded anew (`--refresh`): {}")
        .run();
    users.unused(ANN).run();
    users.unused(EVE).run();
    users.sc(0, "--gc").run();
    users.node.assert_empty();
}

#[test]
fn a_guest_s_use_killed_at_any_point_is_one_or_none() {
    let mut points = 0;
    for n in 1..100 {
        let Some(users) = Users::in_tmp() else { return };
        users.used(ANN, "all").run();
        let output = users
            .used(EVE, "all")
            .env("SC_CRASH_AT", n.to_string())
            .output();
        users.unused(ANN).run();
        let is_held = users.unused(EVE).output().status.success();
        assert!(is_held || !output.status.success(), "the use is lost");
        users.sc(ANN, "--gc").run();
        users.node.assert_empty();
        if output.status.success() {
            points = n;
            break;
        }
    }
    assert!(points > 2, "only {points} points");
}

#[test]
fn garbage_among_the_guests_holds_nothing_and_hurts_nobody() {
    let Some(users) = Users::in_tmp() else { return };
    let victim = users.node.file("victim", "precious");
    set_mode(&victim, 0o644);
    users.used(ANN, "all").run();
    let at = |name: &str| users.node.path(".sc.r/holders").join(name);
    users.used(EVE, "all").run();
    let holder = fs::read_dir(at("")).unwrap().next().unwrap().unwrap();
    let holder = fs::read(holder.path()).unwrap();
    users.unused(EVE).run();

    fs::write(at("empty"), "").unwrap();
    fs::write(at("torn"), &holder[..holder.len() / 2]).unwrap();
    fs::write(at("binary"), [0xff; 4096]).unwrap();
    fs::write(at("deep"), "[".repeat(60_000)).unwrap();
    fs::write(at("long"), vec![b' '; 1 << 20]).unwrap();
    symlink(&victim, at("link")).unwrap();
    symlink("/dev/zero", at("device")).unwrap();
    fs::hard_link(&victim, at("hard")).unwrap();
    mkfifo(&at("fifo"), Mode::from_bits_truncate(0o666)).unwrap();
    fs::create_dir(at("dir")).unwrap();
    for entry in fs::read_dir(at("")).unwrap() {
        let path = entry.unwrap().path();
        if path != at("hard") {
            lchown(&path, Some(EVE), Some(EVE)).unwrap();
        }
    }
    // a good one, by its owner and by root: theirs stand in the repofile
    fs::write(at("owner"), &holder).unwrap();
    chown(at("owner"), Some(ANN), Some(ANN)).unwrap();
    fs::write(at("root"), &holder).unwrap();
    // a lock that is another's file
    let other = String::from_utf8(holder).unwrap();
    let other = other.replace(
        "\"kind\":\"process\"",
        "\"kind\":\"lock\",\"file\":\"../lock\"",
    );
    fs::write(at("lock"), other).unwrap();
    chown(at("lock"), Some(EVE), Some(EVE)).unwrap();

    let status = users.sc(ANN, "--status --name=r").output();
    assert!(!String::from_utf8_lossy(&status.stdout).contains("of uid"));
    users.used(BOB, "all").run();
    users.unused(BOB).run();
    users.unused(ANN).run();
    users.node.assert_empty();
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn a_guest_s_directory_among_the_holds_keeps_nobody_s_data() {
    let Some(users) = Users::in_tmp() else { return };
    users.used(ANN, "all").run();
    let dir = users.node.path(".sc.r/holders/dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), "").unwrap();
    for path in [dir.join("f"), dir.clone()] {
        chown(&path, Some(EVE), Some(EVE)).unwrap();
    }
    users.unused(ANN).run();
    users.node.assert_paths(&[
        ".sc.r",
        ".sc.r/holders",
        ".sc.r/holders/dir",
        ".sc.r/holders/dir/f",
    ]);
    users.used(ANN, "all").run();
    users.used(EVE, "all").run();
    users.unused(EVE).run();
    users.unused(ANN).run();
    fs::remove_dir_all(&dir).unwrap();
    users.sc(ANN, "--gc").run();
    users.node.assert_empty();
}

#[test]
fn what_stands_in_place_of_a_lock_is_refused() {
    for share in ["group", "all"] {
        for kind in ["link", "fifo", "dir"] {
            let Some(users) = Users::of_a_group() else {
                return;
            };
            users.used(ANN, share).run();
            let lock = users.node.path(".sc.r/lock");
            fs::remove_file(&lock).unwrap();
            let victim = users.node.file("victim", "precious");
            match kind {
                "link" => symlink(&victim, &lock).unwrap(),
                "fifo" => mkfifo(&lock, Mode::from_bits_truncate(0o666)).unwrap(),
                _ => fs::create_dir(&lock).unwrap(),
            }
            users
                .used(BOB, share)
                .status(77)
                .stderr(
                    "sc: `{}/.sc.r/lock` stands where sc's lock file belongs, and is no file{}\n\
                     hint: move it away",
                )
                .run();
            assert_eq!(fs::read(&victim).unwrap(), b"precious");
        }
    }
}

#[test]
fn what_is_shared_needs_a_name_and_its_state_file_inside() {
    let node = Node::new();
    node.sc("--use --share=group")
        .status(2)
        .stderr("sc: what is shared (`--share=group`) needs a directory of its own (`--name`)")
        .run();
    node.sc("--use --share=all --name=r --file=/tmp/state")
        .status(2)
        .stderr("sc: what is shared (`--share=all`) needs its state file inside (`--file`)")
        .run();
    node.sc("--use --share=world --name=r")
        .status(2)
        .stderr(
            "sc: `--share`: `world` is nobody to share with\nhint: it is `user`, `group` or `all`",
        )
        .run();
    node.assert_empty();
}
