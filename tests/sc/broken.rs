//! State files that say anything at all: each value of a real repofile and a real journal replaced
//! by others, names that lead out, files that vanish or are closed while sc is at work. Nobody's
//! data is lost, nothing panics or waits, and a later use works or is told what to do.
//!
//! What is no state file at all is in `state.rs`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::{Value, json};

use crate::node::{Fifo, Node, md5, tar_gz, tree};

fn words(node: &Node) -> String {
    let archive = tar_gz(node, "d.tar.gz", &[("a", "1"), ("bin/b", "2")]);
    format!(
        "--name=r file:{} md5:{} tar",
        archive.display(),
        md5(&archive)
    )
}

fn data(node: &Node) -> Vec<(String, String)> {
    let is_data = |(path, _): &(String, String)| !path.starts_with("repofile");
    tree(&node.path("r")).into_iter().filter(is_data).collect()
}

/// What a value may be replaced by.
fn others() -> Vec<Value> {
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!([deep]);
    }
    vec![
        json!(null),
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!("x"),
        json!(""),
        json!([]),
        json!({}),
        json!([-7, 0, i64::MAX, 1.5, "1", null]),
        json!("y".repeat(70_000)),
        json!(true),
        deep,
    ]
}

/// Pointers to every value within.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                pointers(value, &format!("{at}/{key}"), found);
            }
        }
        Value::Array(list) => {
            for (n, value) in list.iter().enumerate() {
                pointers(value, &format!("{at}/{n}"), found);
            }
        }
        _ => {}
    }
}

/// Status and stderr of `sc` with these words; it neither panics nor hangs.
#[track_caller]
fn ends(node: &Node, words: &str, when: &str) -> (i32, String) {
    let output = node.sc(words).output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{when}: {said}");
    let said: String = said.chars().take(2000).collect();
    let status = output.status.code();
    (status.unwrap_or_else(|| panic!("{when}: {output:?}")), said)
}

/// After whatever was done: a use works, or tells what to do; and when that has been done (all of
/// it moved away), it works.
#[track_caller]
fn assert_no_wedge(node: &Node, words: &str, when: &str) {
    let (status, said) = ends(node, &format!("--use --no-wait {words}"), when);
    if status == 0 {
        let (status, said) = ends(node, &format!("--unuse {words}"), when);
        assert_eq!(status, 0, "{when}: {said}");
    } else {
        assert!(
            [74, 75, 77, 78].contains(&status) && (said.contains("\nhint: ") || status == 75),
            "{when}: {status} {said}"
        );
    }
    for entry in fs::read_dir(node.base()).unwrap() {
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
}

#[test]
fn a_value_of_the_repofile_that_makes_no_sense_costs_nobody_his_data() {
    let node = Node::new();
    let words = words(&node);
    let others = others();
    let mut tried = 0;
    node.sc(&format!("--use --id=1 {words}")).run();
    let mut all = Vec::new();
    pointers(&node.repofile("r"), "", &mut all);
    node.sc("--unuse --name=r --id=1").run();
    for (n, pointer) in all.iter().enumerate() {
        // each value by some of the others, each time by different ones
        for k in 0..3 {
            let other = &others[(n * 5 + k * 4) % others.len()];
            node.sc(&format!("--use --id=1 {words}")).run();
            let was = data(&node);
            let mut json = node.repofile("r");
            let Some(value) = json.pointer_mut(pointer) else {
                panic!("{pointer} is gone")
            };
            *value = other.clone();
            fs::write(node.path("r/repofile"), json.to_string()).unwrap();
            let when = format!("{pointer} = {:.60}", other.to_string());
            ends(&node, "--status --json --name=r", &when);
            let (status, _) = ends(&node, &format!("--use --no-wait --id=2 {words}"), &when);
            // `readers` and the holders under `sc` are who holds
            if status == 0 || !pointer.contains("readers") && !pointer.contains("holders") {
                assert_eq!(data(&node), was, "{when}");
            }
            assert_no_wedge(&node, &words, &when);
            tried += 1;
        }
    }
    assert!(tried > 90, "{tried}");
}

#[test]
fn keys_given_twice_and_nesting_without_end_are_no_wedge() {
    let node = Node::new();
    let words = words(&node);
    for text in [
        "{\"state\":\"OK\",\"state\":\"BROKEN\",\"readers\":[],\"readers\":[1],\"writer\":null}"
            .to_owned(),
        format!("{{\"x\":{}", "[".repeat(1_000_000)),
        format!("{}{}", "{\"a\":".repeat(100_000), "1"),
        format!("{{\"readers\":[{}1]}}", "1,".repeat(200_000)),
        format!("{{\"writer\":{}}}", "9".repeat(5000)),
    ] {
        fs::create_dir(node.path("r")).unwrap();
        fs::write(node.path("r/repofile"), &text).unwrap();
        assert_no_wedge(&node, &words, &text[..60]);
    }
}

/// The journal's records, and how they are written.
fn records(node: &Node) -> Vec<Value> {
    let text = fs::read_to_string(node.path(".sc.r/journal")).unwrap();
    let json = |line: &str| serde_json::from_str(line.split_once(' ').unwrap().1).unwrap();
    text.lines().map(json).collect()
}

fn write_records(node: &Node, records: &[Value]) {
    let line = |record: &Value| {
        let json = record.to_string();
        format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
    };
    let text: String = records.iter().map(line).collect();
    fs::write(node.path(".sc.r/journal"), text).unwrap();
}

#[test]
fn a_value_of_the_journal_that_makes_no_sense_costs_nobody_his_data() {
    let node = Node::new();
    let words = words(&node);
    let others = others();
    node.sc(&format!("--use --id=1 {words}")).run();
    let mut all = Vec::new();
    for (n, record) in records(&node).iter().enumerate() {
        let mut found = Vec::new();
        pointers(record, "", &mut found);
        all.extend(found.into_iter().map(|pointer| (n, pointer)));
    }
    node.sc("--unuse --name=r --id=1").run();
    // every third: the records are much alike
    for (n, (line, pointer)) in all.iter().enumerate().filter(|(n, _)| n % 3 == 0) {
        let other = &others[n * 7 % others.len()];
        node.sc(&format!("--use --id=1 {words}")).run();
        let was = data(&node);
        let mut records = records(&node);
        *records[*line].pointer_mut(pointer).unwrap() = other.clone();
        write_records(&node, &records);
        let when = format!("{line}{pointer} = {:.60}", other.to_string());
        let (status, said) = ends(&node, &format!("--use --no-wait --id=2 {words}"), &when);
        assert_eq!(data(&node), was, "{when}");
        // of another format, or of another repofile
        assert!(
            status == 0 || *line == 0 && status == 78,
            "{when}: {status} {said}"
        );
        let (status, said) = ends(&node, "--unuse --name=r --id=1", &when);
        assert!(
            status == 0 || *line == 0 && status == 255,
            "{when}: {status} {said}"
        );
        assert_no_wedge(&node, &words, &when);
    }
}

#[test]
fn a_journal_never_leads_out_of_the_repository() {
    let node = Node::new();
    let words = words(&node);
    fs::create_dir(node.path("other")).unwrap();
    fs::write(node.path("other/v"), "v").unwrap();
    fs::write(node.path("v"), "v").unwrap();
    node.sc(&format!("--use {words}")).run();
    let mut records = records(&node);
    let mut entry = records
        .iter()
        .rfind(|r| r.get("entry").is_some())
        .unwrap()
        .clone();
    for (path, victim) in [
        ("../v", "v"),
        ("../other", "other"),
        ("bin/../../v", "v"),
        ("bin/../../other/v", "other/v"),
        ("../other/v", "other/v"),
        ("..", ""),
        (".", "r"),
        ("", "r"),
        ("./../v", "v"),
    ] {
        let meta = fs::metadata(node.path(victim)).unwrap();
        let kind = if meta.is_dir() { "dir" } else { "file" };
        for path in [path.to_owned(), node.path(victim).display().to_string()] {
            entry["entry"]["path"] = path.into();
            entry["entry"]["kind"] = kind.into();
            entry["entry"]["ino"] = meta.ino().into();
            entry["entry"]["dev"] = meta.dev().into();
            records.push(entry.clone());
        }
    }
    write_records(&node, &records);
    node.sc("--unuse --name=r").run();
    node.assert_paths(&["other", "other/v", "v"]);
}

#[test]
fn what_vanishes_at_any_moment_is_missed_by_name_or_made_anew() {
    for label in ["publish", "teardown", "write", "rename", "unlink", "link"] {
        for gone in [
            ".sc.r",
            ".sc.r/journal",
            ".sc.r/lock",
            ".sc.r/staging",
            "r/repofile",
            "r",
        ] {
            let node = Node::new();
            let words = words(&node);
            let is_unuse = matches!(label, "teardown" | "unlink" | "link");
            let action = match is_unuse {
                true => {
                    node.sc(&format!("--use {words}")).run();
                    "--unuse --name=r".to_owned()
                }
                false => format!("--use {words}"),
            };
            let fifo = Fifo::new(&node);
            let mut sc = node.sc(&action).env("SC_PAUSE_AT", fifo.at(label)).spawn();
            let pause = fifo.reached();
            let path = node.path(gone);
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            drop(pause);
            let (status, _) = sc.end();
            let when = format!("{gone} at {label}: {}", sc.said);
            assert!([0, 73, 74, 77, 255].contains(&status), "{status} {when}");
            assert!(!sc.said.contains("panicked"), "{when}");
            assert_no_wedge(&node, &words, &when);
        }
    }
}

#[test]
fn a_journal_of_a_hundred_megabytes_of_nothing_takes_no_memory() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 {words}")).run();
    let journal = fs::File::options()
        .write(true)
        .open(node.path(".sc.r/journal"));
    let length = fs::metadata(node.path(".sc.r/journal")).unwrap().len();
    journal.unwrap().set_len(length + (100 << 20)).unwrap();
    let mut sc = node.sc("");
    sc.command = std::process::Command::new("sh");
    sc.command
        .args(["-c", "ulimit -d 40000; exec \"$0\" --unuse --name=r --id=1"])
        .arg(crate::node::SC)
        .env("SC_DIRECTORIES", node.base());
    sc.run();
    node.assert_empty();
}

#[test]
fn state_that_may_not_be_written_is_said_and_a_later_use_works() {
    let Some(tmp) = crate::neighbours::Tmp::new() else {
        return;
    };
    let set_mode = |path: &str, mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(tmp.node.path(path), permissions).unwrap();
    };
    let words = format!("--name=r {}", tmp.stack);
    for (path, closed, open) in [
        ("r/repofile", 0o444, 0o644),
        (".sc.r/journal", 0o400, 0o600),
        (".sc.r/repofile.last", 0o400, 0o600),
        (".sc.r", 0o500, 0o700),
        ("r", 0o555, 0o755),
        ("r/repofile", 0, 0o644),
        (".sc.r/journal", 0, 0o600),
        (".sc.r/lock", 0, 0o600),
        (".sc.r", 0, 0o700),
        ("r", 0, 0o755),
    ] {
        tmp.sc(&format!("--use --id=1 {words}")).run();
        let was = data(&tmp.node);
        set_mode(path, closed);
        for action in ["--use --id=2", "--unuse --id=1"] {
            let output = tmp.sc(&format!("{action} {words}")).output();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let when = format!("{action}, {path} is {closed:o}: {:?} {said}", output.status);
            match output.status.code() {
                Some(0) => {}
                Some(74 | 77) => assert!(said.contains(path), "{when}"),
                _ => panic!("{when}"),
            }
            if action.starts_with("--use") || !output.status.success() {
                set_mode(path, open);
                assert_eq!(data(&tmp.node), was, "{when}");
                set_mode(path, closed);
            }
        }
        if tmp.node.path(path).exists() {
            set_mode(path, open);
        }
        tmp.sc(&format!("--use --id=3 {words}")).run();
        for id in 1..=3 {
            tmp.sc(&format!("--unuse --name=r --id={id}")).output();
        }
        assert_eq!(
            tmp.node.tree().len(),
            0,
            "{path} {closed:o}: {:?}",
            tmp.node.tree()
        );
    }
}

#[test]
fn what_an_orphan_of_a_killed_sc_writes_is_never_in_a_repository() {
    use std::io::{BufRead, BufReader, Read};
    let node = Node::new();
    let get = |name: &str, script: &str| {
        let path = node.file(name, format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let fifo = Fifo::new(&node);
    let stop = node.outside("stop");
    // the client dies with its sc; what it has started does not, and writes where it was
    let orphan = get(
        "orphan",
        &format!(
            "exec 3> '{}'
             (here=$PWD; n=0; echo here >&3
              while ! test -e '{}'; do
                  n=$((n+1)); true > o$n; true > \"$here/p$n\"; true > \"$here/../q$n\"
              done) 2>/dev/null &
             wait",
            fifo.path().display(),
            stop.display()
        ),
    );
    let mut sc = node
        .sc("--use --name=r dirac:/vo/f")
        .env("SC_DIRAC_GET", &orphan)
        .spawn();
    let mut orphan = BufReader::new(fs::File::open(fifo.path()).unwrap());
    orphan.read_line(&mut String::new()).unwrap();
    sc.signal(nix::sys::signal::Signal::SIGKILL);
    sc.child.wait().unwrap();
    let good = get("good", "echo good > f");
    let used = node
        .sc("--use --name=r dirac:/vo/f")
        .env("SC_DIRAC_GET", &good)
        .output();
    let there = data(&node);
    fs::write(&stop, "").unwrap();
    orphan.read_to_end(&mut Vec::new()).unwrap();
    assert!(used.status.success(), "{used:?}");
    assert_eq!(there, [("f".to_owned(), "good\n".to_owned())]);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn what_no_stage_has_made_is_not_published() {
    let node = Node::new();
    let words = words(&node);
    let fifo = Fifo::new(&node);
    let mut sc = node
        .sc(&format!("--use {words}"))
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    for stage in fs::read_dir(node.path(".sc.r/staging")).unwrap() {
        let stage = stage.unwrap().path();
        fs::write(stage.join("stray"), "x").unwrap();
        fs::create_dir(stage.join("run-1")).unwrap();
    }
    drop(pause);
    assert_eq!(sc.end().0, 0, "{}", sc.said);
    let names: Vec<String> = data(&node).into_iter().map(|(path, _)| path).collect();
    assert_eq!(names, ["a", "bin", "bin/b", "d.tar.gz", "d.tar.gz.list"]);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}
