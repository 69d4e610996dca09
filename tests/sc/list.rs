//! `--list`: what is there.

use std::fs;

use crate::keep::At;
use crate::node::{Fifo, Node};

#[test]
fn nothing_is_listed_where_nothing_is() {
    let node = Node::new();
    fs::create_dir_all(node.path("a/b")).unwrap();
    fs::write(node.path("a/repofile"), "not one of ours").unwrap();
    node.sc("--list").run();
    node.sc("--list -d /nowhere").run();
    node.sc("--list --json")
        .stdout("{\"version\":1,\"repositories\":[]}")
        .run();
    node.assert_paths(&["a", "a/b", "a/repofile"]);
}

#[test]
fn each_repository_has_a_row_whatever_its_state_and_its_base() {
    let node = Node::new();
    let file = node.file("data", vec![b'x'; 100_000]);
    let two = node.outside("two");
    fs::create_dir(&two).unwrap();
    let load = format!("file:{}", file.display());
    node.sc(&format!("--use --name=used --id=1 {load}"))
        .at(0)
        .run();
    node.sc(&format!("--use --name=used --id=2 {load}"))
        .at(1)
        .run();
    node.sc(&format!(
        "--run --name=p/kept --keep=12h --expires=20h {load} -- true"
    ))
    .at(2)
    .run();
    node.sc(&format!("--run --keep=1h {load} -- true"))
        .at(2)
        .env("SC_DIRECTORIES", &two)
        .run();
    node.sc("--use --name=wrong file:/nowhere/x")
        .at(2)
        .status(66)
        .stderr("{}")
        .run();
    node.sc(&format!("--use --name=killed {load}"))
        .at(2)
        .env("SC_CRASH_AT", "25")
        .status(-9)
        .run();
    let fifo = Fifo::new(&node);
    let mut loader = node
        .sc(&format!("--use --name=begun {load}"))
        .at(2)
        .env("SC_PAUSE_AT", fifo.at("publish"))
        .spawn();
    let pause = fifo.reached();
    let before = node.tree();
    let both = format!(
        "{}:{}:{}",
        node.base().display(),
        two.display(),
        node.base().display()
    );
    node.sc("--list")
        .at(4)
        .env("SC_DIRECTORIES", &both)
        .stdout(
            "STATE        SIZE HOLDERS  LAST USE       KEPT FOR       LOCATION\n\
             loading  {} kB       0  2 h 0 min ago  -              {}/begun\n\
             orphan   {} kB       0  {} ago{}  -              {}/killed\n\
             kept     {} kB       0  2 h 0 min ago  10 h 0 min     {}/p/kept\n\
             loaded   {} kB       2  3 h 0 min ago  -              {}/used\n\
             broken   {} kB       0  2 h 0 min ago  -              {}/wrong\n\
             kept     {} kB       0  2 h 0 min ago  0 s            {}/two",
        )
        .run();
    let output = node
        .sc("--list --json")
        .at(4)
        .env("SC_DIRECTORIES", &both)
        .output();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let kept = &list["repositories"][2];
    let start = 1_800_000_000u64;
    assert_eq!(kept["name"], "p/kept");
    assert_eq!(kept["state"], "kept");
    assert_eq!(kept["location"], node.path("p/kept").to_str().unwrap());
    assert_eq!(kept["holders"], 0);
    assert_eq!(kept["used_unix_s"], start + 2 * 3600);
    assert_eq!(kept["kept_until_unix_s"], start + 14 * 3600);
    assert_eq!(kept["expires_unix_s"], start + 22 * 3600);
    assert_eq!(
        kept["owner_uid"],
        std::os::unix::fs::MetadataExt::uid(&fs::metadata(node.base()).unwrap())
    );
    assert!(kept["size_bytes"].as_u64().unwrap() >= 100_000);
    assert_eq!(list["repositories"][5]["name"], serde_json::Value::Null);
    assert_eq!(node.tree(), before, "it only looks");
    drop(pause);
    assert_eq!(loader.end().0, 0);
}

#[test]
fn a_name_with_a_newline_is_one_row() {
    let node = Node::new();
    node.sc("--use").arg("--name=a\nb").run();
    node.sc("--list").stdout("STATE{}\nloaded{}/a\\nb").run();
    node.sc("--unuse").arg("--name=a\nb").run();
    node.assert_empty();
}

#[test]
fn a_hundred_repositories_are_a_hundred_rows_of_one_listing() {
    let node = Node::new();
    node.sc("--use --name=one").run();
    let copy = |from: &str, to: &str| {
        fs::create_dir(node.path(to)).unwrap();
        for entry in fs::read_dir(node.path(from)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), node.path(to).join(entry.file_name())).unwrap();
        }
    };
    for n in 0..99 {
        copy("one", &format!("copy{n}"));
        copy(".sc.one", &format!(".sc.copy{n}"));
    }
    for n in 0..99 {
        use std::os::unix::fs::PermissionsExt;
        let control = node.path(format!(".sc.copy{n}"));
        fs::set_permissions(control, fs::Permissions::from_mode(0o700)).unwrap();
    }
    // the same instant each time: the list tells how long ago each was used
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let at_once = |words: &str| node.sc(words).env("SC_UNIX_TIME", now.to_string());
    let output = at_once("--list").output();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 101);
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert!(
        lines.iter().all(|line| line.starts_with("loaded ")),
        "{text}"
    );
    at_once("--gc").run();
    assert_eq!(at_once("--list").output().stdout, text.as_bytes());
}
