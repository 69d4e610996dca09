//! `/etc/sc.conf`: a site's defaults, for those it can be trusted by.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::node::{Node, Sc};

/// A file that nobody else may write, whatever the umask.
fn conf(node: &Node, text: &str) -> std::path::PathBuf {
    let path = node.file("sc.conf", text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    path
}

fn sc(node: &Node, words: &str) -> Sc {
    node.sc(words).env("SC_CONF", node.outside("sc.conf"))
}

#[test]
fn a_default_of_the_site_is_the_last_that_is_asked() {
    let node = Node::new();
    conf(
        &node,
        "# this site\n--name='the site'   # all of it\n--size\n1kB\n",
    );
    let location = |name: &str| format!("{}\n", node.path(name).display());
    sc(&node, "--location").stdout(location("the site")).run();
    sc(&node, "--location")
        .env("SC_NAME", "variable")
        .stdout(location("variable"))
        .run();
    sc(&node, "--location")
        .env("SC_OPTIONS", "-n options")
        .env("SC_NAME", "variable")
        .stdout(location("options"))
        .run();
    sc(&node, "--location -n line")
        .env("SC_OPTIONS", "-n options")
        .stdout(location("line"))
        .run();
    // an empty variable is an unset one
    sc(&node, "--location")
        .env("SC_NAME", "")
        .stdout(location("the site"))
        .run();
}

#[test]
fn every_action_obeys_the_defaults_of_the_site() {
    let node = Node::new();
    conf(&node, "-n site");
    sc(&node, "--use").run();
    node.assert_paths(&[
        ".sc.site",
        ".sc.site/CACHEDIR.TAG",
        ".sc.site/journal",
        ".sc.site/lock",
        ".sc.site/repofile.last",
        "site",
        "site/repofile",
    ]);
    sc(&node, "--status")
        .stdout(format!(
            "location    {}\nstate       OK\n{{}}\n{{}}\nholder      {{}}",
            node.path("site").display()
        ))
        .run();
    sc(&node, "--unuse").run();
    sc(&node, "--run -- sh -c")
        .arg("basename \"$SC_LOCATION\"")
        .stdout("site\n")
        .run();
    node.assert_empty();
}

#[test]
fn what_is_wrong_in_the_file_is_told_with_its_line() {
    let node = Node::new();
    let path = node.outside("sc.conf");
    let hint = "hint: options that have a variable may stand here; no actions, no modules";
    for (text, line, problem) in [
        (
            "\n--size=lots",
            2,
            "`--size`: `lots` is not a size\nhint: {}".to_owned(),
        ),
        ("-q\n\n--foo", 3, "no such option: `--foo`\nhint: {}".into()),
        ("-q\n-n", 2, "`-n` needs a value\nhint: {}".into()),
        (
            "-q 'a\nb",
            1,
            "a quote is not closed, or nothing follows `\\`".into(),
        ),
        ("-q --use", 1, format!("`--use` has no place here\n{hint}")),
        (
            "-q\n--json",
            2,
            format!("`--json` has no place here\n{hint}"),
        ),
        ("--help", 1, format!("`--help` has no place here\n{hint}")),
        (
            "--generate=man",
            1,
            format!("`--generate` has no place here\n{hint}"),
        ),
        ("-q\ntar", 2, format!("`tar` has no place here\n{hint}")),
        ("-q\n--\n-v", 2, format!("`--` has no place here\n{hint}")),
    ] {
        conf(&node, text);
        sc(&node, "--location")
            .status(2)
            .stderr(format!(
                "sc: in `{}`, line {line}: {problem}",
                path.display()
            ))
            .run();
    }
    // what a variable or the command line replaces is not asked
    conf(&node, "--size=lots");
    let location = format!("{}\n", node.base().display());
    sc(&node, "--location -s 1").stdout(&location).run();
    sc(&node, "--location")
        .env("SC_SIZE", "1")
        .stdout(&location)
        .run();
}

#[test]
fn a_file_that_others_may_have_written_is_passed_over() {
    let node = Node::new();
    let location = format!("{}\n", node.base().display());
    let path = conf(&node, "-n site");
    let passed_over = |path: &Path, why: &str| {
        node.sc("--location")
            .env("SC_CONF", path)
            .stdout(&location)
            .stderr(format!(
                "sc: warning: `{}` is passed over: {why}",
                path.display()
            ))
            .run();
    };
    for mode in [0o664, 0o646] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        passed_over(
            &path,
            &format!("others than its owner may write it (mode {mode:04o})"),
        );
    }
    passed_over(node.base(), "it is no regular file");
    sc(&node, "-q --location").stdout(&location).run();
    // one that belongs to somebody else: root's for a user, a user's for root
    if shared_cache::process::user() == 0 {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::chown(&path, Some(4711), None).unwrap();
        passed_over(&path, "it belongs to uid 4711, not to root");
    } else {
        passed_over(
            Path::new("/etc/passwd"),
            "it belongs to uid 0, not to uid {}",
        );
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        passed_over(&path, "permission denied");
    }
}
