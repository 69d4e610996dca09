//! Holders that are no parent process: a lease (`--lease`), an open file (`--fd`), a batch job
//! (`--job`). How each of them ends, and who is refused.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::keep::{At, START, hour};
use crate::node::{Job, Node, Sc};

/// How long the kernel runs, in these tests: as much less than the date as it likes.
fn up(hours: u64) -> String {
    (5_000 + hours * 3600).to_string()
}

impl Node {
    /// `sc` so many hours after the beginning of time, on both clocks.
    fn sc_at(&self, hours: u64, words: &str) -> Sc {
        self.sc(words).at(hours).env("SC_SINCE_BOOT", up(hours))
    }
}

fn status(node: &Node) -> Value {
    let output = node.sc("--status --json --name=r").output();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn assert_ends(node: &Node) {
    // whoever comes next, and goes, leaves nothing: the hold before was over
    node.sc("--use --name=r --id=last").run();
    node.sc("--unuse --name=r --id=last").run();
    node.assert_empty();
}

/// The same where only the kernel's list of locks tells: the number of the inode that is gone may
/// by now be that of a file that another test has locked, and that counts as alive.
#[track_caller]
fn assert_ends_by_the_list(node: &Node) {
    for _ in 0..200 {
        node.sc("--use --name=r --id=last").run();
        node.sc("--unuse --name=r --id=last").run();
        if node.tree().is_empty() {
            return;
        }
    }
    node.assert_empty();
}

#[track_caller]
fn assert_holds(node: &Node) {
    node.sc("--use --name=r --id=other").run();
    node.sc("--unuse --name=r --id=other").run();
    assert_eq!(node.repofile("r")["readers"], json!([1]));
}

#[test]
fn a_hold_ends_with_its_lease() {
    let node = Node::new();
    node.sc_at(0, "--use --name=r --lease=2h --id=leased").run();
    node.sc_at(1, "--use --name=r --id=other").run();
    node.sc_at(1, "--unuse --name=r --id=other").run();
    assert_eq!(node.repofile("r")["sc"]["holders"][0]["id"], "leased");
    node.sc_at(1, "--status --name=r")
        .stdout(
            "location    {}/r\nstate       OK\ndefinition  {}\nloaded      1 h 0 min ago, in {} s\n\
             holder      pid {} (`leased`), since 1 h 0 min ago, for 1 h 0 min more",
        )
        .run();
    node.sc_at(2, "--status --name=r")
        .stdout(
            "location    {}/r\nstate       OK\ndefinition  {}\nloaded      2 h 0 min ago, in {} s\n\
             holder      pid {} (`leased`), since 2 h 0 min ago, its lease is over",
        )
        .run();
    node.sc_at(2, "-v --use --name=r --id=other")
        .stderr("sc: pid {} (`leased`) is dead and holds no more")
        .run();
    node.sc_at(2, "--unuse --name=r --id=other").run();
    node.assert_empty();
}

#[test]
fn the_holder_of_a_lease_that_is_over_hears_of_it() {
    let node = Node::new();
    node.sc_at(0, "--use --name=r --lease=2h --id=leased").run();
    node.sc_at(3, "--use --name=r --id=other").run();
    node.sc_at(3, "--unuse --name=r --lease=2h --id=leased")
        .status(255)
        .stderr("sc: `{}/r` is not held by pid {} (`leased`)")
        .run();
    node.sc_at(3, "--unuse --name=r --id=other").run();
    node.assert_empty();
}

#[test]
fn the_next_use_renews_the_lease() {
    let node = Node::new();
    for (hours, lease) in [(0, "2h"), (1, "3h")] {
        node.sc_at(hours, "--use --name=r")
            .env("SC_LEASE", lease)
            .run();
    }
    let holders = node.repofile("r")["sc"]["holders"].clone();
    assert_eq!(holders.as_array().unwrap().len(), 1);
    assert_eq!(holders[0]["lease"]["until_unix_s"], START + 4 * 3600);
    assert_eq!(holders[0]["since_unix_s"], START);
    // and one without makes it a hold without an end
    node.sc_at(2, "--use --name=r").run();
    assert_eq!(node.repofile("r")["sc"]["holders"][0]["lease"], Value::Null);
    node.sc_at(9, "--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_clock_that_is_set_ends_no_lease() {
    let node = Node::new();
    node.sc_at(0, "--use --name=r --lease=2h --id=leased").run();
    let other = |words: &str| node.sc(words).at(50_000).env("SC_SINCE_BOOT", up(1));
    other("--use --name=r --id=other").run();
    other("--unuse --name=r --id=other").run();
    assert_eq!(node.repofile("r")["sc"]["holders"][0]["id"], "leased");
    node.sc_at(2, "--gc").run();
    node.assert_empty();
}

#[test]
fn the_time_of_a_load_is_no_time_of_the_lease() {
    let node = Node::new();
    let fifo = crate::node::Fifo::new(&node);
    // the clock cannot be moved on under a running sc, but the boot's can be looked at
    let mut sc = node
        .sc("--use --name=r --lease=1000d")
        .env("SC_PAUSE_AT", fifo.at("mkdir"))
        .spawn();
    let pause = fifo.reached();
    let before = crate::holders::since_boot_s();
    drop(pause);
    assert_eq!(sc.end().0, 0, "{}", sc.said);
    let until = node.repofile("r")["sc"]["holders"][0]["lease"]["until_boot_s"].clone();
    assert!(until.as_u64().unwrap() >= before + 1000 * 86400);
    node.sc("--unuse --name=r").run();
}

fn since_boot_s() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    time.tv_sec() as u64
}

#[test]
fn a_command_may_outlive_the_lease_of_its_run() {
    let node = Node::new();
    // while CMD runs the repository is given up by somebody who comes later
    let later = format!(
        "SC_UNIX_TIME={} SC_SINCE_BOOT={} \"$SC\" --gc",
        hour(3),
        up(3)
    );
    node.sc_words(["--run", "--name=r", "--lease=2h", "--", "sh", "-c", &later])
        .at(0)
        .env("SC_SINCE_BOOT", up(0))
        .env("SC", crate::node::SC)
        .stderr("sc: `{}/r` is not held by `sc --run` of pid {}")
        .run();
    node.assert_empty();
}

#[test]
fn a_lease_of_no_time_is_refused() {
    let node = Node::new();
    node.sc("--use --lease=0")
        .status(2)
        .stderr("sc: `--lease`: `0` would end the hold at once\nhint: {}")
        .run();
    node.sc("--use")
        .env("SC_LEASE", "soon")
        .status(2)
        .stderr("sc: `SC_LEASE`: `soon` is not a duration\nhint: {}")
        .run();
    node.assert_empty();
}

#[test]
fn a_repofile_without_the_new_keys_is_read() {
    let node = Node::new();
    node.sc("--use --name=r --id=old").run();
    let mut file = node.repofile("r");
    file["sc"]["holders"][0]
        .as_object_mut()
        .unwrap()
        .remove("lease");
    fs::write(node.path("r/repofile"), file.to_string()).unwrap();
    node.sc("--use --name=r --id=new --lease=1h").run();
    let holders = node.repofile("r")["sc"]["holders"].clone();
    assert_eq!(holders.as_array().unwrap().len(), 2);
    node.sc("--unuse --name=r --id=old").run();
    node.sc("--unuse --name=r --id=new").run();
    node.assert_empty();
}

#[test]
fn a_hold_by_an_open_file_ends_when_it_is_closed() {
    let node = Node::new();
    let mut job = node.job();
    job.sh("exec 9>>lock");
    assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()));
    assert_eq!(node.repofile("r")["readers"], json!([1]));
    assert_holds(&node);
    let holder = status(&node)["holders"][0].clone();
    assert_eq!(holder["kind"], "fd");
    assert_eq!(holder["path"], node.outside("lock").to_str().unwrap());
    assert_eq!(holder["alive"], true);
    node.sc("--status --name=r")
        .stdout(
            "location    {}/r\nstate       OK\ndefinition  {}\nloaded      {}\n\
             holder      open file `{}/lock`, since {} ago",
        )
        .run();
    // once, as any holder
    assert_eq!(job.sc("--use --name=r --fd=9"), (0, String::new()));
    assert_eq!(node.repofile("r")["readers"], json!([1]));
    job.sh("exec 9>&-");
    assert_eq!(status(&node)["holders"][0]["alive"], false);
    assert_ends(&node);
}

#[test]
fn a_hold_by_an_open_file_is_given_up() {
    let node = Node::new();
    let mut job = node.job();
    job.sh("exec 9>>lock");
    for words in ["--use --name=r --fd 9", "--use --name=s --fd 9"] {
        assert_eq!(job.sc(words), (0, String::new()));
    }
    assert_eq!(job.sc("--unuse --name=r --fd 9"), (0, String::new()));
    // the other repository's hold by the same file stands
    node.sc("--gc").run();
    assert_eq!(node.repofile("s")["readers"], json!([1]));
    let (status, said) = job.sc("--unuse --name=r --fd 9");
    assert_eq!(status, 255);
    assert!(said.contains("is not held by open file `"), "{said}");
    assert_eq!(job.sc("--unuse --name=s --fd 9"), (0, String::new()));
    node.assert_empty();
}

#[test]
fn a_hold_by_an_open_file_lasts_while_a_descendant_has_it() {
    let node = Node::new();
    let mut job = node.job();
    job.sh("exec 9>>lock");
    assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()));
    let (_, child) = job.sh("sleep 600 & echo $!");
    job.die();
    assert_holds(&node);
    let child = nix::unistd::Pid::from_raw(child.trim().parse().unwrap());
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
    job.rest(); // returns when the last copy of its stdout is closed
    assert_ends(&node);
}

#[test]
fn a_file_that_is_removed_or_replaced_still_holds_while_it_is_open() {
    for replace in [false, true] {
        let node = Node::new();
        let mut job = node.job();
        job.sh("exec 9>>lock");
        assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()));
        job.sh(if replace {
            "rm lock; : >lock"
        } else {
            "rm lock"
        });
        assert_holds(&node);
        // and can be given up
        assert_eq!(job.sc("--unuse --name=r --fd 9"), (0, String::new()));
        node.assert_empty();
        // of one that is gone, the kernel's list of locks tells the end
        job.sh("exec 9>>lock");
        assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()));
        job.sh("rm lock");
        job.kill();
        assert_ends_by_the_list(&node);
    }
}

#[test]
fn two_who_open_one_file_need_an_id() {
    let node = Node::new();
    let (mut one, mut two) = (node.job(), node.job());
    for (job, id) in [(&mut one, "1"), (&mut two, "2")] {
        job.sh("exec 9>>lock");
        assert_eq!(job.sc(&format!("--use --name=r --fd 9 --id={id}")).0, 0);
    }
    assert_eq!(node.repofile("r")["readers"], json!([1, 1]));
    assert_eq!(one.sc("--unuse --name=r --fd 9 --id=1").0, 0);
    one.kill();
    assert_holds(&node);
    two.kill();
    assert_ends(&node);
}

#[test]
fn a_descriptor_that_will_not_do_is_refused() {
    let node = Node::new();
    let mut job = node.job();
    for (setup, words, status, said) in [
        (
            ":",
            "--use --fd 9",
            2,
            "sc: descriptor 9 (`--fd`) is not open\nhint: open a file of your own for it first: `exec 9>>FILE`, then `--fd 9`\n",
        ),
        (
            ":",
            "--unuse --fd 9",
            2,
            "sc: descriptor 9 (`--fd`) is not open\nhint: open a file of your own for it first: `exec 9>>FILE`, then `--fd 9`\n",
        ),
        // one that sc opens itself, perhaps
        (
            "exec 3>&-", // whoever started the tests may have left one open
            "--use --fd 3",
            2,
            "sc: descriptor 3 (`--fd`) is not open\nhint: open a file of your own for it first: `exec 9>>FILE`, then `--fd 9`\n",
        ),
        (
            "exec 9</dev/null",
            "--use --fd 9",
            2,
            "sc: descriptor 9 (`--fd`) is no regular file\nhint: open a file: `exec 9>>FILE`\n",
        ),
        (
            "exec 9<.",
            "--use --fd 9",
            2,
            "sc: descriptor 9 (`--fd`) is no regular file\nhint: open a file: `exec 9>>FILE`\n",
        ),
        (
            ":",
            "--use --fd x",
            2,
            "sc: `--fd`: `x` is not a descriptor\nhint: a descriptor is a number: with `exec 9>>FILE` it is 9\n",
        ),
        (
            ":",
            "--use --fd -1",
            2,
            "sc: `--fd`: `-1` is not a descriptor\nhint: a descriptor is a number: with `exec 9>>FILE` it is 9\n",
        ),
        (
            ":",
            "--use --fd 9 --job",
            2,
            "sc: `--fd` and `--job` exclude each other: a use has one holder\n",
        ),
        (
            ":",
            "--use --fd 9 --pid 1",
            2,
            "sc: `--pid` and `--fd` exclude each other: a use has one holder\n",
        ),
        (
            ":",
            "--run --fd 9 -- true",
            2,
            "sc: `--fd` means nothing with `--run`\nhint: there CMD holds the use\n",
        ),
    ] {
        job.sh(setup);
        assert_eq!(job.sc(words), (status, said.into()), "{setup}; {words}");
    }
    node.assert_empty();
}

#[test]
fn another_user_s_file_is_refused() {
    let node = Node::new();
    let path = if node.path("").metadata().unwrap().uid() == 0 {
        let path = node.file("theirs", "");
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        path
    } else {
        PathBuf::from("/etc/passwd")
    };
    let mut job = node.job();
    job.sh(&format!("exec 9<'{}'", path.display()));
    let (status, said) = job.sc("--use --fd 9");
    assert_eq!(status, 2);
    assert!(said.contains("is a file of another user"), "{said}");
    node.assert_empty();
}

#[test]
fn a_file_that_is_locked_exclusively_is_refused() {
    let node = Node::new();
    let (mut other, mut job) = (node.job(), node.job());
    other.sh("exec 9>>lock; flock -x 9");
    job.sh("exec 9>>lock");
    let (status, said) = job.sc("--use --fd 9");
    assert_eq!(status, 75);
    let refusal = "sc: cannot hold by descriptor 9 (`--fd`): open file `{}/lock` is locked \
                   exclusively\nhint: {}";
    assert!(crate::node::fits(refusal, &said), "{said}");
    // a lock of the caller's own would be weakened
    let (status, _) = other.sc("--use --fd 9");
    assert_eq!(status, 75);
    assert_ne!(job.sh("flock -n -s lock true").0, 0);
    other.kill();
    // a shared one is as good as ours
    job.sh("flock -s 9");
    assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()));
    assert_eq!(job.sc("--unuse --name=r --fd 9"), (0, String::new()));
    node.assert_empty();
}

#[test]
fn a_path_that_was_given_to_something_else_is_not_opened() {
    let node = Node::new();
    let mut job = node.job();
    job.sh("exec 9>>lock");
    assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()));
    fs::remove_file(node.outside("lock")).unwrap();
    // to open it would wait for a writer, for ever
    let fifo = node.outside("lock");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    assert_holds(&node);
    job.kill();
    assert_ends_by_the_list(&node);
}

#[test]
fn a_use_by_an_open_file_is_gone_after_a_reboot() {
    let node = Node::new();
    let mut job = node.job();
    job.sh("exec 9>>lock");
    assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()));
    node.sc("--gc").env("SC_BOOT_ID", "another").run();
    node.assert_empty();
}

#[test]
fn a_killed_use_by_an_open_file_is_tried_again() {
    let mut done = false;
    for n in 1..60 {
        let node = Node::new();
        let mut job = node.job();
        job.sh("exec 9>>lock");
        let (status, _) = job.sh(&format!("SC_CRASH_AT={n} \"$SC\" --use --name=r --fd 9"));
        assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()), "{n}");
        assert_eq!(node.repofile("r")["readers"], json!([1]), "{n}");
        job.kill();
        assert_ends(&node);
        if status == 0 {
            assert!(n > 5, "only {n} points");
            done = true;
            break;
        }
    }
    assert!(done, "never came to its end");
}

/// A control group for one test, in a real hierarchy.
struct Group(PathBuf);

impl Group {
    /// `None`, said loudly, where the machine lets none be made.
    fn new(hierarchy: &str) -> Option<Group> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let name = format!("sc-test-{}-{n}", std::process::id());
        let points: &[&str] = match hierarchy {
            "unified" => &["/sys/fs/cgroup/unified", "/sys/fs/cgroup"],
            _ => &["/sys/fs/cgroup/freezer"],
        };
        for point in points {
            let dir = Path::new(point).join(&name);
            let marker = match hierarchy {
                "unified" => "cgroup.events",
                _ => "cgroup.procs",
            };
            if Path::new(point).join("cgroup.procs").exists() && fs::create_dir(&dir).is_ok() {
                if dir.join(marker).exists() {
                    return Some(Group(dir));
                }
                let _ = fs::remove_dir(&dir);
            }
        }
        eprintln!("SKIPPED: no cgroup can be made in the {hierarchy} hierarchy here");
        None
    }

    fn sub(&self, name: &str) -> PathBuf {
        let dir = self.0.join(name);
        fs::create_dir(&dir).unwrap();
        dir
    }

    fn enter(dir: &Path, job: &Job) {
        fs::write(dir.join("cgroup.procs"), job.pid().to_string()).unwrap();
    }

    /// A job's end in the group is seen a moment after its process is reaped.
    fn wait_until_empty(dir: &Path) {
        while !fs::read_to_string(dir.join("cgroup.procs"))
            .unwrap()
            .is_empty()
            || fs::read_to_string(dir.join("cgroup.events"))
                .is_ok_and(|events| events.contains("populated 1"))
        {
            std::thread::yield_now();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                let _ = fs::remove_dir(entry.path());
            }
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_job_holds_while_a_process_of_its_cgroup_lives() {
    for hierarchy in ["unified", "freezer"] {
        let Some(group) = Group::new(hierarchy) else {
            continue;
        };
        let (job_dir, node) = (group.sub("job_4711"), Node::new());
        let step = job_dir.join("step_0");
        fs::create_dir(&step).unwrap();
        let (mut job, mut other) = (node.job(), node.job());
        Group::enter(&step, &job);
        Group::enter(&job_dir, &other);
        assert_eq!(
            job.sh("SLURM_JOB_ID=4711 \"$SC\" --use --name=r --job"),
            (0, String::new())
        );
        assert_eq!(node.repofile("r")["readers"], json!([1]));
        let holder = status(&node)["holders"][0].clone();
        assert_eq!(
            (&holder["kind"], &holder["job_id"]),
            (&json!("job"), &json!("4711"))
        );
        assert!(
            holder["cgroup"].as_str().unwrap().ends_with("/job_4711"),
            "{holder}"
        );
        node.sc("--status --name=r")
            .stdout(
                "location    {}/r\nstate       OK\ndefinition  {}\nloaded      {}\n\
                 holder      job 4711, since {} ago",
            )
            .run();
        // its first step ends, the job does not
        job.kill();
        Group::wait_until_empty(&step);
        fs::remove_dir(&step).unwrap();
        assert_holds(&node);
        other.die();
        Group::wait_until_empty(&job_dir);
        assert_ends(&node);
        fs::remove_dir(&job_dir).unwrap();
    }
}

#[test]
fn a_job_whose_cgroup_is_gone_is_over() {
    for hierarchy in ["unified", "freezer"] {
        let Some(group) = Group::new(hierarchy) else {
            continue;
        };
        for remade in [false, true] {
            let (dir, node) = (group.sub("job_7"), Node::new());
            let mut job = node.job();
            Group::enter(&dir, &job);
            assert_eq!(
                job.sh("PBS_JOBID=7.server SC_JOB=1 \"$SC\" --use --name=r"),
                (0, String::new())
            );
            job.kill();
            Group::wait_until_empty(&dir);
            fs::remove_dir(&dir).unwrap();
            let next = node.job();
            if remade {
                // the next job of that name is another one
                fs::create_dir(&dir).unwrap();
                Group::enter(&dir, &next);
            }
            assert_ends(&node);
            drop(next);
            if remade {
                Group::wait_until_empty(&dir);
                fs::remove_dir(&dir).unwrap();
            }
        }
    }
}

/// What /proc/self would say in a cgroup, and a hierarchy of plain directories.
struct Pretended {
    dir: PathBuf,
}

impl Pretended {
    fn new(node: &Node, path: &str, kind: &str) -> Pretended {
        let dir = node.outside("cgroups");
        let hierarchy = dir.join("fs");
        fs::create_dir_all(&hierarchy).unwrap();
        let device = fs::metadata(&hierarchy).unwrap().dev();
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        let (line, options) = match kind {
            "unified" => (format!("0::{path}\n"), "cgroup2 rw"),
            _ => (
                format!("9:name=systemd:/\n4:freezer:{path}\n0::/\n"),
                "cgroup rw,freezer",
            ),
        };
        let fstype = options.split(' ').next().unwrap();
        fs::write(dir.join("cgroup"), line).unwrap();
        fs::write(
            dir.join("mountinfo"),
            format!(
                "23 1 0:1 / / rw - ext4 /dev/x rw\n38 31 {major}:{minor} / {} rw - {fstype} {options}\n",
                hierarchy.display()
            ),
        )
        .unwrap();
        let it = Pretended { dir };
        it.populate(path, true);
        it
    }

    fn group(&self, path: &str) -> PathBuf {
        self.dir.join("fs").join(path.trim_start_matches('/'))
    }

    fn populate(&self, path: &str, populated: bool) {
        let group = self.group(path);
        fs::create_dir_all(&group).unwrap();
        let populated = i32::from(populated);
        fs::write(
            group.join("cgroup.events"),
            format!("populated {populated}\nfrozen 0\n"),
        )
        .unwrap();
        fs::write(group.join("cgroup.procs"), "1\n".repeat(populated as usize)).unwrap();
    }
}

/// The same on a machine that lets no cgroup be made, and what a real one cannot be brought to.
#[test]
fn a_job_ends_when_its_cgroup_says_so() {
    for kind in ["unified", "freezer"] {
        let node = Node::new();
        let cgroups = Pretended::new(&node, "/job_4711", kind);
        let sc = |words: &str| node.sc(words).env("SC_CGROUPS", &cgroups.dir);
        sc("--use --name=r --job --id=job").run();
        let come_and_go = || {
            sc("--use --name=r").run();
            sc("--unuse --name=r").run();
        };
        come_and_go();
        assert_eq!(node.repofile("r")["readers"], json!([1]));
        // who sees no such hierarchy knows nothing
        let blind = |words: &str| node.sc(words).env("SC_CGROUPS", node.base());
        blind("--use --name=r").run();
        blind("--unuse --name=r").run();
        assert_eq!(node.repofile("r")["readers"], json!([1]));
        cgroups.populate("/job_4711", false);
        come_and_go();
        node.assert_empty();
        // gone
        cgroups.populate("/job_4711", true);
        sc("--use --name=r --job").run();
        fs::remove_dir_all(cgroups.group("/job_4711")).unwrap();
        come_and_go();
        node.assert_empty();
    }
}

#[test]
fn a_job_of_another_cgroup_namespace_or_a_hidden_hierarchy_is_not_judged() {
    let node = Node::new();
    let cgroups = Pretended::new(&node, "/job_4711", "unified");
    let sc = |words: &str| node.sc(words).env("SC_CGROUPS", &cgroups.dir);
    sc("--use --name=r --job --id=job").run();
    let written = node.repofile("r");
    let still_holds = || {
        sc("--use --name=r").run();
        sc("--unuse --name=r").run();
        assert_eq!(node.repofile("r")["readers"], json!([1]));
    };
    fs::remove_dir_all(cgroups.group("/job_4711")).unwrap();
    let mut foreign = written.clone();
    foreign["sc"]["holders"][0]["cgroup_ns"] = json!(42);
    fs::write(node.path("r/repofile"), foreign.to_string()).unwrap();
    still_holds();
    assert_eq!(status(&node)["holders"][0]["alive"], Value::Null);
    fs::write(node.path("r/repofile"), written.to_string()).unwrap();
    // something else is mounted above it
    let mounts = fs::read_to_string(cgroups.dir.join("mountinfo")).unwrap();
    let covered = mounts
        .replace("38 31 ", "38 31 99:99 ")
        .replacen(" / /", " /", 0);
    let covered: String = covered
        .lines()
        .map(|line| match line.split_once("99:99 ") {
            Some((before, rest)) => {
                let rest = rest.split_once(' ').unwrap().1;
                format!("{before}99:99 {rest}\n")
            }
            None => format!("{line}\n"),
        })
        .collect();
    fs::write(cgroups.dir.join("mountinfo"), covered).unwrap();
    still_holds();
    fs::write(cgroups.dir.join("mountinfo"), mounts).unwrap();
    // but another boot is the end in any case
    sc("--gc").env("SC_BOOT_ID", "another").run();
    node.assert_empty();
}

#[test]
fn who_is_in_no_cgroup_of_a_job_is_refused() {
    let node = Node::new();
    let cgroups = Pretended::new(&node, "/", "unified");
    for words in ["--use --job", "--unuse --job"] {
        node.sc(words)
            .env("SC_CGROUPS", &cgroups.dir)
            .status(2)
            .stderr("sc: this process is in no cgroup of a job (`--job`)\nhint: {}")
            .run();
    }
    node.sc("--use")
        .env("SC_JOB", "perhaps")
        .status(2)
        .stderr("sc: `SC_JOB`: `perhaps` is neither yes nor no\nhint: 1 is yes, 0 is no")
        .run();
    node.sc("--use")
        .env("SC_JOB", "1")
        .env("SC_PID", "1")
        .status(2)
        .stderr("sc: `SC_PID` and `SC_JOB` exclude each other: a use has one holder")
        .run();
    node.assert_empty();
}

#[test]
fn a_job_in_a_cgroup_that_is_not_its_own_is_told_so() {
    let node = Node::new();
    let cgroups = Pretended::new(&node, "/system.slice/slurmd.service", "unified");
    node.sc("--use --name=r --job")
        .env("SC_CGROUPS", &cgroups.dir)
        .env("SLURM_JOB_ID", "4711")
        .stderr("hint: the cgroup `/system.slice/slurmd.service` is not one of job 4711 alone; {}")
        .run();
    // the command line wins over the environment
    node.sc("--unuse --name=r --job")
        .env("SC_PID", "1")
        .env("SC_CGROUPS", &cgroups.dir)
        .env("SLURM_JOB_ID", "4711")
        .run();
    node.assert_empty();
}

/// Slurm's epilog runs as the daemon's child, in its cgroup, when the job's has gone.
#[test]
fn an_epilog_gives_up_the_use_of_a_job_by_its_number() {
    let node = Node::new();
    let cgroups = Pretended::new(&node, "/job_4711", "unified");
    node.sc("--use --name=r --job")
        .env("SC_CGROUPS", &cgroups.dir)
        .env("SLURM_JOB_ID", "4711")
        .run();
    fs::write(cgroups.dir.join("cgroup"), "0::/\n").unwrap();
    node.sc("--unuse --name=r --job")
        .env("SC_CGROUPS", &cgroups.dir)
        .env("SLURM_JOB_ID", "4712")
        .status(255)
        .stderr("sc: `{}/r` is not held by job 4712")
        .run();
    node.sc("--unuse --name=r --job")
        .env("SC_CGROUPS", &cgroups.dir)
        .env("SLURM_JOB_ID", "4711")
        .run();
    node.assert_empty();
}

/// Root judges what a user wrote: a lock of somebody else is not touched, and nothing is opened.
#[test]
fn a_file_of_another_user_is_not_locked_to_judge_a_hold() {
    let node = Node::new();
    if node.path("").metadata().unwrap().uid() != 0 {
        eprintln!("SKIPPED: only root can give files away");
        return;
    }
    let mut job = node.job();
    job.sh("exec 9>>lock");
    assert_eq!(job.sc("--use --name=r --fd 9"), (0, String::new()));
    job.sh("exec 9>&-");
    let lock = node.outside("lock");
    std::os::unix::fs::chown(&lock, Some(12345), None).unwrap();
    // nobody has it locked, but only the kernel's list may say so, which status cannot ask
    assert_eq!(status(&node)["holders"][0]["alive"], Value::Null);
    assert_ends_by_the_list(&node);
}
