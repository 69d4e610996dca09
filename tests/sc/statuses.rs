//! Each exit status with its whole message; and after each failure nothing partial is visible, the
//! lock is free, a later use works and its unuse leaves nothing.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::node::{Node, md5, tar_gz};
use crate::server::{Reply, Server};

const FRESH: &str = "--name=r --use";

/// What must hold after any failure.
#[track_caller]
fn assert_recovers(node: &Node) {
    for path in node.tree().into_keys() {
        assert!(
            path.starts_with(".sc.r") || path == "r" || path == "r/repofile",
            "visible after a failure: {path}"
        );
    }
    if let Ok(lock) = File::open(node.path(".sc.r/lock")) {
        assert!(
            Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_ok(),
            "the lock is not free"
        );
    }
    let good = node.file("good", "good");
    node.sc(&format!(
        "{FRESH} --no-wait file:{} md5:{}",
        good.display(),
        md5(&good)
    ))
    .run();
    assert_eq!(fs::read_to_string(node.path("r/good")).unwrap(), "good");
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

/// `sc --use` with this module fails so.
#[track_caller]
fn assert_fails(node: &Node, words: &str, status: i32, stderr: &str) {
    node.sc(&format!("{FRESH} {words}"))
        .status(status)
        .stderr(stderr)
        .run();
    assert_recovers(node);
}

#[test]
fn a_usage_error_is_2_and_a_holder_that_is_no_process_too() {
    let node = Node::new();
    assert_fails(
        &node,
        "--pid=2147483647",
        2,
        "sc: there is no process 2147483647 (`--pid`)",
    );
    assert_fails(
        &node,
        "md5:00",
        2,
        "sc: `md5:00`: 2 digits where 32 are expected\n\
         hint: write `md5:HEX`, 32 digits, or at least the first 8 and a `*`",
    );
}

#[test]
fn wrong_bytes_are_65_after_a_second_look() {
    let node = Node::new();
    let file = node.file("f", "hello");
    let wrong = "sc: warning: wrong md5 of `f`: expected 00000000000000000000000000000000, got \
                 5d41402abc4b2a76b9719d911017c592; fetching it once more\n\
                 sc: wrong md5 of `f`: expected 00000000000000000000000000000000, got \
                 5d41402abc4b2a76b9719d911017c592";
    let words = format!("file:{} md5:{:032}", file.display(), 0);
    assert_fails(&node, &words, 65, wrong);
    let server = Server::new().body("hello").start();
    let words = format!("http:{} md5:{:032}", server.url("/f"), 0);
    assert_fails(&node, &words, 65, wrong);
    assert_eq!(server.requests(), 2, "once, and once more");
}

#[test]
fn a_damaged_archive_is_65() {
    let node = Node::new();
    let archive = tar_gz(&node, "d.tar.gz", &[("a", "1"), ("b/c", "2")]);
    let whole = fs::read(&archive).unwrap();
    for (content, problem) in [
        (
            &whole[..whole.len() / 2],
            "the gzip data end too early: the file is cut off",
        ),
        (
            &whole[..whole.len() - 1],
            "the gzip data end too early: the file is cut off",
        ),
        (&b"<html>no such page</html>"[..], "it is not a tar archive"),
    ] {
        let damaged = node.file("x.tar", content);
        assert_fails(
            &node,
            &format!("file:{} tar", damaged.display()),
            65,
            &format!("sc: cannot unpack `x.tar`: {problem}"),
        );
    }
}

#[test]
fn a_source_that_does_not_exist_is_66() {
    let node = Node::new();
    let none = node.outside("none");
    assert_fails(
        &node,
        &format!("file:{}", none.display()),
        66,
        &format!(
            "sc: `{}` does not exist: no such file or directory",
            none.display()
        ),
    );
    for (status, reason) in [(404, "Not Found"), (410, "Gone")] {
        let server = Server::new().always(Reply::status(status)).start();
        assert_fails(
            &node,
            &format!("http:{}", server.url("/f?token=secret")),
            66,
            &format!(
                "sc: `{}` does not exist: {status} {reason}",
                server.url("/f")
            ),
        );
        assert_eq!(server.requests(), 1, "{status} is not tried again");
    }
}

#[test]
fn a_source_that_cannot_be_reached_is_69() {
    let node = Node::new();
    // a port that was somebody's a moment ago, and is nobody's now
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    assert_fails(
        &node,
        &format!("--retries=0 http:http://{port}/f"),
        69,
        &format!(
            "sc: cannot fetch `http://{port}/f`: no connection to `{port}`: connection refused"
        ),
    );
    for (status, reason) in [
        (403, "Forbidden"),
        (401, "Unauthorized"),
        (500, "Internal Server Error"),
        (503, "Service Unavailable"),
    ] {
        let server = Server::new().always(Reply::status(status)).start();
        assert_fails(
            &node,
            &format!("--retries=0 http:{}", server.url("/f")),
            69,
            &format!("sc: cannot fetch `{}`: {status} {reason}", server.url("/f")),
        );
        assert_eq!(server.requests(), 1, "{status}");
    }
    let server = Server::new().always(Reply::status(502)).start();
    let url = server.url("/f");
    node.sc(&format!("{FRESH} --retries=2 http:{url}"))
        .env("SC_TEST_BACKOFF_MS", "1")
        .status(69)
        .stderr(format!(
            "sc: cannot fetch `{url}`: 502 Bad Gateway; retry 1 of 2 in {{}} s\n\
             sc: cannot fetch `{url}`: 502 Bad Gateway; retry 2 of 2 in {{}} s\n\
             sc: cannot fetch `{url}`: 502 Bad Gateway (attempt 3 of 3, `--retries`)"
        ))
        .run();
    assert_eq!(server.requests(), 3);
    assert_recovers(&node);
}

#[test]
fn a_body_that_ends_early_is_69() {
    let node = Node::new();
    let server = Server::new()
        .body("hello")
        .always(Reply::ok().cut_after(2))
        .start();
    let url = server.url("/f");
    assert_fails(
        &node,
        &format!("--retries=0 http:{url}"),
        69,
        &format!("sc: cannot fetch `{url}`: {{}}"),
    );
}

#[test]
fn a_dirac_client_that_fails_or_is_missing_is_69() {
    let node = Node::new();
    for (program, problem) in [
        (
            "/nowhere/get",
            "there is no such program; set up its environment, or name it in `SC_DIRAC_GET`",
        ),
        ("false", "exit status 1"),
        ("true", "it said success, but there is no `f`"),
    ] {
        node.sc(&format!("{FRESH} dirac:/vo/f"))
            .env("SC_DIRAC_GET", program)
            .status(69)
            .stderr(format!("sc: `{program}` failed: {problem}"))
            .run();
        assert_recovers(&node);
    }
}

#[test]
fn no_directory_that_has_room_is_73_and_names_each() {
    let node = Node::new();
    let hint = "hint: name other directories with `--directories`, or correct `--size`";
    assert_fails(
        &node,
        "--size=900000TB",
        73,
        &format!(
            "sc: no directory will do: `{{}}/the base` has {{}} of the 900000{{}} TB needed\n{hint}"
        ),
    );
    node.sc("--use --name=r -d /nowhere:/dev/null")
        .status(73)
        .stderr(format!(
            "sc: no directory will do: `/nowhere` cannot be used: no such file or directory; \
             `/dev/null` cannot be used: {{}}\n{hint}"
        ))
        .run();
    node.assert_empty();
}

#[test]
fn a_base_that_cannot_be_used_is_told_while_another_fits() {
    let node = Node::new();
    let list = format!("/nowhere:{}", node.base().display());
    let stderr = "sc: warning: `/nowhere` cannot be used: no such file or directory";
    let with = |words: &str| node.sc(words).env("SC_DIRECTORIES", &list);
    with("--use --name=r").stderr(stderr).run();
    // now it is known where it is
    with("--use --name=r --location")
        .stdout("{}/the base/r")
        .run();
    with("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_base_that_others_own_is_passed_over_by_who_may_not_write_there() {
    if shared_cache::process::user() == 0 {
        eprintln!("SKIPPED: root may write everywhere");
        return;
    }
    let node = Node::new();
    fs::create_dir(node.outside("closed")).unwrap();
    fs::set_permissions(node.outside("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    node.sc("--use --name=r -d")
        .arg(node.outside("closed"))
        .status(73)
        .stderr("sc: no directory will do: `{}/closed` cannot be used: permission denied\nhint: {}")
        .run();
    assert!(
        fs::read_dir(node.outside("closed"))
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_base_in_which_nothing_can_be_made_is_an_error_and_no_endless_loop() {
    let node = Node::new();
    // mkdir(2) says ENOENT in a directory that is deleted itself, as in /proc
    for words in ["--use --name=r -d .", "--use --name=a/b -d .", "--use -d ."] {
        let mut sc = node.sc("");
        sc.command = std::process::Command::new("sh");
        sc.command
            .arg("-c")
            .arg(format!(
                "mkdir gone && cd gone && rmdir ../gone && exec \"$SC\" {words}"
            ))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("SC", crate::node::SC)
            .current_dir(node.outside(""));
        let output = sc.output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(73 | 74)) && said.starts_with("sc: "),
            "{words}: {:?} {said}",
            output.status
        );
    }
}

#[test]
fn a_disk_that_is_full_is_73_and_one_that_fails_is_74() {
    let node = Node::new();
    let file = node.file("f", "hello");
    let words = format!("{FRESH} file:{}", file.display());
    let log = node.outside("points");
    // the point at which the file's bytes are written: found by its label in an untroubled run
    node.sc(&words).env("SC_POINTS_LOG", &log).run();
    node.sc("--unuse --name=r").run();
    let points = fs::read_to_string(&log).unwrap();
    let reflink = points.lines().position(|line| line.ends_with("reflink"));
    let write = reflink.expect("a copy begins with a reflink") + 2;
    for (errno, status, stderr) in [
        (
            28,
            73,
            "sc: cannot write `{}/.sc.r/staging/0/f`: no space left on device\n\
             hint: name a larger directory with `--directories`, and the space needed with `--size`",
        ),
        (5, 74, "sc: cannot write `{}/.sc.r/staging/0/f`: i/o error"),
    ] {
        if !points
            .lines()
            .nth(write - 1)
            .is_some_and(|line| line.ends_with(" write"))
        {
            eprintln!("SKIPPED: a file system with reflinks writes nothing");
            return;
        }
        node.sc(&words)
            .env("SC_FAULT_AT", format!("{write}:{errno}"))
            .status(status)
            .stderr(stderr)
            .run();
        assert_recovers(&node);
    }
    assert_fails(
        &node,
        &format!(
            "file:{}",
            node.outside("").display().to_string().trim_end_matches('/')
        ),
        74,
        "sc: cannot copy `{}`: is a directory",
    );
    assert_fails(
        &node,
        "file:/dev/null",
        74,
        "sc: cannot copy `/dev/null`: not a regular file",
    );
}

#[test]
fn what_is_not_ours_to_touch_is_77() {
    let node = Node::new();
    fs::create_dir(node.path("r")).unwrap();
    fs::write(node.path("r/repofile"), "my diary").unwrap();
    node.sc(FRESH)
        .status(77)
        .stderr(
            "sc: `{}/r/repofile` is no repofile: it is not JSON\n\
             hint: move it away, or choose another `--name` or `--file`",
        )
        .run();
    assert_eq!(node.tree()["r/repofile"], "my diary");
    fs::remove_file(node.path("r/repofile")).unwrap();
    node.sc(FRESH).run();
    node.sc("--unuse --name=r").run();
    node.assert_paths(&["r"]);
}

#[test]
fn another_definition_is_78_while_somebody_holds_the_first() {
    let node = Node::new();
    let (one, two) = (node.file("one", "1"), node.file("two", "2"));
    let (one, two) = (one.display(), two.display());
    let mut job = node.job();
    assert_eq!(job.sc(&format!("--use --name=r --id=j file:{one}")).0, 0);
    node.sc(&format!("{FRESH} file:{two}"))
        .status(78)
        .stderr(format!(
            "sc: `{{}}/r` holds `file:{one}`, not `file:{two}`, and is in use by pid {} (`j`)\n\
             hint: choose another `--name`, or wait until the holders have left",
            job.pid()
        ))
        .run();
    assert!(!node.path("r/two").exists());
    job.kill();
    node.sc(&format!("{FRESH} file:{two}")).run();
    assert!(!node.path("r/one").exists());
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn another_repofile_for_a_directory_in_use_is_78() {
    let node = Node::new();
    node.sc(FRESH).run();
    let elsewhere = node.outside("state");
    for file in [Path::new("other"), &elsewhere] {
        node.sc(&format!("{FRESH} -f"))
            .arg(file)
            .status(78)
            .stderr(format!(
                "sc: `{{}}/r` is in use with the repofile `repofile`, not `{}`\n\
                 hint: say `--file=repofile`, or choose another `--name`",
                file.display()
            ))
            .run();
        assert!(!elsewhere.exists());
    }
    node.sc("--unuse --name=r").run();
    node.assert_empty();
    // once it is free, an absolute one is as good
    node.sc("--use --name=r -f").arg(&elsewhere).run();
    assert!(elsewhere.exists());
    node.assert_paths(&[
        ".sc.r",
        ".sc.r/CACHEDIR.TAG",
        ".sc.r/journal",
        ".sc.r/lock",
        ".sc.r/repofile.last",
        "r",
    ]);
    node.sc("--unuse --name=r -f").arg(&elsewhere).run();
    node.assert_empty();
    assert!(!elsewhere.exists());
}

#[test]
fn an_unuse_by_a_stranger_is_255() {
    let node = Node::new();
    node.sc("--unuse --name=r")
        .status(255)
        .stderr("sc: `{}/r` is not held by pid {}")
        .run();
    node.assert_empty();
    assert_recovers(&node);
}

#[test]
fn of_a_use_and_an_unuse_that_fail_the_use_decides_and_no_location_is_printed() {
    let node = Node::new();
    let none = node.outside("none");
    node.sc(&format!(
        "--use --unuse --location --name=r file:{}",
        none.display()
    ))
    .status(66)
    .stderr(
        "sc: `{}/r` is not held by pid {}\n\
         sc: `{}/none` does not exist: no such file or directory",
    )
    .run();
    assert_recovers(&node);
}

#[test]
fn run_has_125_126_127_of_its_own() {
    let node = Node::new();
    let plain = node.file("plain", "no program");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    for (command, status, problem) in [
        (plain.to_str().unwrap(), 126, "permission denied"),
        ("/nowhere/cmd", 127, "no such file or directory"),
        ("no-such-command-here", 127, "no such file or directory"),
    ] {
        node.sc(&format!("--run --name=r -- {command}"))
            .status(status)
            .stderr(format!("sc: cannot run `{command}`: {problem}"))
            .run();
        node.assert_empty();
    }
    node.sc(&format!(
        "--run --name=r file:{} -- true",
        node.outside("none").display()
    ))
    .status(125)
    .stderr("sc: `{}/none` does not exist: no such file or directory")
    .run();
    assert_recovers(&node);
}
