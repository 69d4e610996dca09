//! What must hold of any input whatever: the bodies of the fuzz targets, and of a test of the
//! suite that runs the seeds and some thousand mutations of them. All of it by the library's
//! public interface; a property that does not hold is a panic.
//!
//! The first byte of most inputs says what is done to the rest before it is read: without it no
//! mutation would get past a checksum.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use shared_cache::conf::Conf;
use shared_cache::console::{Console, Level, ProgressMode};
use shared_cache::durable::Dir;
use shared_cache::error::{Error, Result};
use shared_cache::part::Part;
use shared_cache::plan::Plan;
use shared_cache::repository::journal::{Depth, Journal, Record, Replay};
use shared_cache::repository::layout;
use shared_cache::repository::repofile::Repofile;
use shared_cache::request::{Parsed, Request};
use shared_cache::stack::archive::Tar;
use shared_cache::stack::growing::Growth;
use shared_cache::stack::http::{Http, Network};
use shared_cache::stack::{Product, Settings, Site};
use shared_cache::units::{self, Bytes};

/// Where a module works, in the middle of things that it must leave alone.
struct Yard {
    root: tempfile::TempDir,
    stage: Dir,
    below: Dir,
    console: Console,
    settings: Settings,
    part: Option<Part>,
    growth: Arc<Growth>,
}

const ARCHIVE: &str = "a.tar";
const LIMIT: u64 = 16 << 20;

impl Yard {
    fn new() -> Yard {
        let root = tempfile::tempdir().unwrap();
        for dir in ["stage", "below", "canary", "canary/dir"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        fs::write(root.path().join("canary/file"), "sings").unwrap();
        let growth = Arc::new(Growth::default());
        growth.finish(0); // its length is for the progress alone
        let open = |name| Dir::open(&root.path().join(name)).unwrap();
        Yard {
            stage: open("stage"),
            below: open("below"),
            root,
            console: Console::new(Level::Quiet, ProgressMode::Never),
            settings: Settings {
                size: Bytes(LIMIT),
                retries: 0,
                stall_timeout: Duration::from_secs(5),
                network: Network::from_env(&|name| match name {
                    "http_proxy" | "https_proxy" => Some(server().0.to_string().into()),
                    _ => None,
                }),
                dirac_get: "false".into(),
            },
            part: None,
            growth,
        }
    }

    /// All that anybody could see of what is not the stage, in words.
    fn around(&self) -> String {
        let mut seen = String::new();
        for path in [
            "",
            "below",
            "below/a.tar",
            "canary",
            "canary/dir",
            "canary/file",
        ] {
            let path = self.root.path().join(path);
            let meta = path.symlink_metadata();
            let times = meta
                .as_ref()
                .map(|m| (m.ctime(), m.ctime_nsec(), m.nlink()));
            seen += &format!("{} {times:?}\n", path.display());
        }
        seen + &fs::read_to_string(self.root.path().join("canary/file")).unwrap_or_default()
    }
}

impl Site for Yard {
    fn dir(&self) -> &Dir {
        &self.stage
    }

    fn below(&self) -> Option<Product<'_>> {
        Some(Product {
            dir: &self.below,
            name: OsStr::new(ARCHIVE),
            growth: &self.growth,
        })
    }

    fn is_fresh(&self) -> bool {
        false
    }

    fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    fn set_part(&mut self, part: Option<Part>) -> Result<()> {
        self.part = part;
        Ok(())
    }

    fn grown(&mut self, _length: u64) {}

    fn discarded(&mut self) {}

    fn digested(&mut self, _: shared_cache::hash::Hash) {}

    fn made(
        &mut self,
        path: &Path,
        _: &nix::sys::stat::FileStat,
        _: Option<shared_cache::hash::Hash>,
    ) -> Result<()> {
        assert!(layout::is_below(path), "made {}", path.display());
        Ok(())
    }

    fn is_reserved(&self, name: &OsStr) -> bool {
        name == "repofile"
    }

    fn room(&self) -> Result<u64> {
        Ok(LIMIT)
    }

    fn inodes(&self) -> Result<u64> {
        Ok(2000)
    }

    fn limit(&self) -> Bytes {
        self.settings.size
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn console(&self) -> &Console {
        &self.console
    }
}

thread_local! {
    static YARD: RefCell<Yard> = RefCell::new(Yard::new());
}

/// Runs a module in a clean stage; nothing around it may change, and it never ends in a bug.
fn in_a_yard(prepare: impl FnOnce(&mut Yard), run: impl FnOnce(&mut Yard) -> Result<()>) {
    YARD.with_borrow_mut(|yard| {
        yard.part = None;
        prepare(yard);
        let before = yard.around();
        let outcome = run(yard);
        assert_eq!(yard.around(), before, "something else was changed");
        assert_no_bug(&outcome);
        yard.stage.clear().unwrap();
    });
}

fn assert_no_bug<T>(outcome: &Result<T>) {
    if let Err(error) = outcome {
        assert!(!matches!(error, Error::Internal { .. }), "{error}");
        assert!(!error.to_string().is_empty());
    }
}

/// Whatever is unpacked, nothing outside of the stage changes. Odd first byte: the sums of the
/// headers are put right first.
pub fn archive(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if how & 1 == 1 {
        put_sums_right(&mut bytes);
    }
    let tar = Tar {
        drop: false,
        strip: usize::from(how >> 1 & 1),
    };
    in_a_yard(
        |yard| fs::write(yard.root.path().join("below").join(ARCHIVE), &bytes).unwrap(),
        |yard| tar.run(yard),
    );
}

fn put_sums_right(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + 512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let octal = |digits: &[u8]| {
            let digits = digits.iter().filter(|digit| (b'0'..=b'7').contains(digit));
            digits.fold(0usize, |n, digit| n * 8 + usize::from(digit - b'0'))
        };
        let size = match header[156] {
            b'1'..=b'6' => 0,
            _ => octal(&header[124..135]),
        };
        at += 512 + size.next_multiple_of(512);
    }
}

/// A journal is read up to what is no record; what is written behind that is read, too; and all
/// its paths lead down. Odd first byte: the sums of the lines are put right first.
pub fn journal(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let mut file = Vec::new();
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        if how & 1 == 1 {
            let json = line.strip_suffix(b"\n").unwrap_or(line);
            file.extend_from_slice(format!("{:08x} ", crc32fast::hash(json)).as_bytes());
        }
        file.extend_from_slice(line);
    }
    YARD.with_borrow_mut(|yard| {
        let dir = &yard.stage;
        let path = yard.root.path().join("stage/journal");
        fs::write(&path, &file).unwrap();
        let all = Journal::read(dir, Depth::All).unwrap();
        let top = Journal::read(dir, Depth::Top).unwrap();
        let head = Journal::read_head(dir).unwrap();
        assert_eq!(all.is_some(), top.is_some());
        // a line that is whole but for its end may be torn: then there is no journal, nor damage
        let _ = Journal::is_damaged(dir).unwrap();
        assert!(all.is_none() || head.is_some());
        assert_eq!(fs::read(&path).unwrap(), file, "reading has changed it");
        if let Some(all) = all {
            assert_leads_down(&all);
            let (mut journal, before) = Journal::open(dir, Depth::All).unwrap().unwrap();
            assert_eq!(words_of(&before), words_of(&all));
            journal
                .append(&Record::Root {
                    made: !all.root_made,
                })
                .unwrap();
            journal.flush().unwrap();
            let after = Journal::read(dir, Depth::All).unwrap().unwrap();
            assert_eq!(after.root_made, !all.root_made, "what was appended is lost");
            let expected = Replay {
                root_made: !all.root_made,
                ..all
            };
            assert_eq!(words_of(&after), words_of(&with_a_stage(expected)));
        }
        yard.stage.clear().unwrap();
    });
}

/// A record of no stage makes the first one appear.
fn with_a_stage(mut replay: Replay) -> Replay {
    if replay.stages.is_empty() {
        replay.stages.push(Default::default());
    }
    replay
}

fn words_of(replay: &Replay) -> String {
    format!("{replay:?}")
}

fn assert_leads_down(replay: &Replay) {
    for path in replay.stages.iter().flat_map(|stage| stage.entries.keys()) {
        assert!(layout::is_below(path), "{}", path.display());
    }
    assert!(!replay.generation.contains('/'));
}

/// A repofile is refused, or it is read, and what is written back is read the same and keeps
/// what it does not know. Nobody is dropped for the asking, and nothing outside is touched.
pub fn repofile(data: &[u8]) {
    YARD.with_borrow_mut(|yard| {
        let name = Path::new("repofile");
        let path = yard.root.path().join("stage/repofile");
        fs::write(&path, data).unwrap();
        let before = yard.around();
        let read = Repofile::read(&yard.stage, name);
        assert_no_bug(&read);
        if let Ok(mut repofile) = read {
            let written = repofile.to_bytes();
            fs::write(&path, &written).unwrap();
            let again = Repofile::read(&yard.stage, name).unwrap();
            assert_eq!(again.to_bytes(), written, "it changes by being read");
            assert_eq!(again.state, repofile.state);
            assert_eq!(again.readers, repofile.readers);
            assert_eq!(again.writer, repofile.writer);
            assert!(again.entries().all(|path| layout::is_below(&path)));
            assert!(!again.holders().is_empty());
            keeps_the_unknown(data, &written);
            assert_no_bug(&repofile.reap(&yard.stage));
        }
        assert_eq!(yard.around(), before);
        yard.stage.clear().unwrap();
    });
}

fn keeps_the_unknown(read: &[u8], written: &[u8]) {
    let Ok(serde_json::Value::Object(read)) = serde_json::from_slice(read) else {
        return;
    };
    let written: serde_json::Value = serde_json::from_slice(written).unwrap();
    for (key, value) in read {
        if !["state", "readers", "writer", "sc"].contains(&key.as_str()) {
            assert_eq!(written[&key], value, "`{key}` is lost");
        }
    }
}

/// Any command line is a request or a usage error. The input is cut at NULs into words;
/// `SC_…=…` and `…_proxy=…` are variables.
pub fn words(data: &[u8]) {
    let mut words: Vec<OsString> = Vec::new();
    let mut variables: Vec<(&[u8], &[u8])> = Vec::new();
    for piece in data.split(|&byte| byte == 0) {
        let text = String::from_utf8_lossy(piece);
        let _ = text.parse::<Bytes>();
        if let Ok(duration) = units::duration(&text) {
            assert!(!units::spoken_duration(duration).is_empty());
        }
        let equals = piece.iter().position(|&byte| byte == b'=');
        match equals.map(|at| (&piece[..at], &piece[at + 1..])) {
            Some((name, value)) if name.starts_with(b"SC_") || name.ends_with(b"_proxy") => {
                variables.push((name, value));
            }
            _ => words.push(OsString::from_vec(piece.to_vec())),
        }
    }
    let env = |name: &str| {
        let mut found = variables.iter().filter(|(n, _)| *n == name.as_bytes());
        found
            .next()
            .map(|(_, value)| OsStr::from_bytes(value).to_owned())
    };
    match Request::read(&Conf::default(), words, &env) {
        Ok(Parsed::Request(request)) => {
            let plan = Plan::new(&request.stacks);
            assert!(!plan.signature.is_empty());
            for repository in request.repository.candidates() {
                assert!(!repository.location().as_os_str().is_empty());
            }
        }
        Ok(Parsed::Print(text)) => assert!(!text.is_empty()),
        Err(error) => {
            assert_eq!(error.exit_status(), 2, "{error}");
            assert!(!error.to_string().is_empty());
        }
    }
}

/// Whatever servers answer, there is a file within the limit or an error. The input is cut at
/// double NULs into answers; odd first byte: ten bytes of an earlier version are there already.
pub fn answers(data: &[u8]) {
    let Some((&how, bytes)) = data.split_first() else {
        return;
    };
    let mut answers = VecDeque::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\0\0") {
        answers.push_back(rest[..at].to_vec());
        rest = &rest[at + 2..];
    }
    answers.push_back(rest.to_vec());
    *server().1.lock().unwrap() = answers;
    let http = Http::parse(OsStr::new("http://user:secret@far.invalid/f?token")).unwrap();
    let name = http.file_name().to_owned();
    in_a_yard(
        |yard| {
            if how & 1 == 1 {
                let path = yard.root.path().join("stage").join(&name);
                fs::write(path, "0123456789").unwrap();
                yard.part = Some(Part {
                    url: "http://far.invalid/f".into(),
                    etag: (how & 2 == 0).then(|| "\"v\"".into()),
                    last_modified: Some("Sun, 06 Nov 1994 08:49:37 GMT".into()),
                    total: (how & 4 == 0).then_some(20),
                });
            }
        },
        |yard| {
            let outcome = http.run(yard);
            match &outcome {
                Ok(()) => {
                    let stat = yard.stage.lstat(&name).unwrap().expect("no file");
                    assert!(stat.st_size as u64 <= LIMIT);
                }
                Err(error) => {
                    let said = error.to_string();
                    assert!(matches!(error.exit_status(), 66 | 69 | 73), "{said}");
                    assert!(
                        !said.contains("secret") && !said.contains("token"),
                        "{said}"
                    );
                }
            }
            outcome
        },
    );
}

type Answers = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// A proxy that gives each request the next answer, whomever it is for: nothing that an answer
/// redirects to is ever asked.
fn server() -> &'static (SocketAddr, Answers) {
    static SERVER: OnceLock<(SocketAddr, Answers)> = OnceLock::new();
    SERVER.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Answers::default();
        let queue = answers.clone();
        std::thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                let mut head = Vec::new();
                let mut buffer = [0; 4096];
                while !head.ends_with(b"\r\n\r\n") {
                    match connection.read(&mut buffer) {
                        Ok(n @ 1..) => head.extend_from_slice(&buffer[..n]),
                        _ => break,
                    }
                }
                let answer = queue.lock().unwrap().pop_front().unwrap_or_default();
                let _ = connection.write_all(&answer);
                let _ = connection.shutdown(Shutdown::Write);
            }
        });
        (address, answers)
    })
}
