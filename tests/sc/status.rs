//! `--status` and `--location`: they look, and make nothing.

use std::fs;

use crate::node::{Node, Sc};
use crate::server::{Gate, Reply, Server};

/// What `--status --json` prints.
#[track_caller]
fn json(sc: Sc) -> serde_json::Value {
    let output = sc.output();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_status_of_what_is_not_there_is_told_and_nothing_is_made() {
    let node = Node::new();
    node.sc("--status --name=r")
        .stdout("location    none\nstate       not loaded")
        .run();
    assert_eq!(
        json(node.sc("--status --json --name=r")),
        serde_json::json!({"version": 1, "location": null, "state": null, "holders": []})
    );
    node.sc("--status -d /nowhere --name=r")
        .stdout("location    none\nstate       not loaded")
        .run();
    node.assert_empty();
}

#[test]
fn the_status_of_what_is_loaded_names_the_holders() {
    let node = Node::new();
    let file = node.file("f", "f");
    let words = format!("--name=r file:{}", file.display());
    let mut job = node.job();
    assert_eq!(job.sc(&format!("--use {words} --id='task 7'")).0, 0);
    node.sc(&format!("--use {words}")).run();
    let (job_pid, me) = (job.pid(), std::process::id());
    let before = node.tree();
    node.sc("--status --name=r")
        .stdout(format!(
            "location    {}\n\
             state       OK\n\
             definition  file:{}\n\
             loaded      {{}} ago, in {{}} s\n\
             holder      pid {job_pid} (`task 7`), since {{}} ago\n\
             holder      pid {me}, since {{}} ago",
            node.path("r").display(),
            file.display()
        ))
        .run();
    let status = json(node.sc("--status --json --name=r"));
    assert_eq!(status["version"], 1);
    assert_eq!(status["location"], node.path("r").to_str().unwrap());
    assert_eq!(status["state"], "OK");
    assert_eq!(status["definition"], format!("file:{}", file.display()));
    assert_eq!(status["writer"], serde_json::Value::Null);
    assert_eq!(status["failure"], serde_json::Value::Null);
    assert!(status["loaded_unix_s"].as_u64().unwrap() > 1_600_000_000);
    let holders = status["holders"].as_array().unwrap();
    assert_eq!(holders.len(), 2);
    assert_eq!(holders[0]["kind"], "process");
    assert_eq!(holders[0]["pid"], job_pid);
    assert_eq!(holders[0]["id"], "task 7");
    assert_eq!(holders[0]["alive"], true);
    job.kill();
    node.sc("--status --name=r")
        .stdout(format!(
            "location    {{}}\nstate       OK\ndefinition  {{}}\nloaded      {{}} ago, in {{}} s\n\
             holder      pid {job_pid} (`task 7`), since {{}} ago, dead\n\
             holder      pid {me}, since {{}} ago"
        ))
        .run();
    let status = json(node.sc("--status --json --name=r"));
    assert_eq!(status["holders"][0]["alive"], false);
    assert_eq!(node.tree(), before, "it only looks");
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn the_status_during_a_load_takes_no_lock_and_names_the_loader() {
    let node = Node::new();
    let gate = Gate::new();
    let server = Server::new()
        .body("hello")
        .reply(Reply::ok().hold_after(2, &gate))
        .start();
    let mut sc = node
        .sc(&format!(
            "--use --name=r http:{}",
            server.url("/f?key=secret")
        ))
        .spawn();
    gate.wait_for_visitor();
    node.sc("--status --name=r")
        .stdout(format!(
            "location    {{}}\n\
             state       IN_PROGRESS\n\
             definition  http:{}\n\
             loading     by pid {} for {{}}\n\
             holder      pid {}, since {{}} ago, waits for the load",
            server.url("/f"),
            sc.pid(),
            std::process::id()
        ))
        .run();
    let status = json(node.sc("--status --json --name=r"));
    assert_eq!(status["state"], "IN_PROGRESS");
    assert_eq!(status["writer"], sc.pid());
    assert!(status["loading_for_s"].as_u64().is_some());
    assert_eq!(status["holders"][0]["provisional"], true);
    node.sc("--location --name=r").stdout("{}/the base/r").run();
    gate.open();
    assert_eq!(sc.end().0, 0, "{}", sc.said);
    node.sc("--unuse --name=r").run();
    node.assert_empty();
}

#[test]
fn the_status_after_a_failure_tells_it() {
    let node = Node::new();
    let none = node.outside("none");
    node.sc(&format!("--use --name=r file:{}", none.display()))
        .status(66)
        .stderr("sc: `{}/none` does not exist: {}")
        .run();
    node.sc("--status --name=r")
        .stdout(format!(
            "location    {{}}\n\
             state       BROKEN\n\
             definition  file:{0}\n\
             failure     `{0}` does not exist: no such file or directory ({{}} ago)",
            none.display()
        ))
        .run();
    let status = json(node.sc("--status --json --name=r"));
    assert_eq!(status["state"], "BROKEN");
    assert_eq!(status["failure"]["exit_status"], 66);
    assert_eq!(status["holders"], serde_json::json!([]));
}

#[test]
fn the_status_of_a_run_and_of_the_reference_s_readers() {
    let node = Node::new();
    let output = node
        .sc("--run --name=r --id=x -- sh -c")
        .arg(format!(
            "'{}' --status --name=r; '{}' --status --json --name=r",
            crate::node::SC,
            crate::node::SC
        ))
        .output();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[lines.len() - 2].starts_with("holder      `sc --run` of pid "),
        "{text}"
    );
    assert!(lines[lines.len() - 2].contains("(`x`), since "), "{text}");
    let status: serde_json::Value = serde_json::from_str(lines[lines.len() - 1]).unwrap();
    assert_eq!(status["holders"][0]["kind"], "run");
    node.assert_empty();

    fs::create_dir(node.path("r")).unwrap();
    let me = std::process::id();
    let text = format!("{{\"state\": \"OK\", \"readers\": [{me}], \"writer\": null}}");
    fs::write(node.path("r/repofile"), text).unwrap();
    node.sc("--status --name=r")
        .stdout(format!(
            "location    {{}}\nstate       OK\nholder      pid {me}, by the reference"
        ))
        .run();
    let status = json(node.sc("--status --json --name=r"));
    assert_eq!(
        status["holders"],
        serde_json::json!([{"kind": "reference", "pid": me, "alive": true}])
    );
    node.assert_paths(&["r", "r/repofile"]);
}

#[test]
fn the_location_is_where_it_is_or_would_be_and_nothing_is_made() {
    let node = Node::new();
    let (one, two) = (node.outside("one"), node.outside("two"));
    let list = format!("{}:{}", one.display(), two.display());
    let location = |words: &str| node.sc(words).env("SC_DIRECTORIES", &list);
    // neither can be used
    location("--location --name=r")
        .status(73)
        .stderr("sc: no directory will do: {}\nhint: {}")
        .run();
    fs::create_dir(&two).unwrap();
    location("--location --name=r")
        .stdout(format!("{}/r", two.display()))
        .stderr("sc: warning: `{}/one` cannot be used: no such file or directory")
        .run();
    fs::create_dir(&one).unwrap();
    location("--location --name=r")
        .stdout(format!("{}/r", one.display()))
        .run();
    location("--location")
        .stdout(one.display().to_string())
        .run();
    // where it is, though another comes first
    node.sc("--use --name=r").env("SC_DIRECTORIES", &two).run();
    location("--location --name=r")
        .stdout(format!("{}/r", two.display()))
        .run();
    location("--use --location --name=r")
        .stdout(format!("{}/r", two.display()))
        .run();
    location("--unuse --location --name=r")
        .stdout(format!("{}/r", one.display()))
        .run();
    assert!(crate::node::tree(&one).is_empty() && crate::node::tree(&two).is_empty());
}

#[test]
fn a_relative_location_is_spelled_as_the_reference_spelled_it() {
    let node = Node::new();
    fs::create_dir_all(node.outside("a/b")).unwrap();
    for (words, location) in [
        ("-d . --name=r", "r"),
        ("-d a --name=r", "a/r"),
        ("-d ./a//b/ --name=r//s/.", "a/b/r/s"),
        ("-d a/b/..", "a"),
        ("-d a/..", "."),
        ("-d .", "."),
        ("-d :/nowhere --name=r", "r"),
    ] {
        node.sc(&format!("--location {words}"))
            .stdout(location)
            .run();
    }
    // where it is used it is printed the same, and a job can go there
    node.sc("--use --location -d a --name=r")
        .stdout("a/r")
        .run();
    assert!(node.outside("a/r/repofile").exists());
    node.sc("--unuse -d ./a --name=r").run();
    assert!(crate::node::tree(&node.outside("a")).len() == 1);
}
