//! The words of the command line, as a user meets them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use crate::node::Node;

#[test]
fn without_an_action_nothing_is_printed_or_made() {
    let node = Node::new();
    for words in [
        "",
        "--name=r --size=10GB dummy",
        "-n r -- dummy",
        "-qv --name r",
    ] {
        node.sc(words).run();
    }
    node.assert_empty();
}

#[test]
fn a_usage_error_is_told_before_anything_is_touched() {
    let node = Node::new();
    let list = "hint: `sc --help` lists the options";
    let modules = "hint: known are {}";
    for (words, stderr) in [
        (
            "--use --foo",
            format!("sc: no such option: `--foo`\n{list}"),
        ),
        ("--use -x", format!("sc: no such option: `-x`\n{list}")),
        (
            "--use --nmae=x",
            "sc: no such option: `--nmae`\nhint: did you mean `--name`?".into(),
        ),
        ("--u", "sc: `--u` is ambiguous: `--unuse` or `--use`".into()),
        (
            "--use --location=1",
            "sc: `--location` takes no value".into(),
        ),
        (
            "--use -n",
            "sc: `-n` needs a value\nhint: write `-n NAME`".into(),
        ),
        (
            "--use --size=",
            "sc: `--size`: `` is not a size\nhint: {}`kB`{}`GiB`{}".into(),
        ),
        (
            "--use --size=1K",
            "sc: `--size`: `1K` is not a size\nhint: {}".into(),
        ),
        (
            "--use --name=../x",
            "sc: `--name`: `../x` leads out of the base directory\nhint: {}".into(),
        ),
        (
            "--use --name=/x",
            "sc: `--name`: `/x` is absolute\nhint: {}".into(),
        ),
        (
            "--use --name=.",
            "sc: `--name`: `.` names no directory\nhint: {}".into(),
        ),
        (
            "--use --name=a/.sc.b",
            "sc: `--name`: {} begins `.sc`\nhint: {}".into(),
        ),
        (
            "--use --file=a/b",
            "sc: `--file`: `a/b` is neither a name nor an absolute path\nhint: {}".into(),
        ),
        (
            "--use --pid=0",
            "sc: `--pid`: `0` is not a process id\nhint: {}".into(),
        ),
        (
            "--use --timeout=x",
            "sc: `--timeout`: `x` is not a duration\nhint: {}".into(),
        ),
        (
            "--use --progress=x",
            "sc: `--progress`: `x` is not a way to show progress\nhint: {}".into(),
        ),
        (
            "--use unknown:x",
            format!("sc: unknown module `unknown:x`\n{modules}"),
        ),
        (
            "--use -- --unuse",
            format!("sc: unknown module `--unuse`\n{modules}"),
        ),
        ("--use -", format!("sc: unknown module `-`\n{modules}")),
        (
            "--use tar",
            "sc: `tar` has no loader below it\nhint: {}".into(),
        ),
        (
            "--run dummy",
            "sc: `--run` needs a command after `--`\nhint: write {}".into(),
        ),
        (
            "--run --use -- true",
            "sc: `--run` and `--use` exclude each other\nhint: {}".into(),
        ),
        (
            "--status --use",
            "sc: `--status` and `--use` exclude each other\nhint: {}".into(),
        ),
        (
            "--use --json",
            "sc: `--json` means nothing without `--status` or `--list` or `--stats` or `--verify` or `--doctor`"
                .into(),
        ),
        (
            "--use --close",
            "sc: `--close` means nothing without `--run`".into(),
        ),
        (
            "--generate=x",
            "sc: `--generate`: `x` is nothing it can print\nhint: {}".into(),
        ),
    ] {
        node.sc(words).status(2).stderr(stderr).run();
    }
    node.sc("--use")
        .arg("")
        .status(2)
        .stderr(format!("sc: unknown module ``\n{modules}"))
        .run();
    node.assert_empty();
}

#[test]
fn a_wrong_variable_is_told_by_its_name() {
    let node = Node::new();
    for (name, value, stderr) in [
        (
            "SC_SIZE",
            "1KB",
            "sc: `SC_SIZE`: `1KB` is not a size\nhint: {}",
        ),
        (
            "SC_LOG",
            "loud",
            "sc: `SC_LOG`: `loud` is not a level of detail\nhint: {}",
        ),
        (
            "SC_OPTIONS",
            "-n 'x",
            "sc: in `SC_OPTIONS`: a quote is not closed",
        ),
        (
            "SC_OPTIONS",
            "--foo",
            "sc: in `SC_OPTIONS`: no such option: `--foo`\nhint: {}",
        ),
    ] {
        node.sc("--use")
            .env(name, value)
            .status(2)
            .stderr(stderr)
            .run();
        node.sc("--use").env(name, "").run();
        node.sc("--unuse").run();
    }
    node.assert_empty();
}

#[test]
fn what_was_typed_cannot_forge_a_second_line_or_show_a_secret() {
    let node = Node::new();
    node.sc("--use")
        .arg("a\nsc: all is well\u{1b}[2J")
        .status(2)
        .stderr("sc: unknown module `a\\nsc: all is well\\u{1b}[2J`\nhint: {}")
        .run();
    node.sc("--use ftp://me:secret@example.org/f?token=secret")
        .status(2)
        .stderr("sc: unknown module `ftp://***@example.org/f?***`\nhint: {}")
        .run();
    node.sc("--use --header=Authorization:secret")
        .status(2)
        .stderr("sc: no such option: `--header`\nhint: {}")
        .run();
}

#[test]
fn every_spelling_of_the_reference_names_the_same_repository() {
    let node = Node::new();
    for words in [
        "--location --name r",
        "--location --name=r",
        "-n r --location",
        "-nr --loc",
        "--l --na=r --size 1kB",
        "-n x --location dummy -n r",
        "--location --location -s1 -nr -frepofile",
        "--name r --location -- dummy",
    ] {
        node.sc(words).stdout("{}/the base/r").run();
    }
    node.sc("--location -n=r").stdout("{}/the base/=r").run();
    node.sc("--location --name=").stdout("{}/the base").run();
    node.sc("--location -n -r").stdout("{}/the base/-r").run();
    node.sc("--location -d . -n r").stdout("r").run();
    node.sc("--location -d .").stdout(".").run();
    node.sc("--location -d").arg("").stdout(".").run();
    node.sc("--location")
        .env("SC_NAME", "e")
        .stdout("{}/the base/e")
        .run();
    node.sc("--location -no")
        .env("SC_NAME", "e")
        .stdout("{}/the base/o")
        .run();
    node.sc("--location")
        .env("SC_OPTIONS", "-n 'o p'")
        .env("SC_NAME", "e")
        .stdout("{}/the base/o p")
        .run();
    node.assert_empty();
}

#[test]
fn a_name_need_not_be_utf8() {
    let node = Node::new();
    let output = node
        .sc("--location -n")
        .arg(OsStr::from_bytes(b"\xff"))
        .output();
    assert!(output.status.success());
    assert!(output.stdout.ends_with(b"/the base/\xff\n"));
}

#[test]
fn help_and_version_act_when_they_are_met() {
    let node = Node::new();
    let help = node.sc("--help").output();
    assert!(help.status.success() && help.stderr.is_empty());
    for words in ["-h", "--he", "-h --foo", "nonsense --use -h"] {
        assert_eq!(node.sc(words).output().stdout, help.stdout, "{words}");
    }
    node.sc("--foo -h")
        .status(2)
        .stderr("sc: no such option: `--foo`\nhint: {}")
        .run();
    node.sc("--version")
        .stdout(format!("sc {}", env!("CARGO_PKG_VERSION")))
        .run();
    // however wrong the surroundings are
    node.sc("--version")
        .env("SC_SIZE", "x")
        .stdout("sc {}")
        .run();
    node.assert_empty();
}

#[test]
fn the_man_page_and_the_help_have_the_same_options() {
    let node = Node::new();
    let words = |text: &[u8]| -> BTreeSet<String> {
        String::from_utf8_lossy(text)
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .filter(|word| word.starts_with("--") && word.len() > 2)
            .map(|word| word.trim_end_matches('-').to_owned())
            .collect()
    };
    let page = node.sc("--generate man").output().stdout;
    // the macro `Fl -use` is the option `--use`
    let page = String::from_utf8(page).unwrap().replace("Fl -", " --");
    assert_eq!(
        words(page.as_bytes()),
        words(&node.sc("--help").output().stdout)
    );
}

#[test]
fn completions_are_scripts_of_their_shells() {
    let node = Node::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = node.sc(&format!("--generate {shell}")).output();
        assert!(script.status.success() && script.stderr.is_empty());
        let path = node.file(shell, &script.stdout);
        // not every machine has every shell
        if let Ok(status) = std::process::Command::new(shell)
            .arg("-n")
            .arg(&path)
            .status()
        {
            assert!(status.success(), "{shell}");
        }
    }
}

#[test]
fn a_closed_stdout_or_stderr_is_no_panic() {
    let node = Node::new();
    let mut sc = node.sc("--generate man").command;
    let mut child = sc
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(child.wait().unwrap().code().is_some(), "{said}");
    assert!(!said.contains("panicked"), "{said}");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = node.sc("--foo").command.stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(2));
}
