//! Sockets, proxies and TLS below ureq, which does the HTTP.
//!
//! ureq's own connectors won't do, for four reasons that were tested:
//!
//! * they send CONNECT for plain http too, which a stock squid refuses (403) and no cache can
//!   answer: here plain http goes to the proxy as `GET http://…` (RFC 9112 §3.2.2);
//! * with a timeout set they swallow EINTR, so Ctrl-C during a stall would wait for its end;
//! * a SOCKS proxy, or a certificate they can't use, is a panic;
//! * a host name is looked up even where only the proxy can.
//!
//! Every wait is a `poll` of at most [`SLICE`], after which the signals are looked at: EINTR
//! alone is not enough, because the kernel may hand a signal to another thread.
//!
//! One connection serves one request: a load asks once, and again only after a failure.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use super::network::Proxy;
use super::tls;
use super::url::Url;
use crate::signal;

/// Name, connection, proxy and TLS together; stated in the manual.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What may come that is no content: a head (ureq itself takes at most 64 kB), the size of a
/// chunk, what follows the last one. More, and the server will never come to the point.
const CHATTER: u64 = 1 << 20;

/// The longest time a signal can go unseen.
const SLICE: Duration = Duration::from_secs(1);

/// A failure that ureq has no word for. It travels inside an [`io::Error`].
#[derive(Debug)]
pub struct Trouble {
    pub problem: String,
    /// Would another attempt end the same way?
    pub is_lasting: bool,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Trouble {}

fn trouble(problem: impl Into<String>) -> io::Error {
    io::Error::other(Trouble {
        problem: problem.into(),
        is_lasting: false,
    })
}

fn lasting(problem: impl Into<String>) -> io::Error {
    io::Error::other(Trouble {
        problem: problem.into(),
        is_lasting: true,
    })
}

/// Makes the connection for one request.
#[derive(Debug, Clone)]
pub struct Route {
    pub url: Url,
    pub proxy: Option<Proxy>,
    /// Given whenever the URL or its proxy is https.
    pub tls: Option<Arc<ClientConfig>>,
    /// How long the other side may be silent; zero = as long as it likes.
    pub stall_timeout: Duration,
    /// Bytes that came since the last byte of content. Whoever takes the content sets it to 0.
    pub chatter: Arc<AtomicU64>,
}

impl Route {
    fn connect(&self) -> io::Result<Wire> {
        let until = Instant::now() + CONNECT_TIMEOUT;
        let first = self.proxy.as_ref().map_or(&self.url, |Proxy(url)| url);
        let mut stream = Stream::Plain(Socket {
            stream: dial(first, until)?,
            patience: Patience::Until(until),
        });
        let mut absolute = None;
        if let Some(Proxy(proxy)) = &self.proxy {
            if proxy.is_secure() {
                stream = self.secure(stream, proxy)?;
            }
            if self.url.is_secure() {
                tunnel(&mut stream, &self.url, proxy)?;
            } else {
                absolute = Some(Absolute {
                    origin: self.url.origin(),
                    authorization: proxy.authorization(),
                });
            }
        }
        if self.url.is_secure() {
            stream = self.secure(stream, &self.url)?;
        }
        stream.socket().patience = Patience::Each(self.stall_timeout);
        Ok(Wire {
            stream,
            buffers: LazyBuffers::new(256 << 10, 16 << 10),
            absolute,
            chatter: self.chatter.clone(),
        })
    }

    fn secure(&self, stream: Stream, server: &Url) -> io::Result<Stream> {
        let host = server.bare_host();
        let config = self
            .tls
            .clone()
            .ok_or_else(|| lasting("TLS is not set up"))?;
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| lasting(format!("`{host}` is no name a certificate can have")))?;
        let refused = |error: &rustls::Error| lasting(tls::explain(error, host));
        let mut connection =
            ClientConnection::new(config, name).map_err(|error| refused(&error))?;
        let mut stream = stream;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).map_err(|error| {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
                inner.map(refused).unwrap_or(error)
            })?;
        }
        Ok(Stream::Secure(Box::new(StreamOwned::new(
            connection, stream,
        ))))
    }
}

impl Connector for Route {
    type Out = Wire;

    fn connect(&self, _: &ConnectionDetails, _: Option<()>) -> Result<Option<Wire>, ureq::Error> {
        Ok(Some(Route::connect(self)?))
    }
}

/// Names are looked up when the connection is made: perhaps the proxy's, not the URL's.
#[derive(Debug)]
pub struct NoNames;

impl Resolver for NoNames {
    fn resolve(
        &self,
        _: &Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

/// `getaddrinfo(3)` and `connect(2)` can't be interrupted: they have a thread of their own, which
/// is left to itself when we can't wait any longer. It blocks all signals, so that they reach us.
fn dial(server: &Url, until: Instant) -> io::Result<TcpStream> {
    /// A signal waits so long at most; the connection itself ends the wait at once.
    const LOOK: Duration = Duration::from_millis(200);
    let (host, port) = (server.bare_host().to_owned(), server.port());
    let at = format!("{}:{port}", server.host());
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("connect".into())
        .spawn(move || {
            let _ = nix::sys::signal::SigSet::all().thread_block();
            let _ = sender.send(connect_any(&host, port, until));
        })?;
    loop {
        checked()?;
        let left = until.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left.min(LOOK)) {
            Ok(outcome) => {
                let stream = outcome?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(mpsc::RecvTimeoutError::Timeout) if left.is_zero() => {
                let seconds = CONNECT_TIMEOUT.as_secs();
                return Err(trouble(format!(
                    "no connection to `{at}` within {seconds} s"
                )));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(trouble(format!("no connection to `{at}`")));
            }
        }
    }
}

/// Tries the addresses of a host one after the other, each for its share of the time: a host
/// with a dead IPv6 address is no dead host.
fn connect_any(host: &str, port: u16, until: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<_> = (host, port)
        .to_socket_addrs()
        .map_err(|error| {
            let text = error.to_string();
            let reason = text.rsplit(": ").next().unwrap_or(&text).to_lowercase();
            trouble(format!("cannot look up `{host}`: {reason}"))
        })?
        .collect();
    let mut failure = trouble(format!("`{host}` has no address"));
    for (n, address) in addresses.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - n) as u32;
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(100))) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let reason = crate::error::spoken(&error);
                failure = trouble(format!("no connection to `{address}`: {reason}"));
            }
        }
    }
    Err(failure)
}

/// `CONNECT` (RFC 9110 §9.3.6).
fn tunnel(stream: &mut Stream, target: &Url, proxy: &Url) -> io::Result<()> {
    /// A reply head longer than this is none.
    const LIMIT: usize = 64 << 10;
    let address = format!("{}:{}", target.host(), target.port());
    let mut request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n");
    if let Some(authorization) = proxy.authorization() {
        request += &format!("Proxy-Authorization: {authorization}\r\n");
    }
    stream.write_all((request + "\r\n").as_bytes())?;
    stream.flush()?;
    let mut head = Vec::new();
    let mut byte = [0];
    // byte by byte: what follows the head belongs to TLS
    while !head.ends_with(b"\r\n\r\n") && head.len() < LIMIT {
        if stream.read(&mut byte)? == 0 {
            break;
        }
        head.push(byte[0]);
    }
    let place = format!("proxy `{}`", proxy.origin());
    let status = head
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| str::from_utf8(rest.get(2..5)?).ok()?.parse::<u16>().ok());
    match status {
        Some(200..=299) => Ok(()),
        Some(407) => Err(lasting(format!(
            "{place} wants a user and a password (407)"
        ))),
        Some(status @ (408 | 429 | 500..)) => Err(trouble(format!(
            "{place} cannot reach `{address}`: status {status}"
        ))),
        Some(status) => Err(lasting(format!(
            "{place} refuses `{address}`: status {status}"
        ))),
        None => Err(trouble(format!("{place} gave no answer that is HTTP"))),
    }
}

/// How long to wait for the other side.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// While connecting: for all of it together.
    Until(Instant),
    /// Later: for each byte. Zero is for ever.
    Each(Duration),
}

#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    patience: Patience,
}

impl Socket {
    fn wait(&self, events: PollFlags) -> io::Result<()> {
        let until = match self.patience {
            Patience::Until(until) => Some(until),
            Patience::Each(Duration::ZERO) => None,
            Patience::Each(limit) => Some(Instant::now() + limit),
        };
        if is_ready(self.stream.as_fd(), events, until)? {
            return Ok(());
        }
        Err(match self.patience {
            Patience::Until(_) => trouble(format!(
                "no connection within {} s",
                CONNECT_TIMEOUT.as_secs()
            )),
            Patience::Each(limit) => trouble(format!(
                "not one byte for {} s (`--stall-timeout`)",
                limit.as_secs_f64()
            )),
        })
    }

    fn each_try<T>(
        &mut self,
        events: PollFlags,
        mut deed: impl FnMut(&mut TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match deed(&mut self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait(events)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => checked()?,
                outcome => return outcome,
            }
        }
    }
}

/// A pending signal as an error; whoever gets it asks [`signal::check`] which one.
fn checked() -> io::Result<()> {
    signal::check().map_err(|error| lasting(error.to_string()))
}

/// Waits until `fd` is ready; false when the time is up.
fn is_ready(fd: BorrowedFd, events: PollFlags, until: Option<Instant>) -> io::Result<bool> {
    loop {
        checked()?;
        let left = until.map_or(SLICE, |until| {
            until.saturating_duration_since(Instant::now())
        });
        // rounded up, else the last millisecond would be spent spinning
        let slice = left.min(SLICE) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(slice).unwrap_or(PollTimeout::ZERO);
        match nix::poll::poll(&mut [PollFd::new(fd, events)], timeout) {
            Ok(0) if until.is_some() && left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.each_try(PollFlags::POLLIN, |stream| stream.read(buffer))
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.each_try(PollFlags::POLLOUT, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket, with TLS around it: twice, if an https proxy leads to an https server.
#[derive(Debug)]
enum Stream {
    Plain(Socket),
    Secure(Box<StreamOwned<ClientConnection, Stream>>),
}

impl Stream {
    fn socket(&mut self) -> &mut Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Secure(secure) => secure.sock.socket(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(buffer),
            Stream::Secure(secure) => secure.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.write(bytes),
            Stream::Secure(secure) => secure.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.flush(),
            Stream::Secure(secure) => secure.flush(),
        }
    }
}

/// What a proxy must be told when plain http goes through it.
#[derive(Debug)]
struct Absolute {
    origin: String,
    authorization: Option<String>,
}

impl Absolute {
    /// Puts the origin before the target of the request line, and our credentials after it.
    fn rewrite(&self, head: &[u8]) -> Option<Vec<u8>> {
        let target = head.strip_prefix(b"GET ")?;
        let end = target.windows(2).position(|pair| pair == b"\r\n")? + 2;
        let mut rewritten = Vec::with_capacity(head.len() + 256);
        rewritten.extend_from_slice(b"GET ");
        rewritten.extend_from_slice(self.origin.as_bytes());
        rewritten.extend_from_slice(&target[..end]);
        if let Some(authorization) = &self.authorization {
            rewritten.extend_from_slice(b"Proxy-Authorization: ");
            rewritten.extend_from_slice(authorization.as_bytes());
            rewritten.extend_from_slice(b"\r\n");
        }
        rewritten.extend_from_slice(&target[end..]);
        Some(rewritten)
    }
}

/// A connection as ureq uses it. Timeouts are the socket's own, so ureq's are ignored.
pub struct Wire {
    stream: Stream,
    buffers: LazyBuffers,
    absolute: Option<Absolute>,
    chatter: Arc<AtomicU64>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Transport for Wire {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let output = &self.buffers.output()[..amount];
        match self.absolute.take() {
            Some(absolute) => {
                // ureq writes as much of the head at once as fits, so the request line is whole
                let head = absolute
                    .rewrite(output)
                    .ok_or_else(|| lasting("the URL is too long for a proxy"))?;
                self.stream.write_all(&head)?;
            }
            None => self.stream.write_all(output)?,
        }
        self.stream.flush()?;
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        if self.chatter.fetch_add(amount as u64, Ordering::Relaxed) > CHATTER {
            return Err(trouble("the server goes on, but not with the file").into());
        }
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Secure(_))
    }
}
