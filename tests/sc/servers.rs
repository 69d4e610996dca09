//! Servers that lie, break off, or never come to an end: each ends in the right bytes or in a
//! clear error, within bounded time and memory, and nothing else is visible.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::node::{Node, SC, tree};
use crate::server::{Reply, Running, Server, pattern};

/// Ten thousand bytes of version 1 under every path.
fn served() -> Server {
    Server::new().body(pattern(10_000)).etag("\"v1\"")
}

/// `http:` and the words, loaded into `r`, without a second attempt.
const ONCE: &str = "--use --name=r --retries=0";

/// After the load the repository has the file, with these bytes.
#[track_caller]
fn assert_brings(server: &Running, words: &str, bytes: &[u8]) {
    let node = Node::new();
    let url = server.url("/f");
    node.sc(&format!("{words} http:{url}"))
        .env("SC_BACKOFF_MS", "0")
        .stderr(match words.contains("retries=0") {
            true => "",
            false => "sc: cannot fetch `{}/f`: {}; retry 1 of 3 in 0.0 s",
        })
        .run();
    assert!(std::fs::read(node.path("r/f")).unwrap() == bytes);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

/// The load fails with this status and message, and nothing is visible.
#[track_caller]
fn assert_fails(server: &Running, status: i32, said: &str) {
    let node = Node::new();
    let url = server.url("/f");
    // an answer without an end that is collected anywhere does not fit
    let mut sc = node.sc_words(["-c", "ulimit -v 600000; exec \"$0\" \"$@\"", SC]);
    let mut shell = std::process::Command::new("sh");
    shell.args(sc.command.get_args()).args(ONCE.split(' '));
    for (name, value) in sc.command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.current_dir(node.outside(""));
    shell.args(["--size=20MB", "--stall-timeout=0.5", &format!("http:{url}")]);
    sc.command = shell;
    sc.env("SC_BACKOFF_MS", "0")
        .status(status)
        .stderr(said)
        .run();
    let visible: Vec<_> = tree(&node.path("r")).into_keys().collect();
    assert_eq!(visible, ["repofile"]);
    // an unfinished download may be gone on with, but not where it is what fills the disk
    let is_staged = node.path(".sc.r/staging/0/f").exists();
    assert!(!is_staged || status != 73, "room is still taken");
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const CLOSED: &str = "sc: cannot fetch `{}/f`: the connection was closed too early";

#[test]
fn a_body_that_ends_too_early_is_no_file() {
    for (reply, said) in [
        (Reply::ok().cut_after(3000), CLOSED),
        (Reply::ok().cut_after(0), CLOSED),
        (Reply::ok().declaring(10_001), CLOSED),
        (Reply::ok().chunked().cut_after(10_000), CLOSED),
        (
            Reply::ok().cut_after(3000).reset(),
            "sc: cannot fetch `{}/f`: {}",
        ),
        (
            Reply::ok().stall_after(3000),
            "sc: cannot fetch `{}/f`: not one byte for 0.5 s (`--stall-timeout`)",
        ),
    ] {
        assert_fails(&served().always(reply).start(), 69, said);
    }
}

#[test]
fn what_is_no_answer_is_said() {
    let no_good = "sc: cannot fetch `{}/f`: the answer is no good HTTP: {}";
    let head = |head: &str| format!("HTTP/1.1 200 OK\r\n{head}\r\nhi");
    for (raw, said) in [
        (String::new(), CLOSED),
        ("hello\n".into(), no_good),
        ("HTTP/1.1 99999 OK\r\n\r\n".into(), no_good),
        (head("X: \0\r\n"), no_good),
        (head("Content-Length: -1\r\n"), no_good),
        (head("Content-Length: 2\r\nContent-Length: 4\r\n"), no_good),
        (format!("{CHUNKED}zz\r\nhi\r\n0\r\n\r\n"), no_good),
        (format!("{CHUNKED}-2\r\nhi\r\n0\r\n\r\n"), no_good),
        (format!("{CHUNKED}2\r\nhiXX0\r\n\r\n"), no_good),
        (format!("{CHUNKED}ffffffffffffffffff\r\nhi"), no_good),
        (format!("{CHUNKED}2\r\nhi\r\n"), CLOSED),
        (
            head("Transfer-Encoding: gzip\r\nContent-Length: 2\r\n"),
            "sc: cannot fetch `{}/f`: the server packs the file in a way that was not asked for",
        ),
    ] {
        let server = served().always(Reply::raw(raw)).start();
        assert_fails(&server, 69, said);
    }
}

#[test]
fn an_answer_without_an_end_has_one() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let too_long = "sc: cannot fetch `{}/f`: the answer's head is too long";
    // counted in headers or in bytes, whatever comes first
    let too_many = "sc: cannot fetch `{}/f`: the answer{}";
    let too_large = "sc: not enough room: `{}/f` takes more than 20 MB (`--size`)\n\
                     hint: name other directories with `--directories`, or correct `--size`";
    let line = format!("X: {}\r\n", "a".repeat(1000));
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    for (head, again, status, said) in [
        (ok.into(), line.clone(), 69, too_many),
        (format!("{ok}X: "), "a".repeat(1000), 69, too_long),
        (
            String::new(),
            "HTTP/1.1 103 Early Hints\r\n\r\n".into(),
            69,
            // one head too long, or one too many
            "sc: cannot fetch `{}/f`: the {}",
        ),
        (format!("{ok}\r\n"), "a".repeat(0x10000), 73, too_large),
        (CHUNKED.into(), chunk, 73, too_large),
        (
            format!("{CHUNKED}2;"),
            "a".repeat(1000),
            69,
            "sc: cannot fetch `{}/f`: {}",
        ),
        (
            format!("{CHUNKED}2\r\nhi\r\n0\r\n"),
            line,
            69,
            "sc: cannot fetch `{}/f`: the server goes on, but not with the file",
        ),
    ] {
        let reply = Reply::raw_without_end(head, again);
        assert_fails(&served().always(reply).start(), status, said);
    }
}

#[test]
fn a_file_longer_than_was_asked_for_is_not_begun() {
    let server = served().always(Reply::ok().declaring(u64::MAX)).start();
    assert_fails(
        &server,
        73,
        "sc: not enough room: `{}/f` takes more than 20 MB (`--size`)\n\
         hint: name other directories with `--directories`, or correct `--size`",
    );
}

#[test]
fn odd_but_honest_answers_bring_the_file() {
    for (reply, bytes) in [
        (Reply::raw("HTTP/1.0 200 OK\r\n\r\nhi"), &b"hi"[..]),
        (Reply::raw("HTTP/1.1 200\nContent-Length: 2\n\nhi"), b"hi"),
        (
            Reply::raw(format!("{CHUNKED}2;a=b\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")),
            b"hi",
        ),
        (
            Reply::raw(
                "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
            ),
            b"hi",
        ),
        (
            Reply::raw("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi"),
            b"hi",
        ),
        (Reply::ok().body(""), b""),
        (Reply::ok().body("").chunked(), b""),
        (Reply::ok().body("").without_length(), b""),
    ] {
        assert_brings(&served().always(reply).start(), ONCE, bytes);
    }
}

#[test]
fn a_server_that_drips_is_alive() {
    let drip = Reply::ok()
        .body("2.5 seconds in all, abcdefg")
        .dripping(Duration::from_millis(100));
    let server = served().always(drip).start();
    let words = format!("{ONCE} --quiet --stall-timeout=2");
    assert_brings(&server, &words, b"2.5 seconds in all, abcdefg");
}

/// The first answer breaks off after `cut` bytes; what comes to the question for the rest is in
/// every case the reason to ask once more, or not, and the bytes are right.
#[test]
fn whatever_comes_instead_of_the_rest_the_bytes_are_right() {
    let cut = || Reply::ok().cut_after(3000);
    let rest = Some("bytes=3000-");
    for (first, second, ranges) in [
        (cut(), Reply::ok(), vec![None, rest]),
        (cut(), Reply::ok().ignoring_range(), vec![None, rest]),
        (
            cut(),
            Reply::ok().content_range("bytes 1000-9999/10000"),
            vec![None, rest, None],
        ),
        (
            cut(),
            Reply::ok().content_range("bytes 3000-9999/20000"),
            vec![None, rest, None],
        ),
        (
            cut(),
            Reply::ok().content_range("nonsense"),
            vec![None, rest, None],
        ),
        (
            cut(),
            Reply::ok().header("ETag", "\"v2\""),
            vec![None, rest, None],
        ),
        (
            Reply::ok().chunked().cut_after(10_000),
            Reply::ok(),
            vec![None, Some("bytes=10000-")],
        ),
        (
            Reply::ok().chunked().cut_after(10_000),
            Reply::ok().content_range("bytes */5"),
            vec![None, Some("bytes=10000-"), None],
        ),
        // a version that has no name short enough to be asked for
        (
            cut().header("ETag", &format!("\"{}\"", "v".repeat(50_000))),
            Reply::ok(),
            vec![None, None],
        ),
    ] {
        let server = served().reply(first).reply(second).start();
        assert_brings(&server, "--use --name=r", &pattern(10_000));
        let log = server.log();
        let asked: Vec<_> = log.iter().map(|request| request.header("range")).collect();
        assert_eq!(asked, ranges);
    }
}

#[test]
fn redirects_lead_somewhere_or_end() {
    for (to, said) in [
        ("/f", "more than 10 redirects"),
        (
            "file:///etc/passwd",
            "bad redirect: it is neither http nor https",
        ),
        ("ftp://h/f", "bad redirect: it is neither http nor https"),
        ("http://", "bad redirect: it has no host"),
    ] {
        let server = served().always(Reply::redirect(to)).start();
        assert_fails(&server, 69, &format!("sc: cannot fetch `{{}}/f`: {said}"));
    }
}

fn secure() -> Server {
    let data = |name: &str| format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    served().tls(&data("server.pem"), &data("server.key"))
}

#[test]
fn credentials_are_not_led_from_https_to_http() {
    let authorities = format!("{}/tests/data/ca.pem", env!("CARGO_MANIFEST_DIR"));
    let open = served().start();
    let server = secure().always(Reply::redirect(&open.url("/f"))).start();
    let url = server.url("/f");
    let with_password = url.replace("//", "//me:secret@");

    let node = Node::new();
    node.sc(&format!("{ONCE} http:{with_password}"))
        .env("SSL_CERT_FILE", &authorities)
        .status(69)
        .stderr(format!(
            "sc: cannot fetch `{url}`: redirected to `{}`, which is not encrypted, and there are \
             credentials",
            open.url("/f")
        ))
        .run();
    assert_eq!(open.requests(), 0);

    let node = Node::new();
    node.sc(&format!("{ONCE} http:{url}"))
        .env("SSL_CERT_FILE", &authorities)
        .stderr(format!(
            "sc: warning: `{url}` is redirected to `{}`, which is not encrypted",
            open.url("/f")
        ))
        .run();
    assert!(std::fs::read(node.path("r/f")).unwrap() == pattern(10_000));
}

#[test]
fn a_server_that_asks_for_patience_gets_some() {
    for status in [429, 503] {
        let busy = |seconds| Reply::status(status).header("Retry-After", seconds);
        let server = served().reply(busy("0")).start();
        assert_brings(&server, "--use --name=r", &pattern(10_000));

        let node = Node::new();
        let server = served().always(busy("86400")).start();
        let mut loader = node
            .sc(&format!("--use --name=r http:{}", server.url("/f")))
            .spawn();
        loader.wait_for("retry 1 of 3 in 300.0 s");
        loader.signal(Signal::SIGTERM);
        assert_eq!(loader.end().0, 128 + Signal::SIGTERM as i32);
    }
}
