//! A real squid with the stock rule that refuses CONNECT to anything but port 443: what grid
//! sites have between their nodes and the world.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use crate::node::{Node, md5};
use crate::server::{Reply, Server};

struct Squid {
    child: Child,
    url: String,
}

impl Squid {
    /// `None`, said aloud, where squid is not installed.
    fn start(node: &Node) -> Option<Squid> {
        let squid = ["/usr/sbin/squid", "/usr/bin/squid"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists());
        let Some(squid) = squid else {
            eprintln!("SKIPPED: squid is not installed");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = node.file(
            "squid.conf",
            format!(
                "acl SSL_ports port 443\n\
                 acl CONNECT method CONNECT\n\
                 http_access deny CONNECT !SSL_ports\n\
                 http_access allow all\n\
                 http_port 127.0.0.1:{port}\n\
                 cache_mem 16 MB\n\
                 maximum_object_size_in_memory 8 MB\n\
                 access_log none\n\
                 cache_log /dev/null\n\
                 cache_store_log none\n\
                 pid_filename none\n\
                 visible_hostname localhost\n\
                 shutdown_lifetime 0 seconds\n"
            ),
        );
        // squid gives up root for a user of its own, who must be able to read this
        for path in [node.outside(""), config.clone()] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut child = Command::new(squid)
            // its shared memory is called by the service name: no two at once may have the same
            .args(["-N", "-d1", "-n", &format!("sc{port}"), "-f"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        while !said.contains("Accepting HTTP Socket connections") {
            assert!(
                stderr.read_line(&mut said).unwrap() > 0,
                "squid ended: {said}"
            );
        }
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Some(Squid {
            child,
            url: format!("http://127.0.0.1:{port}"),
        })
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        // asked, not killed: it removes its shared memory
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// An answer that a cache may keep. It has its own date: what comes without one is stale at once
/// for squid.
fn cacheable() -> Reply {
    let mut date = Command::new("date");
    date.args(["-u", "+%a, %d %b %Y %H:%M:%S GMT"])
        .env("LC_ALL", "C");
    let date = date.output().unwrap().stdout;
    Reply::ok()
        .header("Cache-Control", "max-age=3600")
        .header("Date", String::from_utf8(date).unwrap().trim())
}

#[test]
fn a_real_squid_serves_plain_http_and_caches_it() {
    let node = Node::new();
    let Some(squid) = Squid::start(&node) else {
        return;
    };
    let server = Server::new()
        .body("the data\n")
        .etag("\"1\"")
        .always(cacheable())
        .start();
    let file = node.file("f", "the data\n");
    let words = format!("--name=r http:{} md5:{}", server.url("/f"), md5(&file));
    for _ in 0..3 {
        node.sc(&format!("--use {words}"))
            .env("http_proxy", &squid.url)
            .run();
        assert_eq!(node.tree()["r/f"], "the data\n");
        node.sc("--unuse --name=r").run();
        node.assert_empty();
    }
    assert_eq!(
        server.requests(),
        1,
        "squid has cached it: {:?}",
        server.log()
    );
    assert!(
        server.log()[0].header("via").is_some(),
        "it came through squid"
    );

    // the URL's scheme chooses: what is for https is not for http
    node.sc(&format!("--use {words}"))
        .env("https_proxy", "http://127.0.0.1:1")
        .env("all_proxy", &squid.url)
        .run();
    node.sc("--unuse --name=r").run();
    assert_eq!(server.requests(), 1);
    node.sc(&format!("--use {words}"))
        .env("http_proxy", "http://127.0.0.1:1")
        .env("no_proxy", "localhost, 127.0.0.1")
        .run();
    node.sc("--unuse --name=r").run();
    assert_eq!(server.requests(), 2, "no_proxy goes around it");
}

#[test]
fn a_stale_copy_in_a_squid_is_fetched_past_it_once() {
    let node = Node::new();
    let Some(squid) = Squid::start(&node) else {
        return;
    };
    let server = Server::new()
        .body("old")
        .etag("\"1\"")
        .always(cacheable())
        .start();
    let url = server.url("/f");
    let old = node.file("old", "old");
    node.sc(&format!("--use --name=r http:{url} md5:{}", md5(&old)))
        .env("http_proxy", &squid.url)
        .run();
    node.sc("--unuse --name=r").run();
    server.set_body("new", "\"2\"");
    let new = node.file("new", "new");
    node.sc(&format!("--use --name=r http:{url} md5:{}", md5(&new)))
        .env("http_proxy", &squid.url)
        .stderr("sc: warning: wrong md5 of `{}f`: expected {}, got {}; fetching it once more")
        .run();
    assert_eq!(node.tree()["r/f"], "new");
    assert_eq!(server.requests(), 2);
}
