//! `--doctor`: would the other actions work here, and who said what.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::node::{Node, SC, Sc};

/// The doctor on a node whose authorities do not depend on the machine.
fn doctor(node: &Node, words: &str) -> Sc {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    node.sc(&format!("--doctor {words}"))
        .env("SSL_CERT_FILE", format!("{data}/ca.pem"))
        .env("X509_CERT_DIR", format!("{data}/../authorities"))
}

/// Those of its lines that begin with one of these words.
fn lines(sc: Sc, status: i32, words: &[&str]) -> Vec<String> {
    let output = sc.output();
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().filter(|line| {
        words
            .iter()
            .any(|word| line.split(' ').next() == Some(word))
    });
    lines.map(str::to_owned).collect()
}

#[test]
fn the_doctor_finds_nothing_wrong_and_leaves_nothing() {
    let node = Node::new();
    let base = node.base().display();
    let authorities = node.outside("authorities");
    fs::create_dir(&authorities).unwrap();
    let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ca.pem");
    fs::copy(ca, authorities.join("12345678.0")).unwrap();
    node.sc("--doctor --size=1kB")
        .env("SSL_CERT_FILE", ca)
        .env("X509_CERT_DIR", &authorities)
        .stdout(format!(
            "ok       {base}: owner uid {{}}, mode {{}}\n\
             ok       {base}: {{}}, {{}} and {{}} inodes free\n\
             {{}} {base}: shared{{}}\n\
             ok       {base}: locks exclude each other\n\
             ok       {base}: renames without replacing\n\
             ok       {base}: makes hard links\n\
             ok       holder: `{{}}` (pid {me})\n\
             ok       proxy for http: none\n\
             ok       proxy for https: none\n\
             ok       authorities for https: 1 from `{ca}` (`SSL_CERT_FILE`)\n\
             ok       authorities for https: 1 from `{authorities}` (`X509_CERT_DIR`)\n\
             setting  SC_FILE: repofile\n\
             setting  SC_DIRECTORIES: {base} (from `SC_DIRECTORIES`)\n\
             setting  SC_ALLOW_NETWORK_FS: not set\n\
             setting  SC_SIZE: 1kB (from the command line)\n\
             setting  SC_NAME: none: DIR itself\n\
             setting  SC_SHARE: user\n\
             setting  SC_READ_ONLY: not set\n\
             setting  SC_KEEP: 0\n\
             setting  SC_EXPIRES: never\n\
             setting  SC_MAX_SIZE: no limit\n\
             setting  SC_MIN_FREE: 0\n\
             setting  SC_STATS_DIR: none\n\
             setting  SC_PID: the parent of sc\n\
             setting  SC_JOB: not set\n\
             setting  SC_LEASE: never\n\
             setting  SC_ID: not set\n\
             setting  SC_TIMEOUT: never\n\
             setting  SC_RETRIES: 3\n\
             setting  SC_STALL_TIMEOUT: 60\n\
             setting  SC_LOG: not set\n\
             setting  SC_PROGRESS: auto: {{}}\n\
             setting  SC_DIRAC_GET: dirac-dms-get-file",
            me = std::process::id(),
            authorities = authorities.display(),
        ))
        .run();
    node.assert_empty();
}

#[test]
fn a_network_file_system_is_told_with_the_way_out() {
    let node = Node::new();
    let base = node.base().display().to_string();
    let doctor = |words: &str| {
        let output = node
            .sc(&format!("--doctor {words}"))
            .env("SC_FILE_SYSTEM", "6969")
            .output();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code().unwrap(), said)
    };
    let (status, said) = doctor("");
    assert_eq!(status, 73, "{said}");
    let line = format!("error    `{base}` is on a network file system (NFS)");
    assert!(said.starts_with(&line), "{said}");
    assert!(said.contains("--allow-network-fs"), "{said}");
    let (status, said) = doctor("--allow-network-fs");
    assert_eq!(status, 0, "{said}");
    let line = format!("ok       {base}: locks exclude each other\n");
    assert!(said.contains(&line), "{said}");
    node.assert_empty();
}

#[test]
fn each_setting_is_told_with_who_said_it() {
    let node = Node::new();
    let conf = node.file(
        "sc.conf",
        "--timeout=9\n--no-wait\n--retries=7\n--size=1kB\n-v\n",
    );
    fs::set_permissions(&conf, fs::Permissions::from_mode(0o644)).unwrap();
    let sc = |words: &str| {
        node.sc(&format!("--doctor {words}"))
            .env("SC_CONF", &conf)
            .env("SC_OPTIONS", "--name=a --id=x")
            .env("SC_NAME", "b")
            .env("SC_SIZE", "2kB")
            .env("SC_PROGRESS", "")
    };
    let settings = lines(sc("--id=y"), 0, &["setting"]);
    for expected in [
        format!("SC_TIMEOUT: --no-wait (from `{}`, line 2)", conf.display()),
        format!("SC_RETRIES: 7 (from `{}`, line 3)", conf.display()),
        format!("SC_LOG: --verbose (from `{}`, line 5)", conf.display()),
        "SC_SIZE: 2kB (from `SC_SIZE`)".into(),
        "SC_NAME: a (from `SC_OPTIONS`)".into(),
        "SC_ID: y (from the command line)".into(),
        "SC_FILE: repofile".into(),
    ] {
        assert!(
            settings.contains(&format!("setting  {expected}")),
            "{expected}: {settings:#?}"
        );
    }
    let output = sc("--json").output();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["version"], &json["status"]), (&1.into(), &0.into()));
    let settings = json["settings"].as_array().unwrap();
    assert!(settings.contains(&serde_json::json!({
        "variable": "SC_RETRIES",
        "value": "7",
        "origin": conf.to_str(),
        "line": 3,
    })));
    let findings = json["findings"].as_array().unwrap();
    assert!(findings.contains(&serde_json::json!({
        "verdict": "ok",
        "check": "locks",
        "text": format!("{}: locks exclude each other", node.base().display()),
    })));
}

#[test]
fn a_directory_that_will_not_do_is_an_error_where_no_other_does() {
    let node = Node::new();
    let bad = ["error", "warning"];
    let base = node.base().display().to_string();
    let both = |words: &str| doctor(&node, words).env("SC_DIRECTORIES", format!("/nowhere:{base}"));
    let authorities = "error    authorities for https: no certificate can be read from what \
                       `X509_CERT_DIR` names";
    assert_eq!(
        lines(both(""), 69, &bad),
        ["warning  /nowhere: no such file or directory", authorities]
    );
    let both = |words: &str| both(words).env("X509_CERT_DIR", "");
    assert_eq!(
        lines(both(""), 0, &bad),
        ["warning  /nowhere: no such file or directory"]
    );
    let found = lines(both("--size=9999TB"), 73, &bad);
    assert_eq!(found[0], "error    /nowhere: no such file or directory");
    assert!(
        found[1].ends_with("free of the 9999.0 TB needed (`--size`)"),
        "{found:?}"
    );
    // what is in the way of one repository is no reason to take another directory
    fs::write(node.path("r"), "").unwrap();
    assert_eq!(
        lines(both("-n r"), 77, &["error"]),
        [format!("error    `{base}/r` is no directory")]
    );
    fs::remove_file(node.path("r")).unwrap();

    fs::set_permissions(node.base(), fs::Permissions::from_mode(0o777)).unwrap();
    let alone = |words: &str| doctor(&node, words).env("X509_CERT_DIR", "");
    assert_eq!(
        lines(alone(""), 77, &bad),
        [format!(
            "error    {base}: owner uid {}, mode 0777: anybody may delete what is in it; `chmod +t` \
             ends that",
            shared_cache::process::user()
        )]
    );
    fs::set_permissions(node.base(), fs::Permissions::from_mode(0o1777)).unwrap();
    assert_eq!(lines(alone(""), 0, &bad), [""; 0]);
    if shared_cache::process::user() != 0 {
        fs::set_permissions(node.base(), fs::Permissions::from_mode(0o500)).unwrap();
        let denied = format!("error    {base}: permission denied");
        assert_eq!(lines(alone(""), 73, &bad), [denied]);
        fs::set_permissions(node.base(), fs::Permissions::from_mode(0o700)).unwrap();
    }
    node.assert_empty();
}

#[test]
fn what_does_not_work_on_the_file_system_is_told() {
    let node = Node::new();
    let base = node.base().display().to_string();
    let bad = ["error", "warning", "note"];
    let sc = |fault: &str| {
        doctor(&node, "")
            .env("X509_CERT_DIR", "")
            .env("SC_FAULT_AT", fault)
    };
    let found = |fault: &str, status| {
        let mut found = lines(sc(fault), status, &bad);
        found.retain(|line| !line.contains(": shared?"));
        node.assert_empty();
        found
    };
    // mkdir, create, trial lock, mkdir, rename, link
    assert_eq!(
        found("5:22", 0),
        [format!(
            "note     {base}: no rename without replacing: files are linked instead, directories \
             made anew"
        )]
    );
    assert_eq!(
        found("6:1", 0),
        [format!(
            "note     {base}: no hard links: the Python `sc` cannot work there"
        )]
    );
    assert_eq!(
        found("3:37", 73),
        [format!(
            "error    {base}: locks do not work: no record locks available"
        )]
    );
    let io = found("2:5", 74);
    assert!(
        io[0].starts_with(&format!("error    {base}: cannot create `")),
        "{io:?}"
    );
    assert!(io[0].ends_with("/lock`: i/o error"), "{io:?}");
    let full = found("1:28", 73);
    assert!(full[0].ends_with(": no space left on device"), "{full:?}");
}

/// Runs a piece of shell where `source` is mounted on the base directory, for it alone: status,
/// stdout, stderr. `None`: that takes root.
fn privately(node: &Node, source: &Path, script: &str) -> Option<(i32, String, String)> {
    let mut sc = doctor(node, "").env("X509_CERT_DIR", "");
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "sh", "-c"])
        .arg(format!("mount --bind \"$1\" \"$2\" || exit 99\n{script}"))
        .args(["sh".as_ref(), source, node.base()])
        .env_clear()
        .current_dir(node.outside(""));
    for (name, value) in sc.command.get_envs() {
        unshare.env(name, value.unwrap_or_default());
    }
    sc.command = unshare;
    let output = sc.env("SC", SC).env("SLURM_JOB_ID", "4711").output();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    match output.status.code() {
        Some(status @ (0 | 73)) => Some((status, text(output.stdout), text(output.stderr))),
        _ => {
            eprintln!("skipped: mounting takes root: {output:?}");
            None
        }
    }
}

const PRIVATE: [(&str, &str); 2] = [
    (
        "systemd-private-1f-job.service-x",
        "private to one service (systemd's `PrivateTmp`): it is `",
    ),
    (
        "4711",
        "private to one job (Slurm's `job_container` does that): it is `",
    ),
];

#[test]
fn a_directory_of_one_job_alone_is_no_place() {
    let node = Node::new();
    for (name, why) in PRIVATE {
        let source = node.outside(name);
        fs::create_dir(&source).unwrap();
        let Some((status, printed, _)) = privately(&node, &source, "exec \"$SC\" --doctor") else {
            return;
        };
        let expected = format!("error    {}: {why}", node.base().display());
        assert!(printed.contains(&expected), "{printed}");
        assert_eq!(status, 73, "{printed}");
    }
}

#[test]
fn a_load_into_a_directory_of_one_job_alone_is_warned_of_once() {
    let node = Node::new();
    for (name, why) in PRIVATE {
        let source = node.outside(name);
        fs::create_dir(&source).unwrap();
        let script = "\"$SC\" --use -n r && \"$SC\" --use -n r --id=2 && \"$SC\" --unuse -n r && \
                      \"$SC\" --unuse -n r --id=2";
        let Some((status, printed, said)) = privately(&node, &source, script) else {
            return;
        };
        let base = node.base().display();
        let (before, after) = (
            format!("sc: warning: `{base}` is {why}"),
            "(`--directories`)\n",
        );
        assert!(said.starts_with(&before) && said.ends_with(after), "{said}");
        assert_eq!(
            (status, said.lines().count(), printed.as_str()),
            (0, 1, ""),
            "{said}"
        );
        assert_eq!(fs::read_dir(&source).unwrap().count(), 0);
    }
}

#[test]
fn a_parent_that_ends_with_the_command_is_no_holder() {
    let node = Node::new();
    let mut job = node.job();
    let (status, said) = job.sh("timeout 60 \"$SC\" --doctor");
    assert_eq!(status, 0, "{said}");
    let warning = said.lines().find(|line| line.starts_with("warning "));
    let warning = warning.unwrap_or_default();
    assert!(
        warning.starts_with("warning  holder: `timeout` (pid "),
        "{said}"
    );
    let pid = job.pid();
    let (_, said) = job.sh("timeout 60 \"$SC\" --doctor --pid=$$");
    assert!(
        said.contains(&format!("ok       holder: pid {pid}\n")),
        "{said}"
    );
    let (_, said) = job.sh("\"$SC\" --doctor; :");
    assert!(
        said.contains(&format!("ok       holder: `sh` (pid {pid})\n")),
        "{said}"
    );
    drop(job);
    let gone = format!("error    holder: there is no process {pid} (`--pid`)");
    assert_eq!(
        lines(node.sc(&format!("--doctor --pid={pid}")), 2, &["error"]),
        [gone]
    );
}

#[test]
fn proxies_are_told_without_their_passwords() {
    let node = Node::new();
    let sc = || {
        doctor(&node, "")
            .env("X509_CERT_DIR", "")
            .env("http_proxy", "http://user:secret@squid:3128")
            .env("ALL_PROXY", "http://user:secret@gate/")
            .env("no_proxy", "localhost,.example.org")
    };
    let found = lines(sc(), 0, &["ok"]);
    for expected in [
        "ok       proxy for http: http://squid:3128 (`http_proxy`)",
        "ok       proxy for https: http://gate (`ALL_PROXY`)",
        "ok       no proxy for: localhost,.example.org (`no_proxy`)",
    ] {
        assert!(
            found.iter().any(|line| line == expected),
            "{expected}: {found:#?}"
        );
    }
    assert!(
        !found.concat().contains("secret") && !found.concat().contains("user"),
        "{found:?}"
    );
    // in any other value neither, and no value makes a line
    let sneaky = sc()
        .arg("--id=http://user:secret@h/f?secret")
        .env("SC_NAME", "a\nerror    b");
    let found = lines(sneaky, 0, &["setting", "error"]);
    assert!(!found.concat().contains("secret"), "{found:?}");
    let name = "setting  SC_NAME: a\\nerror    b (from `SC_NAME`)";
    assert!(found.iter().any(|line| line == name), "{found:#?}");
    assert!(
        !found.iter().any(|line| line.starts_with("error")),
        "{found:?}"
    );
    let socks = lines(
        sc().env("http_proxy", "socks5://user:secret@h"),
        69,
        &["error"],
    );
    assert!(
        socks[0].contains("`http_proxy`") && !socks[0].contains("secret"),
        "{socks:?}"
    );
    assert_eq!(
        lines(
            doctor(&node, "")
                .env("X509_CERT_DIR", "")
                .env("HTTP_PROXY", "http://secret@h"),
            0,
            &["warning"]
        ),
        ["warning  proxy for http: `HTTP_PROXY` in capitals is not read; set `http_proxy`"]
    );
}
