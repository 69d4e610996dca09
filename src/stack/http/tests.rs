//! The loader against a real server on loopback.

#[path = "../../../tests/sc/server.rs"]
mod server;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use self::server::{Gate, Reply, Running, Server, pattern};
use super::{Http, Network};
use crate::error::{Error, Result};
use crate::stack::testing::loader::FakeSite;
use crate::stack::{Part, Site};

const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn http(url: &str) -> Http {
    Http::parse(OsStr::new(url)).unwrap()
}

fn fetch(site: &mut FakeSite, url: &str) -> Result<()> {
    http(url).run(site)
}

/// A server with 10 000 bytes of version 1 under every path.
fn served() -> Server {
    Server::new().body(pattern(10_000)).etag("\"v1\"")
}

/// A site where an earlier process left the first `length` bytes of version 1.
fn begun(server: &Running, length: usize) -> FakeSite {
    let mut site = FakeSite::new();
    std::fs::write(site.path("f"), &pattern(10_000)[..length]).unwrap();
    site.part = Some(Part {
        url: server.url("/f"),
        etag: Some("\"v1\"".into()),
        last_modified: None,
        total: Some(10_000),
    });
    site
}

fn network(variables: &[(&str, &str)]) -> Network {
    Network::from_env(&|name| {
        let mut all = variables.iter().chain(&[("SC_BACKOFF_MS", "0")]);
        let found = all.find(|(variable, _)| *variable == name);
        found.map(|(_, value)| value.into())
    })
}

fn data(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn assert_fetched(site: &FakeSite, name: &str, body: &[u8]) {
    assert!(site.read(name) == body, "`{name}` has the wrong bytes");
    assert_eq!(site.made, [name]);
}

// what the words mean

#[test]
fn the_file_is_named_by_what_follows_the_last_slash_as_typed() {
    for (url, name) in [
        ("http://h/d/f.tar", "f.tar"),
        ("https://h/f?x=1", "f?x=1"),
        ("http://h/a%20b", "a%20b"),
        ("http://h/a b", "a b"),
        ("http://h/f?p=a/b", "b"),
        ("http://h/f?p=a/", "f"),
        ("http://h/f?p=a/..", "f"),
        ("http://h/f#part", "f#part"),
        ("http://h/.sc.x/f?/.sc.x", "f"),
        ("http://h", "h"),
        ("/etc/hostname", "hostname"),
        ("file:///etc/host%6eame", "host%6eame"),
        ("file:/etc/hostname", "hostname"),
        ("file://localhost/etc/hostname", "hostname"),
    ] {
        assert_eq!(http(url).file_name(), name, "{url}");
    }
    let long = format!("http://h/f?{}", "x".repeat(255));
    assert_eq!(http(&long).file_name(), "f");
}

#[test]
fn what_names_no_file_is_a_usage_error() {
    for url in [
        "http://h/",
        "http://h/d/",
        "http://h/..",
        "http://h/.sc",
        "http://h/.sc.f",
        "http://me:secret@h",
        "ftp://h/f",
        "root://h//f",
        "http:",
        "http://",
        "file://host/f",
        "file:f",
        "file:///",
        "/",
        "",
        "h:8080/f",
    ] {
        let error = Http::parse(OsStr::new(url)).unwrap_err();
        assert_eq!(error.exit_status(), 2, "{url}: {error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn secrets_are_in_the_source_and_nowhere_else() {
    let module = http("http://me:secret@h/f.tar?token=secret");
    assert_eq!(module.to_string(), "http:http://h/f.tar");
    assert_eq!(format!("{module:?}"), "http:http://h/f.tar");
    assert_eq!(module.source(), "http://me:secret@h/f.tar?token=secret");
    assert_eq!(
        http("http:/etc/hostname".trim_start_matches("http:")).to_string(),
        "file:/etc/hostname"
    );
}

proptest::proptest! {
    #[test]
    fn no_words_are_a_panic(text in ".*", other in "[a-z:/?#@%.\\[\\]0-9 -]*") {
        for text in [text, format!("http:{other}"), format!("https://{other}"), other] {
            let _ = Http::parse(OsStr::new(&text));
            let _ = super::url::Url::parse(b"http://u@h/a/b?c").unwrap().join(text.as_bytes());
            let _ = super::retry::retry_after(&text, std::time::SystemTime::now());
            let network = network(&[("all_proxy", &text), ("no_proxy", &text)]);
            let _ = network.proxy(&super::url::Url::parse(b"http://127.0.0.1/").unwrap());
        }
    }
}

// the plain case

#[test]
fn a_file_is_downloaded() {
    let server = served().start();
    let mut site = FakeSite::new();
    fetch(&mut site, &server.url("/d/f?q=1")).unwrap();
    assert_fetched(&site, "f?q=1", &pattern(10_000));
    let request = &server.log()[0];
    assert_eq!(request.line, "GET /d/f?q=1 HTTP/1.1");
    assert_eq!(request.header("accept-encoding"), Some("identity"));
    assert_eq!(request.header("host"), Some(server.address().as_str()));
    assert_eq!(request.header("range"), None);
    assert_eq!(request.header("authorization"), None);
}

#[test]
fn large_and_empty_files_are_downloaded_by_length_by_chunks_and_by_close() {
    for body in [pattern(1_000_003), Vec::new()] {
        for reply in [
            Reply::ok(),
            Reply::ok().chunked(),
            Reply::ok().without_length(),
        ] {
            let server = Server::new().body(body.clone()).reply(reply).start();
            let mut site = FakeSite::new();
            fetch(&mut site, &server.url("/f")).unwrap();
            assert_fetched(&site, "f", &body);
        }
    }
}

#[test]
fn the_part_is_recorded_before_the_first_byte_and_after_the_old_file_is_gone() {
    let server = served().last_modified(DATE).start();
    let mut site = FakeSite::new();
    site.watched = Some("f".into());
    std::fs::write(site.path("f"), "of another version").unwrap();
    fetch(&mut site, &server.url("/f")).unwrap();
    let part = Part {
        url: server.url("/f"),
        etag: Some("\"v1\"".into()),
        last_modified: Some(DATE.into()),
        total: Some(10_000),
    };
    assert_eq!(site.parts, [(Some(part), None)]);
    assert_fetched(&site, "f", &pattern(10_000));
}

#[test]
fn an_encoded_body_is_stored_as_it_is() {
    let reply = Reply::ok().header("Content-Encoding", "gzip");
    let server = served().reply(reply).start();
    let mut site = FakeSite::new();
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
}

#[test]
fn what_may_not_stand_in_a_url_is_encoded_on_the_wire() {
    let server = served().start();
    let mut site = FakeSite::new();
    fetch(&mut site, &server.url("/a b/ü?x={1}#no")).unwrap();
    assert_eq!(server.log()[0].target(), "/a%20b/%C3%BC?x=%7B1%7D");
    assert_eq!(site.made, ["ü?x={1}#no"]);
}

#[test]
fn user_info_becomes_basic_authorization() {
    let server = served().start();
    let mut site = FakeSite::new();
    let url = server.url("/f").replace("//", "//Aladdin:open%20sesame@");
    fetch(&mut site, &url).unwrap();
    assert_eq!(
        server.log()[0].header("authorization"),
        Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
    );
    assert!(!format!("{:?}", site.parts).contains("Aladdin"));
}

#[test]
fn a_fresh_copy_is_asked_for_past_caches_and_from_zero() {
    let server = served().start();
    let mut site = begun(&server, 4000);
    site.is_fresh = true;
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    let request = &server.log()[0];
    assert_eq!(request.header("range"), None);
    assert_eq!(request.header("cache-control"), Some("no-cache"));
    assert_eq!(request.header("pragma"), Some("no-cache"));
}

// statuses

#[test]
fn an_error_page_is_no_file() {
    for (status, exit_status, requests) in [
        (404, 66, 1),
        (410, 66, 1),
        (400, 69, 1),
        (401, 69, 1),
        (403, 69, 1),
        (416, 69, 1),
        (204, 69, 1),
        (206, 69, 1),
        (304, 69, 1),
        (301, 69, 1),
        (408, 69, 3),
        (429, 69, 3),
        (500, 69, 3),
        (503, 69, 3),
    ] {
        let server = served().always(Reply::status(status)).start();
        let mut site = FakeSite::new();
        site.settings.retries = 2;
        let error = fetch(&mut site, &server.url("/f?secret")).unwrap_err();
        assert_eq!(error.exit_status(), exit_status, "{error}");
        assert_eq!(server.requests(), requests, "{error}");
        assert!(error.to_string().contains(&status.to_string()), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
        assert_eq!(site.dir().names().unwrap(), [""; 0]);
    }
}

#[test]
fn messages_name_the_url_and_the_reason() {
    let server = served().always(Reply::status(403)).start();
    let error = fetch(&mut FakeSite::new(), &server.url("/f?q")).unwrap_err();
    let url = server.url("/f");
    assert_eq!(
        error.to_string(),
        format!("cannot fetch `{url}`: 403 Forbidden")
    );
    let server = served().always(Reply::status(500)).start();
    let error = fetch(&mut FakeSite::new(), &server.url("/f")).unwrap_err();
    let url = server.url("/f");
    assert_eq!(
        error.to_string(),
        format!("cannot fetch `{url}`: 500 Internal Server Error (attempt 4 of 4, `--retries`)")
    );
}

#[test]
fn a_transient_failure_is_tried_again() {
    let server = served()
        .reply(Reply::status(503).header("Retry-After", "0"))
        .reply(Reply::status(500))
        .start();
    let mut site = FakeSite::new();
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.requests(), 3);
}

#[test]
fn nobody_there_is_said_after_all_attempts() {
    let url = served().start().url("/f");
    let mut site = FakeSite::new();
    site.settings.retries = 1;
    let error = fetch(&mut site, &url).unwrap_err();
    assert_eq!(error.exit_status(), 69);
    assert!(error.to_string().contains("connection refused"), "{error}");
    assert!(error.to_string().contains("attempt 2 of 2"), "{error}");
    let error = fetch(&mut site, "http://no-such-host.invalid/f").unwrap_err();
    assert!(
        error
            .to_string()
            .contains("cannot look up `no-such-host.invalid`"),
        "{error}"
    );
}

// bodies that break off

#[test]
fn a_broken_download_goes_on_at_its_last_byte() {
    let server = served()
        .reply(Reply::ok().cut_after(3000))
        .reply(Reply::ok().cut_after(2000))
        .start();
    let mut site = FakeSite::new();
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    let log = server.log();
    assert_eq!(log[1].header("range"), Some("bytes=3000-"));
    assert_eq!(log[1].header("if-range"), Some("\"v1\""));
    assert_eq!(log[2].header("range"), Some("bytes=5000-"));
    assert_eq!(server.bytes_sent(), 10_000);
}

#[test]
fn a_broken_download_without_a_validator_starts_from_zero() {
    for etag in [None, Some("W/\"weak\"")] {
        let mut server = Server::new().body(pattern(10_000));
        if let Some(etag) = etag {
            server = server.etag(etag);
        }
        let server = server.reply(Reply::ok().cut_after(3000)).start();
        let mut site = FakeSite::new();
        fetch(&mut site, &server.url("/f")).unwrap();
        assert_fetched(&site, "f", &pattern(10_000));
        assert_eq!(server.log()[1].header("range"), None);
    }
}

#[test]
fn beside_a_weak_etag_the_date_is_the_validator() {
    let server = Server::new()
        .body(pattern(10_000))
        .etag("W/\"weak\"")
        .last_modified(DATE)
        .reply(Reply::ok().cut_after(3000))
        .start();
    let mut site = FakeSite::new();
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.log()[1].header("if-range"), Some(DATE));
    assert_eq!(server.bytes_sent(), 10_000);
}

#[test]
fn a_body_cut_inside_its_chunks_goes_on() {
    let server = served()
        .reply(Reply::ok().chunked().cut_after(3000))
        .start();
    let mut site = FakeSite::new();
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.log()[1].header("range"), Some("bytes=3000-"));
}

#[test]
fn a_download_that_breaks_off_too_often_fails_and_keeps_its_part() {
    let server = served().always(Reply::ok().cut_after(1000)).start();
    let mut site = FakeSite::new();
    site.settings.retries = 2;
    let error = fetch(&mut site, &server.url("/f")).unwrap_err();
    assert!(error.to_string().contains("closed too early"), "{error}");
    assert!(site.made.is_empty());
    assert!(site.read("f") == pattern(10_000)[..3000]);
    assert_eq!(site.part.unwrap().total, Some(10_000));
}

#[test]
fn silence_is_a_broken_download() {
    let server = served().reply(Reply::ok().stall_after(3000)).start();
    let mut site = FakeSite::new();
    site.settings.stall_timeout = Duration::from_millis(50);
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    let server = served().always(Reply::ok().stall_after(0)).start();
    site.settings.retries = 0;
    let error = fetch(&mut site, &server.url("/g")).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("not one byte for 0.05 s (`--stall-timeout`)"),
        "{error}"
    );
}

#[test]
fn a_longer_body_than_declared_is_not_read() {
    let server = served().reply(Reply::ok().declaring(4000)).start();
    let mut site = FakeSite::new();
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000)[..4000]);
}

// the six cases of a resume

#[test]
fn the_rest_is_appended_to_what_an_earlier_process_left() {
    let server = served().start();
    let mut site = begun(&server, 4000);
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.log()[0].header("range"), Some("bytes=4000-"));
    assert_eq!(server.bytes_sent(), 6000);
}

#[test]
fn resume_200_to_a_range_starts_over_with_its_body() {
    let server = served().always(Reply::ok().ignoring_range()).start();
    let mut site = begun(&server, 4000);
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.requests(), 1);
}

#[test]
fn resume_another_version_starts_over_with_its_body() {
    let server = served().start();
    server.set_body("new and short", "\"v2\"");
    let mut site = begun(&server, 4000);
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", b"new and short");
    assert_eq!(server.requests(), 1);
    assert_eq!(site.part.unwrap().etag.as_deref(), Some("\"v2\""));
}

#[test]
fn resume_206_that_does_not_fit_is_thrown_away() {
    for wrong in [
        Reply::ok().content_range("bytes 3999-9999/10000"),
        Reply::ok().content_range("bytes 4000-9999/10001"),
        Reply::ok().content_range("bytes 0-9999/10000"),
        Reply::ok().content_range("nonsense"),
        Reply::ok().content_range(""),
        Reply::ok().header("ETag", "\"v2\""),
    ] {
        let server = served().reply(wrong).start();
        let mut site = begun(&server, 4000);
        fetch(&mut site, &server.url("/f")).unwrap();
        assert_fetched(&site, "f", &pattern(10_000));
        assert_eq!(server.requests(), 2);
        assert_eq!(server.log()[1].header("range"), None);
    }
}

#[test]
fn resume_416_with_our_length_is_complete() {
    let server = served().start();
    let mut site = begun(&server, 10_000);
    site.part.as_mut().unwrap().total = None;
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.log()[0].header("range"), Some("bytes=10000-"));
    assert_eq!(server.bytes_sent(), 0);
}

#[test]
fn resume_416_otherwise_starts_over_once() {
    for wrong in [
        Reply::status(416).header("Content-Range", "bytes */9999"),
        Reply::status(416),
        Reply::status(416)
            .header("Content-Range", "bytes */4000")
            .header("ETag", "\"v2\""),
    ] {
        let server = served().reply(wrong.clone()).start();
        let mut site = begun(&server, 4000);
        fetch(&mut site, &server.url("/f")).unwrap();
        assert_fetched(&site, "f", &pattern(10_000));
        assert_eq!(server.requests(), 2);

        let server = served().always(wrong).start();
        let mut site = begun(&server, 4000);
        let error = fetch(&mut site, &server.url("/f")).unwrap_err();
        assert_eq!(error.exit_status(), 69);
        assert_eq!(server.requests(), 2);
    }
}

#[test]
fn a_complete_file_needs_no_request() {
    let server = served().start();
    let mut site = begun(&server, 10_000);
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.requests(), 0);
}

#[test]
fn a_part_that_cannot_be_trusted_is_no_part() {
    type Spoil = fn(&mut FakeSite);
    let spoils: [Spoil; 5] = [
        |site| site.part.as_mut().unwrap().etag = None,
        |site| site.part.as_mut().unwrap().etag = Some("W/\"v1\"".into()),
        |site| site.part.as_mut().unwrap().url = "http://elsewhere/f".into(),
        |site| site.part.as_mut().unwrap().total = Some(3000),
        |site| site.part = None,
    ];
    for spoil in spoils {
        let server = served().start();
        let mut site = begun(&server, 4000);
        spoil(&mut site);
        fetch(&mut site, &server.url("/f")).unwrap();
        assert_fetched(&site, "f", &pattern(10_000));
        assert_eq!(server.log()[0].header("range"), None);
    }
}

#[test]
fn a_shorter_range_than_asked_for_goes_on_after_it() {
    let part = Reply::status(206)
        .header("Content-Range", "bytes 4000-4999/10000")
        .body(&pattern(10_000)[4000..5000]);
    let server = served().reply(part).start();
    let mut site = begun(&server, 4000);
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.log()[1].header("range"), Some("bytes=5000-"));
}

// room

#[test]
fn a_file_too_long_for_the_place_is_not_begun() {
    let server = served().start();
    let mut site = FakeSite::new();
    site.room = 9999;
    let error = fetch(&mut site, &server.url("/f")).unwrap_err();
    assert_eq!(error.exit_status(), 73, "{error}");
    assert_eq!(server.requests(), 1);
    let reply = Reply::ok().declaring(u64::MAX);
    let server = served().reply(reply).start();
    let error = fetch(&mut site, &server.url("/f")).unwrap_err();
    assert_eq!(error.exit_status(), 73, "{error}");
}

// redirects

#[test]
fn redirects_are_followed_and_the_range_goes_along() {
    let server = served()
        .reply(Reply::redirect("/else where"))
        .reply(Reply::redirect("then?x").header("Connection", "close"))
        .start();
    let mut site = begun(&server, 4000);
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    let targets: Vec<String> = server.log().iter().map(|r| r.target().to_owned()).collect();
    assert_eq!(targets, ["/f", "/else%20where", "/then?x"]);
    assert_eq!(server.log()[2].header("range"), Some("bytes=4000-"));
}

#[test]
fn credentials_stay_within_their_origin() {
    let other = served().start();
    let server = served()
        .reply(Reply::redirect("/again"))
        .reply(Reply::redirect(&other.url("/f")))
        .start();
    let mut site = FakeSite::new();
    let url = server.url("/f").replace("//", "//me:secret@");
    fetch(&mut site, &url).unwrap();
    assert!(server.log()[1].header("authorization").is_some());
    assert_eq!(other.log()[0].header("authorization"), None);
    let server = served()
        .reply(Reply::redirect(&other.url("/f?secret")))
        .start();
    other.reply(Reply::status(404));
    let error = fetch(&mut site, &server.url("/f")).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` does not exist: 404 Not Found, redirected to `{}`",
            server.url("/f"),
            other.url("/f")
        )
    );
}

#[test]
fn redirects_end_somewhere_and_lead_nowhere_else() {
    let server = served().always(Reply::redirect("/f")).start();
    let error = fetch(&mut FakeSite::new(), &server.url("/f")).unwrap_err();
    assert!(
        error.to_string().ends_with("more than 10 redirects"),
        "{error}"
    );
    assert_eq!(server.requests(), 11);
    for to in ["ftp://h/f", "file:///etc/passwd", "http://", "http://h:x/"] {
        let server = served().always(Reply::redirect(to)).start();
        let error = fetch(&mut FakeSite::new(), &server.url("/f")).unwrap_err();
        assert!(error.to_string().contains("bad redirect"), "{error}");
        assert_eq!(server.requests(), 1);
    }
}

// proxies

#[test]
fn plain_http_asks_a_proxy_by_absolute_form() {
    let proxy = served().start();
    let mut site = FakeSite::new();
    let at = format!("http://me:secret@{}", proxy.address());
    site.settings.network = network(&[("http_proxy", &at)]);
    // a name that only the proxy could look up
    fetch(&mut site, "http://far.invalid:8080/d/f?x=1").unwrap();
    let request = &proxy.log()[0];
    assert_eq!(request.line, "GET http://far.invalid:8080/d/f?x=1 HTTP/1.1");
    assert_eq!(request.header("host"), Some("far.invalid:8080"));
    assert_eq!(
        request.header("proxy-authorization"),
        Some("Basic bWU6c2VjcmV0")
    );
    assert_eq!(request.header("authorization"), None);
    assert_fetched(&site, "f?x=1", &pattern(10_000));
}

#[test]
fn no_proxy_is_asked_anew_after_a_redirect() {
    let direct = served().start();
    let proxy = served().reply(Reply::redirect(&direct.url("/f"))).start();
    let mut site = FakeSite::new();
    let variables = [("http_proxy", &*proxy.address()), ("no_proxy", "127.0.0.1")];
    site.settings.network = network(&variables);
    fetch(&mut site, "http://far.invalid/f").unwrap();
    assert_eq!((proxy.requests(), direct.requests()), (1, 1));
    assert_eq!(direct.log()[0].line, "GET /f HTTP/1.1");
}

#[test]
fn a_proxy_that_cannot_be_used_is_an_error_and_no_panic() {
    let mut site = FakeSite::new();
    for (value, problem) in [
        ("socks5://h:1", "it is a SOCKS proxy"),
        ("h:port", "its port is not a number"),
    ] {
        site.settings.network = network(&[("all_proxy", value)]);
        let error = fetch(&mut site, "http://far.invalid/f").unwrap_err();
        assert_eq!(error.exit_status(), 69);
        assert!(error.to_string().contains(problem), "{error}");
        assert!(error.to_string().contains("`all_proxy`"), "{error}");
    }
}

// https

fn secure() -> Server {
    served().tls(&data("server.pem"), &data("server.key"))
}

#[test]
fn https_trusts_the_authorities_of_ssl_cert_file() {
    let server = secure().reply(Reply::ok().cut_after(3000)).start();
    let mut site = FakeSite::new();
    site.settings.network = network(&[("SSL_CERT_FILE", &data("ca.pem"))]);
    fetch(&mut site, &server.url("/f")).unwrap();
    assert_fetched(&site, "f", &pattern(10_000));
    assert_eq!(server.log()[1].header("range"), Some("bytes=3000-"));
}

#[test]
fn https_trusts_the_directories_of_ssl_cert_dir_and_x509_cert_dir() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(data("ca.pem"), directory.path().join("12345678.0")).unwrap();
    std::fs::write(directory.path().join("bad.0"), "no certificate").unwrap();
    let directory = directory.path().to_str().unwrap();
    let server = secure().start();
    for variables in [
        vec![("SSL_CERT_DIR", format!("/nonexistent:{directory}"))],
        vec![("X509_CERT_DIR", directory.to_owned())],
    ] {
        let mut site = FakeSite::new();
        let variables: Vec<_> = variables.iter().map(|(k, v)| (*k, v.as_str())).collect();
        site.settings.network = network(&variables);
        fetch(&mut site, &server.url("/f")).unwrap();
    }
}

#[test]
fn an_unknown_authority_is_said_with_the_variables_that_would_change_it() {
    let server = secure().start();
    let mut site = FakeSite::new();
    let error = fetch(&mut site, &server.url("/f")).unwrap_err();
    assert_eq!(error.exit_status(), 69);
    let text = error.to_string();
    assert!(
        text.contains("unknown authority; `SSL_CERT_FILE` or `X509_CERT_DIR`"),
        "{text}"
    );
    assert!(!text.contains("attempt"), "{text}");
    let error = fetch(&mut site, &server.url("/f").replace("https", "http")).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[test]
fn a_certificate_for_another_name_and_no_tls_at_all_are_said() {
    let mut site = FakeSite::new();
    site.settings.network = network(&[("SSL_CERT_FILE", &data("ca.pem"))]);
    let server = secure().start();
    let url = server.url("/f").replace("127.0.0.1", "localhost");
    let error = fetch(&mut site, &url).unwrap_err();
    assert!(error.to_string().contains("is for another name"), "{error}");
    let server = served().start();
    let url = server.url("/f").replace("http:", "https:");
    let error = fetch(&mut site, &url).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("`127.0.0.1` does not speak TLS"),
        "{error}"
    );
    site.settings.network = network(&[("SSL_CERT_FILE", "/nonexistent")]);
    let error = fetch(&mut site, &url).unwrap_err();
    assert!(error.to_string().contains("`SSL_CERT_FILE`"), "{error}");
}

#[test]
fn https_goes_through_a_proxy_by_connect() {
    let server = secure().start();
    let plain = served().tunnels().start();
    let encrypted = secure().tunnels().start();
    for (proxy, works) in [(&plain, true), (&encrypted, false)] {
        let mut site = FakeSite::new();
        site.settings.retries = 0;
        let at = proxy.url("").replace("//", "//me:secret@");
        let variables = [("https_proxy", &*at), ("SSL_CERT_FILE", &data("ca.pem"))];
        site.settings.network = network(&variables);
        // the test server's tunnel speaks no TLS itself; the CONNECT arrives all the same
        assert_eq!(fetch(&mut site, &server.url("/f")).is_ok(), works);
        let request = &proxy.log()[0];
        assert_eq!(
            request.line,
            format!("CONNECT {} HTTP/1.1", server.address())
        );
        assert_eq!(
            request.header("proxy-authorization"),
            Some("Basic bWU6c2VjcmV0")
        );
    }
    assert_eq!(server.log()[0].header("proxy-authorization"), None);
}

#[test]
fn plain_http_goes_to_an_encrypted_proxy_too() {
    let proxy = secure().start();
    let mut site = FakeSite::new();
    let variables = [
        ("http_proxy", &*proxy.url("")),
        ("SSL_CERT_FILE", &data("ca.pem")),
    ];
    site.settings.network = network(&variables);
    fetch(&mut site, "http://far.invalid/f").unwrap();
    assert_eq!(proxy.log()[0].line, "GET http://far.invalid/f HTTP/1.1");
    assert_fetched(&site, "f", &pattern(10_000));
}

#[test]
fn a_proxy_that_refuses_is_named_without_its_password() {
    for (status, requests) in [(407, 1), (403, 1), (503, 3)] {
        let proxy = served().always(Reply::status(status)).start();
        let mut site = FakeSite::new();
        site.settings.retries = 2;
        let at = proxy.url("").replace("//", "//me:secret@");
        site.settings.network = network(&[("https_proxy", &at)]);
        let error = fetch(&mut site, "https://far.invalid/f").unwrap_err();
        assert_eq!(error.exit_status(), 69);
        assert_eq!(proxy.requests(), requests);
        let text = error.to_string();
        assert!(
            text.contains(&format!("proxy `{}`", proxy.url(""))),
            "{text}"
        );
        assert!(
            text.contains(&status.to_string()) && !text.contains("secret"),
            "{text}"
        );
    }
}

// local files

#[test]
fn local_files_are_copied_as_the_reference_did() {
    let source = tempfile::tempdir().unwrap();
    let file = source.path().join("a b");
    std::fs::write(&file, "text").unwrap();
    let path = file.to_str().unwrap();
    for (url, name) in [
        (path.to_owned(), "a b"),
        (format!("file://{}", path.replace(' ', "%20")), "a%20b"),
        (format!("file://localhost{path}"), "a b"),
    ] {
        let mut site = FakeSite::new();
        fetch(&mut site, &url).unwrap();
        assert_fetched(&site, name, b"text");
        assert_eq!(http(&url).source(), OsString::from(path));
    }
    let error = fetch(&mut FakeSite::new(), "/nonexistent/f").unwrap_err();
    assert_eq!(error.exit_status(), 66);
}

// signals: in a process of its own, because they are for all threads

/// What the child below does: signals on, then a download that never ends.
#[test]
fn child() {
    let Ok(url) = std::env::var("SC_TEST_URL") else {
        return;
    };
    crate::signal::install();
    let mut site = FakeSite::new();
    if let Ok(ms) = std::env::var("SC_TEST_BACKOFF_MS") {
        site.settings.network = network(&[("SC_BACKOFF_MS", &ms)]);
    }
    let error = fetch(&mut site, &url).unwrap_err();
    let length = std::fs::metadata(site.path("f")).map_or(0, |file| file.len());
    println!("\n{length} bytes, {}: {error}", error.exit_status());
}

fn end_by_sigterm(url: &str, backoff_ms: &str, arranged: impl FnOnce()) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["stack::http::tests::child", "--exact", "--nocapture"])
        .env("SC_TEST_URL", url)
        .env("SC_TEST_BACKOFF_MS", backoff_ms)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    arranged();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let mut output = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    child.wait().unwrap();
    let mut lines = output.as_bytes().lines().map_while(|line| line.ok());
    lines
        .find(|line| line.contains(" bytes, "))
        .unwrap_or(output)
}

#[test]
fn a_signal_ends_a_silent_download_and_what_came_stays() {
    let gate = Gate::new();
    let server = served().reply(Reply::ok().hold_after(3000, &gate)).start();
    let line = end_by_sigterm(&server.url("/f"), "0", || gate.wait_for_visitor());
    assert!(line.ends_with(" bytes, 143: ended by SIGTERM"), "{line}");
    // the server saw them off; whether they have arrived is the kernel's affair
    assert!(line.starts_with("3000") || line.starts_with("0"), "{line}");
}

#[test]
fn a_signal_ends_the_wait_for_an_answer() {
    let gate = Gate::new();
    let server = served().reply(Reply::ok().behind(&gate)).start();
    let line = end_by_sigterm(&server.url("/f"), "0", || gate.wait_for_visitor());
    assert_eq!(line, "0 bytes, 143: ended by SIGTERM");
}

#[test]
fn a_signal_ends_the_pause_before_a_retry() {
    let server = served().always(Reply::status(503)).start();
    let line = end_by_sigterm(&server.url("/f"), "600000", || server.wait_for_requests(1));
    assert_eq!(line, "0 bytes, 143: ended by SIGTERM");
}
