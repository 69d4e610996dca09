//! Bad state on disk: whatever stands where the repofile, the journal, the lock belong, nobody's
//! data is lost, nothing panics, and after what the message says, or at once, a use works.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::node::{Node, inode, md5, tar_gz, tree};

/// Puts something at a path; the second one is a file that it may lead to.
type Make<'a> = &'a dyn Fn(&Path, &Path);

/// `--name=r` and the stack of an archive with a few members.
fn words(node: &Node) -> String {
    let archive = tar_gz(
        node,
        "d.tar.gz",
        &[("a", "1"), ("bin/b", "2"), ("bin/c", "3")],
    );
    format!(
        "--name=r file:{} md5:{} tar",
        archive.display(),
        md5(&archive)
    )
}

/// The data without the repofile and its locks: (path, content).
fn data(node: &Node) -> Vec<(String, String)> {
    tree(&node.path("r"))
        .into_iter()
        .filter(|(path, _)| !path.starts_with("repofile"))
        .collect()
}

/// The data is all there.
#[track_caller]
fn assert_whole(node: &Node, when: &str) {
    let paths: Vec<String> = data(node).into_iter().map(|(path, _)| path).collect();
    assert_eq!(
        paths,
        ["a", "bin", "bin/b", "bin/c", "d.tar.gz", "d.tar.gz.list"],
        "{when}"
    );
}

/// A fresh use and unuse work, and leave nothing.
#[track_caller]
fn assert_works(node: &Node, words: &str, when: &str) {
    node.sc(&format!("--use {words}")).run();
    assert_whole(node, when);
    node.sc("--unuse --name=r").run();
    assert_eq!(node.tree().len(), 0, "left {when}: {:?}", node.tree());
}

const REFUSED: &str = "hint: move it away, or choose another `--name` or `--file`";

#[test]
fn a_repofile_cut_anywhere_is_loaded_anew() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    let whole = fs::read(node.path("r/repofile")).unwrap();
    // every byte of the keys the reference knows, and then some of our own
    let step = |cut: usize| if cut < 60 { 1 } else { 61 };
    let mut cut = 0;
    while cut < whole.len() - 2 {
        fs::write(node.path("r/repofile"), &whole[..cut]).unwrap();
        node.sc(&format!("--use {words}")).run();
        assert_whole(&node, &format!("cut at {cut}"));
        cut += step(cut);
    }
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_repofile_that_is_none_is_refused_by_name_and_untouched() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    let whole = fs::read(node.path("r/repofile")).unwrap();
    for (text, problem) in [
        ("hello", "is no repofile: it is not JSON"),
        ("{} {}", "is no repofile: it is not JSON"),
        ("\0\0\0", "is no repofile: it is not JSON"),
        ("3", "is JSON, but no repofile"),
        ("[1]", "is JSON, but no repofile"),
        ("null", "is JSON, but no repofile"),
        (
            "{\"state\": 7}",
            "is no repofile: its `state` makes no sense",
        ),
        (
            "{\"state\": \"FINE\"}",
            "is no repofile: its `state` makes no sense",
        ),
        (
            "{\"readers\": {}}",
            "is no repofile: its `readers` makes no sense",
        ),
        (
            "{\"writer\": \"me\"}",
            "is no repofile: its `writer` makes no sense",
        ),
    ] {
        fs::write(node.path("r/repofile"), text).unwrap();
        let before = node.tree();
        for action in ["--use --id=2", "--unuse", "--status", "--run --id=2"] {
            let command = if action.starts_with("--run") {
                "-- true"
            } else {
                ""
            };
            let status = if action.starts_with("--run") { 125 } else { 77 };
            node.sc(&format!("{action} {words} {command}"))
                .status(status)
                .stderr(format!("sc: `{{}}/r/repofile` {problem}\n{REFUSED}"))
                .run();
        }
        let mut after = node.tree();
        after.remove(".sc.r/holders");
        assert_eq!(after, before, "{text}");
    }
    // what the message says
    fs::rename(node.path("r/repofile"), node.outside("aside")).unwrap();
    fs::write(node.path("r/repofile"), &whole).unwrap();
    node.sc(&format!("--use {words}")).run();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn an_empty_repofile_or_list_is_the_state_of_nothing() {
    for text in ["", "{}", "[]", "{\"readers\": null, \"writer\": false}"] {
        let node = Node::new();
        fs::create_dir(node.path("r")).unwrap();
        fs::write(node.path("r/repofile"), text).unwrap();
        fs::write(node.path("r/mine"), "m").unwrap();
        let words = words(&node);
        node.sc(&format!("--use {words}")).run();
        node.sc("--unuse --name=r").run();
        node.assert_paths(&["r", "r/mine"]);
    }
}

#[test]
fn a_huge_repofile_is_refused_without_reading_it() {
    let node = Node::new();
    fs::create_dir(node.path("r")).unwrap();
    let file = fs::File::create(node.path("r/repofile")).unwrap();
    file.set_len(100 << 20).unwrap();
    for action in ["--use", "--status"] {
        let mut sc = node.sc("");
        // with a tenth of that memory to have
        sc.command = std::process::Command::new("sh");
        sc.command
            .args(["-c", "ulimit -d 30000; exec \"$0\" \"$1\" --name=r"])
            .arg(crate::node::SC)
            .arg(action)
            .env("SC_DIRECTORIES", node.base());
        sc.status(77)
            .stderr(format!(
                "sc: `{{}}/r/repofile` is too large for a repofile\n{REFUSED}"
            ))
            .run();
    }
    fs::remove_file(node.path("r/repofile")).unwrap();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    node.sc("--unuse --name=r").run();
    node.assert_paths(&["r"]);
}

#[test]
fn a_repofile_of_a_newer_sc_is_refused_with_the_remedy_and_not_rewritten() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    let ours = fs::read_to_string(node.path("r/repofile")).unwrap();
    let newer = ours.replace("\"format\":1", "\"format\":7");
    fs::write(node.path("r/repofile"), &newer).unwrap();
    for action in ["--use", "--unuse", "--status"] {
        node.sc(&format!("{action} {words}"))
            .status(77)
            .stderr(
                "sc: `{}/r/repofile` was written by a newer sc (format 7, this one knows 1)\n\
                 hint: use the newer sc on this node, here too",
            )
            .run();
    }
    // nor is it deleted, by whatever action, under holders that this one may not understand
    for action in ["--clear", "--clear --dry-run", "--clear --force"] {
        node.sc(&format!("{action} --name=r"))
            .status(77)
            .stderr("sc: {} was written by a newer sc {}\nhint: {}")
            .run();
    }
    for action in [
        "--gc",
        "--gc --older-than=0 --max-size=0 --free=9TB",
        "--list",
    ] {
        let output = node.sc(action).output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && output.stdout.is_empty(),
            "{output:?}"
        );
        assert!(
            said.contains("was written by a newer sc"),
            "{action}: {said}"
        );
    }
    assert_eq!(fs::read_to_string(node.path("r/repofile")).unwrap(), newer);
    assert_whole(&node, "refused");
    fs::write(node.path("r/repofile"), ours).unwrap();
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn what_is_no_file_in_the_place_of_the_repofile_is_refused_and_not_followed() {
    let node = Node::new();
    let victim = node.file(
        "victim",
        "{\"state\":\"OK\",\"readers\":[],\"writer\":null}",
    );
    let words = words(&node);
    let path = node.path("r/repofile");
    let make: [&dyn Fn(&Path); 3] = [
        &|path| fs::create_dir(path).unwrap(),
        &|path| mkfifo(path, Mode::S_IRWXU).unwrap(),
        &|path| symlink(&victim, path).unwrap(),
    ];
    for make in make {
        fs::create_dir(node.path("r")).unwrap();
        make(&path);
        let what = inode(&path);
        node.sc(&format!("--use {words}"))
            .status(77)
            .stderr(format!(
                "sc: `{{}}/r/repofile` stands where the repofile belongs, and is no file\n{REFUSED}"
            ))
            .run();
        assert_eq!(inode(&path), what);
        fs::remove_file(&path)
            .or_else(|_| fs::remove_dir(&path))
            .unwrap();
        fs::remove_dir(node.path("r")).unwrap();
        assert_works(&node, &words, "after the remedy");
    }
    assert!(fs::read_to_string(&victim).unwrap().contains("OK"));
}

#[test]
fn keys_that_nobody_knows_survive() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 {words}")).run();
    let mut json = node.repofile("r");
    json["site"] = serde_json::json!({"ticket": [1, null, "x"]});
    json["sc"]["later"] = serde_json::json!(true);
    fs::write(node.path("r/repofile"), json.to_string()).unwrap();
    node.sc(&format!("--use --id=2 {words}")).run();
    node.sc("--unuse --name=r --id=1").run();
    let after = node.repofile("r");
    assert_eq!(after["site"], json["site"]);
    assert_eq!(after["sc"]["later"], true);
    assert_eq!(after["readers"].as_array().unwrap().len(), 1);
    node.sc("--unuse --name=r --id=2").run();
    node.assert_empty();
}

#[test]
fn an_sc_key_that_makes_no_sense_is_no_statement_of_ours() {
    for sc in [
        "null",
        "3",
        "[]",
        "{\"format\":1,\"holders\":7}",
        "{\"format\":\"x\"}",
    ] {
        let node = Node::new();
        let words = words(&node);
        node.sc(&format!("--use {words}")).run();
        let pid = std::process::id();
        fs::write(
            node.path("r/repofile"),
            format!("{{\"state\":\"OK\",\"readers\":[{pid}],\"writer\":null,\"sc\":{sc}}}"),
        )
        .unwrap();
        // the same process, by its bare number, and then by more
        node.sc(&format!("--use {words}")).run();
        assert_whole(&node, sc);
        node.sc(&format!("--unuse {words}")).run();
        let left = node.tree();
        if !left.is_empty() {
            node.sc(&format!("--unuse {words}")).run();
        }
        assert_eq!(node.tree().len(), 0, "{sc}: {:?}", node.tree());
    }
}

/// Uses, spoils the control directory, and sees to it that the data stays, that another use joins
/// and that the last unuse leaves nothing.
#[track_caller]
fn assert_survives(spoil: &dyn Fn(&Node), when: &str) {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 {words}")).run();
    let was = data(&node);
    spoil(&node);
    node.sc(&format!("--use --id=2 {words}")).run();
    assert_eq!(data(&node), was, "{when}");
    node.sc("--unuse --name=r --id=1").run();
    assert_eq!(data(&node), was, "{when}");
    node.sc("--unuse --name=r --id=2").run();
    assert_eq!(node.tree().len(), 0, "left {when}: {:?}", node.tree());
}

#[test]
fn a_lost_journal_costs_nobody_his_data_and_the_list_says_what_may_go() {
    assert_survives(
        &|node| fs::remove_file(node.path(".sc.r/journal")).unwrap(),
        "journal deleted",
    );
    assert_survives(
        &|node| fs::write(node.path(".sc.r/journal"), "").unwrap(),
        "journal emptied",
    );
    assert_survives(
        &|node| fs::write(node.path(".sc.r/journal"), "junk\nmore junk\n").unwrap(),
        "journal junk",
    );
    assert_survives(
        &|node| {
            let other = Node::new();
            other.sc("--use --name=r").run();
            fs::copy(other.path(".sc.r/journal"), node.path(".sc.r/journal")).unwrap();
            other.sc("--unuse --name=r").run();
        },
        "journal of another repository",
    );
    assert_survives(
        &|node| fs::remove_dir_all(node.path(".sc.r")).unwrap(),
        "control directory deleted",
    );
    assert_survives(
        &|node| fs::remove_file(node.path(".sc.r/lock")).unwrap(),
        "lock file deleted",
    );
}

#[test]
fn a_journal_cut_anywhere_loses_nobody_s_data_and_wedges_nobody() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use {words}")).run();
    let whole = fs::read(node.path(".sc.r/journal")).unwrap();
    node.sc("--unuse --name=r").run();
    let lines: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] == b'\n').collect();
    // within the first line, at each line's end, and just before it
    let mut cuts: Vec<usize> = (0..lines[0]).step_by(29).collect();
    cuts.extend(lines.iter().flat_map(|&end| [end, end + 1]));
    for cut in cuts {
        let node = Node::new();
        let words = self::words(&node);
        node.sc(&format!("--use --id=1 {words}")).run();
        let journal = fs::read(node.path(".sc.r/journal")).unwrap();
        fs::write(
            node.path(".sc.r/journal"),
            &journal[..cut.min(journal.len())],
        )
        .unwrap();
        let when = format!("cut at {cut} of {}", journal.len());
        node.sc(&format!("--use --id=2 {words}")).run();
        assert_whole(&node, &when);
        node.sc("--unuse --name=r --id=1").run();
        let output = node.sc("--unuse --name=r --id=2").output();
        assert!(output.status.success(), "{when}: {output:?}");
        // what the journal no longer names may stay, with a warning; nothing else may
        let said = String::from_utf8_lossy(&output.stderr);
        let left: Vec<String> = node.tree().into_keys().collect();
        assert_eq!(left.is_empty(), said.is_empty(), "{when}: {left:?} {said}");
        assert!(
            left.iter()
                .all(|path| path == "r" || path.starts_with("r/")),
            "{when}: {left:?}"
        );
        if !left.is_empty() {
            fs::remove_dir_all(node.path("r")).unwrap();
        }
        assert_works(&node, &words, &when);
    }
}

#[test]
fn a_lost_journal_of_what_nobody_holds_is_no_obstacle() {
    for other in [false, true] {
        let node = Node::new();
        let words = words(&node);
        let mut job = node.job();
        assert_eq!(job.sc(&format!("--use {words}")), (0, String::new()));
        job.kill();
        fs::remove_file(node.path(".sc.r/journal")).unwrap();
        if other {
            // another definition: what was there is taken away by what its list names
            let file = node.file("f", "f");
            node.sc(&format!("--use --name=r file:{}", file.display()))
                .run();
            let paths: Vec<String> = data(&node).into_iter().map(|(path, _)| path).collect();
            assert_eq!(paths, ["f"]);
            node.sc("--unuse --name=r").run();
            node.assert_empty();
        } else {
            assert_works(&node, &words, "journal lost, nobody holds");
        }
    }
}

#[test]
fn what_is_held_and_has_lost_its_journal_is_not_loaded_over() {
    let node = Node::new();
    let words = words(&node);
    node.sc(&format!("--use --id=1 {words}")).run();
    let was = data(&node);
    fs::remove_file(node.path(".sc.r/journal")).unwrap();
    let file = node.file("f", "f");
    node.sc(&format!("--use --id=2 --name=r file:{}", file.display()))
        .status(78)
        .stderr("sc: `{}/r` holds `file:{}`, not `file:{}/f`, and is in use by {}\nhint: {}")
        .run();
    assert_eq!(data(&node), was);
    node.sc("--unuse --name=r --id=1").run();
    node.assert_empty();
}

#[test]
fn a_lost_journal_without_a_list_leaves_the_file_with_a_warning() {
    let node = Node::new();
    let file = node.file("f", "hello");
    node.sc(&format!("--use --name=r file:{}", file.display()))
        .run();
    fs::remove_file(node.path(".sc.r/journal")).unwrap();
    node.sc("--unuse --name=r")
        .stderr("sc: warning: `{}/r` stays: no journal says any more that sc brought `f`")
        .run();
    node.assert_paths(&["r", "r/f"]);
    // who says what was loaded says what may go, as with the reference
    let words = format!("--name=r file:{}", file.display());
    fs::remove_file(node.path("r/f")).unwrap();
    fs::remove_dir(node.path("r")).unwrap();
    node.sc(&format!("--use {words}")).run();
    fs::remove_file(node.path(".sc.r/journal")).unwrap();
    node.sc(&format!("--unuse {words}")).run();
    node.assert_empty();
}

#[test]
fn a_list_never_leads_out_of_the_repository() {
    let node = Node::new();
    let words = words(&node);
    let victim = node.file("victim", "v");
    fs::create_dir(node.outside("dir")).unwrap();
    fs::write(node.outside("dir/v"), "v").unwrap();
    fs::create_dir(node.path("neighbour")).unwrap();
    fs::write(node.path("neighbour/n"), "n").unwrap();
    node.sc(&format!("--use {words}")).run();
    fs::remove_file(node.path(".sc.r/journal")).unwrap();
    symlink(node.outside("dir"), node.path("r/link")).unwrap();
    fs::write(node.path("r/mine"), "m").unwrap();
    let list = node.path("r/d.tar.gz.list");
    let mut text = fs::read_to_string(&list).unwrap();
    text += &format!(
        "{}\n../neighbour/n\n../../victim\nbin/../../neighbour/n\nlink/v\n.sc.r/lock\nrepofile\n\n.\n\
         ..\n/\nnothing/here\n{}\n",
        victim.display(),
        "x".repeat(10_000)
    );
    fs::write(&list, text).unwrap();
    let output = node.sc("--unuse --name=r").output();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/r` stays: `"), "{said}");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "v");
    assert_eq!(fs::read_to_string(node.outside("dir/v")).unwrap(), "v");
    node.assert_paths(&["neighbour", "neighbour/n", "r", "r/link", "r/mine"]);
}

#[test]
fn a_list_that_is_no_file_names_nothing() {
    let make: [Make; 3] = [
        &|list, _| fs::create_dir(list).unwrap(),
        &|list, _| mkfifo(list, Mode::S_IRWXU).unwrap(),
        &|list, victim| symlink(victim, list).unwrap(),
    ];
    for make in make {
        let node = Node::new();
        let words = words(&node);
        let victim = node.file("list", "a\n");
        node.sc(&format!("--use {words}")).run();
        fs::remove_file(node.path(".sc.r/journal")).unwrap();
        let list = node.path("r/d.tar.gz.list");
        fs::remove_file(&list).unwrap();
        make(&list, &victim);
        let output = node.sc("--unuse --name=r").output();
        assert!(output.status.success(), "{output:?}");
        let left = data(&node);
        assert!(left.iter().any(|(path, _)| path == "a"), "{left:?}");
        assert!(victim.exists());
        assert!(!node.path(".sc.r").exists());
    }
}

#[test]
fn what_the_reference_loaded_is_joined_held_left_and_torn_down() {
    let node = Node::new();
    let archive = tar_gz(&node, "d.tar.gz", &[("a", "1"), ("bin/b", "2")]);
    let words = format!("--name=r file:{} tar", archive.display());
    fs::create_dir(node.path("r")).unwrap();
    fs::copy(&archive, node.path("r/d.tar.gz")).unwrap();
    fs::write(node.path("r/a"), "1").unwrap();
    fs::create_dir(node.path("r/bin")).unwrap();
    fs::write(node.path("r/bin/b"), "2").unwrap();
    // as the reference lists them: no parents of their own
    fs::write(node.path("r/d.tar.gz.list"), "./a\nbin/b\n").unwrap();
    let mut reader = node.job();
    let text = format!(
        "{{\"state\": \"OK\", \"readers\": [{}], \"writer\": null}}",
        reader.pid()
    );
    fs::write(node.path("r/repofile"), text).unwrap();
    let was = data(&node);
    node.sc(&format!("--use {words}")).run();
    assert_eq!(data(&node), was, "joined, not loaded");
    assert_eq!(node.repofile("r")["readers"].as_array().unwrap().len(), 2);
    // its own reader may leave by us, too
    assert_eq!(reader.sc(&format!("--unuse {words}")), (0, String::new()));
    assert_eq!(data(&node), was);
    node.sc(&format!("--unuse {words}")).run();
    node.assert_empty();
}

#[test]
fn what_is_no_file_in_the_place_of_lock_or_journal_is_refused_and_not_followed() {
    for (name, what) in [("lock", "lock file"), ("journal", "journal")] {
        let make: [Make; 3] = [
            &|path, _| fs::create_dir(path).unwrap(),
            &|path, _| mkfifo(path, Mode::S_IRWXU).unwrap(),
            &|path, victim| symlink(victim, path).unwrap(),
        ];
        for make in make {
            let node = Node::new();
            let words = words(&node);
            let victim = node.file("victim", "v");
            node.sc(&format!("--use --id=1 {words}")).run();
            let was = data(&node);
            let path = node.path(".sc.r").join(name);
            fs::remove_file(&path).unwrap();
            make(&path, &victim);
            for action in ["--use --id=2", "--unuse --id=1"] {
                node.sc(&format!("{action} {words}"))
                    .status(77)
                    .stderr(format!(
                        "sc: `{{}}/.sc.r/{name}` stands where sc's {what} belongs, and is no \
                         file\nhint: move it away"
                    ))
                    .run();
            }
            assert_eq!(data(&node), was);
            assert_eq!(fs::read_to_string(&victim).unwrap(), "v");
            fs::rename(&path, node.outside("aside")).unwrap();
            node.sc(&format!("--use --id=2 {words}")).run();
            assert_eq!(data(&node), was);
            for id in 1..=2 {
                node.sc(&format!("--unuse --name=r --id={id}")).run();
            }
            node.assert_empty();
        }
    }
}

#[test]
fn what_is_no_directory_in_the_place_of_the_control_directory_is_refused() {
    let node = Node::new();
    let words = words(&node);
    fs::create_dir(node.outside("victim")).unwrap();
    for make in [
        &(|path: &Path, _: &Path| fs::write(path, "mine").unwrap()) as Make,
        &|path, victim| symlink(victim, path).unwrap(),
    ] {
        make(&node.path(".sc.r"), &node.outside("victim"));
        node.sc(&format!("--use {words}"))
            .status(77)
            .stderr(
                "sc: `{}/.sc.r` stands where sc's control directory belongs, and is none\n\
                 hint: move it away, or choose another `--name`",
            )
            .run();
        assert!(tree(&node.outside("victim")).is_empty());
        fs::remove_file(node.path(".sc.r")).unwrap();
        assert_works(&node, &words, "after the remedy");
    }
}

#[test]
fn the_lost_lock_file_of_a_run_is_doubt_and_its_hold_ends_with_the_run() {
    use crate::node::Fifo;
    let node = Node::new();
    let words = words(&node);
    let fifo = Fifo::new(&node);
    let mut run = node
        .sc(&format!("--run {words} -- sh -c"))
        .arg(format!("read x < '{}'", fifo.path().display()))
        .spawn();
    let pause = fifo.reached();
    for entry in fs::read_dir(node.path(".sc.r/holders")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    node.sc(&format!("--use {words}")).run();
    node.sc("--unuse --name=r").run();
    assert_whole(&node, "the run still holds");
    drop(pause);
    let (status, _) = run.end();
    assert!(status == 0 || status == 1, "{status} {}", run.said);
    assert_eq!(run.said, "");
    node.assert_empty();
}

#[test]
fn an_unuse_without_a_journal_may_be_killed_at_any_point() {
    for n in 1..500 {
        let node = Node::new();
        let words = words(&node);
        node.sc(&format!("--use {words}")).run();
        fs::remove_file(node.path(".sc.r/journal")).unwrap();
        let output = node
            .sc("--unuse --name=r")
            .env("SC_CRASH_AT", n.to_string())
            .output();
        if output.status.success() {
            node.assert_empty();
            assert!(n > 40, "only {n} points");
            return;
        }
        let when = format!("after a kill at {n}");
        if node.path("r/repofile").exists() && node.repofile("r")["state"] == "OK" {
            assert_whole(&node, &when);
        }
        assert_works(&node, &words, &when);
    }
    panic!("no end of points");
}
