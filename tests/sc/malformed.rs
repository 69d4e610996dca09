//! Command lines and environments that make no sense, made by combining pieces: told with status 2
//! before anything is touched, and never a panic. And paths that are no UTF-8, which make sense.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::node::{Node, Sc, tar_gz};
use crate::server::Server;

/// What no number, size, duration, name, level or module is called.
const JUNK: &[&[u8]] = &[
    b"-",
    b"--",
    b"-1",
    b"+",
    b"1e400",
    b"NaN",
    b"inf",
    b"0x10",
    b"99999999999999999999999999",
    b"99999999999999999999TB",
    b"1..2",
    b"1d2",
    b"\xff",
    b"\xc3(",
    b"a\nsc: done",
    b"\x1b[2J",
    b"%n%s",
    b"'",
    b"../..",
    b"/",
    b".",
    b".sc",
    b"a/../b",
    b"a//.sc.b",
];

const VALUED: &[&str] = &[
    "--size",
    "--pid",
    "--timeout",
    "--retries",
    "--stall-timeout",
    "--progress",
    "--generate",
];

const VARIABLES: &[&str] = &[
    "SC_SIZE",
    "SC_PID",
    "SC_TIMEOUT",
    "SC_RETRIES",
    "SC_STALL_TIMEOUT",
    "SC_PROGRESS",
    "SC_LOG",
    "SC_ALLOW_NETWORK_FS",
    "SC_OPTIONS",
];

/// Runs it. True: it was refused as a usage error, all by the book.
#[track_caller]
fn is_refused(node: &Node, sc: Sc) -> bool {
    let what = format!("{:?}", sc.command);
    let output = sc.output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), None, "{what}: {said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
    let status = output.status.code().unwrap();
    let known = [0, 2, 65, 66, 69, 73, 74, 75, 77, 78, 125, 126, 127, 255];
    assert!(known.contains(&status), "{what}: {status} {said}");
    let lines = |line: &str| line.starts_with("sc: ") || line.starts_with("hint: ");
    assert!(said.lines().all(lines), "{what}: {said}");
    assert!(!said.contains('\x1b'), "{what}: {said}");
    if status == 2 {
        assert!(output.stdout.is_empty(), "{what}");
        assert_eq!(node.tree().len(), 0, "{what}: {:?}", node.tree());
        return true;
    }
    for entry in fs::read_dir(node.base()).unwrap() {
        let path = entry.unwrap().path();
        fs::remove_dir_all(&path)
            .or_else(|_| fs::remove_file(&path))
            .unwrap();
    }
    false
}

#[test]
fn no_value_that_is_none_is_taken_for_one() {
    let node = Node::new();
    let mut refused = 0;
    for junk in JUNK {
        let junk = OsStr::from_bytes(junk);
        for option in VALUED {
            let mut word = OsString::from(format!("{option}="));
            word.push(junk);
            for sc in [
                node.sc("--use --name=r").arg(option).arg(junk),
                node.sc("--use --name=r").arg(&word),
            ] {
                assert!(is_refused(&node, sc), "{option} {junk:?}");
                refused += 1;
            }
        }
        for variable in VARIABLES {
            let sc = node.sc("--use --name=r").env(variable, junk);
            assert!(is_refused(&node, sc), "{variable} {junk:?}");
            refused += 1;
        }
        let sc = node.sc("--use --name=r").arg(junk);
        assert!(is_refused(&node, sc) || junk == "--", "module {junk:?}");
    }
    assert!(refused > 500, "{refused}");
}

#[test]
fn no_line_of_words_makes_it_panic_or_touch_what_it_refuses() {
    let pieces: Vec<OsString> = [
        "--use",
        "--unuse",
        "--location",
        "--run",
        "--status",
        "--json",
        "--close",
        "-q",
        "-vv",
        "--name=r",
        "-n",
        "-nr",
        "-n=r",
        "-f",
        "--file=/",
        "--file=x.lock",
        "-d",
        "-d:",
        "-s",
        "-s0",
        "--size=1GB",
        "--pid=1",
        "--id",
        "--id=",
        "--no-wait",
        "--timeout=0",
        "--",
        "-",
        "--u",
        "--n",
        "--re",
        "dummy",
        "dummy:x",
        "tar",
        "tar:strip=",
        "tar:strip=99",
        "md5:",
        "md5:x",
        "http:",
        "http://",
        "http://[",
        "https:///x",
        "file:",
        "file:/",
        "file:/nonexistent",
        "dirac:",
        "each:",
        "root:",
        "true",
        "",
        "=",
        "--=",
        "--use=",
        "-\u{e9}",
    ]
    .iter()
    .map(OsString::from)
    .chain(JUNK.iter().map(|junk| OsString::from_vec(junk.to_vec())))
    .collect();
    let words = prop::collection::vec(prop::sample::select(pieces), 1..7);
    let config = Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let node = Node::new();
    let refused = std::cell::Cell::new(0);
    runner
        .run(&words, |words| {
            // a relative or foreign -d would leave the node
            if words.iter().any(|word| word.as_bytes().starts_with(b"-d")) {
                return Ok(());
            }
            let sc = node.sc_words(words).env("SC_RETRIES", "0");
            refused.set(refused.get() + u32::from(is_refused(&node, sc)));
            Ok(())
        })
        .unwrap();
    assert!(refused.get() > 100, "only {} were refused", refused.get());
}

#[test]
fn paths_need_not_be_utf8() {
    let node = Node::new();
    let odd = OsStr::from_bytes(b"odd \xff\xfe name");
    let base = node.outside(odd);
    fs::create_dir(&base).unwrap();
    let archive = tar_gz(&node, "d.tar.gz", &[("a", "1")]);
    // a member that is no UTF-8, in an archive that is none
    let tree = node.outside("odd.tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join(odd), "2").unwrap();
    let odd_archive = node.outside(OsStr::from_bytes(b"\xe4.tar"));
    let tar = std::process::Command::new("tar")
        .arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(&odd_archive)
        .arg(".")
        .status();
    assert!(tar.unwrap().success());
    let joined = |prefix: &str, rest: &OsStr| {
        let mut word = OsString::from(prefix);
        word.push(rest);
        word
    };
    let with = |words: &str| {
        node.sc(words)
            .arg("-d")
            .arg(&base)
            .arg(joined("--name=", OsStr::from_bytes(b"n\xe9/\xff")))
            .arg(joined("--file=", OsStr::from_bytes(b"state \xff")))
    };
    let server = Server::new().body(fs::read(&archive).unwrap()).start();
    let raw = joined(
        &format!("http:{}", server.url("/raw-")),
        OsStr::from_bytes(b"\xff.gz"),
    );
    let encoded = format!("http:{}", server.url("/encoded-%FF.gz"));
    with("--use")
        .arg(joined("file:", odd_archive.as_os_str()))
        .arg("tar")
        .arg(&raw)
        .arg(&encoded)
        .run();
    let root = base.join(OsStr::from_bytes(b"n\xe9/\xff"));
    let mut names: Vec<OsString> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    let expected: [&[u8]; 6] = [
        b"encoded-%FF.gz",
        b"odd \xff\xfe name",
        b"raw-\xff.gz",
        b"state \xff",
        b"\xe4.tar",
        b"\xe4.tar.list",
    ];
    assert_eq!(names, expected.map(OsStr::from_bytes));
    let mut printed = root.into_os_string().into_vec();
    printed.push(b'\n');
    assert_eq!(with("--location").output().stdout, printed);
    with("--use --id=2")
        .arg(joined("file:", odd_archive.as_os_str()))
        .arg("tar")
        .arg(&raw)
        .arg(&encoded)
        .run();
    with("--unuse --id=2").run();
    with("--unuse").run();
    assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
}
