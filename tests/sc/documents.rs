//! What the documents promise: each example of the README and of the man page is run, in a shell,
//! with `sc` in its PATH.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::node::{Node, SC};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs a piece of shell where an example would be typed, and returns what it prints.
#[track_caller]
fn shell(node: &Node, example: &str) -> String {
    let bin = node.outside("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        symlink(SC, bin.join("sc")).unwrap();
        symlink(Path::new(ROOT).join("tests"), node.outside("tests")).unwrap();
        // the programs that examples speak of: each wants the unpacked archive
        for name in ["analyse", "job", "other-work"] {
            let path = node.file(
                name,
                "#!/bin/sh\nhead -n 2 \"${SC_LOCATION:-$1}\"/data/numbers.txt\n",
            );
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    let archive = format!("{ROOT}/tests/data/hello.tar.gz");
    let output = Command::new("sh")
        .arg("-euc")
        // the README speaks to one who has just fetched the sources
        .arg(format!("cargo() {{ shift 2; sc \"$@\"; }}\n{example}\n"))
        .env_clear()
        .env(
            "PATH",
            format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()),
        )
        .env("SC_CONF", "/nowhere/sc.conf")
        .env("SC_DIRECTORIES", node.base())
        .env("url", format!("file://{archive}"))
        .env("md5", sum(&archive))
        .current_dir(node.outside(""))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{example}\n{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn sum(path: &str) -> String {
    crate::node::md5(Path::new(path))
}

/// The blocks of the README that are shell.
fn examples() -> Vec<String> {
    let readme = fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let mut blocks = readme.split("```sh\n").skip(1);
    let examples: Vec<_> = blocks
        .by_ref()
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect();
    assert_eq!(
        examples.len(),
        6,
        "a new example needs a line in the test below"
    );
    examples
}

#[test]
fn each_example_of_the_readme_runs() {
    let node = Node::new();
    let examples = examples();
    assert_eq!(
        shell(&node, &examples[0]),
        "Hello from a repository that all jobs of this node share.\n"
    );
    node.assert_empty();
    for example in &examples[1..3] {
        assert_eq!(shell(&node, example), "1\n2\n", "{example}");
        node.assert_empty();
    }
    assert!(shell(&node, &examples[3]).contains("not loaded"));
    node.assert_empty();
    let kept = shell(&node, &examples[4]);
    assert!(
        kept.starts_with("1\n2\nSTATE") && kept.contains("\nkept "),
        "{kept}"
    );
    shell(&node, "sc --clear --name=calib");
    node.assert_empty();
    assert_eq!(shell(&node, &examples[5]), "1\n2\n");
    node.assert_empty();
}

#[test]
fn the_example_job_runs() {
    let node = Node::new();
    let printed = shell(
        &node,
        &format!(
            "URL=$url MD5=$md5 PROGRAM=./analyse SC_SIZE= {ROOT}/scripts/example-job --size=1MB"
        ),
    );
    assert_eq!(printed, "1\n2\n");
    node.assert_empty();
}

#[test]
fn the_epilog_cleans_up_writes_metrics_and_always_ends_well() {
    let node = Node::new();
    let metrics = node.outside("metrics");
    fs::create_dir(&metrics).unwrap();
    shell(
        &node,
        "sc --run --keep=1s -n old -- true; sc --run --keep=9h -n kept -- true",
    );
    let epilog = |before: &str| {
        // the site's PATH is not that of the tests
        let script = fs::read_to_string(format!("{ROOT}/scripts/slurm-epilog")).unwrap();
        let script: String = script
            .split_inclusive('\n')
            .filter(|l| !l.starts_with("PATH="))
            .collect();
        node.file("epilog", script);
        shell(
            &node,
            &format!(
                "{before}SC_METRICS={} sh epilog 2>epilog.err",
                metrics.display()
            ),
        )
    };
    assert_eq!(epilog("SC_UNIX_TIME=4000000000 "), "");
    node.assert_empty();
    let names = || {
        fs::read_dir(&metrics)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
    };
    assert_eq!(names().collect::<Vec<_>>(), ["sc.prom"]);
    let text = fs::read_to_string(metrics.join("sc.prom")).unwrap();
    assert!(text.contains("\nsc_data_bytes{directory="), "{text}");
    // whatever is wrong with the site's settings
    assert_eq!(epilog("SC_MAX_SIZE=nonsense "), "");
    assert!(
        fs::read_to_string(node.outside("epilog.err"))
            .unwrap()
            .contains("SC_MAX_SIZE")
    );
    assert_eq!(names().collect::<Vec<_>>(), ["sc.prom"]);
}

#[test]
fn each_example_of_the_man_page_runs() {
    let node = Node::new();
    let page = fs::read_to_string(format!("{ROOT}/man/sc.1")).unwrap();
    let section = page.split(".Sh EXAMPLES\n").nth(1).unwrap();
    let section = section.split(".Sh ").next().unwrap();
    let examples: Vec<String> = section
        .split(".Bd -literal -offset indent\n")
        .skip(1)
        .map(|block| {
            block
                .split(".Ed")
                .next()
                .unwrap()
                .replace("\\e", "\\")
                .replace("\\&", "")
        })
        .collect();
    assert_eq!(examples.len(), 13, "a new example needs a line below");
    // what the examples take from a site that has these files
    let archive = format!("{ROOT}/tests/data/hello.tar.gz");
    let here = |example: &str| {
        example
            .replace("/data/calib.tar", &archive)
            .replace("/data/a.tar", &archive)
            .replace("/data/b.tar.xz", "b.tar.gz")
            .replace("seq 100", "seq 5")
    };
    assert_eq!(shell(&node, &here(&examples[0])), "1\n2\n");
    node.assert_empty();
    assert_eq!(shell(&node, &here(&examples[1])), "1\n2\n");
    node.assert_empty();
    fs::copy(&archive, node.outside("b.tar.gz")).unwrap();
    let both = format!("{}\nsc --unuse -n both", here(&examples[2]));
    assert_eq!(shell(&node, &both), "");
    node.assert_empty();
    // who waits for whom is not always the same
    let many = format!("export SC_LOG=quiet\n{}", here(&examples[3]));
    assert_eq!(shell(&node, &many), "1\n2\n".repeat(5));
    node.assert_empty();
    let repo = "repo=\"-n calib http:$url md5:$md5 tar\"; set +e\n";
    assert_eq!(
        shell(&node, &format!("{repo}{}\nsc --unuse $repo", examples[4])),
        ""
    );
    node.assert_empty();
    assert!(shell(&node, &examples[5]).contains("not loaded"));
    assert!(shell(&node, &examples[6]).contains("locks exclude each other"));
    node.assert_empty();
    let kept = shell(&node, &here(&examples[7]));
    assert!(
        kept.starts_with("1\n2\nSTATE") && kept.contains("\nkept "),
        "{kept}"
    );
    assert_eq!(shell(&node, &here(&examples[8])), "1\n2\n");
    let cron = examples[9].split_once("root ").unwrap().1;
    for clean in [cron, &examples[10]] {
        assert_eq!(shell(&node, clean), "", "{clean}");
        assert!(node.path("calib").exists());
    }
    assert!(shell(&node, &examples[11]).contains("\n  hits             1 (50 %)\n"));
    shell(&node, &examples[12]);
    let metrics = fs::read_to_string(node.outside("sc.prom")).unwrap();
    assert!(metrics.contains("\nsc_data_bytes{directory="), "{metrics}");
    shell(&node, "sc --clear -n calib");
    node.assert_empty();
}
