//! `--stats`, what is counted for it, and why a repository was loaded.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::keep::{At, START};
use crate::node::{Fifo, Node, SC, Sc};

const DATA: usize = 100_000;

fn words(node: &Node) -> String {
    let file = node.outside("data");
    if !file.exists() {
        fs::write(&file, vec![b'x'; DATA]).unwrap();
    }
    format!("--name=r file:{}", file.display())
}

/// The directory of `--stats-dir`, made.
fn past(node: &Node) -> PathBuf {
    let dir = node.outside("past");
    if !dir.exists() {
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
    }
    dir
}

/// This user's file in it.
fn own(node: &Node) -> PathBuf {
    let dir = past(node);
    let user = fs::metadata(&dir).unwrap().uid();
    dir.join(user.to_string())
}

/// `sc` that knows of the past.
fn sc(node: &Node, words: &str) -> Sc {
    let dir = past(node);
    node.sc(words).env("SC_STATS_DIR", dir)
}

#[track_caller]
fn json(sc: Sc) -> Value {
    let output = sc.output();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// (uses, loads, hits, failures, spared_bytes, reloads) of all directories.
#[track_caller]
fn total(node: &Node) -> [u64; 6] {
    let all = json(sc(node, "--stats --json"));
    let keys = [
        "uses",
        "loads",
        "hits",
        "failures",
        "spared_bytes",
        "reloads",
    ];
    let total = keys.map(|key| all["total"][key].as_u64().unwrap());
    assert_eq!(total[0], total[1] + total[2], "{all}");
    total
}

#[test]
fn what_is_there_is_counted_without_a_directory_for_the_past() {
    let node = Node::new();
    let words = words(&node);
    for id in 1..=3 {
        node.sc(&format!("--use --keep=1h --id={id} {words}"))
            .at(0)
            .run();
    }
    // the same holder once more is no other use
    node.sc(&format!("--use --id=3 {words}")).at(0).run();
    node.sc("--use --name=b file:/nowhere/x")
        .at(0)
        .status(66)
        .stderr("{}")
        .run();
    let all = json(node.sc("--stats --json --max-size=1MB").at(0));
    assert_eq!(all["version"], 1);
    assert_eq!(all["stats_dir"], Value::Null);
    let dir = &all["directories"][0];
    assert_eq!(dir["directory"], node.base().to_str().unwrap());
    let kinds = serde_json::json!(
        {"held": 1, "kept": 0, "loading": 0, "broken": 1, "orphan": 0}
    );
    assert_eq!(dir["repositories"], kinds);
    assert_eq!(dir["data_bytes"], DATA);
    assert_eq!(dir["kept_bytes"], 0);
    assert!(dir["own_bytes"].as_u64().unwrap() > 0, "{dir}");
    assert_eq!(dir["max_size_bytes"], 1_000_000);
    assert!(dir["free_bytes"].as_u64().is_some());
    assert_eq!(
        (&dir["uses"], &dir["loads"], &dir["hits"]),
        (&3.into(), &1.into(), &2.into())
    );
    assert_eq!(dir["spared_bytes"], 2 * DATA);
    assert_eq!(dir["failures"], 1);
    assert_eq!(dir["reloads"], Value::Null, "nothing tells of them");
    for id in 1..=3 {
        node.sc(&format!("--unuse --name=r --id={id}")).at(1).run();
    }
    node.sc("--stats --max-size=1MB")
        .at(1)
        .stdout(
            "{}/the base\n  repositories     2 (1 kept, 1 broken)\n  data             100 kB\n  \
             sc's own files   {} kB\n  kept             100 kB (limit 1.0 MB)\n  \
             free             {}\n  uses             3\n  loads            1\n  \
             hits             2 (66 %)\n  not downloaded   200 kB\n  failures         1\n\
             counted is what is there; `--stats-dir` counts also what is gone",
        )
        .run();
    node.sc("--gc").at(9).run();
    assert_eq!(json(node.sc("--stats --json"))["total"]["uses"], 0);
    node.assert_empty();
}

#[test]
fn several_directories_are_told_apart_and_summed() {
    let node = Node::new();
    let words = words(&node);
    let two = node.outside("two");
    fs::create_dir(&two).unwrap();
    node.sc(&format!("--use {words}")).run();
    node.sc(&format!("--use {words} -d")).arg(&two).run();
    let both = format!("{0}:{1}:{0}", node.base().display(), two.display());
    let all = json(node.sc("--stats --json -d").arg(&both));
    assert_eq!(
        all["directories"].as_array().unwrap().len(),
        2,
        "one is named twice"
    );
    assert_eq!(all["directories"][1]["uses"], 1);
    assert_eq!(all["total"]["uses"], 2);
    assert_eq!(all["total"]["data_bytes"], 2 * DATA);
    let output = node.sc("--stats -d").arg(&both).output();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("\ntotal\n  repositories     2 (2 held)\n"),
        "{text}"
    );
}

#[test]
fn what_is_gone_is_counted_in_the_past_and_a_reload_is_told_with_advice() {
    let node = Node::new();
    let words = words(&node);
    // loaded and deleted, and loaded again 12 minutes later
    for n in 0..4u64 {
        let at = |minutes: u64| (START + (n * 13 + minutes) * 60).to_string();
        sc(&node, &format!("--use {words}"))
            .env("SC_UNIX_TIME", at(0))
            .run();
        sc(&node, &format!("--use --id=2 {words}"))
            .env("SC_UNIX_TIME", at(0))
            .run();
        sc(&node, "--unuse --name=r")
            .env("SC_UNIX_TIME", at(1))
            .run();
        sc(&node, "--unuse --name=r --id=2")
            .env("SC_UNIX_TIME", at(1))
            .run();
        node.assert_empty();
    }
    assert_eq!(total(&node), [8, 4, 4, 0, 4 * DATA as u64, 3]);
    let all = json(sc(&node, "--stats --json"));
    let reloaded = serde_json::json!([{"name": "r", "times": 3, "after_s": 720, "evicted": false}]);
    assert_eq!(all["directories"][0]["reloaded"], reloaded);
    let output = sc(&node, "--stats").output();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.ends_with(
            "  reloads          3\nhint: `r` was loaded again 12 min 0 s after it was deleted, \
             3 times: raise `--keep`\n"
        ),
        "{text}"
    );
    assert_eq!(fs::metadata(own(&node)).unwrap().mode() & 0o777, 0o600);
    // an hour later it is no reload
    let at = (START + 100 * 3600).to_string();
    sc(&node, &format!("--use {words}"))
        .env("SC_UNIX_TIME", &at)
        .run();
    assert_eq!(total(&node)[5], 3);
    sc(&node, "--unuse --name=r").env("SC_UNIX_TIME", &at).run();
    // nor is what somebody wanted deleted
    sc(&node, &format!("--use {words}"))
        .env("SC_UNIX_TIME", &at)
        .run();
    assert_eq!(total(&node)[5], 4);
    sc(&node, "--clear --force --name=r")
        .env("SC_UNIX_TIME", &at)
        .run();
    sc(&node, &format!("--use {words}"))
        .env("SC_UNIX_TIME", &at)
        .run();
    assert_eq!(total(&node)[5], 4);
}

#[test]
fn the_reload_of_what_was_evicted_has_other_advice() {
    let node = Node::new();
    let words = words(&node);
    sc(&node, &format!("--use --keep=9h {words}")).at(0).run();
    sc(&node, "--unuse --name=r").at(0).run();
    sc(&node, "--gc --max-size=0").at(0).run();
    node.assert_empty();
    sc(&node, &format!("--use {words}")).at(1).run();
    let output = sc(&node, "--stats").at(1).output();
    let text = String::from_utf8(output.stdout).unwrap();
    let advice = "hint: `r` was loaded again 1 h 0 min after it was deleted, once: it was evicted: \
                  raise `--max-size`, or find it more room\n";
    assert!(text.ends_with(advice), "{text}");
}

#[test]
fn others_who_come_and_go_write_nothing_into_the_past() {
    let node = Node::new();
    let words = words(&node);
    sc(&node, &format!("--use {words}")).run();
    sc(&node, &format!("--use --id=2 {words}")).run();
    sc(&node, "--unuse --name=r --id=2").run();
    assert!(!own(&node).exists());
    sc(&node, "--unuse --name=r").run();
    let inode = fs::metadata(own(&node)).unwrap().ino();
    let names = fs::read_dir(past(&node)).unwrap().count();
    assert_eq!(names, 1, "the file and nothing beside it");
    sc(&node, &format!("--use {words}")).run();
    let loaded = fs::metadata(own(&node)).unwrap().ino();
    assert_ne!(loaded, inode, "a reload is written down");
    sc(&node, &format!("--use --id=2 {words}")).run();
    sc(&node, "--unuse --name=r --id=2").run();
    assert_eq!(fs::metadata(own(&node)).unwrap().ino(), loaded);
}

#[test]
fn killed_anywhere_between_the_counts_move_once() {
    let node = Node::new();
    let words = words(&node);
    let mut uses = 0;
    let mut floor = 0;
    for end in ["--unuse --name=r", "--clear --force --name=r"] {
        for n in 1.. {
            sc(&node, &format!("--use {words}")).run();
            uses += 1;
            let before = total(&node);
            assert_eq!(before[0], uses, "{end}, {n}");
            let output = sc(&node, end).env("SC_CRASH_AT", n.to_string()).output();
            let after = total(&node);
            assert_eq!(
                after[..5],
                before[..5],
                "{end}, killed at {n}: moved, and once"
            );
            if output.status.success() {
                floor = floor.max(n);
                break;
            }
            // what is left is used again, or taken away
            if n % 2 == 0 {
                let output = sc(&node, &format!("--use --id=2 {words}")).output();
                assert!(output.status.success(), "{output:?}");
                uses += 1;
                assert_eq!(total(&node)[0], uses, "{end}, killed at {n}, used again");
            }
            sc(&node, "--clear --force --name=r").run();
            assert_eq!(total(&node)[0], uses, "{end}, killed at {n}, cleared");
        }
        node.assert_empty();
    }
    assert!(floor > 20, "{floor}");
    let names = fs::read_dir(past(&node)).unwrap().count();
    assert_eq!(names, 1, "the file and nothing beside it");
}

#[test]
fn a_past_that_cannot_be_written_is_told_once_and_fails_nothing() {
    let node = Node::new();
    let words = words(&node);
    let nowhere = |words: &str| node.sc(words).env("SC_STATS_DIR", "/nowhere/past");
    nowhere(&format!("--use {words}"))
        .stderr(
            "sc: warning: cannot open directory `/nowhere/past`: no such file or directory; the \
             load of `{}/r` is not counted (`--stats-dir`)",
        )
        .run();
    nowhere("--unuse --name=r")
        .stderr("sc: warning: {}; the end of {} is not counted {}")
        .run();
    node.assert_empty();
    for name in ["a", "b", "c"] {
        let words = words.replace("--name=r", &format!("--run --keep=1h --name={name}"));
        node.sc(&format!("{words} -- true")).at(0).run();
    }
    nowhere("--gc")
        .at(9)
        .stderr("sc: warning: {}; the end of `{}/a` is not counted {}")
        .run();
    node.assert_empty();
    nowhere("--stats")
        .status(74)
        .stderr("sc: cannot open directory `/nowhere/past`: {}")
        .run();
}

#[test]
fn what_stands_in_the_way_of_the_past_is_named_and_left() {
    let node = Node::new();
    let words = words(&node);
    let file = own(&node);
    let victim = node.file("victim", "precious");
    symlink(&victim, &file).unwrap();
    let once = |said: &str| {
        sc(&node, &format!("--use {words}")).stderr(said).run();
        let said = said.replace("the load of", "the end of");
        sc(&node, "--unuse --name=r").stderr(said).run();
    };
    once("sc: warning: `{}` is no file of statistics; the load of {}");
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    fs::remove_file(&file).unwrap();
    fs::write(&file, "{\"format\":2}").unwrap();
    once(
        "sc: warning: `{}` was written by a newer sc (format 2, this one knows 1); the load of {}",
    );
    assert_eq!(fs::read(&file).unwrap(), b"{\"format\":2}");
    sc(&node, "--stats --json")
        .stdout("{}")
        .stderr("sc: warning: `{}` was written by a newer sc (format 2, this one knows 1)")
        .run();
    node.assert_empty();
}

#[test]
fn a_damaged_past_is_set_aside() {
    let node = Node::new();
    let words = words(&node);
    for (n, damaged) in ["{\"format\":1,\"dire", "[]", "\0\0"]
        .into_iter()
        .enumerate()
    {
        fs::write(own(&node), damaged).unwrap();
        let aside = "sc: warning: `{}` is damaged; ";
        sc(&node, &format!("--use {words}"))
            .stderr(format!("{aside}{{}}"))
            .run();
        sc(&node, "--unuse --name=r")
            .stderr(format!(
                "{aside}it is put aside as `{{}}.damaged`, and counting begins anew"
            ))
            .run();
        let kept = own(&node).with_extension("damaged");
        assert_eq!(fs::read_to_string(kept).unwrap(), damaged, "{n}");
        assert_eq!(total(&node)[0], 1);
    }
    // made by one who was killed then
    fs::write(own(&node), "").unwrap();
    sc(&node, &format!("--use {words}")).run();
    sc(&node, "--unuse --name=r").run();
    assert_eq!(total(&node)[0], 1);
}

#[test]
fn whoever_keeps_the_past_locked_keeps_nobody_from_leaving() {
    let node = Node::new();
    let words = words(&node);
    sc(&node, &format!("--use {words}")).run();
    fs::write(own(&node), "").unwrap();
    let file = fs::File::open(own(&node)).unwrap();
    let locked = fd_lock::RwLock::new(file);
    let _guard = locked.read().unwrap();
    sc(&node, "--unuse --name=r")
        .stderr(
            "sc: warning: gave up waiting for `{}` after 1 s (`--timeout`): somebody keeps it \
             locked; the end of {}",
        )
        .run();
    node.assert_empty();
}

#[test]
fn root_s_deletions_count_for_their_owner_and_hostile_files_for_nobody() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("SKIPPED: only root acts for others");
        return;
    }
    let version = std::process::Command::new(SC)
        .arg("--version")
        .uid(4711)
        .output();
    if version.is_err() {
        eprintln!("SKIPPED: other users may not run the program where it was built");
        return;
    }
    let node = Node::new();
    let dir = past(&node);
    let words = words(&node);
    for path in [node.base(), &node.outside(""), &node.outside("data")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let as_user = |words: &str| by_user(4711, sc(&node, words));
    as_user(&format!("--use --keep=1h {words}")).at(0).run();
    as_user("--unuse --name=r").at(0).run();
    // root's --gc deletes it
    sc(&node, "--gc").at(9).run();
    node.assert_empty();
    let file = dir.join("4711");
    let stat = fs::metadata(&file).unwrap();
    assert_eq!(
        (stat.uid(), stat.gid(), stat.mode() & 0o777),
        (4711, 4711, 0o600)
    );
    assert_eq!(json(as_user("--stats --json"))["total"]["uses"], 1);
    // a second one is added to it by the user himself
    as_user(&format!("--use {words}")).at(20).run();
    as_user("--unuse --name=r").at(20).run();
    assert_eq!(json(sc(&node, "--stats --json"))["total"]["uses"], 2);
    // what another has put there under somebody's name counts for nobody
    fs::copy(&file, dir.join("815")).unwrap();
    fs::copy(&file, dir.join("04711")).unwrap();
    fs::copy(&file, dir.join("4711.next")).unwrap();
    fs::create_dir(dir.join("816")).unwrap();
    symlink(&file, dir.join("817")).unwrap();
    let output = sc(&node, "--stats --json").output();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(all["total"]["uses"], 2);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 3, "{said}");
    // a user is told of his own alone
    assert_eq!(json(as_user("--stats --json"))["total"]["uses"], 2);
    assert_eq!(
        json(by_user(4712, sc(&node, "--stats --json")))["total"]["uses"],
        0
    );
}

fn by_user(user: u32, mut sc: Sc) -> Sc {
    sc.command.uid(user).gid(user);
    sc
}

#[test]
fn prometheus_is_told_of_the_past_too_and_of_no_counter_without_it() {
    let node = Node::new();
    let words = words(&node);
    let printed = |sc: Sc| {
        let output = sc.output();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let base = node.base().display().to_string();
    let value = |text: &str, name: &str| -> Option<u64> {
        let line = format!("\n{name}{{directory=\"{base}\"}} ");
        text.split_once(&line)?.1.lines().next()?.parse().ok()
    };
    sc(&node, &format!("--use {words}")).run();
    sc(&node, &format!("--use --id=2 {words}")).run();
    let before = printed(sc(&node, "--stats --prometheus"));
    sc(&node, "--unuse --name=r").run();
    sc(&node, "--unuse --name=r --id=2").run();
    let after = printed(sc(&node, "--stats --prometheus"));
    for (name, expected) in [
        ("sc_uses_total", 2),
        ("sc_hits_total", 1),
        ("sc_spared_bytes_total", DATA as u64),
    ] {
        assert_eq!(value(&before, name), Some(expected), "{before}");
        assert_eq!(value(&after, name), Some(expected), "{after}");
    }
    assert_eq!(value(&before, "sc_data_bytes"), Some(DATA as u64));
    assert_eq!(value(&after, "sc_data_bytes"), Some(0));
    assert!(
        before.contains(&format!("{{directory=\"{base}\",state=\"held\"}} 1\n")),
        "{before}"
    );
    let without = printed(node.sc("--stats --prometheus"));
    assert!(!without.contains("_total"), "{without}");
    assert!(without.contains("\n# No counters: "), "{without}");
}

/// The reason that `--status` gives.
fn why(node: &Node) -> String {
    let status = json(node.sc("--status --json --name=r"));
    let reason = status["load"]["reason"].as_str().unwrap().to_owned();
    let output = node.sc("--status --name=r").output();
    let text = String::from_utf8(output.stdout).unwrap();
    let is_first = reason == "it is not there yet";
    assert_eq!(
        text.contains(&format!("\nbecause     {reason}")),
        !is_first,
        "{text}"
    );
    reason
}

#[test]
fn the_status_tells_why_it_was_loaded_again_and_what_that_took() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --keep=9h --expires=1h {words}"))
        .at(0)
        .run();
    assert_eq!(why(&node), "it is not there yet");
    let status = json(node.sc("--status --json --name=r"));
    assert_eq!(status["load"]["began_unix_s"], START);
    assert!(status["load"]["took_ms"].as_u64().is_some());
    assert_eq!(status["load"]["brought_bytes"], DATA);
    assert_eq!(status["counts"]["uses"], 1);
    node.sc("--unuse --name=r").at(0).run();
    node.sc(&format!("--use {words}")).at(2).run();
    assert_eq!(why(&node), "it has expired");
    node.sc("--unuse --keep=9h --name=r").at(2).run();
    node.sc(&format!("--use --refresh {words}"))
        .at(2)
        .env("SC_UNIX_TIME", "1800009999")
        .run();
    assert_eq!(why(&node), "`--refresh`");
    fs::remove_file(node.path("r/data")).unwrap();
    node.sc(&format!("--use {words}")).at(3).run();
    assert_eq!(why(&node), "`data` is gone");
    node.sc("--unuse --keep=9h --name=r").at(3).run();
    let other = node.file("other", "x");
    node.sc(&format!("--use --name=r file:{}", other.display()))
        .at(3)
        .run();
    assert_eq!(why(&node), "it holds something else that nobody uses");
    let status = json(node.sc("--status --json --name=r"));
    let old = format!("file:{}", node.outside("data").display());
    assert_eq!(status["load"]["instead_of"], old);
    assert_eq!(status["definition"], format!("file:{}", other.display()));
    let output = node.sc("--status --name=r").at(4).output();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!(
        "it holds something else that nobody uses: `{old}`\n"
    )));
    assert!(
        text.contains("\nloaded      1 h 0 min ago, in 0."),
        "{text}"
    );
    // five loads, all of them of one repository
    assert_eq!(status["counts"]["loads"], 5);
    node.sc("--unuse --name=r").at(3).run();
    let fifo = Fifo::new(&node);
    let loader = node
        .sc(&format!("--use {words}"))
        .at(3)
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    loader.signal(nix::sys::signal::Signal::SIGKILL);
    drop(pause);
    drop(loader);
    node.sc(&format!("--use {words}")).at(3).run();
    assert_eq!(why(&node), "its loader died");
}

#[test]
fn a_load_after_a_deletion_that_is_remembered_says_so() {
    let node = Node::new();
    let words = words(&node);
    sc(&node, &format!("--use {words}")).at(0).run();
    sc(&node, "--unuse --name=r").at(0).run();
    sc(&node, &format!("--use {words}")).at(3).run();
    assert_eq!(why(&node), "it was deleted 3 h 0 min before");
}

#[test]
fn another_source_of_the_same_shown_url_is_told_without_what_is_secret() {
    let node = Node::new();
    let server = crate::server::Server::new().body("hello").start();
    let load = |key: &str| format!("--name=r http:{}", server.url(&format!("/f?key={key}")));
    node.sc(&format!("--use --keep=9h {}", load("secret1")))
        .run();
    node.sc("--unuse --name=r").run();
    node.sc(&format!("-v --use {}", load("secret2"))).output();
    assert_eq!(
        why(&node),
        "it came from another source, by what is not shown of its URL"
    );
    assert!(
        !node.repofile("r")["sc"]["load"]
            .to_string()
            .contains("secret")
    );
}

#[test]
fn a_thousand_repositories_are_counted_and_found_linear() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    for n in 0..1000 {
        let copy = |from: &str, to: String, mode: u32| {
            fs::create_dir(node.path(&to)).unwrap();
            fs::set_permissions(node.path(&to), fs::Permissions::from_mode(mode)).unwrap();
            for entry in fs::read_dir(node.path(from)).unwrap() {
                let entry = entry.unwrap();
                fs::copy(entry.path(), node.path(&to).join(entry.file_name())).unwrap();
            }
        };
        copy("r", format!("copy{n}"), 0o755);
        copy(".sc.r", format!(".sc.copy{n}"), 0o700);
    }
    let all = json(node.sc("--stats --json"));
    assert_eq!(all["total"]["repositories"]["held"], 1001);
    assert_eq!(all["total"]["uses"], 1001);
    assert_eq!(all["total"]["data_bytes"], 1001 * DATA);
}
