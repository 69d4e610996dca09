//! `--verify`: what differs, what is read and what is not, and `--repair`.
//!
//! A file that is wrong under the fingerprint it had is what tells whether it was read: a test
//! writes other bytes of the same length and puts the new fingerprint into the journal.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::crash::{Scenario, use_and_unuse};
use crate::node::{Node, md5, tar_gz};
use crate::server::{Running, Server};

/// A repository `r` with some members, kept, and held by nobody.
struct Data {
    node: Node,
    words: String,
    _server: Running,
}

/// Long after all files were made, by the clock of the certificates.
const LATER: u64 = 1000;

fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs()
}

impl Data {
    fn new() -> Data {
        let node = Node::new();
        let members = [("a", "alpha\n"), ("d/b", "beta\n"), ("d/c", "gamma\n")];
        let archive = tar_gz(&node, "x.tar.gz", &members);
        let server = Server::new()
            .body(fs::read(&archive).unwrap())
            .etag("\"1\"")
            .start();
        let md5 = md5(&archive);
        let words = format!("--name=r http:{} md5:{md5} tar", server.url("/x.tar.gz"));
        let data = Data {
            node,
            words,
            _server: server,
        };
        data.load(now());
        data
    }

    fn load(&self, unix_s: u64) {
        let words = format!("--run --keep=10000d {} -- true", self.words);
        let sc = self.node.sc(&words);
        sc.env("SC_UNIX_TIME", unix_s.to_string()).run();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.node.path("r").join(name)
    }

    /// Verified so many seconds after now; all as it was loaded, with so many files read.
    #[track_caller]
    fn same(&self, words: &str, after: u64, read: usize) {
        self.node
            .sc(&format!("--verify --name=r {words}"))
            .env("SC_UNIX_TIME", (now() + after).to_string())
            .stderr(format!(
                "sc: `{{}}/r` is as it was loaded: 6 entries, {read} files read"
            ))
            .run();
    }

    /// Verified so many seconds after now; these differ.
    #[track_caller]
    fn differs(&self, words: &str, after: u64, lines: &str) {
        let how_many = match lines.lines().count() {
            1 => "1 difference".to_owned(),
            n => format!("{n} differences"),
        };
        self.node
            .sc(&format!("--verify --name=r {words}"))
            .env("SC_UNIX_TIME", (now() + after).to_string())
            .status(65)
            .stdout(lines)
            .stderr(format!(
                "sc: `{{}}/r` is not as it was loaded: {how_many}\n\
                 hint: `--repair` and the modules load anew what differs, when nobody holds it"
            ))
            .run();
    }

    fn journal(&self) -> std::path::PathBuf {
        self.node.path(".sc.r/journal")
    }

    /// Writes the journal anew, each record changed by `change`; `None` leaves it out.
    fn rewrite(&self, change: impl Fn(serde_json::Value) -> Option<serde_json::Value>) {
        let text = fs::read_to_string(self.journal()).unwrap();
        let mut new = String::new();
        for line in text.lines() {
            if let Some(json) = change(serde_json::from_str(&line[9..]).unwrap()) {
                let json = json.to_string();
                new += &format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
            }
        }
        fs::write(self.journal(), new).unwrap();
    }

    /// Other bytes of the same length, and the journal believes that the file was always so but
    /// for its content: who does not read it finds nothing.
    fn corrupt(&self, name: &str) {
        let path = self.path(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        fs::write(&path, bytes).unwrap();
        let meta = fs::metadata(&path).unwrap();
        let ns = |s: i64, ns: i64| s * 1_000_000_000 + ns;
        self.rewrite(|mut record| {
            if record["entry"]["path"] == name {
                record["entry"]["mtime_ns"] = ns(meta.mtime(), meta.mtime_nsec()).into();
                record["entry"]["ctime_ns"] = ns(meta.ctime(), meta.ctime_nsec()).into();
            }
            Some(record)
        });
    }
}

#[test]
fn what_is_not_there_is_66_and_what_is_no_repository_of_ours_has_no_certificate() {
    let node = Node::new();
    node.sc("--verify --name=r")
        .status(66)
        .stderr("sc: `{}/r` does not exist: no base directory has it")
        .run();
    node.assert_empty();
    let data = Data::new();
    fs::remove_file(data.journal()).unwrap();
    data.differs("", 0, "no_cert\t.");
}

#[test]
fn a_fresh_load_is_read_once_and_then_certified() {
    let data = Data::new();
    data.same("", 0, 5);
    // old enough by now: read, certified, and not read again
    data.same("", LATER, 5);
    data.same("", LATER, 0);
    data.same("--paranoid", LATER, 5);
}

#[test]
fn files_that_are_all_right_are_certified_by_one_line() {
    let data = Data::new();
    let lines = || fs::read_to_string(data.journal()).unwrap().lines().count();
    let before = lines();
    data.same("", LATER, 5);
    assert_eq!(lines(), before + 1);
    data.same("", LATER, 0);
    assert_eq!(lines(), before + 1);
}

#[test]
fn a_file_that_differs_is_not_certified_with_the_others() {
    let data = Data::new();
    data.corrupt("d/b");
    data.differs("", LATER, "hash_diff\td/b");
    data.differs("", LATER, "hash_diff\td/b");
}

#[test]
fn a_file_whose_fingerprint_is_the_same_is_not_read_but_by_paranoid() {
    let data = Data::new();
    data.same("", LATER, 5);
    data.corrupt("d/b");
    data.same("", LATER, 0);
    data.differs("--paranoid", LATER, "hash_diff\td/b");
}

#[test]
fn a_certificate_of_the_future_is_not_trusted_and_not_wrong() {
    let data = Data::new();
    data.same("", 2 * LATER, 5);
    data.same("", LATER, 5);
    data.corrupt("d/b");
    data.differs("", 0, "hash_diff\td/b");
}

#[test]
fn each_way_to_differ_has_its_word() {
    let data = Data::new();
    fs::write(data.path("a"), "ALPHA\n").unwrap();
    fs::write(data.path("d/b"), "longer than it was\n").unwrap();
    fs::remove_file(data.path("d/c")).unwrap();
    let list = data.path("x.tar.gz.list");
    fs::remove_file(&list).unwrap();
    fs::create_dir(&list).unwrap();
    let archive = data.path("x.tar.gz");
    let content = fs::read(&archive).unwrap();
    fs::rename(&archive, data.node.outside("aside")).unwrap();
    fs::write(&archive, content).unwrap();
    data.differs(
        "",
        0,
        "hash_diff\ta\n\
         size_diff\td/b\n\
         missing_products\td/c\n\
         inode_diff\tx.tar.gz\n\
         type_diff\tx.tar.gz.list",
    );
    fs::remove_dir_all(data.path("d")).unwrap();
    let output = data.node.sc("--verify --json --name=r").output();
    assert_eq!(output.status.code(), Some(65));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["entries"], 6);
    assert_eq!(json["repaired"], false);
    let missing = |path| serde_json::json!({"path": path, "reason": "missing_products"});
    let differences = json["differences"].as_array().unwrap();
    for path in ["d", "d/b", "d/c"] {
        assert!(differences.contains(&missing(path)), "{json}");
    }
}

#[test]
fn a_touched_file_with_the_same_content_is_no_difference() {
    let data = Data::new();
    data.same("", LATER, 5);
    let file = fs::File::options()
        .write(true)
        .open(data.path("a"))
        .unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))
        .unwrap();
    let said = data.node.sc("-v --verify --name=r").output().stderr;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("another mtime"), "{said}");
    data.same("", LATER, 1);
    data.same("", LATER, 0);
}

#[test]
fn a_journal_without_hashes_is_read_and_certifies_nothing() {
    let data = Data::new();
    data.rewrite(|mut record| {
        if let Some(entry) = record
            .get_mut("entry")
            .and_then(|entry| entry.as_object_mut())
        {
            entry.remove("hash");
        }
        Some(record)
    });
    let file = fs::File::options()
        .write(true)
        .open(data.path("a"))
        .unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    data.differs(
        "",
        LATER,
        "mtime_diff\ta\n\
         no_cert\td/b\n\
         no_cert\td/c\n\
         no_cert\tx.tar.gz\n\
         no_cert\tx.tar.gz.list",
    );
}

#[test]
fn what_has_expired_is_said_to_have() {
    let data = Data::new();
    let words = format!("--run --expires=60 {} -- true", data.words);
    data.node.sc(&words).run();
    data.same("", 10, 5);
    data.differs("", LATER, "expired_cert\t.");
}

#[test]
fn a_checksum_that_the_archive_does_not_have_is_a_mismatch() {
    let data = Data::new();
    let sha = "sha256:0123456789abcdef*";
    for wrong in ["md5:00000000000000000000000000000000", sha] {
        let words = format!("file:/elsewhere/x.tar.gz {wrong}");
        data.differs(&words, 0, "hash_prefix_mismatch\tx.tar.gz");
    }
    data.same(&data.words["--name=r ".len()..], 0, 5);
    // recorded by the load: the module does not fit the hash
    data.rewrite(|mut record| {
        if record["stage"]["stage"] == 1 {
            record["stage"]["module"] = "md5:11111111*".into();
        }
        Some(record)
    });
    data.differs("", 0, "hash_prefix_mismatch\tx.tar.gz");
}

#[test]
fn what_no_checksum_digests_is_digested_all_the_same() {
    for (length, checksum) in [(10, ""), (3 << 20, ""), (3 << 20, "crc32")] {
        let node = Node::new();
        let content = crate::server::pattern(length);
        let file = node.file("f", &content);
        let checksum = match checksum {
            "" => String::new(),
            name => format!("{name}:{:08x}", crc32fast::hash(&content)),
        };
        node.sc(&format!(
            "--use --name=r file:{} {checksum}",
            file.display()
        ))
        .run();
        node.sc("--verify --paranoid --name=r")
            .stderr("sc: `{}/r` is as it was loaded: 1 entries, 1 files read")
            .run();
        let journal = fs::read_to_string(node.path(".sc.r/journal")).unwrap();
        let hash = blake3::hash(&content).to_hex();
        assert!(journal.contains(&format!("blake3:{hash}")), "{journal}");
    }
}

#[test]
fn a_file_made_read_only_or_linked_twice_keeps_its_hash() {
    let node = Node::new();
    let tree = node.outside("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("one"), "1").unwrap();
    fs::hard_link(tree.join("one"), tree.join("two")).unwrap();
    let archive = node.outside("l.tar");
    let mut tar = std::process::Command::new("tar");
    tar.arg("cf").arg(&archive).arg("-C").arg(&tree);
    assert!(tar.args(["one", "two"]).status().unwrap().success());
    let words = format!("--use --read-only --name=r file:{} tar", archive.display());
    node.sc(&words).run();
    node.sc("--verify --name=r")
        .stderr("sc: `{}/r` is as it was loaded: 4 entries, 4 files read")
        .run();
}

#[test]
fn after_a_boot_data_that_are_whole_are_taken_over_and_not_loaded_again() {
    let data = Data::new();
    let before = fs::metadata(data.path("a")).unwrap().ino();
    let requests = data._server.requests();
    let sc = || {
        data.node
            .sc(&format!("--use {}", data.words))
            .env("SC_BOOT_ID", "next")
    };
    sc().run();
    assert_eq!(fs::metadata(data.path("a")).unwrap().ino(), before);
    assert_eq!(data._server.requests(), requests);
    assert_eq!(data.node.repofile("r")["sc"]["boot_id"], "next");
    sc().run();
}

#[test]
fn after_a_boot_data_that_are_wrong_are_loaded_again() {
    let data = Data::new();
    data.same("", LATER, 5);
    data.corrupt("d/b");
    data.node
        .sc(&format!("-v --use {}", data.words))
        .env("SC_BOOT_ID", "next")
        .stderr(
            "sc: `{}/r` was loaded before the last boot: it is verified\n\
             sc: loading `{}/r`: it was loaded before the last boot, and `d/b`: hash_diff\n\
             {}\n{}\n{}",
        )
        .output();
    assert_eq!(fs::read_to_string(data.path("d/b")).unwrap(), "beta\n");
    assert_eq!(data.node.repofile("r")["sc"]["boot_id"], "next");
}

/// Interferes with the first, the second, … change of the disk of a use after a boot.
fn each_use_after_a_boot(variable: &str, value: impl Fn(usize) -> String) {
    for n in 1..2000 {
        let node = Node::new();
        let scenario = Scenario::new(&node);
        damaged(&node, &scenario);
        fs::write(node.path("ref/bin/one"), "1").unwrap();
        let log = node.outside("points");
        let after = |words: &str| node.sc(words).env("SC_BOOT_ID", "next");
        let output = after(&format!("-q --use {}", scenario.words))
            .env(variable, value(n))
            .env("SC_POINTS_LOG", &log)
            .output();
        let when = format!("after {variable}={}", value(n));
        scenario.assert_sane(&node, &when);
        after(&format!("--use {}", scenario.words)).run();
        scenario.assert_whole(&node.path("ref"), &when);
        after("--unuse --name=ref").run();
        node.assert_empty();
        if fs::read_to_string(&log).unwrap().lines().count() < n {
            assert!(output.status.success() && n > 8, "only {n} points");
            return;
        }
    }
    panic!("no end of points");
}

#[test]
fn a_use_after_a_boot_killed_at_any_point_is_done_by_the_next() {
    each_use_after_a_boot("SC_CRASH_AT", |n| n.to_string());
}

#[test]
fn a_use_after_a_boot_that_meets_a_full_disk_is_done_by_the_next() {
    each_use_after_a_boot("SC_FAULT_AT", |n| format!("{n}:28"));
}

#[test]
fn a_repair_brings_a_member_back_and_fetches_nothing() {
    let data = Data::new();
    fs::write(data.path("a"), "ALPHA\n").unwrap();
    fs::remove_file(data.path("d/c")).unwrap();
    let requests = data._server.requests();
    let kept = data.node.repofile("r")["sc"]["kept_until_unix_s"].clone();
    data.node
        .sc(&format!("--verify --repair {}", data.words))
        .stdout("hash_diff\ta\nmissing_products\td/c\n")
        .stderr("sc: `{}/r` is as it was loaded again: 6 entries, 4 files read")
        .run();
    assert_eq!(data._server.requests(), requests);
    assert_eq!(fs::read_to_string(data.path("a")).unwrap(), "alpha\n");
    let repofile = data.node.repofile("r");
    assert_eq!(repofile["state"], "OK");
    assert_eq!(repofile["readers"], serde_json::json!([]));
    assert_eq!(repofile["sc"]["kept_until_unix_s"], kept);
    data.same("--paranoid", 0, 5);
    data.node
        .sc(&format!("--verify --repair {}", data.words))
        .stderr("sc: `{}/r` is as it was loaded: 6 entries, 5 files read")
        .run();
}

#[test]
fn a_repair_fetches_an_archive_that_is_wrong() {
    let data = Data::new();
    fs::write(data.path("x.tar.gz"), "no archive").unwrap();
    let requests = data._server.requests();
    data.node
        .sc(&format!("--verify --repair {}", data.words))
        .stdout("size_diff\tx.tar.gz\n")
        .stderr("sc: `{}/r` is as it was loaded again: 6 entries, 4 files read")
        .run();
    assert_eq!(data._server.requests(), requests + 1);
    data.same("--paranoid", 0, 5);
}

#[test]
fn a_repair_is_refused_while_held_by_other_modules_and_without_modules() {
    let data = Data::new();
    fs::write(data.path("a"), "ALPHA\n").unwrap();
    let mut job = data.node.job();
    assert_eq!(job.sc(&format!("--use {}", data.words)).0, 0);
    let before = data.node.tree();
    data.node
        .sc(&format!("--verify --repair {}", data.words))
        .status(75)
        .stderr(format!(
            "sc: `{{}}/r` is not repaired: it is in use by pid {}\n\
             hint: wait until the holders have left",
            job.pid()
        ))
        .run();
    job.kill();
    data.node
        .sc("--verify --repair --name=r dummy")
        .status(78)
        .stderr(
            "sc: `{}/r` holds `{}`, not `dummy`\n\
             hint: say the modules that it was loaded with",
        )
        .run();
    data.node
        .sc("--verify --repair --name=r")
        .status(2)
        .stderr(
            "sc: `--repair` needs the modules, to load by\n\
             hint: say them as `--use` was told them",
        )
        .run();
    assert_eq!(data.node.tree(), before);
}

fn damaged(node: &Node, scenario: &Scenario) {
    let mut job = node.job();
    assert_eq!(job.sc(&format!("--use {}", scenario.words)).0, 0);
    job.kill();
    fs::write(node.path("ref/bin/one"), "!").unwrap();
}

/// Kills a repair at its first change of the disk, its second, …; `after` must then make it right.
fn each_kill(after: impl Fn(&Node, &Scenario, &str)) {
    for n in 1..2000 {
        let node = Node::new();
        let scenario = Scenario::new(&node);
        damaged(&node, &scenario);
        let log = node.outside("points");
        node.sc(&format!("--verify --repair {}", scenario.words))
            .env("SC_CRASH_AT", n.to_string())
            .env("SC_POINTS_LOG", &log)
            .output();
        let when = format!("after SC_CRASH_AT={n}");
        after(&node, &scenario, &when);
        use_and_unuse(&node, &scenario, &when);
        if fs::read_to_string(&log).unwrap().lines().count() < n {
            assert!(n > 40, "only {n} points");
            return;
        }
    }
    panic!("no end of points");
}

/// Does anybody believe what is not whole?
#[track_caller]
fn assert_not_believed(node: &Node, scenario: &Scenario, when: &str) {
    let text = fs::read_to_string(node.path("ref/repofile")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let wrong = fs::read(node.path("ref/bin/one")).is_ok_and(|content| content == b"!");
    if json["state"] == "OK" && !wrong {
        scenario.assert_whole(&node.path("ref"), when);
    }
}

#[test]
fn a_repair_killed_at_any_point_is_repaired() {
    each_kill(|node, scenario, when| {
        assert_not_believed(node, scenario, when);
        node.sc(&format!("-q --verify --repair {}", scenario.words))
            .output();
        node.sc("-q --verify --paranoid --name=ref").run();
        scenario.assert_whole(&node.path("ref"), when);
    });
}

#[test]
fn a_repair_killed_at_any_point_leaves_what_the_next_use_loads() {
    each_kill(|node, scenario, when| {
        assert_not_believed(node, scenario, when);
        let wrong = fs::read(node.path("ref/bin/one")).is_ok_and(|content| content == b"!");
        let is_ok = node.repofile("ref")["state"] == "OK";
        if wrong && is_ok {
            // nothing was begun: a use does not look into files
            fs::write(node.path("ref/bin/one"), "1").unwrap();
        }
    });
}

#[test]
fn a_verification_changes_nothing_but_the_journal() {
    let data = Data::new();
    let journal =
        |tree: &mut std::collections::BTreeMap<String, String>| tree.remove(".sc.r/journal");
    let mut before = data.node.tree();
    journal(&mut before);
    data.same("--paranoid", LATER, 5);
    fs::write(data.path("foreign"), "a job's own").unwrap();
    data.same("", LATER, 0);
    fs::remove_file(data.path("foreign")).unwrap();
    let mut after = data.node.tree();
    journal(&mut after);
    assert_eq!(before, after);
    assert!(Path::new(&data.journal()).exists());
}
