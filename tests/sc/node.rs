//! A node for one test: a base directory of its own, `sc` with a clean environment, and jobs,
//! which are real shells that can be killed.
//!
//! What an invocation does not say it says is wrong: [`Sc::run`] compares status, stdout and
//! stderr, and unsaid means 0 and empty. In an expected text `{}` stands for anything within a
//! line.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

pub const SC: &str = env!("CARGO_BIN_EXE_sc");

pub struct Node {
    temporary: tempfile::TempDir,
    base: PathBuf,
}

impl Node {
    pub fn new() -> Node {
        let temporary = tempfile::tempdir().expect("a temporary directory");
        // a path with a blank: whoever forgets to quote fails here
        let base = temporary.path().join("the base");
        fs::create_dir(&base).unwrap();
        Node { temporary, base }
    }

    /// The base directory, `-d` of every invocation.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// A path in the base directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.base.join(name)
    }

    /// A path outside the base directory, for files a test needs.
    pub fn outside(&self, name: impl AsRef<Path>) -> PathBuf {
        self.temporary.path().join(name)
    }

    /// Writes a file outside the base directory.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.outside(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// `sc` with these words, split at blanks, in this node's base directory. Its parent, and so
    /// its holder, is the test process: tell several holders apart by [`Job`] or `--id`.
    pub fn sc(&self, words: &str) -> Sc {
        let words = words.split_whitespace().map(OsString::from);
        self.sc_words(words)
    }

    pub fn sc_words<W: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = W>) -> Sc {
        let mut command = Command::new(SC);
        clean(&mut command);
        command
            .env("SC_DIRECTORIES", &self.base)
            .current_dir(self.temporary.path());
        command.args(words);
        Sc {
            command,
            status: 0,
            stdout: String::new(),
            stderr: String::new(),
        }
    }

    /// A job: a shell that lives until it is told to end, or killed.
    pub fn job(&self) -> Job {
        let mut command = Command::new("sh");
        clean(&mut command);
        command
            .env("SC_DIRECTORIES", &self.base)
            .env("SC", SC)
            .current_dir(self.temporary.path());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Job {
            child,
            stdin: Some(stdin),
            stdout,
        }
    }

    /// Everything below the base directory: path → what it is (`dir`, `-> target`, content).
    pub fn tree(&self) -> BTreeMap<String, String> {
        tree(&self.base)
    }

    /// Nothing of anybody's is left in the base directory.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!(
            self.tree(),
            BTreeMap::new(),
            "the base directory is not empty"
        );
    }

    /// The repofile of the repository `name`.
    #[track_caller]
    pub fn repofile(&self, name: &str) -> serde_json::Value {
        let text = fs::read_to_string(self.path(name).join("repofile")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The base directory holds exactly these paths.
    #[track_caller]
    pub fn assert_paths(&self, expected: &[&str]) {
        let tree = self.tree();
        let paths: Vec<&str> = tree.keys().map(String::as_str).collect();
        assert_eq!(paths, expected);
    }
}

/// No variable of the test's surroundings reaches `sc`, but what a process needs to run.
fn clean(command: &mut Command) {
    command.env_clear();
    // nor the defaults of the machine it runs on
    command.env("SC_CONF", "/nowhere/sc.conf");
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}

pub fn tree(base: &Path) -> BTreeMap<String, String> {
    let mut tree = BTreeMap::new();
    let mut pending = vec![base.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = path
                .strip_prefix(base)
                .unwrap()
                .to_string_lossy()
                .into_owned();
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            let what = if meta.is_dir() {
                pending.push(path);
                "dir".to_owned()
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap_or_default().display())
            } else {
                String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned()
            };
            tree.insert(name, what);
        }
    }
    tree
}

/// One invocation of `sc`, and what it must say.
pub struct Sc {
    pub command: Command,
    status: i32,
    stdout: String,
    stderr: String,
}

impl Sc {
    /// One more word, whatever is in it.
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Sc {
        self.command.arg(word);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Sc {
        self.command.env(name, value);
        self
    }

    /// The exit status it must have.
    pub fn status(mut self, status: i32) -> Sc {
        self.status = status;
        self
    }

    /// What it must print, whole.
    pub fn stdout(mut self, text: impl Into<String>) -> Sc {
        self.stdout = text.into();
        self
    }

    /// What it must say, whole.
    pub fn stderr(mut self, text: impl Into<String>) -> Sc {
        self.stderr = text.into();
        self
    }

    /// Runs it and compares.
    #[track_caller]
    pub fn run(self) -> Output {
        let Sc {
            mut command,
            status,
            stdout,
            stderr,
        } = self;
        let output = command.stdin(Stdio::null()).output().expect("sc");
        let said = String::from_utf8_lossy(&output.stderr);
        let printed = String::from_utf8_lossy(&output.stdout);
        let code = output
            .status
            .code()
            .unwrap_or(-output.status.signal().unwrap_or(0));
        assert!(
            code == status && fits(&stdout, &printed) && fits(&stderr, &said),
            "{command:?}\n  status {code}, expected {status}\n  stdout {printed:?}\n  expected \
             {stdout:?}\n  stderr:\n{said}  expected:\n{stderr}"
        );
        output
    }

    /// Runs it without comparing.
    pub fn output(mut self) -> Output {
        self.command.stdin(Stdio::null()).output().expect("sc")
    }

    /// Starts it; stdout and stderr are pipes.
    pub fn spawn(mut self) -> Running {
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sc");
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Running {
            child,
            stderr,
            said: String::new(),
        }
    }
}

/// Does `text` have the form of `pattern`, in which `{}` stands for anything within a line?
pub fn fits(pattern: &str, text: &str) -> bool {
    let (mut patterns, mut texts) = (pattern.lines(), text.lines());
    loop {
        match (patterns.next(), texts.next()) {
            (None, None) => return true,
            (Some(pattern), Some(text)) if line_fits(pattern, text) => {}
            _ => return false,
        }
    }
}

fn line_fits(pattern: &str, line: &str) -> bool {
    let mut pieces = pattern.split("{}");
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else {
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// An sc at work.
pub struct Running {
    pub child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    pub said: String,
}

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Reads stderr until a line has `text` in it.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> &mut Running {
        loop {
            let mut line = String::new();
            let read = self.stderr.read_line(&mut line).unwrap();
            self.said.push_str(&line);
            assert!(
                read > 0,
                "ended without saying {text:?}; it said:\n{}",
                self.said
            );
            if line.contains(text) {
                return self;
            }
        }
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for its end: exit status (minus the signal that killed it), stdout; what it said is
    /// in `said`.
    pub fn end(&mut self) -> (i32, String) {
        use std::io::Read;
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        self.said.push_str(&rest);
        let mut stdout = String::new();
        if let Some(mut pipe) = self.child.stdout.take() {
            pipe.read_to_string(&mut stdout).unwrap();
        }
        let status = self.child.wait().unwrap();
        (
            status.code().unwrap_or(-status.signal().unwrap_or(0)),
            stdout,
        )
    }
}

/// A test that failed leaves nobody running.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell that runs what it is told, line by line: the parent, and so the holder, of its `sc`s.
pub struct Job {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Job {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Runs `sc` with these words (shell syntax); status, stdout and stderr together.
    pub fn sc(&mut self, words: &str) -> (i32, String) {
        self.sh(&format!("\"$SC\" {words}"))
    }

    /// Runs a line of shell.
    pub fn sh(&mut self, line: &str) -> (i32, String) {
        let stdin = self.stdin.as_mut().expect("not ended");
        writeln!(stdin, "{{ {line}\n}} 2>&1; echo \"<<end $?>>\"").unwrap();
        let mut text = String::new();
        loop {
            let mut line = String::new();
            assert!(
                self.stdout.read_line(&mut line).unwrap() > 0,
                "the job died; it said {text}"
            );
            if let Some((before, end)) = line.split_once("<<end ") {
                text.push_str(before);
                return (end.trim_end().trim_end_matches(">>").parse().unwrap(), text);
            }
            text.push_str(&line);
        }
    }

    /// SIGKILL, and waits until it is dead.
    pub fn kill(mut self) {
        self.die();
    }

    /// SIGKILL; what it had started lives on.
    pub fn die(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until everything it had started has ended (or closed its stdout); what that said.
    pub fn rest(&mut self) -> String {
        use std::io::Read;
        let mut text = String::new();
        self.stdout.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A named pipe, to hold an `SC_PAUSE_AT` open: [`Fifo::reached`] returns when sc is there, and
/// dropping what it returns lets sc go on.
pub struct Fifo(PathBuf);

impl Fifo {
    pub fn new(node: &Node) -> Fifo {
        Fifo::named(node, "fifo")
    }

    pub fn named(node: &Node, name: &str) -> Fifo {
        let path = node.outside(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        Fifo(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The value of `SC_PAUSE_AT`.
    pub fn at(&self, label: &str) -> String {
        format!("{label}:{}", self.0.display())
    }

    /// Blocks until sc waits at the point.
    pub fn reached(&self) -> fs::File {
        fs::OpenOptions::new().write(true).open(&self.0).unwrap()
    }
}

/// A tar archive by GNU tar: (path, content) pairs; a path that ends in `/` is a directory.
pub fn tar_gz(node: &Node, name: &str, members: &[(&str, &str)]) -> PathBuf {
    let tree = node.outside(format!("{name}.tree"));
    for (path, content) in members {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if path.as_os_str().as_bytes().ends_with(b"/") {
            fs::create_dir_all(&path).unwrap();
        } else {
            fs::write(&path, content).unwrap();
        }
    }
    let archive = node.outside(name);
    let names: Vec<&OsString> = Vec::new();
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(&tree)
        .arg("-czf")
        .arg(&archive)
        .args(names)
        .arg("--sort=name");
    let mut tops: Vec<OsString> = fs::read_dir(&tree)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    tops.sort();
    assert!(tar.args(tops).status().unwrap().success());
    archive
}

/// The md5 of a file in hex.
pub fn md5(path: &Path) -> String {
    use md5::Digest;
    let digest = md5::Md5::digest(fs::read(path).unwrap());
    base16ct::lower::encode_string(&digest)
}

/// The inode of a path.
pub fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}
