//! Each module as the contract tells it, alone and in stacks.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::node::{Fifo, Node, Sc};
use crate::server::{Gate, Reply, Server};

/// Uses with these words, checks which names are at the top of `r`, unuses with the same words.
#[track_caller]
fn assert_brings(node: &Node, words: &str, names: &[&str]) {
    node.sc(&format!("--use --name=r {words}")).run();
    assert_eq!(tops(node), names, "{words}");
    // what is to be unused is remembered; saying it again is as good
    node.sc(&format!("--unuse --name=r {words}")).run();
    node.assert_empty();
}

/// The names at the top of `r`, without the repofile.
fn tops(node: &Node) -> Vec<String> {
    let names = node.tree().into_keys();
    names
        .filter_map(|path| path.strip_prefix("r/").map(str::to_owned))
        .filter(|name| !name.contains('/') && name != "repofile")
        .collect()
}

/// A program for `SC_DIRAC_GET`.
pub fn script(node: &Node, text: &str) -> PathBuf {
    let path = node.outside("get");
    // written by another process: no child that a parallel test forks has it open (ETXTBSY)
    let status = Command::new("sh")
        .args([
            "-c",
            "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\"; chmod 755 \"$0\"",
        ])
        .arg(&path)
        .arg(text)
        .status();
    assert!(status.unwrap().success());
    path
}

#[test]
fn http_names_the_file_by_what_follows_the_last_slash_as_typed() {
    let node = Node::new();
    let server = Server::new().body("hello").start();
    let address = server.address();
    for (words, name) in [
        (format!("http:http://{address}/a/f.tar"), "f.tar"),
        (format!("http://{address}/f.tar"), "f.tar"),
        (format!("http:http://{address}/f?x=1&y=2"), "f?x=1&y=2"),
        (format!("http:http://{address}/a%20b"), "a%20b"),
        (format!("http:http://{address}/f?p=a/b"), "b"),
        // nothing follows the last slash: the path's last segment
        (format!("http:http://{address}/f?p=a/"), "f"),
    ] {
        assert_brings(&node, &words, &[name]);
    }
    assert_eq!(server.log()[2].target(), "/f?x=1&y=2", "sent as typed");
    node.sc(&format!("--use --name=r http://{address}/"))
        .status(2)
        .stderr("sc: {}\nhint: {}")
        .run();
    node.assert_empty();
}

#[test]
fn http_takes_files_of_this_node_too() {
    let node = Node::new();
    let file = node.file("f", "hello");
    let path = file.display();
    for words in [
        format!("http:file://{path}"),
        format!("http:file://localhost{path}"),
        format!("http:{path}"),
        "http:f".into(),
    ] {
        assert_brings(&node, &words, &["f"]);
    }
    node.sc("--use --name=r http:ftp://host/f")
        .status(2)
        .stderr("sc: `http:` cannot fetch `ftp:…`\nhint: {}")
        .run();
}

#[test]
fn file_copies_what_the_path_leads_to() {
    let node = Node::new();
    let file = node.file("f", "hello");
    std::os::unix::fs::symlink(&file, node.outside("link")).unwrap();
    assert_brings(&node, &format!("file:{}", file.display()), &["f"]);
    assert_brings(&node, "file:f", &["f"]);
    node.sc("--use --name=r file:link").run();
    assert_eq!(node.tree()["r/link"], "hello", "the content, not the link");
    node.sc("--unuse --name=r").run();
}

#[test]
fn several_stacks_are_loaded_into_one_repository() {
    let node = Node::new();
    let server = Server::new().body("hello").start();
    let tar = crate::node::tar_gz(&node, "t.tar.gz", &[("m", "1")]);
    let words = format!(
        "http:{} md5:5d41402abc4b2a76b9719d911017c592 file:{} tar http:{}",
        server.url("/one"),
        tar.display(),
        server.url("/two"),
    );
    assert_brings(
        &node,
        &words,
        &["m", "one", "t.tar.gz", "t.tar.gz.list", "two"],
    );
    // a checksum is that of its own stack's file (the reference dropped all but the last stack)
    node.sc(&format!(
        "--use --name=r http:{} md5:{:032} http:{}",
        server.url("/one"),
        0,
        server.url("/two")
    ))
    .status(65)
    .stderr("sc: warning: wrong md5 of `one`: {}\nsc: wrong md5 of `one`: {}")
    .run();
    assert_eq!(tops(&node), [""; 0], "nothing of the other stack either");
}

#[test]
fn two_stacks_that_bring_the_same_name_are_told_so() {
    let node = Node::new();
    fs::create_dir(node.outside("a")).unwrap();
    fs::write(node.outside("a/f"), "one").unwrap();
    fs::write(node.outside("f"), "two").unwrap();
    let output = node.sc("--use --name=r file:f file:a/f").output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.starts_with("sc: ") && said.contains("`f`") || said.contains("/f`"),
        "{said}"
    );
    let good = "--use --name=r file:f";
    node.sc(good).run();
    assert_eq!(node.tree()["r/f"], "two");
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn dirac_is_fetched_by_the_client_in_an_empty_directory() {
    let node = Node::new();
    // the client takes a local file of the LFN's name for a list of LFNs
    node.file("f.dat", "a list");
    let get = script(
        &node,
        "[ -z \"$(ls -A)\" ] || exit 9; [ $# = 1 ] || exit 8; echo \"got $1\" > f.dat; echo noise",
    );
    let with = |words: &str| node.sc(words).env("SC_DIRAC_GET", &get);
    with("--use --name=r dirac:/vo/data/f.dat")
        .stderr("noise")
        .run();
    assert_eq!(node.tree()["r/f.dat"], "got /vo/data/f.dat\n");
    with("--unuse --name=r").run();
    node.assert_empty();
    assert_eq!(fs::read_to_string(node.outside("f.dat")).unwrap(), "a list");
}

#[test]
fn dirac_counts_only_with_exit_status_0_and_the_file() {
    let node = Node::new();
    node.file("f.dat", "a list");
    for (text, problem) in [
        ("echo half > f.dat; exit 2", "exit status 2"),
        ("echo x > other", "it said success, but there is no `f.dat`"),
        (
            "mkdir f.dat",
            "it made something that is no regular file: `f.dat`",
        ),
        ("kill -KILL $$", "ended by SIGKILL"),
    ] {
        let get = script(&node, text);
        node.sc("--use --name=r dirac:LFN:/vo/f.dat")
            .env("SC_DIRAC_GET", &get)
            .status(69)
            .stderr(format!("sc: `{}` failed: {problem}", get.display()))
            .run();
        assert_eq!(tops(&node), [""; 0], "{text}");
    }
}

#[test]
fn a_dirac_client_dies_with_its_sc() {
    let node = Node::new();
    let (born, dead) = (Fifo::named(&node, "born"), Fifo::named(&node, "dead"));
    // It has `dead` open: when it is gone, that ends. One that lives on says so after a while.
    let get = script(
        &node,
        &format!(
            "exec 3> '{}'; echo here > '{}'; for n in 1 2 3 4 5 6 7 8 9; do sleep 1; done; \
             echo alive >&3",
            dead.path().display(),
            born.path().display()
        ),
    );
    let mut sc = node
        .sc("--use --name=r dirac:/vo/f")
        .env("SC_DIRAC_GET", &get)
        .spawn();
    let mut end = fs::File::open(dead.path()).unwrap();
    assert_eq!(fs::read_to_string(born.path()).unwrap(), "here\n");
    sc.signal(Signal::SIGKILL);
    sc.end();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut end, &mut said).unwrap();
    assert_eq!(said, "", "the client outlived sc");
    let get = script(&node, "echo new > f");
    node.sc("--use --name=r dirac:/vo/f")
        .env("SC_DIRAC_GET", &get)
        .run();
    assert_eq!(node.tree()["r/f"], "new\n");
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

/// Digests of `hello`.
const DIGESTS: &[(&str, &str)] = &[
    ("md5", "5d41402abc4b2a76b9719d911017c592"),
    ("sha1", "aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d"),
    (
        "sha256",
        "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    ),
    (
        "sha512",
        "9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca7\
         2323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043",
    ),
    (
        "blake3",
        "ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f",
    ),
    ("adler32", "062c0215"),
    ("crc32", "3610a686"),
];

#[test]
fn each_checksum_knows_the_right_file_however_its_digits_are_written() {
    let node = Node::new();
    node.file("f", "hello");
    for (name, hex) in DIGESTS {
        let mut forms = vec![hex.to_string(), hex.to_uppercase()];
        if hex.len() > 8 {
            forms.push(format!("{}*", &hex[..8]));
            forms.push(format!("{}*", hex[..12].to_uppercase()));
        } else {
            forms.push(hex.trim_start_matches('0').to_owned());
        }
        for form in forms {
            assert_brings(&node, &format!("file:f {name}:{form}"), &["f"]);
        }
    }
}

#[test]
fn each_checksum_refuses_another_file() {
    let node = Node::new();
    node.file("f", "hallo");
    for (name, hex) in DIGESTS {
        let mut forms = vec![hex.to_string()];
        if hex.len() > 8 {
            forms.push(format!("{}*", &hex[..8]));
        }
        for form in forms {
            node.sc(&format!("--use --name=r file:f {name}:{form}"))
                .status(65)
                .stderr(format!(
                    "sc: warning: wrong {name} of `f`: expected {form}, got {{}}; fetching it once \
                     more\n\
                     sc: wrong {name} of `f`: expected {form}, got {{}}"
                ))
                .run();
            assert_eq!(tops(&node), [""; 0], "{name}:{form}");
        }
    }
}

#[test]
fn a_checksum_above_tar_checks_the_archive() {
    let node = Node::new();
    let archive = crate::node::tar_gz(&node, "t.tar.gz", &[("m", "1")]);
    let md5 = crate::node::md5(&archive);
    let all = ["m", "t.tar.gz", "t.tar.gz.list"];
    assert_brings(&node, &format!("file:t.tar.gz tar md5:{md5}"), &all);
    assert_brings(
        &node,
        &format!("file:t.tar.gz md5:{md5} tar md5:{md5}"),
        &all,
    );
    node.sc(&format!("--use --name=r file:t.tar.gz tar md5:{:032}", 0))
        .status(65)
        .stderr("sc: warning: wrong md5 of `t.tar.gz`: {}\nsc: wrong md5 of `t.tar.gz`: {}")
        .run();
    assert_eq!(tops(&node), [""; 0]);
}

/// `name` in the node's outside: a tar of `m` and `sub/n`, through this filter.
fn archive(node: &Node, name: &str, filter: &str) -> bool {
    let command = format!(
        "mkdir -p tree/sub && echo 1 > tree/m && echo 2 > tree/sub/n && \
         tar -C tree -cf plain.tar m sub && {filter} < plain.tar > {name}"
    );
    Command::new("sh")
        .args(["-c", &command])
        .current_dir(node.outside(""))
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

#[test]
fn tar_knows_the_compression_by_its_first_bytes_whatever_the_name() {
    for filter in ["cat", "gzip", "bzip2", "xz", "zstd -q -c"] {
        let node = Node::new();
        if !archive(&node, "what.zip", filter) {
            eprintln!("SKIPPED: there is no `{filter}` here");
            continue;
        }
        node.sc("--use --name=r file:what.zip tar").run();
        let tree = node.tree();
        assert_eq!(
            (&*tree["r/m"], &*tree["r/sub/n"], &*tree["r/what.zip.list"]),
            ("1\n", "2\n", "m\nsub\nsub/n\n"),
            "{filter}"
        );
        node.sc("--unuse --name=r").run();
        node.assert_empty();
    }
}

#[test]
fn tar_reads_all_members_of_a_gzip_file() {
    let node = Node::new();
    // as pigz and bgzip write it: one gzip member after the other
    assert!(archive(
        &node,
        "t.gz",
        "{ dd bs=700 count=1 2>/dev/null | gzip; gzip; } ",
    ));
    assert_brings(&node, "file:t.gz tar", &["m", "sub", "t.gz", "t.gz.list"]);
}

#[test]
fn tar_drop_keeps_no_archive_and_tar_strip_no_leading_directories() {
    let node = Node::new();
    assert!(archive(&node, "t.tar", "cat"));
    assert_brings(&node, "file:t.tar tar:drop", &["m", "sub", "t.tar.list"]);
    assert_brings(
        &node,
        "file:t.tar tar:strip=1",
        &["n", "t.tar", "t.tar.list"],
    );
    assert_brings(&node, "file:t.tar tar:drop,strip=1", &["n", "t.tar.list"]);
    for argument in ["strip=", "strip=x", "strip=-1"] {
        node.sc(&format!("--use --name=r file:t.tar tar:{argument}"))
            .status(2)
            .stderr("sc: `tar:{}`: `{}` is not a number of components\nhint: write `tar:strip=N`")
            .run();
    }
}

#[test]
fn an_argument_that_means_nothing_is_ignored_with_a_warning() {
    let node = Node::new();
    assert!(archive(&node, "t.tar", "cat"));
    let with = |action: &str| node.sc(&format!("{action} --name=r file:t.tar tar:fast dummy:x"));
    let warnings = "sc: warning: `tar` ignores its argument `fast`\n\
                    sc: warning: `dummy` ignores its argument `x`\n";
    with("--use")
        .stderr(format!("{warnings}sc: dummy: load"))
        .run();
    with("--unuse")
        .stderr(format!("{warnings}sc: dummy: delete"))
        .run();
    node.assert_empty();
}

#[test]
fn dummy_says_when_it_is_loaded_and_when_it_is_deleted() {
    let node = Node::new();
    node.sc("--use --name=r --id=1 dummy")
        .stderr("sc: dummy: load")
        .run();
    // who joins loads nothing, and who is not the last deletes nothing
    node.sc("--use --name=r --id=2 dummy").run();
    node.sc("--unuse --name=r --id=1").run();
    node.sc("--unuse --name=r --id=2")
        .stderr("sc: dummy: delete")
        .run();
    node.assert_empty();
    node.sc("-q --use --name=r dummy").run();
    node.sc("-q --unuse --name=r").run();
    node.sc("--run --name=r dummy dummy -- true")
        .stderr("sc: dummy: load\nsc: dummy: load\nsc: dummy: delete\nsc: dummy: delete")
        .run();
    node.assert_empty();
}

#[test]
fn an_empty_stack_is_a_repository_with_nothing_in_it() {
    let node = Node::new();
    assert_brings(&node, "", &[]);
    assert_brings(&node, "--", &[]);
}

#[test]
fn a_transformation_without_a_loader_is_a_usage_error() {
    let node = Node::new();
    let digest = "md5:5d41402abc4b2a76b9719d911017c592";
    for words in ["tar", digest, "tar:drop file:f", "dummy tar"] {
        let sc: Sc = node.sc(&format!("--use --name=r {words}"));
        sc.status(2)
            .stderr("sc: `{}` has no loader below it\nhint: put a loader to its left, as in {}")
            .run();
    }
    node.assert_empty();
}

#[test]
fn nothing_is_visible_before_the_whole_stack_is_done() {
    let node = Node::new();
    let gate = Gate::new();
    let server = Server::new()
        .body("hello")
        .reply(Reply::ok().hold_after(3, &gate))
        .start();
    let mut sc = node
        .sc(&format!(
            "--use --name=r http:{} adler32:62c0215",
            server.url("/f")
        ))
        .spawn();
    gate.wait_for_visitor();
    assert_eq!(tops(&node), [""; 0]);
    gate.open();
    assert_eq!(sc.end(), (0, String::new()), "{}", sc.said);
    assert_eq!(tops(&node), ["f"]);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}
