use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::cli::Generate;
use crate::repository::Repository;
use crate::repository::past::StatsDir;

fn os(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn read(words: &[&str], env: &[(&str, &str)]) -> Result<Parsed> {
    Request::read(&Conf::default(), os(words), &|name| {
        env.iter()
            .find(|(variable, _)| *variable == name)
            .map(|(_, value)| value.into())
    })
}

fn request(words: &[&str], env: &[(&str, &str)]) -> Request {
    match read(words, env) {
        Ok(Parsed::Request(request)) => *request,
        other => panic!("{words:?} {env:?}: {other:?}"),
    }
}

fn problem(words: &[&str], env: &[(&str, &str)]) -> String {
    match read(words, env) {
        Err(error @ Error::Usage { .. }) => error.to_string(),
        other => panic!("{words:?} {env:?}: {other:?}"),
    }
}

#[test]
fn two_files_of_one_name_are_a_usage_error() {
    for words in [
        &["http://h/repofile"][..],
        &["file:/x/repofile.lock"],
        &["http://h/a/f", "http://h/b/f"],
        &["http://h/f", "tar", "file:/x/f.list"],
    ] {
        let read = Request::read(
            &Conf::default(),
            words.iter().map(OsString::from).collect(),
            &|_| None,
        );
        let error = read.expect_err("one name twice").to_string();
        assert!(error.contains("would both be called"), "{words:?}: {error}");
    }
    let words = ["--file=state", "http://h/repofile"]
        .map(OsString::from)
        .to_vec();
    assert!(Request::read(&Conf::default(), words, &|_| None).is_ok());
}

#[test]
fn nothing_typed_is_the_reference_with_its_defaults() {
    let request = request(&[], &[]);
    assert_eq!(
        request.action,
        Action::InTurn {
            use_: false,
            unuse: false,
            location: false
        }
    );
    assert_eq!(
        request.repository,
        Spec {
            directories: vec!["/tmp".into(), "/var/tmp".into()],
            name: None,
            file: "repofile".into(),
            allow_network_fs: false,
            share: None,
            stats_dir: None,
        }
    );
    assert_eq!(request.need, Need::default());
    assert_eq!(request.settings.size, Bytes(0));
    assert!(request.stacks.is_empty() && request.warnings.is_empty());
    assert_eq!(request.holder, HolderSpec::default());
    assert_eq!(request.patience, None);
    assert_eq!(request.settings.retries, 3);
    assert_eq!(request.settings.stall_timeout, Duration::from_secs(60));
    assert_eq!(request.settings.dirac_get, "dirac-dms-get-file");
    assert_eq!(request.level, Level::Normal);
    assert_eq!(request.progress, ProgressMode::Auto);
}

#[test]
fn each_variable_stands_for_its_option() {
    let env = [
        ("SC_FILE", "state"),
        ("SC_DIRECTORIES", "/a::b/"),
        ("SC_SIZE", "10GB"),
        ("SC_NAME", "n/m"),
        ("SC_PID", "42"),
        ("SC_ID", "job 7"),
        ("SC_TIMEOUT", "0.5"),
        ("SC_RETRIES", "0"),
        ("SC_STALL_TIMEOUT", "2m"),
        ("SC_LOG", "debug"),
        ("SC_PROGRESS", "never"),
        ("SC_ALLOW_NETWORK_FS", "1"),
        ("SC_STATS_DIR", "/var/lib//sc/"),
        ("SC_DIRAC_GET", "/opt/get"),
        ("SC_SHARE", "group"),
    ];
    let by_env = request(&["--use"], &env);
    let by_words = request(
        &[
            "--use",
            "-f",
            "state",
            "-d/a::b/",
            "-s10GB",
            "-nn/m",
            "--pid=42",
            "--id=job 7",
            "--timeout=0.5",
            "--retries=0",
            "--stall-timeout=2m",
            "--allow-network-fs",
            "--share=group",
            "--stats-dir=/var/lib//sc/",
            "-vv",
            "--progress=never",
        ],
        &[("SC_DIRAC_GET", "/opt/get")],
    );
    assert_eq!(format!("{by_env:?}"), format!("{by_words:?}"));
    assert_eq!(
        by_env.repository,
        Spec {
            directories: vec!["/a".into(), ".".into(), "b".into()],
            name: Some("n/m".into()),
            file: "state".into(),
            allow_network_fs: true,
            share: Some(Kind::Group),
            stats_dir: Some(StatsDir::new("/var/lib/sc".into())),
        }
    );
    assert_eq!(by_env.need.size, Bytes(10_000_000_000));
    assert_eq!(by_env.settings.size, Bytes(10_000_000_000));
    assert_eq!(by_env.holder.who, Who::Process(42));
    assert_eq!(by_env.holder.id.as_deref(), Some("job 7"));
    assert_eq!(by_env.patience, Some(Duration::from_millis(500)));
    assert_eq!(by_env.settings.retries, 0);
    assert_eq!(by_env.settings.stall_timeout, Duration::from_secs(120));
    assert_eq!(by_env.settings.dirac_get, "/opt/get");
    assert_eq!(by_env.level, Level::Debug);
    assert_eq!(by_env.progress, ProgressMode::Never);
}

#[test]
fn the_command_line_wins_over_sc_options_and_these_over_the_variables() {
    let env = [("SC_NAME", "env"), ("SC_OPTIONS", "-n 'op tions' dummy")];
    let name = |words: &[&str], env: &[(&str, &str)]| request(words, env).repository.name;
    assert_eq!(name(&["--name=line"], &env), Some("line".into()));
    assert_eq!(name(&[], &env), Some("op tions".into()));
    assert_eq!(name(&[], &env[..1]), Some("env".into()));
    // typed, an empty name is no name
    assert_eq!(name(&["-n", ""], &env), None);
    assert_eq!(request(&["dummy"], &env).stacks[0].modules.len(), 2);
    assert_eq!(request(&["-q"], &[("SC_LOG", "debug")]).level, Level::Quiet);
    assert_eq!(
        request(&["-v"], &[("SC_LOG", "quiet")]).level,
        Level::Verbose
    );
    assert_eq!(
        request(&["--no-wait"], &[("SC_TIMEOUT", "9")]).patience,
        Some(Duration::ZERO)
    );
    assert_eq!(
        request(&["--timeout=9"], &[("SC_OPTIONS", "--no-wait")]).patience,
        Some(Duration::from_secs(9))
    );
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let names = [
        "SC_FILE",
        "SC_DIRECTORIES",
        "SC_SIZE",
        "SC_NAME",
        "SC_PID",
        "SC_ID",
        "SC_TIMEOUT",
        "SC_RETRIES",
        "SC_STALL_TIMEOUT",
        "SC_LOG",
        "SC_PROGRESS",
        "SC_OPTIONS",
        "SC_DIRAC_GET",
    ];
    let env: Vec<_> = names.iter().map(|name| (*name, "")).collect();
    assert_eq!(
        format!("{:?}", request(&[], &env)),
        format!("{:?}", request(&[], &[]))
    );
}

#[test]
fn the_actions_of_the_reference_may_be_combined() {
    assert_eq!(
        request(&["--location", "--unuse", "--use"], &[]).action,
        Action::InTurn {
            use_: true,
            unuse: true,
            location: true
        }
    );
    assert_eq!(
        request(&["--status", "--json"], &[]).action,
        Action::Status { json: true }
    );
    let run = |words: &[&str]| request(words, &[]).action;
    assert_eq!(
        run(&["--run", "dummy", "--", "ls", "-l"]),
        Action::Run(Run {
            command: os(&["ls", "-l"]),
            inherit: true
        })
    );
    assert_eq!(
        run(&["--close", "--run", "--", "-"]),
        Action::Run(Run {
            command: os(&["-"]),
            inherit: false
        })
    );
}

#[test]
fn names_are_folded() {
    for (typed, meant) in [
        ("", None),
        ("a", Some("a")),
        ("a//b/", Some("a/b")),
        ("./a/./b/.", Some("a/b")),
        ("...", Some("...")),
        ("-x", Some("-x")),
        ("--", Some("--")),
        ("=x", Some("=x")),
        ("a.sc", Some("a.sc")),
    ] {
        assert_eq!(
            request(&["-n", typed], &[]).repository.name,
            meant.map(PathBuf::from),
            "{typed}"
        );
    }
    let longest = "x".repeat(251);
    assert!(request(&["-n", &longest], &[]).repository.name.is_some());
    let nested = format!("{}/x", "x".repeat(255));
    assert!(request(&["-n", &nested], &[]).repository.name.is_some());
}

#[test]
fn a_location_is_spelled_as_the_reference_spells_it() {
    for (directory, name, location) in [
        (".", "r", "r"),
        (".", "", "."),
        ("", "r", "r"),
        ("", "", "."),
        ("/", "r", "/r"),
        ("//x", "r", "//x/r"),
        ("///x//y/../z/.", "a//b/", "/x/z/a/b"),
        ("..", "r", "../r"),
        ("../../a", "", "../../a"),
        ("/..", "r", "/r"),
        ("a/..", "r", "r"),
        ("a/../..", "r", "../r"),
    ] {
        let spec = request(&["-d", directory, "-n", name], &[]).repository;
        assert_eq!(
            Repository::new(&spec.directories[0], &spec)
                .location()
                .as_os_str(),
            location,
            "{directory} {name}"
        );
    }
}

#[test]
fn every_wrong_value_is_told_with_its_option() {
    let long = "x".repeat(252);
    let nested = format!("{}/x", "x".repeat(256));
    let too_long = format!("`--name`: `{long}` is too long");
    let too_long_nested = format!("`--name`: `{nested}` is too long");
    for (words, expected) in [
        (&["--size="][..], "`--size`: `` is not a size"),
        (&["-s", "1K"], "`--size`: `1K` is not a size"),
        (&["-s", "--"], "`--size`: `--` is not a size"),
        (
            &["-s", "99999999TB"],
            "`--size`: `99999999TB` is more than 2^64 bytes",
        ),
        (&["-n", "/a"], "`--name`: `/a` is absolute"),
        (
            &["-n", "a/../b"],
            "`--name`: `a/../b` leads out of the base directory",
        ),
        (&["-n", "."], "`--name`: `.` names no directory"),
        (
            &["-n", ".sc"],
            "`--name`: `.sc` has a component that begins `.sc`",
        ),
        (
            &["-n", "a/.scx/b"],
            "`--name`: `a/.scx/b` has a component that begins `.sc`",
        ),
        (&["-n", &long], &too_long),
        (&["-n", &nested], &too_long_nested),
        (&["-f", ""], "`--file`: an empty word names no file"),
        (
            &["-f", "a/b"],
            "`--file`: `a/b` is neither a name nor an absolute path",
        ),
        (
            &["-f", "./a"],
            "`--file`: `./a` is neither a name nor an absolute path",
        ),
        (&["-f", ".."], "`--file`: `..` names no file"),
        (&["-f", "/a/"], "`--file`: `/a/` names no file"),
        (&["-f", ".sc.x"], "`--file`: `.sc.x` begins `.sc`"),
        (
            &["-f", "repofile.lock"],
            "`--file`: `repofile.lock` ends in `.lock`",
        ),
        (&["--pid=0"], "`--pid`: `0` is not a process id"),
        (&["--pid=-1"], "`--pid`: `-1` is not a process id"),
        (&["--pid=+1"], "`--pid`: `+1` is not a process id"),
        (&["--pid=x"], "`--pid`: `x` is not a process id"),
        (
            &["--pid=99999999999"],
            "`--pid`: `99999999999` is not a process id",
        ),
        (&["--id=a\nb"], "`--id`: `a\nb` is no text on one line"),
        (&["--timeout=soon"], "`--timeout`: `soon` is not a duration"),
        (&["--timeout="], "`--timeout`: `` is not a duration"),
        (
            &["--retries=-1"],
            "`--retries`: `-1` is not a number of retries",
        ),
        (
            &["--retries=1.5"],
            "`--retries`: `1.5` is not a number of retries",
        ),
        (
            &["--stall-timeout=0"],
            "`--stall-timeout`: `0` would end every attempt at once",
        ),
        (
            &["--stall-timeout=x"],
            "`--stall-timeout`: `x` is not a duration",
        ),
        (
            &["--progress=x"],
            "`--progress`: `x` is not a way to show progress",
        ),
        (
            &["--generate=x"],
            "`--generate`: `x` is nothing it can print",
        ),
        (
            &["--generate=man", "--use"],
            "`--generate` and `--use` exclude each other",
        ),
        (&["--run", "x"], "`--run` needs a command after `--`"),
        (&["--run", "--"], "`--run` needs a command after `--`"),
        (
            &["--run", "--use", "--", "x"],
            "`--run` and `--use` exclude each other",
        ),
        (
            &["--unuse", "--run", "--", "x"],
            "`--run` and `--unuse` exclude each other",
        ),
        (
            &["--run", "--location", "--", "x"],
            "`--run` and `--location` exclude each other",
        ),
        (
            &["--status", "--run", "--", "x"],
            "`--run` and `--status` exclude each other",
        ),
        (
            &["--status", "--use"],
            "`--status` and `--use` exclude each other",
        ),
        (
            &["--json", "--use"],
            "`--json` means nothing without `--status` or `--list` or `--stats` or `--verify` or `--doctor`",
        ),
        (
            &["--prometheus", "--list"],
            "`--prometheus` means nothing without `--stats`",
        ),
        (
            &["--stats", "--json", "--prometheus"],
            "`--json` and `--prometheus` exclude each other",
        ),
        (
            &["--stats", "--stats-dir=x/y"],
            "`--stats-dir`: `x/y` is no absolute path",
        ),
        (
            &["--close", "--use"],
            "`--close` means nothing without `--run`",
        ),
    ] {
        assert_eq!(problem(words, &[]), expected, "{words:?}");
    }
}

#[test]
fn a_wrong_variable_is_told_by_its_name() {
    for (variable, value, expected) in [
        ("SC_SIZE", "1TBB", "`SC_SIZE`: `1TBB` is not a size"),
        (
            "SC_NAME",
            "..",
            "`SC_NAME`: `..` leads out of the base directory",
        ),
        (
            "SC_FILE",
            "a/b",
            "`SC_FILE`: `a/b` is neither a name nor an absolute path",
        ),
        ("SC_PID", "x", "`SC_PID`: `x` is not a process id"),
        ("SC_TIMEOUT", "x", "`SC_TIMEOUT`: `x` is not a duration"),
        (
            "SC_RETRIES",
            "x",
            "`SC_RETRIES`: `x` is not a number of retries",
        ),
        (
            "SC_STALL_TIMEOUT",
            "x",
            "`SC_STALL_TIMEOUT`: `x` is not a duration",
        ),
        ("SC_LOG", "x", "`SC_LOG`: `x` is not a level of detail"),
        (
            "SC_PROGRESS",
            "x",
            "`SC_PROGRESS`: `x` is not a way to show progress",
        ),
        (
            "SC_OPTIONS",
            "-n 'a",
            "in `SC_OPTIONS`: a quote is not closed",
        ),
        ("SC_OPTIONS", "-n", "in `SC_OPTIONS`: `-n` needs a value"),
    ] {
        assert_eq!(problem(&[], &[(variable, value)]), expected);
        // what is only printed needs none of them
        if variable != "SC_OPTIONS" {
            for words in [&["--help"][..], &["--version"], &["--generate=fish"]] {
                assert!(matches!(
                    read(words, &[(variable, value)]),
                    Ok(Parsed::Print(_))
                ));
            }
        }
    }
}

#[test]
fn sc_options_are_split_as_a_shell_splits() {
    let name = |options: &str| request(&[], &[("SC_OPTIONS", options)]).repository.name;
    for (options, meant) in [
        ("-n 'a b'", "a b"),
        ("--name=\"a\\\"b\"", "a\"b"),
        ("  -n\ta\\ b\n", "a b"),
        ("-n a'b'\"c\"", "abc"),
        ("-n a # -n b", "a"),
    ] {
        assert_eq!(name(options), Some(meant.into()), "{options}");
    }
    let raw = OsString::from_vec(b"-n '\xff'".to_vec());
    match Request::read(&Conf::default(), Vec::new(), &|name| {
        (name == "SC_OPTIONS").then(|| raw.clone())
    }) {
        Ok(Parsed::Request(request)) => assert_eq!(
            request.repository.name,
            Some(OsString::from_vec(b"\xff".to_vec()).into())
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn modules_are_checked_without_an_action() {
    assert!(problem(&["tar"], &[]).contains("no loader below it"));
    assert!(problem(&["nonsense"], &[]).contains("unknown module"));
    assert!(problem(&["--use", "-"], &[]).contains("unknown module"));
    assert!(problem(&["--use", ""], &[]).contains("unknown module"));
}

#[test]
fn the_man_page_and_the_parser_have_the_same_options() {
    let page = cli::generate(Generate::Man);
    let mut told: Vec<String> = Vec::new();
    let mut defined: Vec<String> = Vec::new();
    for line in page.lines().filter(|line| line.starts_with('.')) {
        let mut words = line.split_whitespace();
        let is_item = words.next() == Some(".It");
        let words: Vec<_> = line.split_whitespace().collect();
        for option in words
            .windows(2)
            .filter(|pair| matches!(pair[0], "Fl" | ".Fl"))
            .map(|pair| pair[1])
            .filter(|word| !word.is_empty() && *word != "Fl")
        {
            told.push(option.to_owned());
            if is_item {
                defined.push(option.to_owned());
            }
        }
    }
    let mut real: Vec<String> = Vec::new();
    for arg in cli::command()
        .get_arguments()
        .filter(|arg| !arg.is_positional())
    {
        real.extend(arg.get_long().map(|long| format!("-{long}")));
        real.extend(arg.get_short().map(String::from));
    }
    for option in &real {
        assert!(
            defined.contains(option),
            "`-{option}` has no entry in the man page"
        );
    }
    for option in &told {
        // `Fl -` is the word that ends the options
        assert!(
            real.contains(option) || option == "-",
            "the man page tells of `-{option}`, which is no option"
        );
    }
}

#[test]
fn the_man_page_and_the_program_have_the_same_variables() {
    let page = cli::generate(Generate::Man);
    let seen = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let _ = Request::read(&Conf::default(), Vec::new(), &|name| {
        seen.borrow_mut().insert(name.to_owned());
        None
    });
    // of debug builds only, for the tests of the whole program
    seen.borrow_mut().remove("SC_BACKOFF_MS");
    // not the value of one option
    let beside = ["SC_DIRAC_GET", "SC_OPTIONS"];
    let options = cli::variables();
    for name in seen.borrow().iter().filter(|name| name.starts_with("SC_")) {
        assert!(
            beside.contains(&name.as_str()) || options.iter().any(|(known, _)| known == name),
            "the help of no option ends with `[{name}]`"
        );
    }
    for (name, _) in &options {
        assert!(seen.borrow().contains(name), "nobody reads `{name}`");
    }
    for name in seen.borrow().iter() {
        assert!(
            page.contains(&format!("Ev {name}")),
            "`{name}` is not in the man page"
        );
    }
    for word in page
        .split_whitespace()
        .filter(|word| word.starts_with("SC_"))
    {
        let name = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        assert!(
            seen.borrow().contains(name) || name == "SC_LOCATION",
            "the man page tells of `{name}`, which nobody reads"
        );
    }
}

proptest! {
    #[test]
    fn no_value_makes_it_panic(
        option in prop::sample::select(vec![
            "-f", "-d", "-s", "-n", "--pid", "--id", "--timeout", "--retries",
            "--stall-timeout", "--progress", "--generate",
        ]),
        value in prop::collection::vec(1u8..=255, 0..12),
    ) {
        let value = OsString::from_vec(value);
        let _ = Request::read(&Conf::default(), vec![option.into(), value], &|_| None);
    }

    #[test]
    fn no_environment_makes_it_panic(value in prop::collection::vec(1u8..=255, 0..12)) {
        let value = OsString::from_vec(value);
        let _ = Request::read(&Conf::default(), Vec::new(), &|_| Some(value.clone()));
        let _ = Request::read(&Conf::default(), Vec::new(), &|name| {
            (name == "SC_OPTIONS").then(|| value.clone())
        });
    }

    #[test]
    fn a_name_never_leaves_its_directory(name in "[a/.]{0,12}") {
        if let Ok(Parsed::Request(request)) =
            Request::read(&Conf::default(), vec!["-n".into(), name.into()], &|_| None)
            && let Some(name) = request.repository.name
        {
            prop_assert!(name.components().count() > 0);
            prop_assert!(name
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_))));
        }
    }
}
