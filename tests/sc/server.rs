//! A web server on loopback that misbehaves as told. Each request has a connection and a thread
//! of its own; dropping the [`Server`] ends them all. Nothing here sleeps, but for
//! [`Reply::dripping`], whose business that is: tests arrange the order of events with [`Gate`]s
//! and [`Server::wait_for_requests`].
//!
//! ```ignore
//! // one file under every path, with ranges:
//! let server = Server::new().body("hello").etag("\"v1\"").start();
//! sc(&["--use", &format!("http:{}", server.url("/f.tar"))]);
//! assert_eq!(server.requests(), 1);
//!
//! // a script: first request 503, second cut after 3 bytes, all others as they should be
//! let server = Server::new()
//!     .body("hello")
//!     .etag("\"v1\"")
//!     .reply(Reply::status(503).header("Retry-After", "0"))
//!     .reply(Reply::ok().cut_after(3))
//!     .start();
//! …
//! assert_eq!(server.log()[2].header("range"), Some("bytes=3-"));
//!
//! // two jobs at once: the first download is held until the second job waits for it
//! let gate = Gate::new();
//! let server = Server::new().body("hello").reply(Reply::ok().hold_after(2, &gate)).start();
//! let first = spawn(…);
//! gate.wait_for_visitor();      // 2 bytes are out
//! let second = spawn(…);        // … until it says `waiting for`
//! gate.open();
//! ```
//!
//! Other paths: `.file("/a", "…")`. A new version while running: `server.set_body("…", "\"v2\"")`.
//! It also plays a proxy: absolute-form requests are answered as if they were for itself, and
//! `.tunnels()` makes CONNECT work. `.tls(cert, key)` makes it speak https.

#![allow(dead_code)]

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// Waits in tests end after this: a test that hangs says nothing.
const LONG: Duration = Duration::from_secs(60);

/// `length` bytes that don't repeat soon, so that a wrong offset is seen.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9u32;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.push(state as u8);
    }
    bytes
}

/// Holds whoever comes until it is opened.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<(bool, usize)>, Condvar)>);

impl Gate {
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        lock(&self.0.0).0 = true;
        self.0.1.notify_all();
    }

    /// Returns when somebody has come, in the past or now.
    pub fn wait_for_visitor(&self) {
        let gate = lock(&self.0.0);
        let waited = self.0.1.wait_timeout_while(gate, LONG, |gate| gate.1 == 0);
        assert!(!waited.unwrap().1.timed_out(), "nobody came to the gate");
    }

    fn pass(&self) {
        let mut gate = lock(&self.0.0);
        gate.1 += 1;
        self.0.1.notify_all();
        drop(self.0.1.wait_while(gate, |gate| !gate.0));
    }
}

/// How to answer one request.
#[derive(Clone, Default)]
pub struct Reply {
    status: Option<u16>,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    ignores_range: bool,
    length: Option<Option<u64>>,
    is_chunked: bool,
    content_range: Option<String>,
    before: Option<Gate>,
    hold: Option<(usize, Gate)>,
    cut: Option<usize>,
    stall: Option<usize>,
    drip: Option<Duration>,
    resets: bool,
    raw: Option<(Vec<u8>, Vec<u8>)>,
}

impl Reply {
    /// As a good server would; the other methods spoil it.
    pub fn ok() -> Reply {
        Reply::default()
    }

    /// Another status, with its number as body.
    pub fn status(status: u16) -> Reply {
        Reply {
            status: Some(status),
            body: Some(format!("this is no file but status {status}\n").into()),
            ..Reply::default()
        }
    }

    /// 302 to a path or URL.
    pub fn redirect(to: &str) -> Reply {
        Reply::status(302).header("Location", to)
    }

    /// One more header; it replaces the server's own of that name.
    pub fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = Some(body.into());
        self
    }

    /// 200 with everything, whatever the request's Range says.
    pub fn ignoring_range(mut self) -> Reply {
        self.ignores_range = true;
        self
    }

    /// Another `Content-Length` than the body's.
    pub fn declaring(mut self, length: u64) -> Reply {
        self.length = Some(Some(length));
        self
    }

    /// No `Content-Length`: the body ends with the connection.
    pub fn without_length(mut self) -> Reply {
        self.length = Some(None);
        self
    }

    pub fn chunked(mut self) -> Reply {
        self.is_chunked = true;
        self
    }

    /// Another `Content-Range` than the true one.
    pub fn content_range(mut self, range: &str) -> Reply {
        self.content_range = Some(range.into());
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub fn cut_after(mut self, bytes: usize) -> Reply {
        self.cut = Some(bytes);
        self
    }

    /// Falls silent after so many bytes of the body, for ever.
    pub fn stall_after(mut self, bytes: usize) -> Reply {
        self.stall = Some(bytes);
        self
    }

    /// Sends the body a byte at a time, with a pause after each.
    pub fn dripping(mut self, pause: Duration) -> Reply {
        self.drip = Some(pause);
        self
    }

    /// Ends as a server that has crashed does: by RST.
    pub fn reset(mut self) -> Reply {
        self.resets = true;
        self
    }

    /// These bytes, head and all, whatever they are.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Reply {
        Reply {
            raw: Some((bytes.into(), Vec::new())),
            ..Reply::default()
        }
    }

    /// These bytes, and then those again and again until the client hangs up.
    pub fn raw_without_end(bytes: impl Into<Vec<u8>>, again: impl Into<Vec<u8>>) -> Reply {
        Reply {
            raw: Some((bytes.into(), again.into())),
            ..Reply::default()
        }
    }

    /// Waits at the gate after so many bytes of the body, then goes on.
    pub fn hold_after(mut self, bytes: usize, gate: &Gate) -> Reply {
        self.hold = Some((bytes, gate.clone()));
        self
    }

    /// Waits at the gate before it says anything.
    pub fn behind(mut self, gate: &Gate) -> Reply {
        self.before = Some(gate.clone());
        self
    }
}

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET /f HTTP/1.1`
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }

    /// The second word of the line.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// The path, also of an absolute-form target; without query.
    pub fn path(&self) -> &str {
        let target = self.target();
        let path = match target.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
            None => target,
        };
        path.split('?').next().unwrap_or(path)
    }
}

#[derive(Clone, Default)]
struct Content {
    body: Arc<Vec<u8>>,
    etag: Option<String>,
    last_modified: Option<String>,
}

#[derive(Default)]
struct State {
    content: Content,
    files: HashMap<String, Arc<Vec<u8>>>,
    replies: std::collections::VecDeque<Reply>,
    ever_after: Reply,
    log: Vec<Request>,
    sent: u64,
    is_over: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    tunnels: bool,
    tls: Option<Arc<rustls::ServerConfig>>,
}

/// A server to be; see the top of this file.
#[derive(Default)]
pub struct Server(Shared);

impl Server {
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Server {
        Server::default()
    }

    fn change(self, change: impl FnOnce(&mut State)) -> Server {
        change(&mut lock(&self.0.state));
        self
    }

    /// What is under every path without a file of its own.
    pub fn body(self, body: impl Into<Vec<u8>>) -> Server {
        let body = Arc::new(body.into());
        self.change(|state| state.content.body = body)
    }

    /// What is under this path.
    pub fn file(self, path: &str, body: impl Into<Vec<u8>>) -> Server {
        let body = Arc::new(body.into());
        self.change(|state| drop(state.files.insert(path.into(), body)))
    }

    /// With its quotes: `"\"v1\""`, `"W/\"v1\""`.
    pub fn etag(self, etag: &str) -> Server {
        self.change(|state| state.content.etag = Some(etag.into()))
    }

    pub fn last_modified(self, date: &str) -> Server {
        self.change(|state| state.content.last_modified = Some(date.into()))
    }

    /// The next request without a reply of its own gets this one.
    pub fn reply(self, reply: Reply) -> Server {
        self.change(|state| state.replies.push_back(reply))
    }

    /// What every request after the last [`Server::reply`] gets, instead of [`Reply::ok`].
    pub fn always(self, reply: Reply) -> Server {
        self.change(|state| state.ever_after = reply)
    }

    /// CONNECT is obeyed.
    pub fn tunnels(mut self) -> Server {
        self.0.tunnels = true;
        self
    }

    /// Speaks TLS with this certificate chain and key (PEM files).
    pub fn tls(mut self, chain: &str, key: &str) -> Server {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let chain = CertificateDer::pem_file_iter(chain).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                chain.map(Result::unwrap).collect(),
                PrivateKeyDer::from_pem_file(key).unwrap(),
            );
        self.0.tls = Some(Arc::new(config.unwrap()));
        self
    }

    pub fn start(self) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(self.0);
        let serving = shared.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if lock(&serving.state).is_over {
                    break;
                }
                let (Ok(connection), serving) = (connection, serving.clone()) else {
                    continue;
                };
                std::thread::spawn(move || {
                    // a client that hangs up is none of our business
                    let _ = serve(&serving, connection);
                });
            }
        });
        Running { address, shared }
    }
}

/// A server that runs until it is dropped.
pub struct Running {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Running {
    /// `http://127.0.0.1:PORT` and `path`; https if it speaks TLS.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.shared.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}{path}", self.address)
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// How many requests have come.
    pub fn requests(&self) -> usize {
        lock(&self.shared.state).log.len()
    }

    /// Returns when that many requests have come.
    pub fn wait_for_requests(&self, count: usize) {
        let state = lock(&self.shared.state);
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, LONG, |state| state.log.len() < count);
        assert!(
            !waited.unwrap().1.timed_out(),
            "fewer than {count} requests"
        );
    }

    /// Bytes of bodies that were sent, error pages included.
    pub fn bytes_sent(&self) -> u64 {
        lock(&self.shared.state).sent
    }

    /// The requests so far.
    pub fn log(&self) -> Vec<Request> {
        lock(&self.shared.state).log.clone()
    }

    /// Another version of what is under every path.
    pub fn set_body(&self, body: impl Into<Vec<u8>>, etag: &str) {
        let mut state = lock(&self.shared.state);
        state.content.body = Arc::new(body.into());
        state.content.etag = Some(etag.into());
    }

    /// As [`Server::reply`].
    pub fn reply(&self, reply: Reply) {
        lock(&self.shared.state).replies.push_back(reply);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.shared.state).is_over = true;
        self.shared.changed.notify_all();
        // wakes the listener, which then sees that it is over
        let _ = TcpStream::connect(self.address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn serve(shared: &Shared, connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let socket = connection.try_clone()?;
    let stream: Box<dyn Stream> = match &shared.tls {
        Some(config) => {
            let tls = rustls::ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            Box::new(rustls::StreamOwned::new(tls, connection))
        }
        None => Box::new(connection),
    };
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line) {
            Ok(0) => return Ok(()),
            // TLS without having been asked for it, say
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                stream
                    .get_mut()
                    .write_all(b"HTTP/1.1 400 Nonsense\r\n\r\n")?;
                return socket.shutdown(Shutdown::Both);
            }
            outcome => drop(outcome?),
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
    let request = Request {
        line: lines.first().cloned().unwrap_or_default(),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect(),
    };
    let (reply, content) = {
        let mut state = lock(&shared.state);
        state.log.push(request.clone());
        let reply = state.replies.pop_front();
        let mut content = state.content.clone();
        if let Some(body) = state.files.get(request.path()) {
            content.body = body.clone();
        }
        (reply.unwrap_or_else(|| state.ever_after.clone()), content)
    };
    shared.changed.notify_all();
    if let Some(gate) = &reply.before {
        gate.pass();
    }
    if request.line.starts_with("CONNECT ") && shared.tunnels && reply.status.is_none() {
        return tunnel(&request, socket);
    }
    if let Some((bytes, again)) = &reply.raw {
        let stream = stream.get_mut();
        stream.write_all(bytes)?;
        while !again.is_empty() {
            stream.write_all(again)?;
        }
        stream.flush()?;
    } else {
        answer(shared, &request, &reply, &content, stream.get_mut())?;
    }
    match reply.resets {
        true => reset(&socket),
        false => drop(socket.shutdown(Shutdown::Both)),
    }
    Ok(())
}

fn answer(
    shared: &Shared,
    request: &Request,
    reply: &Reply,
    content: &Content,
    stream: &mut dyn Stream,
) -> io::Result<()> {
    let whole = reply.body.as_deref().unwrap_or(&content.body);
    let mut headers: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| headers.push((name.into(), value));
    if let Some(etag) = content.etag.clone() {
        add("ETag", etag);
    }
    if let Some(date) = content.last_modified.clone() {
        add("Last-Modified", date);
    }
    let range = request
        .header("range")
        .filter(|_| reply.status.is_none() && !reply.ignores_range)
        .filter(|_| {
            let wanted = request.header("if-range");
            wanted.is_none()
                || wanted == content.etag.as_deref()
                || wanted == content.last_modified.as_deref()
        })
        .and_then(|range| {
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .ok()
        });
    let (mut status, mut body) = (200, whole);
    match range {
        Some(first) if first < whole.len() => {
            (status, body) = (206, &whole[first..]);
            let range = format!("bytes {first}-{}/{}", whole.len() - 1, whole.len());
            add(
                "Content-Range",
                reply.content_range.clone().unwrap_or(range),
            );
        }
        Some(_) => {
            (status, body) = (416, &[]);
            let range = format!("bytes */{}", whole.len());
            add(
                "Content-Range",
                reply.content_range.clone().unwrap_or(range),
            );
        }
        None => {}
    }
    if reply.is_chunked {
        add("Transfer-Encoding", "chunked".into());
    } else if let Some(length) = reply.length.unwrap_or(Some(body.len() as u64)) {
        add("Content-Length", length.to_string());
    }
    add("Connection", "close".into());
    headers.retain(|(name, _)| {
        !reply
            .headers
            .iter()
            .any(|(n, _)| n.eq_ignore_ascii_case(name))
    });
    headers.extend(reply.headers.iter().cloned());
    let status = reply.status.unwrap_or(status);
    let mut head = format!("HTTP/1.1 {status} Whatever\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    stream.flush()?;

    let end = reply
        .cut
        .or(reply.stall)
        .unwrap_or(body.len())
        .min(body.len());
    let middle = reply.hold.as_ref().map_or(0, |(bytes, _)| *bytes).min(end);
    send(shared, reply, &body[..middle], stream)?;
    if let Some((_, gate)) = &reply.hold {
        gate.pass();
    }
    send(shared, reply, &body[middle..end], stream)?;
    if reply.stall.is_some() {
        drop(
            shared
                .changed
                .wait_while(lock(&shared.state), |state| !state.is_over),
        );
    } else if reply.is_chunked && reply.cut.is_none() {
        stream.write_all(b"0\r\n\r\n")?;
    }
    stream.flush()
}

/// Makes the close that follows an RST.
fn reset(socket: &TcpStream) {
    use std::os::fd::AsRawFd;
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option's value is a `linger` that lives until the call is over.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}

fn send(shared: &Shared, reply: &Reply, body: &[u8], stream: &mut dyn Stream) -> io::Result<()> {
    let most = reply.drip.map_or(64 << 10, |_| 1);
    for piece in body.chunks(most) {
        if let Some(pause) = reply.drip {
            std::thread::sleep(pause);
        }
        // first, so that whoever has read it finds it counted
        lock(&shared.state).sent += piece.len() as u64;
        let mut write = || {
            if reply.is_chunked {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            }
            stream.write_all(piece)?;
            match reply.is_chunked {
                true => stream.write_all(b"\r\n"),
                false => Ok(()),
            }
        };
        if let Err(error) = write() {
            lock(&shared.state).sent -= piece.len() as u64;
            return Err(error);
        }
    }
    stream.flush()
}

fn tunnel(request: &Request, mut client: TcpStream) -> io::Result<()> {
    let mut server = TcpStream::connect(request.target())?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut upstream, mut downstream) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut client, &mut upstream);
        let _ = upstream.shutdown(Shutdown::Write);
    });
    io::copy(&mut server, &mut downstream)?;
    downstream.shutdown(Shutdown::Both)
}
