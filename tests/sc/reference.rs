//! Beside the Python `sc` on the same directory: its lock is taken as it takes it, its loads are
//! waited for, its repositories are joined, and what it left dead is no obstacle.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use crate::node::{Fifo, Node, inode};

/// A process that lives until it is dropped: a reference's shell.
struct Shell(Child);

impl Shell {
    fn new() -> Shell {
        let child = Command::new("sleep")
            .arg("1000")
            .stdout(Stdio::null())
            .spawn();
        Shell(child.unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A repofile as the reference writes it.
fn write_repofile(node: &Node, state: &str, readers: &[u32], writer: Option<u32>) {
    fs::create_dir_all(node.path("r")).unwrap();
    let writer = writer.map_or("null".into(), |pid| pid.to_string());
    fs::write(
        node.path("r/repofile"),
        format!("{{\"state\": \"{state}\", \"readers\": {readers:?}, \"writer\": {writer}}}"),
    )
    .unwrap();
}

fn link(node: &Node) -> PathBuf {
    node.path("r/repofile.lock")
}

/// A lock as the reference takes it, with its claim; `age` seconds since its lease began.
fn lock(node: &Node, content: &str, age: u64) -> PathBuf {
    let claim = node.path("r/repofile.lock|host.example.org|4711|8123");
    let content = content.replace("{}", claim.to_str().unwrap());
    fs::write(&claim, content).unwrap();
    let end = SystemTime::now() + Duration::from_secs(15) - Duration::from_secs(age);
    let times = FileTimes::new().set_accessed(end).set_modified(end);
    File::open(&claim).unwrap().set_times(times).unwrap();
    fs::hard_link(&claim, link(node)).unwrap();
    claim
}

#[test]
fn around_every_commit_of_the_repofile_its_lock_is_held_as_the_reference_holds_it() {
    for (action, label) in [("--use", "rename"), ("--unuse", "teardown")] {
        let node = Node::new();
        if action == "--unuse" {
            node.sc("--use --name=r").run();
        }
        let fifo = Fifo::new(&node);
        let mut sc = node
            .sc(&format!("{action} --name=r"))
            .env("SC_PAUSE_AT", fifo.at(label))
            .spawn();
        let pause = fifo.reached();
        let meta = fs::symlink_metadata(link(&node)).unwrap();
        assert!(meta.is_file());
        assert_eq!(meta.nlink(), 2, "the lock and its claim");
        let content = fs::read_to_string(link(&node)).unwrap();
        assert_eq!(
            inode(Path::new(&content)),
            meta.ino(),
            "the content is the claim's path"
        );
        let rest = content
            .strip_prefix(link(&node).to_str().unwrap())
            .expect("spelled as the directory was");
        let fields: Vec<&str> = rest.split('|').collect();
        assert_eq!(fields.len(), 4, "{content}");
        assert_eq!(fields[2], sc.pid().to_string());
        fields[3].parse::<i64>().unwrap();
        let now = SystemTime::now();
        assert!(
            meta.modified().unwrap() > now + Duration::from_secs(5),
            "the lease lies ahead"
        );
        drop(pause);
        assert_eq!(sc.end(), (0, String::new()), "{}", sc.said);
        assert!(!link(&node).exists());
        if action == "--use" {
            node.sc("--unuse --name=r").run();
        }
        node.assert_empty();
    }
}

#[test]
fn during_a_load_the_lock_is_free() {
    use crate::server::{Gate, Reply, Server};
    let node = Node::new();
    let gate = Gate::new();
    let server = Server::new()
        .body("hello")
        .reply(Reply::ok().hold_after(2, &gate))
        .start();
    let mut sc = node
        .sc(&format!("--use --name=r http:{}", server.url("/f")))
        .spawn();
    gate.wait_for_visitor();
    let names: Vec<String> = node
        .tree()
        .into_keys()
        .filter(|path| path.starts_with("r/"))
        .collect();
    assert_eq!(names, ["r/repofile"]);
    let repofile = node.repofile("r");
    assert_eq!(repofile["state"], "IN_PROGRESS");
    assert_eq!(repofile["writer"], sc.pid(), "the loader itself");
    assert_eq!(
        repofile["readers"],
        serde_json::json!([std::process::id()]),
        "so that no reference takes it for unused"
    );
    gate.open();
    assert_eq!(sc.end(), (0, String::new()), "{}", sc.said);
    assert_eq!(node.repofile("r")["writer"], serde_json::Value::Null);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn a_reference_that_loads_is_waited_for_and_what_it_loaded_is_joined() {
    let node = Node::new();
    let shell = Shell::new();
    let file = node.file("f", "ours");
    let words = format!("--name=r file:{}", file.display());
    for state in ["UNKNOWN", "IN_PROGRESS", "OK"] {
        write_repofile(&node, state, &[], Some(shell.pid()));
        let mut sc = node.sc(&format!("--use {words}")).spawn();
        sc.wait_for(&format!(
            "sc: waiting: pid {} is loading `{}`",
            shell.pid(),
            node.path("r").display()
        ));
        // done: the file is there, then the state says so
        fs::write(node.path("r/f"), "the reference's").unwrap();
        write_repofile(&node, "OK", &[shell.pid()], None);
        assert_eq!(sc.end(), (0, String::new()), "{}", sc.said);
        assert_eq!(node.tree()["r/f"], "the reference's", "{state}");
        let readers = node.repofile("r")["readers"].clone();
        assert_eq!(
            readers,
            serde_json::json!([shell.pid(), std::process::id()])
        );
        // the reader of the reference stays when we leave
        node.sc(&format!("--unuse {words}")).run();
        assert_eq!(
            node.repofile("r")["readers"],
            serde_json::json!([shell.pid()])
        );
        assert_eq!(node.tree()["r/f"], "the reference's");
        node.sc(&format!("--unuse --pid={} {words}", shell.pid()))
            .run();
        node.assert_empty();
    }
}

#[test]
fn a_reference_that_dies_while_it_loads_is_followed() {
    let node = Node::new();
    let shell = Shell::new();
    let file = node.file("f", "ours");
    write_repofile(&node, "UNKNOWN", &[shell.pid()], Some(shell.pid()));
    let mut sc = node
        .sc(&format!("--use --name=r file:{}", file.display()))
        .spawn();
    sc.wait_for("sc: waiting: pid ");
    drop(shell);
    assert_eq!(sc.end(), (0, String::new()), "{}", sc.said);
    assert_eq!(node.tree()["r/f"], "ours");
    assert_eq!(
        node.repofile("r")["readers"],
        serde_json::json!([std::process::id()]),
        "the dead one is dropped"
    );
    node.sc("--unuse --name=r").run();
    // the directory was there before us
    node.assert_paths(&["r"]);
}

#[test]
fn waiting_for_a_reference_has_a_limit_too() {
    let node = Node::new();
    let shell = Shell::new();
    write_repofile(&node, "UNKNOWN", &[shell.pid()], Some(shell.pid()));
    let before = node.tree()["r/repofile"].clone();
    let pid = shell.pid();
    node.sc("--use --name=r --no-wait")
        .status(75)
        .stderr(format!(
            "sc: did not wait for `{{}}/r` (`--no-wait`): pid {pid} is loading it"
        ))
        .run();
    node.sc("--use --name=r --timeout=0.2")
        .status(75)
        .stderr(format!(
            "sc: waiting: pid {pid} is loading `{{}}/r`\n\
             sc: gave up waiting for `{{}}/r` after 0.2 s (`--timeout`): pid {pid} is loading it"
        ))
        .run();
    assert_eq!(node.tree()["r/repofile"], before, "nothing was changed");
}

#[test]
fn readers_of_the_reference_count_until_they_are_dead() {
    let node = Node::new();
    let (one, two) = (Shell::new(), Shell::new());
    let file = node.file("f", "ours");
    let words = format!("--name=r file:{}", file.display());
    write_repofile(&node, "OK", &[one.pid(), two.pid()], None);
    fs::write(node.path("r/f"), "theirs").unwrap();
    node.sc(&format!("--use {words}")).run();
    let dead = one.pid();
    drop(one);
    node.sc(&format!("-v --unuse {words}"))
        .stderr(format!("sc: pid {dead} is dead and holds no more"))
        .run();
    assert_eq!(
        node.repofile("r")["readers"],
        serde_json::json!([two.pid()])
    );
    assert_eq!(node.tree()["r/f"], "theirs");
    // what other modules bring is not there, and it is in use
    let other = node.file("g", "g");
    node.sc(&format!("--use --name=r file:{}", other.display()))
        .status(74)
        .stderr(format!(
            "sc: `{{}}/r` is damaged: `g` is gone, and it is held by pid {}\nhint: {{}}",
            two.pid()
        ))
        .run();
    assert_eq!(node.tree()["r/f"], "theirs");
}

#[test]
fn a_fresh_lock_is_waited_for_and_left_alone() {
    let node = Node::new();
    let shell = Shell::new();
    write_repofile(&node, "UNKNOWN", &[shell.pid()], None);
    let claim = lock(&node, "{}", 0);
    let mut sc = node.sc("-v --use --name=r").spawn();
    sc.wait_for("sc: waiting for the lock `");
    assert_eq!(inode(&link(&node)), inode(&claim));
    // as the reference gives it back
    fs::remove_file(link(&node)).unwrap();
    fs::remove_file(&claim).unwrap();
    assert_eq!(sc.end().0, 0, "{}", sc.said);
    node.sc("--unuse --name=r").run();
    assert_eq!(
        node.repofile("r")["readers"],
        serde_json::json!([shell.pid()])
    );
}

#[test]
fn a_stale_lock_is_broken_with_its_claim() {
    let node = Node::new();
    write_repofile(&node, "UNKNOWN", &[], None);
    lock(&node, "{}", 15 + 10 + 2);
    node.sc("--use --name=r --no-wait").run();
    node.sc("--unuse --name=r").run();
    node.assert_paths(&["r"]);
}

#[test]
fn a_stale_lock_that_names_a_file_elsewhere_costs_nobody_that_file() {
    for content in ["/victim", "../../victim", "", "{}/../../victim"] {
        let node = Node::new();
        let victim = node.file("victim", "v");
        let near = node.path("victim");
        fs::write(&near, "v").unwrap();
        write_repofile(&node, "UNKNOWN", &[], None);
        let claim = lock(
            &node,
            &content.replace("/victim", victim.to_str().unwrap()),
            60,
        );
        node.sc("--use --name=r --no-wait").run();
        assert!(victim.exists() && near.exists(), "{content}");
        node.sc("--unuse --name=r").run();
        // a claim that nobody names is nobody's to delete
        fs::remove_file(&claim).unwrap();
        node.assert_paths(&["r", "victim"]);
    }
    // the name of a claim, but of another inode
    let node = Node::new();
    write_repofile(&node, "UNKNOWN", &[], None);
    let other = node.path("r/repofile.lock|other|1|2");
    fs::write(&other, "another's claim").unwrap();
    let claim = lock(&node, other.to_str().unwrap(), 60);
    node.sc("--use --name=r --no-wait").run();
    assert_eq!(fs::read_to_string(&other).unwrap(), "another's claim");
    assert!(claim.exists());
}

#[test]
fn what_is_no_file_in_the_place_of_the_lock_is_refused_and_not_followed() {
    let node = Node::new();
    let victim = node.file("victim", "v");
    for make in [
        &(|path: &Path, _: &Path| fs::create_dir(path).unwrap()) as &dyn Fn(&Path, &Path),
        &|path, victim| symlink(victim, path).unwrap(),
    ] {
        fs::create_dir(node.path("r")).unwrap();
        make(&link(&node), &victim);
        node.sc("--use --name=r")
            .status(77)
            .stderr(
                "sc: `{}/r/repofile.lock` stands where the repofile's lock belongs, and is no file\n\
                 hint: move it away, or choose another `--name`",
            )
            .run();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "v");
        fs::remove_file(link(&node))
            .or_else(|_| fs::remove_dir(link(&node)))
            .unwrap();
        fs::remove_dir(node.path("r")).unwrap();
        node.sc("--use --name=r").run();
        node.sc("--unuse --name=r").run();
        node.assert_empty();
    }
}

#[test]
fn a_repofile_of_the_reference_is_rewritten_with_its_own_keys() {
    let node = Node::new();
    write_repofile(&node, "OK", &[], None);
    let file = node.file("f", "f");
    let words = format!("--name=r file:{}", file.display());
    fs::write(node.path("r/f"), "theirs").unwrap();
    node.sc(&format!("--use {words}")).run();
    let json = node.repofile("r");
    assert_eq!(json["state"], "OK");
    assert_eq!(json["readers"], serde_json::json!([std::process::id()]));
    assert_eq!(json["writer"], serde_json::Value::Null);
    assert_eq!(node.tree()["r/f"], "theirs");
    node.sc(&format!("--unuse {words}")).run();
    node.assert_empty();
}
